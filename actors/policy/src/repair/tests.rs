use callboard_protocol::{DiskId, Incarnation, OwnerId};
use proptest::prelude::{Strategy, prop, prop_assert, prop_assert_eq, proptest};
use uuid::Uuid;

use super::*;
use crate::{
    failure::NodeView,
    placement::{Environments, NodeLoad},
};

fn node(number: usize) -> NodeId {
    NodeId::new(format!("node-{number}")).unwrap()
}

fn disk(number: usize) -> DiskId {
    DiskId(Uuid::from_u128(number as u128))
}

fn kernel(number: u128, standings: &[(usize, Standing)]) -> KernelSpec {
    let replicas = standings.iter().enumerate().map(|(index, (place, standing))| {
        let spec = ReplicaSpec { node: node(*place), disk: disk(*place), standing: *standing };
        (ReplicaId(index as u64 + 1), spec)
    });
    KernelSpec {
        kernel: KernelId(Uuid::from_u128(number)),
        owner: OwnerId::default(),
        name: None,
        replicas_wanted: 3,
        replicas: replicas.collect(),
        replica_next: ReplicaId(standings.len() as u64 + 1),
        version: 5,
        generation: 0,
        recovery: None,
        origin: None,
        settings: Default::default(),
        needs: None,
        labels: std::collections::BTreeMap::new(),
        options: Default::default(),
    }
}

fn whole(number: u128, places: [usize; 3]) -> KernelSpec {
    kernel(number, &places.map(|place| (place, Standing::Founder)))
}

fn views(healths: &[NodeHealth]) -> (NodesView, ClusterView) {
    let mut nodes = NodesView::default();
    let mut cluster =
        ClusterView { version: 1, nodes: vec![], environments: Environments::default() };
    for (number, health) in healths.iter().enumerate() {
        let view = NodeView {
            health: *health,
            incarnation: Incarnation(1),
            disk: disk(number),
            silent_ms: 0,
            how: None,
            last_beat: None,
        };
        nodes.nodes.insert(node(number), view);
        cluster.nodes.push(NodeLoad {
            node: node(number),
            disk: disk(number),
            health: *health,
            replicas: 0,
            running_cells: 0,
            python_problem: None,
            disk_high_percent: None,
            environment: None,
        });
    }
    (nodes, cluster)
}

fn plan(specs: &[KernelSpec], healths: &[NodeHealth]) -> RepairPlan {
    let (nodes, cluster) = views(healths);
    plan_repairs(specs, &nodes, &cluster, 0, &RepairPacer::new(RepairLimits::default()))
}

use NodeHealth::{Gone, Suspected, Up};

#[test]
fn a_member_on_a_node_that_is_gone_is_replaced_on_a_free_node() {
    let plan = plan(&[whole(1, [0, 1, 2])], &[Up, Up, Gone, Up]);
    let [repair] = plan.repairs.as_slice() else { panic!("{plan}") };
    let joiner = Chosen { node: node(3), disk: disk(3) };
    assert_eq!(repair.change, Change::Replace { old: ReplicaId(3), joiner });
    assert_eq!(repair.spec_version, 5);
    assert!(repair.reason.contains("node-2 is gone"));
}

#[test]
fn a_suspected_node_is_waited_for() {
    assert_eq!(plan(&[whole(1, [0, 1, 2])], &[Up, Up, Suspected, Up]), RepairPlan::default());
}

#[test]
fn a_member_whose_disk_was_lost_is_replaced_on_the_same_node() {
    let (mut nodes, mut cluster) = views(&[Up, Up, Up]);
    nodes.nodes.get_mut(&node(2)).unwrap().disk = disk(99);
    cluster.nodes[2].disk = disk(99);
    let pacer = RepairPacer::new(RepairLimits::default());
    let plan = plan_repairs(&[whole(1, [0, 1, 2])], &nodes, &cluster, 0, &pacer);
    let joiner = Chosen { node: node(2), disk: disk(99) };
    assert_eq!(plan.repairs[0].change, Change::Replace { old: ReplicaId(3), joiner });
}

#[test]
fn without_a_free_node_it_waits_and_says_so() {
    let plan = plan(&[whole(1, [0, 1, 2])], &[Up, Up, Gone]);
    assert!(plan.repairs.is_empty());
    assert!(plan.held[0].reason.contains("add a node"), "{plan}");
}

#[test]
fn a_lost_majority_is_not_touched() {
    let plan = plan(&[whole(1, [0, 1, 2])], &[Up, Gone, Gone, Up, Up, Up]);
    assert!(plan.repairs.is_empty());
    assert!(plan.held[0].reason.contains("callboard kernel recover"), "{plan}");
}

#[test]
fn a_joiner_whose_node_is_lost_is_withdrawn() {
    use Standing::{Founder, Joiner, Leaver};
    let spec = kernel(1, &[(0, Founder), (1, Founder), (2, Leaver), (3, Joiner)]);
    let plan = plan(&[spec], &[Up, Up, Gone, Gone, Up]);
    assert_eq!(plan.repairs[0].change, Change::Withdraw { old: ReplicaId(4) });
}

