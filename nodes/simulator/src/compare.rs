//! The schedulers that are compared, each through the same trace, and what comes of it.

use std::{sync::Mutex, thread};

use callboard_policy::gpu::{
    autoscaling::{ForecastKnobs, HOSTS_MIN},
    presets,
    scheduler::Policies,
};
use serde::{Deserialize, Serialize};

use crate::{
    chance::Stream,
    costs::Cluster,
    engine::{Engine, Sample, Setting, Unwatched, Watch},
    floor::{self, Bounds},
    metrics::{Metrics, Summary, Window},
    trace::{MINUTE_MS, Trace, TraceError},
};

const HOUR_MS: u64 = 60 * MINUTE_MS;
const DAY_MS: u64 = 24 * HOUR_MS;
/// The length of the windows that a comparison also looks at: that of NotebookOS's own experiment.
const SHORT_WINDOW_MS: u64 = 35 * HOUR_MS / 2;
/// How many of them.
const SHORT_WINDOWS: usize = 10;
/// Purpose of the random stream that draws them.
const WINDOWS: u64 = 4;
/// Knobs are fitted on the time before; what comes after is reported apart.
const TUNED_MS: u64 = 10 * DAY_MS;
/// Hours count as equal from this part of the other's on, and not above it.
const EQUAL_FROM: f64 = 0.99;
const Z_MAX: f64 = 20.0;
const SEARCH_STEPS: u32 = 6;

/// A scheduler.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// GPUs from a session's first task to its last.
    Reservation,
    /// The same, reclaimed after three hours without a task.
    #[serde(rename = "reservation-180m")]
    Reservation180m,
    /// After an hour.
    #[serde(rename = "reservation-60m")]
    Reservation60m,
    /// After half an hour.
    #[serde(rename = "reservation-30m")]
    Reservation30m,
    /// A new container for every task, first come, first served.
    FcfsBatch,
    /// A started container for every task.
    Pooled,
    /// NotebookOS's rules.
    Notebookos,
    /// Ours.
    Callboard,
    /// Ours with as many GPU-hours as NotebookOS's rules take.
    CallboardEqualHours,
}

impl Kind {
    /// Those that can be asked for, in the order of tables.
    pub const ALL: [Self; 8] = [
        Self::Reservation,
        Self::Reservation180m,
        Self::Reservation60m,
        Self::Reservation30m,
        Self::FcfsBatch,
        Self::Pooled,
        Self::Notebookos,
        Self::Callboard,
    ];

    /// What it is called.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Reservation => "reservation",
            Self::Reservation180m => "reservation-180m",
            Self::Reservation60m => "reservation-60m",
            Self::Reservation30m => "reservation-30m",
            Self::FcfsBatch => "fcfs-batch",
            Self::Pooled => "pooled",
            Self::Notebookos => "notebookos",
            Self::Callboard => "callboard",
            Self::CallboardEqualHours => "callboard-equal-hours",
        }
    }

    /// Its policies.
    #[must_use]
    pub fn policies(self, cluster: &Cluster, seed: u64) -> Policies {
        let minutes = |count: u64| Some(count * MINUTE_MS);
        match self {
            Self::Reservation => presets::reservation(None),
            Self::Reservation30m => presets::reservation(minutes(30)),
            Self::Reservation60m => presets::reservation(minutes(60)),
            Self::Reservation180m => presets::reservation(minutes(180)),
            Self::FcfsBatch => presets::batch(),
            Self::Pooled => presets::pooled(),
            Self::Notebookos => presets::notebookos(cluster.boot_ms, seed),
            Self::Callboard | Self::CallboardEqualHours => presets::callboard(cluster.forecast),
        }
    }

    /// Nodes that are up at the beginning.
    fn nodes(self, knobs: ForecastKnobs) -> u32 {
        match self {
            Self::Callboard | Self::CallboardEqualHours => knobs.nodes_min,
            _ => HOSTS_MIN,
        }
    }
}

/// Runs one scheduler.
///
/// # Errors
/// [`TraceError`] if the trace cannot be read any more.
pub fn run(
    kind: Kind,
    setting: &Setting<'_>,
    watch: &mut dyn Watch,
) -> Result<Vec<Metrics>, TraceError> {
    let policies = kind.policies(setting.cluster, setting.seed);
    let setting = Setting { nodes: kind.nodes(setting.cluster.forecast), ..setting.clone() };
    Engine::new(setting, policies).run(watch)
}

/// What was compared.
#[derive(Debug, Clone)]
pub struct Comparison {
    /// The whole time, the days that knobs were fitted on, the days after, then the short windows.
    /// Without days after, only the whole time and the short windows.
    pub windows: Vec<(String, Window)>,
    /// What the trace alone says of each window.
    pub bounds: Vec<Bounds>,
    /// One row for each scheduler.
    pub rows: Vec<Row>,
    /// Over time, nodes of the floor: hours, GPUs.
    pub floor: Vec<(f64, f64)>,
}

/// One scheduler.
#[derive(Debug, Clone)]
pub struct Row {
    /// Which.
    pub kind: Kind,
    /// In the order of the windows.
    pub summaries: Vec<Summary>,
    /// Of the whole time: seconds, and the part of the tasks that began within them.
    pub delays: Vec<(f64, f64)>,
    /// Every hour.
    pub samples: Vec<Sample>,
}

/// Keeps the samples.
#[derive(Debug, Default)]
struct Samples(Vec<Sample>);

impl Watch for Samples {
    fn sample(&mut self, sample: Sample) {
        self.0.push(sample);
    }
}

