//! The `callboard` command: a cluster on one machine, one node of a cluster, and the operator's
//! verbs, which speak only NATS.

pub mod args;
pub mod backup;
pub mod bench;
pub mod branch;
pub mod config;
pub mod context;
pub mod demo;
pub mod doctor;
pub mod exec;
pub mod exit;
pub mod gateway;
pub mod kernel;
pub mod kernelspec;
pub mod kill;
pub mod look;
pub mod node;
pub mod output;
pub mod python;
pub mod recover;
pub mod simulate;
pub mod storage;
pub mod undo;
pub mod up;
pub mod user;

use std::{io, process::ExitCode};

use callboard_transport::telemetry::{self, TelemetryGuard};
use clap::{CommandFactory as _, Parser as _};

use crate::{
    args::{Cli, Verb},
    context::Context,
    exit::{Exit, Failure, Outcome},
    output::say,
};

/// Parses the command line, does what it says, and says how to end.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    if matches!(cli.verb, Verb::Node(_)) {
        callboard_agent::use_few_arenas();
    }
    match start(cli) {
        Ok(exit) => exit.into(),
        Err(Failure { exit: Exit::Ok, .. }) => Exit::Ok.into(),
        Err(failure) => {
            say(&format!("callboard: {}", failure.message));
            failure.exit.into()
        }
    }
}

fn start(cli: Cli) -> Outcome {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(worker_threads())
        .enable_all()
        .build()
        .map_err(|error| Failure::environment(format!("cannot start threads: {error}")))?;
    let _telemetry = telemetry(&cli.verb)?;
    runtime.block_on(run(cli))
}

/// Half of the cores: a node's neighbours (Python, the broker, other nodes on this machine) need the
/// rest, and each wake-up of another thread costs a cell more than it gains.
fn worker_threads() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| cores.get().div_ceil(2))
}

/// Logs, and traces of cells if `CALLBOARD_OTLP_ENDPOINT` names a collector. A node sets up its own,
/// from its configuration.
fn telemetry(verb: &Verb) -> Result<Option<TelemetryGuard>, Failure> {
    if matches!(verb, Verb::Node(_)) {
        return Ok(None);
    }
    let endpoint = std::env::var("CALLBOARD_OTLP_ENDPOINT").ok().filter(|url| !url.is_empty());
    telemetry::init("callboard", endpoint.as_deref()).map(Some).map_err(Failure::usage)
}

async fn run(cli: Cli) -> Outcome {
    let context = Context::new(&cli.global);
    match cli.verb {
        Verb::Up(args) => up::run(&context, args).await,
        Verb::Node(args) => node::run(args).await,
        Verb::Gateway(args) => gateway::run(&context, args).await,
        Verb::Kernel(verb) => kernel::run(&context, verb).await,
        Verb::Kernelspec(verb) => kernelspec::run(&context, verb).await,
        Verb::User(verb) => user::run(&context, verb).await,
        Verb::Outputs(args) => look::outputs(&context, args).await,
        Verb::Nodes => look::nodes(&context).await,
        Verb::Storage => storage::show(&context).await,
        Verb::Events(args) => look::events(&context, args).await,
        Verb::Kill(args) => kill::run(&context, args).await,
        Verb::Doctor(args) => doctor::run(&context, args).await,
        Verb::Demo(args) => demo::run(&context, args).await,
        Verb::Simulate(args) => simulate::run(&context, args).await,
        Verb::Explain(args) => simulate::explain(&context, &args),
        Verb::Bench(args) => bench::run(&context, args).await,
        Verb::Completion { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "callboard", &mut io::stdout());
            Ok(Exit::Ok)
        }
    }
}
