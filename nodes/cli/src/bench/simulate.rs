//! `callboard bench simulate`: ours, NotebookOS's rules, reservation and the rest on one trace, on a
//! virtual clock. The hours and delays are simulated; the time and memory of the simulation are not.

use std::{
    fs,
    time::{Duration, Instant},
};

use callboard_simulator::{
    compare::{Comparison, Kind},
    metrics::Summary,
};
use clap::Args;

use super::{
    options::Options,
    report::{Bar, Figure, Machine, Report},
    stats::Samples,
};
use crate::{
    context::Context,
    exit::{Exit, Failure, Outcome},
    simulate::{Source, cluster, compare_all, open},
};

/// How long it takes on a small machine.
pub const TAKES: Duration = Duration::from_secs(40);
/// Days of the trace that a quick run looks at.
const QUICK_MIN: u64 = 3 * 24 * 60;

/// Arguments of the bench.
#[derive(Debug, Clone, Args)]
pub struct SimulateBenchArgs {
    #[command(flatten)]
    options: Options,
    #[command(flatten)]
    source: Source,
}

/// Measures.
///
/// # Errors
/// A [`Failure`] if the trace cannot be used.
pub async fn run(context: &Context, args: SimulateBenchArgs) -> Outcome {
    let printer = context.printer;
    let figures = move || measure(&args).map(|figures| (args.options.seed, figures));
    let (seed, figures) = tokio::task::spawn_blocking(figures).await.map_err(|error| {
        Failure::new(Exit::Internal, format!("the simulation broke: {error}"))
    })??;
    Report { bench: "simulate", seed, machine: Machine::here(), figures }.print(printer)
}

fn measure(args: &SimulateBenchArgs) -> Result<Vec<Figure>, Failure> {
    let began = Instant::now();
    let cluster = cluster(None)?;
    let mut source = args.source.clone();
    if args.options.quick {
        source.horizon_min = Some(source.horizon_min.unwrap_or(QUICK_MIN).min(QUICK_MIN));
    }
    let (trace, _) = open(&source, &cluster, args.options.seed)?;
    let comparison = compare_all(&trace, &cluster, &Kind::ALL, args.options.seed)?;
    let mut figures = judged(&comparison);
    figures.push(Figure::held("wall_s", began.elapsed().as_secs_f64(), "s", Bar::AtMost(60.0)));
    figures.push(Figure::plain("peak_mib", peak_mib(), "MiB"));
    figures.extend(behind(&comparison));
    Ok(figures)
}

fn of(comparison: &Comparison, kind: Kind, window: usize) -> Option<&Summary> {
    comparison.rows.iter().find(|it| it.kind == kind)?.summaries.get(window)
}

/// The figures with a bar, over the whole time.
fn judged(comparison: &Comparison) -> Vec<Figure> {
    let figure = |kind, value: fn(&Summary) -> f64| of(comparison, kind, 0).map_or(f64::NAN, value);
    let hours = |kind| figure(kind, |it| it.gpu_hours);
    let p99 = |kind| figure(kind, |it| it.delay_p99_s);
    let ours = Kind::Callboard;
    let bounds = comparison.bounds.first().copied().unwrap_or_default();
    let theirs_p99 = p99(Kind::Notebookos);
    vec![
        Figure::plain("gpu_hours_over_reservation", hours(ours) / bounds.reserved, "ratio"),
        Figure::held(
            "gpu_hours_over_floor",
            hours(ours) / bounds.floor,
            "ratio",
            Bar::AtMost(1.10),
        ),
        Figure::plain("gpu_hours_over_notebookos", hours(ours) / hours(Kind::Notebookos), "ratio"),
        Figure::held(
            "p99_over_notebookos_at_equal_gpu_hours",
            p99(Kind::CallboardEqualHours) / theirs_p99,
            "ratio",
            Bar::AtMost(0.5),
        ),
        Figure::held(
            "started_within_1s",
            figure(ours, |it| it.started_within_1s),
            "ratio",
            Bar::AtLeast(0.9),
        ),
        Figure::plain("delay_p50_s", figure(ours, |it| it.delay_p50_s), "s"),
        Figure::held("delay_p99_s", p99(ours), "s", Bar::AtMost(theirs_p99)),
        Figure::plain("delay_p99_s_notebookos", theirs_p99, "s"),
    ]
}

/// The same of the days that nothing was fitted on, and the medians of the short windows.
fn behind(comparison: &Comparison) -> Vec<Figure> {
    let mut figures = Vec::new();
    let equal = Kind::CallboardEqualHours;
    figures.push(Figure::plain(
        "equal_hours_over_notebookos",
        ratio(comparison, equal, 0),
        "ratio",
    ));
    let later = comparison.windows.iter().position(|it| it.0.starts_with("days 11"));
    for (name, windows) in [
        ("days_11_on", later.into_iter().collect::<Vec<_>>()),
        ("window_median", short(comparison)),
    ] {
        if windows.is_empty() {
            continue;
        }
        let median = |value: &dyn Fn(usize) -> f64| {
            Samples::new(windows.iter().map(|it| value(*it)).collect()).median()
        };
        let delay = |kind, it| of(comparison, kind, it).map_or(f64::NAN, |it| it.delay_p99_s);
        let floor = |it: usize| {
            of(comparison, Kind::Callboard, it).map_or(f64::NAN, |it| it.gpu_hours)
                / comparison.bounds[it].floor
        };
        let at_once =
            |it| of(comparison, Kind::Callboard, it).map_or(f64::NAN, |it| it.started_within_1s);
        figures.extend([
            Figure::plain(format!("gpu_hours_over_floor_{name}"), median(&floor), "ratio"),
            Figure::plain(format!("started_within_1s_{name}"), median(&at_once), "ratio"),
            Figure::plain(
                format!("delay_p99_{name}_s"),
                median(&|it| delay(Kind::Callboard, it)),
                "s",
            ),
            Figure::plain(
                format!("delay_p99_{name}_s_notebookos"),
                median(&|it| delay(Kind::Notebookos, it)),
                "s",
            ),
        ]);
    }
    figures
}

fn ratio(comparison: &Comparison, kind: Kind, window: usize) -> f64 {
    let hours = |kind| of(comparison, kind, window).map_or(f64::NAN, |it| it.gpu_hours);
    hours(kind) / hours(Kind::Notebookos)
}

fn short(comparison: &Comparison) -> Vec<usize> {
    let windows = comparison.windows.iter().enumerate();
    windows.filter(|(_, it)| it.0.contains('#')).map(|(place, _)| place).collect()
}

/// The most memory this process ever had.
fn peak_mib() -> f64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
    kib.map_or(f64::NAN, |kib| kib / 1_024.0)
}
