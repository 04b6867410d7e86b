//! All machines are off, then start in any order with whatever their disks still hold.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod common;

use std::time::Duration;

use callboard_protocol::{KernelId, ReplicaId};
use callboard_runtime::universe::Universe;
use uuid::Uuid;

use self::common::{TestCluster, node};

/// What a node's disk is when it starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// As it was when the power went.
    Whole,
    /// Off before the last kernel was started.
    Stale,
    /// A new, empty one.
    Wiped,
    /// A bit is flipped in the middle of the log.
    Rotten,
    /// The folder is there, the log is not.
    NoLog,
}

use State::{NoLog, Rotten, Stale, Whole, Wiped};

const ORDERS: [[u32; 3]; 6] = [[1, 2, 3], [1, 3, 2], [2, 1, 3], [2, 3, 1], [3, 1, 2], [3, 2, 1]];

fn kernel(n: u128) -> KernelId {
    KernelId(Uuid::from_u128(n))
}

fn combinations() -> impl Iterator<Item = [State; 3]> {
    let all = [Whole, Stale, Wiped, Rotten, NoLog];
    all.into_iter().flat_map(move |a| {
        all.into_iter().flat_map(move |b| all.into_iter().map(move |c| [a, b, c]))
    })
}

fn count(disks: &[State; 3], is: impl Fn(State) -> bool) -> usize {
    disks.iter().filter(|disk| is(**disk)).count()
}

/// A cluster of three with two kernels, powered off, its disks made what they are to be.
async fn powered_off(universe: &Universe, disks: &[State; 3]) -> TestCluster {
    let mut cluster = TestCluster::founded(universe, 3).await;
    cluster.start_kernel(kernel(1)).await;
    let stale = (1..=3).find(|n| disks[*n as usize - 1] == Stale);
    if let Some(n) = stale {
        cluster.crash(n).await;
        cluster.until_up(2).await;
    }
    // The members of a node that is off begin when it is back.
    let request = callboard_protocol::control::StartKernel {
        kernel: kernel(2),
        name: None,
        replicas: if stale.is_some() { 1 } else { 3 },
        options: Default::default(),
        origin: None,
        settings: Default::default(),
    };
    let _: callboard_protocol::control::KernelSpec =
        cluster.until("a kernel", "start_kernel", &request, Some).await;
    universe.advance(Duration::from_secs(1)).await;
    for n in (1..=3).filter(|n| Some(*n) != stale) {
        cluster.crash(n).await;
    }
    for n in 1..=3 {
        match disks[n as usize - 1] {
            Whole | Stale => {}
            Wiped => cluster.lose_disk(n),
            Rotten => cluster.damage_anything(n),
            NoLog => cluster.lose_log(n),
        }
    }
    cluster
}

fn comes_back(seed: u64, disks: [State; 3], order: [u32; 3], gap: Duration) {
    eprintln!("disks {disks:?}, started in order {order:?} every {gap:?}, seed {seed}");
    Universe::run(seed, |universe| async move {
        let mut cluster = powered_off(&universe, &disks).await;
        let late = cluster.start_in_order(&order, gap, Duration::from_secs(90)).await;
        assert!(late.is_empty(), "nodes {late:?} did not come up");
        cluster.until_up(3).await;
        for n in 1..=2 {
            cluster.until_spec("the kernel", kernel(n), |_| true).await;
        }
        cluster.until_whole(kernel(1)).await;
        for n in 1..=3_u32 {
            let has_new_id = cluster.running(n).group().replica() > ReplicaId(3);
            let is_lost = matches!(disks[n as usize - 1], Wiped | NoLog);
            assert!(!is_lost || has_new_id, "{} votes with an id it forgot", node(n));
        }
        cluster.stop().await;
    });
}

/// One disk may be anything, and another merely late: two of three still hold what was promised,
/// or one that does and one that has forgotten nothing.
#[test]
fn any_mix_of_disks_that_keeps_a_majority_comes_back_in_any_order() {
    let is_bad = |disk| !matches!(disk, Whole | Stale);
    let mut tried = 0;
    for disks in combinations() {
        let (whole, stale) = (count(&disks, |it| it == Whole), count(&disks, |it| it == Stale));
        if whole == 0 || stale > 1 || count(&disks, is_bad) > 1 {
            continue;
        }
        // Every order comes up several times over all mixes.
        let order = ORDERS[tried % ORDERS.len()];
        let gap = Duration::from_millis([0, 400, 2500][tried / ORDERS.len() % 3]);
        comes_back(100 + tried as u64, disks, order, gap);
        tried += 1;
    }
    assert_eq!(tried, 31);
}

/// What the majority knew is gone: nobody may answer as if it were not, and nobody founds anew.
#[test]
fn a_lost_majority_does_not_serve_and_is_not_founded_again() {
    let is_lost = |disk| matches!(disk, Wiped | NoLog);
    let mut tried = 0;
    for disks in combinations() {
        if count(&disks, is_lost) != 2 || count(&disks, |it| it == Whole) != 1 {
            continue;
        }
        tried += 1;
        let order = ORDERS[tried % ORDERS.len()];
        eprintln!("disks {disks:?}, started in order {order:?}");
        Universe::run(200 + tried as u64, |universe| async move {
            let mut cluster = powered_off(&universe, &disks).await;
            let gap = Duration::from_millis(300);
            let late = cluster.start_in_order(&order, gap, Duration::from_secs(30)).await;
            assert_eq!(late.len(), 2, "the nodes without a log wait: {late:?}");
            let answer: Result<callboard_protocol::control::NodeList, _> =
                cluster.try_ask("list_nodes", &()).await;
            assert!(answer.is_err(), "{answer:?}");
            cluster.stop().await;
        });
    }
    assert_eq!(tried, 12);
}
