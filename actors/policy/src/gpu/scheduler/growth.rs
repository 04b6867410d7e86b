//! By how much the GPUs in use will grow, as far as each session's own history tells.

use std::collections::BTreeMap;

use callboard_protocol::KernelId;

use super::{Phase, Session};
use crate::gpu::{autoscaling::Growth, fleet::Slot, history::Durations};

/// A session that is likely to be back within this time has a claim on where it was.
const CLAIM_MS: u64 = 120_000;

/// From this probability on, a session is expected back.
const LIKELY: f64 = 0.1;

/// What is known of all sessions.
pub(super) struct Known<'a> {
    pub(super) sessions: &'a BTreeMap<KernelId, Session>,
    pub(super) pauses: &'a Durations,
    pub(super) cells: &'a Durations,
    pub(super) gpus_of_a_node: u32,
}

impl Known<'_> {
    /// Each session wants its GPUs, or gives them back, with some probability; sums over all.
    pub(super) fn growth(&self, now_ms: u64, ahead_ms: u64) -> Growth {
        let mut growth = Growth::default();
        for session in self.sessions.values() {
            let Some((probability, sign)) = self.change(session, now_ms, ahead_ms) else {
                continue;
            };
            let gpus = f64::from(session.cell_gpus);
            let mean = sign * probability * gpus;
            let variance = probability * (1.0 - probability) * gpus * gpus;
            growth.mean += mean;
            growth.variance += variance;
            if session.cell_gpus < self.gpus_of_a_node {
                growth.narrow_mean += mean;
                growth.narrow_variance += variance;
            }
        }
        growth
    }

    /// GPUs that idle sessions will want soon where their processes are.
    pub(super) fn claims(&self, now_ms: u64) -> BTreeMap<Slot, f64> {
        let mut claims = BTreeMap::new();
        for session in self.sessions.values() {
            if let (Phase::Idle, Some(slot), true) =
                (session.phase, session.executor, session.has_run)
            {
                let so_far_ms = now_ms - session.since_ms;
                let returns = session.pauses.ends_within(self.pauses, so_far_ms, CLAIM_MS);
                *claims.entry(slot).or_default() += returns * f64::from(session.cell_gpus);
            }
        }
        claims
    }

    /// Idle sessions that are expected back, and the GPUs that each claims where its process is.
    pub(super) fn returning(&self, now_ms: u64) -> Vec<(KernelId, f64)> {
        let claim = |(kernel, session): (&KernelId, &Session)| {
            let is_idle =
                session.phase == Phase::Idle && session.has_run && session.bound.is_none();
            if !is_idle {
                return None;
            }
            let so_far_ms = now_ms - session.since_ms;
            let returns = session.pauses.ends_within(self.pauses, so_far_ms, CLAIM_MS);
            (returns >= LIKELY).then(|| (*kernel, returns * f64::from(session.cell_gpus)))
        };
        self.sessions.iter().filter_map(claim).collect()
    }

    /// With which probability a session changes what is in use, and in which direction.
    fn change(&self, session: &Session, now_ms: u64, ahead_ms: u64) -> Option<(f64, f64)> {
        let so_far_ms = now_ms - session.since_ms;
        let pause =
            |so_far_ms, ahead_ms| session.pauses.ends_within(self.pauses, so_far_ms, ahead_ms);
        match session.phase {
            Phase::Idle if session.bound.is_none() && session.has_run => {
                Some((pause(so_far_ms, ahead_ms), 1.0))
            }
            Phase::Running(_) => {
                let ends = session.cells.ends_within(self.cells, so_far_ms, ahead_ms);
                Some((ends * (1.0 - pause(0, ahead_ms / 2)), -1.0))
            }
            Phase::Clearing(_) => Some((1.0 - pause(0, ahead_ms), -1.0)),
            _ => None,
        }
    }
}
