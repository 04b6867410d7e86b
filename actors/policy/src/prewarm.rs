//! How many started Python processes a node keeps at hand.
//!
//! Little's law gives how many are taken while one is started: the rate at which they are taken
//! times the time one start takes. The rate is the highest seen of late, so that a burst finds as
//! many as the burst before it took; it is forgotten slowly.

use std::{collections::VecDeque, fmt};

/// Takes within so long count as one burst.
const BURST_MS: u64 = 1_000;
/// The highest rate seen is half forgotten after this time.
const RATE_HALF_LIFE_MS: f64 = 300_000.0;
/// How much one start counts towards the mean time of a start.
const START_WEIGHT: f64 = 0.2;
/// A start takes at least this long: the processes of a burst are started at the same time, and
/// share the processors.
const START_MS_MIN: f64 = 1_000.0;
/// So many are started at once: what is refilled must not take the processors from cells.
const STARTING_MAX: usize = 1;
/// Takes remembered at most; more within one burst than any machine starts.
const TAKES_KEPT_MAX: usize = 1_024;

/// Bounds of the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolBounds {
    /// Kept at hand even if none is ever taken.
    pub processes_min: usize,
    /// Never more than this.
    pub processes_max: usize,
    /// Memory to leave to everything else; none is started, and some are given up, below it.
    pub memory_reserve_mib: u64,
}

impl Default for PoolBounds {
    fn default() -> Self {
        Self { processes_min: 4, processes_max: 16, memory_reserve_mib: 1_024 }
    }
}

/// What the pool has, and what the machine has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolView {
    /// Processes at hand.
    pub ready: usize,
    /// Processes that start.
    pub starting: usize,
    /// Memory that could be had without swapping, if it is known.
    pub memory_available_mib: Option<u64>,
}

/// What to do, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// How many should be at hand.
    pub target: usize,
    /// How many to start now.
    pub start: usize,
    /// How many to give up now.
    pub retire: usize,
    /// Why the target is what it is.
    pub reason: Reason,
}

/// Why a target is what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// So many are taken while one is started.
    Demand {
        /// Taken per minute, at the highest of late.
        per_minute: u64,
        /// Time of a start, in milliseconds.
        start_ms: u64,
    },
    /// The demand is below the least number.
    Least,
    /// The demand is above the greatest number.
    Greatest,
    /// The machine is short of memory.
    Memory {
        /// What it has left.
        available_mib: u64,
    },
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Demand { per_minute, start_ms } => {
                write!(f, "{per_minute} taken per minute, {start_ms} ms to start one")
            }
            Self::Least => f.write_str("the least that is kept"),
            Self::Greatest => f.write_str("the most that is kept"),
            Self::Memory { available_mib } => write!(f, "only {available_mib} MiB of memory left"),
        }
    }
}

/// What was seen of demand.
#[derive(Debug, Clone)]
pub struct Prewarm {
    bounds: PoolBounds,
    takes: VecDeque<u64>,
    peak_per_s: f64,
    peak_at_ms: u64,
    start_ms: f64,
}

impl Prewarm {
    /// Nothing was seen yet.
    #[must_use]
    pub fn new(bounds: PoolBounds) -> Self {
        Self { bounds, takes: VecDeque::new(), peak_per_s: 0.0, peak_at_ms: 0, start_ms: 0.0 }
    }

    /// A process was taken, or would have been had there been one. `now_ms` is a monotonic clock.
    pub fn taken(&mut self, now_ms: u64) {
        self.takes.push_back(now_ms);
        while self.takes.len() > TAKES_KEPT_MAX
            || self.takes.front().is_some_and(|at| now_ms.saturating_sub(*at) >= BURST_MS)
        {
            self.takes.pop_front();
        }
        let rate = self.takes.len() as f64 * 1_000.0 / BURST_MS as f64;
        if rate >= self.rate(now_ms) {
            self.peak_per_s = rate;
            self.peak_at_ms = now_ms;
        }
    }

    /// A process was started, and it took so long.
    pub fn started(&mut self, took_ms: u64) {
        let took = took_ms as f64;
        let weight = if self.start_ms == 0.0 { 1.0 } else { START_WEIGHT };
        self.start_ms += weight * (took - self.start_ms);
    }

    /// Taken per second, at the highest of late.
    fn rate(&self, now_ms: u64) -> f64 {
        let since_ms = now_ms.saturating_sub(self.peak_at_ms) as f64;
        self.peak_per_s * 0.5_f64.powf(since_ms / RATE_HALF_LIFE_MS)
    }

    /// What to do now.
    #[must_use]
    pub fn decide(&self, view: PoolView, now_ms: u64) -> Decision {
        let (target, reason) = self.target(view, now_ms);
        let present = view.ready + view.starting;
        let room = STARTING_MAX.saturating_sub(view.starting);
        Decision {
            target,
            start: target.saturating_sub(present).min(room),
            retire: view.ready.saturating_sub(target),
            reason,
        }
    }

