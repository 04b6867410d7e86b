//! How long a session's cells and its pauses last, learned from what it did.
//!
//! Each is a histogram with bins of equal ratio whose counts fade, so that a session costs the same
//! however long it lives. What few observations cannot tell is taken from those of all sessions.

use serde::{Deserialize, Serialize};

/// Bins; each is as wide as all before it times `2^(1/2) − 1`.
const BINS: usize = 42;
/// Where the first bin ends.
const FIRST_MS: f64 = 1_000.0;
/// What is left of a count after one more observation.
const KEPT: f64 = 0.98;
/// As many observations of its own weigh as much as those of all sessions together.
const PRIOR_WEIGHT: f64 = 4.0;

/// Durations, fading.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Durations {
    counts: Vec<f64>,
    sum: f64,
}

impl Default for Durations {
    fn default() -> Self {
        Self { counts: vec![0.0; BINS], sum: 0.0 }
    }
}

/// The bin a time falls into, and how far into it, as a part of 1.
fn place(ms: u64) -> (usize, f64) {
    let at = ms as f64 / FIRST_MS;
    if at <= 1.0 {
        return (0, at);
    }
    let octaves = at.log2() * 2.0;
    let bin = octaves.floor();
    ((bin as usize + 1).min(BINS - 1), octaves - bin)
}

impl Durations {
    /// One more.
    pub fn note(&mut self, ms: u64, kept: f64) {
        for count in &mut self.counts {
            *count *= kept;
        }
        self.counts[place(ms).0] += 1.0;
        self.sum = self.sum * kept + 1.0;
    }

    /// One more, of a session.
    pub fn note_own(&mut self, ms: u64) {
        self.note(ms, KEPT);
    }

    /// How many last longer than this, as a count.
    fn longer_than(&self, ms: u64) -> f64 {
        let (bin, within) = place(ms);
        let rest: f64 = self.counts[bin + 1..].iter().sum();
        rest + self.counts[bin] * (1.0 - within)
    }

    /// The probability that what has lasted `so_far_ms` ends within `ahead_ms`; what all sessions do
    /// stands in where this one has shown little. 0 if nothing is known.
    #[must_use]
    pub fn ends_within(&self, all: &Self, so_far_ms: u64, ahead_ms: u64) -> f64 {
        let then_ms = so_far_ms.saturating_add(ahead_ms);
        let (own_now, own_then) = (self.longer_than(so_far_ms), self.longer_than(then_ms));
        let (all_now, all_then) = (all.longer_than(so_far_ms), all.longer_than(then_ms));
        let scale = if all_now > 0.0 { PRIOR_WEIGHT / all.sum.max(all_now) } else { 0.0 };
        let lasting = own_now + scale * all_now;
        if lasting <= f64::EPSILON {
            return 0.0;
        }
        (1.0 - (own_then + scale * all_then) / lasting).clamp(0.0, 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_always_lasts_a_minute_ends_in_the_next_minute_and_not_in_the_next_second() {
        let (mut own, all) = (Durations::default(), Durations::default());
        (0..100).for_each(|_| own.note_own(60_000));
        assert!(own.ends_within(&all, 0, 1_000) < 0.01);
        assert!(own.ends_within(&all, 0, 120_000) > 0.99);
        assert!(own.ends_within(&all, 200_000, 1_000) < f64::EPSILON);
    }

    #[test]
    fn a_session_that_showed_nothing_is_taken_for_the_others() {
        let (own, mut all) = (Durations::default(), Durations::default());
        (0..100).for_each(|_| all.note(3_000, 1.0));
        assert!(own.ends_within(&all, 0, 10_000) > 0.99);
        assert!(own.ends_within(&Durations::default(), 0, 10_000) < f64::EPSILON);
    }

    #[test]
    fn bins_are_in_order_and_none_is_missed() {
        let places: Vec<_> = (0..20_000_000_u64).step_by(97).map(|ms| place(ms).0).collect();
        assert!(places.is_sorted());
        assert!(places.windows(2).all(|it| it[1] - it[0] <= 1));
        assert_eq!(place(u64::MAX).0, BINS - 1);
    }
}
