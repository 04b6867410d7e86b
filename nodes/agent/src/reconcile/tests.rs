use callboard_control::Command;
use callboard_protocol::{KernelId, OwnerId, ReplicaId};
use callboard_replicated::Machine as _;
use uuid::Uuid;

use super::*;

fn node(n: u32) -> NodeId {
    NodeId::new(format!("node-{n}")).unwrap()
}

fn disk(n: u32) -> DiskId {
    DiskId(Uuid::from_u128(n.into()))
}

const K: KernelId = KernelId(Uuid::from_u128(7));

fn group(generation: u64) -> GroupId {
    GroupId::of_kernel(K, generation)
}

fn noted(generation: u64, replica: u64) -> NotedMembers {
    [(key(replica), group(generation))].into()
}

fn key(replica: u64) -> MemberKey {
    (K, ReplicaId(replica))
}

/// One kernel with a member on each of nodes 1 to 3.
fn state() -> DesiredState {
    let mut state = DesiredState::default();
    let places = (1..=3).map(|n| (node(n), disk(n))).collect();
    let (owner, name) = (OwnerId::default(), None);
    state.apply(
        1,
        Command::StartKernel {
            kernel: K,
            owner,
            name,
            replicas: 3,
            places,
            origin: None,
            settings: Default::default(),
            options: Default::default(),
        },
    );
    state
}

fn replace(state: &mut DesiredState, leave: u64, join: u32) {
    let version = state.kernels()[&K].version;
    let (join, leave) = (Some((node(join), disk(join))), Some(ReplicaId(leave)));
    state.apply(2, Command::ChangeMembers { kernel: K, version, join, leave });
}

#[derive(Default)]
struct Scene {
    running: BTreeMap<MemberKey, u64>,
    noted: NotedMembers,
    lost: BTreeMap<MemberKey, String>,
    corrupt: BTreeSet<GroupId>,
}

impl Scene {
    fn plan(&self, state: &DesiredState, n: u32) -> Vec<Task> {
        let seen = Observed {
            node: &node(n),
            disk: disk(n),
            running: &self.running,
            noted: &self.noted,
            lost: &self.lost,
            corrupt: &self.corrupt,
        };
        plan(state, &seen)
    }
}

#[test]
fn a_member_on_this_node_and_disk_is_started_and_no_other() {
    let state = state();
    let spec = state.kernels()[&K].clone();
    assert_eq!(Scene::default().plan(&state, 2), [Task::Start(key(2), spec)]);
    let no_member = Observed {
        node: &node(2),
        disk: disk(22),
        running: &BTreeMap::new(),
        noted: &NotedMembers::new(),
        lost: &BTreeMap::new(),
        corrupt: &BTreeSet::new(),
    };
    assert_eq!(plan(&state, &no_member), [], "another disk");
}

#[test]
fn a_running_member_hears_of_changes_and_ends_when_it_is_over() {
    let mut state = state();
    let mut scene = Scene { running: [(key(3), 1)].into(), ..Scene::default() };
    assert_eq!(scene.plan(&state, 3), []);
    replace(&mut state, 3, 4);
    assert_eq!(scene.plan(&state, 3), [Task::Tell(key(3), state.kernels()[&K].clone())]);
    scene.running = [(key(3), 2)].into();
    state.apply(3, Command::MemberRemoved { kernel: K, replica: ReplicaId(3) });
    assert_eq!(scene.plan(&state, 3), [Task::Purge(key(3))]);
    scene = Scene { noted: noted(0, 3), ..Scene::default() };
    assert_eq!(scene.plan(&state, 3), [Task::Erase(key(3))]);
}

#[test]
fn a_stopped_kernel_is_erased_but_one_that_this_copy_does_not_know_is_kept() {
    let mut state = state();
    let scene = Scene { running: [(key(1), 1)].into(), noted: noted(0, 1), ..Scene::default() };
    let lagging = DesiredState::default();
    assert_eq!(scene.plan(&lagging, 1), []);
    state.apply(2, Command::StopKernel { kernel: K });
    assert_eq!(scene.plan(&state, 1), [Task::Purge(key(1))]);
}

