//! Whether a replica's machine may be left alone for as long as nobody asks anything.

use super::{Executor, PythonPhase};
use crate::terms::KernelLog;

impl Executor {
    /// What it still has to do, for people; `None` if nothing, as long as nothing happens.
    #[must_use]
    pub fn unrest(&self, log: &KernelLog) -> Option<&'static str> {
        if !log.pending().is_empty() || !self.finished.is_empty() {
            return Some("a cell waits or runs");
        }
        if !self.waiting.is_empty() {
            return Some("a request waits for its place");
        }
        let open = log.open_term();
        if open.is_none() && !self.is_resting(log) {
            return Some("an executor is about to take over");
        }
        match self.python {
            PythonPhase::Starting => Some("its Python process is starting"),
            PythonPhase::Restoring(_) => Some("its Python process is being given the state"),
            _ if open.is_some_and(|open| open.replica == self.identity.replica)
                && !self.my_term(log).is_some_and(|term| self.serves(term)) =>
            {
                Some("its executor term is about to be closed")
            }
            PythonPhase::Absent | PythonPhase::Warm | PythonPhase::Serving(_) => None,
        }
    }

    /// Milliseconds until it wants to park the kernel, if it executes and means to: it has to be
    /// awake then.
    #[must_use]
    pub fn parks_in_ms(&self, log: &KernelLog, now_ms: u64) -> Option<u64> {
        let park_after_ms = self.upkeep.park_after_ms?;
        let term = self.my_term(log)?;
        let needs_process = !self.upkeep.parks_with_refused && !log.refused().is_empty();
        let idle_ms = now_ms.saturating_sub(self.idle_since_ms?);
        (self.serves(term) && !needs_process).then(|| park_after_ms.saturating_sub(idle_ms))
    }
}
