//! Whether something grows: one number from many samples.

/// A value at a time, in seconds since the run began.
pub type Point = (f64, f64);

/// Fewest samples in a window from which a median is taken.
const SAMPLES_MIN: usize = 3;

/// How much the median of the last third of a run is above that of its second sixth, in percent. The
/// first sixth is warm-up. `None` if there are too few samples, or nothing to grow from.
#[must_use]
pub fn growth_percent(points: &[Point], length_s: f64) -> Option<f64> {
    let early = median(points, length_s / 6.0, length_s / 3.0)?;
    let late = median(points, length_s * 2.0 / 3.0, length_s)?;
    (early > 0.0).then(|| (late / early - 1.0) * 100.0)
}

fn median(points: &[Point], from_s: f64, to_s: f64) -> Option<f64> {
    let within = points.iter().filter(|(at, _)| (from_s..=to_s).contains(at));
    let mut values: Vec<f64> = within.map(|(_, value)| *value).collect();
    values.sort_by(f64::total_cmp);
    if values.len() < SAMPLES_MIN {
        return None;
    }
    let middle = values.len() / 2;
    Some(match values.len() % 2 {
        1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    })
}

#[cfg(test)]
mod tests {
    use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

    use super::*;

    const LENGTH_S: f64 = 1800.0;

    /// Samples every five seconds of a value that jumps up and down by up to `noise` of itself,
    /// and every now and then drops, as that of a cluster whose nodes are killed.
    fn run(value: impl Fn(f64) -> f64, noise: f64) -> Vec<Point> {
        let mut rng = StdRng::seed_from_u64(5);
        let mut points = Vec::new();
        for n in 0..=(LENGTH_S as usize / 5) {
            let at = n as f64 * 5.0;
            let drop = if rng.random_ratio(1, 10) { 0.6 } else { 1.0 };
            points.push((at, value(at) * drop * (1.0 + rng.random_range(-noise..noise))));
        }
        points
    }

    #[test]
    fn a_level_that_is_reached_in_the_warm_up_is_flat_however_noisy() {
        let warm = |at: f64| 400.0 * (1.0 - (-at / 60.0).exp());
        let growth = growth_percent(&run(warm, 0.2), LENGTH_S).unwrap();
        assert!(growth.abs() < 5.0, "{growth}");
    }

    #[test]
    fn a_planted_leak_of_a_hundredth_a_minute_shows() {
        let leak = |at: f64| 400.0 * (1.0 + 0.01 * at / 60.0);
        let growth = growth_percent(&run(leak, 0.1), LENGTH_S).unwrap();
        assert!(growth > 10.0, "{growth}");
    }

    #[test]
    fn what_shrinks_is_below_zero_and_too_little_says_nothing() {
        let growth = growth_percent(&run(|at| 400.0 - at / 10.0, 0.01), LENGTH_S).unwrap();
        assert!(growth < -20.0, "{growth}");
        assert_eq!(growth_percent(&[(300.0, 1.0), (1500.0, 1.0)], LENGTH_S), None);
        assert_eq!(growth_percent(&run(|_| 0.0, 0.1), LENGTH_S), None);
    }
}
