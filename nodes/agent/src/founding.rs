//! How the first nodes found a cluster once, and how later ones see that it exists.
//!
//! A node with an empty disk must not found a group that others already have: with its old votes
//! and log entries forgotten it could help to lose committed ones. So the bootstrap nodes agree on
//! who founds, disk by disk: each records the founders only when it has heard every other one, all
//! with empty disks, or one that has recorded it as a founder with the very disk it has now. Any
//! other node with an empty disk joins.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use callboard_protocol::{
    ActorKind, ClusterId, DiskId, NodeId, ReplicaId, Subject, SubjectPattern,
};
use callboard_transport::{Bus, BusError, typed};
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;

use crate::data_dir::Founder;

/// The verb of `node.<id>` that asks how far a node is.
pub(crate) const FOUNDING_VERB: &str = "founding";

/// How far a node is with the founding; the answer to `node.<id>.founding`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FoundingStatus {
    /// Its disk.
    pub disk: DiskId,
    /// The nodes that shall found the cluster, as it was told.
    pub bootstrap: Vec<NodeId>,
    /// How far it is.
    pub stage: FoundingStage,
}

/// How far a node is with the founding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FoundingStage {
    /// Its disk is empty and it belongs to nothing.
    Fresh,
    /// It has recorded the founders and is one of them.
    Founder(Vec<Founder>),
    /// It belongs to the cluster and did not found it.
    Member,
}

/// What a node with an empty disk does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FoundingDecision {
    /// Record these founders, of whom it is one, and found.
    Found(Vec<Founder>),
    /// Ask the control plane for a place.
    Join,
    /// Ask again, for this reason.
    Wait(String),
}

/// What a node with an empty disk does, after what it heard.
#[must_use]
pub fn decide(
    node: &NodeId,
    disk: DiskId,
    bootstrap: &[NodeId],
    heard: &BTreeMap<NodeId, FoundingStatus>,
) -> FoundingDecision {
    if !bootstrap.contains(node) {
        return FoundingDecision::Join;
    }
    for status in heard.values() {
        match &status.stage {
            FoundingStage::Fresh => {}
            FoundingStage::Member => return FoundingDecision::Join,
            FoundingStage::Founder(founders) => {
                let is_one = founders.iter().any(|it| it.node == *node && it.disk == disk);
                return if is_one {
                    FoundingDecision::Found(founders.clone())
                } else {
                    FoundingDecision::Join
                };
            }
        }
    }
    if let Some((other, status)) = heard.iter().find(|(_, it)| it.bootstrap != bootstrap) {
        return FoundingDecision::Wait(format!(
            "{other} was started with --bootstrap {}, this node with --bootstrap {}: \
             start both with the same list",
            list(&status.bootstrap),
            list(bootstrap)
        ));
    }
    let missing: Vec<NodeId> = bootstrap
        .iter()
        .filter(|other| *other != node && !heard.contains_key(other))
        .cloned()
        .collect();
    if !missing.is_empty() {
        return FoundingDecision::Wait(format!(
            "waiting for {} to found the cluster together: start them",
            list(&missing)
        ));
    }
    let founders = (1..).zip(bootstrap).map(|(member, it)| Founder {
        member: ReplicaId(member),
        node: it.clone(),
        disk: heard.get(it).map_or(disk, |status| status.disk),
    });
    FoundingDecision::Found(founders.collect())
}

fn list(nodes: &[NodeId]) -> String {
    nodes.iter().map(NodeId::as_str).collect::<Vec<_>>().join(",")
}

/// Answers the others for as long as it lives.
#[derive(Debug)]
pub(crate) struct FoundingDesk {
    status: Arc<Mutex<FoundingStatus>>,
    task: JoinHandle<()>,
}

impl FoundingDesk {
    /// Begins to answer.
    pub(crate) async fn open(
        bus: Arc<dyn Bus>,
        cluster: &ClusterId,
        node: &NodeId,
        status: FoundingStatus,
    ) -> Result<Self, BusError> {
        let subject = Subject::actor(cluster, ActorKind::Node, node, FOUNDING_VERB);
        let mut questions = bus.subscribe(&SubjectPattern::Exact(subject)).await?;
        let status = Arc::new(Mutex::new(status));
        let shown = status.clone();
        let task = tokio::spawn(async move {
            while let Some(message) = questions.next().await {
                let status = locked(&shown).clone();
                if let Err(fault) = typed::answer(&*bus, &message, Ok(status)).await {
                    tracing::debug!(%fault, "a node could not be told how far the founding is");
                }
            }
        });
        Ok(Self { status, task })
    }

    /// From now on this is the answer.
    pub(crate) fn show(&self, stage: FoundingStage) {
        locked(&self.status).stage = stage;
    }
}

impl Drop for FoundingDesk {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn locked(status: &Mutex<FoundingStatus>) -> MutexGuard<'_, FoundingStatus> {
    status.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn node(n: u32) -> NodeId {
        NodeId::new(format!("node-{n}")).unwrap()
    }

    fn disk(n: u32) -> DiskId {
        DiskId(Uuid::from_u128(n.into()))
    }

    fn three() -> Vec<NodeId> {
        (1..=3).map(node).collect()
    }

    fn heard(list: &[(u32, FoundingStage)]) -> BTreeMap<NodeId, FoundingStatus> {
        let status = |n: u32, stage: &FoundingStage| FoundingStatus {
            disk: disk(n),
            bootstrap: three(),
            stage: stage.clone(),
        };
        list.iter().map(|(n, stage)| (node(*n), status(*n, stage))).collect()
    }

    fn founders() -> Vec<Founder> {
        (1..=3)
            .map(|n| Founder { member: ReplicaId(n.into()), node: node(n), disk: disk(n) })
            .collect()
    }

    #[test]
    fn all_fresh_nodes_agree_on_the_same_founders() {
        use FoundingStage::Fresh;
        for own in 1..=3 {
            let others: Vec<_> = (1..=3).filter(|n| *n != own).map(|n| (n, Fresh)).collect();
            let decision = decide(&node(own), disk(own), &three(), &heard(&others));
            assert_eq!(decision, FoundingDecision::Found(founders()));
            let decision = decide(&node(own), disk(own), &three(), &heard(&others[..1]));
            assert!(matches!(decision, FoundingDecision::Wait(_)));
        }
    }

    #[test]
    fn a_founder_that_lost_its_disk_joins_instead_of_founding_again() {
        let others = heard(&[(1, FoundingStage::Founder(founders()))]);
        let decision = decide(&node(3), disk(3), &three(), &others);
        assert_eq!(decision, FoundingDecision::Found(founders()), "it is late, with its disk");
        let decision = decide(&node(3), disk(33), &three(), &others);
        assert_eq!(decision, FoundingDecision::Join);
        let decision = decide(&node(3), disk(3), &three(), &heard(&[(2, FoundingStage::Member)]));
        assert_eq!(decision, FoundingDecision::Join);
    }

    #[test]
    fn nodes_with_different_lists_do_not_found() {
        let others = heard(&[(2, FoundingStage::Fresh)]);
        let decision = decide(&node(1), disk(1), &[node(1), node(2)], &others);
        let FoundingDecision::Wait(why) = decision else { panic!("{decision:?}") };
        assert!(why.contains("start both with the same list"), "{why}");
        assert_eq!(decide(&node(9), disk(9), &three(), &others), FoundingDecision::Join);
    }

    #[test]
    fn a_single_node_founds_alone() {
        let decision = decide(&node(1), disk(1), &[node(1)], &BTreeMap::new());
        assert_eq!(decision, FoundingDecision::Found(founders()[..1].to_vec()));
    }
}
