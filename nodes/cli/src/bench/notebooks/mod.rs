//! `callboard bench notebooks`: real notebooks, run cell by cell while their machines are lost, must
//! end with the outputs of plain ipykernel.

pub(super) mod choice;
pub(super) mod environment;
mod figures;
mod kills;
pub(super) mod library;
pub(super) mod outputs;
pub(super) mod plain;
mod trial;

use std::{
    path::Path,
    time::{Duration, Instant},
};

use callboard_protocol::control::Standby;
use clap::Args;

use self::{choice::Choice, figures::Found, library::Notebook, plain::Exclusion};
use super::{
    local_cluster::LocalCluster,
    options::Options,
    report::{Machine, Report},
};
use crate::{context::Context, exit::Outcome, output::say};

/// The bench's own last cell: a line for each name of the session.
const CLOSING: &str = include_str!("closing.py");
/// Notebooks of a full and of a quick run.
const COUNT: usize = 20;
const COUNT_QUICK: usize = 3;
/// How long a plain run may take, its start included: twenty long ones would take an hour.
pub(super) const PLAIN_WITHIN: Duration = Duration::from_secs(120);
/// The same of a quick run: three notebooks run three times each in under 100 seconds.
pub(super) const PLAIN_WITHIN_QUICK: Duration = Duration::from_secs(15);
/// A quick run begins no further notebook after this, however slow the machine.
const QUICK_BEGINS_FOR: Duration = Duration::from_secs(65);

/// How long it takes on a small machine.
pub const TAKES: Duration = Duration::from_secs(20 * 60);

/// Arguments of the bench.
#[derive(Debug, Args)]
pub struct NotebooksArgs {
    #[command(flatten)]
    options: Options,
    #[command(flatten)]
    choice: Choice,
}

/// The bench's first cell, the same on both sides.
fn enter(scratch: &Path) -> String {
    format!("%cd -q {}", scratch.display())
}

/// Measures.
///
/// # Errors
/// A [`crate::exit::Failure`] if something is missing on this machine, or a side could not be measured.
pub async fn run(context: &Context, args: &NotebooksArgs) -> Outcome {
    let options = &args.options;
    let (environment, wanted) = args.choice.open(options).await?;
    let python = environment.kernels;
    let options = Options { python: Some(python.clone()), ..options.clone() };
    let cluster = LocalCluster::start(3, &options).await?;
    plain::check(&python, cluster.path(), PLAIN_WITHIN).await?;
    let mut bench = Run { cluster: &cluster, args, options: &options, found: Found::default() };
    bench.try_in_order(&wanted).await;
    let found = bench.found;
    cluster.stop().await;
    let figures = found.figures(args.choice.is_partial(&options));
    let report =
        Report { bench: "notebooks", seed: options.seed, machine: Machine::here(), figures };
    report.print(context.printer)
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
    async fn try_in_order(&mut self, notebooks: &[Notebook]) {
        let usual = if self.options.quick { COUNT_QUICK } else { COUNT };
        let count = self.args.choice.count(usual);
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
            if let Err(exclusion) = self.try_one(notebook).await {
                say(&format!("{}: not taken, {exclusion}", notebook.label()));
                *self.found.excluded.entry(exclusion.reason()).or_default() += 1;
            }
        }
    }

    async fn try_one(&mut self, notebook: &Notebook) -> Result<(), Exclusion> {
        let within = if self.options.quick { PLAIN_WITHIN_QUICK } else { PLAIN_WITHIN };
        let python = self.options.python.as_deref().unwrap_or(Path::new("python3"));
        let scratch = self.cluster.path().join("scratch").join(&notebook.digest);
        let measure = plain::twice(python, notebook, self.cluster.path(), &scratch, within).await?;
        let plan = kills::plan(self.options.seed, &notebook.path, notebook.cells.len());
        let start = Instant::now();
        let ran = trial::run(self.cluster, notebook, &plan, &scratch.join("ours"), within).await;
        let whole = start.elapsed();
        let differences = figures::differences(&measure, &ran);
        if !differences.is_empty() {
            let run_dir = self.cluster.path();
            let of = (&measure, within);
            let chance = plain::agreed_by_chance(python, notebook, run_dir, &scratch, of).await;
            if let Some(exclusion) = chance {
                let told = differences.join("\n    ");
                say(&format!(
                    "{}: differs, but from itself as well:\n    {told}",
                    notebook.label()
                ));
                return Err(exclusion);
            }
        }
        self.found.take(&plan, &measure, &ran, !differences.is_empty());
        let head = format!(
            "[{}] {}: {} cells, {} kills, {}, plain {:.1} s, with kills {:.1} s",
            self.found.run,
            notebook.label(),
            notebook.cells.len(),
            plan.kills.len(),
            if plan.standby == Standby::Hot { "hot standbys" } else { "thin standbys" },
            measure.seconds,
            whole.as_secs_f64()
        );
        if differences.is_empty() {
            say(&format!("{head}: equal"));
        } else {
            let told = differences.join("\n    ");
            say(&format!("{head}: DIFFERS\n    {told}\n  again: {}", self.command(notebook)));
        }
        Ok(())
    }

    /// The command line that repeats just this notebook, with the same losses.
    fn command(&self, notebook: &Notebook) -> String {
        let (folder, path, seed) =
            (self.args.choice.folder.display(), &notebook.path, self.options.seed);
        format!("callboard bench notebooks {folder} --only {path} --seed {seed}")
    }
}
