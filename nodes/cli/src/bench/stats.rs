//! Medians and percentiles of measured times.

/// Measured values, in order of size.
#[derive(Debug, Clone, Default)]
pub struct Samples(Vec<f64>);

impl Samples {
    /// Sorts the values.
    #[must_use]
    pub fn new(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        Self(values)
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The value below which `percent` of a hundred lie, interpolated linearly between neighbours;
    /// not a number if there are none.
    #[must_use]
    pub fn percentile(&self, percent: f64) -> f64 {
        let Some(last) = self.0.len().checked_sub(1) else { return f64::NAN };
        let place = percent.clamp(0.0, 100.0) / 100.0 * last as f64;
        let (below, above) = (self.0[place.floor() as usize], self.0[place.ceil() as usize]);
        below + (above - below) * place.fract()
    }

    /// The middle value.
    #[must_use]
    pub fn median(&self) -> f64 {
        self.percentile(50.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_lie_between_neighbours() {
        let samples = Samples::new(vec![40.0, 10.0, 20.0, 30.0]);
        assert_eq!(samples.median(), 25.0);
        assert_eq!((samples.percentile(0.0), samples.percentile(100.0)), (10.0, 40.0));
        assert!((samples.percentile(95.0) - 38.5).abs() < 1e-9);
    }

    #[test]
    fn one_value_is_every_percentile_and_none_is_not_a_number() {
        let one = Samples::new(vec![3.0]);
        assert_eq!((one.percentile(5.0), one.median(), one.percentile(99.0)), (3.0, 3.0, 3.0));
        assert!(Samples::default().median().is_nan());
    }
}
