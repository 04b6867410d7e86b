//! What must hold of a kernel's cells whatever fails, as predicates over what was seen.
//!
//! Written before the machines and used by whoever watches them: the model checker fills
//! [`Facts`] as an observer that sees everything; a live run fills in what its witnesses saw and
//! leaves the rest empty, which no predicate holds against it.
//!
//! Assumed, not checked here: an incarnation is never used twice (it is raised durably before a
//! replica starts its life, under a lock on its disk), and a log entry that was committed stays.

use callboard_protocol::{
    Incarnation, ReplicaId, Seq, Term,
    kernel::{CellOutcome, Level},
};

/// How a cell ended, without the words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ending {
    /// Its state is kept.
    Completed,
    /// State is as before it.
    Interrupted,
}

impl From<&CellOutcome> for Ending {
    fn from(outcome: &CellOutcome) -> Self {
        match outcome {
            CellOutcome::Completed => Self::Completed,
            CellOutcome::Interrupted { .. } => Self::Interrupted,
        }
    }
}

/// User code of a cell was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StartSeen {
    /// In this term.
    pub term: Term,
    /// By this replica.
    pub replica: ReplicaId,
    /// In this life of it.
    pub incarnation: Incarnation,
}

/// Someone was told how a cell ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndTold {
    /// How.
    pub ending: Ending,
    /// Whether the teller's own log held that end at that moment.
    pub was_applied: bool,
}

/// What was seen of one cell.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CellFacts {
    /// When it is answered.
    pub level: Level,
    /// Its place in the committed log, once it has one.
    pub seq: Option<Seq>,
    /// Whether the committed log holds it as not ended.
    pub is_pending: bool,
    /// Every start of its user code, anywhere.
    pub starts: Vec<StartSeen>,
    /// Every end the committed log ever gave it, with the term it ended in.
    pub ends: Vec<(Ending, Term)>,
    /// The different things anyone was told of its end.
    pub told: Vec<EndTold>,
}

impl CellFacts {
    /// A cell nobody has seen yet.
    #[must_use]
    pub fn new(level: Level) -> Self {
        Self {
            level,
            seq: None,
            is_pending: false,
            starts: Vec::new(),
            ends: Vec::new(),
            told: Vec::new(),
        }
    }

    fn ended_as(&self, ending: Ending) -> bool {
        self.ends.iter().any(|(end, _)| *end == ending)
    }
}

/// An executor term was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TermOpened {
    /// Its number.
    pub term: Term,
    /// The last term before it.
    pub previous: Term,
    /// Whether that one was still open.
    pub previous_open: bool,
}

/// An executor was given its base state.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BaseRestored {
    /// For this term.
    pub term: Term,
    /// Cells whose changes it was given, in the order they were made.
    pub given: Vec<usize>,
    /// Cells that were completed when the term was opened, in order.
    pub due: Vec<usize>,
}

/// A rewind took effect.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RewindSeen {
    /// Cells whose changes were in the committed state after it, in order.
    pub given: Vec<usize>,
    /// Those that were in it at the place that was asked for.
    pub due: Vec<usize>,
    /// Whether a cell was pending.
    pub had_pending: bool,
}

/// What was seen of a kernel. Cells go by their index in `cells`.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Facts {
    /// The cells a client sent.
    pub cells: Vec<CellFacts>,
    /// Cells whose changes are in the committed state, in the order they were made.
    pub state: Vec<usize>,
    /// Completed cells whose changes somebody asked to take back, and got taken back.
    pub undone: Vec<usize>,
    /// Rewinds: all, or those since the last look.
    pub rewinds: Vec<RewindSeen>,
    /// Openings of terms: all, or those since the last look.
    pub openings: Vec<TermOpened>,
    /// Restored bases: all, or those since the last look.
    pub bases: Vec<BaseRestored>,
}

impl Facts {
    /// Whether a completed cell's changes are in the committed state, or were taken back by a
    /// rewind: one of the two.
    fn is_accounted_for(&self, cell: usize) -> bool {
        self.state.contains(&cell) != self.undone.contains(&cell)
    }

