//! How far replicas lag behind the log, and which lag makes a difference.

use callboard_policy::terms::{Input, PythonPhase};

use super::{DUE_MS, Grain, REPLICAS, Replica, World};
use crate::{proposal::Proposal, rules::Rules};

impl World {
    /// Whether it matters that a replica fails: it executes or may be about to. Of another one
    /// that starts again nothing changes but the number of its life.
    pub(crate) fn is_involved(&self, index: usize) -> bool {
        let me = self.replicas[index].identity;
        !self.is_standby(index)
            || self.takes_over_next(index)
            || self.under_way.iter().any(|proposal| {
                matches!(
                    proposal,
                    Proposal::Takeover { replica, incarnation, .. }
                        if (*replica, *incarnation) == (me.replica, me.incarnation)
                )
            })
    }

    /// How many entries a replica may apply next in one go: up to the end of the open term as it
    /// knows it. Behind that it is a standby.
    pub(crate) fn lag(&self, index: usize) -> usize {
        let behind = &self.entries[self.replicas[index].applied..];
        let open = self.log_of(index).open_term().map(|open| open.term);
        let closing = |entry: &Proposal| match entry {
            Proposal::Abandon { term } | Proposal::Park { term } => {
                open.is_none_or(|open| open == *term)
            }
            Proposal::Rewind { .. } => true,
            _ => false,
        };
        behind.iter().position(closing).map_or(behind.len(), |last| last + 1)
    }

    /// A replica applies the next `count` entries at once, then hears of each.
    pub(crate) fn catch_up(&mut self, index: usize, count: usize) {
        let from = self.replicas[index].applied;
        self.replicas[index].applied += count;
        for at in from..from + count {
            let applied = (*self.applied[at]).clone();
            self.step(index, Input::Applied(applied), DUE_MS);
        }
        if self.is_standby(index) {
            self.step(index, Input::PythonWarm, DUE_MS);
        }
        self.settle(index);
    }

    /// A standby catches up at once, as far as it stays one: that it lags changes nothing but when
    /// it proposes, and what it proposes on an old log comes to nothing. It stops before it
    /// becomes the executor; from there on when it learns what is part of the model.
    fn absorb(&mut self, index: usize) {
        let mut is_behind = false;
        while self.is_standby(index) && !self.takes_over_next(index) {
            let at = self.replicas[index].applied;
            let Some(applied) = self.applied.get(at).map(|applied| (**applied).clone()) else {
                break;
            };
            self.replicas[index].applied += 1;
            self.step(index, Input::Applied(applied), DUE_MS);
            is_behind = true;
        }
        if is_behind {
            self.settle(index);
        }
    }

    /// The executor of a closed term does all it can before it learns of the end.
    fn run_out(&mut self, index: usize) {
        let is_open =
            |world: &Self, term| world.head().open_term().is_some_and(|open| open.term == term);
        loop {
            if self.takes_over_next(index) {
                match self.entries[self.replicas[index].applied] {
                    Proposal::Takeover { term, .. } if !is_open(self, term) => {
                        self.catch_up(index, 1);
                    }
                    _ => return,
                }
            }
            let open = self.log_of(index).open_term();
            match open {
                Some(open) if !self.is_standby(index) && !is_open(self, open.term) => {}
                _ => return,
            }
            self.restored(index);
            while self.replicas[index].running().is_some() {
                self.finish(index);
            }
            self.catch_up(index, 1);
        }
    }

    pub(super) fn is_standby(&self, index: usize) -> bool {
        let replica = &self.replicas[index];
        let serves = matches!(
            replica.executor.python(),
            PythonPhase::Restoring(_) | PythonPhase::Serving(_)
        );
        let is_mine = self.log_of(index).open_term().is_some_and(|open| {
            open.replica == replica.identity.replica
                && open.incarnation == replica.identity.incarnation
        });
        !serves && !is_mine
    }

    fn takes_over_next(&self, index: usize) -> bool {
        let Replica { identity, applied, .. } = &self.replicas[index];
        matches!(
            self.entries.get(*applied),
            Some(Proposal::Takeover { replica, incarnation, .. })
                if (*replica, *incarnation) == (identity.replica, identity.incarnation)
        )
    }

    /// Lets standbys catch up, and drops entries that all have applied.
    pub(crate) fn end_move(&mut self) {
        for index in 0..REPLICAS {
            if self.grain == Grain::Coarse {
                self.run_out(index);
            }
            self.absorb(index);
        }
        if self.rules == Rules::FirstClaimWins {
            return;
        }
        let oldest = self.replicas.iter().map(|replica| replica.applied).min().unwrap_or_default();
        self.entries.drain(..oldest);
        self.logs.drain(..oldest);
        self.applied.drain(..oldest);
        for replica in &mut self.replicas {
            replica.applied -= oldest;
        }
    }
}
