//! Groups that sleep: they wake each other, lose nothing, and cost next to nothing meanwhile.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use callboard_protocol::ReplicaId;
use callboard_replicated::{Disk as _, Dormant, GroupOptions, Replicator};
use common::{Cluster, Journal, Put, group_id, seeds, simulate};
use rand::{Rng, SeedableRng, rngs::StdRng};

const PATIENCE: Duration = Duration::from_secs(20);

struct Sleeper {
    replicator: Replicator,
    dormant: Dormant,
    called: Arc<AtomicBool>,
}

fn flag() -> (Arc<AtomicBool>, impl FnOnce() + Send + 'static) {
    let called = Arc::new(AtomicBool::new(false));
    let set = called.clone();
    (called, move || set.store(true, Ordering::SeqCst))
}

#[derive(Default)]
struct Sleepers(BTreeMap<u64, Sleeper>);

impl Sleepers {
    /// As the replica actor does it: the leader stops first, then tells the others.
    async fn all_sleep(&mut self, cluster: &mut Cluster) {
        let leader = cluster.leader().await;
        let mut order = cluster.live();
        order.sort_by_key(|id| *id != leader);
        for id in order {
            let (replicator, group) = cluster.nodes.get_mut(&id).unwrap().live.take().unwrap();
            let (called, call) = flag();
            let dormant = group.close().await.sleep(Bytes::from_static(b"summary"), call).await;
            self.0.insert(id, Sleeper { replicator, dormant, called });
        }
    }

    async fn wake(&mut self, cluster: &mut Cluster, id: u64) {
        let Sleeper { replicator, dormant, .. } = self.0.remove(&id).unwrap();
        let options = GroupOptions::new(Journal::default());
        let (group, mut events) = dormant.wake(options).await.unwrap();
        tokio::spawn(async move { while events.recv().await.is_some() {} });
        cluster.nodes.get_mut(&id).unwrap().live = Some((replicator, group));
    }

