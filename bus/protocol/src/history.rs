//! What is said of a kernel's history: its steps, the states kept by name, and going back.
//!
//! Verbs of `kernel.<id>`: `log` takes nothing and answers [`KernelHistory`]; `checkpoint` takes
//! [`KeepState`] and answers [`KernelHistory`]; `rewind` takes [`Rewind`] and answers
//! [`RewindPlan`]; `manifest` takes [`GetManifest`] and answers [`Manifest`]; `seed` takes
//! [`SeedPage`] and answers [`SeedProgress`].

use serde::{Deserialize, Serialize};

use crate::{ids::Seq, kernel::Refused};

/// A cell, as people know it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CellShown {
    /// Its place in the kernel's order.
    pub cell: Seq,
    /// The number in front of it in the notebook, if it had one.
    pub number: Option<u64>,
    /// The first line of its code.
    pub first_line: String,
}

/// What a step was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum StepOutcome {
    /// A cell that ran to its end.
    Completed,
    /// A cell whose executor was lost: the state is as before it.
    Interrupted,
    /// The state became an earlier one.
    Rewound {
        /// The name it was kept under, if it was.
        checkpoint: Option<String>,
    },
    /// The session began anew.
    Restarted,
}

/// One step of a kernel's state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepShown {
    /// Its number among the steps.
    pub position: u64,
    /// The cell; of a rewind, the cell whose state came back.
    pub cell: CellShown,
    /// What it was.
    pub outcome: StepOutcome,
    /// Whether its effect is not in the present state, since the kernel was rewound behind it.
    pub is_undone: bool,
    /// Bytes of state it wrote.
    pub changed_bytes: u64,
    /// Bytes of state after it.
    pub state_bytes: u64,
    /// Names under which the state after it is kept.
    pub checkpoints: Vec<String>,
}

/// A state kept by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedState {
    /// The name.
    pub name: String,
    /// The cell that had left it.
    pub cell: Seq,
    /// Its bytes.
    pub state_bytes: u64,
}

/// What `log` answers. Every state listed can be gone back to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelHistory {
    /// The number of the last step. Changes with every step.
    pub position: u64,
    /// The steps that are kept, oldest first.
    pub steps: Vec<StepShown>,
    /// The states kept by name.
    pub checkpoints: Vec<NamedState>,
    /// Whether the state the kernel began with can be gone back to, as cell 0.
    pub reaches_start: bool,
}

/// Keeps the present state under a name, or forgets one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeepState {
    /// The name.
    pub name: String,
    /// Whether to forget it.
    #[serde(default)]
    pub drop: bool,
}

/// Makes an earlier state the present one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rewind {
    /// Identity of the wish; asked again under the same one, it is done once.
    pub id: String,
    /// Which state: a cell's place, `In[7]`, or a checkpoint's name.
    pub to: String,
    /// The position it was decided on; the kernel refuses if it has moved on.
    #[serde(default)]
    pub position: Option<u64>,
    /// Whether only to say what would be done.
    #[serde(default)]
    pub plan_only: bool,
}

/// What `restart` takes: the session shall begin anew, with its files and without its variables.
/// It answers `null`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restart {
    /// Identity of the wish; asked again under the same one, it is done once.
    pub id: String,
}

/// What a rewind does, or did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RewindPlan {
    /// The position it was made on.
    pub position: u64,
    /// The cell whose state comes back; 0 is the start.
    pub cell: Seq,
    /// The name it is kept under, if it was asked for by name.
    pub checkpoint: Option<String>,
    /// The number the next cell gets.
    pub execution_count: u64,
    /// Variables that get another value.
    pub changed: Vec<String>,
    /// Variables that vanish.
    pub removed: Vec<String>,
    /// Variables that come back.
    pub restored: Vec<String>,
    /// Cells whose effect goes.
    pub undone: Vec<CellShown>,
    /// Cells whose effect comes back.
    pub redone: Vec<CellShown>,
}

/// Asks for a state's manifest: what it consists of.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetManifest {
    /// Which state, as [`Rewind::to`]; the present one if none is named.
    #[serde(default)]
    pub at: Option<String>,
    /// Groups to leave out: those given already.
    #[serde(default)]
    pub skip: u64,
}

/// A page of the state a kernel is to begin with: the body of `seed`. Pages are taken in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeedPage {
    /// Groups given before.
    pub skip: u64,
    /// More groups, as in [`Manifest::groups`].
    #[serde(with = "crate::base64_bytes")]
    pub groups: bytes::Bytes,
    /// What is not in groups; on the last page only.
    #[serde(default)]
    pub end: Option<SeedEnd>,
}

/// Asks for a piece of a chunk: the body of `chunk`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetChunk {
    /// blake3 of the chunk, in hexadecimal.
    pub hash: String,
    /// Where the piece begins.
    #[serde(default)]
    pub offset: u64,
}

/// A piece of a chunk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkPiece {
    /// Bytes of the whole chunk.
    pub length: u64,
    /// As many of them as fit; in JSON, base64.
    #[serde(with = "crate::base64_bytes")]
    pub bytes: bytes::Bytes,
}

/// A piece of a chunk that a kernel is to begin with: the body of `put_chunk`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PutChunk {
    /// blake3 of the chunk, in hexadecimal.
    pub hash: String,
    /// Bytes of the whole chunk.
    pub length: u64,
    /// Where the piece begins.
    pub offset: u64,
    /// The piece; in JSON, base64.
    #[serde(with = "crate::base64_bytes")]
    pub bytes: bytes::Bytes,
}

/// What `put_chunk` answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkProgress {
    /// Bytes of the chunk that have arrived: where the next piece begins.
    pub held: u64,
    /// Whether the whole chunk is on stable storage of a majority.
    pub is_durable: bool,
}

/// The last of what a kernel is to begin with.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SeedEnd {
    /// Names that are not part of the state, and why.
    pub refused: Vec<Refused>,
    /// The number the next cell gets.
    pub execution_count: u64,
    /// Where the state comes from, for people.
    pub from: String,
}

/// What `seed` answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeedProgress {
    /// Groups the kernel holds of what it is to begin with: where the next page begins.
    pub held: u64,
    /// Whether it has begun.
    pub has_begun: bool,
}

/// A page of a state's manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The state, in a form that means the same later: what to ask the next page at.
    pub at: String,
    /// The cell that left it.
    pub cell: Seq,
    /// Groups of the state, as many as fit: MessagePack, as in the kernel's log; in JSON, base64.
    #[serde(with = "crate::base64_bytes")]
    pub groups: bytes::Bytes,
    /// How many groups this page has.
    pub count: u64,
    /// Whether more follow.
    pub more: bool,
    /// Names that are not part of it, and why.
    pub refused: Vec<Refused>,
    /// The number the next cell gets.
    pub execution_count: u64,
}
