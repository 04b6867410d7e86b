//! `callboard demo`: the main job, told as a story.
//!
//! Runs a notebook session on a cluster of its own and takes its machines away: the node that
//! executes it while idle, then in the middle of a cell, then the broker, then everything at once.
//! An independent program (scripts/demo_check.py) asks the cluster whether something is missing; the
//! exit code is 0 only if it agrees. Owns the folder it works in and the processes it starts.

mod acts;
mod check;
mod cluster;
mod record;
mod session;
mod story;

use std::{fs, path::PathBuf};

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use self::{acts::Demo, story::Story};
use crate::{
    context::Context,
    exit::{Exit, Failure, Outcome},
    python::{find_python, probe},
    up::state::cannot,
};

/// Arguments of `demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Where the demo keeps its cluster, its plot and its record.
    #[arg(long, default_value = "out/demo", value_name = "DIR")]
    pub dir: PathBuf,
}

/// Runs the demo, and stops whatever it started.
///
/// # Errors
/// A [`Failure`] if something was lost, cannot be started, or a signal ended the demo.
pub async fn run(context: &Context, args: DemoArgs) -> Outcome {
    let story = Story::begin(context.printer.color);
    let python = find_python(&PathBuf::new())?;
    let facts = probe(&python).map_err(Failure::environment)?;
    if let Some(problem) = facts.problem(&python) {
        return Err(Failure::environment(problem));
    }
    fs::create_dir_all(&args.dir).map_err(|error| cannot("make the folder", &args.dir, &error))?;
    let folder = fs::canonicalize(&args.dir).map_err(|error| cannot("open", &args.dir, &error))?;
    let fail = |error| Failure::environment(format!("cannot listen for signals: {error}"));
    let mut interrupt = signal(SignalKind::interrupt()).map_err(fail)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(fail)?;

    let mut demo = Demo::new(story, folder, args.dir, python)?;
    let ended = tokio::select! {
        ended = demo.play() => ended,
        _ = interrupt.recv() => Err(stopped()),
        _ = terminate.recv() => Err(stopped()),
    };
    demo.stop().await;
    let lost = ended?;
    story.line(&format!("\n{lost}"));
    Ok(Exit::Ok)
}

fn stopped() -> Failure {
    Failure::new(Exit::Failed, "the demo was stopped; its cluster is stopped too")
}
