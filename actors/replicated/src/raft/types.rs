//! The types openraft is instantiated with. They know nothing of any machine, so that Raft is
//! compiled once.

use std::io::Cursor;

use bytes::Bytes;
use callboard_protocol::{Incarnation, NodeId, ReplicaId};
use serde::{Deserialize, Serialize};

use crate::machine::Members;

/// Where a member lives.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Member {
    /// Its node; `None` only in openraft's default value.
    pub node: Option<NodeId>,
}

/// Identity of a batch; unique for ever within the group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct BatchId {
    /// Who proposed it.
    pub replica: ReplicaId,
    /// In which run of its node.
    pub incarnation: Incarnation,
    /// Counts up within that run.
    pub number: u64,
}

/// What one log entry carries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Batch {
    /// Identity.
    pub id: BatchId,
    /// The Raft term it was meant for. In another term every replica skips it, so that a proposer
    /// that sees a later term pass by knows that its batch never took effect.
    pub term: u64,
    /// Encoded commands, in order.
    pub commands: Vec<Bytes>,
}

openraft::declare_raft_types!(
    /// openraft's view of every group.
    pub(crate) TypeConfig:
        D = Batch,
        R = (),
        NodeId = u64,
        Node = Member,
        Entry = openraft::Entry<TypeConfig>,
        SnapshotData = Cursor<Vec<u8>>,
        AsyncRuntime = openraft::TokioRuntime,
);

pub(crate) type Raft = openraft::Raft<TypeConfig>;
pub(crate) type Entry = openraft::Entry<TypeConfig>;
pub(crate) type LogId = openraft::LogId<u64>;
pub(crate) type Vote = openraft::Vote<u64>;
pub(crate) type StorageError = openraft::StorageError<u64>;
pub(crate) type StoredMembership = openraft::StoredMembership<u64, Member>;
pub(crate) type SnapshotMeta = openraft::SnapshotMeta<u64, Member>;

impl Members {
    pub(crate) fn from_raft(membership: &openraft::Membership<u64, Member>) -> Self {
        let voters: std::collections::BTreeSet<u64> = membership.voter_ids().collect();
        let mut members = Self::default();
        for (id, member) in membership.nodes() {
            if let Some(node) = &member.node {
                let side =
                    if voters.contains(id) { &mut members.voters } else { &mut members.learners };
                side.insert(ReplicaId(*id), node.clone());
            }
        }
        members
    }
}

pub(crate) fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, rmp_serde::encode::Error> {
    rmp_serde::to_vec(value)
}

pub(crate) fn decode<'a, T: Deserialize<'a>>(
    bytes: &'a [u8],
) -> Result<T, rmp_serde::decode::Error> {
    rmp_serde::from_slice(bytes)
}
