//! The time of day as Jupyter headers write it.

use std::time::{SystemTime, UNIX_EPOCH};

use chrono::{DateTime, SecondsFormat, Utc};

/// `time` in ISO 8601, UTC, with microseconds, such as `2025-01-31T12:00:00.000000Z`. A time before
/// 1970 counts as 1970, one that the calendar does not reach as its last moment.
#[must_use]
pub fn iso8601(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
    let date = DateTime::from_timestamp(seconds, since.subsec_nanos());
    date.unwrap_or(DateTime::<Utc>::MAX_UTC).to_rfc3339_opts(SecondsFormat::Micros, true)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_date_has_six_digits_of_a_second_and_a_z() {
        // Jupyter Server fails at a date without a fraction, and at nanoseconds.
        let at = |micros| iso8601(UNIX_EPOCH + Duration::from_micros(micros));
        assert_eq!(at(0), "1970-01-01T00:00:00.000000Z");
        assert!(iso8601(UNIX_EPOCH + Duration::from_millis(u64::MAX)).ends_with('Z'));
        assert_eq!(at(1_709_164_799_000_001), "2024-02-28T23:59:59.000001Z");
    }
}
