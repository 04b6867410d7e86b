use std::collections::BTreeSet;

use callboard_protocol::environment::Kernelspec;
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
        environment: None,
    }
}

fn request(count: u8, present: Vec<NodeId>) -> PlacementRequest {
    let kernel = KernelId(Uuid::from_u128(1));
    PlacementRequest { kernel, count, present, needs: None, kernelspec: None }
}

fn views() -> impl Strategy<Value = ClusterView> {
    prop::collection::vec((0_u8..4, 0_u32..9, 0_u32..4), 0..8).prop_map(|nodes| ClusterView {
        version: 3,
        environments: Environments::default(),
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
        environments: Environments::default(),
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
        environments: Environments::default(),
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
        environments: Environments::default(),
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
    let mut view = ClusterView { version: 3, nodes, environments: Environments::default() };
    view.nodes[0].disk_high_percent = Some(96);
    let placement = place(&view, &request(2, Vec::new()), 1);
    assert!(placement.chosen.iter().all(|it| it.node == view.nodes[1].node));
    assert!(placement.to_string().contains("its disk is 96 % full: free space on it"));
}

fn with_python(view: &mut ClusterView, number: usize, id: &str, distributions: &[(&str, &str)]) {
    let environment = Environment {
        id: id.to_owned(),
        python: "3.11.7".to_owned(),
        distributions: distributions
            .iter()
            .map(|(name, version)| ((*name).to_owned(), (*version).to_owned()))
            .collect(),
        ..Environment::default()
    };
    view.nodes[number - 1].environment = Some(id.to_owned());
    view.environments.known.insert(id.to_owned(), environment);
}

#[test]
fn a_node_without_what_the_session_imported_is_refused_by_name_of_it() {
    let nodes = (1..=3).map(|number| load(number, NodeHealth::Up, 0, 0)).collect();
    let mut view = ClusterView { version: 1, nodes, environments: Environments::default() };
    with_python(&mut view, 1, "a", &[("numpy", "2.4.6"), ("pandas", "3.1.1")]);
    with_python(&mut view, 3, "b", &[("numpy", "2.3.0")]);
    let needs = view.environments.known.get("a").cloned();
    let placement = place(&view, &PlacementRequest { needs, ..request(3, vec![]) }, 1);
    let text = placement.to_string();
    let why = "node-3: refused, its Python environment lacks pandas 3.1.1 and has numpy 2.3.0 \
               instead of 2.4.6";
    assert!(text.contains(why), "{text}");
    let chosen: BTreeSet<_> = placement.chosen.iter().map(|it| it.node.as_str()).collect();
    // Nothing is known of node-2, so it is given the benefit of the doubt.
    assert_eq!(chosen, BTreeSet::from(["node-1", "node-2"]));
}

#[test]
fn a_new_kernel_goes_where_most_nodes_are_alike() {
    let nodes = (1..=4).map(|number| load(number, NodeHealth::Up, 9, 0)).collect();
    let mut view = ClusterView { version: 1, nodes, environments: Environments::default() };
    view.nodes[0].replicas = 0;
    with_python(&mut view, 1, "odd", &[("numpy", "1")]);
    for number in 2..=4 {
        with_python(&mut view, number, "same", &[("numpy", "2")]);
    }
    let names = |view: &ClusterView, present| -> BTreeSet<String> {
        let placement = place(view, &request(3, present), 1);
        placement.chosen.iter().map(|it| it.node.to_string()).collect()
    };
    let of = |numbers: &[u32]| numbers.iter().map(|n| format!("node-{n}")).collect();
    // Other distributions matter only where they have to be exactly alike.
    assert!(names(&view, vec![]).contains("node-1"));
    view.environments.alike = EnvironmentMatch::Exact;
    assert_eq!(names(&view, vec![]), of(&[2, 3, 4]));
    let present = vec![view.nodes[0].node.clone()];
    let placement = place(&view, &request(2, present), 1);
    assert!(placement.shared && placement.chosen.iter().all(|it| it.node.as_str() == "node-1"));
    view.environments.alike = EnvironmentMatch::Imported;
    view.environments.known.get_mut("odd").unwrap().python = "3.12.1".to_owned();
    assert_eq!(names(&view, vec![]), of(&[2, 3, 4]));
    view.environments.alike = EnvironmentMatch::Off;
    assert!(names(&view, vec![]).contains("node-1"));
}

#[test]
fn a_kernel_of_another_language_goes_where_its_kernelspec_is() {
    let nodes = (1..=4).map(|number| load(number, NodeHealth::Up, 0, 0)).collect();
    let mut view = ClusterView { version: 1, nodes, environments: Environments::default() };
    // Whether their Pythons are alike does not matter to it.
    view.environments.alike = EnvironmentMatch::Exact;
    with_python(&mut view, 1, "a", &[]);
    with_python(&mut view, 2, "b", &[("numpy", "2")]);
    with_python(&mut view, 3, "c", &[]);
    let bash = Kernelspec { display_name: "Bash".to_owned(), language: "bash".to_owned() };
    for id in ["a", "b"] {
        let known = view.environments.known.get_mut(id).unwrap();
        known.kernelspecs.insert("bash".to_owned(), bash.clone());
    }
    let kernelspec = Some("bash".to_owned());
    let placement = place(&view, &PlacementRequest { kernelspec, ..request(3, vec![]) }, 1);
    let text = placement.to_string();
    assert!(text.contains("node-3: refused, it has no kernelspec 'bash'"), "{text}");
    assert!(text.contains("node-4: refused, it has not said whether it has"), "{text}");
    let chosen: BTreeSet<_> = placement.chosen.iter().map(|it| it.node.as_str()).collect();
    assert_eq!(chosen, BTreeSet::from(["node-1", "node-2"]));
    assert_eq!(view.check_kernelspec("bash"), Ok(()));
    let unsaid = view.check_kernelspec("ir").unwrap_err().to_string();
    assert!(unsaid.contains("node-4 has still to say what it has"), "{unsaid}");
    with_python(&mut view, 4, "d", &[]);
    let unknown = view.check_kernelspec("ir").unwrap_err().to_string();
    assert!(unknown.contains("no node has a kernelspec 'ir': use bash or python3"), "{unknown}");
    view.nodes[0].health = NodeHealth::Suspected;
    assert_eq!(view.kernelspecs()["bash"].nodes, [view.nodes[1].node.clone()]);
}
