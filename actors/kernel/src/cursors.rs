//! How far front-ends have seen the outputs of kernels, for those that come back.
//!
//! Every replica of a kernel hears it and keeps it in memory only: it is worth no write to the log,
//! and is lost only with all of them. A session nobody knows of gets what comes from then on.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
};

use callboard_protocol::{KernelId, kernel::SessionPlace};

/// Sessions remembered per kernel; the one that was silent for longest goes first.
const SESSIONS_MAX: usize = 64;
/// Longest name of a session, in bytes.
const SESSION_LENGTH_MAX: usize = 256;

type Sessions = VecDeque<(String, SessionPlace)>;

/// How far the sessions of the kernels on a node are.
#[derive(Debug, Default)]
pub struct Cursors {
    kernels: Mutex<HashMap<KernelId, Sessions>>,
}

impl Cursors {
    pub(crate) fn note(&self, kernel: KernelId, session: String, place: SessionPlace) {
        if session.len() > SESSION_LENGTH_MAX {
            return;
        }
        let mut kernels = self.kernels();
        let sessions = kernels.entry(kernel).or_default();
        sessions.retain(|(known, _)| *known != session);
        sessions.push_back((session, place));
        if sessions.len() > SESSIONS_MAX {
            sessions.pop_front();
        }
    }

    pub(crate) fn of(&self, kernel: KernelId, session: &str) -> Option<SessionPlace> {
        let kernels = self.kernels();
        let mut sessions = kernels.get(&kernel)?.iter();
        sessions.find(|(known, _)| known == session).map(|(_, place)| *place)
    }

    /// Forgets the sessions of a kernel that has no member here any more.
    pub fn forget(&self, kernel: KernelId) {
        self.kernels().remove(&kernel);
    }

    fn kernels(&self) -> MutexGuard<'_, HashMap<KernelId, Sessions>> {
        self.kernels.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use callboard_protocol::{Term, kernel::OutputCursor};

    use super::*;

    #[test]
    fn the_session_that_was_silent_for_longest_is_forgotten_first() {
        let (cursors, kernel) = (Cursors::default(), KernelId::generate());
        let place = |number| {
            let cursor = OutputCursor { term: Term(1), number };
            SessionPlace { cursor, replay_from: cursor }
        };
        cursors.note(kernel, "first".to_owned(), place(1));
        for number in 0..SESSIONS_MAX as u64 - 1 {
            cursors.note(kernel, format!("s{number}"), place(number));
        }
        cursors.note(kernel, "first".to_owned(), place(2));
        cursors.note(kernel, "last".to_owned(), place(3));
        assert_eq!(cursors.of(kernel, "first"), Some(place(2)));
        assert_eq!(cursors.of(kernel, "s0"), None);
        assert_eq!(cursors.of(KernelId::generate(), "first"), None);
    }
}