    fn target(&self, view: PoolView, now_ms: u64) -> (usize, Reason) {
        let PoolBounds { processes_min, processes_max, memory_reserve_mib } = self.bounds;
        if let Some(available_mib) = view.memory_available_mib
            && available_mib < memory_reserve_mib
        {
            // One at a time: each that goes may be enough.
            return (view.ready.saturating_sub(1), Reason::Memory { available_mib });
        }
        let (rate, start_ms) = (self.rate(now_ms), self.start_ms.max(START_MS_MIN));
        // A little below the whole number counts as below it: the rate decays from the start.
        let demand = (rate * start_ms / 1_000.0 - 0.1).ceil().max(0.0) as usize;
        if demand >= processes_max {
            return (processes_max, Reason::Greatest);
        }
        if demand <= processes_min {
            return (processes_min.min(processes_max), Reason::Least);
        }
        let per_minute = (rate * 60.0).round() as u64;
        (demand, Reason::Demand { per_minute, start_ms: start_ms.round() as u64 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLENTY: Option<u64> = Some(100_000);

    fn view(ready: usize, starting: usize) -> PoolView {
        PoolView { ready, starting, memory_available_mib: PLENTY }
    }

    fn prewarm() -> Prewarm {
        Prewarm::new(PoolBounds { processes_min: 2, processes_max: 12, memory_reserve_mib: 500 })
    }

    #[test]
    fn a_fresh_pool_fills_to_its_least_a_few_at_a_time() {
        let prewarm = prewarm();
        let decision = prewarm.decide(view(0, 0), 0);
        assert_eq!((decision.target, decision.start), (2, STARTING_MAX));
        assert_eq!(prewarm.decide(view(0, STARTING_MAX), 0).start, 0, "it is bounded");
        let full = prewarm.decide(view(2, 0), 0);
        assert_eq!((full.start, full.retire, full.reason), (0, 0, Reason::Least));
    }

    #[test]
    fn a_burst_finds_as_many_as_the_one_before_it_took() {
        let mut prewarm = prewarm();
        (0..8).for_each(|n| prewarm.taken(1_000 + n * 10));
        assert_eq!(prewarm.decide(view(0, 0), 2_000).target, 8);
        assert_eq!(prewarm.decide(view(0, 0), 30_000).target, 8, "it is not forgotten at once");
        (0..30).for_each(|n| prewarm.taken(60_000 + n));
        let most = prewarm.decide(view(0, 0), 61_000);
        assert_eq!((most.target, most.reason), (12, Reason::Greatest));
    }

    #[test]
    fn demand_that_is_gone_is_forgotten_slowly_and_the_surplus_given_up() {
        let mut prewarm = prewarm();
        (0..8).for_each(|_| prewarm.taken(0));
        let later = prewarm.decide(view(8, 0), RATE_HALF_LIFE_MS as u64);
        assert_eq!((later.target, later.retire), (4, 4));
        let targets: Vec<usize> =
            (0..10).map(|n| prewarm.decide(view(0, 0), n * 300_000).target).collect();
        assert!(targets.is_sorted_by(|one, next| one >= next), "{targets:?}");
        assert_eq!(targets.last(), Some(&2));
    }

    #[test]
    fn starts_that_take_long_ask_for_more_at_hand() {
        let mut prewarm = prewarm();
        (0..3).for_each(|_| prewarm.taken(0));
        prewarm.started(3_000);
        let decision = prewarm.decide(view(0, 0), 0);
        assert_eq!(decision.target, 9);
        assert_eq!(decision.reason, Reason::Demand { per_minute: 180, start_ms: 3_000 });
        assert_eq!(decision.reason.to_string(), "180 taken per minute, 3000 ms to start one");
    }

    #[test]
    fn a_machine_short_of_memory_gives_them_up_one_by_one() {
        let mut prewarm = prewarm();
        (0..8).for_each(|_| prewarm.taken(0));
        let short = PoolView { ready: 5, starting: 0, memory_available_mib: Some(499) };
        let decision = prewarm.decide(short, 0);
        assert_eq!((decision.target, decision.start, decision.retire), (4, 0, 1));
        assert_eq!(decision.reason, Reason::Memory { available_mib: 499 });
        let none = prewarm.decide(PoolView { ready: 0, ..short }, 0);
        assert_eq!((none.start, none.retire), (0, 0));
    }

    #[test]
    fn a_pool_of_none_starts_none() {
        let bounds = PoolBounds { processes_min: 0, processes_max: 0, memory_reserve_mib: 0 };
        let mut prewarm = Prewarm::new(bounds);
        prewarm.taken(0);
        assert_eq!(prewarm.decide(view(0, 0), 0).start, 0);
    }
}
