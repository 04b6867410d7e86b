//! What a run is judged by, within a window of its time.

use callboard_policy::gpu::costs::Start;
use hdrhistogram::Histogram;
use serde::Serialize;

use crate::costs::Prices;

/// A task that begins within this time is begun at once.
pub const AT_ONCE_MS: u64 = 1_000;
const HOUR_MS: f64 = 3_600_000.0;

/// A part of the run's time; tasks belong to it by their submission.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Window {
    /// Its first moment.
    pub from_ms: u64,
    /// The first after it.
    pub to_ms: u64,
}

impl Window {
    /// How much of a span of time is in it.
    #[must_use]
    pub fn overlap_ms(&self, from_ms: u64, to_ms: u64) -> u64 {
        to_ms.min(self.to_ms).saturating_sub(from_ms.max(self.from_ms))
    }

    fn has(&self, at_ms: u64) -> bool {
        (self.from_ms..self.to_ms).contains(&at_ms)
    }
}

/// Collects.
#[derive(Debug, Clone)]
pub struct Metrics {
    window: Window,
    delays: Histogram<u64>,
    completions: Histogram<u64>,
    at_once: u64,
    starts: [u64; 6],
    moves: u64,
    boots: u64,
    given_back: u64,
    reclaimed: u64,
    prefetched_mib: u64,
    provisioned_gpu_ms: u64,
    held_gpu_ms: u64,
    used_gpu_ms: u64,
}

/// What was collected, in the units of the field.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// Tasks submitted.
    pub tasks: u64,
    /// GPU-hours of nodes, from the request until they were given back.
    pub gpu_hours: f64,
    /// GPU-hours that cells or sessions held.
    pub gpu_hours_held: f64,
    /// GPU-hours in which tasks ran.
    pub gpu_hours_used: f64,
    /// Part of the tasks that began within a second.
    pub started_within_1s: f64,
    /// From the submission to the first line, in seconds: half of the tasks began within it.
    pub delay_p50_s: f64,
    /// 95 % did.
    pub delay_p95_s: f64,
    /// 99 % did.
    pub delay_p99_s: f64,
    /// The longest.
    pub delay_max_s: f64,
    /// From the submission to the reply, in seconds: the mean.
    pub completion_mean_s: f64,
    /// Half of the tasks.
    pub completion_p50_s: f64,
    /// 99 %.
    pub completion_p99_s: f64,
    /// Tasks that began where the session's process was, in part of all.
    pub on_previous_node: f64,
    /// Tasks for which the session moved to another node.
    pub migrations: u64,
    /// Members moved off nodes that were given back.
    pub members_moved: u64,
    /// Nodes asked for.
    pub nodes_booted: u64,
    /// Nodes given back.
    pub nodes_given_back: u64,
    /// Sessions that lost what they held.
    pub reclaimed: u64,
    /// Bytes brought to nodes ahead of cells, in GiB.
    pub prefetched_gib: f64,
    /// What the nodes cost.
    pub cost: f64,
    /// What users pay for what their cells held.
    pub revenue: f64,
}

fn histogram() -> Histogram<u64> {
    // Three significant digits; grows with what it is given.
    match Histogram::new(3) {
        Ok(histogram) => histogram,
        Err(_) => unreachable!("3 is a valid number of significant digits"),
    }
}

impl Metrics {
    /// Of a window.
    #[must_use]
    pub fn new(window: Window) -> Self {
        Self {
            window,
            delays: histogram(),
            completions: histogram(),
            at_once: 0,
            starts: [0; 6],
            moves: 0,
            boots: 0,
            given_back: 0,
            reclaimed: 0,
            prefetched_mib: 0,
            provisioned_gpu_ms: 0,
            held_gpu_ms: 0,
            used_gpu_ms: 0,
        }
    }

    pub(crate) fn started(&mut self, submit_ms: u64, start: Start, delay_ms: u64) {
        if self.window.has(submit_ms) {
            self.delays.record(delay_ms).unwrap_or_default();
            self.at_once += u64::from(delay_ms <= AT_ONCE_MS);
            self.starts[start as usize] += 1;
        }
    }

