//! `callboard bench chaos`: faults at named moments against a cluster of its own, judged by an
//! independent checker.

use std::{fs, path::PathBuf, time::Duration};

use callboard_chaos::{
    ChaosError, Plan, Profile, RunOptions, figures::Figures, run::parent_default,
};
use clap::{Args, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};

use super::{
    options::Options,
    report::{Bar, Figure, Machine, Report},
};
use crate::{
    config::ClusterConfig,
    context::Context,
    exit::{Exit, Failure, Outcome},
    output::say,
    python::find_python,
};

/// How long it takes on a small machine.
pub const TAKES: Duration = Duration::from_secs(20 * 60);

/// Arguments of the bench.
#[derive(Debug, Args)]
pub struct ChaosArgs {
    #[command(flatten)]
    options: Options,
    /// How many trials; 60, or 200 in the endurance profile. In the basic profile 36 walk every
    /// moment and fault once, and idle samples come on top.
    #[arg(long, value_name = "N", conflicts_with = "quick")]
    trials: Option<u32>,
    /// Which faults and moments.
    #[arg(long, value_enum, default_value_t = ProfileName::Basic, conflicts_with = "plan")]
    profile: ProfileName,
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

/// [`Profile`] on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ProfileName {
    /// Processes end or stop, links are cut.
    Basic,
    /// Also disks fill up, fail, rot and vanish, and two faults strike at once.
    Endurance,
}

impl From<ProfileName> for Profile {
    fn from(name: ProfileName) -> Self {
        match name {
            ProfileName::Basic => Self::Basic,
            ProfileName::Endurance => Self::Endurance,
        }
    }
}

/// Measures.
///
/// # Errors
/// A [`Failure`] if something is missing on this machine, or a side could not be measured.
pub async fn run(context: &Context, args: &ChaosArgs) -> Outcome {
    let plan = plan(args)?;
    let options = RunOptions {
        config: config(plan.profile),
        program: std::env::current_exe()?,
        python: find_python(&args.options.python.clone().unwrap_or_default())?,
        plan,
        only: args.only.clone(),
        parent: args.options.dir.clone().unwrap_or_else(parent_default),
        keep: args.keep,
        command: command(args),
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
    if !run.skipped.is_empty() {
        let numbers: Vec<String> = run.skipped.iter().map(|it| it.0.to_string()).collect();
        say(&format!("skipped for lack of their moment: {}", numbers.join(", ")));
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
        figures: figures(&run.figures, options.plan.profile),
    };
    let exit = report.print(context.printer)?;
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
        None if args.options.quick => {
            Plan::quick(args.options.seed, args.profile.into()).map_err(Failure::usage)
        }
        None => Ok(match args.profile {
            ProfileName::Basic => Plan::full(args.options.seed, trials(args)),
            ProfileName::Endurance => Plan::endurance(args.options.seed, trials(args)),
        }),
    }
}

fn trials(args: &ChaosArgs) -> u32 {
    args.trials.unwrap_or(match args.profile {
        ProfileName::Basic => 60,
        ProfileName::Endurance => 200,
    })
}

/// Keys of the cluster's configuration that make moments of the profile come soon. A build that
/// does not know a key does not know its moment either.
fn config(profile: Profile) -> toml::Table {
    let sleepy = [("hibernate_after_s", 2), ("park_after_s", 6)];
    let known = |key: &str| ClusterConfig::knows(key) && profile == Profile::Endurance;
    let keys = sleepy.into_iter().filter(|(key, _)| known(key));
    keys.map(|(key, seconds)| (key.to_owned(), toml::Value::Integer(seconds))).collect()
}

/// The command line that makes the same plan.
fn command(args: &ChaosArgs) -> String {
    let seed = args.options.seed;
    let profile = match args.profile {
        ProfileName::Basic => "",
        ProfileName::Endurance => " --profile endurance",
    };
    match &args.plan {
        Some(file) => format!("callboard bench chaos --plan {}", file.display()),
        None if args.options.quick => {
            format!("callboard bench chaos{profile} --quick --seed {seed}")
        }
        None => format!("callboard bench chaos{profile} --trials {} --seed {seed}", trials(args)),
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts of cells are small")]
fn figures(found: &Figures, profile: Profile) -> Vec<Figure> {
    let none = |name, value: Option<u64>| {
        Figure::held(name, value.map_or(f64::NAN, |it| it as f64), "count", Bar::AtMost(0.0))
    };
    let within = |name, value: Option<f64>, limit| {
        Figure::held(name, value.unwrap_or(f64::NAN), "s", Bar::AtMost(limit))
    };
    let zeros = [
        none("acknowledged_cells_lost", found.acknowledged_cells_lost),
        none("cells_run_twice", found.cells_run_twice),
        none("interrupted_without_answer", found.interrupted_without_answer),
    ];
    // The other profile measures no failover: its nodes write snapshots all the time.
    if profile == Profile::Endurance {
        return zeros.into();
    }
    let failover = [
        within("idle_failover_kill_p95_s", found.idle_failover_kill_p95_s, 2.0),
        within("idle_failover_stop_p95_s", found.idle_failover_stop_p95_s, 6.0),
    ];
    zeros.into_iter().chain(failover).collect()
}

pub(super) fn failure(error: ChaosError) -> Failure {
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
