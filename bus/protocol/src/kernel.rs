//! What front-ends and kernels say to each other beyond the Jupyter messages themselves.
//!
//! Verbs of `kernel.<id>`: `shell`, `control`, `stdin` take a Jupyter message
//! ([`crate::jupyter`]); `outputs` takes [`GetOutputs`]; `show` takes nothing. Events:
//! `emitted` carries a Jupyter message and a cursor header, `ended` a [`CellEnd`].

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{
    control::KernelLimits,
    ids::{NodeId, ReplicaId, Seq, Term},
};

/// When a cell is answered.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Once it ran. Its state may be lost if its machine dies before it is replicated.
    Received,
    /// Once its completion is on stable storage on a majority of the replicas.
    #[default]
    Durable,
}

/// The answer to a request on `shell` or `control`: it has its place in the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// The request's place in the kernel's order.
    pub seq: Seq,
    /// How far it is. A resent request learns here how it ended.
    pub state: CellState,
}

/// How far a cell is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CellState {
    /// It waits or runs.
    Pending,
    /// It ended.
    Ended(CellEnd),
}

/// What `fate` takes: which request is meant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AskFate {
    /// The request's `msg_id`.
    pub msg_id: String,
}

/// What `fate` answers: what became of a request that was put in order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CellFate {
    /// Its place, and how far it is; `None` if the kernel knows of no such request.
    pub accepted: Option<Accepted>,
}

/// How a cell ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct CellEnd {
    /// The cell's place in the kernel's order.
    pub seq: Seq,
    /// The Jupyter `msg_id` of its request.
    pub msg_id: String,
    /// The executor term it ended in.
    pub term: Term,
    /// What came of it.
    pub outcome: CellOutcome,
    /// Place of the last output the cell has in the log, if it has any.
    pub last_output: Option<OutputCursor>,
}

/// What came of a cell.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum CellOutcome {
    /// It ran to its end, with or without a Python exception; the reply says which. Its state,
    /// partial state included, is kept.
    Completed,
    /// Its executor was lost before the cell completed. State is as before the cell; side effects
    /// outside the kernel may have happened.
    Interrupted {
        /// What happened to the executor, for people.
        cause: String,
    },
}

/// Body of the event `took_over`: another executor serves the kernel now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TookOver {
    /// Its term.
    pub term: Term,
    /// Where it runs.
    pub node: NodeId,
    /// How the last executor that was lost was lost, for people.
    pub last_loss: Option<String>,
}

/// Place of an output in its kernel's stream. Numbers start at 1 in each executor term.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct OutputCursor {
    /// The executor term that produced it.
    pub term: Term,
    /// Its number within the term.
    pub number: u64,
}

/// An output's place and the cell it belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct OutputPlace {
    /// Place in the stream.
    pub cursor: OutputCursor,
    /// The cell that caused it; 0 if none did.
    pub cell: Seq,
}

impl fmt::Display for OutputCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.term, self.number)
    }
}

impl fmt::Display for OutputPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.cursor, self.cell)
    }
}

/// Why a text is not a cursor.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not an output cursor: expected TERM.NUMBER such as 3.17, or 0.0 for the start")]
pub struct CursorError(String);

impl FromStr for OutputCursor {
    type Err = CursorError;

    fn from_str(text: &str) -> Result<Self, CursorError> {
        let parse = || {
            let (term, number) = text.split_once('.')?;
            Some(Self { term: Term(term.parse().ok()?), number: number.parse().ok()? })
        };
        parse().ok_or_else(|| CursorError(text.to_owned()))
    }
}

impl FromStr for OutputPlace {
    type Err = CursorError;

    fn from_str(text: &str) -> Result<Self, CursorError> {
        let parse = || {
            let (cursor, cell) = text.rsplit_once('.')?;
            Some(Self { cursor: cursor.parse().ok()?, cell: Seq(cell.parse().ok()?) })
        };
        parse().ok_or_else(|| CursorError(text.to_owned()))
    }
}

/// Asks for outputs after a cursor.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetOutputs {
    /// Outputs after this place; the default asks from the start.
    #[serde(default)]
    pub since: OutputCursor,
    /// Bytes of the first of them that are known already: for one that fits into no message.
    #[serde(default, skip_serializing_if = "is_none")]
    pub offset: u64,
}

fn is_none(number: &u64) -> bool {
    *number == 0
}

/// Which part of an output that fits into no message an answer has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputPart {
    /// Where the part begins.
    pub offset: u64,
    /// Bytes of the whole output.
    pub length: u64,
}

/// Outputs after a cursor, as many as fit in one message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outputs {
    /// The outputs in order.
    pub outputs: Vec<Output>,
    /// Whether outputs between the cursor asked for and the first one given are no longer kept.
    pub gap: bool,
    /// Whether more follow; ask again from the last cursor.
    pub more: bool,
    /// How the cells of these outputs ended, those that did, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ended: Vec<CellEnd>,
    /// If the only output here is a part of one, which; ask for the next with `offset`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part: Option<OutputPart>,
}

