//! `callboard simulate`: a trace of sessions through GPU schedulers on a virtual clock; and `callboard
//! explain`: why they decided as they did.

use std::{
    fs,
    io::{BufReader, BufWriter, Write as _},
    path::{Path, PathBuf},
    thread,
};

use callboard_protocol::KernelId;
use callboard_simulator::{
    compare::{self, Comparison, Kind},
    costs::Cluster,
    decisions::{self, Explainer, Header, Recorder},
    engine::Setting,
    plots,
    synthetic::{self, Fit},
    trace::{Trace, TraceLimits},
};
use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};

use crate::{
    context::Context,
    exit::{Exit, Failure, Outcome},
    output::{Printer, say, table},
};

/// Sessions of a drawn trace at most: each is as long as a real one.
const SESSIONS_MAX: i64 = 1_000_000;

/// Arguments of `simulate`.
#[derive(Debug, Clone, Args)]
pub struct SimulateArgs {
    #[command(flatten)]
    source: Source,
    /// Which schedulers: `all`, or names with commas between them.
    #[arg(long, default_value = "all", value_name = "NAME,…", value_parser = parse_kinds)]
    policy: Kinds,
    /// A file of what the cluster is made of and what things take; configs/simulator.toml has
    /// every key.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// What everything that is drawn is drawn from.
    #[arg(long, default_value_t = 1, value_name = "N")]
    seed: u64,
    /// Draw delay.svg, gpus.svg and subscription.svg into this folder.
    #[arg(long, value_name = "DIR")]
    plots: Option<PathBuf>,
    /// Write every decision of the one scheduler named by --policy into this file, for `explain`.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["plots", "what_if"])]
    decisions: Option<PathBuf>,
    /// Run once for each value of one key of the configuration, such as `forecast.z=1,2,3`.
    #[arg(long, value_name = "KEY=V1,V2,…", conflicts_with = "plots")]
    what_if: Option<String>,
}

/// Where the trace comes from.
#[derive(Debug, Clone, Args)]
pub struct Source {
    /// A file of comma-separated values with the columns session, gpus, submit_min, duration_min.
    #[arg(long, value_name = "FILE", required_unless_present = "synthetic")]
    pub(crate) trace: Option<PathBuf>,
    /// Draw so many sessions instead, like those of a production notebook platform.
    #[arg(long, value_name = "SESSIONS", conflicts_with = "trace",
          value_parser = clap::value_parser!(u32).range(1..=SESSIONS_MAX))]
    pub(crate) synthetic: Option<u32>,
    /// Days of a drawn trace.
    #[arg(long, default_value_t = 30, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=3_650))]
    pub(crate) days: u64,
    /// Leave out rows that make no sense, and say how many there were.
    #[arg(long)]
    pub(crate) skip_bad: bool,
    /// Where time ends, in minutes; durations are cut there [default: the end of the last day in
    /// which a task was submitted].
    #[arg(long, value_name = "MINUTES", value_parser = clap::value_parser!(u64).range(1..=52_704_000))]
    pub(crate) horizon_min: Option<u64>,
}

/// Schedulers that were asked for.
#[derive(Debug, Clone)]
struct Kinds(Vec<Kind>);

fn parse_kinds(text: &str) -> Result<Kinds, String> {
    if text == "all" {
        return Ok(Kinds(Kind::ALL.to_vec()));
    }
    let known = || Kind::ALL.map(Kind::name).join(", ");
    let find = |name: &str| Kind::ALL.into_iter().find(|it| it.name() == name);
    let kinds = text.split(',').map(|name| {
        find(name.trim()).ok_or_else(|| {
            format!("there is no scheduler '{name}': name some of {}, or all", known())
        })
    });
    Ok(Kinds(kinds.collect::<Result<_, _>>()?))
}

