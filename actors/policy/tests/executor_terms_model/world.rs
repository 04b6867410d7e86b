//! Replicas, the log they agree on, the proposals under way, and what an observer saw.
//!
//! Proposals stay under way until they can change nothing any more: each may be committed late,
//! out of order, several times or never, which is loss, duplication, delay and reordering at
//! once, and a changing Raft leader besides. A replica applies what is committed when it is
//! scheduled to, which is a pause of any length.

mod lag;

use std::{
    collections::BTreeSet,
    hash::{Hash, Hasher},
    sync::Arc,
};

use bytes::Bytes;
use callboard_policy::terms::{
    Action, Applied, Entry, Executor, Identity, Input, KernelLog, PythonPhase, Request, Upkeep,
    invariants::{
        BaseRestored, CellFacts, EndTold, Ending, Facts, RewindSeen, StartSeen, TermOpened,
    },
};
use callboard_protocol::{
    Incarnation, ReplicaId, Seq, Term,
    kernel::{CellEnd, CellState, Level},
};

use super::{
    model::TermsModel,
    proposal::{MSG_IDS, Proposal, cell_of, delta, state_of},
    rules::Rules,
};

pub(crate) const REPLICAS: usize = 3;
/// Late enough that everything tried at 0 is due again.
const DUE_MS: u64 = 5_000;
/// Late enough that a request that arrived at `DUE_MS` is forgotten.
const FORGOTTEN_MS: u64 = 100_000;

/// How closely replicas are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Grain {
    /// An executor that does not know yet that its term was closed goes on in any interleaving
    /// with the terms that follow.
    Fine,
    /// It does all it may still do as soon as its term is closed, and learns of it then. It can
    /// put nothing in the log any more, and what else it does (starts, answers) is on record for
    /// ever, so doing all of it at once breaks whatever doing some of it later would break.
    Coarse,
}

/// A Python process that was given a base.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct Python {
    /// The cells that changed the variable.
    changed_by: Vec<usize>,
    running: Option<(Term, Seq, usize)>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Replica {
    pub(crate) identity: Identity,
    pub(crate) applied: usize,
    pub(crate) executor: Executor,
    pub(crate) python: Python,
}

impl Replica {
    fn new(identity: Identity) -> Self {
        Self { identity, applied: 0, executor: Executor::new(identity), python: Python::default() }
    }

    pub(crate) fn running(&self) -> Option<(Term, Seq, usize)> {
        self.python.running
    }
}

#[derive(Debug, Clone)]
pub(crate) struct World {
    rules: Rules,
    grain: Grain,
    upkeep: Upkeep,
    /// Committed entries from the oldest one a replica may have to apply again.
    pub(crate) entries: Vec<Proposal>,
    /// The log before `entries` (at 0) and after each of them.
    logs: Vec<Arc<KernelLog>>,
    applied: Vec<Arc<Applied>>,
    pub(crate) under_way: BTreeSet<Proposal>,
    pub(crate) replicas: Vec<Replica>,
    pub(crate) faults_left: u8,
    /// How many replicas ever executed: they do so in the order of their ids, since any run can
    /// be renamed to one in which they do.
    takers: u64,
    /// Rewinds that users may still ask for.
    pub(crate) rewinds_left: u8,
    /// The committed state at the opening of each term.
    due: Vec<Vec<usize>>,
    /// The committed state after each step of the history, the start first.
    states: Vec<Vec<usize>>,
    pub(crate) facts: Facts,
}

impl PartialEq for World {
    fn eq(&self, other: &Self) -> bool {
        self.logs[0] == other.logs[0]
            && self.entries == other.entries
            && self.under_way == other.under_way
            && self.replicas == other.replicas
            && self.faults_left == other.faults_left
            && self.takers == other.takers
            && self.rewinds_left == other.rewinds_left
            && self.due == other.due
            && self.states == other.states
            && self.facts == other.facts
    }
}

impl Eq for World {}

