//! Where the members of a kernel go, as far as GPUs are concerned.

mod least_loaded;
mod spread;

use super::{
    decision::Reasons,
    fleet::{Fleet, Slot},
};

pub use least_loaded::{LeastLoaded, RATIO_MAX};
pub use spread::Spread;

/// Asks for places of a kernel's members.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberRequest {
    /// What it uses when it runs.
    pub gpus: u32,
    /// The least memory each of them must have.
    pub vram_mib: u32,
    /// How many places.
    pub count: usize,
    /// Where it has members.
    pub present: Vec<Slot>,
}

/// Where new members go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberPlaces {
    /// The places; fewer than asked for if there are no more.
    pub slots: Vec<Slot>,
    /// Why these.
    pub reasons: Reasons,
}

/// Places the members of kernels on nodes.
pub trait MemberPlacement {
    /// Chooses.
    fn place(&self, fleet: &Fleet, request: &MemberRequest) -> MemberPlaces;

    /// Learns how many GPUs all sessions would use if they ran at once, and how many those that run
    /// use; called once in every interval of the autoscaler.
    fn observe(&mut self, _subscribed: u64, _running: u64) {}
}
