use callboard_protocol::{
    KernelId, OwnerId,
    users::{TokenEntry, TokenId, UserEntry, UserRole},
};
use proptest::prelude::*;
use uuid::Uuid;

use super::super::*;

fn owner(name: &str) -> OwnerId {
    OwnerId::new(name).unwrap()
}

fn id(n: usize) -> TokenId {
    TokenId::new(format!("{n:012}")).unwrap()
}

fn entry(digit: &str) -> TokenEntry {
    let label = Some("laptop".to_owned());
    TokenEntry { sha256: digit.repeat(64), label, created_ms: 7, expires_ms: Some(9) }
}

fn add(user: &str, role: UserRole) -> Command {
    Command::AddUser { user: owner(user), role }
}

fn remove(user: &str) -> Command {
    Command::RemoveUser { user: owner(user) }
}

fn add_token(user: &str, n: usize) -> Command {
    Command::AddToken { user: owner(user), id: id(n), entry: entry("a") }
}

fn revoke(n: usize) -> Command {
    Command::RevokeToken { id: id(n) }
}

fn start(n: u128, user: &str) -> Command {
    Command::StartKernel {
        kernel: KernelId(Uuid::from_u128(n)),
        owner: owner(user),
        name: None,
        replicas: 1,
        places: vec![(NodeId::new("node-1").unwrap(), DiskId(Uuid::nil()))],
        options: Default::default(),
        origin: None,
        settings: Default::default(),
    }
}

fn changed(outcome: Outcome) -> (UserEntry, Option<UserChange>) {
    match outcome {
        Outcome::User { entry, change } => (entry, change),
        other => panic!("no user: {other:?}"),
    }
}

