use std::collections::BTreeSet;

use proptest::prelude::{Strategy, prop, prop_assert, prop_assert_eq, proptest};
use uuid::Uuid;

use super::*;

pub(crate) fn load(number: usize, health: NodeHealth, replicas: u32, cells: u32) -> NodeLoad {
    NodeLoad {
        node: NodeId::new(format!("node-{number}")).unwrap(),
        disk: DiskId(Uuid::from_u128(number as u128)),
        health,
        replicas,
        running_cells: cells,
        python_problem: None,
        disk_high_percent: None,
    }
}

fn request(count: u8, present: Vec<NodeId>) -> PlacementRequest {
    PlacementRequest { kernel: KernelId(Uuid::from_u128(1)), count, present }
}

fn views() -> impl Strategy<Value = ClusterView> {
    prop::collection::vec((0_u8..4, 0_u32..9, 0_u32..4), 0..8).prop_map(|nodes| ClusterView {
        version: 3,
        nodes: nodes
            .into_iter()
            .enumerate()
            .map(|(number, (kind, replicas, cells))| {
                let health = if kind == 1 { NodeHealth::Suspected } else { NodeHealth::Up };
                let problem = (kind == 2).then(|| "no ipykernel".to_owned());
                NodeLoad { python_problem: problem, ..load(number, health, replicas, cells) }
            })
            .collect(),
    })
}

proptest! {
    #[test]
    fn members_are_spread_as_evenly_as_the_usable_nodes_allow(
        view in views(), count in 1_u8..6, occupied in 0_usize..8, seed: u64,
    ) {
        let present: Vec<_> =
            view.nodes.iter().filter(|it| it.python_problem.is_none()).take(occupied)
                .map(|it| it.node.clone()).collect();
        let placement = place(&view, &request(count, present.clone()), seed);
        let usable: BTreeSet<_> = view.nodes.iter()
            .filter(|it| it.health == NodeHealth::Up && it.python_problem.is_none())
            .map(|it| it.node.clone()).collect();
        if usable.is_empty() {
            prop_assert!(placement.chosen.is_empty());
            prop_assert!(placement.shortfall().is_some());
            return Ok(());
        }
        prop_assert_eq!(placement.chosen.len(), usize::from(count));
        prop_assert!(placement.chosen.iter().all(|it| usable.contains(&it.node)));

        let members = |node: &NodeId| {
            present.iter().chain(placement.chosen.iter().map(|it| &it.node))
                .filter(|it| *it == node).count()
        };
        let free = usable.iter().filter(|node| !present.contains(node)).count();
        if free >= usize::from(count) {
            prop_assert!(placement.chosen.iter().all(|it| members(&it.node) == 1));
        }
        prop_assert_eq!(placement.shared, placement.chosen.iter().any(|it| members(&it.node) > 1));
        let counts: Vec<_> = usable.iter().map(members).collect();
        prop_assert!(counts.iter().max().unwrap() - counts.iter().min().unwrap() <= 1);
    }

    #[test]
    fn same_arguments_same_places(view in views(), count in 1_u8..6, seed: u64) {
        let asked = request(count, vec![]);
        prop_assert_eq!(place(&view, &asked, seed), place(&view, &asked, seed));
    }
}

#[test]
fn the_least_loaded_node_wins_and_a_running_cell_outweighs_idle_members() {
    let view = ClusterView {
        version: 1,
        nodes: vec![
            load(1, NodeHealth::Up, 0, 1),
            load(2, NodeHealth::Up, 3, 0),
            load(3, NodeHealth::Up, 5, 0),
        ],
    };
    let placement = place(&view, &request(2, vec![]), 9);
    let names: Vec<_> = placement.chosen.iter().map(|it| it.node.as_str()).collect();
    assert_eq!(names, ["node-2", "node-1"]);
}

#[test]
fn a_tie_is_broken_by_the_seed() {
    let view = ClusterView {
        version: 1,
        nodes: (1..9).map(|number| load(number, NodeHealth::Up, 0, 0)).collect(),
    };
    let firsts: BTreeSet<_> = (0..50)
        .map(|seed| place(&view, &request(1, vec![]), seed).chosen[0].node.clone())
        .collect();
    assert!(firsts.len() > 4, "only {firsts:?} were ever chosen");
}

#[test]
fn the_explanation_names_every_node_and_the_next_step() {
    let mut view = ClusterView {
        version: 1,
        nodes: vec![load(1, NodeHealth::Gone, 0, 0), load(2, NodeHealth::Up, 0, 0)],
    };
    let text = place(&view, &request(2, vec![]), 1).to_string();
    assert!(text.contains("node-1: refused, it is gone") && text.contains("add nodes"), "{text}");
    view.nodes[1].python_problem = Some("no module named ipykernel".to_owned());
    let text = place(&view, &request(2, vec![]), 1).shortfall().unwrap();
    assert!(text.contains("node-2: it cannot run Python kernels: no module named ipykernel"));
}

#[test]
fn a_node_whose_disk_is_above_its_mark_takes_no_member_and_the_reason_says_so() {
    let nodes = vec![load(1, NodeHealth::Up, 0, 0), load(2, NodeHealth::Up, 5, 0)];
    let mut view = ClusterView { version: 3, nodes };
    view.nodes[0].disk_high_percent = Some(96);
    let placement = place(&view, &request(2, Vec::new()), 1);
    assert!(placement.chosen.iter().all(|it| it.node == view.nodes[1].node));
    assert!(placement.to_string().contains("its disk is 96 % full: free space on it"));
}