/// Simulates.
///
/// # Errors
/// A [`Failure`] if the trace or the configuration cannot be used.
pub async fn run(context: &Context, args: SimulateArgs) -> Outcome {
    let printer = context.printer;
    let work = move || simulate(printer, &args);
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Failure::new(Exit::Internal, format!("the simulation broke: {error}")))?
}

fn simulate(printer: Printer, args: &SimulateArgs) -> Outcome {
    let cluster = cluster(args.config.as_deref())?;
    let (trace, fit) = open(&args.source, &cluster, args.seed)?;
    if let Some(what_if) = &args.what_if {
        return sweep(printer, args, &trace, &cluster, what_if);
    }
    if let Some(file) = &args.decisions {
        return record(args, &trace, cluster, file);
    }
    let comparison = compare_all(&trace, &cluster, &args.policy.0, args.seed)?;
    if let Some(folder) = &args.plots {
        fs::create_dir_all(folder)?;
        plots::draw(&comparison, folder).map_err(Failure::environment)?;
        say(&format!("plots: {}", folder.display()));
    }
    let value = as_json(&comparison, &trace, args.seed, fit);
    printer.data(&value, |_| as_text(&comparison, &trace, args.seed, fit))?;
    Ok(Exit::Ok)
}

/// Reads the configuration, or takes the defaults.
pub(crate) fn cluster(file: Option<&Path>) -> Result<Cluster, Failure> {
    let Some(file) = file else { return Ok(Cluster::default()) };
    let fail = |why: &dyn std::fmt::Display| {
        Failure::usage(format!("cannot use {}: {why}", file.display()))
    };
    let text = fs::read_to_string(file).map_err(|error| fail(&error))?;
    let cluster: Cluster = toml::from_str(&text).map_err(|error| fail(&error))?;
    checked(cluster).map_err(|why| fail(&why))
}

fn checked(cluster: Cluster) -> Result<Cluster, String> {
    let problems = cluster.problems();
    if problems.is_empty() { Ok(cluster) } else { Err(problems.join("; ")) }
}

/// Opens the trace that was asked for.
pub(crate) fn open(
    source: &Source,
    cluster: &Cluster,
    seed: u64,
) -> Result<(Trace, Option<Fit>), Failure> {
    if let Some(sessions) = source.synthetic {
        let (trace, fit) = synthetic::draw(sessions, source.days, seed);
        return Ok((trace, Some(fit)));
    }
    let limits = TraceLimits {
        gpus_max: cluster.node.gpus,
        skip_bad: source.skip_bad,
        horizon_min: source.horizon_min,
    };
    let file = source.trace.clone().unwrap_or_default();
    let trace = Trace::open(&file, limits).map_err(Failure::usage)?;
    Ok((trace, None))
}

/// Compares with a progress bar.
pub(crate) fn compare_all(
    trace: &Trace,
    cluster: &Cluster,
    kinds: &[Kind],
    seed: u64,
) -> Result<Comparison, Failure> {
    let is_equalled = kinds.contains(&Kind::Callboard) && kinds.contains(&Kind::Notebookos);
    let bar = ProgressBar::with_draw_target(
        Some((kinds.len() + usize::from(is_equalled)) as u64),
        ProgressDrawTarget::stderr(),
    );
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} schedulers, {msg}") {
        bar.set_style(style);
    }
    bar.set_message(format!("{} tasks each", trace.tasks));
    let done = |_: Kind| bar.inc(1);
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let comparison = compare::compare(trace, cluster, kinds, seed, threads, &done);
    bar.finish_and_clear();
    comparison.map_err(Failure::environment)
}

