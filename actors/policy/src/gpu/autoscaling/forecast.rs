//! Ours: as many nodes as will be enough with a chosen probability until a new one can be up.
//!
//! Every session's own pauses and cells say how likely it is to want GPUs, or to give them back, in
//! the time that it takes to bring a node up. The sum over all sessions is close to a normal
//! distribution; `z` of its deviations above its mean is what must be free.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::{Autoscaling, Lacking, ScalePlan, ScaleView, empty, nodes_for};
use crate::gpu::fleet::NodeState;

/// What can be turned.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ForecastKnobs {
    /// Deviations above the mean that are kept free: 1.28 for one shortage in ten looks.
    pub z: f64,
    /// How often it looks.
    pub interval_ms: u64,
    /// How much further ahead than a node's start it looks.
    pub ahead_ms: u64,
    /// For how long there must be too many nodes before one goes.
    pub hold_ms: u64,
    /// How long a cell waits for others to end before a node is asked for.
    pub patience_ms: u64,
    /// Never fewer nodes.
    pub nodes_min: u32,
}

impl Default for ForecastKnobs {
    fn default() -> Self {
        Self {
            z: 1.5,
            interval_ms: 10_000,
            ahead_ms: 60_000,
            hold_ms: 120_000,
            patience_ms: 1_000,
            nodes_min: 3,
        }
    }
}

impl ForecastKnobs {
    /// Everything that is out of range, a sentence each.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if !(-5.0..=20.0).contains(&self.z) {
            problems.push(format!("z is {}: give -5 to 20 deviations", self.z));
        }
        if !(1_000..=600_000).contains(&self.interval_ms) {
            problems.push(format!(
                "interval_ms is {}: give 1000 to 600000 milliseconds",
                self.interval_ms
            ));
        }
        if self.nodes_min == 0 {
            problems
                .push("nodes_min is 0: give 1 or more, a kernel's members need a node".to_owned());
        }
        problems
    }
}

/// Scales ahead of demand.
#[derive(Debug, Clone, Default)]
pub struct Forecast {
    knobs: ForecastKnobs,
    /// When it looked, and how many nodes were too many.
    surplus: VecDeque<(u64, i64)>,
}

impl Forecast {
    /// With these knobs.
    #[must_use]
    pub fn new(knobs: ForecastKnobs) -> Self {
        Self { knobs, surplus: VecDeque::new() }
    }

    /// By how many the empty nodes, with those that start, are more than there should be.
    fn surplus(&self, view: &ScaleView<'_>) -> i64 {
        let growth = (view.growth)(view.boot_ms + self.knobs.ahead_ms);
        let quantile = |mean: f64, variance: f64| (mean + self.knobs.z * variance.sqrt()).max(0.0);
        let waiting: u32 = view.waiting.iter().map(|it| it.gpus).sum();
        let wanted = quantile(growth.mean, growth.variance) + f64::from(waiting);
        let narrow = quantile(growth.narrow_mean, growth.narrow_variance);
        let open = || view.fleet.iter().filter(|(_, node)| node.state == NodeState::Open);
        let empty = open().filter(|(_, node)| node.held == 0).count() as i64;
        let partial: u32 =
            open().filter(|(_, node)| node.held > 0).map(|(_, node)| node.free).sum();
        let partial = f64::from(partial);
        let gpus = f64::from(view.shape.gpus.max(1));
        let wanted_empty = ((wanted - partial.min(narrow)) / gpus).ceil() as i64;
        empty + i64::from(view.booting) - wanted_empty
    }

    /// The least surplus of late.
    fn lasting_surplus(&mut self, now_ms: u64, surplus: i64) -> i64 {
        self.surplus.push_back((now_ms, surplus));
        while self.surplus.len() > 1
            && self.surplus.front().is_some_and(|it| now_ms - it.0 > self.knobs.hold_ms)
        {
            self.surplus.pop_front();
        }
        self.surplus.iter().map(|it| it.1).min().unwrap_or(0)
    }
}

impl Autoscaling for Forecast {
    fn interval_ms(&self) -> u64 {
        self.knobs.interval_ms
    }

    fn plan(&mut self, view: &ScaleView<'_>) -> ScalePlan {
        let surplus = self.surplus(view);
        let lasting = self.lasting_surplus(view.now_ms, surplus);
        let mut plan = ScalePlan::default();
        if surplus < 0 {
            plan.add = u32::try_from(surplus.unsigned_abs()).unwrap_or(u32::MAX);
        } else if lasting > 0 {
            let above_min = view.fleet.len().saturating_sub(self.knobs.nodes_min as usize);
            let count = above_min.min(lasting.unsigned_abs() as usize);
            plan.give_back = empty(view.fleet).take(count).collect();
        }
        plan
    }

    fn on_waiting(&mut self, lacking: &Lacking<'_>) -> u32 {
        nodes_for(lacking.waiting, lacking.shape).saturating_sub(lacking.booting)
    }

    fn patience_ms(&self) -> u64 {
        self.knobs.patience_ms
    }
}
