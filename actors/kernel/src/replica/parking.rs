//! Tells the notebook that an idle kernel is about to be parked, and that it is: under its last cell,
//! where people look.

use std::time::Duration;

use super::ReplicaState;
use crate::said;

/// How long before it is parked a kernel says so, and the shortest idle time with which it does.
const WARN_BEFORE: Duration = Duration::from_secs(60);
const WARN_FROM: Duration = Duration::from_secs(600);

impl ReplicaState {
    /// Says that the kernel will be parked, if that is near.
    pub(super) fn warn_of_parking(&mut self) {
        let (now_ms, executor) = (self.now_ms(), &self.executor);
        let left = self.group.read(|machine| executor.parks_in_ms(machine.log(), now_ms));
        let is_near = left.is_some_and(|left_ms| u128::from(left_ms) <= WARN_BEFORE.as_millis());
        if !is_near {
            self.is_warned_of_parking = false;
        } else if !self.is_warned_of_parking && self.park_after() >= WARN_FROM {
            self.is_warned_of_parking = true;
            self.say_under_the_last_cell(&format!(
                "[callboard] no cell for {}: within a minute this kernel's process will be ended, to \
                 free its memory. Its variables are kept; any cell keeps the process.\n",
                minutes(self.park_after() - WARN_BEFORE)
            ));
        }
    }

    /// Says that the kernel is parked now, and why.
    pub(super) fn tell_of_parking(&mut self) {
        let idle = self.park_after();
        if idle.is_zero() || std::mem::replace(&mut self.is_told_of_parking, true) {
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
            self.heard(said::warning(self.args.spec.kernel, &msg_id, text));
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
