//! `callboard bench start`: ten kernels at once from their start to the first result of a cell,
//! against ten plain ipykernels started at once, in turn in the same run.
//!
//! Callboard's side is the whole of `kernel start` and `kernel exec`: placing, founding a group of
//! three replicas, taking a Python process out of a node's stock, and a durable cell. A burst waits
//! until every node's stock is full, and the plain side too: a refill would take its processors.

use std::{
    collections::BTreeMap,
    path::Path,
    time::{Duration, Instant},
};

use callboard_client::{Client, ExecuteEvent, ExecuteOptions, execute_request};
use callboard_kernel::python::PlainKernel;
use callboard_protocol::{
    KernelId,
    control::StartKernel,
    kernel::{CellOutcome, Level},
};
use clap::Args;
use futures::future::try_join_all;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tokio::time::sleep;
use uuid::Uuid;

use super::{
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
const CODE: &str = "1+1";
/// Kernels of a burst.
const BURST: usize = 10;
/// Bursts per side of a full and of a quick run.
const BURSTS: u32 = 8;
const BURSTS_QUICK: u32 = 3;
/// A quick run begins no burst after this time, however slow the machine.
const QUICK_BEGINS_WITHIN: Duration = Duration::from_secs(60);
/// How long one kernel may take to its first result.
const RESULT_WITHIN: Duration = Duration::from_secs(60);
/// How long a stock may take to fill, and how often it is looked at.
const FULL_WITHIN: Duration = Duration::from_secs(90);
const FULL_POLL: Duration = Duration::from_millis(200);
/// Pause after a side's turn: processes and replicas that were told to end take a moment.
const TURN_PAUSE: Duration = Duration::from_millis(500);

/// How long it takes on a small machine.
pub const TAKES: Duration = Duration::from_secs(150);

/// Arguments of the bench.
#[derive(Debug, Args)]
pub struct StartArgs {
    #[command(flatten)]
    options: Options,
    /// How many bursts each side has [default: 8, 3 with --quick].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000))]
    bursts: Option<u32>,
}

/// How far a new kernel is, as its client sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    /// The control plane has placed it.
    Placed,
    /// Its first cell has its place in the log.
    Accepted,
}

/// What was measured, in milliseconds.
#[derive(Debug, Default)]
struct Measured {
    burst_ms: Vec<f64>,
    plain_ms: Vec<f64>,
    stages_ms: BTreeMap<Stage, Vec<f64>>,
    /// Processes in stock on all nodes before each burst.
    stock: Vec<f64>,
    preloaded: u32,
}

/// One kernel's first result.
#[derive(Debug)]
struct First {
    kernel: KernelId,
    whole_ms: f64,
    stages_ms: Vec<(Stage, f64)>,
}

/// What all nodes have in stock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stock {
    ready: u32,
    preloaded: u32,
}

/// Measures.
///
/// # Errors
/// A [`Failure`] if something is missing on this machine, or a side could not be measured.
pub async fn run(context: &Context, args: &StartArgs) -> Outcome {
    let Options { quick, seed, ref python, .. } = args.options;
    let python = find_python(python.as_deref().unwrap_or(Path::new("")))?;
    let cluster = LocalCluster::start(3, &args.options).await?;
    let bursts = args.bursts.unwrap_or(if quick { BURSTS_QUICK } else { BURSTS });
    say(&format!("{bursts} bursts of {BURST} on each side, seed {seed}"));
    let (mut measured, mut order) = (Measured::default(), StdRng::seed_from_u64(seed));
    let began = Instant::now();
    for number in 1..=bursts {
        if quick && number > 1 && began.elapsed() > QUICK_BEGINS_WITHIN {
            break;
        }
        let is_plain_first = order.random::<bool>();
        for is_plain in [is_plain_first, !is_plain_first] {
            let stock = full(cluster.client()).await?;
            if is_plain {
                measured.plain_ms.extend(plain_burst(&python, cluster.path()).await?);
            } else {
                measured.stock.push(f64::from(stock.ready));
                measured.preloaded = stock.preloaded;
                burst(cluster.client(), &mut measured).await?;
            }
            sleep(TURN_PAUSE).await;
        }
        let last = |times: &[f64]| Samples::new(times[times.len() - BURST..].to_vec()).median();
        let (ours, plain) = (last(&measured.burst_ms), last(&measured.plain_ms));
        let stock = measured.stock.last().copied().unwrap_or_default();
        say(&format!(
            "[{number}/{bursts}] {stock} in stock; p50 {ours:.0} ms against {plain:.0} ms"
        ));
    }
    cluster.stop().await;
    let figures = figures(measured);
    let report = Report { bench: "start", seed, machine: Machine::here(), figures };
    report.print(context.printer)
}

/// Waits until every node has as many processes in stock as it wants; returns how many those are.
async fn full(client: &Client) -> Result<Stock, Failure> {
    let until = Instant::now() + FULL_WITHIN;
    loop {
        let nodes = client.control().list_nodes().await?.nodes;
        let stocks: Vec<_> = nodes.iter().map(|node| node.python_stock).collect();
        let is_full = |stock: &callboard_protocol::node::PythonStock| {
            stock.zygote_pid.is_some() && stock.target > 0 && stock.ready >= stock.target
        };
        if !stocks.is_empty() && stocks.iter().all(is_full) {
            let ready = stocks.iter().map(|stock| stock.ready).sum();
            let preloaded = stocks.iter().map(|stock| stock.preloaded).min().unwrap_or_default();
            return Ok(Stock { ready, preloaded });
        }
        if Instant::now() >= until {
            let text = format!("the nodes' stocks of Python processes do not fill: {stocks:?}");
            return Err(Failure::new(Exit::Unavailable, text));
        }
        sleep(FULL_POLL).await;
    }
}

