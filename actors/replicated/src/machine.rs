//! What a replicated state machine must be, and what its observers are told.

use std::{collections::BTreeMap, fmt::Debug};

use callboard_protocol::{NodeId, ReplicaId};
use serde::{Serialize, de::DeserializeOwned};

/// A deterministic state machine: the same commands in the same order give the same state and
/// outputs on every replica. No I/O, no clock, no chance.
pub trait Machine: Send + 'static {
    /// What is put into the log.
    type Command: Serialize + DeserializeOwned + Clone + Send + Sync + Debug + 'static;
    /// What the proposer is told.
    type Output: Clone + Send + Sync + Debug + 'static;

    /// Carries out one committed command. Several commands of one log entry share its index.
    fn apply(&mut self, index: u64, command: Self::Command) -> Self::Output;

    /// The whole state.
    fn snapshot(&self) -> Vec<u8>;

    /// The state that [`Machine::snapshot`] wrote.
    ///
    /// # Errors
    /// A sentence, if the bytes are not such a state.
    fn restore(bytes: &[u8]) -> Result<Self, String>
    where
        Self: Sized;

    /// Whether somebody waits for what `member` does about a committed command. Others may hear of
    /// it a moment later, with the next one.
    fn is_awaited(&self, member: ReplicaId) -> bool {
        let _ = member;
        true
    }
}

/// Who belongs to a group.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Members {
    /// Replicas whose acknowledgement counts.
    pub voters: BTreeMap<ReplicaId, NodeId>,
    /// Replicas that only follow.
    pub learners: BTreeMap<ReplicaId, NodeId>,
}

/// What happened to the machine, in log order.
#[derive(Debug)]
pub enum Applied<M: Machine> {
    /// A command was applied.
    Command {
        /// Index of its log entry.
        index: u64,
        /// The command.
        command: M::Command,
        /// What the proposer is told.
        output: M::Output,
        /// Whether the entry was already in the log when this process opened it.
        replay: bool,
    },
    /// The whole state was replaced by a leader's snapshot.
    Installed {
        /// Index of the last log entry the snapshot covers.
        index: u64,
    },
    /// The members changed.
    Membership {
        /// Index of the log entry.
        index: u64,
        /// Who belongs to the group now.
        members: Members,
        /// Whether the entry was already in the log when this process opened it.
        replay: bool,
    },
}
