//! What was acknowledged survives: crashes of all nodes at once, of single ones, partitions, and a
//! lossy bus.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::{collections::BTreeSet, time::Duration};

use callboard_transport::FaultPlan;
use common::{Cluster, Put, seeds, simulate};
use rand::{Rng, SeedableRng, rngs::StdRng};

/// Proposes from random replicas while `faults` happen; returns the acknowledged numbers.
async fn load(
    cluster: &Cluster,
    rng: &mut StdRng,
    next: &mut u64,
    commands: usize,
) -> tokio::task::JoinSet<Option<u64>> {
    let mut running = tokio::task::JoinSet::new();
    for _ in 0..commands {
        let live = cluster.live();
        let group = cluster.group(live[rng.random_range(0..live.len())]).clone();
        *next += 1;
        let number = *next;
        running.spawn(async move {
            let ballast = vec![7; (number % 300) as usize];
            let sent = group.propose_within(Put(number, ballast), Duration::from_secs(3)).await;
            sent.ok().map(|_| number)
        });
        tokio::time::sleep(Duration::from_millis(rng.random_range(0..8))).await;
    }
    running
}

async fn acknowledged(mut running: tokio::task::JoinSet<Option<u64>>) -> Vec<u64> {
    let mut numbers = Vec::new();
    while let Some(result) = running.join_next().await {
        numbers.extend(result.unwrap());
    }
    numbers
}

fn check(cluster: &Cluster, promised: &[u64]) {
    let live = cluster.live();
    let first = cluster.numbers(live[0]);
    let unique: BTreeSet<u64> = first.iter().copied().collect();
    assert_eq!(unique.len(), first.len(), "a command was applied twice");
    for number in promised {
        assert!(unique.contains(number), "acknowledged command {number} is lost");
    }
    for replica in live {
        assert_eq!(cluster.numbers(replica), first, "replica {replica} differs");
    }
}

async fn whole_cluster_crashes(seed: u64, parallel: bool) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut cluster = Cluster::new(seed, 3, parallel);
    cluster.snapshot_every_entries = if seed.is_multiple_of(3) { 5 } else { 2000 };
    cluster.start_all().await;
    let (mut next, mut promised) = (0, Vec::new());
    for _ in 0..3 {
        let leader = cluster.leader().await;
        next += 1;
        let first =
            cluster.group(leader).propose_within(Put(next, vec![]), Duration::from_secs(20));
        promised.extend(first.await.ok().map(|_| next));
        let running = load(&cluster, &mut rng, &mut next, 25).await;
        let patience_ms = if seed % 4 == 3 { 400 } else { 10 };
        tokio::time::sleep(Duration::from_millis(rng.random_range(0..patience_ms))).await;
        let replicas = cluster.live();
        // All disks lose power in the same instant.
        for replica in &replicas {
            let node = cluster.nodes.get_mut(replica).unwrap();
            let torn = if rng.random_bool(0.5) { rng.random_range(0..400) } else { 0 };
            node.disk = node.disk.crash(torn);
        }
        for replica in replicas {
            cluster.crash(replica, 0).await;
        }
        promised.extend(acknowledged(running).await);
        cluster.start_all().await;
        cluster.settle().await;
        check(&cluster, &promised);
    }
    assert!(!promised.is_empty(), "nothing was acknowledged: the test shows nothing");
}

#[test]
fn no_acknowledged_command_is_lost_when_all_nodes_lose_their_unsynced_bytes() {
    for seed in seeds(12) {
        simulate(seed, whole_cluster_crashes(seed, true));
    }
}

#[test]
fn the_same_holds_when_the_leader_syncs_before_it_sends() {
    for seed in seeds(12) {
        simulate(seed, whole_cluster_crashes(seed, false));
    }
}

