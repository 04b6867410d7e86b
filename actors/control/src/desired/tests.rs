use std::collections::BTreeSet;

use callboard_protocol::{
    OwnerId,
    control::{Origin, Standing},
    environment::Environment,
};
use proptest::prelude::*;
use uuid::Uuid;

use super::*;

fn kernel(n: u128) -> KernelId {
    KernelId(Uuid::from_u128(n))
}

fn node(n: u64) -> NodeId {
    NodeId::new(format!("node-{n}")).unwrap()
}

fn disk(n: u64) -> DiskId {
    DiskId(Uuid::from_u128(n.into()))
}

fn owner(name: &str) -> OwnerId {
    OwnerId::new(name).unwrap()
}

fn start(n: u128, who: &str, name: Option<&str>) -> Command {
    Command::StartKernel {
        kernel: kernel(n),
        owner: owner(who),
        name: name.map(str::to_owned),
        replicas: 3,
        origin: None,
        options: Default::default(),
        places: (1..=3).map(|n| (node(n), disk(n))).collect(),
        settings: Default::default(),
    }
}

fn stop(n: u128) -> Command {
    Command::StopKernel { kernel: kernel(n) }
}

fn change(n: u128, version: u64, join: Option<u64>, leave: Option<u64>) -> Command {
    Command::ChangeMembers {
        kernel: kernel(n),
        version,
        join: join.map(|n| (node(n), disk(n))),
        leave: leave.map(ReplicaId),
    }
}

fn spec(outcome: Outcome) -> KernelSpec {
    match outcome {
        Outcome::Kernel(spec) | Outcome::AlreadySo(spec) => spec,
        other => panic!("no entry: {other:?}"),
    }
}

