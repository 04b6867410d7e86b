//! First come, first served.

use super::{QueueView, Queueing, Waiting};

/// In order of arrival.
#[derive(Debug, Clone, Copy, Default)]
pub struct Fifo {
    /// A cell for which there is no room holds up those behind it.
    pub is_strict: bool,
}

impl Queueing for Fifo {
    fn order(&self, _view: &QueueView<'_>, waiting: &mut [Waiting]) {
        waiting.sort_by_key(|it| (it.since_ms, it.kernel));
    }

    fn is_strict(&self) -> bool {
        self.is_strict
    }
}