#[test]
fn a_kernel_grows_shrinks_and_spreads() {
    use Standing::Founder;
    let small = kernel(1, &[(0, Founder), (1, Founder)]);
    let grown = plan(&[small], &[Up, Up, Up]);
    assert!(matches!(&grown.repairs[0].change, Change::Grow { joiner } if joiner.node == node(2)));
    let big = kernel(1, &[(0, Founder), (1, Founder), (1, Founder), (2, Founder)]);
    let shrunk = plan(&[big], &[Up, Up, Up]);
    assert_eq!(shrunk.repairs[0].change, Change::Shrink { old: ReplicaId(3) });
    let spread = plan(&[whole(1, [0, 0, 1])], &[Up, Up, Up]);
    let joiner = Chosen { node: node(2), disk: disk(2) };
    assert_eq!(spread.repairs[0].change, Change::Replace { old: ReplicaId(2), joiner });
}

fn any_specs() -> impl Strategy<Value = Vec<KernelSpec>> {
    let standing = prop::sample::select(vec![
        Standing::Founder,
        Standing::Founder,
        Standing::Founder,
        Standing::Joiner,
        Standing::Leaver,
    ]);
    prop::collection::vec(prop::collection::vec((0_usize..8, standing), 1..6), 0..20).prop_map(
        |kernels| {
            let numbered = kernels.iter().enumerate();
            numbered.map(|(number, members)| kernel(number as u128, members)).collect()
        },
    )
}

proptest! {
    #[test]
    fn repairs_are_bounded_single_and_never_on_an_unfit_node(
        specs in any_specs(),
        healths in prop::collection::vec(prop::sample::select(vec![Up, Up, Up, Gone, Suspected]), 1..8),
        outage: Option<bool>, changes_max in 0_u32..5, begun in 0_u32..5, now_ms in 0_u64..30_000,
    ) {
        let (mut nodes, cluster) = views(&healths);
        nodes.outage = outage.and_then(|it| it.then(|| "the bus is down".to_owned()));
        let mut pacer = RepairPacer::new(RepairLimits { changes_max, period_ms: 10_000 });
        for _ in 0..begun { pacer.record(0); }
        let plan = plan_repairs(&specs, &nodes, &cluster, now_ms, &pacer);
        let silent = healths.iter().filter(|it| **it == Suspected).count();
        let known = healths.iter().filter(|it| **it != Gone).count();
        if nodes.outage.is_some() || silent * 3 > known {
            prop_assert!(plan.frozen.is_some());
            prop_assert!(plan.repairs.is_empty());
        }
        prop_assert!(plan.repairs.len() <= changes_max as usize);
        if now_ms < 10_000 {
            prop_assert!(plan.repairs.len() <= changes_max.saturating_sub(begun) as usize);
        }
        let mut touched = BTreeSet::new();
        for repair in &plan.repairs {
            prop_assert!(touched.insert(repair.kernel), "two changes of one kernel");
            let spec = specs.iter().find(|it| it.kernel == repair.kernel).unwrap();
            let (old, joiner) = match &repair.change {
                Change::Replace { old, joiner } => (Some(*old), Some(joiner)),
                Change::Grow { joiner } => (None, Some(joiner)),
                Change::Shrink { old } => (Some(*old), None),
                Change::Withdraw { .. } => continue,
            };
            prop_assert_eq!(in_flight(spec), None);
            if let Some(joiner) = joiner {
                prop_assert_eq!(nodes.nodes[&joiner.node].health, Up);
                let others = spec.replicas.iter().filter(|(id, _)| Some(**id) != old);
                prop_assert!(others.map(|(_, it)| &it.node).all(|it| *it != joiner.node));
            }
        }
    }
}

#[test]
fn a_member_moves_off_a_node_that_lacks_what_the_session_imported() {
    let (nodes, mut cluster) = views(&[Up, Up, Up, Up]);
    let has = |version: &str| callboard_protocol::environment::Environment {
        python: "3.11.7".to_owned(),
        distributions: [("numpy".to_owned(), version.to_owned())].into(),
        ..Default::default()
    };
    for (number, load) in cluster.nodes.iter_mut().enumerate() {
        load.environment = Some(if number == 1 { "old" } else { "new" }.to_owned());
    }
    cluster.environments.known =
        [("old".to_owned(), has("1")), ("new".to_owned(), has("2"))].into();
    let mut spec = whole(1, [0, 1, 2]);
    let pacer = RepairPacer::new(RepairLimits::default());
    assert!(
        plan_repairs(std::slice::from_ref(&spec), &nodes, &cluster, 0, &pacer).repairs.is_empty()
    );
    spec.needs = Some(has("2"));
    let specs = [spec];
    let plan = plan_repairs(&specs, &nodes, &cluster, 0, &pacer);
    let [repair] = plan.repairs.as_slice() else { panic!("{plan}") };
    let joiner = Chosen { node: node(3), disk: disk(3) };
    assert_eq!(repair.change, Change::Replace { old: ReplicaId(2), joiner });
    assert_eq!(
        repair.reason,
        "the Python environment of node-1 has numpy 1 instead of 2, and node-3 has it"
    );
    // With no better node it stays where it is.
    cluster.nodes.truncate(3);
    assert!(plan_repairs(&specs, &nodes, &cluster, 0, &pacer).repairs.is_empty());
}
