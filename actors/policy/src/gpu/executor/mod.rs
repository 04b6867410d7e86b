//! Which member of a kernel runs the next cell.

mod any;
mod previous_first;

use super::{
    costs::Start,
    decision::Reasons,
    fleet::{Fleet, Slot},
};

pub use any::AnyNode;
pub use previous_first::PreviousFirst;

/// What a cell wants, and what its session has where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CellWant {
    /// GPUs of one node.
    pub gpus: u32,
    /// The least memory each must have.
    pub vram_mib: u32,
    /// Where the session's process is.
    pub executor: Option<Slot>,
    /// Where its members are.
    pub members: Vec<Slot>,
    /// How much it would have to take along.
    pub state_mib: u64,
}

/// Where a cell runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// On which node, and how the session comes to its GPUs; none if it cannot be had now.
    pub chosen: Option<(Slot, Start)>,
    /// Why.
    pub reasons: Reasons,
}

/// Chooses among the nodes on which the session is.
pub trait ExecutorChoice {
    /// Chooses.
    fn choose(&self, fleet: &Fleet, want: &CellWant) -> Choice;
}
