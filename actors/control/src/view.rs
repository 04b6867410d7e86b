//! What should exist joined with what is seen.

use callboard_policy::{
    failure::{NodeView, NodesView},
    placement::{ClusterView, Environments},
};
use callboard_protocol::{
    DiskId, Epoch, NodeId,
    control::{NodeHealth, NodeList, NodeStatus},
};

use crate::desired::DesiredState;

/// The nodes that members may be placed on: those that belong to the cluster, with the disk they
/// belong with.
pub(crate) fn cluster_view(
    state: &DesiredState,
    nodes: &NodesView,
    environments: Environments,
) -> ClusterView {
    let mut members = nodes.clone();
    members
        .nodes
        .retain(|node, view| state.nodes().get(node).is_some_and(|entry| entry.disk == view.disk));
    let view = ClusterView::from_nodes(state.revision(), &members, &state.placed());
    ClusterView { environments, ..view }
}

/// What `list_nodes` answers.
pub(crate) fn node_list(
    state: &DesiredState,
    nodes: &NodesView,
    epoch: Epoch,
    leader: NodeId,
) -> NodeList {
    let placed = state.placed();
    let mut list: Vec<NodeStatus> = state
        .nodes()
        .iter()
        .map(|(node, entry)| status(node, entry.disk, nodes.nodes.get(node)))
        .chain(
            nodes
                .nodes
                .iter()
                .filter(|(node, _)| !state.nodes().contains_key(node))
                .map(|(node, view)| status(node, view.disk, Some(view))),
        )
        .collect();
    for status in &mut list {
        status.replicas = placed.get(&status.node).copied().unwrap_or(0);
    }
    list.sort_by(|a, b| a.node.cmp(&b.node));
    NodeList { nodes: list, outage: nodes.outage.clone(), epoch, leader, held: Vec::new() }
}

fn status(node: &NodeId, disk: DiskId, view: Option<&NodeView>) -> NodeStatus {
    let beat = view.and_then(|view| view.last_beat.as_ref());
    NodeStatus {
        node: node.clone(),
        disk: view.map_or(disk, |view| view.disk),
        health: view.map_or(NodeHealth::Suspected, |view| view.health),
        silent_ms: view.map_or(0, |view| view.silent_ms),
        pid: beat.map_or(0, |beat| beat.pid),
        host: beat.map_or_else(String::new, |beat| beat.host.clone()),
        incarnation: view.map_or(0, |view| view.incarnation.0),
        replicas: 0,
        running_cells: beat.map_or(0, |beat| beat.running_cells),
        python_problem: beat.and_then(|beat| beat.python_problem.clone()),
        disk_level: beat.and_then(|beat| beat.disk_level.clone()),
        environment: beat.and_then(|beat| beat.environment.clone()),
        unenforced: beat.map(|beat| beat.unenforced.clone()).unwrap_or_default(),
        asleep: beat.map_or(0, |beat| beat.asleep.count),
        python_stock: beat.map(|beat| beat.python_stock).unwrap_or_default(),
    }
}
