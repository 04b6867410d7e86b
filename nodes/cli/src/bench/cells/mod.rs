//! `callboard bench cells`: the round trip of a small cell over Callboard, over plain ZeroMQ and
//! over Jupyter Kernel Gateway, side by side.
//!
//! Every side runs the same ipykernel on the same Python, is driven by a Rust client, and counts a
//! cell as done when its reply has arrived and it is known to be over: by the `idle` status, and
//! with Callboard by the `ended` event.

mod cpu;
mod fsync;

use std::{
    collections::BTreeMap,
    path::Path,
    time::{Duration, Instant},
};

use callboard_client::{ExecuteEvent, ExecuteOptions, KernelClient, execute_request};
use callboard_kernel::python::PlainKernel;
use callboard_protocol::{
    jupyter::JupyterMessage,
    kernel::{CellOutcome, Level},
};
use clap::Args;
use rand::{SeedableRng as _, rngs::StdRng, seq::SliceRandom as _};
use serde_json::Value;
use tokio::time::sleep;
use uuid::Uuid;

use self::{
    cpu::{Meter, Spent},
    fsync::FsyncFloor,
};
use super::{
    kernel_gateway::{self, KernelGateway},
    local_cluster::LocalCluster,
    options::Options,
    report::{Bar, Figure, Machine, Report},
    stats::Samples,
};
use crate::{
    context::Context,
    exit::{Exit, Failure, Outcome},
    output::say,
    python::find_python,
};

/// The cell.
const CODE: &str = "x = 1";
/// Rounds of a full and of a quick run.
const ROUNDS: u32 = 60;
const ROUNDS_QUICK: u32 = 20;
/// A quick run measures no longer than this, however slow the machine: its figures say how many
/// cells stand behind them.
const QUICK_MEASURES_FOR: Duration = Duration::from_secs(50);
/// Rounds before those that count: caches fill, interpreters specialise.
const ROUNDS_WARM_UP: u32 = 5;
/// Cells per side and round.
const CELLS_PER_TURN: u32 = 5;
/// Samples of the disk per round.
const SYNCS_PER_ROUND: u32 = 10;
/// Pause after a side's turn, so that what it still does does not fall into the next one's.
const TURN_PAUSE: Duration = Duration::from_millis(10);
/// How long one cell may take before the bench gives up.
const CELL_WITHIN: Duration = Duration::from_secs(30);

/// How long it takes on a small machine.
pub const TAKES: Duration = Duration::from_secs(60);

/// Arguments of the bench.
#[derive(Debug, Args)]
pub struct CellsArgs {
    #[command(flatten)]
    options: Options,
    /// How many rounds count [default: 60, 20 with --quick].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rounds: Option<u32>,
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Side {
    Zmq,
    Received,
    Durable,
    KernelGateway,
}

impl Side {
    const ALL: [Self; 4] = [Self::Zmq, Self::Received, Self::Durable, Self::KernelGateway];

    fn name(self) -> &'static str {
        match self {
            Self::Zmq => "zmq",
            Self::Received => "received",
            Self::Durable => "durable",
            Self::KernelGateway => "kernel_gateway",
        }
    }
}

/// How far a cell is, as its client sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    /// It has its place in the log.
    Accepted,
    /// Python has begun: its first output is here.
    Started,
    /// Its reply is here.
    Replied,
}

impl Stage {
    fn name(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Started => "started",
            Self::Replied => "replied",
        }
    }
}

/// How long a cell took.
#[derive(Debug)]
struct Times {
    /// Until it was over.
    whole_ms: f64,
    /// Until each stage.
    stages_ms: BTreeMap<Stage, f64>,
}

