//! What the log of a kernel holds.

use bytes::Bytes;
use callboard_protocol::{
    Incarnation, ReplicaId, Seq, Term,
    history::SeedEnd,
    kernel::{Level, OutputPlace, Refused},
};
use serde::{Deserialize, Serialize};

use super::history::{RewindTo, UndoRefusal};

/// blake3 of a chunk's bytes, or of a request's content.
pub type Hash = [u8; 32];

/// Bytes that belong to the state: in the log itself when small, in the chunk store when not.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Part {
    /// The bytes.
    Inline(Bytes),
    /// The name of the bytes.
    Chunk {
        /// blake3 of the bytes.
        hash: Hash,
        /// How many.
        length: u64,
    },
    /// The name of a chunk that lists the chunks which make up the bytes.
    Chunked {
        /// blake3 of that chunk, the index.
        index: Hash,
        /// How many bytes the chunks have together.
        length: u64,
    },
}

impl Part {
    /// Length of the bytes.
    #[must_use]
    pub fn length(&self) -> u64 {
        match self {
            Self::Inline(bytes) => bytes.len() as u64,
            Self::Chunk { length, .. } | Self::Chunked { length, .. } => *length,
        }
    }
}

impl std::fmt::Debug for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Inline(bytes) => write!(f, "inline({} bytes)", bytes.len()),
            Self::Chunk { hash, length } => {
                write!(f, "chunk({:02x}{:02x}…, {length} bytes)", hash[0], hash[1])
            }
            Self::Chunked { index, length } => {
                write!(f, "chunks({:02x}{:02x}…, {length} bytes)", index[0], index[1])
            }
        }
    }
}

/// Names that share references, pickled together.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct StateGroup {
    /// The names bound to the group's objects.
    pub names: Vec<String>,
    /// What the Python side calls this sort of state.
    pub kind: String,
    /// The pickle stream, then its out-of-band buffers.
    pub parts: Vec<Part>,
}

impl StateGroup {
    /// The chunks the group names itself, each with the length of the bytes it stands for.
    /// Versions of a large part may share most of what an index lists: this counts each whole.
    pub fn chunks(&self) -> impl Iterator<Item = (Hash, u64)> {
        self.parts.iter().filter_map(|part| match part {
            Part::Chunk { hash, length } | Part::Chunked { index: hash, length } => {
                Some((*hash, *length))
            }
            Part::Inline(_) => None,
        })
    }
}

/// What one cell changed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct StateDelta {
    /// Groups that are new or changed, by id.
    pub upsert: Vec<(String, StateGroup)>,
    /// Ids of groups that are gone.
    pub removed: Vec<String>,
    /// Names that could not be carried, all of them as of this cell.
    pub refused: Vec<Refused>,
    /// The kernel's execution count after the cell.
    pub execution_count: u64,
}

/// An output in the log.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LoggedOutput {
    /// Where it stands.
    pub place: OutputPlace,
    /// The Jupyter message, v1 framing.
    pub message: Part,
}

