//! `callboard bench notebooks`: real notebooks, run cell by cell while their machines are lost, must
//! end with the outputs of plain ipykernel.

mod environment;
mod kills;
mod library;
mod outputs;
mod plain;
mod trial;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use clap::Parser;

use self::{library::Notebook, plain::Exclusion};
use super::{
    Bench,
    failover::Loss,
    local_cluster::LocalCluster,
    options::{Options, interruptible, parse},
    report::{Bar, Figure, Machine, Report},
    stats::Samples,
};
use crate::{
    context::Context,
    exit::{Exit, Failure, Outcome},
    output::say,
};

/// Where Debian's python-sklearn-doc has its notebooks.
const FOLDER_DEFAULT: &str = "/usr/share/doc/python-sklearn-doc/html/_downloads";
/// The bench's own last cell: a line for each name of the session.
const CLOSING: &str = include_str!("closing.py");
/// Notebooks of a full and of a quick run.
const COUNT: usize = 20;
const COUNT_QUICK: usize = 3;
/// How long a plain run may take, its start included: twenty long ones would take an hour.
const PLAIN_WITHIN: Duration = Duration::from_secs(120);
/// The same of a quick run: three notebooks run three times each in under 100 seconds.
const PLAIN_WITHIN_QUICK: Duration = Duration::from_secs(15);
/// A quick run begins no further notebook after this, however slow the machine.
const QUICK_BEGINS_FOR: Duration = Duration::from_secs(65);

/// The bench.
#[derive(Debug)]
pub struct Notebooks;

#[derive(Debug, Parser)]
#[command(about = "Notebooks that lose their machines between cells, against plain ipykernel")]
struct NotebooksArgs {
    #[command(flatten)]
    options: Options,
    /// The folder of the notebooks; files end in .ipynb or .ipynb.gz.
    #[arg(default_value = FOLDER_DEFAULT, value_name = "DIR")]
    folder: PathBuf,
    /// Only notebooks whose path contains this.
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// How many notebooks [default: 20, 3 with --quick].
    #[arg(long, value_name = "N")]
    count: Option<usize>,
    /// Where the environment of the notebooks is made, once [default: below the user's cache].
    #[arg(long, value_name = "DIR", conflicts_with = "python")]
    env: Option<PathBuf>,
}

#[async_trait]
impl Bench for Notebooks {
    fn name(&self) -> &'static str {
        "notebooks"
    }

    fn about(&self) -> &'static str {
        "notebooks that lose their machines between cells, against plain ipykernel"
    }

    fn duration(&self) -> Duration {
        Duration::from_secs(20 * 60)
    }

    async fn run(&self, context: &Context, args: &[String]) -> Outcome {
        match parse::<NotebooksArgs>(self.name(), args)? {
            Some(args) => interruptible(run(context, &args)).await,
            None => Ok(Exit::Ok),
        }
    }
}

/// The bench's first cell, the same on both sides.
fn enter(scratch: &Path) -> String {
    format!("%cd -q {}", scratch.display())
}

async fn run(context: &Context, args: &NotebooksArgs) -> Outcome {
    let options = &args.options;
    let python = match &options.python {
        Some(python) => python.clone(),
        None => {
            let usual = environment::directory_default();
            environment::prepare(args.env.as_deref().unwrap_or(&usual)).await?
        }
    };
    let all = library::read(&python, &args.folder).await?;
    let is_wanted =
        |notebook: &Notebook| args.only.as_ref().is_none_or(|only| notebook.path.contains(only));
    let wanted: Vec<Notebook> = all.into_iter().filter(is_wanted).collect();
    if wanted.is_empty() {
        return Err(Failure::usage("no notebook has that in its path"));
    }
    let options = Options { python: Some(python.clone()), ..options.clone() };
    let cluster = LocalCluster::start(3, &options).await?;
    plain::check(&python, cluster.path(), PLAIN_WITHIN).await.map_err(|why| {
        let python = python.display();
        Failure::environment(format!("plain ipykernel on {python} cannot run notebooks: {why}"))
    })?;
    let mut bench = Run { cluster: &cluster, args, options: &options, found: Found::default() };
    let result = bench.try_in_order(&wanted).await;
    let found = bench.found;
    cluster.stop().await;
    result?;
    let figures = found.figures(is_partial(args));
    let report =
        Report { bench: "notebooks", seed: options.seed, machine: Machine::here(), figures };
    report.print(options.printer(context))
}

fn is_partial(args: &NotebooksArgs) -> bool {
    args.options.quick || args.only.is_some() || args.count.is_some()
}

/// A run under way.
struct Run<'a> {
    cluster: &'a LocalCluster,
    args: &'a NotebooksArgs,
    options: &'a Options,
    found: Found,
}

