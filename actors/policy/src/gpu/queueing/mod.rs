//! In which order waiting cells are looked at when GPUs are free.

mod fair_share;
mod fifo;

use callboard_protocol::KernelId;

pub use fair_share::FairShare;
pub use fifo::Fifo;

/// A cell that waits.
#[derive(Debug, Clone, PartialEq)]
pub struct Waiting {
    /// Of which kernel.
    pub kernel: KernelId,
    /// Whose that is, as a number.
    pub owner: u64,
    /// What it wants.
    pub gpus: u32,
    /// Since when.
    pub since_ms: u64,
    /// The higher, the earlier.
    pub priority: i8,
    /// When its owner wants it to have begun.
    pub deadline_ms: Option<u64>,
}

/// What the order depends on.
pub struct QueueView<'a> {
    /// Now.
    pub now_ms: u64,
    /// GPUs that an owner's cells hold.
    pub held_by: &'a dyn Fn(u64) -> u64,
}

/// Orders waiting cells.
pub trait Queueing {
    /// Sorts them, the first to be served first.
    fn order(&self, view: &QueueView<'_>, waiting: &mut [Waiting]);

    /// Whether the first cell for which there is no room holds up all after it.
    fn is_strict(&self) -> bool {
        false
    }

    /// After which wait a node is kept for a cell, so that narrower ones cannot pass it for ever.
    fn bound_ms(&self) -> Option<u64> {
        None
    }
}
