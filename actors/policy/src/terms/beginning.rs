//! A log that does not begin empty: with what a member of an earlier group of the kernel had, or
//! with the state of another kernel.
//!
//! It comes through the log itself, in pieces that fit into messages, so that every later member
//! learns it like everything else.

use bytes::{Bytes, BytesMut};
use callboard_protocol::{Term, history::SeedEnd};
use serde::{Deserialize, Serialize};

use super::{
    KernelLog,
    entry::{Applied, StateGroup},
};

/// What a log began with, or is about to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct Beginning {
    /// What it began with, for people; none while it has not, or if it began empty.
    from: Option<String>,
    /// What it has been given of an earlier log so far.
    pieces: Vec<Bytes>,
    /// How many groups it has been given of a state, while more are to come.
    groups: Option<u64>,
}

impl Beginning {
    /// Whether some of it is there and some is not: no cell may run.
    pub(super) fn is_under_way(&self) -> bool {
        self.is_adopting() || self.groups.is_some()
    }

    /// Whether an earlier log is about to become this one, with everything it has accepted.
    pub(super) fn is_adopting(&self) -> bool {
        !self.pieces.is_empty()
    }

    fn held(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.len() as u64).sum()
    }
}

impl KernelLog {
    /// What the log began with, if it did not begin empty, for people.
    #[must_use]
    pub fn begun_from(&self) -> Option<&str> {
        self.beginning.from.as_deref()
    }

    /// Bytes held of what the log is about to begin with.
    #[must_use]
    pub fn bytes_held(&self) -> u64 {
        self.beginning.held()
    }

    /// Groups held of the state the log is about to begin with.
    #[must_use]
    pub fn groups_held(&self) -> u64 {
        self.beginning.groups.unwrap_or(0)
    }

    /// Takes the next groups of a state; the last ones make it the present one. Cells that were
    /// accepted meanwhile wait for it.
    pub(super) fn seed(
        &mut self,
        skip: u64,
        groups: Vec<(String, StateGroup)>,
        end: Option<SeedEnd>,
    ) -> Applied {
        let has_run = self.last_term() > Term::default();
        if has_run || self.beginning.from.is_some() || self.beginning.is_adopting() {
            return Applied::Ignored;
        }
        let held = self.groups_held();
        if skip != held {
            return Applied::Holding(held);
        }
        let held = held + groups.len() as u64;
        self.manifest.extend(groups);
        let Some(end) = end else {
            self.beginning.groups = Some(held);
            return Applied::Holding(held);
        };
        self.refused = end.refused;
        self.execution_count = end.execution_count;
        self.beginning = Beginning { from: Some(end.from), ..Beginning::default() };
        Applied::Begun
    }

    /// Whether nothing was ever put into the log but what it is to begin with.
    fn is_unused(&self) -> bool {
        let mut unused = Self::default();
        unused.beginning = self.beginning.clone();
        self.beginning.from.is_none() && *self == unused
    }

    /// Takes the next piece of an earlier log; the last one makes that log this one. A term that
    /// was open there is closed: its executor is of a group that is over.
    pub(super) fn adopt(
        &mut self,
        offset: u64,
        bytes: Bytes,
        total: u64,
        cause: String,
    ) -> Applied {
        if !self.is_unused() {
            return Applied::Ignored;
        }
        if offset != self.beginning.held() || bytes.is_empty() {
            return Applied::Holding(self.beginning.held());
        }
        self.beginning.pieces.push(bytes);
        let held = self.beginning.held();
        if held < total {
            return Applied::Holding(held);
        }
        let mut whole = BytesMut::new();
        for piece in std::mem::take(&mut self.beginning.pieces) {
            whole.extend_from_slice(&piece);
        }
        let Ok(log) = rmp_serde::from_slice::<Self>(&whole) else {
            // Pieces of two different logs: it is begun again.
            return Applied::Holding(0);
        };
        *self = log;
        self.beginning = Beginning { from: Some(cause.clone()), ..Beginning::default() };
        match self.open_term() {
            Some(open) => self.abandon(open.term, cause),
            None => {
                self.last_loss = Some(cause);
                Applied::Begun
            }
        }
    }
}

#[cfg(test)]
mod tests;
