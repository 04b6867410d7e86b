//! One replica's local machine: what it proposes and does, given what it saw.
//!
//! Everything safety rests on is read from the log at the moment of the decision; what is kept
//! here besides is what this life of the replica did (which term it entered, which cells it
//! started) and when something was last tried.

mod cells;
mod io;
mod parking;
mod requests;
mod rest;
mod tending;

use std::collections::{BTreeMap, VecDeque};

use callboard_protocol::{ReplicaId, Seq, Term, kernel::Level};

use super::{
    KernelLog,
    entry::{Applied, LoggedOutput, StateDelta},
};
pub use io::{Action, Identity, Input, PythonPhase, Request, Upkeep};

/// A request the executor did not order within this time is ordered by the leader.
const ACCEPT_GRACE_MS: u64 = 300;
/// Replicas that do not lead leave the leader this much time, times their rank, to take over.
const TAKEOVER_STAGGER_MS: u64 = 60;
/// The same before the first term: nobody waits for lost state, and an executor that also leads
/// saves every cell a hop.
const FIRST_TAKEOVER_STAGGER_MS: u64 = 500;
/// Replicas that do not lead and have no Python process leave the leader this much time, times
/// their rank, before they start one: enough to start one, so that as a rule only one is started.
const START_STAGGER_MS: u64 = 400;
/// The same before the first term: a group that is being founded has no leader for a while.
const FIRST_START_STAGGER_MS: u64 = 2_000;
/// A proposal nothing was heard of is made again; applying it twice changes nothing.
const REPROPOSE_MS: u64 = 1_000;
/// A request nobody ordered is forgotten; its sender resends.
const REQUEST_KEPT_MS: u64 = 10_000;
/// Requests remembered at once before they are ordered.
const REQUESTS_KEPT_MAX: usize = 1_000;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Waiting {
    request: Request,
    since_ms: u64,
}

/// A cell that ran here and whose completion is not known to be in the log.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct FinishedCell {
    seq: Seq,
    level: Level,
    outputs: Vec<LoggedOutput>,
    delta: StateDelta,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Attempt {
    Takeover(Term),
    Abandon(Term),
    Start(Term, Seq),
    Complete(Term, Seq),
    Park(Term),
}

/// One replica's local machine.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Executor {
    identity: Identity,
    previous_end: String,
    leading: bool,
    voters: Vec<ReplicaId>,
    suspects: BTreeMap<ReplicaId, String>,
    base_readable: bool,
    python: PythonPhase,
    entered: Option<Term>,
    python_loss: Option<String>,
    started_through: Seq,
    finished: VecDeque<FinishedCell>,
    waiting: BTreeMap<String, Waiting>,
    arrivals: VecDeque<String>,
    accepts: BTreeMap<String, u64>,
    tried: BTreeMap<Attempt, u64>,
    closed_since_ms: Option<u64>,
    upkeep: Upkeep,
    is_wanted: bool,
    idle_since_ms: Option<u64>,
}

impl Executor {
    /// A replica that has just started its life.
    #[must_use]
    pub fn new(identity: Identity) -> Self {
        Self {
            identity,
            previous_end: "its process ended and was started again".to_owned(),
            leading: false,
            voters: Vec::new(),
            suspects: BTreeMap::new(),
            base_readable: false,
            python: PythonPhase::Absent,
            entered: None,
            python_loss: None,
            started_through: Seq::default(),
            finished: VecDeque::new(),
            waiting: BTreeMap::new(),
            arrivals: VecDeque::new(),
            accepts: BTreeMap::new(),
            tried: BTreeMap::new(),
            closed_since_ms: None,
            upkeep: Upkeep::default(),
            is_wanted: false,
            idle_since_ms: None,
        }
    }

    /// The same, told how the life before this one ended, for people.
    #[must_use]
    pub fn after(self, previous_end: String) -> Self {
        Self { previous_end, ..self }
    }

    /// Whether `replica` cannot be counted on.
    #[must_use]
    pub fn suspects(&self, replica: ReplicaId) -> bool {
        self.suspects.contains_key(&replica)
    }

    /// How far the Python process is.
    #[must_use]
    pub fn python(&self) -> PythonPhase {
        self.python
    }