/// Measures.
///
/// # Errors
/// A [`Failure`] if something is missing on this machine, or a side could not be measured.
pub async fn run(context: &Context, args: &CellsArgs) -> Outcome {
    let options = &args.options;
    let python = find_python(options.python.as_deref().unwrap_or(Path::new("")))?;
    if cfg!(debug_assertions) {
        say("this is a debug build: the bars are meant for `cargo build --release`");
    }
    kernel_gateway::ensure_installed(&python).await?;
    let cluster = LocalCluster::start(3, options).await?;
    let mut sides = Sides::start(&cluster, &python).await?;
    let mut floor = FsyncFloor::new(cluster.path())
        .map_err(|error| Failure::environment(format!("cannot write beside the data: {error}")))?;
    let rounds = args.rounds.unwrap_or(if options.quick { ROUNDS_QUICK } else { ROUNDS });
    say(&format!(
        "measuring: {rounds} rounds of {CELLS_PER_TURN} cells per side, seed {}",
        options.seed
    ));
    let mut rng = StdRng::seed_from_u64(options.seed);
    let meter = Meter::new();
    let mut measured = Measured::default();
    let start = Instant::now();
    for round in 0..ROUNDS_WARM_UP + rounds {
        if options.quick && round > ROUNDS_WARM_UP && start.elapsed() > QUICK_MEASURES_FOR {
            say(&format!("stopped after {} rounds: the machine is slow", round - ROUNDS_WARM_UP));
            break;
        }
        let mut order = Side::ALL;
        order.shuffle(&mut rng);
        for side in order {
            let before = meter.read();
            for _ in 0..CELLS_PER_TURN {
                let times = sides.round_trip(side).await?;
                if round >= ROUNDS_WARM_UP {
                    measured.add(side, times);
                }
            }
            sleep(TURN_PAUSE).await;
            if round >= ROUNDS_WARM_UP {
                let spent = measured.cpu.entry(side).or_default();
                spent.add(&meter, (&before, &meter.read()), CELLS_PER_TURN);
            }
        }
        for _ in 0..SYNCS_PER_ROUND {
            let sampled = tokio::task::block_in_place(|| floor.sample_ms());
            let ms =
                sampled.map_err(|error| Failure::environment(format!("cannot sync: {error}")))?;
            measured.fsync_ms.push(ms);
        }
    }
    sides.gateway.stop().await;
    drop(sides.plain);
    cluster.stop().await;
    let report = Report {
        bench: "cells",
        seed: options.seed,
        machine: Machine::here(),
        figures: measured.figures(),
    };
    report.print(context.printer)
}

struct Sides {
    plain: PlainKernel,
    callboard: KernelClient,
    gateway: KernelGateway,
}

impl Sides {
    async fn start(cluster: &LocalCluster, python: &Path) -> Result<Self, Failure> {
        let callboard = cluster.kernel(3).await?;
        let plain = PlainKernel::launch(python, cluster.path())
            .await
            .map_err(|error| Failure::new(Exit::Failed, format!("plain kernel: {error}")))?;
        let gateway = KernelGateway::start(python, cluster.path(), false).await?;
        Ok(Self { plain, callboard, gateway })
    }

    /// Runs the cell on one side and returns how long it took.
    async fn round_trip(&mut self, side: Side) -> Result<Times, Failure> {
        let start = Instant::now();
        let mut stages_ms = BTreeMap::new();
        let mut reached = |stage| {
            stages_ms.entry(stage).or_insert_with(|| ms_since(start));
        };
        let reply = match side {
            Side::Zmq => {
                let (request, msg_id) = plain_request();
                self.plain.round_trip(request, &msg_id).await.map_err(|error| error.to_string())
            }
            Side::Received => cell(&self.callboard, Level::Received, &mut reached).await,
            Side::Durable => cell(&self.callboard, Level::Durable, &mut reached).await,
            Side::KernelGateway => {
                let (request, msg_id) = plain_request();
                self.gateway.socket.round_trip(&request, &msg_id).await
            }
        };
        let whole_ms = ms_since(start);
        let times = Times { whole_ms, stages_ms };
        reply.and_then(|reply| check(&reply)).map(|()| times).map_err(|why| {
            Failure::new(Exit::Failed, format!("a cell over {} failed: {why}", side.name()))
        })
    }
}

fn ms_since(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1000.0
}

fn plain_request() -> (JupyterMessage, String) {
    let msg_id = Uuid::now_v7().to_string();
    (execute_request(CODE, &msg_id, "bench", Level::Received), msg_id)
}

/// Runs the cell on Callboard; tells `reached` of each stage on its way.
async fn cell(
    kernel: &KernelClient,
    level: Level,
    reached: &mut (dyn FnMut(Stage) + Send),
) -> Result<JupyterMessage, String> {
    let timeout = Some(CELL_WITHIN);
    let mut cell = kernel.execute(CODE, ExecuteOptions { level, timeout, ..Default::default() });
    let mut reply = None;
    while let Some(event) = cell.next().await {
        match event.map_err(|fault| fault.to_string())? {
            ExecuteEvent::Output(message, _) => {
                let header = message.parse_header().map_err(|error| error.to_string())?;
                if header.msg_type == "execute_reply" {
                    reached(Stage::Replied);
                    reply = Some(message);
                } else {
                    reached(Stage::Started);
                }
            }
            ExecuteEvent::Ended(end) if end.outcome == CellOutcome::Completed => {
                return reply.ok_or_else(|| "it ended without a reply".to_owned());
            }
            ExecuteEvent::Ended(end) => return Err(format!("it ended as {:?}", end.outcome)),
            ExecuteEvent::Accepted(_) => reached(Stage::Accepted),
            ExecuteEvent::Notice(text) => say(&text),
        }
    }
    Err("it has no end".to_owned())
}

