//! A trace that is drawn: sessions like those of a month of a production notebook platform (June
//! 2021, 100,131 tasks), by the distributions that were measured on it.
//!
//! How wide, how many tasks, how long a task and a pause: each is drawn from its measured
//! distribution. Tasks of one session are alike: their ranks share a part (a Gaussian copula), which
//! leaves the distribution over all tasks as it was measured. [`Fit`] says how close a drawn trace is.

use serde::Serialize;

use crate::{
    chance::Stream,
    trace::{MINUTE_MS, Task, Trace},
};

/// Points of a distribution: a value, and the part that is not above it.
type Ecdf = &'static [(f64, f64)];

const DURATIONS_1: Ecdf = &[
    (1.0, 0.1922),
    (2.0, 0.5612),
    (5.0, 0.8226),
    (10.0, 0.9174),
    (30.0, 0.976),
    (60.0, 0.9858),
    (240.0, 0.9966),
];
const DURATIONS_4: Ecdf = &[
    (1.0, 0.202),
    (2.0, 0.4298),
    (5.0, 0.6593),
    (10.0, 0.7832),
    (30.0, 0.9076),
    (60.0, 0.9489),
    (240.0, 0.9901),
];
const DURATIONS_8: Ecdf = &[
    (1.0, 0.2563),
    (2.0, 0.5209),
    (5.0, 0.7477),
    (10.0, 0.8329),
    (30.0, 0.9388),
    (60.0, 0.9688),
    (240.0, 0.9891),
];
/// What is left of those over four hours, whatever the width.
const LONGER: Ecdf = &[
    (480.0, 0.522),
    (720.0, 0.367),
    (1_440.0, 0.189),
    (2_880.0, 0.089),
    (10_080.0, 0.011),
    (43_200.0, 0.0),
];
const PAUSES: Ecdf = &[
    (0.0, 0.2631),
    (1.0, 0.6044),
    (2.0, 0.7347),
    (3.0, 0.8083),
    (4.0, 0.8531),
    (5.0, 0.8794),
    (6.0, 0.899),
    (8.0, 0.9209),
    (10.0, 0.9349),
    (15.0, 0.9515),
    (20.0, 0.9588),
    (30.0, 0.9668),
    (60.0, 0.9759),
    (120.0, 0.9818),
    (240.0, 0.9859),
    (480.0, 0.9892),
    (1_440.0, 0.9946),
    (4_320.0, 0.9973),
    (10_080.0, 0.9988),
    (20_160.0, 1.0),
];
const TASKS: Ecdf = &[
    (1.0, 0.05),
    (2.0, 0.1),
    (9.0, 0.25),
    (56.0, 0.5),
    (253.0, 0.75),
    (904.0, 0.9),
    (1_358.0, 0.95),
    (2_974.0, 0.99),
    (4_000.0, 1.0),
];
/// GPUs of sessions, and the part of the sessions up to there.
const WIDTHS: [(u32, f64); 3] = [(1, 0.40), (4, 0.67), (8, 1.0)];
/// This part of the sessions is there from the beginning.
const PRESENT: f64 = 0.25;
const PRESENT_WITHIN_MIN: u64 = 2_000;
/// How much of a task's rank is its session's.
const ALIKE: f64 = 0.4;

/// How close a drawn trace is to what was measured: the largest difference between the two
/// distributions (Kolmogorov–Smirnov), taken at the measured points.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Fit {
    /// Of durations of 1-GPU tasks.
    pub duration_1: f64,
    /// Of 4-GPU tasks.
    pub duration_4: f64,
    /// Of 8-GPU tasks.
    pub duration_8: f64,
    /// Of pauses.
    pub pause: f64,
    /// Of tasks in a session.
    pub tasks: f64,
    /// Tasks that run at once, on average; 45.7 were measured on 450 sessions of 30 days.
    pub running_mean: f64,
}