impl Run<'_> {
    /// Tries notebooks until enough of them ran.
    async fn try_in_order(&mut self, notebooks: &[Notebook]) -> Result<(), Failure> {
        let usual = if self.options.quick { COUNT_QUICK } else { COUNT };
        let count = self.args.count.unwrap_or(usual);
        say(&format!(
            "the first {count} of {} notebooks whose two plain runs agree, seed {}",
            notebooks.len(),
            self.options.seed
        ));
        let start = Instant::now();
        for notebook in notebooks {
            if self.found.run == count {
                break;
            }
            if self.options.quick && self.found.run > 0 && start.elapsed() > QUICK_BEGINS_FOR {
                say(&format!("stopped after {}: the machine is slow", self.found.run));
                break;
            }
            if let Err(exclusion) = self.try_one(notebook).await? {
                say(&format!("{}: not taken, {exclusion}", notebook.label()));
                *self.found.excluded.entry(exclusion.reason()).or_default() += 1;
            }
        }
        Ok(())
    }

    async fn try_one(&mut self, notebook: &Notebook) -> Result<Result<(), Exclusion>, Failure> {
        let within = if self.options.quick { PLAIN_WITHIN_QUICK } else { PLAIN_WITHIN };
        let python = self.options.python.as_deref().unwrap_or(Path::new("python3"));
        let scratch = self.cluster.path().join("scratch").join(&notebook.digest);
        let measured = plain::twice(python, notebook, self.cluster.path(), &scratch, within).await;
        let measure = match measured {
            Ok(measure) => measure,
            Err(exclusion) => return Ok(Err(exclusion)),
        };
        let plan = kills::plan(self.options.seed, &notebook.path, notebook.cells.len());
        let start = Instant::now();
        let ran = trial::run(self.cluster, notebook, &plan, &scratch.join("ours"), within).await;
        let whole = start.elapsed();
        let found = &mut self.found;
        found.run += 1;
        found.cells += notebook.cells.len();
        found.kills += plan.kills.len();
        found.nodes_lost += plan.kills.iter().filter(|kill| kill.loss == Loss::Node).count();
        found.images += measure.transcript.images();
        found.names += measure.transcript.names();
        found.plain_s.push(measure.seconds);
        let differences = match ran {
            Ok(ran) => {
                found.callboard_s.push(ran.seconds);
                found.refused += ran.refused.len();
                let mut told = measure.transcript.differences(&ran.transcript);
                told.extend(measure.transcript.names_differing(&ran.transcript));
                told.extend(ran.refused.into_iter().map(|name| format!("left behind: {name}")));
                told
            }
            Err(why) => vec![why],
        };
        let head = format!(
            "[{}] {}: {} cells, {} kills, {:?} standbys, plain {:.1} s, with kills {:.1} s",
            found.run,
            notebook.label(),
            notebook.cells.len(),
            plan.kills.len(),
            plan.standby,
            measure.seconds,
            whole.as_secs_f64()
        );
        if differences.is_empty() {
            say(&format!("{head}: equal"));
        } else {
            found.differing += 1;
            let told = differences.join("\n    ");
            say(&format!("{head}: DIFFERS\n    {told}\n  again: {}", self.command(notebook)));
        }
        Ok(Ok(()))
    }

    /// The command line that repeats just this notebook, with the same losses.
    fn command(&self, notebook: &Notebook) -> String {
        let (folder, path, seed) = (self.args.folder.display(), &notebook.path, self.options.seed);
        format!("callboard bench notebooks {folder} --only {path} --seed {seed}")
    }
}

/// What was found.
#[derive(Debug, Default)]
struct Found {
    run: usize,
    differing: usize,
    cells: usize,
    kills: usize,
    nodes_lost: usize,
    images: usize,
    names: usize,
    refused: usize,
    excluded: BTreeMap<&'static str, usize>,
    plain_s: Vec<f64>,
    callboard_s: Vec<f64>,
}

impl Found {
    fn figures(self, is_partial: bool) -> Vec<Figure> {
        let count = |name: &str, value: usize| Figure::plain(name, value as f64, "count");
        let run = self.run as f64;
        let mut figures = vec![
            if is_partial {
                Figure::plain("notebooks_run", run, "count")
            } else {
                Figure::held("notebooks_run", run, "count", Bar::AtLeast(COUNT as f64))
            },
            Figure::held(
                "notebooks_differing",
                if self.run == 0 { f64::NAN } else { self.differing as f64 },
                "count",
                Bar::AtMost(0.0),
            ),
            count("cells_run", self.cells),
            count("kills", self.kills),
            count("kills_of_nodes", self.nodes_lost),
            count("images_compared", self.images),
            count("names_compared", self.names),
            count("names_left_behind", self.refused),
        ];
        for reason in Exclusion::REASONS {
            let excluded = self.excluded.get(reason).copied().unwrap_or(0);
            figures.push(count(&format!("excluded_{reason}"), excluded));
        }
        for (name, seconds) in [("plain", self.plain_s), ("callboard", self.callboard_s)] {
            let samples = Samples::new(seconds);
            figures.push(Figure::plain(format!("{name}_cells_p50_s"), samples.median(), "s"));
        }
        figures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(words: &[&str]) -> NotebooksArgs {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        parse("notebooks", &words).unwrap().unwrap()
    }

    #[test]
    fn a_whole_run_is_held_to_twenty_and_a_partial_one_is_not() {
        let run = |words: &[&str]| {
            let found = Found { run: 19, ..Found::default() };
            found.figures(is_partial(&args(words)))[0].holds
        };
        assert_eq!(run(&[]), Some(false));
        assert_eq!(run(&["--quick"]), None);
        assert_eq!(run(&["--only", "x", "/folder"]), None);
    }

    #[test]
    fn a_difference_misses_the_bar_and_so_does_a_run_of_nothing() {
        let differing = |found: Found| found.figures(false)[1].holds;
        assert_eq!(differing(Found { run: 20, ..Found::default() }), Some(true));
        assert_eq!(differing(Found { run: 20, differing: 1, ..Found::default() }), Some(false));
        assert_eq!(differing(Found::default()), Some(false));
    }

    #[test]
    fn each_reason_has_its_figure() {
        let excluded = BTreeMap::from([(Exclusion::TooLong.reason(), 2)]);
        let figures = Found { excluded, ..Found::default() }.figures(false);
        let of = |name: &str| figures.iter().find(|figure| figure.name == name).unwrap().value;
        assert_eq!(of("excluded_too_long"), 2.0);
        assert_eq!(of("excluded_needs_network"), 0.0);
    }
}