impl Hash for World {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.logs[0].hash(hasher);
        self.entries.hash(hasher);
        self.under_way.hash(hasher);
        self.replicas.hash(hasher);
        self.faults_left.hash(hasher);
        self.takers.hash(hasher);
        self.rewinds_left.hash(hasher);
        self.due.hash(hasher);
        self.states.hash(hasher);
        self.facts.hash(hasher);
    }
}

impl World {
    pub(crate) fn new(model: &TermsModel, levels: [Level; 2]) -> Self {
        let identity = |id| Identity { replica: ReplicaId(id), incarnation: Incarnation(1) };
        let mut world = Self {
            rules: model.rules,
            grain: model.grain,
            upkeep: model.upkeep,
            entries: Vec::new(),
            logs: vec![Arc::default()],
            applied: Vec::new(),
            under_way: BTreeSet::new(),
            replicas: (1..=REPLICAS as u64).map(|id| Replica::new(identity(id))).collect(),
            faults_left: model.faults,
            takers: 0,
            rewinds_left: 0,
            due: Vec::new(),
            states: vec![Vec::new()],
            facts: Facts {
                cells: levels.into_iter().map(CellFacts::new).collect(),
                ..Facts::default()
            },
        };
        for index in 0..REPLICAS {
            world.begin_life(index);
            world.input(index, Input::PythonWarm);
        }
        world
    }

    pub(crate) fn head(&self) -> &KernelLog {
        &self.logs[self.entries.len()]
    }

    pub(crate) fn log_of(&self, index: usize) -> Arc<KernelLog> {
        Arc::clone(&self.logs[self.replicas[index].applied])
    }

    /// Whether committing a proposal now would change the log, in the canonical order of cells
    /// and replicas.
    pub(crate) fn can_commit(&self, proposal: &Proposal) -> bool {
        let head = self.head();
        match proposal {
            Proposal::Accept { cell, .. } => {
                *cell == 0 || self.facts.cells[*cell - 1].seq.is_some()
            }
            Proposal::Takeover { replica, term, base, .. } => {
                replica.0 <= self.takers + 1
                    && head.open_term().is_none()
                    && *term == head.last_term().next()
                    && *base == head.completed()
            }
            Proposal::Complete { term, seq, .. } => head
                .pending()
                .front()
                .is_some_and(|cell| cell.seq == *seq && cell.grant == Some(*term)),
            Proposal::Rewind { at, .. } => head.pending().is_empty() && *at == head.position(),
            Proposal::Start { .. } | Proposal::Abandon { .. } => true,
            Proposal::Park { term } => {
                head.open_term().is_some_and(|open| open.term == *term) && head.pending().is_empty()
            }
        }
    }

    pub(crate) fn commit(&mut self, proposal: Proposal) {
        let was = Arc::clone(&self.logs[self.entries.len()]);
        self.entries.push(proposal);
        let (log, applied) = self.rules.apply(&was, &self.entries);
        if let Applied::Opened(term) = applied {
            self.facts.openings.push(TermOpened {
                term,
                previous: was.last_term(),
                previous_open: was.open_term().is_some(),
            });
            self.takers = self.takers.max(log.last_executor().map_or(0, |replica| replica.0));
            self.due.push(self.facts.state.clone());
        }
        if let (Applied::Rewound { .. }, Some(Proposal::Rewind { to, .. })) =
            (&applied, self.entries.last())
        {
            self.facts.rewinds.push(RewindSeen {
                given: state_of(&log),
                due: self.states[*to as usize].clone(),
                had_pending: !was.pending().is_empty(),
            });
            self.note_undone(*to as usize);
        }
        self.observe(&log);
        while (self.states.len() as u64) <= log.position() {
            self.states.push(self.facts.state.clone());
        }
        self.under_way.retain(|proposal| !proposal.is_spent(&log));
        self.logs.push(Arc::new(log));
        self.applied.push(Arc::new(applied));
    }

