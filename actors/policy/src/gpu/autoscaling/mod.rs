//! How many nodes there should be.

mod forecast;
mod on_demand;
mod subscription;

use super::{
    fleet::{Fleet, NodeShape, NodeState, Slot},
    queueing::Waiting,
};

pub use forecast::{Forecast, ForecastKnobs};
pub use on_demand::OnDemand;
pub use subscription::{HOSTS_BUFFER, HOSTS_MIN, Subscription};

/// By how much the GPUs in use will grow in some time ahead.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Growth {
    /// Expected.
    pub mean: f64,
    /// Its variance.
    pub variance: f64,
    /// The same of cells that do not need a whole node.
    pub narrow_mean: f64,
    /// Its variance.
    pub narrow_variance: f64,
}

/// What a plan depends on.
pub struct ScaleView<'a> {
    /// Now.
    pub now_ms: u64,
    /// The nodes that are up.
    pub fleet: &'a Fleet,
    /// Nodes that were asked for and are not up.
    pub booting: u32,
    /// How long that takes.
    pub boot_ms: u64,
    /// What a new node is made of.
    pub shape: NodeShape,
    /// Cells for which there was no room.
    pub waiting: &'a [Waiting],
    /// Predicts; an argument is how far ahead, in milliseconds.
    pub growth: &'a dyn Fn(u64) -> Growth,
}

/// Cells for which there is no room.
#[derive(Debug, Clone, Copy)]
pub struct Lacking<'a> {
    /// All of them.
    pub waiting: &'a [Waiting],
    /// How many of them are new since the last time.
    pub unheard: u32,
    /// Nodes that were asked for and are not up.
    pub booting: u32,
    /// What a new node is made of.
    pub shape: NodeShape,
}

/// What to do about the number of nodes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ScalePlan {
    /// Nodes to ask for.
    pub add: u32,
    /// Nodes to give back: members move away first.
    pub give_back: Vec<Slot>,
}

/// Decides how many nodes there should be.
pub trait Autoscaling {
    /// How often [`Autoscaling::plan`] is asked.
    fn interval_ms(&self) -> u64;

    /// The regular look.
    fn plan(&mut self, view: &ScaleView<'_>) -> ScalePlan;

    /// Nodes to ask for at once, as there is no room for cells that wait.
    fn on_waiting(&mut self, lacking: &Lacking<'_>) -> u32;

    /// For how long a cell waits before its want is heard.
    fn patience_ms(&self) -> u64 {
        0
    }
}

/// Nodes that the cells would fill, each cell on one node.
#[must_use]
pub fn nodes_for(waiting: &[Waiting], shape: NodeShape) -> u32 {
    let mut widths: Vec<u32> = waiting.iter().map(|it| it.gpus.min(shape.gpus)).collect();
    widths.sort_unstable_by(|a, b| b.cmp(a));
    let mut left: Vec<u32> = Vec::new();
    for width in widths {
        match left.iter_mut().find(|free| **free >= width) {
            Some(free) => *free -= width,
            None => left.push(shape.gpus - width),
        }
    }
    u32::try_from(left.len()).unwrap_or(u32::MAX)
}

/// Empty open nodes, those that the fewest sessions will come back to first, then the youngest.
fn empty(fleet: &Fleet) -> impl Iterator<Item = Slot> {
    let is_empty =
        |it: &(Slot, &super::fleet::FleetNode)| it.1.held == 0 && it.1.state == NodeState::Open;
    let mut empty: Vec<_> = fleet.iter().filter(is_empty).collect();
    empty.sort_by_key(|(slot, node)| (node.claimed_milli, std::cmp::Reverse(*slot)));
    empty.into_iter().map(|(slot, _)| slot)
}
