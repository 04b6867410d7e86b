//! When a supervisor starts a failed child again, after how long, and when it gives up.
//!
//! The rule is OTP's restart intensity: more than `intensity` restarts within `period_ms` and the
//! supervisor fails itself, so that its own supervisor decides.

use std::{collections::VecDeque, fmt};

use serde::{Deserialize, Serialize};

use crate::chance::Chance;

/// Which children are started again when one fails.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// The failed one only.
    #[default]
    OneForOne,
    /// Every child: they cannot work without each other.
    OneForAll,
    /// The failed one and those started after it, which depend on it.
    RestForOne,
}

impl Strategy {
    /// The indices of the children to start again, in starting order, when the one at `failed`
    /// of `count` fails.
    #[must_use]
    pub fn affected(self, failed: usize, count: usize) -> std::ops::Range<usize> {
        match self {
            Self::OneForOne => failed..(failed + 1).min(count),
            Self::OneForAll => 0..count,
            Self::RestForOne => failed..count,
        }
    }
}

/// How many restarts are bearable, and how long to wait before each.
///
/// The delays count towards the period: if the first `intensity` of them add up to more than
/// `period_ms`, the supervisor never gives up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RestartPolicy {
    /// Restarts within `period_ms` that are still bearable; one more escalates. 0: never restart.
    pub intensity: u32,
    /// The period they are counted over, in milliseconds.
    pub period_ms: u64,
    /// Longest delay before the first restart, in milliseconds; doubles with each further one.
    pub backoff_min_ms: u64,
    /// Longest delay before any restart, in milliseconds.
    pub backoff_max_ms: u64,
}

impl Default for RestartPolicy {
    /// Five in ten seconds: a passing fault is ridden out, a permanent one escalates in 2 s.
    fn default() -> Self {
        Self { intensity: 5, period_ms: 10_000, backoff_min_ms: 50, backoff_max_ms: 5_000 }
    }
}

/// What to do about a child that ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RestartDecision {
    /// Start it again.
    Restart {
        /// After this many milliseconds.
        after_ms: u64,
    },
    /// Restarting does not help; fail.
    Escalate {
        /// Why, as a sentence.
        reason: String,
    },
}

impl fmt::Display for RestartDecision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Restart { after_ms } => write!(f, "restart after {after_ms} ms"),
            Self::Escalate { reason } => write!(f, "escalate: {reason}"),
        }
    }
}

/// The restarts a supervisor remembers.
#[derive(Debug, Clone)]
pub struct RestartHistory {
    policy: RestartPolicy,
    recent_ms: VecDeque<u64>,
    chance: Chance,
}

impl RestartHistory {
    /// No restart yet; delays are drawn from a stream that depends on `seed` alone.
    #[must_use]
    pub fn new(policy: RestartPolicy, seed: u64) -> Self {
        Self { policy, recent_ms: VecDeque::new(), chance: Chance::new(seed) }
    }

    /// A child that should run has ended at `now_ms`, on a clock that never goes back.
    pub fn on_exit(&mut self, now_ms: u64) -> RestartDecision {
        let RestartPolicy { intensity, period_ms, .. } = self.policy;
        while self.recent_ms.front().is_some_and(|at| now_ms.saturating_sub(*at) >= period_ms) {
            self.recent_ms.pop_front();
        }
        let recent = u32::try_from(self.recent_ms.len()).unwrap_or(u32::MAX);
        if recent >= intensity {
            return RestartDecision::Escalate {
                reason: format!(
                    "ended again after {recent} restarts within {period_ms} ms; {intensity} are allowed"
                ),
            };
        }
        self.recent_ms.push_back(now_ms);
        RestartDecision::Restart { after_ms: self.backoff_ms(recent) }
    }

    /// Half to all of the doubled delay, so that children that failed together do not return
    /// together.
    fn backoff_ms(&mut self, restarts_before: u32) -> u64 {
        let doubled = 1_u64
            .checked_shl(restarts_before)
            .and_then(|factor| self.policy.backoff_min_ms.checked_mul(factor))
            .unwrap_or(u64::MAX)
            .min(self.policy.backoff_max_ms);
        self.chance.between(doubled / 2, doubled)
    }
}

#[cfg(test)]
mod tests;