/// The windows that a trace is looked at through.
#[must_use]
pub fn windows(horizon_ms: u64, seed: u64) -> Vec<(String, Window)> {
    let mut windows = vec![("all".to_owned(), Window { from_ms: 0, to_ms: horizon_ms })];
    if horizon_ms > TUNED_MS {
        windows.push(("days 1-10".to_owned(), Window { from_ms: 0, to_ms: TUNED_MS }));
        let rest = format!("days 11-{}", horizon_ms.div_ceil(DAY_MS));
        windows.push((rest, Window { from_ms: TUNED_MS, to_ms: horizon_ms }));
    }
    let mut stream = Stream::new(seed, WINDOWS);
    if let Some(last_ms) = horizon_ms.checked_sub(SHORT_WINDOW_MS) {
        for number in 1..=SHORT_WINDOWS {
            let from_ms = stream.below(last_ms / MINUTE_MS + 1) * MINUTE_MS;
            let window = Window { from_ms, to_ms: from_ms + SHORT_WINDOW_MS };
            windows.push((format!("17.5 h #{number}"), window));
        }
    }
    windows
}

/// Compares schedulers, as many at once as `threads`; `done` hears of each that is through.
///
/// # Errors
/// [`TraceError`] if the trace cannot be read any more.
pub fn compare(
    trace: &Trace,
    cluster: &Cluster,
    kinds: &[Kind],
    seed: u64,
    threads: usize,
    done: &(dyn Fn(Kind) + Sync),
) -> Result<Comparison, TraceError> {
    let windows = windows(trace.horizon_ms, seed);
    let only: Vec<Window> = windows.iter().map(|it| it.1).collect();
    let every_ms = (trace.horizon_ms / 480).max(MINUTE_MS);
    let mut floor = Vec::new();
    let mut next_ms = 0;
    let bounds = floor::bounds(trace, cluster.node.gpus, &only, &mut |at_ms, _, nodes| {
        if at_ms >= next_ms {
            let gpus = nodes * u64::from(cluster.node.gpus);
            floor.push((at_ms as f64 / HOUR_MS as f64, gpus as f64));
            next_ms = at_ms + every_ms;
        }
    })?;
    let setting =
        Setting { trace, cluster, seed, windows: &only, nodes: 0, sample_every_ms: every_ms };
    let row = |kind: Kind, cluster: &Cluster| {
        let mut samples = Samples::default();
        let metrics = run(kind, &Setting { cluster, ..setting.clone() }, &mut samples)?;
        done(kind);
        let delays = metrics.first().map(Metrics::delay_curve).unwrap_or_default();
        let summaries =
            metrics.iter().map(|it| it.summary(cluster.prices, cluster.node.gpus)).collect();
        Ok::<_, TraceError>(Row { kind, summaries, delays, samples: samples.0 })
    };
    let mut rows = in_threads(kinds.to_vec(), threads, &|kind| row(kind, cluster))?;
    rows.sort_by_key(|it| it.kind);
    let hours =
        rows.iter().find(|it| it.kind == Kind::Notebookos).map(|it| it.summaries[0].gpu_hours);
    if let (Some(hours), true) = (hours, kinds.contains(&Kind::Callboard))
        && let Some(z) = equal_z(&setting, hours, threads)?
    {
        let forecast = ForecastKnobs { z, ..cluster.forecast };
        let cluster = Cluster { forecast, ..cluster.clone() };
        rows.push(row(Kind::CallboardEqualHours, &cluster)?);
    }
    Ok(Comparison { windows, bounds, rows, floor })
}

/// The `z` with which ours takes as many GPU-hours as given, not more; none if the least it takes
/// is more.
fn equal_z(setting: &Setting<'_>, hours: f64, threads: usize) -> Result<Option<f64>, TraceError> {
    let whole = [setting.windows[0]];
    let taken = |z: f64| {
        let forecast = ForecastKnobs { z, ..setting.cluster.forecast };
        let cluster = Cluster { forecast, ..setting.cluster.clone() };
        let setting = Setting { cluster: &cluster, windows: &whole, ..setting.clone() };
        let metrics = run(Kind::CallboardEqualHours, &setting, &mut Unwatched)?;
        Ok::<_, TraceError>((z, metrics[0].summary(cluster.prices, cluster.node.gpus).gpu_hours))
    };
    let (mut low, mut high, mut best) = (setting.cluster.forecast.z, Z_MAX, None);
    for _ in 0..SEARCH_STEPS {
        let third = (high - low) / 3.0;
        let mut tried = in_threads(vec![low + third, low + 2.0 * third], threads, &taken)?;
        tried.sort_by(|a, b| a.0.total_cmp(&b.0));
        for (z, taken) in tried {
            if taken <= hours {
                low = z;
                best = Some(z);
                if taken >= EQUAL_FROM * hours {
                    return Ok(best);
                }
            } else {
                high = high.min(z);
            }
        }
    }
    Ok(best)
}

/// Does a list of things, as many at once as `threads`; what comes of them is in no order.
fn in_threads<T: Send, R: Send, E: Send>(
    things: Vec<T>,
    threads: usize,
    work: &(dyn Fn(T) -> Result<R, E> + Sync),
) -> Result<Vec<R>, E> {
    let things = Mutex::new(things);
    let results = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                loop {
                    let thing = things.lock().ok().and_then(|mut things| things.pop());
                    let Some(thing) = thing else { break };
                    let result = work(thing);
                    if let Ok(mut results) = results.lock() {
                        results.push(result);
                    }
                }
            });
        }
    });
    results.into_inner().unwrap_or_default().into_iter().collect()
}
