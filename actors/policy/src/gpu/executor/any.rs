//! Where sessions have no members: any node that has the GPUs, the one with the most to spare first.

use super::{CellWant, Choice, ExecutorChoice};
use crate::gpu::{
    costs::Start,
    decision::{Reasons, Refusal},
    fleet::Fleet,
};

/// Any node, in a container.
#[derive(Debug, Clone, Copy)]
pub struct AnyNode {
    /// How a cell starts in it.
    pub start: Start,
    /// Fills nodes up instead of spreading cells.
    pub is_tight: bool,
}

impl ExecutorChoice for AnyNode {
    fn choose(&self, fleet: &Fleet, want: &CellWant) -> Choice {
        let mut reasons = Reasons::on(fleet.version());
        let fitting = fleet.count_fitting(want.gpus, want.vram_mib);
        let open = fleet.count_open(want.vram_mib);
        reasons.refuse(Refusal::Closed, fleet.len() - open);
        reasons.refuse(Refusal::TooFewFree, open - fitting);
        let slot = if self.is_tight {
            fleet.tightest(want.gpus, want.vram_mib).next()
        } else {
            let fits = |slot: &_| fleet.get(*slot).is_some_and(|node| node.free >= want.gpus);
            fleet.least_loaded(want.vram_mib).into_iter().flatten().next().filter(fits)
        };
        Choice { chosen: slot.map(|slot| (slot, self.start)), reasons }
    }
}