/// Runs one scheduler and writes what it decides.
fn record(args: &SimulateArgs, trace: &Trace, cluster: Cluster, file: &Path) -> Outcome {
    let [policy] = args.policy.0[..] else {
        return Err(Failure::usage("--decisions is for one scheduler: name it with --policy"));
    };
    let fail = |error: std::io::Error| {
        Failure::environment(format!("cannot write {}: {error}", file.display()))
    };
    let header = Header { policy, seed: args.seed, cluster };
    let to = BufWriter::new(fs::File::create(file).map_err(fail)?);
    let mut recorder = Recorder::new(to, &header).map_err(fail)?;
    let setting = Setting {
        trace,
        cluster: &header.cluster,
        seed: args.seed,
        windows: &[],
        nodes: 0,
        sample_every_ms: trace.horizon_ms.max(1),
    };
    compare::run(policy, &setting, &mut recorder).map_err(Failure::environment)?;
    recorder.finish().map_err(fail)?;
    say(&format!("decisions of {}: {}", policy.name(), file.display()));
    Ok(Exit::Ok)
}

/// Arguments of `explain`.
#[derive(Debug, Clone, Args)]
pub struct ExplainArgs {
    /// A file that `simulate --decisions` wrote.
    file: PathBuf,
    /// Only what concerns this kernel: its id, or its number in the trace.
    #[arg(long, value_name = "KERNEL", value_parser = parse_kernel)]
    kernel: Option<KernelId>,
    /// Decide everything again and say whether it comes out the same.
    #[arg(long)]
    replay: bool,
}

fn parse_kernel(text: &str) -> Result<KernelId, String> {
    if let Ok(number) = text.parse::<u64>() {
        return Ok(KernelId::from_number(u128::from(number)));
    }
    text.parse().map_err(|_| format!("'{text}' is neither a kernel's id nor a number"))
}

/// Says why a simulated scheduler decided as it did.
///
/// # Errors
/// A [`Failure`] if the file cannot be read.
pub fn explain(context: &Context, args: &ExplainArgs) -> Outcome {
    let fail = |why: &dyn std::fmt::Display| {
        Failure::usage(format!("cannot explain {}: {why}", args.file.display()))
    };
    let from = BufReader::new(fs::File::open(&args.file).map_err(|error| fail(&error))?);
    let (header, records) = decisions::read(from).map_err(|error| fail(&error))?;
    if args.replay {
        let replayed = decisions::replay(&header, records).map_err(|error| fail(&error))?;
        context.printer.data(&replayed, |it| match it.first_differing_at_ms {
            None => format!("{} decisions, all the same", it.decisions),
            Some(at_ms) => format!(
                "{} decisions, {} differ; the first after {} ms",
                it.decisions, it.differing, at_ms
            ),
        })?;
        return Ok(if replayed.differing == 0 { Exit::Ok } else { Exit::Failed });
    }
    let mut explainer = Explainer::default();
    let mut out = BufWriter::new(std::io::stdout().lock());
    for record in records {
        let record = record.map_err(|error| fail(&error))?;
        for line in explainer.explain(&record, args.kernel) {
            let line = if context.printer.is_json() {
                json!({ "simulated": true, "at_ms": record.at_ms, "explanation": line }).to_string()
            } else {
                line
            };
            if writeln!(out, "{line}").is_err() {
                // Whoever read has read enough.
                return Ok(Exit::Ok);
            }
        }
    }
    let _read_enough = out.flush();
    Ok(Exit::Ok)
}

fn as_json(comparison: &Comparison, trace: &Trace, seed: u64, fit: Option<Fit>) -> Value {
    let rows = comparison.rows.iter().flat_map(|row| {
        comparison.windows.iter().zip(&row.summaries).map(
            |((window, span), summary)| json!({ "policy": row.kind, "window": window, "span": span, "figures": summary }),
        )
    });
    let bounds = comparison
        .windows
        .iter()
        .zip(&comparison.bounds)
        .map(|((window, _), bounds)| json!({ "window": window, "gpu_hours": bounds }));
    json!({
        "simulated": true,
        "seed": seed,
        "sessions": trace.sessions.len(),
        "tasks": trace.tasks,
        "skipped_rows": trace.skipped,
        "fit": fit,
        "bounds": bounds.collect::<Vec<_>>(),
        "runs": rows.collect::<Vec<_>>(),
    })
}

