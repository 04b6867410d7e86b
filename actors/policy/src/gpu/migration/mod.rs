//! Where a session goes when no node that it is on has the GPUs of its next cell.

mod cheapest;
mod random_member;

use super::{
    decision::Reasons,
    executor::CellWant,
    fleet::{Fleet, Slot},
};

pub use cheapest::Cheapest;
pub use random_member::RandomMember;

/// Where it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Move {
    /// The member that moves; none if the session runs there as a guest and its members stay.
    pub from: Option<Slot>,
    /// To which node; none if no node has the GPUs.
    pub to: Option<Slot>,
    /// Why.
    pub reasons: Reasons,
}

/// Chooses a member and a target.
pub trait MigrationChoice {
    /// Chooses.
    fn choose(&mut self, fleet: &Fleet, want: &CellWant) -> Move;
}
