//! NotebookOS's choice, and ours among members: the previous executor if its node has the GPUs, then
//! the member whose node has the most to spare.

use std::cmp::Reverse;

use super::{CellWant, Choice, ExecutorChoice};
use crate::gpu::{
    costs::Start,
    decision::{RUNNERS_UP_MAX, Ranked, Reasons, Refusal},
    fleet::{Fleet, NodeState, Slot},
};

/// The previous executor first.
#[derive(Debug, Clone, Copy)]
pub struct PreviousFirst {
    /// How a member that is not the previous executor starts.
    pub standby: Start,
}

impl ExecutorChoice for PreviousFirst {
    fn choose(&self, fleet: &Fleet, want: &CellWant) -> Choice {
        let mut reasons = Reasons::on(fleet.version());
        // A node that was given back may still be named as where the process was.
        let is_there = |slot: &Slot| fleet.get(*slot).is_some();
        let executor = want.executor.filter(is_there);
        let others: Vec<Slot> = want
            .members
            .iter()
            .copied()
            .filter(|slot| Some(*slot) != executor && is_there(slot))
            .collect();
        let seen = others.len() + usize::from(executor.is_some());
        reasons.refuse(Refusal::NoMember, fleet.len() - seen);
        let mut free_on = |slot: Slot| {
            let node = fleet.get(slot)?;
            let is_open = node.state == NodeState::Open && node.shape.vram_mib >= want.vram_mib;
            match (is_open, node.free >= want.gpus) {
                (true, true) => return Some(node.free),
                (true, false) => reasons.refuse(Refusal::TooFewFree, 1),
                (false, _) => reasons.refuse(Refusal::Closed, 1),
            }
            None
        };
        let previous = executor.filter(|slot| free_on(*slot).is_some());
        let mut others: Vec<_> =
            others.into_iter().filter_map(|slot| Some((Reverse(free_on(slot)?), slot))).collect();
        others.sort_unstable();
        let chosen = previous
            .map(|slot| (slot, Start::Warm))
            .or_else(|| others.first().map(|(_, slot)| (*slot, self.standby)));
        let rest = others.iter().filter(|(_, slot)| chosen.is_none_or(|it| it.0 != *slot));
        reasons.runners_up = rest
            .map(|(Reverse(free), slot)| Ranked { slot: *slot, cost: u64::from(*free) })
            .take(RUNNERS_UP_MAX)
            .collect();
        Choice { chosen, reasons }
    }
}