    /// What was there before a rewind and is not at its target was taken back.
    fn note_undone(&mut self, to: usize) {
        let due = &self.states[to];
        let seen: BTreeSet<usize> =
            self.facts.undone.iter().chain(&self.facts.state).copied().collect();
        self.facts.undone = seen.into_iter().filter(|cell| !due.contains(cell)).collect();
    }

    /// A user wants an earlier state back.
    pub(crate) fn ask_for_rewind(&mut self, to: u64) {
        self.under_way.insert(Proposal::Rewind { at: self.head().position(), to });
    }

    fn observe(&mut self, log: &KernelLog) {
        for (cell, msg_id) in self.facts.cells.iter_mut().zip(MSG_IDS) {
            let Some((seq, _, end)) = log.request(msg_id) else { continue };
            cell.seq = Some(seq);
            cell.is_pending = log.pending().iter().any(|pending| pending.seq == seq);
            if let Some(end) = end {
                let end = (Ending::from(&end.outcome), end.term);
                if !cell.ends.contains(&end) {
                    cell.ends.push(end);
                }
            }
        }
        self.facts.state = state_of(log);
    }

    /// A replica dies with its Python process and comes back with an older log.
    pub(crate) fn restart(&mut self, index: usize) {
        let identity = self.replicas[index].identity;
        let incarnation = identity.incarnation.next();
        self.replicas[index] = Replica::new(Identity { incarnation, ..identity });
        self.begin_life(index);
        self.input(index, Input::PythonWarm);
    }

    fn begin_life(&mut self, index: usize) {
        let voters = (1..=REPLICAS as u64).map(ReplicaId).collect();
        // Who leads changes at will: each replica does whatever a leader would, all the time.
        let upkeep = Input::Upkeep(self.upkeep);
        for input in
            [upkeep, Input::Leading(true), Input::Voters(voters), Input::BaseReadable(true)]
        {
            self.step(index, input, DUE_MS);
        }
        self.settle(index);
    }

    /// A replica believes that the executor of its open term is lost.
    pub(crate) fn suspect(&mut self, index: usize) {
        let Some(open) = self.log_of(index).open_term() else { return };
        let suspects = [(open.replica, "silent".to_owned())].into();
        self.step(index, Input::Suspects(suspects), DUE_MS);
        self.step(index, Input::Suspects(Default::default()), DUE_MS);
    }

    pub(crate) fn finish(&mut self, index: usize) {
        let Some((term, seq, cell)) = self.replicas[index].python.running.take() else { return };
        let python = &mut self.replicas[index].python;
        python.changed_by.push(cell);
        let delta = delta(&python.changed_by, seq);
        self.input(index, Input::Finished { term, seq, outputs: Vec::new(), delta });
    }

    pub(crate) fn restored(&mut self, index: usize) {
        if let PythonPhase::Restoring(term) = self.replicas[index].executor.python() {
            self.input(index, Input::Restored(term));
        }
    }

    pub(crate) fn kill_python(&mut self, index: usize) {
        self.replicas[index].python = Python::default();
        self.input(index, Input::PythonExited("killed".to_owned()));
    }

    pub(crate) fn input(&mut self, index: usize, input: Input) {
        self.step(index, input, DUE_MS);
        self.settle(index);
    }

    /// What a replica would do sooner or later, done at once: it hears all requests again, tries
    /// everything again, suspects an executor that is gone, and forgets the requests. All of it
    /// only adds proposals that need not be committed, and answers.
    fn settle(&mut self, index: usize) {
        for (cell, msg_id) in MSG_IDS.into_iter().enumerate() {
            if self.is_request_idle(index, cell) {
                continue;
            }
            let request = Request {
                msg_id: msg_id.to_owned(),
                hash: [cell as u8; 32],
                level: self.facts.cells[cell].level,
                frame: Bytes::new(),
                horizon: None,
            };
            self.step(index, Input::Requested(request), DUE_MS);
        }
        if self.executor_is_gone(index) {
            self.suspect(index);
        }
        self.step(index, Input::Tick, FORGOTTEN_MS);
    }

