//! The random stream that policies draw from: seeded by the caller, the same everywhere.

/// A SplitMix64 stream (Steele, Lea and Flood, "Fast splittable pseudorandom number generators",
/// OOPSLA 2014). Good enough to spread load and delays; not for secrets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Chance(u64);

impl Chance {
    /// A stream that depends on `seed` alone.
    #[must_use]
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub(crate) fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        bits ^ (bits >> 31)
    }

    /// A value in `low..=high`; `low` if the range is empty.
    pub(crate) fn between(&mut self, low: u64, high: u64) -> u64 {
        let span = high.saturating_sub(low).saturating_add(1);
        low.saturating_add(self.next_u64() % span)
    }
}
