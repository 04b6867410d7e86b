//! `callboard bench chaos`: faults at named moments against a cluster of its own, judged by an
//! independent checker.

use std::{fs, path::PathBuf, time::Duration};

use async_trait::async_trait;
use callboard_chaos::{ChaosError, Plan, RunOptions, figures::Figures, run::parent_default};
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

use super::{
    Bench,
    options::{Options, parse},
    report::{Bar, Figure, Machine, Report},
};
use crate::{
    context::Context,
    exit::{Exit, Failure, Outcome},
    output::say,
    python::find_python,
};

/// The bench.
#[derive(Debug)]
pub struct Chaos;

#[derive(Debug, Parser)]
#[command(about = "Faults at named moments; an independent checker looks for what was lost")]
struct ChaosArgs {
    #[command(flatten)]
    options: Options,
    /// How many trials: 36 walk every moment and fault once. Idle samples come on top.
    #[arg(long, default_value_t = 60, value_name = "N", conflicts_with = "quick")]
    trials: u32,
    /// Only these trials, by number.
    #[arg(long, value_delimiter = ',', value_name = "NUMBERS")]
    only: Vec<u32>,
    /// Walk a plan of your own, as chaos/plans/quick.toml.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["quick", "trials"])]
    plan: Option<PathBuf>,
    /// Keep the folder of the run although nothing failed.
    #[arg(long)]
    keep: bool,
}

#[async_trait]
impl Bench for Chaos {
    fn name(&self) -> &'static str {
        "chaos"
    }

    fn about(&self) -> &'static str {
        "Faults at named moments; an independent checker looks for what was lost"
    }

    fn duration(&self) -> Duration {
        Duration::from_secs(20 * 60)
    }

    async fn run(&self, context: &Context, args: &[String]) -> Outcome {
        match parse::<ChaosArgs>(self.name(), args)? {
            Some(args) => measure(context, args).await,
            None => Ok(Exit::Ok),
        }
    }
}

async fn measure(context: &Context, args: ChaosArgs) -> Outcome {
    let options = RunOptions {
        program: std::env::current_exe()?,
        python: find_python(&args.options.python.clone().unwrap_or_default())?,
        plan: plan(&args)?,
        only: args.only.clone(),
        parent: args.options.dir.clone().unwrap_or_else(parent_default),
        keep: args.keep,
        command: command(&args),
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
    let run = callboard_chaos::run(&options, &say, stop).await.map_err(failure)?;
    for (fault, why) in &run.refused {
        say(&format!("{fault} was not tried, so its figures are missing: {why}"));
    }
    let failed = run.trials.iter().filter(|trial| !trial.is_ok()).count();
    let made = run.trials.len();
    say(&format!("{made} trials made, {failed} failed"));
    if let Some(folder) = &run.folder {
        say(&format!("histories, logs and data are in {}", folder.display()));
    }
    let report = Report {
        bench: "chaos",
        seed: run.seed,
        machine: Machine::here(),
        figures: figures(&run.figures),
    };
    let exit = report.print(args.options.printer(context))?;
    Ok(if run.is_ok() { exit } else { Exit::Failed })
}

fn plan(args: &ChaosArgs) -> Result<Plan, Failure> {
    match &args.plan {
        Some(file) => {
            let text = fs::read_to_string(file).map_err(|error| {
                Failure::usage(format!("cannot read the plan {}: {error}", file.display()))
            })?;
            Plan::parse(&text).map_err(Failure::usage)
        }
        None if args.options.quick => Plan::quick(args.options.seed).map_err(Failure::usage),
        None => Ok(Plan::full(args.options.seed, args.trials)),
    }
}

/// The command line that makes the same plan.
fn command(args: &ChaosArgs) -> String {
    let seed = args.options.seed;
    match &args.plan {
        Some(file) => format!("callboard bench chaos --plan {}", file.display()),
        None if args.options.quick => format!("callboard bench chaos --quick --seed {seed}"),
        None => format!("callboard bench chaos --trials {} --seed {seed}", args.trials),
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts of cells are small")]
fn figures(found: &Figures) -> Vec<Figure> {
    let none = |name, value: Option<u64>| {
        Figure::held(name, value.map_or(f64::NAN, |it| it as f64), "count", Bar::AtMost(0.0))
    };
    let within = |name, value: Option<f64>, limit| {
        Figure::held(name, value.unwrap_or(f64::NAN), "s", Bar::AtMost(limit))
    };
    vec![
        none("acknowledged_cells_lost", found.acknowledged_cells_lost),
        none("cells_run_twice", found.cells_run_twice),
        none("interrupted_without_answer", found.interrupted_without_answer),
        within("idle_failover_kill_p95_s", found.idle_failover_kill_p95_s, 2.0),
        within("idle_failover_stop_p95_s", found.idle_failover_stop_p95_s, 6.0),
    ]
}

fn failure(error: ChaosError) -> Failure {
    let exit = match &error {
        ChaosError::Stopped => Exit::MaybeExecuted,
        ChaosError::BadPlan(_) => Exit::Usage,
        ChaosError::Io { .. } | ChaosError::NoVerdict(_) | ChaosError::Command { .. } => {
            Exit::Environment
        }
        ChaosError::NoCluster { .. } | ChaosError::Refused { .. } => Exit::Unavailable,
        ChaosError::TooSlow { .. } | ChaosError::NotOurs { .. } => Exit::Failed,
    };
    Failure::new(exit, error)
}
