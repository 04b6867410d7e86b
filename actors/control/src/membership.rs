//! Who votes in the system group: three or five of the nodes that are up, the others learn.
//!
//! Pure. One step at a time; a voter leaves only in exchange for one that is caught up.

use std::collections::{BTreeMap, BTreeSet};

use callboard_policy::failure::NodesView;
use callboard_protocol::{NodeId, ReplicaId, control::NodeHealth};
use callboard_replicated::Members;

use crate::desired::NodeEntry;

#[cfg(test)]
mod tests;

/// One change of the system group's members.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MembershipStep {
    /// Let it learn.
    AddLearner(ReplicaId, NodeId),
    /// Let these vote.
    SetVoters(BTreeSet<ReplicaId>),
    /// It is nobody's member any more.
    RemoveLearner(ReplicaId),
}

/// The next step, if one is due. `caught_up` are learners that have the log but for its very end.
#[must_use]
pub fn plan_membership(
    nodes: &BTreeMap<NodeId, NodeEntry>,
    members: &Members,
    caught_up: &BTreeSet<ReplicaId>,
    view: &NodesView,
) -> Option<MembershipStep> {
    for (node, entry) in nodes {
        let id = entry.member;
        let is_known = members.voters.contains_key(&id) || members.learners.contains_key(&id);
        if !is_known && health(view, node) != Some(NodeHealth::Gone) {
            return Some(MembershipStep::AddLearner(id, node.clone()));
        }
    }
    if view.outage.is_some() || view.too_many_silent().is_some() {
        return None;
    }
    let is_present =
        |id: &ReplicaId, node: &NodeId| nodes.get(node).is_some_and(|entry| entry.member == *id);
    exchange(members, caught_up, view, is_present)
        .or_else(|| grow(nodes, members, caught_up, view, is_present))
        .map(MembershipStep::SetVoters)
        .or_else(|| {
            let over = members.learners.iter().find(|(id, node)| !is_present(id, node));
            over.map(|(id, _)| MembershipStep::RemoveLearner(*id))
        })
}

fn health(view: &NodesView, node: &NodeId) -> Option<NodeHealth> {
    view.nodes.get(node).map(|view| view.health)
}

/// Learners that may vote from now on.
fn candidates<'a>(
    members: &'a Members,
    caught_up: &BTreeSet<ReplicaId>,
    view: &NodesView,
    is_present: impl Fn(&ReplicaId, &NodeId) -> bool,
) -> Vec<(ReplicaId, &'a NodeId)> {
    members
        .learners
        .iter()
        .filter(|(id, node)| {
            caught_up.contains(id)
                && is_present(id, node)
                && health(view, node) == Some(NodeHealth::Up)
        })
        .map(|(id, node)| (*id, node))
        .collect()
}

/// Exchanges a voter that will not come back for a candidate, best one on the same node.
fn exchange(
    members: &Members,
    caught_up: &BTreeSet<ReplicaId>,
    view: &NodesView,
    is_present: impl Fn(&ReplicaId, &NodeId) -> bool + Copy,
) -> Option<BTreeSet<ReplicaId>> {
    let (old, node) = members
        .voters
        .iter()
        .find(|(id, node)| !is_present(id, node) || health(view, node) == Some(NodeHealth::Gone))?;
    let candidates = candidates(members, caught_up, view, is_present);
    let (new, _) =
        candidates.iter().find(|(_, at)| *at == node).or_else(|| candidates.first()).copied()?;
    let mut voters: BTreeSet<ReplicaId> = members.voters.keys().copied().collect();
    voters.remove(old);
    voters.insert(new);
    Some(voters)
}

/// Adds voters up to the next odd number that the nodes can fill.
fn grow(
    nodes: &BTreeMap<NodeId, NodeEntry>,
    members: &Members,
    caught_up: &BTreeSet<ReplicaId>,
    view: &NodesView,
    is_present: impl Fn(&ReplicaId, &NodeId) -> bool,
) -> Option<BTreeSet<ReplicaId>> {
    let alive = nodes.keys().filter(|node| health(view, node) == Some(NodeHealth::Up)).count();
    let wanted = match alive {
        0..=2 => return None,
        3..=4 => 3,
        _ => 5,
    };
    let now = members.voters.len();
    let target = (now + 1) | 1;
    if now >= wanted || target > wanted {
        return None;
    }
    let candidates = candidates(members, caught_up, view, is_present);
    if candidates.len() < target - now {
        return None;
    }
    let added = candidates.into_iter().take(target - now).map(|(id, _)| id);
    Some(members.voters.keys().copied().chain(added).collect())
}
