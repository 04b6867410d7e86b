//! `callboard bench frontends`: real notebooks, run by nbconvert, nbclient and papermill, must show on
//! Callboard what they show on plain ipykernel: through the kernelspec, and through the gateway with a token.

mod executed;
mod figures;
mod programs;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use clap::Args;

use self::{
    executed::Executed,
    figures::Found,
    programs::{Program, Programs, Side},
};
use super::{
    local_cluster::LocalCluster,
    notebooks::{
        PLAIN_WITHIN, PLAIN_WITHIN_QUICK,
        choice::Choice,
        environment::Environment,
        library::Notebook,
        plain::{self, Exclusion},
    },
    options::Options,
    report::{Machine, Report},
};
use crate::{
    context::Context,
    exit::{Exit, Failure, Outcome},
    output::say,
};

/// Notebooks of a full and of a quick run.
const COUNT: usize = 10;
const COUNT_QUICK: usize = 2;
/// How long a program may take beyond what the notebook may take in plain ipykernel.
const PATIENCE: Duration = Duration::from_secs(60);
/// A quick run begins no further notebook after this, however slow the machine: one takes eleven runs.
const QUICK_BEGINS_FOR: Duration = Duration::from_secs(40);

/// How long it takes on a small machine.
pub const TAKES: Duration = Duration::from_secs(15 * 60);

/// Arguments of the bench.
#[derive(Debug, Args)]
pub struct FrontendsArgs {
    #[command(flatten)]
    options: Options,
    #[command(flatten)]
    choice: Choice,
}

/// Measures.
///
/// # Errors
/// A [`Failure`] if something is missing on this machine, or a side could not be measured.
pub async fn run(context: &Context, args: &FrontendsArgs) -> Outcome {
    let (environment, wanted) = args.choice.open(&args.options).await?;
    let python = Some(environment.kernels.clone());
    let options = Options { python, ..args.options.clone() };
    let cluster = LocalCluster::start(3, &options).await?;
    plain::check(&environment.kernels, cluster.path(), PLAIN_WITHIN).await?;
    let programs = Programs::prepare(&cluster, &environment).await?;
    let scratch = std::path::absolute(cluster.path().join("scratch"))?;
    let found = Found::default();
    let mut bench = Run { cluster: &cluster, args, environment, programs, scratch, found };
    bench.try_in_order(&wanted).await?;
    let found = bench.found;
    let kernels_left = cluster.client().control().list_kernels().await?.kernels.len();
    cluster.stop().await;
    let figures = found.figures(args.choice.is_partial(&options), kernels_left);
    let report =
        Report { bench: "frontends", seed: options.seed, machine: Machine::here(), figures };
    report.print(context.printer)
}

/// A run under way.
struct Run<'a> {
    cluster: &'a LocalCluster,
    args: &'a FrontendsArgs,
    environment: Environment,
    programs: Programs,
    /// Where notebooks run.
    scratch: PathBuf,
    found: Found,
}

/// What a notebook showed in one program: on plain ipykernel, and where Callboard's sides differ from that.
struct Compared {
    plain: Executed,
    differences: Vec<(Side, Vec<String>)>,
}

impl Run<'_> {
    /// Tries notebooks until enough of them ran.
    async fn try_in_order(&mut self, notebooks: &[Notebook]) -> Result<(), Failure> {
        let is_quick = self.args.options.quick;
        let count = self.args.choice.count(if is_quick { COUNT_QUICK } else { COUNT });
        let all = notebooks.len();
        say(&format!("the first {count} of {all} notebooks whose two plain runs agree"));
        let start = Instant::now();
        for notebook in notebooks {
            if self.found.notebooks == count {
                break;
            }
            if is_quick && self.found.notebooks > 0 && start.elapsed() > QUICK_BEGINS_FOR {
                say(&format!("stopped after {}: the machine is slow", self.found.notebooks));
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
        let (kernels, sockets) = (&self.environment.kernels, self.cluster.path());
        let (scratch, within) = (self.scratch(notebook), self.within());
        if let Err(exclusion) = plain::twice(kernels, notebook, sockets, &scratch, within).await {
            return Ok(Err(exclusion));
        }
        let mut all = Vec::new();
        for program in Program::ALL {
            match self.compare(program, notebook).await? {
                Ok(compared) => all.push((program, compared)),
                Err(exclusion) => return Ok(Err(exclusion)),
            }
        }
        self.found.notebooks += 1;
        let mut told = Vec::new();
        for (program, Compared { plain, differences }) in &all {
            for (side, differences) in differences {
                self.found.take(plain, !differences.is_empty());
                for difference in differences {
                    let (program, side) = (program.name(), side.name());
                    told.push(format!("\n    {program}, {side}: {difference}"));
                }
            }
        }
        let (number, cells) = (self.found.notebooks, notebook.cells.len());
        let head = format!("[{number}] {}: {cells} cells", notebook.label());
        if told.is_empty() {
            say(&format!("{head}: equal"));
        } else {
            let (folder, path) = (self.args.choice.folder.display(), &notebook.path);
            let again = format!("callboard bench frontends {folder} --only {path}");
            say(&format!("{head}: DIFFERS{}\n  again: {again}", told.concat()));
        }
        Ok(Ok(()))
    }

    /// Runs a notebook with one program on every side.
    async fn compare(
        &mut self,
        program: Program,
        notebook: &Notebook,
    ) -> Result<Result<Compared, Exclusion>, Failure> {
        let plain = self.on_plain(program, notebook, 0).await?;
        let mut differences = Vec::new();
        for side in [Side::Proxy, Side::Gateway] {
            let found = match self.once((program, side), notebook, side.name()).await {
                Ok(shown) => plain.differences(&shown),
                Err(why) => vec![why],
            };
            differences.push((side, found));
        }
        if differences.iter().any(|(_, found)| !found.is_empty()) {
            // Two plain runs may have agreed by chance.
            for number in 1..=plain::RUNS_MORE {
                let again = self.on_plain(program, notebook, number).await?;
                if let Some(difference) = plain.differences(&again).into_iter().next() {
                    return Ok(Err(Exclusion::Unequal(difference)));
                }
            }
        }
        Ok(Ok(Compared { plain, differences }))
    }

    async fn on_plain(
        &mut self,
        program: Program,
        notebook: &Notebook,
        number: u32,
    ) -> Result<Executed, Failure> {
        let ran = self.once((program, Side::Plain), notebook, &format!("plain-{number}")).await;
        ran.map_err(|why| {
            let (program, label) = (program.name(), notebook.label());
            let text = format!("{program} cannot run {label} on plain ipykernel: {why}");
            Failure::new(Exit::Failed, text)
        })
    }

    async fn once(
        &mut self,
        how: (Program, Side),
        notebook: &Notebook,
        folder: &str,
    ) -> Result<Executed, String> {
        let folder = self.scratch(notebook).join(format!("{}-{folder}", how.0.name()));
        let source = (self.args.choice.folder.as_path(), notebook);
        let ran = self.programs.run(how, source, &folder, self.within() + PATIENCE).await;
        let (executed, seconds) = ran?;
        self.found.took(how, seconds);
        Ok(executed)
    }

    fn within(&self) -> Duration {
        if self.args.options.quick { PLAIN_WITHIN_QUICK } else { PLAIN_WITHIN }
    }

    /// The folder of a notebook's runs.
    fn scratch(&self, notebook: &Notebook) -> PathBuf {
        self.scratch.join(&notebook.digest)
    }
}
