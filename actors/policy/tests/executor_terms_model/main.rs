//! Model check of the executor terms: the machines as built, under restarts, deaths of Python,
//! wrong suspicion, and proposals that are lost, late, reordered and repeated.
//!
//! A fault, of which there are a bounded number, is a restart of a node, the death of a Python
//! process, or the suspicion of an executor that is well. Not counted, since always possible:
//! loss, delay, reordering and repetition of proposals, pauses of any length, a Raft leader that
//! changes at will, and requests sent again. Time is not modelled: whatever may be due is, and
//! a proposal made too early is one that is committed late or never.

#![expect(clippy::panic, reason = "a model that cannot go on is a failed test")]

mod model;
mod proposal;
mod rules;
mod world;

use callboard_policy::terms::Upkeep;
use callboard_protocol::kernel::Level::{Durable, Received};
use stateright::{Checker, HasDiscoveries, Model};

use model::TermsModel;
use rules::Rules;
use world::Grain;

/// Never parks; standbys have no Python process.
const THIN: Upkeep = Upkeep {
    hot_standbys: false,
    starts_parked: false,
    park_after_ms: None,
    parks_with_refused: false,
};
/// Standbys have one.
const HOT: Upkeep = Upkeep { hot_standbys: true, ..THIN };
/// Parks whenever there is nothing to do.
const PARKING: Upkeep = Upkeep { park_after_ms: Some(0), ..THIN };
/// And rests before the first cell.
const STARTS_PARKED: Upkeep = Upkeep { starts_parked: true, ..PARKING };

fn model(rules: Rules, grain: Grain, faults: u8, upkeep: Upkeep) -> TermsModel {
    let levels =
        vec![[Durable, Durable], [Received, Received], [Received, Durable], [Durable, Received]];
    TermsModel { rules, grain, faults, upkeep, rewinds: 0, levels }
}

/// Visits every reachable state. Prints how many those are.
fn check(grain: Grain, faults: u8, upkeep: Upkeep) {
    check_rewinding(grain, faults, upkeep, 0);
}

/// The same with so many rewinds.
fn check_rewinding(grain: Grain, faults: u8, upkeep: Upkeep, rewinds: u8) {
    let model = TermsModel { rewinds, ..model(Rules::AsBuilt, grain, faults, upkeep) };
    let checker = model.checker().threads(2).spawn_dfs().join();
    println!(
        "{grain:?}, {faults} faults, {upkeep:?}, {rewinds} rewinds: {} states, {} moves, depth {}",
        checker.unique_state_count(),
        checker.state_count(),
        checker.max_depth()
    );
    checker.assert_properties();
}

#[test]
fn terms_keep_every_invariant_for_3_replicas_2_cells_2_faults() {
    check(Grain::Coarse, 2, THIN);
}

#[test]
fn hot_standbys_change_no_invariant() {
    check(Grain::Coarse, 1, HOT);
}

#[test]
fn a_fenced_executor_in_any_interleaving_breaks_no_invariant() {
    check(Grain::Fine, 1, THIN);
}

#[test]
fn a_kernel_that_is_parked_whenever_idle_keeps_every_invariant() {
    check(Grain::Coarse, 1, PARKING);
}

#[test]
fn a_kernel_that_starts_parked_keeps_every_invariant() {
    check(Grain::Coarse, 1, STARTS_PARKED);
}

#[test]
fn a_rewind_and_its_undoing_keep_every_invariant_under_a_fault() {
    check_rewinding(Grain::Coarse, 1, THIN, 2);
}

#[test]
fn a_fenced_executor_that_hears_late_of_a_rewind_breaks_no_invariant() {
    check_rewinding(Grain::Fine, 1, THIN, 1);
}

#[test]
#[ignore = "takes many minutes: the same with 2 faults in every interleaving"]
fn terms_keep_every_invariant_in_every_interleaving_of_2_faults() {
    check(Grain::Fine, 2, THIN);
}

#[test]
#[ignore = "takes many minutes: parking with 2 faults, and in every interleaving of one"]
fn parking_keeps_every_invariant_with_2_faults_and_in_every_interleaving_of_one() {
    check(Grain::Coarse, 2, PARKING);
    check(Grain::Fine, 1, PARKING);
}

fn counterexample(rules: Rules, invariant: &'static str) {
    let checker = model(rules, Grain::Fine, 2, THIN)
        .checker()
        .finish_when(HasDiscoveries::AnyOf([invariant].into()))
        .spawn_bfs()
        .join();
    let path = checker.assert_any_discovery(invariant);
    println!("{invariant} broken by:");
    for (number, action) in path.into_actions().into_iter().enumerate() {
        println!("{:3}. {action:?}", number + 1);
    }
}

#[test]
fn first_claim_per_cell_wins_runs_a_cell_twice() {
    counterexample(Rules::FirstClaimWins, "AT_MOST_ONCE");
}

#[test]
fn reply_before_apply_tells_an_end_that_is_taken_back() {
    counterexample(Rules::ReplyBeforeApply, "ONE_OUTCOME");
}
