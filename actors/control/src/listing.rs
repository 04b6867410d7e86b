//! The kernels that should exist, a page at a time: a thousand entries do not fit into one message.

use std::ops::Bound;

use callboard_protocol::{
    KernelId,
    control::{KernelList, KernelSpec, ListKernels},
};

use crate::desired::DesiredState;

/// Bytes of entries in one page: with the envelope around them they stay under the 1 MiB that a
/// broker takes by default.
const PAGE_BYTES_MAX: usize = 512 << 10;

/// The page that was asked for.
pub(crate) fn page(state: &DesiredState, asked: &ListKernels) -> KernelList {
    page_of(state, asked.after, PAGE_BYTES_MAX)
}

fn page_of(state: &DesiredState, after: Option<KernelId>, bytes_max: usize) -> KernelList {
    let from = after.map_or(Bound::Unbounded, Bound::Excluded);
    let mut rest = state.kernels().range((from, Bound::Unbounded)).map(|(_, spec)| spec);
    let (mut kernels, mut bytes) = (Vec::new(), 0);
    for spec in rest.by_ref() {
        bytes += length(spec);
        kernels.push(spec.clone());
        if bytes >= bytes_max {
            break;
        }
    }
    let left = rest.count();
    let next = kernels.last().map(|spec: &KernelSpec| spec.kernel).filter(|_| left > 0);
    let hint = next.map(|next| {
        format!("{left} more kernels follow: ask again with {{\"after\": \"{next}\"}}")
    });
    KernelList { kernels, next, hint }
}

fn length(spec: &KernelSpec) -> usize {
    // One that cannot be written will not be sent either.
    serde_json::to_vec(spec).map_or(0, |json| json.len())
}

#[cfg(test)]
mod tests {
    use callboard_protocol::{DiskId, NodeId, OwnerId, ReplicaId};
    use callboard_replicated::Machine as _;

    use super::*;
    use crate::desired::Command;

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
            let page = page(&state, &ListKernels { after });
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
        assert_eq!(page_of(&state, Some(last.kernels[0].kernel), 1), KernelList::default());
    }
}
