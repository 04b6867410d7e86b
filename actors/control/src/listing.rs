//! The kernels and users that should exist, a page at a time: a thousand entries do not fit into one
//! message.

use std::ops::Bound;

use callboard_protocol::{
    KernelId,
    control::{KernelList, KernelSpec, ListKernels},
    users::{ListUsers, UserEntry, UserList},
};
use serde::Serialize;

use crate::desired::DesiredState;

/// Bytes of entries in one page: with the envelope around them they stay under the 1 MiB that a
/// broker takes by default.
const PAGE_BYTES_MAX: usize = 512 << 10;

/// The page of kernels that was asked for; nothing but its version to whoever knows that one.
pub(crate) fn page(state: &DesiredState, asked: &ListKernels) -> KernelList {
    let version = Some(state.revision());
    if asked.known.is_some() && asked.known == version {
        return KernelList { version, unchanged: true, ..KernelList::default() };
    }
    page_of(state, asked.after, PAGE_BYTES_MAX)
}

/// The page of users that was asked for.
pub(crate) fn page_of_users(state: &DesiredState, asked: &ListUsers) -> UserList {
    let from = asked.after.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
    let rest = state.users().range((from, Bound::Unbounded)).map(|(_, entry)| entry);
    let (users, left) = take(rest, PAGE_BYTES_MAX);
    let next = users.last().map(|entry: &UserEntry| entry.user.clone()).filter(|_| left > 0);
    UserList { users, version: state.users_version(), next }
}

fn page_of(state: &DesiredState, after: Option<KernelId>, bytes_max: usize) -> KernelList {
    let from = after.map_or(Bound::Unbounded, Bound::Excluded);
    let rest = state.kernels().range((from, Bound::Unbounded)).map(|(_, spec)| spec);
    let (kernels, left) = take(rest, bytes_max);
    let next = kernels.last().map(|spec: &KernelSpec| spec.kernel).filter(|_| left > 0);
    let hint = next.map(|next| {
        format!("{left} more kernels follow: ask again with {{\"after\": \"{next}\"}}")
    });
    KernelList { kernels, next, hint, version: Some(state.revision()), unchanged: false }
}

/// At least one entry, then as many as have less than `bytes_max` before them; and how many are left.
fn take<'a, T: Serialize + Clone + 'a>(
    mut rest: impl Iterator<Item = &'a T>,
    bytes_max: usize,
) -> (Vec<T>, usize) {
    let (mut taken, mut bytes) = (Vec::new(), 0);
    for entry in rest.by_ref() {
        bytes += length(entry);
        taken.push(entry.clone());
        if bytes >= bytes_max {
            break;
        }
    }
    (taken, rest.count())
}

fn length(entry: &impl Serialize) -> usize {
    // One that cannot be written will not be sent either.
    serde_json::to_vec(entry).map_or(0, |json| json.len())
}

#[cfg(test)]
mod tests {
    use callboard_protocol::{
        DiskId, NodeId, OwnerId, ReplicaId,
        users::{TokenEntry, TokenId, UserRole},
    };
    use callboard_replicated::Machine as _;

    use super::*;
    use crate::desired::{Command, USERS_MAX};

    fn state(kernels: usize) -> DesiredState {
        let mut state = DesiredState::default();
        let place = (NodeId::new("node-1").unwrap(), DiskId::generate());
        state.apply(1, Command::Found { members: [(ReplicaId(1), place.clone())].into() });
        for _ in 0..kernels {
            state.apply(
                2,
                Command::StartKernel {
                    kernel: KernelId::generate(),
                    owner: OwnerId::default(),
                    name: None,
                    replicas: 3,
                    places: vec![place.clone()],
                    options: Default::default(),
                    origin: None,
                    settings: Default::default(),
                },
            );
        }
        state
    }

    #[test]
    fn the_pages_together_hold_every_kernel_once_and_each_fits_into_a_message() {
        let state = state(3_000);
        let (mut seen, mut after, mut pages) = (Vec::new(), None, 0);
        loop {
            let page = page(&state, &ListKernels { after, known: None });
            assert!(serde_json::to_vec(&page).unwrap().len() < 1 << 20);
            assert_eq!(page.next.is_some(), page.hint.is_some());
            seen.extend(page.kernels.into_iter().map(|spec| spec.kernel));
            pages += 1;
            match page.next {
                Some(next) => after = Some(next),
                None => break,
            }
        }
        assert!(pages > 1);
        assert!(seen.iter().eq(state.kernels().keys()));
    }

    #[test]
    fn a_page_holds_at_least_one_kernel_and_the_last_one_leads_nowhere() {
        let state = state(2);
        let first = page_of(&state, None, 1);
        assert_eq!(first.kernels.len(), 1);
        let last = page_of(&state, first.next, 1);
        assert_eq!((last.kernels.len(), last.next), (1, None));
        assert!(page_of(&state, Some(last.kernels[0].kernel), 1).kernels.is_empty());
    }

    #[test]
    fn a_list_that_is_known_is_not_repeated_until_something_changes() {
        let mut state = state(2);
        let whole = page(&state, &ListKernels::default());
        let asked = ListKernels { after: None, known: whole.version };
        let unchanged =
            KernelList { version: whole.version, unchanged: true, ..KernelList::default() };
        assert_eq!(page(&state, &asked), unchanged);
        state.apply(3, Command::StopKernel { kernel: whole.kernels[0].kernel });
        let after = page(&state, &asked);
        assert_eq!((after.kernels.len(), after.unchanged), (1, false));
        assert_ne!(after.version, whole.version);
    }

    #[test]
    fn the_pages_of_users_hold_every_user_once_with_all_tokens() {
        let mut state = DesiredState::default();
        assert_eq!(page_of_users(&state, &ListUsers::default()), UserList::default());
        for n in 0..USERS_MAX {
            let user = OwnerId::new(format!("user-{n}-{}", "x".repeat(40))).unwrap();
            state.apply(1, Command::AddUser { user: user.clone(), role: UserRole::User });
            for m in 0..5 {
                let id = TokenId::new(format!("{n:06}{m:06}")).unwrap();
                let (sha256, label) = ("f".repeat(64), Some("l".repeat(100)));
                let entry = TokenEntry { sha256, label, created_ms: 1, expires_ms: None };
                state.apply(1, Command::AddToken { user: user.clone(), id, entry });
            }
        }
        let (mut seen, mut after, mut pages) = (Vec::new(), None, 0);
        loop {
            let page = page_of_users(&state, &ListUsers { after });
            assert!(serde_json::to_vec(&page).unwrap().len() < 1 << 20);
            assert_eq!(page.version, state.users_version());
            seen.extend(page.users);
            pages += 1;
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        assert!(pages > 1);
        assert_eq!(seen.len(), USERS_MAX);
        assert!(seen.iter().eq(state.users().values()));
    }
}
