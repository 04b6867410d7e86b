//! `callboard bench idle`: what kernels cost that nobody uses, and whether all of them answer.

mod fleet;

use std::{collections::BTreeSet, time::Duration};

use callboard_protocol::{KernelId, control::Standby, kernel::ReplicaRole};
use clap::Args;
use tokio::time::{Instant, sleep};

use self::fleet::Fleet;
use super::{
    local_cluster::LocalCluster,
    options::Options,
    process::{self, Tree},
    report::{Bar, Figure, Machine, Report},
    stats::Samples,
};
use crate::{
    context::Context,
    exit::{Exit, Failure, Outcome},
    output::say,
};

/// Replicas of each kernel, on as many nodes.
const REPLICAS: u8 = 3;
/// Kernels that are there when memory is measured first.
const BASE_KERNELS: usize = 50;
/// The same of a quick run, and its kernels.
const QUICK_BASE_KERNELS: usize = 8;
const QUICK_KERNELS: usize = 32;
/// From so many kernels on, each is asked for a cell by default.
const REACH_FROM_KERNELS: usize = 1_000;
/// How long processor time is measured.
const WATCH: Duration = Duration::from_secs(60);
const QUICK_WATCH: Duration = Duration::from_secs(15);
/// What a cell of a sleeping kernel may take.
const REACH_WITHIN_S: f64 = 3.0;
/// Kernels in a burst, and bursts that are sampled.
const BURST: usize = 5;
const BURSTS: usize = 10;
/// How long standbys may take to have their Python processes.
const WARM_WITHIN: Duration = Duration::from_secs(60);
/// After so long all that starting left behind has settled: views, pools, freed memory.
const SETTLE: Duration = Duration::from_secs(5);

/// How long it takes on a small machine.
pub const TAKES: Duration = Duration::from_secs(240);

/// Arguments of the bench.
#[derive(Debug, Args)]
pub struct IdleArgs {
    #[command(flatten)]
    options: Options,
    /// How many kernels, three replicas each.
    #[arg(long, default_value_t = 200, value_name = "N", conflicts_with = "quick")]
    kernels: usize,
    /// Run a cell in every kernel, too; the default from 1000 kernels on.
    #[arg(long)]
    reach: bool,
}

/// Measures.
///
/// # Errors
/// A [`Failure`] if something is missing on this machine, or a side could not be measured.
pub async fn run(context: &Context, args: &IdleArgs) -> Outcome {
    let quick = args.options.quick;
    let kernels = if quick { QUICK_KERNELS } else { args.kernels };
    let base = if quick { QUICK_BASE_KERNELS } else { BASE_KERNELS.min(kernels / 2) };
    if kernels < 2 {
        return Err(Failure::usage("use at least 2 kernels: memory is measured as a slope"));
    }
    let cluster = LocalCluster::start_with(3, &args.options, &fleet::SETTINGS).await?;
    let mut fleet = Fleet::new(cluster);
    fleet.grow(base).await?;
    sleep(SETTLE).await;
    let before = fleet.memory_mib().await?;
    fleet.grow(kernels).await?;
    sleep(SETTLE).await;
    let after = fleet.memory_mib().await?;
    #[expect(clippy::cast_precision_loss, reason = "counts of kernels are small")]
    let grown = ((kernels - base) * usize::from(REPLICAS)) as f64;
    let mut figures = watch(&fleet, if quick { QUICK_WATCH } else { WATCH }).await;
    figures.push(Figure::held(
        "mib_per_thin_replica",
        (after - before) / grown,
        "MiB",
        Bar::AtMost(2.0),
    ));
    figures.push(Figure::plain("nodes_mib", after, "MiB"));
    let listed = fleet.cluster.client().control().list_kernels().await?.kernels.len();
    figures.push(count("listed", listed, kernels));
    if quick || args.reach || kernels >= REACH_FROM_KERNELS {
        figures.extend(reach(&fleet).await?);
    }
    figures.push(hot_standby(&fleet).await?);
    let Options { seed, .. } = args.options;
    fleet.cluster.stop().await;
    let report = Report { bench: "idle", seed, machine: Machine::here(), figures };
    report.print(context.printer)
}

#[expect(clippy::cast_precision_loss, reason = "counts of kernels are small")]
fn count(name: &str, value: usize, at_least: usize) -> Figure {
    Figure::held(name, value as f64, "count", Bar::AtLeast(at_least as f64))
}

