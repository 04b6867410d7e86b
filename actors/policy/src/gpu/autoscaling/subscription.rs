//! NotebookOS's rule: 5 % more hosts than the committed GPUs fill, never fewer than a minimum and a
//! buffer; idle hosts go two at a time. Read in its released code (`policy/default.go`).

use std::cmp::Reverse;

use super::{Autoscaling, Lacking, ScalePlan, ScaleView};
use crate::gpu::fleet::Slot;

/// Hosts that its deployment scripts begin with, and never go below.
pub const HOSTS_MIN: u32 = 4;
/// Hosts on top of them.
pub const HOSTS_BUFFER: u32 = 3;
const INTERVAL_MS: u64 = 30_000;
const FACTOR: f64 = 1.05;
const LIMIT: f64 = 1.10;
const GIVEN_BACK_MAX: u32 = 2;
/// A host with more members than this is not given back.
const MEMBERS_MAX: u32 = 4;
/// Nothing is planned before so many looks: its window of samples fills first.
const LOOKS_BEFORE: u32 = 5;

/// NotebookOS's autoscaler.
#[derive(Debug, Clone, Copy, Default)]
pub struct Subscription {
    looks: u32,
}

/// `ceil(load × factor / GPUs per host)`.
fn hosts(load: f64, factor: f64, gpus: u32) -> u32 {
    (load * factor / f64::from(gpus.max(1))).ceil() as u32
}

impl Autoscaling for Subscription {
    fn interval_ms(&self) -> u64 {
        INTERVAL_MS
    }

    fn plan(&mut self, view: &ScaleView<'_>) -> ScalePlan {
        self.looks = self.looks.saturating_add(1);
        if self.looks < LOOKS_BEFORE {
            return ScalePlan::default();
        }
        let load = view.fleet.held() as f64;
        let mut limit = hosts(load, LIMIT, view.shape.gpus);
        let target = hosts(load, FACTOR, view.shape.gpus).max(HOSTS_MIN + HOSTS_BUFFER);
        let now = u32::try_from(view.fleet.len()).unwrap_or(u32::MAX) + view.booting;
        if limit < HOSTS_MIN {
            limit = HOSTS_MIN + HOSTS_BUFFER;
        }
        ScalePlan {
            add: target.saturating_sub(now),
            give_back: idle(view, now.saturating_sub(limit.max(target)).min(GIVEN_BACK_MAX)),
        }
    }

    /// Each failed attempt asks for one host.
    fn on_waiting(&mut self, lacking: &Lacking<'_>) -> u32 {
        lacking.unheard
    }
}

/// The first hosts of its heap, up to the first that may not go.
fn idle(view: &ScaleView<'_>, count: u32) -> Vec<Slot> {
    let mut order: Vec<_> = view
        .fleet
        .iter()
        .map(|(slot, node)| {
            (Reverse(node.free), Reverse(node.subscribed), node.members, slot, node.held)
        })
        .collect();
    order.sort_unstable();
    let may_go = order.iter().take_while(|it| it.4 == 0 && it.2 <= MEMBERS_MAX);
    may_go.take(count as usize).map(|it| it.3).collect()
}
