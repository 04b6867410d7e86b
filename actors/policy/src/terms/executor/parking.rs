//! A kernel that nobody uses gives its Python process back and rests until it is asked for.

use super::{Action, Attempt, Executor, PythonPhase};
use crate::terms::{Entry, KernelLog};

impl Executor {
    /// Somebody asked for something that is no cell: a kernel that rests wakes up, another one
    /// counts as used.
    pub(super) fn wanted(&mut self, log: &KernelLog) {
        self.is_wanted = log.open_term().is_none();
        self.idle_since_ms = None;
    }

    /// Whether nobody is to take over until there is something to do.
    #[must_use]
    pub fn is_resting(&self, log: &KernelLog) -> bool {
        let is_new = log.last_term() == callboard_protocol::Term::default();
        let is_parked = log.is_parked() || (is_new && self.upkeep.starts_parked);
        let is_asked = self.is_wanted || !log.pending().is_empty();
        log.open_term().is_none() && is_parked && !is_asked
    }

    /// Gives up this replica's term in order once no cell came for long enough.
    pub(super) fn tend_parking(&mut self, log: &KernelLog, now_ms: u64, actions: &mut Vec<Action>) {
        let Some(park_after_ms) = self.upkeep.park_after_ms else { return };
        let term = self.my_term(log).filter(|term| self.python == PythonPhase::Serving(*term));
        let is_idle = log.pending().is_empty() && self.arrivals.is_empty();
        let Some(term) = term.filter(|_| is_idle) else {
            self.idle_since_ms = None;
            return;
        };
        let needs_process = !self.upkeep.parks_with_refused && !log.refused().is_empty();
        let is_due = park_after_ms == 0
            || now_ms.saturating_sub(*self.idle_since_ms.get_or_insert(now_ms)) >= park_after_ms;
        if is_due && !needs_process && self.attempt(Attempt::Park(term), now_ms) {
            actions.push(Action::Propose(Entry::Park { term }));
        }
    }
}