/// Windows that a table shows; JSON has all.
const SHOWN: usize = 3;

fn as_text(comparison: &Comparison, trace: &Trace, seed: u64, fit: Option<Fit>) -> String {
    let mut text = format!(
        "simulated · seed {seed} · {} sessions, {} tasks{}\n",
        trace.sessions.len(),
        trace.tasks,
        if trace.skipped == 0 {
            String::new()
        } else {
            format!(", {} bad rows left out", trace.skipped)
        },
    );
    if let Some(fit) = fit {
        text += &format!(
            "drawn; Kolmogorov-Smirnov distance to the measured distributions: durations of 1, 4, 8 \
             GPUs {:.3}, {:.3}, {:.3}, pauses {:.3}, tasks per session {:.3}; {:.1} tasks run at once\n",
            fit.duration_1, fit.duration_4, fit.duration_8, fit.pause, fit.tasks, fit.running_mean
        );
    }
    let long = comparison.windows.iter().enumerate().filter(|(_, it)| !it.0.contains('#'));
    for (place, (window, _)) in long.take(SHOWN) {
        let bounds = comparison.bounds[place];
        text += &format!(
            "\n{window}: tasks use {:.0} GPU-hours, the floor is {:.0}, sessions span {:.0}\n",
            bounds.used, bounds.floor, bounds.reserved
        );
        let rows = comparison.rows.iter().map(|row| {
            let it = &row.summaries[place];
            vec![
                row.kind.name().to_owned(),
                format!("{:.0}", it.gpu_hours),
                format!("{:.3}", it.gpu_hours / bounds.floor),
                format!("{:.1} %", it.started_within_1s * 100.0),
                format!("{:.2}", it.delay_p50_s),
                format!("{:.2}", it.delay_p95_s),
                format!("{:.2}", it.delay_p99_s),
                format!("{:.0}", it.completion_mean_s),
                it.migrations.to_string(),
                format!("{}/{}", it.nodes_booted, it.nodes_given_back),
                format!("{:.0}", it.cost),
                format!("{:.0}", it.revenue - it.cost),
            ]
        });
        text += &table(
            &[
                "policy",
                "GPU-hours",
                "of floor",
                "within 1 s",
                "p50 s",
                "p95 s",
                "p99 s",
                "done, mean s",
                "moves",
                "nodes +/-",
                "cost",
                "margin",
            ],
            rows,
        );
    }
    text
}

fn sweep(
    printer: Printer,
    args: &SimulateArgs,
    trace: &Trace,
    cluster: &Cluster,
    what_if: &str,
) -> Outcome {
    let Some((key, values)) = what_if.split_once('=') else {
        return Err(Failure::usage(format!(
            "'{what_if}' is no sweep: write a key, '=' and values, such as forecast.z=1,2,3"
        )));
    };
    let clusters: Vec<(String, Cluster)> = values
        .split(',')
        .map(|value| Ok((value.to_owned(), with(cluster, key, value)?)))
        .collect::<Result<_, Failure>>()?;
    let mut runs = Vec::new();
    for (value, cluster) in &clusters {
        for kind in &args.policy.0 {
            let found = compare_all(trace, cluster, &[*kind], args.seed)?;
            let Some(row) = found.rows.into_iter().next() else { continue };
            let Some(summary) = row.summaries.into_iter().next() else { continue };
            runs.push((value.clone(), *kind, summary, found.bounds[0].floor));
        }
    }
    let list: Vec<Value> = runs
        .iter()
        .map(|(value, kind, figures, floor)| {
            json!({ "key": key, "value": value, "policy": kind, "floor_gpu_hours": floor, "figures": figures })
        })
        .collect();
    printer.data(&json!({ "simulated": true, "seed": args.seed, "runs": list }), |_| {
        let rows = runs.iter().map(|(value, kind, it, floor)| {
            vec![
                value.clone(),
                kind.name().to_owned(),
                format!("{:.0}", it.gpu_hours),
                format!("{:.3}", it.gpu_hours / floor),
                format!("{:.1} %", it.started_within_1s * 100.0),
                format!("{:.2}", it.delay_p50_s),
                format!("{:.2}", it.delay_p99_s),
            ]
        });
        table(&[key, "policy", "GPU-hours", "of floor", "within 1 s", "p50 s", "p99 s"], rows)
    })?;
    Ok(Exit::Ok)
}

