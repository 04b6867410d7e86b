//! Random numbers of a simulation: the same seed gives the same ones everywhere.

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution as _, Normal, StandardNormal};

/// One stream for one purpose.
#[derive(Debug, Clone)]
pub(crate) struct Stream(ChaCha8Rng);

impl Stream {
    /// Depends on the seed and the purpose alone.
    pub(crate) fn new(seed: u64, purpose: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(purpose);
        Self(rng)
    }

    /// Normal, never below 0.
    pub(crate) fn normal_ms(&mut self, mean_ms: u64, deviation_ms: u64) -> u64 {
        match Normal::new(mean_ms as f64, deviation_ms as f64) {
            Ok(normal) => normal.sample(&mut self.0).max(0.0) as u64,
            Err(_) => mean_ms,
        }
    }

    /// One of a list that is not empty.
    pub(crate) fn one_of<T: Copy + Default>(&mut self, list: &[T]) -> T {
        let at = self.0.random_range(0..list.len().max(1));
        list.get(at).copied().unwrap_or_default()
    }

    /// Below `end`, or 0.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        if end == 0 { 0 } else { self.0.random_range(0..end) }
    }

    /// In 0..1.
    pub(crate) fn part(&mut self) -> f64 {
        self.0.random()
    }
}

impl Stream {
    /// Normal, of mean 0 and deviation 1.
    pub(crate) fn normal(&mut self) -> f64 {
        StandardNormal.sample(&mut self.0)
    }

    /// A rank in 0..1 whose normal score shares `alike` of its deviation with `own`; over all values
    /// of `own` it is uniform.
    pub(crate) fn rank_like(&mut self, own: f64, alike: f64) -> f64 {
        let score = alike * own + (1.0 - alike * alike).sqrt() * self.normal();
        normal_rank(score)
    }
}

/// The normal distribution function.
fn normal_rank(score: f64) -> f64 {
    libm::erfc(-score / std::f64::consts::SQRT_2) / 2.0
}
