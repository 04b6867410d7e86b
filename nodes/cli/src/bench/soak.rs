//! `callboard bench soak`: users at work and a fault every so often, for a long time; whether
//! memory and disk stay flat meanwhile, and whether anything was lost.

use std::time::Duration;

use callboard_chaos::{
    run::parent_default,
    soak::{SoakOptions, SoakReport, soak},
};
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use super::{
    chaos::failure,
    options::Options,
    report::{Bar, Figure, Machine, Report},
};
use crate::{
    context::Context,
    exit::{Exit, Failure, Outcome},
    output::say,
    python::find_python,
};

/// Most that memory and disk may grow after the warm-up, in percent.
const GROWTH_MAX_PERCENT: f64 = 10.0;
/// The quick run: seconds, users, and seconds between faults.
const QUICK: (u64, usize, u64) = (60, 4, 10);
/// Size of the log's files, in MiB: small, so that the log is as large as it gets in the warm-up.
const LOG_SEGMENT_MB: i64 = 1;
/// Seconds without a cell after which kernels hibernate, and are parked: users pause that long.
const SLEEP_AFTER_S: (i64, i64) = (3, 6);

/// How long it takes on a small machine.
pub const TAKES: Duration = Duration::from_secs(32 * 60);

/// Arguments of the bench.
#[derive(Debug, Args)]
pub struct SoakArgs {
    #[command(flatten)]
    options: Options,
    /// How long.
    #[arg(long, default_value_t = 30, value_name = "MINUTES", conflicts_with = "quick")]
    minutes: u64,
    /// Users at a time, each with a kernel of three replicas.
    #[arg(long, default_value_t = 20, value_name = "N", conflicts_with = "quick")]
    sessions: usize,
    /// Seconds from one fault to the next.
    #[arg(long, default_value_t = 20, value_name = "SECONDS", conflicts_with = "quick")]
    fault_every: u64,
}

/// Measures.
///
/// # Errors
/// A [`Failure`] if something is missing on this machine, or a side could not be measured.
pub async fn run(context: &Context, args: &SoakArgs) -> Outcome {
    let (seconds, users, fault_every) = match args.options.quick {
        true => QUICK,
        false => (args.minutes * 60, args.sessions, args.fault_every),
    };
    let config = [
        ("log_segment_mb", LOG_SEGMENT_MB),
        ("hibernate_after_s", SLEEP_AFTER_S.0),
        ("park_after_s", SLEEP_AFTER_S.1),
    ];
    let config = config.map(|(key, value)| (key.to_owned(), toml::Value::Integer(value)));
    let options = SoakOptions {
        program: std::env::current_exe()?,
        python: find_python(&args.options.python.clone().unwrap_or_default())?,
        length: Duration::from_secs(seconds),
        users,
        fault_every: Duration::from_secs(fault_every.max(1)),
        seed: args.options.seed,
        parent: args.options.dir.clone().unwrap_or_else(parent_default),
        config: config.into_iter().collect(),
    };
    let fail = |error| Failure::environment(format!("cannot listen for signals: {error}"));
    let mut interrupt = signal(SignalKind::interrupt()).map_err(fail)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(fail)?;
    let stop = async {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        say("stopping the cluster of this run");
    };
    let found = soak(&options, &say, stop).await.map_err(failure)?;
    for finding in found.inconsistent.iter().chain(&found.problems) {
        say(&format!("FAILED: {finding}"));
    }
    say(&format!("samples, picture and logs are in {}", found.folder.display()));
    let report = Report {
        bench: "soak",
        seed: args.options.seed,
        machine: Machine::here(),
        figures: figures(&found, args.options.quick),
    };
    let exit = report.print(context.printer)?;
    let is_ok = found.inconsistent.is_empty() && found.problems.is_empty();
    Ok(if is_ok { exit } else { Exit::Failed })
}

#[expect(clippy::cast_precision_loss, reason = "counts are small")]
fn figures(found: &SoakReport, quick: bool) -> Vec<Figure> {
    let none = |name, value: Option<u64>| {
        Figure::held(name, value.map_or(f64::NAN, |it| it as f64), "count", Bar::AtMost(0.0))
    };
    // A minute is too short to tell growth from warm-up.
    let growth = |name, values: &[Option<f64>]| {
        let worst = values.iter().copied().map(|it| it.unwrap_or(f64::NAN)).fold(f64::MIN, worse);
        match quick {
            true => Figure::plain(name, worst, "percent"),
            false => Figure::held(name, worst, "percent", Bar::AtMost(GROWTH_MAX_PERCENT)),
        }
    };
    let plain =
        |name, value: Option<f64>, unit| Figure::plain(name, value.unwrap_or(f64::NAN), unit);
    let [nodes, spared, python] = found.memory_growth;
    let [disks, spared_disk] = found.disk_growth;
    vec![
        none("acknowledged_cells_lost", found.lost),
        none("cells_run_twice", found.run_twice),
        none("interrupted_without_answer", found.unanswered),
        growth("memory_growth_percent", &found.memory_growth),
        growth("disk_growth_percent", &found.disk_growth),
        plain("memory_growth_nodes_percent", nodes, "percent"),
        plain("memory_growth_spared_node_percent", spared, "percent"),
        plain("memory_growth_python_percent", python, "percent"),
        plain("disk_growth_all_percent", disks, "percent"),
        plain("disk_growth_spared_node_percent", spared_disk, "percent"),
        Figure::plain("faults_struck", found.faults as f64, "count"),
        Figure::plain("cells", found.cells as f64, "count"),
        Figure::plain("kernels", found.kernels as f64, "count"),
    ]
}

/// The larger; what could not be measured is worst.
fn worse(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) }
}
