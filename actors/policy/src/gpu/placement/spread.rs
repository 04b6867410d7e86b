//! Ours: members go where the fewest are subscribed, on nodes that have been up for a while.
//!
//! Cells run anywhere (see `migration::cheapest`), so members need not sit where GPUs are free; they
//! must not sit on nodes that will soon be given back.

use super::{MemberPlacement, MemberPlaces, MemberRequest};
use crate::gpu::{
    decision::{Ranked, Reasons, Refusal},
    fleet::Fleet,
};

/// How many nodes are looked at beyond those asked for, for one that is older.
const LOOKED_AT: usize = 8;

/// Spreads members evenly.
#[derive(Debug, Clone, Copy, Default)]
pub struct Spread;

impl MemberPlacement for Spread {
    fn place(&self, fleet: &Fleet, request: &MemberRequest) -> MemberPlaces {
        let mut reasons = Reasons::on(fleet.version());
        reasons.refuse(Refusal::Closed, fleet.len() - fleet.open_len());
        let mut candidates = Vec::new();
        for slot in fleet.least_subscribed() {
            if candidates.len() == request.count + LOOKED_AT {
                break;
            }
            let Some(node) = fleet.get(slot) else { continue };
            if node.shape.vram_mib < request.vram_mib {
                reasons.refuse(Refusal::Closed, 1);
            } else if request.present.contains(&slot) {
                reasons.refuse(Refusal::HasMember, 1);
            } else {
                candidates.push(Ranked { slot, cost: node.since_ms });
            }
        }
        candidates.sort_by_key(|it| (it.cost, it.slot));
        let slots: Vec<_> = candidates.iter().take(request.count).map(|it| it.slot).collect();
        reasons.cost = candidates.first().map_or(0, |it| it.cost);
        reasons.runners_up = candidates.split_off(slots.len());
        reasons.runners_up.truncate(super::super::decision::RUNNERS_UP_MAX);
        MemberPlaces { slots, reasons }
    }
}