/// One entry of a kernel's log.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Entry {
    /// A request gets its place in the order.
    Accept {
        /// The Jupyter `msg_id`.
        msg_id: String,
        /// Hash of the request's content; the same id with another hash is refused.
        hash: Hash,
        /// When it is to be answered.
        level: Level,
        /// The Jupyter message, v1 framing.
        request: Bytes,
        /// Last sequence number the client knew when it first sent the request. A request from
        /// before the dedupe window is refused, since it may have run.
        horizon: Option<Seq>,
        /// The term whose executor proposes this and may start the cell once it applies; none if
        /// another replica proposes it.
        grant: Option<Term>,
    },
    /// A replica becomes the executor.
    Takeover {
        /// The term it opens: one more than the last.
        term: Term,
        /// Who.
        replica: ReplicaId,
        /// In which life of its node.
        incarnation: Incarnation,
        /// The last completed cell, whose state it can read whole.
        base: Seq,
    },
    /// The executor claims a cell it did not accept itself, before it starts it.
    Start {
        /// Its term.
        term: Term,
        /// The cell.
        seq: Seq,
    },
    /// Outputs of a cell that still runs.
    Emit {
        /// The term.
        term: Term,
        /// The outputs in order.
        outputs: Vec<LoggedOutput>,
    },
    /// A cell ran to its end.
    Complete {
        /// The term.
        term: Term,
        /// The cell: the first one pending.
        seq: Seq,
        /// Outputs not yet in the log, the reply last.
        outputs: Vec<LoggedOutput>,
        /// What changed.
        delta: StateDelta,
    },
    /// The executor is lost or gives up.
    Abandon {
        /// The term.
        term: Term,
        /// What happened, for people.
        cause: String,
    },
    /// The executor has nothing to do and gives its term up in order; nobody takes over until
    /// there is a cell. Valid only while no cell waits.
    Park {
        /// Its term.
        term: Term,
    },
    /// An earlier state becomes the present one. Runs nothing; needs that no cell is pending.
    Rewind {
        /// Identity of the wish.
        id: String,
        /// The position it was decided on: it is void once the kernel has moved on, so that one
        /// that is late or repeated does nothing.
        at: u64,
        /// Which state.
        to: RewindTo,
    },
    /// The present state is kept under a name.
    Checkpoint {
        /// The name.
        name: String,
        /// The position it was decided on.
        at: u64,
    },
    /// A name is forgotten.
    DropCheckpoint {
        /// The name.
        name: String,
    },
    /// The log begins with what a member of an earlier group had; in pieces. Needs an unused log.
    Adopt {
        /// Bytes that came before.
        offset: u64,
        /// The next ones of that member's [`super::KernelLog`], in MessagePack.
        bytes: Bytes,
        /// How many there are.
        total: u64,
        /// Why, for people.
        cause: String,
    },
    /// The log begins with a state that was made elsewhere; in pages. Needs that no cell has run.
    Seed {
        /// Groups that came before.
        skip: u64,
        /// The next ones.
        groups: Vec<(String, StateGroup)>,
        /// The rest, with the last page.
        end: Option<SeedEnd>,
    },
    /// The session begins anew: cells that wait or run end, variables go, files stay.
    Restart {
        /// Identity of the wish; one that was granted is not granted again.
        id: String,
    },
}

/// What became of an entry when it was applied. Every replica computes the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Applied {
    /// The request has this place; it may have had it before.
    Accepted {
        /// The place.
        seq: Seq,
        /// Whether the request was known already.
        duplicate: bool,
    },
    /// The request's id was used for another request.
    Conflict,
    /// The request is older than what the log remembers; it may have run.
    Expired,
    /// Too many cells wait.
    QueueFull,
    /// The term is open.
    Opened(Term),
    /// The cell may be started by the term's executor.
    Granted(Seq),
    /// The outputs are in the log.
    Emitted,
    /// The cell ended with its state kept.
    Completed(callboard_protocol::kernel::CellEnd),
    /// The term is closed; these cells may have been started and did not complete.
    Closed {
        /// The term.
        term: Term,
        /// Whose it was.
        replica: ReplicaId,
        /// The interrupted cells.
        interrupted: Vec<callboard_protocol::kernel::CellEnd>,
    },
    /// The term is closed in order: it had nothing to do.
    Parked(Term),
    /// The entry came too late or was not valid; it changed nothing.
    Ignored,
    /// The state is an earlier one now, and no term is open.
    Rewound {
        /// The term that was open and is closed in order, if one was.
        closed: Option<Term>,
        /// The cell whose state came back.
        to: Seq,
    },
    /// The session has begun anew, and no term is open.
    Restarted {
        /// The cells that had not ended.
        interrupted: Vec<callboard_protocol::kernel::CellEnd>,
    },
    /// The log holds so many bytes, or groups, of what it is to begin with.
    Holding(u64),
    /// The log has begun with what it was given.
    Begun,
    /// The name is kept, or forgotten.
    Kept,
    /// What was asked for cannot be done; nothing was changed.
    Declined(UndoRefusal),
}