/// Draws a trace of so many sessions.
#[must_use]
pub fn draw(sessions: u32, days: u64, seed: u64) -> (Trace, Fit) {
    let mut stream = Stream::new(seed, 3);
    let horizon_min = days.max(1) * 24 * 60;
    let mut seen = Seen::default();
    let mut all = Vec::new();
    for session in 0..u64::from(sessions) {
        let part = stream.part();
        let gpus = WIDTHS.iter().find(|it| part < it.1).map_or(8, |it| it.0);
        let count = inverse(TASKS, stream.part()).max(1.0) as u64;
        let own = stream.normal();
        let (mut at_min, mut tasks) = (0, Vec::new());
        for _ in 0..count {
            if at_min >= horizon_min {
                break;
            }
            let rank = stream.rank_like(own, ALIKE);
            let duration_min = inverse(&durations(gpus), rank).max(1.0) as u64;
            let pause_min = inverse(PAUSES, stream.part()) as u64;
            seen.note(gpus, duration_min, pause_min);
            tasks.push((at_min, duration_min));
            at_min += duration_min + pause_min;
        }
        seen.tasks.push(count as f64);
        // A session that fits is not cut off.
        let is_present = stream.part() < PRESENT;
        let within_min = if is_present { 0 } else { horizon_min.saturating_sub(at_min) };
        let first_min = stream.below(within_min.max(PRESENT_WITHIN_MIN.min(horizon_min)));
        let tasks: Vec<Task> = tasks
            .into_iter()
            .map(|(at_min, duration_min)| Task {
                submit_ms: (first_min + at_min) * MINUTE_MS,
                duration_ms: duration_min * MINUTE_MS,
                gpus,
            })
            .filter(|it| it.submit_ms < horizon_min * MINUTE_MS)
            .collect();
        seen.ran_min += tasks
            .iter()
            .map(|it| it.duration_ms.min(horizon_min * MINUTE_MS - it.submit_ms))
            .sum::<u64>()
            / MINUTE_MS;
        all.push((session, tasks));
    }
    let fit = seen.fit(horizon_min);
    (Trace::of(all, horizon_min * MINUTE_MS), fit)
}

/// Durations of tasks of a width.
fn durations(gpus: u32) -> Vec<(f64, f64)> {
    let short = match gpus {
        1 => DURATIONS_1,
        4 => DURATIONS_4,
        _ => DURATIONS_8,
    };
    let over = 1.0 - short.last().map_or(1.0, |it| it.1);
    let longer = LONGER.iter().map(|(value, left)| (*value, 1.0 - over * left));
    short.iter().copied().chain(longer).collect()
}

/// The value at a rank. Between two points that are more than 1 apart it lies on a line over the
/// logarithm; values are floored to whole ones, as those that were measured.
fn inverse(ecdf: &[(f64, f64)], rank: f64) -> f64 {
    let after = ecdf.partition_point(|(_, part)| *part < rank);
    let Some((high, high_part)) = ecdf.get(after).or(ecdf.last()).copied() else { return 0.0 };
    let Some((low, low_part)) = after.checked_sub(1).and_then(|it| ecdf.get(it)).copied() else {
        return high;
    };
    let along = ((rank - low_part) / (high_part - low_part).max(f64::EPSILON)).clamp(0.0, 1.0);
    // From just above `low` to just below the value after `high`.
    let (from, to) = ((low + 1.0).ln(), (high + 1.0).ln());
    (from + along * (to - from)).exp().floor().min(high)
}

#[derive(Default)]
struct Seen {
    durations: [Vec<f64>; 3],
    pauses: Vec<f64>,
    tasks: Vec<f64>,
    ran_min: u64,
}

impl Seen {
    fn note(&mut self, gpus: u32, duration_min: u64, pause_min: u64) {
        let class = WIDTHS.iter().position(|it| it.0 == gpus).unwrap_or(2);
        self.durations[class].push(duration_min as f64);
        self.pauses.push(pause_min as f64);
    }

    fn fit(&self, horizon_min: u64) -> Fit {
        Fit {
            duration_1: distance(&durations(1), &self.durations[0]),
            duration_4: distance(&durations(4), &self.durations[1]),
            duration_8: distance(&durations(8), &self.durations[2]),
            pause: distance(PAUSES, &self.pauses),
            tasks: distance(TASKS, &self.tasks),
            running_mean: self.ran_min as f64 / horizon_min as f64,
        }
    }
}

/// The largest difference at the points of `ecdf`.
fn distance(ecdf: &[(f64, f64)], drawn: &[f64]) -> f64 {
    if drawn.is_empty() {
        return f64::NAN;
    }
    let below =
        |value: f64| drawn.iter().filter(|it| **it <= value).count() as f64 / drawn.len() as f64;
    ecdf.iter().map(|(value, part)| (below(*value) - part).abs()).fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drawn_month_is_as_the_measured_one_within_five_hundredths() {
        let (trace, fit) = draw(450, 30, 1);
        println!("seed 1: {} tasks, {fit:?}", trace.tasks);
        let worst = [fit.duration_1, fit.duration_4, fit.duration_8, fit.pause];
        assert!(worst.into_iter().all(|it| it < 0.05), "{fit:?}");
        assert!(fit.tasks < 0.05, "{fit:?}");
    }

    #[test]
    fn the_same_seed_draws_the_same_trace() {
        let list = |seed| draw(20, 3, seed).0.sessions;
        assert_eq!(list(7), list(7));
        assert_ne!(list(7), list(8));
    }
}