    /// Whether hearing a request again leads to nothing but what was proposed or told already.
    fn is_request_idle(&self, index: usize, cell: usize) -> bool {
        let log = self.log_of(index);
        let level = self.facts.cells[cell].level;
        match log.request(MSG_IDS[cell]) {
            None => {
                self.is_standby(index)
                    && self.under_way.contains(&Proposal::Accept { cell, level, grant: None })
            }
            Some((_, _, None)) => true,
            Some((_, _, Some(end))) => {
                let ending = Ending::from(&end.outcome);
                self.facts.cells[cell].told.contains(&EndTold { ending, was_applied: true })
            }
        }
    }

    fn executor_is_gone(&self, index: usize) -> bool {
        self.log_of(index).open_term().is_some_and(|open| {
            self.replicas.iter().any(|replica| {
                replica.identity.replica == open.replica
                    && replica.identity.incarnation > open.incarnation
            })
        })
    }

    /// Tells those who know the open term that its executor is gone.
    pub(crate) fn suspect_the_gone(&mut self) {
        for index in 0..REPLICAS {
            if self.executor_is_gone(index) {
                self.suspect(index);
            }
        }
    }

    fn step(&mut self, index: usize, input: Input, now_ms: u64) {
        let log = self.log_of(index);
        let replica = &mut self.replicas[index];
        let actions = replica.executor.step(&log, input, now_ms);
        replica.executor.make_due();
        for action in actions {
            self.perform(index, &log, action);
        }
    }

    fn perform(&mut self, index: usize, log: &KernelLog, action: Action) {
        match action {
            Action::Propose(entry) => self.propose(log, &entry),
            Action::Answer { answer, .. } => {
                let accepted =
                    answer.unwrap_or_else(|fault| panic!("no request is bad: {fault:?}"));
                if let CellState::Ended(end) = accepted.state {
                    self.tell(log, &end);
                }
            }
            Action::StartPython | Action::KillPython | Action::ReleasePython => {
                self.replicas[index].python = Python::default();
            }
            Action::Restore(term) => {
                let given = state_of(log);
                self.replicas[index].python.changed_by.clone_from(&given);
                let due = self.due[term.0 as usize - 1].clone();
                self.facts.bases.push(BaseRestored { term, given, due });
            }
            Action::Run { term, cell } => {
                let Identity { replica, incarnation } = self.replicas[index].identity;
                let which = cell_of(&cell.msg_id);
                let start = StartSeen { term, replica, incarnation };
                self.facts.cells[which].starts.push(start);
                let python = &mut self.replicas[index].python;
                assert!(python.running.is_none(), "one cell at a time");
                python.running = Some((term, cell.seq, which));
            }
            Action::PublishEnded(end) => self.tell(log, &end),
        }
    }

    fn propose(&mut self, log: &KernelLog, entry: &Entry) {
        let proposal = Proposal::of(entry);
        if self.rules == Rules::ReplyBeforeApply
            && let Entry::Complete { seq, .. } = entry
            && let Some(cell) = log.pending().iter().find(|cell| cell.seq == *seq)
        {
            self.told(cell_of(&cell.msg_id), Ending::Completed, false);
        }
        if !proposal.is_spent(self.head()) {
            self.under_way.insert(proposal);
        }
    }

    fn tell(&mut self, log: &KernelLog, end: &CellEnd) {
        let ending = Ending::from(&end.outcome);
        let was_applied = log
            .request(&end.msg_id)
            .and_then(|(_, _, known)| known)
            .is_some_and(|known| Ending::from(&known.outcome) == ending);
        self.told(cell_of(&end.msg_id), ending, was_applied);
    }

    fn told(&mut self, cell: usize, ending: Ending, was_applied: bool) {
        let told = &mut self.facts.cells[cell].told;
        let end = EndTold { ending, was_applied };
        if !told.contains(&end) {
            told.push(end);
            told.sort();
        }
    }

    /// Drops what was seen in the last move only.
    pub(crate) fn begin_move(&mut self) {
        self.facts.openings.clear();
        self.facts.bases.clear();
        self.facts.rewinds.clear();
    }
}
