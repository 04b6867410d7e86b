//! Ours: the session runs as a guest on the node that is filled best by it; its members stay.
//!
//! The bytes come from a member, so the target costs the same wherever it is; what differs is what is
//! left of it: an 8-GPU cell needs a whole node, and a node that is nearly full is the right one for
//! a narrow cell.

use super::{MigrationChoice, Move};
use crate::gpu::{
    decision::{RUNNERS_UP_MAX, Ranked, Reasons, Refusal},
    executor::CellWant,
    fleet::{Fleet, Slot},
};

/// How many nodes are compared.
const LOOKED_AT: usize = 64;
/// What a GPU taken from under a session that will be back costs, in GPUs left over.
const CLAIM_WEIGHT: u64 = 4;

/// The node that is filled best.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cheapest;

impl Cheapest {
    /// Thousandths of GPUs: what sessions that will be back soon would lack after a cell of `gpus`, and
    /// what would be left over. Of equals the oldest is taken: what is young goes first when nodes are
    /// given back.
    fn cost(fleet: &Fleet, slot: Slot, gpus: u32) -> Option<u64> {
        let node = fleet.get(slot)?;
        let left_milli = u64::from(node.free.checked_sub(gpus)?) * 1_000;
        let claimed_milli = u64::from(node.claimed_milli).min(u64::from(node.free) * 1_000);
        let lacking_milli = claimed_milli.saturating_sub(left_milli);
        Some(lacking_milli * CLAIM_WEIGHT + left_milli)
    }
}

impl MigrationChoice for Cheapest {
    fn choose(&mut self, fleet: &Fleet, want: &CellWant) -> Move {
        let mut reasons = Reasons::on(fleet.version());
        let open = fleet.count_open(want.vram_mib);
        reasons.refuse(Refusal::Closed, fleet.len() - open);
        reasons.refuse(Refusal::TooFewFree, open - fleet.count_fitting(want.gpus, want.vram_mib));
        let candidates = fleet
            .tightest(want.gpus, want.vram_mib)
            .take(LOOKED_AT.max(RUNNERS_UP_MAX))
            .filter_map(|slot| Some(Ranked { slot, cost: Self::cost(fleet, slot, want.gpus)? }));
        let to = reasons.choose(candidates.collect());
        Move { from: None, to, reasons }
    }
}
