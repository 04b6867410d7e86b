//! What a replica's local machine is told, and what it wants done.

use std::collections::BTreeMap;

use bytes::Bytes;
use callboard_protocol::{
    Fault, Incarnation, ReplicaId, Seq, Term,
    kernel::{Accepted, CellEnd, Level},
};

use crate::terms::{Applied, Entry, Hash, LoggedOutput, PendingCell, StateDelta};

/// Who this replica is in this life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Identity {
    /// Its member id.
    pub replica: ReplicaId,
    /// Unique to this life of the replica, and higher than that of every earlier life. Safety
    /// rests on it: a life that took an earlier one's number would run its cells again.
    pub incarnation: Incarnation,
}

/// A request that reached this replica.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Request {
    /// The Jupyter `msg_id`.
    pub msg_id: String,
    /// Hash of its content.
    pub hash: Hash,
    /// When it is to be answered.
    pub level: Level,
    /// The Jupyter message, v1 framing.
    pub frame: Bytes,
    /// Last sequence number the client knew when it first sent it.
    pub horizon: Option<Seq>,
}

/// How a kernel that has nothing to do is kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Upkeep {
    /// Whether replicas that do not execute keep a warm Python process, too.
    pub hot_standbys: bool,
    /// Whether a kernel that never ran a cell rests until the first request.
    pub starts_parked: bool,
    /// Time without a cell after which the executor parks the kernel; `None`: never.
    pub park_after_ms: Option<u64>,
    /// Whether to park a kernel that holds what only a live process can hold.
    pub parks_with_refused: bool,
}

/// How far the Python process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PythonPhase {
    /// There is none.
    Absent,
    /// It was asked for.
    Starting,
    /// It runs and holds no state yet.
    Warm,
    /// It is being given the base state of a term.
    Restoring(Term),
    /// It runs the cells of a term.
    Serving(Term),
}

/// What the machine is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// A request arrived from the bus.
    Requested(Request),
    /// An entry was applied to the log.
    Applied(Applied),
    /// The log said no to a request this replica proposed.
    Refused {
        /// The request.
        msg_id: String,
        /// What the log said.
        applied: Applied,
    },
    /// Whether this replica leads the Raft group.
    Leading(bool),
    /// The group's voters.
    Voters(Vec<ReplicaId>),
    /// Replicas whose node is silent or gone, and what happened. Empty during a bus outage.
    Suspects(BTreeMap<ReplicaId, String>),
    /// Whether every chunk of the last completed state can be read here.
    BaseReadable(bool),
    /// How the kernel is to be kept.
    Upkeep(Upkeep),
    /// Somebody asked the kernel for something that is no cell.
    Wanted,
    /// A fresh Python process is ready.
    PythonWarm,
    /// The Python process ended by itself: not told of one that a [`Action::KillPython`] or
    /// [`Action::ReleasePython`] ended.
    PythonExited(String),
    /// The base state is in the Python process.
    Restored(Term),
    /// The Python process finished a cell and its changed state is stored.
    Finished {
        /// The term it ran in.
        term: Term,
        /// The cell.
        seq: Seq,
        /// Outputs not yet in the log, the reply last.
        outputs: Vec<LoggedOutput>,
        /// What changed.
        delta: StateDelta,
    },
    /// Time passed.
    Tick,
}

/// What the machine wants done. Carried out in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Put an entry in the log.
    Propose(Entry),
    /// Answer whoever sent the request.
    Answer {
        /// The request.
        msg_id: String,
        /// The answer.
        answer: Result<Accepted, Fault>,
    },
    /// Start a fresh Python process.
    StartPython,
    /// End the Python process by force.
    KillPython,
    /// Give back the Python process, which was given no state, or call off its start.
    ReleasePython,
    /// Give the Python process the state of the manifest.
    Restore(Term),
    /// Run a cell in the Python process.
    Run {
        /// The term.
        term: Term,
        /// The cell.
        cell: PendingCell,
    },
    /// Tell everyone that a cell ended.
    PublishEnded(CellEnd),
}
