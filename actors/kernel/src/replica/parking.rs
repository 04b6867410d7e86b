//! Tells the notebook that an idle kernel is about to be parked, and that it is: under its last cell,
//! where people look.

use std::time::Duration;

use super::ReplicaState;
use crate::aborted;

/// How long before it is parked a kernel says so, of what part of short idle times, and the shortest
/// idle time with which it does: nobody could read it in less.
const WARN_BEFORE: Duration = Duration::from_secs(60);
const WARN_PART: u32 = 10;
const WARN_FROM: Duration = Duration::from_secs(10);

/// What a replica has said of parking. It remembers that in its sleep.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Notices {
    is_warned: bool,
    is_told: bool,
}

impl Notices {
    /// A cell runs: what is said next is of another idle time.
    pub(super) fn begin_anew(&mut self) {
        *self = Self::default();
    }
}

/// How long before it is parked a kernel says so.
fn warn_before(park_after: Duration) -> Option<Duration> {
    (park_after >= WARN_FROM).then(|| WARN_BEFORE.min(park_after / WARN_PART))
}

impl ReplicaState {
    /// Milliseconds until it has to be awake, to warn of parking or to park the kernel.
    pub(super) fn wakes_in_ms(&self) -> Option<u64> {
        let parks_in = Duration::from_millis(self.parks_in_ms()?);
        let before = warn_before(self.park_after()).filter(|_| !self.notices.is_warned);
        let wakes_in = parks_in.saturating_sub(before.unwrap_or_default());
        u64::try_from(wakes_in.as_millis()).ok()
    }

    /// Says that the kernel will be parked, if that is near.
    pub(super) fn warn_of_parking(&mut self) {
        let Some(before) = warn_before(self.park_after()) else { return };
        let Some(left_ms) = self.parks_in_ms() else { return };
        if Duration::from_millis(left_ms) > before {
            self.notices.is_warned = false;
        } else if !std::mem::replace(&mut self.notices.is_warned, true) {
            self.say_under_the_last_cell(&format!(
                "[callboard] no cell for {}: in {} this kernel's process will be ended, to free its memory. \
                 Its variables are kept; any cell keeps the process.\n",
                minutes(self.park_after() - before),
                minutes(before)
            ));
        }
    }

    fn parks_in_ms(&self) -> Option<u64> {
        self.read(|log| self.executor.parks_in_ms(log, self.now_ms()))
    }

    /// Says that the kernel is parked now, and why.
    pub(super) fn tell_of_parking(&mut self) {
        let idle = self.park_after();
        if idle.is_zero() || std::mem::replace(&mut self.notices.is_told, true) {
            return;
        }
        self.say_under_the_last_cell(&format!(
            "[callboard] parked after {} without a cell: the kernel's process is ended and its memory is \
             free. Its variables are kept; the next cell brings them back.\n",
            minutes(idle)
        ));
    }

    fn park_after(&self) -> Duration {
        let upkeep = self.args.context.upkeep.park_after_ms;
        Duration::from_millis(upkeep.unwrap_or_default())
    }

    fn say_under_the_last_cell(&mut self, text: &str) {
        let last = self.read(|log| log.last_ended().map(str::to_owned));
        if let Some(msg_id) = last {
            self.heard(aborted::said(self.args.spec.kernel, &msg_id, text));
        }
    }
}

/// `90 s`, `5 min`, `12 h`: as people say it.
fn minutes(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..=119 => format!("{seconds} s"),
        seconds @ 120..=7_199 => format!("{} min", seconds / 60),
        seconds => format!("{} h", seconds / 3_600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warning_comes_a_minute_before_and_of_short_times_in_their_last_tenth() {
        let before = |seconds| warn_before(Duration::from_secs(seconds)).map(|it| it.as_secs());
        assert_eq!([1_800, 600, 20, 9, 0].map(before), [Some(60), Some(60), Some(2), None, None]);
    }
}
