//! One replica's local machine: what it proposes and does, given what it saw.
//!
//! Everything safety rests on is read from the log at the moment of the decision; what is kept
//! here besides is what this life of the replica did (which term it entered, which cells it
//! started) and when something was last tried.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use callboard_protocol::{
    Fault, FaultCode, Incarnation, ReplicaId, Seq, Term,
    kernel::{Accepted, CellEnd, CellOutcome, CellState, Level},
};

use super::{
    KernelLog,
    entry::{Applied, Entry, Hash, LoggedOutput, StateDelta},
    log::PendingCell,
};

/// A request the executor did not order within this time is ordered by the leader.
const ACCEPT_GRACE_MS: u64 = 300;
/// Replicas that do not lead leave the leader this much time, times their rank, to take over.
const TAKEOVER_STAGGER_MS: u64 = 300;
/// A proposal nothing was heard of is made again; applying it twice changes nothing.
const REPROPOSE_MS: u64 = 1_000;
/// A request nobody ordered is forgotten; its sender resends.
const REQUEST_KEPT_MS: u64 = 10_000;
/// Requests remembered at once before they are ordered.
const REQUESTS_KEPT_MAX: usize = 1_000;

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
    /// A fresh Python process is ready.
    PythonWarm,
    /// The Python process ended by itself: not told of one that a [`Action::KillPython`] ended.
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
}

/// One replica's local machine.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Executor {
    identity: Identity,
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
}

impl Executor {
    /// A replica that has just started its life.
    #[must_use]
    pub fn new(identity: Identity) -> Self {
        Self {
            identity,
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
        }
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
        self.tend_python(log, &mut actions);
        self.tend_cells(log, now_ms, &mut actions);
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

    fn requested(
        &mut self,
        log: &KernelLog,
        request: Request,
        now_ms: u64,
        actions: &mut Vec<Action>,
    ) {
        let known_hash = log.request(&request.msg_id).map(|(_, hash, _)| *hash);
        let waiting = self.waiting.get_mut(&request.msg_id);
        let waiting_hash = waiting.as_ref().map(|waiting| waiting.request.hash);
        if known_hash.or(waiting_hash).is_some_and(|hash| hash != request.hash) {
            actions.push(Action::Answer {
                answer: Err(refusal(&Applied::Conflict, &request.msg_id)),
                msg_id: request.msg_id,
            });
            return;
        }
        if let Some(waiting) = waiting {
            // A resent request keeps its place: those of one client are ordered as first sent.
            waiting.since_ms = now_ms;
            return;
        }
        if self.waiting.len() >= REQUESTS_KEPT_MAX {
            return;
        }
        self.arrivals.push_back(request.msg_id.clone());
        self.waiting.insert(request.msg_id.clone(), Waiting { request, since_ms: now_ms });
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
            Applied::Closed { interrupted, .. } if self.leading => {
                actions.extend(interrupted.into_iter().map(Action::PublishEnded));
            }
            _ => {}
        }
    }

    fn refused(&mut self, msg_id: String, applied: &Applied, actions: &mut Vec<Action>) {
        self.forget_request(&msg_id);
        let answer = Err(refusal(applied, &msg_id));
        actions.push(Action::Answer { msg_id, answer });
    }

    fn python_exited(&mut self, how: String) {
        self.python_loss = self.entered.map(|_| how);
        self.python = PythonPhase::Absent;
    }

    fn finished(
        &mut self,
        log: &KernelLog,
        term: Term,
        seq: Seq,
        (outputs, delta): (Vec<LoggedOutput>, StateDelta),
        actions: &mut Vec<Action>,
    ) {
        if self.my_term(log) != Some(term) || !self.serves(term) {
            return;
        }
        let Some(cell) = log.pending().iter().find(|cell| cell.seq == seq) else { return };
        let (level, msg_id) = (cell.level, cell.msg_id.clone());
        if level == Level::Received {
            let last_output = outputs.last().map(|output| output.place.cursor);
            let outcome = CellOutcome::Completed;
            actions.push(Action::PublishEnded(CellEnd { seq, msg_id, term, outcome, last_output }));
        }
        self.finished.push_back(FinishedCell { seq, level, outputs, delta });
    }

    fn forget_request(&mut self, msg_id: &str) {
        self.waiting.remove(msg_id);
        self.accepts.remove(msg_id);
        self.arrivals.retain(|arrived| arrived != msg_id);
    }

