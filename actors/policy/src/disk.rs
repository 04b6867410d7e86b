//! When a disk counts as too full for more work.

/// How far below the mark a disk must fall before it takes work again, in percent: else it would
/// flicker with every file.
pub const HYSTERESIS_PERCENT: u8 = 2;

/// How full a disk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskLevel {
    /// Bytes in use.
    pub used_bytes: u64,
    /// Bytes that this user may still write.
    pub free_bytes: u64,
}

impl DiskLevel {
    /// How full it is, in percent of what this user could use, rounded down.
    #[must_use]
    pub fn used_percent(&self) -> u8 {
        let total = u128::from(self.used_bytes) + u128::from(self.free_bytes);
        let percent = (u128::from(self.used_bytes) * 100).checked_div(total).unwrap_or(100);
        u8::try_from(percent).unwrap_or(100)
    }

    /// Whether it is above the high-water mark, given whether it was a moment ago.
    #[must_use]
    pub fn is_high(&self, was_high: bool, mark_percent: u8) -> bool {
        let mark =
            if was_high { mark_percent.saturating_sub(HYSTERESIS_PERCENT) } else { mark_percent };
        self.used_percent() >= mark
    }

    /// Whether chunks that nobody names are to go as soon as is safe: nothing much is free below the
    /// mark.
    #[must_use]
    pub fn is_tight(&self, mark_percent: u8) -> bool {
        u16::from(self.used_percent()) * 4 >= u16::from(mark_percent) * 3
    }

    /// Whether chunks of `bytes` may be written. They leave alone what is kept in reserve for the log,
    /// also once that was given up: `held_bytes` of `reserve_bytes` are still set aside.
    #[must_use]
    pub fn has_room_for_chunks(&self, bytes: u64, held_bytes: u64, reserve_bytes: u64) -> bool {
        self.free_bytes.saturating_add(held_bytes) >= bytes.saturating_add(reserve_bytes)
    }

    /// Whether the reserve must be given up: what is free does not last.
    #[must_use]
    pub fn needs_reserve(&self, reserve_bytes: u64) -> bool {
        self.free_bytes < reserve_bytes / 4
    }

    /// Whether there is room to set the reserve aside again.
    #[must_use]
    pub fn has_room_for_reserve(&self, reserve_bytes: u64) -> bool {
        self.free_bytes >= reserve_bytes.saturating_mul(2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn level(used_bytes: u64, free_bytes: u64) -> DiskLevel {
        DiskLevel { used_bytes, free_bytes }
    }

    #[test]
    fn a_disk_is_high_at_the_mark_and_stays_so_until_it_is_well_below() {
        assert!(!level(94, 6).is_high(false, 95));
        assert!(level(95, 5).is_high(false, 95));
        assert!(level(94, 6).is_high(true, 95));
        assert!(!level(92, 8).is_high(true, 95));
        assert_eq!(level(0, 0).used_percent(), 100, "a disk without room is full");
    }

    #[test]
    fn a_disk_is_tight_from_three_quarters_of_its_mark() {
        assert!(!level(71, 29).is_tight(95) && level(72, 28).is_tight(95));
    }

    #[test]
    fn chunks_never_take_the_reserve_whether_it_is_held_or_given_up() {
        assert!(level(0, 10).has_room_for_chunks(10, 64, 64));
        assert!(!level(0, 9).has_room_for_chunks(10, 64, 64));
        assert!(!level(0, 64).has_room_for_chunks(1, 0, 64), "the log's alone");
        assert!(level(0, 65).has_room_for_chunks(1, 0, 64));
        assert!(level(0, 1).has_room_for_chunks(1, 0, 0), "without a reserve the disk decides");
    }

    #[test]
    fn the_reserve_is_given_up_late_and_taken_back_with_room_to_spare() {
        assert!(level(0, 24).needs_reserve(100) && !level(0, 25).needs_reserve(100));
        assert!(
            !level(0, 199).has_room_for_reserve(100) && level(0, 200).has_room_for_reserve(100)
        );
    }
}
