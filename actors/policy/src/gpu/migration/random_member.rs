//! NotebookOS's choice: a member drawn by lot moves to the least loaded host that has the GPUs and no
//! member of the kernel.

use super::{MigrationChoice, Move};
use crate::{
    chance::Chance,
    gpu::{
        decision::{Reasons, Refusal},
        executor::CellWant,
        fleet::Fleet,
    },
};

/// A member drawn by lot.
#[derive(Debug, Clone)]
pub struct RandomMember(Chance);

impl RandomMember {
    /// Draws from a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(Chance::new(seed))
    }
}

impl MigrationChoice for RandomMember {
    fn choose(&mut self, fleet: &Fleet, want: &CellWant) -> Move {
        let mut reasons = Reasons::on(fleet.version());
        let open = fleet.count_open(want.vram_mib);
        reasons.refuse(Refusal::Closed, fleet.len() - open);
        reasons.refuse(Refusal::TooFewFree, open - fleet.count_fitting(want.gpus, want.vram_mib));
        let last = want.members.len().saturating_sub(1) as u64;
        let from = want.members.get(self.0.between(0, last) as usize).copied();
        let to = fleet
            .least_loaded(want.vram_mib)
            .into_iter()
            .flatten()
            .take_while(|slot| fleet.get(*slot).is_some_and(|node| node.free >= want.gpus))
            .find(|slot| !want.members.contains(slot));
        Move { from, to, reasons }
    }
}