    /// Wakes whoever is called, until nobody sleeps.
    async fn wake_each_other(&mut self, cluster: &mut Cluster) {
        for _ in 0..2000 {
            let called = |it: &Sleeper| it.called.load(Ordering::SeqCst);
            let ids: Vec<u64> =
                self.0.iter().filter(|(_, it)| called(it)).map(|(id, _)| *id).collect();
            for id in ids {
                self.wake(cluster, id).await;
            }
            if self.0.is_empty() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("{:?} were never called", self.0.keys());
    }

    /// The node's process ends and comes back; the group goes on sleeping if it can.
    async fn restart(&mut self, cluster: &mut Cluster, id: u64, torn: usize) {
        let Sleeper { replicator, dormant, .. } = self.0.remove(&id).unwrap();
        let node = cluster.nodes.get_mut(&id).unwrap();
        node.disk = node.disk.crash(torn);
        replicator.crash();
        cluster.net.disconnect(&node.name);
        drop(dormant);
        let replicator = cluster.replicator(id).await;
        let (called, call) = flag();
        let dozing = replicator.doze(group_id(), ReplicaId(id), call).await.unwrap();
        assert!(dozing.is_some(), "a note that was synced is believed");
        let dormant = dozing.unwrap();
        assert_eq!(dormant.note().summary, Bytes::from_static(b"summary"));
        self.0.insert(id, Sleeper { replicator, dormant, called });
    }
}

async fn put(cluster: &Cluster, numbers: std::ops::Range<u64>) {
    let leader = cluster.leader().await;
    for number in numbers {
        let sent = cluster.group(leader).propose_within(Put(number, vec![1; 100]), PATIENCE);
        sent.await.unwrap();
    }
}

#[test]
fn one_that_wakes_wakes_the_others_and_leads_at_once() {
    simulate(1, async {
        let mut cluster = Cluster::new(1, 3, true);
        cluster.start_all().await;
        put(&cluster, 1..20).await;
        cluster.settle().await;
        let mut sleepers = Sleepers::default();
        sleepers.all_sleep(&mut cluster).await;
        for sleeper in sleepers.0.values() {
            let log = sleeper.replicator.known_groups();
            assert_eq!(log.len(), 1, "its vote and where its log begins are kept");
        }
        cluster.net.keep_log();
        let quiet = cluster.net.log().len();
        tokio::time::sleep(Duration::from_secs(3600)).await;
        assert_eq!(cluster.net.log().len(), quiet, "nobody speaks while all sleep");
        sleepers.wake(&mut cluster, 2).await;
        cluster.group(2).trigger_elect().await;
        sleepers.wake_each_other(&mut cluster).await;
        let began = tokio::time::Instant::now();
        assert_eq!(cluster.leader().await, 2, "nobody waited for the former leader's lease");
        assert!(began.elapsed() < Duration::from_millis(200), "{:?}", began.elapsed());
        put(&cluster, 20..22).await;
        cluster.settle().await;
        assert_eq!(cluster.numbers(3), (1..22).collect::<Vec<_>>());
    });
}

#[test]
fn late_messages_of_the_term_that_ended_wake_nobody() {
    simulate(2, async {
        let mut cluster = Cluster::new(2, 3, true);
        cluster.start_all().await;
        put(&cluster, 1..5).await;
        cluster.settle().await;
        let leader = cluster.leader().await;
        let follower = if leader == 1 { 2 } else { 1 };
        let (replicator, group) = cluster.nodes.get_mut(&follower).unwrap().live.take().unwrap();
        let (called, call) = flag();
        let dormant = group.close().await.sleep(Bytes::new(), call).await;
        // The leader goes on: its heartbeats are of the same term.
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert!(!called.load(Ordering::SeqCst), "a heartbeat of the old term woke it");
        // When the leader dies, the third member's candidacy does wake it.
        cluster.crash(leader, 0).await;
        for _ in 0..1000 {
            if called.load(Ordering::SeqCst) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(called.load(Ordering::SeqCst), "a candidate did not wake it");
        let (group, mut events) =
            dormant.wake(GroupOptions::new(Journal::default())).await.unwrap();
        tokio::spawn(async move { while events.recv().await.is_some() {} });
        cluster.nodes.get_mut(&follower).unwrap().live = Some((replicator, group));
        cluster.settle().await;
    });
}

#[test]
fn a_note_is_void_once_its_replica_has_woken() {
    simulate(3, async {
        let mut cluster = Cluster::new(3, 3, true);
        cluster.start_all().await;
        put(&cluster, 1..5).await;
        cluster.settle().await;
        let mut sleepers = Sleepers::default();
        sleepers.all_sleep(&mut cluster).await;
        sleepers.wake(&mut cluster, 1).await;
        sleepers.wake_each_other(&mut cluster).await;
        put(&cluster, 5..8).await;
        cluster.settle().await;
        for id in 1..=3 {
            cluster.crash(id, 0).await;
            let replicator = cluster.replicator(id).await;
            let dozing = replicator.doze(group_id(), ReplicaId(id), || {}).await.unwrap();
            assert!(dozing.is_none(), "replica {id} believes a note it has outlived");
            assert!(cluster.nodes[&id].disk.read("groups/journal/asleep").is_ok());
            replicator.crash();
            cluster.net.disconnect(&format!("node-{id}"));
            cluster.start(id).await;
        }
        cluster.settle().await;
        assert_eq!(cluster.numbers(1), (1..8).collect::<Vec<_>>());
    });
}

#[test]
fn nothing_is_lost_over_many_nights_with_crashes_between() {
    for seed in seeds(12) {
        simulate(seed, async {
            let mut rng = StdRng::seed_from_u64(seed);
            let mut cluster = Cluster::new(seed, 3, seed.is_multiple_of(2));
            cluster.snapshot_every_entries = if seed.is_multiple_of(3) { 5 } else { 2000 };
            cluster.start_all().await;
            let mut next = 1;
            for _ in 0..6 {
                let until = next + rng.random_range(0..12);
                put(&cluster, next..until).await;
                next = until;
                cluster.settle().await;
                let mut sleepers = Sleepers::default();
                sleepers.all_sleep(&mut cluster).await;
                for id in 1..=3 {
                    if rng.random_bool(0.4) {
                        let torn = rng.random_range(0..200);
                        sleepers.restart(&mut cluster, id, torn).await;
                    }
                }
                let first = rng.random_range(1..=3);
                sleepers.wake(&mut cluster, first).await;
                if rng.random_bool(0.5) {
                    cluster.group(first).trigger_elect().await;
                }
                sleepers.wake_each_other(&mut cluster).await;
                cluster.settle().await;
                assert_eq!(cluster.numbers(first), (1..next).collect::<Vec<_>>(), "seed {seed}");
            }
        });
    }
}