    /// Answers requests that have their place in the log by now.
    fn answer_ordered(&mut self, log: &KernelLog, actions: &mut Vec<Action>) {
        let ordered: Vec<String> =
            self.arrivals.iter().filter(|msg_id| log.request(msg_id).is_some()).cloned().collect();
        for msg_id in ordered {
            let proposed_here = self.accepts.contains_key(&msg_id);
            let waited_hash = self.waiting.get(&msg_id).map(|waiting| waiting.request.hash);
            self.forget_request(&msg_id);
            let Some((seq, hash, end)) = log.request(&msg_id) else { continue };
            if proposed_here || self.leading || self.my_term(log).is_some() {
                let state = end.map_or(CellState::Pending, |end| CellState::Ended(end.clone()));
                // The place may have gone to another request that came under the same id.
                let answer = if waited_hash.is_some_and(|waited| waited != *hash) {
                    Err(refusal(&Applied::Conflict, &msg_id))
                } else {
                    Ok(Accepted { seq, state })
                };
                actions.push(Action::Answer { msg_id, answer });
            }
        }
    }

    /// Gives waiting requests their place: the executor does, or the leader where it does not.
    fn propose_waiting(&mut self, log: &KernelLog, now_ms: u64, actions: &mut Vec<Action>) {
        let stale: Vec<String> = self
            .waiting
            .iter()
            .filter(|(_, waiting)| now_ms.saturating_sub(waiting.since_ms) > REQUEST_KEPT_MS)
            .map(|(msg_id, _)| msg_id.clone())
            .collect();
        for msg_id in stale {
            self.forget_request(&msg_id);
        }
        let grant = self.my_term(log).filter(|term| self.serves(*term));
        let executor_may_answer =
            log.open_term().is_some_and(|open| !self.suspects.contains_key(&open.replica));
        for msg_id in &self.arrivals {
            let Some(waiting) = self.waiting.get(msg_id) else { continue };
            let waited_ms = now_ms.saturating_sub(waiting.since_ms);
            let is_my_turn = grant.is_some()
                || (self.leading && (!executor_may_answer || waited_ms >= ACCEPT_GRACE_MS));
            let tried = self.accepts.get(msg_id);
            if !is_my_turn || tried.is_some_and(|at| now_ms.saturating_sub(*at) < REPROPOSE_MS) {
                continue;
            }
            self.accepts.insert(msg_id.clone(), now_ms);
            let request = waiting.request.clone();
            actions.push(Action::Propose(Entry::Accept {
                msg_id: request.msg_id,
                hash: request.hash,
                level: request.level,
                request: request.frame,
                horizon: request.horizon,
                grant,
            }));
        }
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

    /// Closes the open term if its executor is lost; opens one if none is open.
    fn tend_term(&mut self, log: &KernelLog, now_ms: u64, actions: &mut Vec<Action>) {
        let Some(open) = log.open_term() else {
            self.tend_takeover(log, now_ms, actions);
            return;
        };
        self.closed_since_ms = None;
        let cause = if open.replica == self.identity.replica {
            self.own_loss(log, open.term, open.incarnation)
        } else if self.leading {
            self.suspects.get(&open.replica).cloned()
        } else {
            None
        };
        if let Some(cause) = cause
            && self.attempt(Attempt::Abandon(open.term), now_ms)
        {
            actions.push(Action::Propose(Entry::Abandon { term: open.term, cause }));
        }
    }

    /// Why this replica has to give up a term that bears its name.
    fn own_loss(&self, log: &KernelLog, term: Term, incarnation: Incarnation) -> Option<String> {
        if incarnation != self.identity.incarnation {
            return Some("its executor was restarted".to_owned());
        }
        let left = self.entered == Some(term) && !self.serves(term);
        debug_assert!(self.my_term(log) == Some(term));
        left.then(|| {
            self.python_loss.clone().unwrap_or_else(|| "its Python process is gone".to_owned())
        })
    }

    fn tend_takeover(&mut self, log: &KernelLog, now_ms: u64, actions: &mut Vec<Action>) {
        let since_ms = *self.closed_since_ms.get_or_insert(now_ms);
        let me = self.identity.replica;
        let Some(place) = self.voters.iter().position(|voter| *voter == me) else { return };
        if self.python != PythonPhase::Warm || !self.base_readable {
            return;
        }
        let rank = if self.leading { 0 } else { place as u64 + 1 };
        if now_ms.saturating_sub(since_ms) < rank * TAKEOVER_STAGGER_MS {
            return;
        }
        let term = log.last_term().next();
        if self.attempt(Attempt::Takeover(term), now_ms) {
            actions.push(Action::Propose(Entry::Takeover {
                term,
                replica: me,
                incarnation: self.identity.incarnation,
                base: log.completed(),
            }));
        }
    }

    /// Keeps a fresh Python process at hand, and one that served a closed term out of the way.
    fn tend_python(&mut self, log: &KernelLog, actions: &mut Vec<Action>) {
        let mine = self.my_term(log);
        if let PythonPhase::Restoring(term) | PythonPhase::Serving(term) = self.python
            && mine != Some(term)
        {
            actions.push(Action::KillPython);
            self.python = PythonPhase::Absent;
        }
        if self.entered.is_some() && self.entered != mine {
            self.leave_term();
        }
        if self.python == PythonPhase::Warm
            && let Some(term) = mine
            && self.entered != Some(term)
        {
            self.leave_term();
            self.entered = Some(term);
            self.started_through = log.completed();
            self.tried.retain(|attempt, _| attempt.term() >= term);
            self.python = PythonPhase::Restoring(term);
            actions.push(Action::Restore(term));
        }
        if self.python == PythonPhase::Absent {
            self.python = PythonPhase::Starting;
            actions.push(Action::StartPython);
        }
    }

    fn leave_term(&mut self) {
        self.entered = None;
        self.python_loss = None;
        self.started_through = Seq::default();
        self.finished.clear();
    }

    /// Starts the next cell that may be started, and puts finished ones in the log.
    fn tend_cells(&mut self, log: &KernelLog, now_ms: u64, actions: &mut Vec<Action>) {
        let Some(term) = self.my_term(log) else { return };
        if self.python != PythonPhase::Serving(term) {
            return;
        }
        self.propose_finished(term, now_ms, actions);
        for cell in log.pending() {
            if cell.seq <= self.started_through {
                let is_finished = self.finished.iter().any(|done| done.seq == cell.seq);
                if is_finished && cell.level == Level::Received {
                    continue;
                }
                return;
            }
            if cell.grant == Some(term) {
                self.started_through = cell.seq;
                actions.push(Action::Run { term, cell: cell.clone() });
            } else if self.attempt(Attempt::Start(term, cell.seq), now_ms) {
                actions.push(Action::Propose(Entry::Start { term, seq: cell.seq }));
            }
            return;
        }
    }

    fn propose_finished(&mut self, term: Term, now_ms: u64, actions: &mut Vec<Action>) {
        for index in 0..self.finished.len() {
            let seq = self.finished[index].seq;
            if self.attempt(Attempt::Complete(term, seq), now_ms) {
                let FinishedCell { outputs, delta, .. } = self.finished[index].clone();
                actions.push(Action::Propose(Entry::Complete { term, seq, outputs, delta }));
            }
        }
    }
}

impl Attempt {
    fn term(&self) -> Term {
        match self {
            Self::Takeover(term)
            | Self::Abandon(term)
            | Self::Start(term, _)
            | Self::Complete(term, _) => *term,
        }
    }

    fn is_for_cell_up_to(&self, last: Seq) -> bool {
        matches!(self, Self::Start(_, seq) | Self::Complete(_, seq) if *seq <= last)
    }
}

fn refusal(applied: &Applied, msg_id: &str) -> Fault {
    match applied {
        Applied::Conflict => Fault::new(
            FaultCode::Conflict,
            format!(
                "the message id '{msg_id}' was used before for another request: send this one \
                 under a fresh id"
            ),
        ),
        Applied::Expired => Fault::maybe_executed(
            FaultCode::Conflict,
            format!(
                "the request '{msg_id}' is older than what the kernel remembers and may have been \
                 executed: look at the outputs before you run it again under a fresh id"
            ),
        ),
        Applied::QueueFull => Fault::new(
            FaultCode::Exhausted,
            "too many cells wait in this kernel: interrupt it, or wait until some have run",
        ),
        _ => Fault::new(FaultCode::Internal, "the kernel did not take the request"),
    }
}

#[cfg(test)]
mod tests;
