//! `callboard bench`: measurements, each in its own file.

pub mod cells;
pub mod chaos;
mod failover;
pub mod idle;
pub mod local_cluster;
pub mod notebooks;
pub mod options;
pub mod report;
pub mod soak;
pub mod start;
pub mod state;
pub mod stats;

use std::time::Duration;

use async_trait::async_trait;
use clap::{Args, Subcommand};
use serde_json::json;

use crate::{
    context::Context,
    exit::{Exit, Failure, Outcome},
    output::table,
};

/// Arguments of `bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// What to measure.
    #[command(subcommand)]
    pub verb: BenchVerb,
}

/// Verbs of `bench`.
#[derive(Debug, Subcommand)]
pub enum BenchVerb {
    /// List the benches.
    List,
    /// Run a bench, by its name.
    #[command(external_subcommand)]
    Run(Vec<String>),
}

/// A measurement.
#[async_trait]
pub trait Bench: Send + Sync {
    /// Its name on the command line.
    fn name(&self) -> &'static str;
    /// What it measures, in a sentence.
    fn about(&self) -> &'static str;
    /// How long it takes on a small machine.
    fn duration(&self) -> Duration;
    /// Measures. `args` is what stood after the name.
    async fn run(&self, context: &Context, args: &[String]) -> Outcome;
}

/// Every bench of this build.
fn registry() -> Vec<Box<dyn Bench>> {
    vec![
        Box::new(cells::Cells),
        Box::new(chaos::Chaos),
        Box::new(notebooks::Notebooks),
        Box::new(soak::Soak),
        Box::new(idle::Idle),
        Box::new(start::Start),
        Box::new(state::State),
    ]
}

/// Runs a verb.
///
/// # Errors
/// A [`Failure`] if there is no such bench, or what the bench says.
pub async fn run(context: &Context, args: BenchArgs) -> Outcome {
    let benches = registry();
    match args.verb {
        BenchVerb::List => list(context, &benches),
        BenchVerb::Run(words) => {
            let (name, rest) = words.split_first().map_or(("", &[][..]), |(n, r)| (n.as_str(), r));
            let Some(bench) = benches.iter().find(|bench| bench.name() == name) else {
                let text = format!("there is no bench '{name}'; see `callboard bench list`");
                return Err(Failure::usage(text));
            };
            bench.run(context, rest).await
        }
    }
}

fn list(context: &Context, benches: &[Box<dyn Bench>]) -> Outcome {
    let entries: Vec<_> = benches
        .iter()
        .map(|b| json!({ "name": b.name(), "about": b.about(), "duration_s": b.duration().as_secs() }))
        .collect();
    context.printer.data(&json!({ "benches": entries }), |_| {
        let row = |bench: &dyn Bench| {
            let seconds = format!("{} s", bench.duration().as_secs());
            vec![bench.name().to_owned(), seconds, bench.about().to_owned()]
        };
        table(&["bench", "takes", "measures"], benches.iter().map(|bench| row(bench.as_ref())))
    })?;
    Ok(Exit::Ok)
}