fn refused(outcome: Outcome) -> Refusal {
    match outcome {
        Outcome::Refused(refusal) => refusal,
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn a_resent_start_gives_the_same_kernel_and_another_request_a_conflict() {
    let mut state = DesiredState::default();
    let first = spec(state.apply(1, start(1, "ada", Some("plots"))));
    let places: Vec<&NodeId> = first.replicas.values().map(|it| &it.node).collect();
    assert_eq!(places, [&node(1), &node(2), &node(3)]);
    assert!(first.replicas.values().all(|it| it.standing == Standing::Founder));
    assert_eq!((first.version, first.replica_next), (1, ReplicaId(4)));
    let revision = state.revision();
    assert_eq!(state.apply(2, start(1, "ada", Some("plots"))), Outcome::AlreadySo(first));
    let other = refused(state.apply(3, start(1, "ada", Some("tables"))));
    assert_eq!(other, Refusal::OtherRequest { kernel: kernel(1) });
    assert_eq!(state.revision(), revision, "neither changed anything");
}

#[test]
fn a_stopped_kernels_id_is_never_used_again() {
    let mut state = DesiredState::default();
    state.apply(1, start(1, "ada", None));
    let Outcome::Stopped { last: Some(last), is_new: true } = state.apply(2, stop(1)) else {
        panic!("not stopped")
    };
    assert_eq!(last.kernel, kernel(1));
    assert_eq!(state.apply(3, stop(1)), Outcome::Stopped { last: Some(last), is_new: false });
    let again = refused(state.apply(4, start(1, "ada", None)));
    assert_eq!(again, Refusal::WasStopped { kernel: kernel(1) });
    assert!(state.is_member_over(kernel(1), ReplicaId(2)));
}

#[test]
fn ids_older_than_every_remembered_tombstone_are_refused() {
    let mut state = DesiredState::default();
    let total = TOMBSTONES_MAX as u128 + 2;
    for n in 1..=total {
        state.apply(1, start(n, "ada", None));
        state.apply(1, stop(n));
    }
    assert_eq!(state.tombstones.len(), TOMBSTONES_MAX);
    assert_eq!(
        refused(state.apply(1, start(1, "ada", None))),
        Refusal::TooOld { kernel: kernel(1) }
    );
    assert_eq!(state.apply(1, stop(1)), Outcome::Stopped { last: None, is_new: false });
    assert_eq!(spec(state.apply(1, start(total + 1, "ada", None))).version, 1);
}

#[test]
fn a_name_is_unique_among_an_owners_kernels_and_free_after_a_stop() {
    let mut state = DesiredState::default();
    state.apply(1, start(1, "ada", Some("plots")));
    let taken = refused(state.apply(2, start(2, "ada", Some("plots"))));
    assert!(taken.to_string().contains("choose another name"), "{taken}");
    spec(state.apply(3, start(3, "bob", Some("plots"))));
    state.apply(4, stop(1));
    spec(state.apply(5, start(4, "ada", Some("plots"))));
}

#[test]
fn an_owner_has_at_most_the_limit_of_kernels() {
    let mut state = DesiredState::default();
    for n in 0..KERNELS_PER_OWNER_MAX as u128 {
        spec(state.apply(1, start(n, "ada", None)));
    }
    let refusal = refused(state.apply(1, start(20_000, "ada", None)));
    assert_eq!(refusal, Refusal::TooMany { owner: owner("ada") });
    spec(state.apply(1, start(20_001, "bob", None)));
    state.apply(1, stop(0));
    spec(state.apply(1, start(20_002, "ada", None)));
}

#[test]
fn a_member_is_replaced_one_change_at_a_time_and_under_a_fresh_id() {
    let mut state = DesiredState::default();
    state.apply(1, start(1, "ada", None));
    let replacing = spec(state.apply(2, change(1, 1, Some(4), Some(3))));
    assert_eq!(replacing.replicas[&ReplicaId(3)].standing, Standing::Leaver);
    assert_eq!(replacing.replicas[&ReplicaId(4)].standing, Standing::Joiner);
    assert_eq!(replacing.replica_next, ReplicaId(5));
    let stale = refused(state.apply(3, change(1, 1, Some(4), Some(3))));
    assert!(matches!(stale, Refusal::Stale { decided_on: 1, actual: 2, .. }));
    let busy = refused(state.apply(4, change(1, 2, Some(5), Some(2))));
    assert!(matches!(busy, Refusal::InFlight { .. }), "{busy}");
    let joined = Command::MemberJoined { kernel: kernel(1), replica: ReplicaId(4) };
    let spec_joined = spec(state.apply(5, joined.clone()));
    assert_eq!(spec_joined.replicas[&ReplicaId(4)].standing, Standing::Member);
    assert_eq!(state.apply(6, joined), Outcome::AlreadySo(spec_joined));
    let removed = Command::MemberRemoved { kernel: kernel(1), replica: ReplicaId(3) };
    let whole = spec(state.apply(7, removed.clone()));
    assert_eq!(whole.replicas.len(), 3);
    assert_eq!(state.apply(8, removed), Outcome::AlreadySo(whole.clone()));
    assert!(state.is_member_over(kernel(1), ReplicaId(3)));
    assert!(!state.is_member_over(kernel(1), ReplicaId(4)));
    spec(state.apply(9, change(1, whole.version, Some(5), Some(2))));
}

#[test]
fn a_joiner_that_is_lost_while_it_joins_can_be_withdrawn() {
    let mut state = DesiredState::default();
    state.apply(1, start(1, "ada", None));
    state.apply(2, change(1, 1, Some(4), Some(3)));
    let withdrawn = spec(state.apply(3, change(1, 2, None, Some(4))));
    assert_eq!(withdrawn.replicas[&ReplicaId(4)].standing, Standing::Leaver);
}

#[test]
fn a_member_that_was_not_asked_to_leave_stays() {
    let mut state = DesiredState::default();
    let before = spec(state.apply(1, start(1, "ada", None)));
    let removed = Command::MemberRemoved { kernel: kernel(1), replica: ReplicaId(2) };
    assert!(matches!(refused(state.apply(2, removed)), Refusal::Malformed(_)));
    assert_eq!(state.kernels()[&kernel(1)], before);
}

#[test]
fn a_branch_needs_a_kernel_of_the_same_owner() {
    let mut state = DesiredState::default();
    state.apply(1, start(1, "ada", None));
    let of = |n| Origin::Kernel { kernel: kernel(n), at: "@3".to_owned() };
    assert_eq!(state.refusal_of_origin(&owner("ada"), &of(1)), None);
    assert_eq!(state.refusal_of_origin(&owner("ada"), &Origin::Upload), None);
    let refusal = state.refusal_of_origin(&owner("bob"), &of(1)).unwrap();
    assert!(refusal.to_string().contains("belongs to another owner"), "{refusal}");
    let refusal = state.refusal_of_origin(&owner("ada"), &of(2)).unwrap();
    assert_eq!(refusal, Refusal::NoSuchKernel { kernel: kernel(2) });
    let Command::StartKernel { owner, name, replicas, places, options, .. } = start(3, "ada", None)
    else {
        unreachable!()
    };
    let origin = Some(of(1));
    let kernel = kernel(3);
    let settings = Default::default();
    let branch =
        Command::StartKernel { kernel, owner, name, replicas, places, options, origin, settings };
    assert_eq!(spec(state.apply(2, branch.clone())).origin, Some(of(1)));
    assert!(matches!(state.apply(3, branch), Outcome::AlreadySo(_)));
    let other = refused(state.apply(4, start(3, "ada", None)));
    assert_eq!(other, Refusal::OtherRequest { kernel });
}

fn recover(n: u128, version: u64, from: u64) -> Command {
    let (from, cause) = (ReplicaId(from), "lost".to_owned());
    Command::RecoverKernel { kernel: kernel(n), version, from, cause }
}

#[test]
fn a_recovery_gives_every_member_up_but_the_survivor_that_founds_the_group_anew() {
    let mut state = DesiredState::default();
    let before = spec(state.apply(1, start(1, "ada", None)));
    assert!(matches!(refused(state.apply(2, recover(1, 7, 2))), Refusal::Stale { .. }));
    assert!(matches!(refused(state.apply(2, recover(1, 1, 9))), Refusal::NoSuchMember { .. }));
    let during = spec(state.apply(3, recover(1, 1, 2)));
    let (id, founder) = during.replicas.iter().next().unwrap();
    assert_eq!(
        (during.replicas.len(), *id, founder.standing),
        (1, ReplicaId(4), Standing::Founder)
    );
    assert_eq!((&founder.node, founder.disk), (&node(2), disk(2)));
    assert_eq!((before.generation, during.generation), (0, 1));
    assert_ne!(before.group(), during.group());
    for old in 1..=3 {
        assert!(state.is_member_over(kernel(1), ReplicaId(old)));
        assert_eq!(state.is_recovered_from(kernel(1), ReplicaId(old)), old == 2);
    }
    assert!(matches!(refused(state.apply(4, recover(1, 2, 4))), Refusal::InFlight { .. }));
    assert!(matches!(
        refused(state.apply(4, change(1, 2, Some(5), None))),
        Refusal::InFlight { .. }
    ));
    let done = Command::MemberRecovered { kernel: kernel(1), replica: ReplicaId(4) };
    let after = spec(state.apply(5, done.clone()));
    assert_eq!((after.recovery.clone(), after.replicas[id].standing), (None, Standing::Member));
    assert_eq!(state.apply(6, done), Outcome::AlreadySo(after.clone()));
    assert!(!state.is_recovered_from(kernel(1), ReplicaId(2)));
    spec(state.apply(7, change(1, after.version, Some(5), None)));
}

fn founded() -> DesiredState {
    let mut state = DesiredState::default();
    let members = (1..=3).map(|n| (ReplicaId(n), (node(n), disk(n)))).collect();
    assert_eq!(state.apply(1, Command::Found { members }), Outcome::Founded);
    state
}

fn register(state: &mut DesiredState, n: u64, d: u64, lost: Option<u64>) -> (ReplicaId, bool) {
    let lost = lost.map(ReplicaId);
    match state.apply(2, Command::RegisterNode { node: node(n), disk: disk(d), lost }) {
        Outcome::Registered { entry, is_new } => (entry.member, is_new),
        other => panic!("not registered: {other:?}"),
    }
}

#[test]
fn a_node_keeps_its_member_id_with_its_disk_and_gets_a_fresh_one_with_another() {
    let mut state = founded();
    assert_eq!(register(&mut state, 1, 1, None), (ReplicaId(1), false));
    assert_eq!(register(&mut state, 3, 33, None), (ReplicaId(4), true));
    assert_eq!(register(&mut state, 3, 33, None), (ReplicaId(4), false));
    assert_eq!(register(&mut state, 9, 9, None), (ReplicaId(5), true));
}

#[test]
fn a_lost_log_on_the_same_disk_gets_one_fresh_member_id() {
    let mut state = founded();
    assert_eq!(register(&mut state, 2, 2, Some(2)), (ReplicaId(4), true));
    assert_eq!(register(&mut state, 2, 2, Some(2)), (ReplicaId(4), false), "resent");
}

#[test]
fn nobody_registers_before_the_founders_are_recorded() {
    let command = Command::RegisterNode { node: node(1), disk: disk(1), lost: None };
    assert_eq!(refused(DesiredState::default().apply(1, command)), Refusal::NotFounded);
    let again = Command::Found { members: [(ReplicaId(1), (node(7), disk(7)))].into() };
    let mut state = founded();
    assert_eq!(state.apply(2, again), Outcome::Unchanged);
}

fn any_command() -> impl Strategy<Value = Command> {
    let owners = prop::sample::select(vec!["ada", "bob"]);
    let names = prop::option::of(prop::sample::select(vec!["plots", "tables"]));
    let small = || 0_u128..5;
    prop_oneof![
        (small(), owners, names).prop_map(|(n, who, name)| start(n, who, name)),
        small().prop_map(stop),
        (small(), 1_u64..6, prop::option::of(1_u64..6), prop::option::of(1_u64..6))
            .prop_map(|(n, version, join, leave)| change(n, version, join, leave)),
        (small(), 1_u64..7)
            .prop_map(|(n, r)| Command::MemberJoined { kernel: kernel(n), replica: ReplicaId(r) }),
        (small(), 1_u64..6, 1_u64..6).prop_map(|(n, version, from)| recover(n, version, from)),
        (small(), 1_u64..7).prop_map(|(n, r)| Command::MemberRecovered {
            kernel: kernel(n),
            replica: ReplicaId(r)
        }),
        (small(), 1_u64..7)
            .prop_map(|(n, r)| Command::MemberRemoved { kernel: kernel(n), replica: ReplicaId(r) }),
        (1_u64..5, 1_u64..5, prop::option::of(1_u64..5)).prop_map(|(n, d, lost)| {
            Command::RegisterNode { node: node(n), disk: disk(d), lost: lost.map(ReplicaId) }
        }),
        Just(Command::Found {
            members: (1..=3).map(|n| (ReplicaId(n), (node(n), disk(n)))).collect()
        }),
    ]
}

proptest! {
    /// Whatever is asked in whatever order: ids of kernels and members are never reused, names are
    /// unique per owner, versions only grow, an unchanged state has an unchanged revision, and a
    /// snapshot taken anywhere goes on like the original.
    #[test]
    fn the_desired_state_keeps_its_promises(
        commands in prop::collection::vec(any_command(), 0..60),
        cut in 0_usize..60,
    ) {
        let mut state = DesiredState::default();
        let mut copy: Option<DesiredState> = None;
        let mut dead: BTreeSet<KernelId> = BTreeSet::new();
        let mut members: BTreeSet<ReplicaId> = BTreeSet::new();
        for (at, command) in commands.into_iter().enumerate() {
            if at == cut {
                copy = Some(DesiredState::restore(&state.snapshot()).unwrap());
            }
            let before = state.clone();
            let outcome = state.apply(at as u64, command.clone());
            if let Some(copy) = &mut copy {
                prop_assert_eq!(&copy.apply(at as u64, command), &outcome);
                prop_assert_eq!(&*copy, &state);
            }
            if outcome.is_change() {
                prop_assert_eq!(state.revision(), before.revision() + 1);
            } else {
                prop_assert_eq!(&state, &before);
            }
            if let Outcome::Registered { entry, is_new: true } = &outcome {
                prop_assert!(members.insert(entry.member) && entry.member > ReplicaId(3));
            }
            dead.extend(before.kernels.keys().filter(|id| !state.kernels.contains_key(id)));
            prop_assert!(state.kernels.keys().all(|id| !dead.contains(id)));
            for (id, spec) in &state.kernels {
                prop_assert!(spec.replicas.keys().all(|replica| *replica < spec.replica_next));
                prop_assert!(!spec.replicas.is_empty());
                if let Some(old) = before.kernels.get(id) {
                    prop_assert!(spec.version >= old.version);
                    prop_assert!(spec.replica_next >= old.replica_next);
                    prop_assert_eq!(spec.version == old.version, spec == old);
                    let fresh = spec.replicas.keys().filter(|id| !old.replicas.contains_key(id));
                    prop_assert!(fresh.into_iter().all(|id| *id >= old.replica_next));
                }
            }
            let names: Vec<_> =
                state.kernels.values().filter_map(|it| Some((&it.owner, it.name.as_ref()?))).collect();
            let unique: BTreeSet<_> = names.iter().collect();
            prop_assert_eq!(unique.len(), names.len());
        }
    }
}

#[test]
fn a_snapshot_of_an_unknown_format_is_refused_in_a_sentence() {
    let bytes = rmp_serde::to_vec_named(&(99_u16, DesiredState::default())).unwrap();
    let error = DesiredState::restore(&bytes).unwrap_err();
    assert!(error.contains("snapshot format 99"), "{error}");
    assert!(DesiredState::restore(b"junk").is_err());
}

#[test]
fn what_a_session_needs_is_kept_in_its_entry_and_changes_its_version() {
    let mut state = DesiredState::default();
    let first = spec(state.apply(1, start(1, "ada", None)));
    let needs = Environment { python: "3.11.7".to_owned(), ..Environment::default() };
    let note = |n| Command::NoteNeeds { kernel: kernel(n), needs: needs.clone() };
    let noted = spec(state.apply(2, note(1)));
    assert_eq!((noted.needs.as_ref(), noted.version), (Some(&needs), first.version + 1));
    assert!(matches!(state.apply(3, note(1)), Outcome::AlreadySo(same) if same == noted));
    assert!(matches!(refused(state.apply(4, note(2))), Refusal::NoSuchKernel { .. }));
}

#[test]
fn a_start_from_before_settings_existed_is_read() {
    #[derive(serde::Serialize)]
    enum Former {
        StartKernel(KernelId, OwnerId, Option<String>, u8, Vec<(NodeId, DiskId)>),
    }
    let places: Vec<_> = (1..=3).map(|n| (node(n), disk(n))).collect();
    let former = Former::StartKernel(kernel(1), owner("ada"), None, 3, places);
    let bytes = rmp_serde::to_vec(&former).unwrap();
    let read: Command = rmp_serde::from_slice(&bytes).unwrap();
    assert_eq!(read, start(1, "ada", None));
}

#[test]
fn a_kernelspec_is_written_only_where_one_is_named_and_needs_a_reader_that_knows_it() {
    let plain = rmp_serde::to_vec(&start(1, "ada", None)).unwrap();
    let mut named = start(1, "ada", None);
    let Command::StartKernel { settings, .. } = &mut named else { unreachable!() };
    settings.kernelspec = Some("bash".to_owned());
    let bytes = rmp_serde::to_vec(&named).unwrap();
    // Directory and limits, as the version before writes and reads them; then the kernelspec.
    let limits = b"\x94\xc0\xc0\xc0\xc0";
    assert!(plain.ends_with(&[&b"\x92\xc0"[..], limits].concat()), "{plain:x?}");
    assert!(bytes.ends_with(&[&b"\x93\xc0"[..], limits, b"\xa4bash"].concat()), "{bytes:x?}");
    assert_eq!(rmp_serde::from_slice::<Command>(&bytes).unwrap(), named);

    let mut state = DesiredState::default();
    let format = |state: &DesiredState| {
        let (format, _): (u16, DesiredState) = rmp_serde::from_slice(&state.snapshot()).unwrap();
        format
    };
    assert_eq!(spec(state.apply(1, named)).settings.kernelspec.as_deref(), Some("bash"));
    assert_eq!(format(&state), FORMAT_WITH_KERNELSPECS);
    let origin = Origin::Kernel { kernel: kernel(1), at: "1".to_owned() };
    let refusal = state.refusal_of_origin(&owner("ada"), &origin).unwrap();
    assert!(refusal.to_string().contains("whose state is not replicated"), "{refusal}");
    state.apply(2, stop(1));
    assert_eq!(format(&state), FORMAT_WITHOUT_USERS);
}