/// The cluster with one key set.
fn with(cluster: &Cluster, key: &str, value: &str) -> Result<Cluster, Failure> {
    let fail = |why: &dyn std::fmt::Display| {
        Failure::usage(format!(
            "cannot set {key} to {value}: {why}; configs/simulator.toml has every key"
        ))
    };
    let mut table = toml::Table::try_from(cluster).map_err(|error| fail(&error))?;
    let parsed: toml::Table = format!("value = {value}").parse().map_err(|error| fail(&error))?;
    let mut place = &mut table;
    let (path, last) = key.rsplit_once('.').map_or((None, key), |(path, last)| (Some(path), last));
    for part in path.into_iter().flat_map(|path| path.split('.')) {
        place = place
            .get_mut(part)
            .and_then(toml::Value::as_table_mut)
            .ok_or_else(|| fail(&format!("there is no '{part}'")))?;
    }
    let (Some(old), Some(new)) = (place.get(last), parsed.get("value")) else {
        return Err(fail(&format!("there is no '{last}'")));
    };
    let new = match (old, new) {
        (toml::Value::Float(_), toml::Value::Integer(whole)) => toml::Value::Float(*whole as f64),
        _ => new.clone(),
    };
    place.insert(last.to_owned(), new);
    checked(table.try_into().map_err(|error: toml::de::Error| fail(&error))?)
        .map_err(|why| fail(&why))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_file_has_every_key_with_its_default() {
        let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
        let file = root.join("configs/simulator.toml");
        assert_eq!(cluster(Some(&file)).unwrap(), Cluster::default());
        let keys = |table: &toml::Table| {
            let mut keys: Vec<String> = table
                .iter()
                .flat_map(|(key, value)| match value {
                    toml::Value::Table(inner) => {
                        inner.keys().map(|it| format!("{key}.{it}")).collect()
                    }
                    _ => vec![key.clone()],
                })
                .collect();
            keys.sort();
            keys
        };
        let shipped: toml::Table = fs::read_to_string(&file).unwrap().parse().unwrap();
        assert_eq!(keys(&shipped), keys(&toml::Table::try_from(Cluster::default()).unwrap()));
    }

    #[test]
    fn one_key_is_set_and_what_cannot_be_set_is_named() {
        let cluster = Cluster::default();
        assert!((with(&cluster, "forecast.z", "3").unwrap().forecast.z - 3.0).abs() < 1e-9);
        assert_eq!(with(&cluster, "boot_ms", "60000").unwrap().boot_ms, 60_000);
        for (key, value, says) in [
            ("forecast.y", "3", "there is no 'y'"),
            ("boots.z", "3", "there is no 'boots'"),
            ("forecast.z", "300", "-5 to 20"),
            ("boot_ms", "soon", "cannot set boot_ms to soon"),
        ] {
            let message = with(&cluster, key, value).unwrap_err().message;
            assert!(message.contains(says), "{message}");
        }
    }

    #[test]
    fn schedulers_are_named_or_all() {
        assert_eq!(parse_kinds("all").unwrap().0.len(), 8);
        assert_eq!(parse_kinds("callboard, notebookos").unwrap().0.len(), 2);
        assert!(parse_kinds("tiresias").unwrap_err().contains("reservation, "));
    }
}