async fn single_crashes_on_a_bad_bus(seed: u64, parallel: bool) {
    let mut rng = StdRng::seed_from_u64(seed ^ 0x5eed);
    let mut cluster = Cluster::new(seed, 3, parallel);
    cluster.snapshot_every_entries = if seed.is_multiple_of(2) { 8 } else { 2000 };
    cluster.start_all().await;
    cluster.leader().await;
    let bad = FaultPlan {
        drop_probability: 0.05,
        duplicate_probability: 0.05,
        delay_min_ms: 0,
        delay_max_ms: 15,
        reorder: true,
        ..FaultPlan::default()
    };
    cluster.net.set_plan(bad);
    let (mut next, mut promised) = (0, Vec::new());
    for _ in 0..4 {
        let before = load(&cluster, &mut rng, &mut next, 12).await;
        let victim = rng.random_range(1..=3);
        let partition = rng.random_bool(0.4);
        let name = format!("node-{victim}");
        if partition {
            cluster.net.isolate(&name);
        } else {
            cluster.crash(victim, rng.random_range(0..200)).await;
        }
        let during = load(&cluster, &mut rng, &mut next, 12).await;
        tokio::time::sleep(Duration::from_millis(rng.random_range(0..2500))).await;
        if partition {
            cluster.net.rejoin(&name);
        } else {
            cluster.start(victim).await;
        }
        promised.extend(acknowledged(before).await);
        promised.extend(acknowledged(during).await);
    }
    cluster.net.set_plan(FaultPlan::default());
    cluster.net.heal_all();
    cluster.settle().await;
    check(&cluster, &promised);
    assert!(!promised.is_empty(), "nothing was acknowledged: the test shows nothing");
}

#[test]
fn no_acknowledged_command_is_lost_or_doubled_under_crashes_partitions_and_a_lossy_bus() {
    for seed in seeds(8) {
        simulate(seed, single_crashes_on_a_bad_bus(seed, seed.is_multiple_of(2)));
    }
}

/// One disk rots in the last batch it answered for while another is away: the third, which never
/// had the entry, must not lead with the help of the one that forgot it.
async fn rot_in_the_last_acknowledged_batch(seed: u64) {
    let mut cluster = Cluster::new(seed, 3, seed.is_multiple_of(2));
    cluster.start_all().await;
    let leader = cluster.leader().await;
    let put = cluster.group(leader).propose_within(Put(1, vec![]), Duration::from_secs(20));
    put.await.unwrap();
    cluster.settle().await;
    let others: Vec<u64> = (1..=3).filter(|id| *id != leader).collect();
    let (with, without) = (others[seed as usize % 2], others[1 - seed as usize % 2]);
    cluster.net.isolate(&format!("node-{without}"));
    let put = cluster.group(leader).propose_within(Put(2, vec![7; 30]), Duration::from_secs(20));
    put.await.unwrap();
    // Let the follower have it on its disk; the leader's and its own are the majority.
    let mut metrics = cluster.group(leader).metrics();
    let acked = metrics.wait_for(|now| {
        now.matched.get(&callboard_protocol::ReplicaId(with)) == Some(&now.last_log)
    });
    acked.await.unwrap();
    for replica in [leader, with, without] {
        cluster.kill(replica).await;
    }
    cluster.net.rejoin(&format!("node-{without}"));
    let disk = &cluster.nodes[&with].disk;
    let (path, bytes) =
        disk.files().into_iter().rfind(|(path, _)| path.starts_with("wal/")).unwrap();
    let at = bytes.windows(30).rposition(|it| it == [7; 30]).unwrap();
    disk.flip_bit(&path, at + 3, 2);
    let reopened = cluster.open(with).await;
    assert!(
        matches!(reopened, Err(callboard_replicated::OpenError::Corrupt { .. })),
        "a replica that forgot what it answered for may vote: {:?}",
        reopened.map(|_| ())
    );
    cluster.start(without).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(!cluster.group(without).is_leader());
    cluster.start(leader).await;
    cluster.settle().await;
    check(&cluster, &[1, 2]);
}

#[test]
fn a_follower_that_lost_an_acknowledged_tail_to_rot_does_not_vote() {
    for seed in seeds(4) {
        simulate(seed, rot_in_the_last_acknowledged_batch(seed));
    }
}