    fn durable(&self) -> impl Iterator<Item = &CellFacts> {
        self.cells.iter().filter(|cell| cell.level == Level::Durable)
    }
}

/// One thing that must always hold.
#[derive(Debug, Clone, Copy)]
pub struct Invariant {
    /// Its name in reports.
    pub id: &'static str,
    /// What must hold.
    pub statement: &'static str,
    /// Why anyone cares.
    pub why: &'static str,
    /// Whether it holds of what was seen.
    pub holds: fn(&Facts) -> bool,
}

/// A cell's user code is started at most once.
pub const AT_MOST_ONCE: Invariant = Invariant {
    id: "AT_MOST_ONCE",
    statement: "the user code of a cell is started at most once over all replicas, lives and terms",
    why: "a cell that trains, pays or appends twice is worse than one that fails with an error",
    holds: |facts| facts.cells.iter().all(|cell| cell.starts.len() <= 1),
};

/// A durable answer is kept.
pub const ACK_DURABLE: Invariant = Invariant {
    id: "ACK_DURABLE",
    statement: "a durable cell anyone was told completed is completed in the committed log, and \
                its changes are in the committed state, unless a rewind that was asked for took \
                them back",
    why: "durable means that no crash of a minority takes the result back",
    holds: |facts| {
        facts.cells.iter().enumerate().all(|(index, cell)| {
            let was_told = cell.told.iter().any(|told| told.ending == Ending::Completed);
            cell.level == Level::Received
                || !was_told
                || (cell.ended_as(Ending::Completed) && facts.is_accounted_for(index))
        })
    },
};

/// A durable cell has one end.
///
/// At `received` this holds of the log only: the executor tells the end as soon as the code ran,
/// and an `Abandon` that was committed before its `Complete` still interrupts the cell, so a
/// client can be told `Completed` first and `Interrupted` later. That is what `received` means.
pub const ONE_OUTCOME: Invariant = Invariant {
    id: "ONE_OUTCOME",
    statement: "the log gives a cell one end, and whoever was told the end of a durable cell was \
                told that one",
    why: "two clients that hear different ends of one cell act on different states",
    holds: |facts| {
        facts.cells.iter().all(|cell| cell.ends.len() <= 1)
            && facts
                .durable()
                .all(|cell| cell.told.windows(2).all(|pair| pair[0].ending == pair[1].ending))
            && facts.cells.iter().all(|cell| {
                let told_of = |ending| cell.told.iter().any(|told| told.ending == ending);
                let other = match cell.ends.first() {
                    Some((Ending::Completed, _)) => told_of(Ending::Interrupted),
                    Some((Ending::Interrupted, _)) => {
                        cell.level == Level::Durable && told_of(Ending::Completed)
                    }
                    None => false,
                };
                !other
            })
    },
};

/// Nobody hears of an end before it is applied.
pub const REPLY_AFTER_APPLY: Invariant = Invariant {
    id: "REPLY_AFTER_APPLY",
    statement: "the end of a durable cell, and an interruption at any level, is told only by a \
                replica whose own log holds it",
    why: "an answer before that rests on a proposal that may lose against an Abandon",
    holds: |facts| {
        facts.cells.iter().all(|cell| {
            cell.told.iter().all(|told| {
                told.was_applied
                    || (cell.level == Level::Received && told.ending == Ending::Completed)
            })
        })
    },
};

