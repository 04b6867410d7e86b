//! The schedulers that are compared: each a set of policies.

use super::{
    autoscaling::{Forecast, ForecastKnobs, OnDemand, Subscription},
    costs::Start,
    executor::{AnyNode, PreviousFirst},
    migration::{Cheapest, RandomMember},
    placement::{LeastLoaded, Spread},
    queueing::{FairShare, Fifo},
    scheduler::{Backoff, Binding, Migration, Policies},
};

/// Members of a kernel.
pub const REPLICAS: usize = 3;
/// After which wait a node is kept for a cell.
pub const BOUND_MS: u64 = 120_000;

/// Ours.
#[must_use]
pub fn callboard(knobs: ForecastKnobs) -> Policies {
    Policies {
        name: "callboard".to_owned(),
        replicas: REPLICAS,
        binding: Binding::Cell,
        placement: Box::new(Spread),
        executor: Box::new(PreviousFirst { standby: Start::Standby }),
        migration: Some(Migration {
            choice: Box::new(Cheapest),
            start: Start::FromPeer,
            is_proactive: true,
            backoff: None,
        }),
        queueing: Box::new(FairShare { bound_ms: BOUND_MS }),
        scaling: Box::new(Forecast::new(knobs)),
    }
}

/// NotebookOS's, as its released code has them. `boot_ms` is the mean time of a scale-out, which its
/// waits between attempts are multiples of.
#[must_use]
pub fn notebookos(boot_ms: u64, seed: u64) -> Policies {
    let boot_ms = boot_ms as f64;
    Policies {
        name: "notebookos".to_owned(),
        replicas: REPLICAS,
        binding: Binding::Cell,
        placement: Box::new(LeastLoaded::new(REPLICAS as u32)),
        // Its standbys download what the executor stored; that the download is over is assumed.
        executor: Box::new(PreviousFirst { standby: Start::Warm }),
        migration: Some(Migration {
            choice: Box::new(RandomMember::new(seed)),
            start: Start::FromStorage,
            is_proactive: false,
            backoff: Some(Backoff {
                first_ms: 0.75 * boot_ms,
                factor: 1.25,
                max_ms: 1.5 * boot_ms,
            }),
        }),
        queueing: Box::new(Fifo::default()),
        scaling: Box::new(Subscription::default()),
    }
}

/// GPUs from a session's first cell to its last, or until it was idle for so long.
#[must_use]
pub fn reservation(reclaim_after_ms: Option<u64>) -> Policies {
    let name = match reclaim_after_ms {
        None => "reservation".to_owned(),
        Some(ms) => format!("reservation-{}m", ms / 60_000),
    };
    single(name, Binding::Session { reclaim_after_ms }, Start::Cold, false)
}

/// A container from nothing for every cell, first come, first served.
#[must_use]
pub fn batch() -> Policies {
    single("fcfs-batch".to_owned(), Binding::Cell, Start::Cold, true)
}

/// A started container for every cell.
#[must_use]
pub fn pooled() -> Policies {
    single("pooled".to_owned(), Binding::Cell, Start::FromStorage, false)
}

fn single(name: String, binding: Binding, start: Start, is_strict: bool) -> Policies {
    Policies {
        name,
        replicas: 0,
        binding,
        placement: Box::new(Spread),
        executor: Box::new(AnyNode { start, is_tight: true }),
        migration: None,
        queueing: Box::new(Fifo { is_strict }),
        scaling: Box::new(OnDemand),
    }
}