#[test]
fn a_damaged_log_is_reported_then_erased_then_rebuilt_under_a_fresh_id() {
    let mut state = state();
    let mut scene = Scene { noted: noted(0, 2), corrupt: [group(0)].into(), ..Scene::default() };
    let reported = scene.plan(&state, 2);
    assert!(matches!(&reported[..], [Task::Report(k, _)] if *k == key(2)), "{reported:?}");
    replace(&mut state, 2, 2);
    assert_eq!(scene.plan(&state, 2), [Task::Erase(key(2))]);
    scene = Scene::default();
    let spec = state.kernels()[&K].clone();
    assert_eq!(scene.plan(&state, 2), [Task::Start(key(4), spec)]);
}

#[test]
fn a_lost_log_is_never_started_again_under_its_id() {
    let mut state = state();
    let lost: BTreeMap<_, _> = [(key(2), "gone".to_owned())].into();
    let mut scene = Scene { noted: noted(0, 2), lost, ..Scene::default() };
    assert_eq!(scene.plan(&state, 2), [Task::Report(key(2), "gone".to_owned())]);
    replace(&mut state, 2, 4);
    assert_eq!(scene.plan(&state, 2), [Task::Erase(key(2))]);
    scene.noted.clear();
    assert_eq!(scene.plan(&state, 2), []);
}

#[test]
fn a_second_member_of_a_kernel_waits_until_the_first_is_gone_from_the_disk() {
    let mut state = state();
    replace(&mut state, 2, 2);
    let version = state.kernels()[&K].version;
    let running: BTreeMap<_, _> = [(key(2), version)].into();
    let scene = Scene { running, noted: noted(0, 2), ..Scene::default() };
    assert_eq!(scene.plan(&state, 2), []);
}

fn recover(state: &mut DesiredState, from: u64) {
    let (version, cause) = (state.kernels()[&K].version, "lost".to_owned());
    let from = ReplicaId(from);
    state.apply(2, Command::RecoverKernel { kernel: K, version, from, cause });
}

#[test]
fn a_survivor_ends_but_its_log_stays_until_the_new_group_has_it() {
    let mut state = state();
    recover(&mut state, 2);
    let spec = state.kernels()[&K].clone();
    let mut scene = Scene { running: [(key(2), 1)].into(), noted: noted(0, 2), ..Scene::default() };
    assert_eq!(scene.plan(&state, 2), [Task::Halt(key(2))], "the new member waits until it has");
    scene.running.clear();
    assert_eq!(scene.plan(&state, 2), [Task::Start(key(4), spec.clone())]);
    scene.running = [(key(4), spec.version)].into();
    scene.noted.extend(noted(1, 4));
    assert_eq!(scene.plan(&state, 2), []);
    state.apply(3, Command::MemberRecovered { kernel: K, replica: ReplicaId(4) });
    let spec = state.kernels()[&K].clone();
    let tasks = scene.plan(&state, 2);
    assert_eq!(tasks, [Task::Tell(key(4), spec), Task::Erase(key(2))]);
}

#[test]
fn a_member_of_the_former_group_that_comes_back_is_purged() {
    let mut state = state();
    recover(&mut state, 2);
    let running = Scene { running: [(key(1), 1)].into(), noted: noted(0, 1), ..Scene::default() };
    assert_eq!(running.plan(&state, 1), [Task::Purge(key(1))]);
    let idle = Scene { noted: noted(0, 3), corrupt: [group(0)].into(), ..Scene::default() };
    assert_eq!(idle.plan(&state, 3), [Task::Erase(key(3))]);
}

#[test]
fn damage_to_the_former_groups_log_is_not_taken_for_damage_to_the_new_ones() {
    let mut state = state();
    recover(&mut state, 2);
    let corrupt = [group(0)].into();
    let scene = Scene { noted: noted(0, 2), corrupt, ..Scene::default() };
    let spec = state.kernels()[&K].clone();
    assert_eq!(scene.plan(&state, 2), [Task::Start(key(4), spec)]);
}
