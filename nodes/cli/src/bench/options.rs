//! What every bench takes on its command line, and how it is run.

use std::{future::Future, path::PathBuf};

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use crate::exit::{Exit, Failure, Outcome};

/// What every bench takes.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// A smaller run of the same, in under 100 seconds.
    #[arg(long)]
    pub quick: bool,
    /// What the random choices are drawn from.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub seed: u64,
    /// Where the folder of the measured cluster is made [default: the folder for temporary files].
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// The Python that every side runs on.
    #[arg(long, value_name = "PROGRAM")]
    pub python: Option<PathBuf>,
}

/// Runs a bench until it ends or a signal asks for its end; what it started is stopped either way.
///
/// # Errors
/// What the bench says, or that it was interrupted.
pub async fn interruptible(bench: impl Future<Output = Outcome>) -> Outcome {
    let fail = |error| Failure::environment(format!("cannot listen for signals: {error}"));
    let mut interrupt = signal(SignalKind::interrupt()).map_err(fail)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(fail)?;
    tokio::select! {
        outcome = bench => outcome,
        _ = interrupt.recv() => Err(interrupted()),
        _ = terminate.recv() => Err(interrupted()),
    }
}

fn interrupted() -> Failure {
    Failure::new(Exit::MaybeExecuted, "the bench was interrupted; there are no figures")
}

/// Reads a bench's own arguments, for tests.
#[cfg(test)]
pub(crate) fn parse_as<T: Args>(words: &[String]) -> T {
    let command = T::augment_args(clap::Command::new("bench").no_binary_name(true));
    T::from_arg_matches(&command.get_matches_from(words)).unwrap()
}
