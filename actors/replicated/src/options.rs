//! How a node replicates and how a group is opened, and why opening fails.

use std::collections::BTreeMap;

use callboard_protocol::{GroupId, NodeId, ReplicaId};
use callboard_transport::BusError;

use crate::{
    raft::state_machine::BeforeSnapshot,
    wal::{WalError, WalFailed, WalOptions},
};

/// Raft's clock. Heartbeats must come well within the shortest election timeout.
#[derive(Debug, Clone)]
pub struct RaftTiming {
    /// Pause between two heartbeats of a leader, in milliseconds.
    pub heartbeat_interval_ms: u64,
    /// Shortest silence after which a follower stands for election, in milliseconds.
    pub election_timeout_min_ms: u64,
    /// Longest such silence, in milliseconds.
    pub election_timeout_max_ms: u64,
}

impl RaftTiming {
    /// A clock that runs so many times slower.
    #[must_use]
    pub fn slower(&self, times: u64) -> Self {
        Self {
            heartbeat_interval_ms: self.heartbeat_interval_ms.saturating_mul(times),
            election_timeout_min_ms: self.election_timeout_min_ms.saturating_mul(times),
            election_timeout_max_ms: self.election_timeout_max_ms.saturating_mul(times),
        }
    }
}

impl Default for RaftTiming {
    fn default() -> Self {
        Self {
            heartbeat_interval_ms: 75,
            election_timeout_min_ms: 250,
            election_timeout_max_ms: 450,
        }
    }
}

/// How a node replicates.
#[derive(Debug, Clone)]
pub struct ReplicatorOptions {
    /// Raft's clock.
    pub timing: RaftTiming,
    /// Sizes of the log's files.
    pub wal: WalOptions,
    /// Whether a leader sends entries while its own disk still syncs them (ADR 005).
    pub parallel_leader_fsync: bool,
    /// Entries after which every group writes a snapshot, if it would not sooner.
    pub snapshot_every_entries_max: u64,
}

impl Default for ReplicatorOptions {
    fn default() -> Self {
        Self {
            timing: RaftTiming::default(),
            wal: WalOptions::default(),
            parallel_leader_fsync: true,
            snapshot_every_entries_max: 2000,
        }
    }
}

/// How one replica is opened.
pub struct GroupOptions<M> {
    /// The machine before the first command; the same on every replica.
    pub initial: M,
    /// The first members, if this replica founds the group; ignored once it has a log.
    pub found: Option<BTreeMap<ReplicaId, NodeId>>,
    /// Entries after which a snapshot is written.
    pub snapshot_every_entries: u64,
    /// Raft's clock, if it is another than the node's.
    pub timing: Option<RaftTiming>,
    /// Bytes of commands after which a snapshot is written.
    pub snapshot_every_bytes: u64,
    /// Runs before a snapshot is written: makes durable what the snapshot names.
    pub before_snapshot: Option<BeforeSnapshot>,
}

impl<M> GroupOptions<M> {
    /// Defaults for a replica that restarts or joins as a learner.
    #[must_use]
    pub fn new(initial: M) -> Self {
        Self {
            initial,
            found: None,
            snapshot_every_entries: 2000,
            timing: None,
            snapshot_every_bytes: 16 << 20,
            before_snapshot: None,
        }
    }
}

/// Why a node's log or a group was not opened, or not erased.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The log could not be read.
    #[error(transparent)]
    Wal(#[from] WalError),
    /// The log stopped.
    #[error(transparent)]
    Failed(#[from] WalFailed),
    /// The group lost records or its snapshot. It must not vote.
    #[error(
        "group {group} is damaged on this node ({what}); erase it and add a new replica, the \
         others have its data"
    )]
    Corrupt {
        /// The group.
        group: GroupId,
        /// What is damaged.
        what: String,
    },
    /// It is open already.
    #[error("group {0} is already open on this node; shut it down first")]
    AlreadyOpen(GroupId),
    /// A snapshot could not be read or removed.
    #[error("the snapshots of group {group} cannot be used: {source}")]
    Snapshot {
        /// The group.
        group: GroupId,
        /// What the disk said.
        source: std::io::Error,
    },
    /// The bus refused the subscription.
    #[error("group {group} cannot listen on the bus: {source}")]
    Bus {
        /// The group.
        group: GroupId,
        /// What the bus said.
        source: BusError,
    },
    /// Raft refused.
    #[error("Raft cannot start for group {group}: {why}")]
    Raft {
        /// The group.
        group: GroupId,
        /// What it said.
        why: String,
    },
}