/// Starts kernels at once, each with its first cell, and ends them afterwards.
async fn burst(client: &Client, measured: &mut Measured) -> Result<(), Failure> {
    let firsts = try_join_all((0..BURST).map(|_| first_result(client))).await?;
    let control = client.control();
    try_join_all(firsts.iter().map(|first| control.stop_kernel(first.kernel))).await?;
    for First { whole_ms, stages_ms, .. } in firsts {
        measured.burst_ms.push(whole_ms);
        for (stage, ms) in stages_ms {
            measured.stages_ms.entry(stage).or_default().push(ms);
        }
    }
    Ok(())
}

async fn first_result(client: &Client) -> Result<First, Failure> {
    let start = Instant::now();
    let kernel = KernelId::generate();
    let request = StartKernel {
        kernel,
        name: None,
        replicas: 3,
        options: Default::default(),
        origin: None,
        settings: Default::default(),
    };
    client.control().start_kernel(&request).await?;
    let mut stages_ms = vec![(Stage::Placed, ms_since(start))];
    let kernel_client = client.kernel(kernel);
    let options = ExecuteOptions {
        level: Level::Durable,
        timeout: Some(RESULT_WITHIN),
        ..ExecuteOptions::default()
    };
    let mut execution = kernel_client.execute(CODE, options);
    while let Some(event) = execution.next().await {
        match event? {
            ExecuteEvent::Accepted(_) => stages_ms.push((Stage::Accepted, ms_since(start))),
            ExecuteEvent::Ended(end) if end.outcome == CellOutcome::Completed => {
                return Ok(First { kernel, whole_ms: ms_since(start), stages_ms });
            }
            ExecuteEvent::Ended(end) => {
                return Err(Failure::new(Exit::Failed, format!("a cell ended {:?}", end.outcome)));
            }
            ExecuteEvent::Output(..) | ExecuteEvent::Notice(_) => {}
        }
    }
    Err(Failure::new(Exit::Failed, "a cell ended without an end"))
}

/// Starts plain kernels at once, each with its first cell; they end when they are dropped.
async fn plain_burst(python: &Path, directory: &Path) -> Result<Vec<f64>, Failure> {
    let first = async || {
        let start = Instant::now();
        let msg_id = Uuid::new_v4().to_string();
        let request = execute_request(CODE, &msg_id, "bench", Level::Durable);
        let mut kernel = PlainKernel::launch(python, directory).await?;
        kernel.round_trip(request, &msg_id).await?;
        Ok((kernel, ms_since(start)))
    };
    let kernels = try_join_all((0..BURST).map(|_| first())).await.map_err(
        |error: callboard_kernel::python::LaunchError| {
            Failure::new(Exit::Failed, format!("plain kernel: {error}"))
        },
    )?;
    Ok(kernels.into_iter().map(|(_kernel, ms)| ms).collect())
}

fn ms_since(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1_000.0
}

fn figures(measured: Measured) -> Vec<Figure> {
    let (ours, plain) = (Samples::new(measured.burst_ms), Samples::new(measured.plain_ms));
    let over = |percent| ours.percentile(percent) / plain.percentile(percent);
    let stage =
        |stage| Samples::new(measured.stages_ms.get(&stage).cloned().unwrap_or_default()).median();
    vec![
        Figure::held("burst_p50_over_plain", over(50.0), "ratio", Bar::AtMost(0.3)),
        Figure::held("burst_p95_over_plain", over(95.0), "ratio", Bar::AtMost(0.5)),
        Figure::plain("pool_size", Samples::new(measured.stock).median(), "count"),
        Figure::plain("zygote_preloaded", f64::from(measured.preloaded), "count"),
        Figure::plain("burst_p50_ms", ours.median(), "ms"),
        Figure::plain("burst_p95_ms", ours.percentile(95.0), "ms"),
        Figure::plain("burst_until_placed_p50_ms", stage(Stage::Placed), "ms"),
        Figure::plain("burst_until_accepted_p50_ms", stage(Stage::Accepted), "ms"),
        Figure::plain("plain_p50_ms", plain.median(), "ms"),
        Figure::plain("plain_p95_ms", plain.percentile(95.0), "ms"),
        Figure::plain("starts_per_side", ours.len() as f64, "count"),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bars_are_on_ratios_of_the_same_percentile() {
        let burst_ms = (1..=10).map(|n| f64::from(n) * 10.0).collect();
        let plain_ms = (1..=10).map(|n| f64::from(n) * 100.0).collect();
        let figures = figures(Measured { burst_ms, plain_ms, ..Measured::default() });
        for figure in &figures[..2] {
            assert_eq!((figure.value, figure.holds), (0.1, Some(true)), "{}", figure.name);
        }
        let slow = Measured { burst_ms: vec![60.0], plain_ms: vec![100.0], ..Measured::default() };
        assert!(self::figures(slow)[..2].iter().all(|figure| figure.holds == Some(false)));
        assert_eq!(self::figures(Measured::default())[0].holds, Some(false), "nothing measured");
    }
}
