//! As many nodes as cells ask for; empty ones are given back when more stand idle than 10 % of what
//! is in use. The peers that keep no members: reservation, batch and pooled containers.

use super::{Autoscaling, Lacking, ScalePlan, ScaleView, empty, nodes_for};

const INTERVAL_MS: u64 = 30_000;
const LIMIT: f64 = 1.10;
const GIVEN_BACK_MAX: usize = 2;

/// Scales when cells wait.
#[derive(Debug, Clone, Copy, Default)]
pub struct OnDemand;

impl Autoscaling for OnDemand {
    fn interval_ms(&self) -> u64 {
        INTERVAL_MS
    }

    fn plan(&mut self, view: &ScaleView<'_>) -> ScalePlan {
        let load = view.fleet.held() as f64;
        let target = (load * LIMIT / f64::from(view.shape.gpus.max(1))).ceil() as u32;
        let surplus = view.fleet.len().saturating_sub(target as usize).min(GIVEN_BACK_MAX);
        let give_back = empty(view.fleet).take(surplus).collect();
        ScalePlan { add: 0, give_back }
    }

    fn on_waiting(&mut self, lacking: &Lacking<'_>) -> u32 {
        nodes_for(lacking.waiting, lacking.shape).saturating_sub(lacking.booting)
    }
}