    pub(crate) fn completed(&mut self, submit_ms: u64, took_ms: u64) {
        if self.window.has(submit_ms) {
            self.completions.record(took_ms).unwrap_or_default();
        }
    }

    pub(crate) fn provisioned(&mut self, gpus: u32, from_ms: u64, to_ms: u64) {
        self.provisioned_gpu_ms += u64::from(gpus) * self.window.overlap_ms(from_ms, to_ms);
    }

    pub(crate) fn held(&mut self, gpus: u32, from_ms: u64, to_ms: u64) {
        self.held_gpu_ms += u64::from(gpus) * self.window.overlap_ms(from_ms, to_ms);
    }

    pub(crate) fn used(&mut self, gpus: u32, from_ms: u64, to_ms: u64) {
        self.used_gpu_ms += u64::from(gpus) * self.window.overlap_ms(from_ms, to_ms);
    }

    pub(crate) fn moved(&mut self, at_ms: u64) {
        self.moves += u64::from(self.window.has(at_ms));
    }

    pub(crate) fn booted(&mut self, at_ms: u64) {
        self.boots += u64::from(self.window.has(at_ms));
    }

    pub(crate) fn gave_back(&mut self, at_ms: u64) {
        self.given_back += u64::from(self.window.has(at_ms));
    }

    pub(crate) fn prefetched(&mut self, at_ms: u64, state_mib: u64) {
        self.prefetched_mib += if self.window.has(at_ms) { state_mib } else { 0 };
    }

    pub(crate) fn reclaimed(&mut self, at_ms: u64) {
        self.reclaimed += u64::from(self.window.has(at_ms));
    }

    /// The distribution of delays: seconds, and the part of the tasks that began within them.
    #[must_use]
    pub fn delay_curve(&self) -> Vec<(f64, f64)> {
        let count = self.delays.len().max(1) as f64;
        let mut sum = 0;
        let points = self.delays.iter_recorded().map(|it| {
            sum += it.count_at_value();
            (it.value_iterated_to() as f64 / 1_000.0, sum as f64 / count)
        });
        points.collect()
    }

    /// In the units of the field.
    #[must_use]
    pub fn summary(&self, prices: Prices, gpus_of_a_node: u32) -> Summary {
        let hours = |gpu_ms: u64| gpu_ms as f64 / HOUR_MS;
        let seconds = |histogram: &Histogram<u64>, quantile: f64| {
            histogram.value_at_quantile(quantile) as f64 / 1_000.0
        };
        let count = self.delays.len();
        let part = |of: u64| if count == 0 { f64::NAN } else { of as f64 / count as f64 };
        let on_node = self.starts[Start::Warm as usize] + self.starts[Start::Resident as usize];
        let migrations =
            self.starts[Start::FromPeer as usize] + self.starts[Start::FromStorage as usize];
        Summary {
            tasks: count,
            gpu_hours: hours(self.provisioned_gpu_ms),
            gpu_hours_held: hours(self.held_gpu_ms),
            gpu_hours_used: hours(self.used_gpu_ms),
            started_within_1s: part(self.at_once),
            delay_p50_s: seconds(&self.delays, 0.5),
            delay_p95_s: seconds(&self.delays, 0.95),
            delay_p99_s: seconds(&self.delays, 0.99),
            delay_max_s: self.delays.max() as f64 / 1_000.0,
            completion_mean_s: self.completions.mean() / 1_000.0,
            completion_p50_s: seconds(&self.completions, 0.5),
            completion_p99_s: seconds(&self.completions, 0.99),
            on_previous_node: part(on_node),
            migrations,
            members_moved: self.moves,
            nodes_booted: self.boots,
            nodes_given_back: self.given_back,
            reclaimed: self.reclaimed,
            prefetched_gib: self.prefetched_mib as f64 / 1_024.0,
            cost: hours(self.provisioned_gpu_ms) / f64::from(gpus_of_a_node.max(1))
                * prices.node_hour,
            revenue: hours(self.held_gpu_ms) * prices.gpu_hour_used,
        }
    }
}
