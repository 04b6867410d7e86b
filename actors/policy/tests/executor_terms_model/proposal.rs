//! Log entries in short: what the model keeps instead of whole [`Entry`] values.

use bytes::Bytes;
use callboard_policy::terms::{Entry, KernelLog, Part, RewindTo, StateDelta, StateGroup};
use callboard_protocol::{Incarnation, ReplicaId, Seq, Term, kernel::Level};

/// The one variable of the session: the cells that changed it, in order.
const VARIABLE: &str = "x";

pub(crate) const MSG_IDS: [&str; 2] = ["cell-a", "cell-b"];

pub(crate) fn cell_of(msg_id: &str) -> usize {
    let cell = MSG_IDS.iter().position(|known| *known == msg_id);
    cell.unwrap_or_else(|| panic!("{msg_id} is no cell of the model"))
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Proposal {
    Accept { cell: usize, level: Level, grant: Option<Term> },
    Takeover { term: Term, replica: ReplicaId, incarnation: Incarnation, base: Seq },
    Start { term: Term, seq: Seq },
    Complete { term: Term, seq: Seq, changed_by: Vec<usize> },
    Abandon { term: Term },
    Park { term: Term },
    Rewind { at: u64, to: u64 },
}

impl Proposal {
    pub(crate) fn of(entry: &Entry) -> Self {
        match entry {
            Entry::Accept { msg_id, level, grant, .. } => {
                Self::Accept { cell: cell_of(msg_id), level: *level, grant: *grant }
            }
            Entry::Takeover { term, replica, incarnation, base } => Self::Takeover {
                term: *term,
                replica: *replica,
                incarnation: *incarnation,
                base: *base,
            },
            Entry::Start { term, seq } => Self::Start { term: *term, seq: *seq },
            Entry::Complete { term, seq, delta, .. } => Self::Complete {
                term: *term,
                seq: *seq,
                changed_by: delta.upsert.iter().flat_map(|(_, group)| cells_in(group)).collect(),
            },
            Entry::Abandon { term, .. } => Self::Abandon { term: *term },
            Entry::Park { term } => Self::Park { term: *term },
            Entry::Emit { .. }
            | Entry::Rewind { .. }
            | Entry::Checkpoint { .. }
            | Entry::DropCheckpoint { .. }
            | Entry::Adopt { .. }
            | Entry::Restart { .. }
            | Entry::Seed { .. } => {
                unreachable!("the executor's machine proposes no {entry:?}")
            }
        }
    }

    pub(crate) fn entry(&self) -> Entry {
        match self {
            Self::Accept { cell, level, grant } => Entry::Accept {
                msg_id: MSG_IDS[*cell].to_owned(),
                hash: [*cell as u8; 32],
                level: *level,
                request: Bytes::new(),
                horizon: None,
                grant: *grant,
            },
            Self::Takeover { term, replica, incarnation, base } => Entry::Takeover {
                term: *term,
                replica: *replica,
                incarnation: *incarnation,
                base: *base,
            },
            Self::Start { term, seq } => Entry::Start { term: *term, seq: *seq },
            Self::Complete { term, seq, changed_by } => Entry::Complete {
                term: *term,
                seq: *seq,
                outputs: Vec::new(),
                delta: delta(changed_by, *seq),
            },
            Self::Abandon { term } => Entry::Abandon { term: *term, cause: "lost".to_owned() },
            Self::Park { term } => Entry::Park { term: *term },
            Self::Rewind { at, to } => Entry::Rewind {
                id: format!("from-{at}-to-{to}"),
                at: *at,
                to: RewindTo::Position(*to),
            },
        }
    }

    /// Whether committing it can never again change anything.
    pub(crate) fn is_spent(&self, log: &KernelLog) -> bool {
        let is_open = |term: &Term| log.open_term().is_some_and(|open| open.term == *term);
        let pending = |seq: &Seq| log.pending().iter().find(|cell| cell.seq == *seq);
        match self {
            Self::Accept { cell, grant, .. } => match log.request(MSG_IDS[*cell]) {
                None => false,
                Some((seq, _, _)) => !grant.is_some_and(|term| {
                    is_open(&term) && pending(&seq).is_some_and(|cell| cell.grant != Some(term))
                }),
            },
            Self::Takeover { term, .. } => *term <= log.last_term(),
            Self::Start { term, seq } => {
                !is_open(term) || pending(seq).is_none_or(|cell| cell.grant == Some(*term))
            }
            Self::Complete { term, seq, .. } => !is_open(term) || pending(seq).is_none(),
            Self::Abandon { term } | Self::Park { term } => !is_open(term),
            Self::Rewind { at, .. } => log.position() > *at,
        }
    }
}

pub(crate) fn delta(changed_by: &[usize], seq: Seq) -> StateDelta {
    let bytes: Vec<u8> = changed_by.iter().map(|cell| *cell as u8).collect();
    let group = StateGroup {
        names: Vec::new(),
        kind: String::new(),
        parts: vec![Part::Inline(Bytes::from(bytes))],
    };
    StateDelta {
        upsert: vec![(VARIABLE.to_owned(), group)],
        execution_count: seq.0,
        ..StateDelta::default()
    }
}

fn cells_in(group: &StateGroup) -> Vec<usize> {
    let Some(Part::Inline(bytes)) = group.parts.first() else { return Vec::new() };
    bytes.iter().map(|cell| usize::from(*cell)).collect()
}

/// The cells whose changes the manifest of a log holds, in order.
pub(crate) fn state_of(log: &KernelLog) -> Vec<usize> {
    log.manifest().get(VARIABLE).map(cells_in).unwrap_or_default()
}