/// Processor time of everything that `callboard up` started, itself and the broker included.
async fn watch(fleet: &Fleet, how_long: Duration) -> Vec<Figure> {
    say(&format!("watching {} idle kernels for {} s", fleet.kernels.len(), how_long.as_secs()));
    let family = Tree::now().family(fleet.cluster.up_pid());
    let before = process::cpu_seconds(&family);
    sleep(how_long).await;
    let after = process::cpu_seconds(&family);
    let percent = |pid: &u32, then: &f64| {
        after.get(pid).map_or(0.0, |now| (now - then) * 100.0 / how_long.as_secs_f64())
    };
    let each: Vec<(u32, f64)> = before.iter().map(|(pid, it)| (*pid, percent(pid, it))).collect();
    let total = each.iter().map(|(_, it)| it).sum();
    let mut figures = vec![Figure::held("cpu_percent_of_core", total, "percent", Bar::AtMost(2.0))];
    let mut pythons = 0.0;
    for (pid, share) in each {
        let name = process::name(pid);
        if name.starts_with("python") {
            pythons += share;
        } else {
            figures.push(Figure::plain(format!("cpu_percent_{name}"), share, "percent"));
        }
    }
    figures.push(Figure::plain("cpu_percent_python", pythons, "percent"));
    figures
}

/// Runs a cell in every kernel, one after the other, and a sample of bursts once they sleep again.
async fn reach(fleet: &Fleet) -> Result<Vec<Figure>, Failure> {
    say(&format!("running a cell in each of {} sleeping kernels", fleet.kernels.len()));
    let mut times = Vec::new();
    let mut within = 0;
    for (place, kernel) in fleet.kernels.iter().enumerate() {
        let took = fleet.cell(*kernel).await;
        within += usize::from(took.is_some_and(|it| it <= REACH_WITHIN_S));
        match took {
            Some(seconds) => times.push(seconds),
            None => say(&format!("kernel {kernel} did not answer")),
        }
        if (place + 1) % 100 == 0 {
            say(&format!("{within} of {} within {REACH_WITHIN_S} s", place + 1));
        }
    }
    let times = Samples::new(times);
    let mut figures = vec![
        count("reachable_within_3_s", within, fleet.kernels.len()),
        Figure::plain("wake_p50_s", times.percentile(50.0), "s"),
        Figure::plain("wake_p95_s", times.percentile(95.0), "s"),
        Figure::plain("wake_max_s", times.percentile(100.0), "s"),
    ];
    figures.push(bursts(fleet).await?);
    Ok(figures)
}

async fn bursts(fleet: &Fleet) -> Result<Figure, Failure> {
    fleet.all_asleep(0).await?;
    let mut times = Vec::new();
    for burst in fleet.kernels.chunks(BURST).take(BURSTS) {
        let cells = burst.iter().map(|kernel| fleet.cell(*kernel));
        times.extend(futures::future::join_all(cells).await.into_iter().flatten());
    }
    let times = Samples::new(times);
    Ok(Figure::plain(format!("wake_in_bursts_of_{BURST}_p95_s"), times.percentile(95.0), "s"))
}

/// What a standby with a warm Python process has to itself: the processes that appear on the nodes
/// of a kernel's standbys when it starts.
async fn hot_standby(fleet: &Fleet) -> Result<Figure, Failure> {
    let before: BTreeSet<u32> = Tree::now().family(fleet.cluster.up_pid());
    let kernel: KernelId = fleet.start(Standby::Hot).await?;
    // A cell settles who executes, and with it who stands by.
    if fleet.cell(kernel).await.is_none() {
        return Err(Failure::new(Exit::Failed, format!("kernel {kernel} ran no cell")));
    }
    let status = fleet.cluster.client().kernel(kernel).show().await?;
    let nodes = fleet.cluster.client().control().list_nodes().await?.nodes;
    let standbys: BTreeSet<_> = status
        .replicas
        .iter()
        .filter(|it| it.role == ReplicaRole::Standby)
        .filter_map(|it| nodes.iter().find(|node| node.node == it.node).map(|node| node.pid))
        .collect();
    let until = Instant::now() + WARM_WITHIN;
    let mut unique = unique_mib(&standbys, &before);
    while unique.len() < standbys.len() && Instant::now() < until {
        sleep(SETTLE).await;
        unique = unique_mib(&standbys, &before);
    }
    // What it still imports is its own, too.
    sleep(SETTLE).await;
    let mib = Samples::new(unique_mib(&standbys, &before)).median();
    Ok(Figure::held("mib_per_hot_standby", mib, "MiB", Bar::AtMost(30.0)))
}

/// Private memory of the largest process that is new on each of these nodes, if one is: the
/// kernel. What stands beside it, if anything, waits for it to end.
fn unique_mib(nodes: &BTreeSet<u32>, before: &BTreeSet<u32>) -> Vec<f64> {
    let tree = Tree::now();
    let largest = |node: &u32| {
        let new = tree.family(*node).into_iter().filter(|pid| !before.contains(pid));
        new.filter_map(process::memory).map(|it| it.unique_mib).reduce(f64::max)
    };
    nodes.iter().filter_map(largest).collect()
}
