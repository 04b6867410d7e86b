//! Opens and closes executor terms, and keeps the Python process in step with them: a replica has
//! one while it executes or is about to, or if standbys are to be hot.

use callboard_protocol::{Incarnation, Seq, Term};

use super::{
    Action, Attempt, Executor, FIRST_START_STAGGER_MS, FIRST_TAKEOVER_STAGGER_MS, PythonPhase,
    START_STAGGER_MS, TAKEOVER_STAGGER_MS,
};
use crate::terms::{Entry, KernelLog};

impl Executor {
    /// Closes the open term if its executor is lost; opens one if none is open.
    pub(super) fn tend_term(&mut self, log: &KernelLog, now_ms: u64, actions: &mut Vec<Action>) {
        let Some(open) = log.open_term() else {
            self.tend_takeover(log, now_ms, actions);
            return;
        };
        self.closed_since_ms = None;
        self.is_wanted = false;
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
            return Some(self.previous_end.clone());
        }
        let left = self.entered == Some(term) && !self.serves(term);
        debug_assert!(self.my_term(log) == Some(term));
        left.then(|| {
            self.python_loss.clone().unwrap_or_else(|| "its Python process is gone".to_owned())
        })
    }

    fn tend_takeover(&mut self, log: &KernelLog, now_ms: u64, actions: &mut Vec<Action>) {
        if self.is_resting(log) {
            self.closed_since_ms = None;
            return;
        }
        self.closed_since_ms.get_or_insert(now_ms);
        let stagger_ms =
            if is_first(log) { FIRST_TAKEOVER_STAGGER_MS } else { TAKEOVER_STAGGER_MS };
        if self.python != PythonPhase::Warm || !self.is_my_turn(now_ms, stagger_ms) {
            return;
        }
        let term = log.last_term().next();
        if self.attempt(Attempt::Takeover(term), now_ms) {
            actions.push(Action::Propose(Entry::Takeover {
                term,
                replica: self.identity.replica,
                incarnation: self.identity.incarnation,
                base: log.completed(),
            }));
        }
    }

    /// Whether this replica may take over now: none before it in line had `stagger_ms` to do so.
    fn is_my_turn(&self, now_ms: u64, stagger_ms: u64) -> bool {
        let Some(since_ms) = self.closed_since_ms else { return false };
        let me = self.identity.replica;
        let Some(place) = self.voters.iter().position(|voter| *voter == me) else { return false };
        let rank = if self.leading { 0 } else { place as u64 + 1 };
        self.base_readable && now_ms.saturating_sub(since_ms) >= rank * stagger_ms
    }

    /// Keeps a fresh Python process at hand where one is needed, and one that served a closed term
    /// out of the way.
    pub(super) fn tend_python(&mut self, log: &KernelLog, now_ms: u64, actions: &mut Vec<Action>) {
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
        self.fit_python(log, now_ms, actions);
    }

    /// Starts a Python process if one is needed, and gives back one that is not.
    fn fit_python(&mut self, log: &KernelLog, now_ms: u64, actions: &mut Vec<Action>) {
        let is_executor = self.my_term(log).is_some();
        let is_hot = self.upkeep.hot_standbys && !self.is_resting(log);
        match self.python {
            PythonPhase::Absent => {
                let stagger_ms =
                    if is_first(log) { FIRST_START_STAGGER_MS } else { START_STAGGER_MS };
                let takes_over = log.open_term().is_none() && self.is_my_turn(now_ms, stagger_ms);
                if is_executor || is_hot || takes_over {
                    self.python = PythonPhase::Starting;
                    actions.push(Action::StartPython);
                }
            }
            PythonPhase::Starting | PythonPhase::Warm => {
                // While no term is open, whoever has one keeps it until somebody took over.
                let is_taken = log.open_term().is_some() || self.is_resting(log);
                if is_taken && !is_executor && !is_hot {
                    self.python = PythonPhase::Absent;
                    actions.push(Action::ReleasePython);
                }
            }
            PythonPhase::Restoring(_) | PythonPhase::Serving(_) => {}
        }
    }

    pub(super) fn leave_term(&mut self) {
        self.entered = None;
        self.python_loss = None;
        self.started_through = Seq::default();
        self.finished.clear();
    }
}

fn is_first(log: &KernelLog) -> bool {
    log.last_term() == Term::default()
}
