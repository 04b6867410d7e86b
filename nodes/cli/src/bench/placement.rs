//! `callboard bench placement`: one decision about a node, the index kept up to date, in clusters of
//! a thousand and of a hundred thousand nodes.
//!
//! A decision is: place one member of a kernel, and choose the node of a guest for its cell; then
//! what a heartbeat changes: the member counts on its node, the cell holds its GPUs and gives them
//! back. All of it is timed.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use callboard_policy::gpu::{
    executor::CellWant,
    fleet::{Fleet, NodeShape, Slot},
    migration::{Cheapest, MigrationChoice as _},
    placement::{MemberPlacement as _, MemberRequest, Spread},
};
use clap::Args;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

use super::{
    options::Options,
    report::{Bar, Figure, Machine, Report},
    stats::Samples,
};
use crate::{context::Context, exit::Outcome, output::say};

/// How long it takes on a small machine.
pub const TAKES: Duration = Duration::from_secs(10);

const SMALL: u32 = 1_000;
const LARGE: u32 = 100_000;
const DECISIONS: usize = 20_000;
const DECISIONS_QUICK: usize = 2_000;
const SHAPE: NodeShape = NodeShape { gpus: 8, vram_mib: 16_384 };
/// Members on each node before it begins.
const MEMBERS: u32 = 12;
/// The growth of a logarithm from the small cluster to the large one: 5/3.
const LOGARITHMIC: f64 = 1.67;

/// Arguments of the bench.
#[derive(Debug, Args)]
pub struct PlacementArgs {
    #[command(flatten)]
    options: Options,
}

/// Measures.
///
/// # Errors
/// A [`crate::exit::Failure`] if stdout cannot be written.
pub fn run(context: &Context, args: &PlacementArgs) -> Outcome {
    let Options { quick, seed, .. } = args.options;
    let decisions = if quick { DECISIONS_QUICK } else { DECISIONS };
    let mut fleets = [fleet(SMALL, seed), fleet(LARGE, seed)];
    say(&format!(
        "{decisions} decisions each among {SMALL} and {LARGE} nodes, in turn, seed {seed}"
    ));
    let mut rng = StdRng::seed_from_u64(seed);
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..decisions {
        for (fleet, times) in fleets.iter_mut().zip(&mut times) {
            let gpus = [1, 4, 8][rng.random_range(0..3)];
            let began = Instant::now();
            decide(fleet, gpus);
            times.push(began.elapsed().as_secs_f64() * 1e6);
        }
    }
    let [small, large] = times.map(Samples::new);
    let growth = large.median() / small.median();
    let figures = vec![
        Figure::plain("place_one_in_1k_nodes_us", small.median(), "us"),
        Figure::held("place_one_in_100k_nodes_us", large.median(), "us", Bar::AtMost(50.0)),
        Figure::held("growth_1k_to_100k", growth, "ratio", Bar::AtMost(LOGARITHMIC)),
        Figure::plain("place_one_in_1k_nodes_p95_us", small.percentile(95.0), "us"),
        Figure::plain("place_one_in_100k_nodes_p95_us", large.percentile(95.0), "us"),
    ];
    Report { bench: "placement", seed, machine: Machine::here(), figures }.print(context.printer)
}

/// One member, one guest's node, and what heartbeats then say of both.
fn decide(fleet: &mut Fleet, gpus: u32) {
    let request = MemberRequest { gpus, vram_mib: 0, count: 1, present: Vec::new() };
    let places = Spread.place(fleet, &request);
    let want = CellWant { gpus, vram_mib: 0, executor: None, members: Vec::new(), state_mib: 500 };
    let guest = Cheapest.choose(fleet, &want);
    if let Some(slot) = places.slots.first() {
        fleet.subscribe(*slot, gpus);
        fleet.unsubscribe(*slot, gpus);
    }
    if let Some(slot) = guest.to
        && black_box(fleet.hold(slot, gpus))
    {
        fleet.release(slot, gpus);
    }
}

/// Nodes with members and cells on them.
fn fleet(nodes: u32, seed: u64) -> Fleet {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut fleet = Fleet::default();
    for slot in (0..nodes).map(Slot) {
        fleet.add(slot, SHAPE, rng.random_range(0..1_000_000));
        for _ in 0..rng.random_range(0..2 * MEMBERS) {
            fleet.subscribe(slot, [1, 4, 8][rng.random_range(0..3)]);
        }
        let _fits = fleet.hold(slot, rng.random_range(0..=SHAPE.gpus));
    }
    fleet
}
