//! The limits of this kernel's processes, and what becomes of a cell that runs for too long.

use std::time::{Duration, Instant};

use callboard_policy::limits;
use callboard_protocol::control::KernelLimits;

use super::ReplicaState;
use crate::said;

/// Time between the interrupt of a cell that ran for too long and the end of its process.
const INTERRUPT_GRACE: Duration = Duration::from_secs(10);

impl ReplicaState {
    /// The limits in force.
    pub(super) fn limits(&self) -> KernelLimits {
        let confinement = &self.args.context.confinement;
        limits::effective(&self.args.spec.settings.limits, &confinement.most)
    }

    /// Interrupts a cell that runs for too long, then ends its process.
    pub(super) fn watch_wall_time(&mut self) {
        let Some(limit_s) = self.limits().cell_wall_time_max_s else { return };
        let Some(cell) = &mut self.cell else { return };
        let now = Instant::now();
        if let Some(interrupted) = cell.interrupted {
            if now.duration_since(interrupted) > INTERRUPT_GRACE
                && let Some(python) = &self.python
            {
                python.end(format!(
                    "ended, as the cell ran longer than {limit_s} s (limit of this kernel) and did \
                     not stop when it was interrupted"
                ));
            }
            return;
        }
        if now.duration_since(cell.began) < Duration::from_secs(limit_s) {
            return;
        }
        cell.interrupted = Some(now);
        let text = format!(
            "callboard: this cell has run for {limit_s} s, the limit of this kernel \
             (cell_wall_time_max_s), and is interrupted\n"
        );
        let message = said::warning(self.args.spec.kernel, &cell.msg_id, &text);
        self.heard(message);
        if let Some(python) = &self.python {
            python.interrupt();
        }
    }
}