/// How far a front-end's session has seen a kernel's outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionPlace {
    /// The last output it is known to have.
    pub cursor: OutputCursor,
    /// Outputs after this place have to be shown again if it comes back: before the first output
    /// of the cell it has seen only the beginning of, else the same as `cursor`.
    pub replay_from: OutputCursor,
}

/// What `seen` takes: how far a session is, or the question how far it was. Every replica keeps the
/// answer in memory; whoever leads answers the question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// The front-end's session.
    pub session: String,
    /// How far it is; none asks.
    #[serde(default)]
    pub place: Option<SessionPlace>,
}

/// What `seen` answers to the question.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeenAnswer {
    /// How far the session was, if it is known.
    pub place: Option<SessionPlace>,
    /// The last output in the log; none if there is none, or the kernel hibernates.
    pub last: Option<OutputCursor>,
}

/// One output of a kernel as kept in its log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Output {
    /// Where it stands.
    pub place: OutputPlace,
    /// The Jupyter message, v1 framing; in JSON an array of bytes in base64.
    #[serde(with = "crate::base64_bytes")]
    pub message: bytes::Bytes,
}

/// What one replica is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReplicaRole {
    /// Runs the cells.
    Executor,
    /// Keeps log and state, ready to take over.
    Standby,
    /// Catches up before it may vote.
    Learner,
    /// Not heard of.
    Unreachable,
}

/// One replica as its kernel's leader sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaStatus {
    /// Its member id.
    pub replica: ReplicaId,
    /// Where it runs.
    pub node: NodeId,
    /// What it does.
    pub role: ReplicaRole,
    /// Log entries it has still to receive, if it is known.
    pub lag_entries: Option<u64>,
}

/// What a kernel does just now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KernelPhase {
    /// It runs a cell, or has some to run.
    Running,
    /// An executor waits for the next cell.
    Idle,
    /// It has no Python process; the next request brings one.
    Parked,
    /// No replica executes yet, or any more: one is about to.
    #[default]
    Starting,
    /// It is idle and its members sleep; the next request wakes them.
    Hibernating,
}

impl KernelPhase {
    fn is_starting(&self) -> bool {
        *self == Self::Starting
    }
}

/// What `offer_sleep` and `sleep` of a replica take: the leader of an idle kernel asks whether the
/// member may sleep at this place of the log, and tells it to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SleepOffer {
    /// The leader.
    pub from: ReplicaId,
    /// Counts the leader's questions within its term.
    pub attempt: u64,
    /// The Raft term.
    pub term: u64,
    /// Index of the last log entry.
    pub index: u64,
    /// Version of the kernel's entry in the desired state.
    pub spec_version: u64,
}

/// What `offer_sleep` answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SleepAnswer {
    /// Why the member stays awake; `None` if it may sleep.
    pub refusal: Option<String>,
}

/// What `kernel show` answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelStatus {
    /// The open executor term, if one is open.
    pub term: Option<Term>,
    /// Last request with a place in the log.
    pub accepted: Seq,
    /// Last request that ended.
    pub ended: Seq,
    /// Cells accepted and not ended.
    pub queue_depth: u64,
    /// The group's members.
    pub replicas: Vec<ReplicaStatus>,
    /// The member that leads the group and answers this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub raft_leader: Option<ReplicaId>,
    /// How many more replicas may be lost before the kernel cannot go on.
    pub losses_survivable: u64,
    /// Names in the namespace as of the last completed cell, with what could not be carried.
    pub names: Vec<String>,
    /// Names that stay behind if the executor is lost, and why.
    pub refused: Vec<Refused>,
    /// Bytes of state in the last completed manifest.
    pub state_bytes: u64,
    /// Why the last executor term was given up, if one was.
    pub last_loss: Option<String>,
    /// What the kernel still waits for before it can run its first cell, if it has not begun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits_for: Option<String>,
    /// Files of the working directory that travel with the session.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<String>,
    /// The limits in force.
    #[serde(default, skip_serializing_if = "KernelLimits::is_default")]
    pub limits: KernelLimits,
    /// Those of them that the node which answers cannot enforce, each as a sentence.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unenforced: Vec<String>,
    /// What it does just now.
    #[serde(default, skip_serializing_if = "KernelPhase::is_starting")]
    pub phase: KernelPhase,
    /// Whether its session's state is in its process only, as that of another language than Python:
    /// what survives a loss are cells and outputs.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub not_replicated: bool,
}

/// A variable that cannot be carried to another replica.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Refused {
    /// Its name.
    pub name: String,
    /// Why, for people.
    pub reason: String,
}