    /// Forgets when things were last tried, so that all of them are due at the next step: for a
    /// driver back from an outage in which nothing it proposed can have arrived.
    pub fn make_due(&mut self) {
        self.tried.clear();
        self.accepts.values_mut().for_each(|tried_ms| *tried_ms = 0);
        self.closed_since_ms = self.closed_since_ms.map(|_| 0);
    }

    /// Takes one input in and says what to do. `log` is the log as applied here, at least as new
    /// as every `Applied` input; `now_ms` is a monotonic clock.
    pub fn step(&mut self, log: &KernelLog, input: Input, now_ms: u64) -> Vec<Action> {
        let mut actions = Vec::new();
        match input {
            Input::Requested(request) => self.requested(log, request, now_ms, &mut actions),
            Input::Applied(applied) => self.applied(applied, &mut actions),
            Input::Refused { msg_id, applied } => self.refused(msg_id, &applied, &mut actions),
            Input::Leading(leading) => self.leading = leading,
            Input::Voters(voters) => self.voters = voters,
            Input::Suspects(suspects) => self.suspects = suspects,
            Input::BaseReadable(readable) => self.base_readable = readable,
            Input::Upkeep(upkeep) => self.upkeep = upkeep,
            Input::Wanted => self.wanted(log),
            Input::PythonWarm => {
                if self.python == PythonPhase::Starting {
                    self.python = PythonPhase::Warm;
                }
            }
            Input::PythonExited(how) => self.python_exited(how),
            Input::Restored(term) => {
                if self.python == PythonPhase::Restoring(term) {
                    self.python = PythonPhase::Serving(term);
                }
            }
            Input::Finished { term, seq, outputs, delta } => {
                self.finished(log, term, seq, (outputs, delta), &mut actions);
            }
            Input::Tick => {}
        }
        self.answer_ordered(log, &mut actions);
        self.propose_waiting(log, now_ms, &mut actions);
        self.tend_term(log, now_ms, &mut actions);
        self.tend_python(log, now_ms, &mut actions);
        self.tend_cells(log, now_ms, &mut actions);
        self.tend_parking(log, now_ms, &mut actions);
        actions
    }

    /// The open term, if this life of this replica opened it.
    fn my_term(&self, log: &KernelLog) -> Option<Term> {
        log.open_term()
            .filter(|open| {
                open.replica == self.identity.replica
                    && open.incarnation == self.identity.incarnation
            })
            .map(|open| open.term)
    }

    fn applied(&mut self, applied: Applied, actions: &mut Vec<Action>) {
        match applied {
            Applied::Completed(end) if self.entered == Some(end.term) => {
                let finished = self.finished.iter().find(|cell| cell.seq == end.seq);
                let is_durable = finished.is_some_and(|cell| cell.level == Level::Durable);
                self.finished.retain(|cell| cell.seq != end.seq);
                self.tried.retain(|attempt, _| !attempt.is_for_cell_up_to(end.seq));
                // A received cell's end was published when it finished.
                if is_durable {
                    actions.push(Action::PublishEnded(end));
                }
            }
            Applied::Closed { interrupted, .. } | Applied::Restarted { interrupted }
                if self.leading =>
            {
                actions.extend(interrupted.into_iter().map(Action::PublishEnded));
            }
            _ => {}
        }
    }

    fn python_exited(&mut self, how: String) {
        self.python_loss = self.entered.map(|_| how);
        self.python = PythonPhase::Absent;
    }

    fn serves(&self, term: Term) -> bool {
        matches!(self.python, PythonPhase::Restoring(t) | PythonPhase::Serving(t) if t == term)
    }

    fn attempt(&mut self, attempt: Attempt, now_ms: u64) -> bool {
        let due =
            self.tried.get(&attempt).is_none_or(|at| now_ms.saturating_sub(*at) >= REPROPOSE_MS);
        if due {
            self.tried.insert(attempt, now_ms);
        }
        due
    }
}

impl Attempt {
    fn term(&self) -> Term {
        match self {
            Self::Takeover(term)
            | Self::Abandon(term)
            | Self::Start(term, _)
            | Self::Complete(term, _)
            | Self::Park(term) => *term,
        }
    }

    fn is_for_cell_up_to(&self, last: Seq) -> bool {
        matches!(self, Self::Start(_, seq) | Self::Complete(_, seq) if *seq <= last)
    }
}

#[cfg(test)]
mod tests;