/// One executor per term, one term at a time.
pub const ONE_EXECUTOR: Invariant = Invariant {
    id: "ONE_EXECUTOR",
    statement: "a term is opened only while none is open and is one more than the last; all cells \
                started in a term are started by one life of one replica; a completed cell was \
                started in the term that completed it",
    why: "two executors of one term would merge the changes of two different Python processes",
    holds: |facts| {
        let in_turn = facts
            .openings
            .iter()
            .all(|opened| !opened.previous_open && opened.term == opened.previous.next());
        let starts = || facts.cells.iter().flat_map(|cell| &cell.starts);
        let one_each = starts().all(|one| {
            starts().all(|other| {
                one.term != other.term
                    || (one.replica, one.incarnation) == (other.replica, other.incarnation)
            })
        });
        let ran_where_it_ended = facts.cells.iter().all(|cell| {
            cell.ends.iter().all(|(ending, term)| {
                *ending == Ending::Interrupted
                    || cell.starts.is_empty()
                    || cell.starts.iter().any(|start| start.term == *term)
            })
        });
        in_turn && one_each && ran_where_it_ended
    },
};

/// An executor starts from the completed state.
pub const BASE: Invariant = Invariant {
    id: "BASE",
    statement: "an executor is given the changes of exactly the cells that were completed when \
                its term was opened, in order",
    why: "a variable that is missing or from the future breaks the session without a word",
    holds: |facts| facts.bases.iter().all(|base| base.given == base.due),
};

/// Cells complete in the order they were accepted.
pub const ORDER: Invariant = Invariant {
    id: "ORDER",
    statement: "no two cells share a place, and the committed state holds the changes of exactly \
                the completed cells that no rewind took back, each once, in the order of their \
                places",
    why: "a notebook's meaning is the order of its cells",
    holds: |facts| {
        let places: Vec<Seq> = facts.cells.iter().filter_map(|cell| cell.seq).collect();
        let distinct = places.iter().enumerate().all(|(index, seq)| !places[..index].contains(seq));
        let place = |index: &usize| facts.cells.get(*index).and_then(|cell| cell.seq);
        let ascending = facts.state.windows(2).all(|pair| place(&pair[0]) < place(&pair[1]));
        let complete = facts.cells.iter().enumerate().all(|(index, cell)| {
            !cell.ended_as(Ending::Completed) || facts.is_accounted_for(index)
        });
        distinct && ascending && complete
    },
};

/// An interrupted cell leaves nothing.
pub const INTERRUPTED_HAS_NO_STATE: Invariant = Invariant {
    id: "INTERRUPTED_HAS_NO_STATE",
    statement: "only completed cells have changes in the committed state; an interrupted one has \
                none, for ever",
    why: "the error says that state is as before the cell, and the user goes on from there",
    holds: |facts| {
        facts.state.iter().all(|index| {
            facts.cells.get(*index).is_some_and(|cell| cell.ended_as(Ending::Completed))
        })
    },
};

/// Nothing accepted is dropped.
pub const NO_LOST_REQUEST: Invariant = Invariant {
    id: "NO_LOST_REQUEST",
    statement: "a cell with a place in the log is pending or has ended, and not both",
    why: "a cell that silently vanishes leaves its client waiting for ever",
    holds: |facts| {
        facts
            .cells
            .iter()
            .all(|cell| cell.seq.is_none() || (cell.is_pending == cell.ends.is_empty()))
    },
};

/// A rewind gives the state that was asked for.
pub const REWIND: Invariant = Invariant {
    id: "REWIND",
    statement: "after a rewind the committed state is exactly the one at the place asked for, and \
                no cell was pending",
    why: "an undo that keeps half of what it should take back is worse than none, and a cell that \
          waits was sent to the state its user saw",
    holds: |facts| facts.rewinds.iter().all(|it| it.given == it.due && !it.had_pending),
};

/// All of them.
pub const ALL: [&Invariant; 10] = [
    &AT_MOST_ONCE,
    &ACK_DURABLE,
    &ONE_OUTCOME,
    &REPLY_AFTER_APPLY,
    &ONE_EXECUTOR,
    &BASE,
    &ORDER,
    &INTERRUPTED_HAS_NO_STATE,
    &NO_LOST_REQUEST,
    &REWIND,
];

/// The invariants that do not hold of what was seen.
pub fn broken(facts: &Facts) -> impl Iterator<Item = &'static Invariant> {
    ALL.into_iter().filter(|invariant| !(invariant.holds)(facts))
}

#[cfg(test)]
mod tests;
