//! What every bench takes on its command line, and how it is run.

use std::{future::Future, path::PathBuf};

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    context::Context,
    exit::{Exit, Failure, Outcome},
    output::{Format, Printer, stdout_line},
};

/// What every bench takes.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// A smaller run of the same, in under 100 seconds.
    #[arg(long)]
    pub quick: bool,
    /// What the random choices are drawn from.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub seed: u64,
    /// How data is printed on stdout.
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub output: Option<Format>,
    /// Where the folder of the measured cluster is made [default: the folder for temporary files].
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// The Python that every side runs on.
    #[arg(long, value_name = "PROGRAM")]
    pub python: Option<PathBuf>,
}

impl Options {
    /// How to print: as told here, else as told before the bench's name.
    #[must_use]
    pub fn printer(&self, context: &Context) -> Printer {
        Printer { format: self.output.unwrap_or(context.printer.format), ..context.printer }
    }
}

/// Reads a bench's arguments; `None` if help was asked for and printed.
///
/// # Errors
/// A [`Failure`] that names what is wrong.
pub fn parse<T: clap::Parser>(bench: &str, args: &[String]) -> Result<Option<T>, Failure> {
    let words = std::iter::once(format!("callboard bench {bench}")).chain(args.iter().cloned());
    match T::try_parse_from(words) {
        Ok(parsed) => Ok(Some(parsed)),
        Err(help) if help.kind() == clap::error::ErrorKind::DisplayHelp => {
            stdout_line(&help.to_string())?;
            Ok(None)
        }
        Err(error) => Err(Failure::usage(error)),
    }
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