fn refused(outcome: Outcome) -> Refusal {
    match outcome {
        Outcome::Refused(refusal) => refusal,
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn a_user_is_added_once_changes_its_role_and_goes_with_its_tokens() {
    let mut state = DesiredState::default();
    let (ada, change) = changed(state.apply(1, add("ada", UserRole::User)));
    assert_eq!((ada.role, change), (UserRole::User, Some(UserChange::Added)));
    assert_eq!(changed(state.apply(2, add("ada", UserRole::User))), (ada, None));
    assert_eq!((state.users_version(), state.revision()), (1, 1), "the second changed nothing");
    changed(state.apply(3, add_token("ada", 1)));
    let (ada, change) = changed(state.apply(4, add("ada", UserRole::Admin)));
    assert_eq!((ada.role, ada.tokens.len()), (UserRole::Admin, 1), "its tokens stay");
    assert_eq!(change, Some(UserChange::RoleChanged));
    assert_eq!(changed(state.apply(5, remove("ada"))), (ada, Some(UserChange::Removed)));
    assert_eq!(refused(state.apply(6, remove("ada"))), Refusal::NoSuchUser { user: owner("ada") });
    let (ada, _) = changed(state.apply(7, add("ada", UserRole::Viewer)));
    assert!(ada.tokens.is_empty(), "a former user's tokens do not come back");
    assert_eq!(state.users_version(), 5);
}

#[test]
fn a_user_that_owns_kernels_is_not_removed() {
    let mut state = DesiredState::default();
    state.apply(1, add("ada", UserRole::User));
    state.apply(1, start(1, "ada"));
    state.apply(1, start(2, "bob"));
    let refusal = refused(state.apply(2, remove("ada")));
    assert_eq!(refusal, Refusal::OwnsKernels { user: owner("ada"), count: 1 });
    assert!(refusal.to_string().contains("callboard kernel stop"), "{refusal}");
    assert!(matches!(refused(state.apply(3, remove("bob"))), Refusal::NoSuchUser { .. }));
    state.apply(4, Command::StopKernel { kernel: KernelId(Uuid::from_u128(1)) });
    changed(state.apply(5, remove("ada")));
}

#[test]
fn a_resent_token_is_the_same_and_another_of_its_id_is_refused() {
    let mut state = DesiredState::default();
    let nobody = refused(state.apply(1, add_token("ada", 1)));
    assert!(nobody.to_string().contains("callboard user add ada"), "{nobody}");
    state.apply(1, add("ada", UserRole::User));
    state.apply(1, add("bob", UserRole::User));
    let (ada, change) = changed(state.apply(2, add_token("ada", 1)));
    assert_eq!(ada.tokens, [(id(1), entry("a"))].into());
    assert_eq!(change, Some(UserChange::TokenAdded(id(1))));
    assert_eq!(changed(state.apply(3, add_token("ada", 1))), (ada, None));
    let taken = Refusal::TokenTaken { id: id(1) };
    assert_eq!(refused(state.apply(4, add_token("bob", 1))), taken);
    let other = Command::AddToken { user: owner("ada"), id: id(1), entry: entry("b") };
    assert_eq!(refused(state.apply(5, other)), taken);
    let (ada, change) = changed(state.apply(6, revoke(1)));
    assert!(ada.user == owner("ada") && ada.tokens.is_empty());
    assert_eq!(change, Some(UserChange::TokenRevoked(id(1))));
    assert_eq!(refused(state.apply(7, revoke(1))), Refusal::NoSuchToken { id: id(1) });
}

#[test]
fn users_and_their_tokens_are_bounded() {
    let mut state = DesiredState::default();
    for n in 0..USERS_MAX {
        changed(state.apply(1, add(&format!("user-{n}"), UserRole::User)));
    }
    assert_eq!(refused(state.apply(2, add("more", UserRole::User))), Refusal::TooManyUsers);
    changed(state.apply(3, add("user-0", UserRole::Admin)));
    for n in 0..TOKENS_PER_USER_MAX {
        changed(state.apply(4, add_token("user-0", n)));
    }
    let refusal = refused(state.apply(5, add_token("user-0", 99)));
    assert_eq!(refusal, Refusal::TooManyTokens { user: owner("user-0") });
    changed(state.apply(6, add_token("user-0", 0)));
    changed(state.apply(7, add_token("user-1", 99)));
    state.apply(8, revoke(0));
    changed(state.apply(9, add_token("user-0", 100)));
    state.apply(10, remove("user-2"));
    changed(state.apply(11, add("more", UserRole::User)));
}

fn any_command() -> impl Strategy<Value = Command> {
    let user = || prop::sample::select(vec!["ada", "bob", "eve"]);
    let role = prop::sample::select(vec![UserRole::Viewer, UserRole::User, UserRole::Admin]);
    prop_oneof![
        (user(), role).prop_map(|(user, role)| add(user, role)),
        user().prop_map(remove),
        (user(), 0_usize..5).prop_map(|(user, n)| add_token(user, n)),
        (0_usize..5).prop_map(revoke),
        (0_u128..3, user()).prop_map(|(n, user)| start(n, user)),
        (0_u128..3).prop_map(|n| Command::StopKernel { kernel: KernelId(Uuid::from_u128(n)) }),
    ]
}

proptest! {
    /// Whatever is asked in whatever order: a token has one holder, an entry is filed under its
    /// user, versions grow with changes and with nothing else, and a snapshot taken anywhere goes on
    /// like the original.
    #[test]
    fn users_keep_their_promises(
        commands in prop::collection::vec(any_command(), 0..60),
        cut in 0_usize..60,
    ) {
        let mut state = DesiredState::default();
        let mut copy = state.clone();
        for (at, command) in commands.into_iter().enumerate() {
            if at == cut {
                copy = DesiredState::restore(&state.snapshot()).unwrap();
            }
            let before = state.clone();
            let outcome = state.apply(at as u64, command.clone());
            prop_assert_eq!(&copy.apply(at as u64, command), &outcome);
            prop_assert_eq!(&copy, &state);
            let is_change = matches!(&outcome, Outcome::User { change: Some(_), .. });
            prop_assert_eq!(state.users_version(), before.users_version() + u64::from(is_change));
            prop_assert_eq!(state.users() != before.users(), is_change);
            prop_assert!(state.users().iter().all(|(user, entry)| entry.user == *user));
            let mut seen = std::collections::BTreeSet::new();
            let mut held = state.users().values().flat_map(|entry| entry.tokens.keys());
            prop_assert!(held.all(|token| seen.insert(token)));
        }
    }
}

/// The version before writes and reads this: no word of users.
#[test]
fn without_users_a_snapshot_is_as_it_was_before_there_were_any() {
    #[derive(Serialize, Deserialize)]
    struct Former {
        revision: u64,
        nodes: BTreeMap<NodeId, NodeEntry>,
        member_next: ReplicaId,
        kernels: BTreeMap<KernelId, KernelSpec>,
        tombstones: BTreeMap<KernelId, u64>,
        last_specs: BTreeMap<u64, KernelSpec>,
        floor: Option<KernelId>,
    }
    let mut state = DesiredState::default();
    state.apply(1, start(1, "ada"));
    let bytes = state.snapshot();
    let (format, former): (u16, Former) = rmp_serde::from_slice(&bytes).unwrap();
    assert_eq!(format, FORMAT_WITHOUT_USERS);
    assert_eq!(rmp_serde::to_vec_named(&(format, former)).unwrap(), bytes);
    assert_eq!(DesiredState::restore(&bytes).unwrap(), state);
    // With users the version before would read it and forget them; so it is told that it cannot.
    state.apply(2, add("ada", UserRole::User));
    let (format, _): (u16, Former) = rmp_serde::from_slice(&state.snapshot()).unwrap();
    assert_eq!(format, FORMAT_WITH_USERS);
    state.apply(3, Command::StopKernel { kernel: KernelId(Uuid::from_u128(1)) });
    state.apply(4, remove("ada"));
    let restored = DesiredState::restore(&state.snapshot()).unwrap();
    assert_eq!(restored.users_version(), 2, "the count goes on, or a gateway would miss a change");
}

#[test]
fn commands_about_users_keep_their_first_version_in_the_log() {
    let token = [
        &b"\x81\xa8AddToken\x93\xa3ada\xac000000000001\x94\xd9\x40"[..],
        &[b'a'; 64],
        b"\xa6laptop\x07\x09",
    ];
    for (command, expected) in [
        (add("ada", UserRole::Admin), &b"\x81\xa7AddUser\x92\xa3ada\xa5admin"[..]),
        (remove("ada"), b"\x81\xaaRemoveUser\x91\xa3ada"),
        (add_token("ada", 1), &token.concat()),
        (revoke(1), b"\x81\xabRevokeToken\x91\xac000000000001"),
    ] {
        assert_eq!(rmp_serde::to_vec(&command).unwrap(), expected, "{command:?}");
        assert_eq!(rmp_serde::from_slice::<Command>(expected).unwrap(), command);
    }
}
