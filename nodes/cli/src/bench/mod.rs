//! `callboard bench`: measurements, each in its own file.

pub mod cells;
pub mod chaos;
mod failover;
pub mod frontends;
pub mod gateway;
pub mod idle;
mod kernel_gateway;
pub mod local_cluster;
pub mod notebooks;
pub mod options;
pub mod placement;
mod process;
pub mod report;
pub mod simulate;
pub mod soak;
pub mod start;
pub mod state;
pub mod stats;
mod websocket;

use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::json;

use self::options::interruptible;
use crate::{
    context::Context,
    exit::{Exit, Outcome},
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
    /// Round trip of a cell against plain ZeroMQ and Jupyter Kernel Gateway.
    Cells(cells::CellsArgs),
    /// Faults at named moments; an independent checker looks for what was lost.
    Chaos(chaos::ChaosArgs),
    /// Notebooks in nbconvert, nbclient and papermill, against plain ipykernel.
    Frontends(frontends::FrontendsArgs),
    /// Round trips, a flood of lines and lists over the gateway, against Jupyter Kernel Gateway.
    Gateway(gateway::GatewayBenchArgs),
    /// What kernels cost that nobody uses, and whether all of them answer.
    Idle(idle::IdleArgs),
    /// Notebooks that lose their machines between cells, against plain ipykernel.
    Notebooks(notebooks::NotebooksArgs),
    /// One decision about a node, in clusters of growing size.
    Placement(placement::PlacementArgs),
    /// GPU schedulers on a trace, on a virtual clock: a simulation.
    Simulate(simulate::SimulateBenchArgs),
    /// Users and faults for half an hour; memory and disk must stay flat.
    Soak(soak::SoakArgs),
    /// Bursts of ten kernels to their first result, against plain ipykernel.
    Start(start::StartArgs),
    /// Python sessions, each failed over and checked on another replica.
    State(state::StateArgs),
}

/// How long a bench takes on a small machine.
fn takes(bench: &str) -> Option<Duration> {
    Some(match bench {
        "cells" => cells::TAKES,
        "chaos" => chaos::TAKES,
        "frontends" => frontends::TAKES,
        "gateway" => gateway::TAKES,
        "idle" => idle::TAKES,
        "notebooks" => notebooks::TAKES,
        "placement" => placement::TAKES,
        "simulate" => simulate::TAKES,
        "soak" => soak::TAKES,
        "start" => start::TAKES,
        "state" => state::TAKES,
        _ => return None,
    })
}

/// Runs a verb.
///
/// # Errors
/// What the bench says.
pub async fn run(context: &Context, args: BenchArgs) -> Outcome {
    match args.verb {
        BenchVerb::List => list(context),
        BenchVerb::Cells(args) => interruptible(cells::run(context, &args)).await,
        BenchVerb::Frontends(args) => interruptible(frontends::run(context, &args)).await,
        BenchVerb::Gateway(args) => interruptible(gateway::run(context, &args)).await,
        // These two stop in order by themselves.
        BenchVerb::Chaos(args) => chaos::run(context, &args).await,
        BenchVerb::Soak(args) => soak::run(context, &args).await,
        BenchVerb::Idle(args) => interruptible(idle::run(context, &args)).await,
        BenchVerb::Notebooks(args) => interruptible(notebooks::run(context, &args)).await,
        BenchVerb::Placement(args) => placement::run(context, &args),
        BenchVerb::Simulate(args) => interruptible(simulate::run(context, args)).await,
        BenchVerb::Start(args) => interruptible(start::run(context, &args)).await,
        BenchVerb::State(args) => interruptible(state::run(context, &args)).await,
    }
}

/// Name, duration and description of every bench.
fn all() -> Vec<(String, Duration, String)> {
    let command = BenchVerb::augment_subcommands(clap::Command::new("bench"));
    let describe = |bench: &clap::Command| {
        let about = bench.get_about().map(ToString::to_string).unwrap_or_default();
        Some((bench.get_name().to_owned(), takes(bench.get_name())?, about))
    };
    command.get_subcommands().filter_map(describe).collect()
}

fn list(context: &Context) -> Outcome {
    let benches = all();
    let entries: Vec<_> = benches
        .iter()
        .map(|(name, takes, about)| {
            json!({ "name": name, "about": about, "duration_s": takes.as_secs() })
        })
        .collect();
    context.printer.data(&json!({ "benches": entries }), |_| {
        let row = |(name, takes, about): &(String, Duration, String)| {
            vec![name.clone(), format!("{} s", takes.as_secs()), about.clone()]
        };
        table(&["bench", "takes", "measures"], benches.iter().map(row))
    })?;
    Ok(Exit::Ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bench_is_listed_with_how_long_it_takes_and_what_it_measures() {
        let command = BenchVerb::augment_subcommands(clap::Command::new("bench"));
        let listed = all();
        assert_eq!(listed.len() + 1, command.get_subcommands().count(), "all but `list` itself");
        assert!(listed.iter().all(|(_, _, about)| !about.is_empty()));
    }
}
