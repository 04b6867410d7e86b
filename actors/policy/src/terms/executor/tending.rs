//! Opens and closes executor terms, and keeps the Python process in step with them.

use callboard_protocol::{Incarnation, Seq, Term};

use super::{
    Action, Attempt, Executor, FIRST_TAKEOVER_STAGGER_MS, PythonPhase, TAKEOVER_STAGGER_MS,
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

    pub(super) fn tend_takeover(
        &mut self,
        log: &KernelLog,
        now_ms: u64,
        actions: &mut Vec<Action>,
    ) {
        let since_ms = *self.closed_since_ms.get_or_insert(now_ms);
        let me = self.identity.replica;
        let Some(place) = self.voters.iter().position(|voter| *voter == me) else { return };
        if self.python != PythonPhase::Warm || !self.base_readable {
            return;
        }
        let rank = if self.leading { 0 } else { place as u64 + 1 };
        let is_first = log.last_term() == Term::default();
        let stagger_ms = if is_first { FIRST_TAKEOVER_STAGGER_MS } else { TAKEOVER_STAGGER_MS };
        if now_ms.saturating_sub(since_ms) < rank * stagger_ms {
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
    pub(super) fn tend_python(&mut self, log: &KernelLog, actions: &mut Vec<Action>) {
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

    pub(super) fn leave_term(&mut self) {
        self.entered = None;
        self.python_loss = None;
        self.started_through = Seq::default();
        self.finished.clear();
    }
}