/// A cell that raised would be faster than one that ran.
fn check(reply: &JupyterMessage) -> Result<(), String> {
    let content: Value = reply.parse_content().map_err(|error| error.to_string())?;
    if content["status"] == "ok" { Ok(()) } else { Err(format!("it replied {content}")) }
}

#[derive(Debug, Default)]
struct Measured {
    times_ms: BTreeMap<Side, Vec<f64>>,
    stages_ms: BTreeMap<(Side, Stage), Vec<f64>>,
    fsync_ms: Vec<f64>,
    cpu: BTreeMap<Side, Spent>,
}

impl Measured {
    fn add(&mut self, side: Side, times: Times) {
        self.times_ms.entry(side).or_default().push(times.whole_ms);
        for (stage, ms) in times.stages_ms {
            self.stages_ms.entry((side, stage)).or_default().push(ms);
        }
    }

    fn figures(self) -> Vec<Figure> {
        let times: BTreeMap<Side, Samples> =
            self.times_ms.into_iter().map(|(side, times)| (side, Samples::new(times))).collect();
        let fsync = Samples::new(self.fsync_ms);
        let of = |side| times.get(&side).cloned().unwrap_or_default();
        let over = |above, below| of(above).median() / of(below).median();
        let mut figures = vec![
            Figure::held(
                "roundtrip_received_over_zmq",
                over(Side::Received, Side::Zmq),
                "ratio",
                Bar::AtMost(1.5),
            ),
            Figure::held(
                "roundtrip_durable_over_zmq",
                over(Side::Durable, Side::Zmq),
                "ratio",
                Bar::AtMost(4.0),
            ),
            Figure::held(
                "kernel_gateway_over_durable",
                over(Side::KernelGateway, Side::Durable),
                "ratio",
                Bar::AtLeast(3.0),
            ),
            Figure::plain("fsync_p50_ms", fsync.median(), "ms"),
            Figure::plain("fsync_p95_ms", fsync.percentile(95.0), "ms"),
        ];
        for (side, samples) in &times {
            for (what, percent) in [("p25", 25.0), ("p50", 50.0), ("p75", 75.0), ("p95", 95.0)] {
                let name = format!("{}_{what}_ms", side.name());
                figures.push(Figure::plain(name, samples.percentile(percent), "ms"));
            }
        }
        for ((side, stage), times) in self.stages_ms {
            let name = format!("{}_until_{}_p50_ms", side.name(), stage.name());
            figures.push(Figure::plain(name, Samples::new(times).median(), "ms"));
        }
        for (side, spent) in &self.cpu {
            for (process, ms) in spent.per_cell() {
                let name = format!("{}_cpu_{process}_ms", side.name());
                figures.push(Figure::plain(name, ms, "ms"));
            }
        }
        let count = times.values().map(Samples::len).min().unwrap_or(0);
        figures.push(Figure::plain("cells_per_side", count as f64, "count"));
        figures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_of_medians_and_each_has_its_bar() {
        let times_ms = BTreeMap::from([
            (Side::Zmq, vec![2.0, 2.0, 90.0]),
            (Side::Received, vec![3.0, 2.5, 5.0]),
            (Side::Durable, vec![13.0]),
            (Side::KernelGateway, vec![45.0, 46.0, 44.0]),
        ]);
        let stages_ms = BTreeMap::from([((Side::Durable, Stage::Accepted), vec![2.5])]);
        let figures =
            Measured { times_ms, stages_ms, fsync_ms: vec![0.25], cpu: BTreeMap::new() }.figures();
        let figure = |name: &str| figures.iter().find(|f| f.name == name).unwrap().clone();
        assert_eq!(figure("roundtrip_received_over_zmq").value, 1.5);
        assert_eq!(figure("roundtrip_received_over_zmq").holds, Some(true));
        assert_eq!(figure("roundtrip_durable_over_zmq").value, 6.5);
        assert_eq!(figure("roundtrip_durable_over_zmq").holds, Some(false));
        assert_eq!(figure("kernel_gateway_over_durable").holds, Some(true));
        assert_eq!(figure("fsync_p50_ms").bar, None);
        assert_eq!(figure("zmq_p50_ms").value, 2.0);
        assert_eq!(figure("durable_until_accepted_p50_ms").value, 2.5);
    }
}
