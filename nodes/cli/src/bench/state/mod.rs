//! `callboard bench state`: a table of Python sessions, each run, failed over and checked on another
//! replica. All hold, or are refused by name. Then large sessions, whose changes must be cheap.

mod namespaces;
mod snippet;
mod trial;

use std::time::{Duration, Instant};

use clap::Args;
use futures::{StreamExt as _, stream};
use rand::{SeedableRng as _, rngs::StdRng, seq::SliceRandom as _};
use tokio::sync::RwLock;

use self::{namespaces::Namespace, snippet::Snippet};
use super::{
    failover::Loss,
    local_cluster::LocalCluster,
    options::Options,
    report::{Bar, Figure, Machine, Report},
    stats::Samples,
};
use crate::{
    context::Context,
    exit::{Exit, Failure, Outcome},
    output::say,
};

/// A quick run takes one snippet of so many.
const QUICK_TAKES_ONE_OF: usize = 6;
/// Of so many snippets, one loses the executor's node, the others its Python process.
const NODE_IS_LOST_ONE_OF: usize = 7;
/// Kernels at once: each has three Python processes.
const AT_ONCE: usize = 2;
/// Snippets that the table must have.
const SNIPPETS_MIN: f64 = 60.0;

/// How long it takes on a small machine.
pub const TAKES: Duration = Duration::from_secs(900);

/// Arguments of the bench.
#[derive(Debug, Args)]
pub struct StateArgs {
    #[command(flatten)]
    options: Options,
    /// Only snippets and namespaces whose name contains this; namespaces are called
    /// `namespace-array`, `-objects`, `-frame` and `-model`.
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
}

/// The snippets of this run in their order, each with what is lost in it.
fn plan(all: Vec<Snippet>, args: &StateArgs) -> Vec<(Snippet, Loss)> {
    let Options { quick, seed, .. } = args.options;
    let first = usize::try_from(seed).unwrap_or_default() % QUICK_TAKES_ONE_OF;
    let is_wanted = |snippet: &Snippet| {
        args.only.as_ref().is_none_or(|only| snippet.name.contains(only.as_str()))
    };
    let named = all.into_iter().filter(is_wanted).enumerate();
    let mut chosen: Vec<Snippet> = named
        .filter(|(place, _)| !quick || place % QUICK_TAKES_ONE_OF == first)
        .map(|(_, snippet)| snippet)
        .collect();
    chosen.shuffle(&mut StdRng::seed_from_u64(seed));
    let loss = |place| match place % NODE_IS_LOST_ONE_OF {
        3 => Loss::Node,
        _ => Loss::Python,
    };
    chosen.into_iter().enumerate().map(|(place, snippet)| (snippet, loss(place))).collect()
}

/// The namespaces of this run.
fn large(args: &StateArgs) -> Vec<&'static Namespace> {
    let is_wanted = |namespace: &&Namespace| {
        let name = format!("namespace-{}", namespace.name);
        args.only.as_ref().is_none_or(|only| name.contains(only.as_str()))
    };
    namespaces::ALL.iter().filter(is_wanted).collect()
}

/// Measures.
///
/// # Errors
/// A [`Failure`] if something is missing on this machine, or a side could not be measured.
pub async fn run(context: &Context, args: &StateArgs) -> Outcome {
    let table = snippet::all()
        .map_err(|error| Failure::new(Exit::Internal, format!("the table of snippets: {error}")))?;
    let plan = plan(table, args);
    let large = large(args);
    if plan.is_empty() && large.is_empty() {
        return Err(Failure::usage("no snippet and no namespace has that in its name"));
    }
    let cluster = LocalCluster::start(3, &args.options).await?;
    let total = plan.len();
    say(&format!("{total} snippets, {AT_ONCE} at once, seed {}", args.options.seed));
    // The loss of a node must not fall into another snippet's cells.
    let calm = RwLock::new(());
    let trials = plan.into_iter().enumerate().map(|(place, (snippet, loss))| {
        let (cluster, calm) = (&cluster, &calm);
        async move {
            let scratch = cluster.path().join("scratch").join(place.to_string());
            let (_alone, _shared);
            match loss {
                Loss::Node => _alone = calm.write().await,
                Loss::Python => _shared = calm.read().await,
            }
            let start = Instant::now();
            let result = trial::run(cluster, &snippet, loss, &scratch).await;
            (snippet.name, loss, result, start.elapsed())
        }
    });
    let mut trials = stream::iter(trials).buffer_unordered(AT_ONCE);
    let (mut seconds, mut failed) = (Vec::new(), 0_u32);
    while let Some((name, loss, result, took)) = trials.next().await {
        seconds.push(took.as_secs_f64());
        let head = format!(
            "[{}/{total}] {name} ({loss:?} lost, {:.1} s)",
            seconds.len(),
            took.as_secs_f64()
        );
        match result {
            Ok(()) => say(&format!("{head}: holds")),
            Err(why) => {
                failed += 1;
                say(&format!("{head}: FAILED: {why}"));
            }
        }
    }
    drop(trials);
    let mut figures = figures(seconds, failed, args);
    for namespace in large {
        match namespaces::run(&cluster, namespace, args.options.quick).await {
            Ok(found) => figures.extend(found),
            Err(why) => {
                say(&format!("namespace-{}: FAILED: {why}", namespace.name));
                figures.push(namespace.not_measured());
            }
        }
    }
    cluster.stop().await;
    let report =
        Report { bench: "state", seed: args.options.seed, machine: Machine::here(), figures };
    report.print(context.printer)
}

fn figures(seconds: Vec<f64>, failed: u32, args: &StateArgs) -> Vec<Figure> {
    let count = seconds.len() as f64;
    let is_partial = args.options.quick || args.only.is_some();
    let run = if is_partial {
        Figure::plain("snippets_run", count, "count")
    } else {
        Figure::held("snippets_run", count, "count", Bar::AtLeast(SNIPPETS_MIN))
    };
    vec![
        run,
        Figure::held("snippets_failed", f64::from(failed), "count", Bar::AtMost(0.0)),
        Figure::plain("snippet_p50_s", Samples::new(seconds).median(), "s"),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(words: &[&str]) -> StateArgs {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        crate::bench::options::parse_as(&words)
    }

    #[test]
    fn quick_runs_of_six_seeds_cover_the_table() {
        let all = snippet::all().unwrap();
        let mut seen: Vec<String> = (0..6)
            .flat_map(|seed| plan(all.clone(), &args(&["--quick", "--seed", &seed.to_string()])))
            .map(|(snippet, _)| snippet.name)
            .collect();
        seen.sort();
        let mut names: Vec<String> = all.into_iter().map(|snippet| snippet.name).collect();
        names.sort();
        assert_eq!(seen, names);
    }

    #[test]
    fn a_seed_fixes_the_order_and_some_nodes_are_lost() {
        let plan = |seed| plan(snippet::all().unwrap(), &args(&["--seed", seed]));
        assert_eq!(plan("7"), plan("7"));
        assert_ne!(plan("7"), plan("8"));
        assert!(plan("7").iter().any(|(_, loss)| *loss == Loss::Node));
    }

    #[test]
    fn a_partial_run_is_not_held_against_the_whole_tables_bar() {
        let run = |words: &[&str]| figures(vec![1.0; 13], 0, &args(words))[0].clone();
        assert_eq!(run(&["--quick"]).holds, None);
        assert_eq!(run(&[]).holds, Some(false));
        assert_eq!(figures(vec![1.0], 1, &args(&[]))[1].holds, Some(false));
    }
}
