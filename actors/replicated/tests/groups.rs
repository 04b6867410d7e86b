//! Life of a group: founding, members, snapshots, leaders, refusals.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::{collections::BTreeSet, time::Duration};

use callboard_protocol::ReplicaId;
use callboard_replicated::{Applied, GroupOptions, Machine, OpenError, ProposeError, Role};
use callboard_transport::memory::Delivery;
use common::{AWAITED, Cluster, Put, group_id, node_id, simulate};

async fn put(cluster: &Cluster, replica: u64, numbers: std::ops::Range<u64>) {
    for number in numbers {
        cluster.group(replica).propose(Put(number, vec![1; 100])).await.unwrap();
    }
}

async fn caught_up(cluster: &Cluster, leader: u64, replica: u64) {
    let mut metrics = cluster.group(leader).metrics();
    metrics
        .wait_for(|now| now.matched.get(&ReplicaId(replica)).copied().flatten() >= now.last_log)
        .await
        .unwrap();
}

fn voters(ids: impl IntoIterator<Item = u64>) -> BTreeSet<ReplicaId> {
    ids.into_iter().map(ReplicaId).collect()
}

#[test]
fn every_replica_can_propose_and_one_proposers_order_is_kept() {
    simulate(1, async {
        let mut cluster = Cluster::new(1, 3, true);
        cluster.start_all().await;
        cluster.leader().await;
        for replica in 1..=3 {
            // Followers hear of a commit a moment later.
            cluster.settle().await;
            let group = cluster.group(replica);
            let before = cluster.numbers(replica).len();
            let many = (0..200).map(|n| group.propose(Put(replica * 1000 + n, Vec::new())));
            let outputs: Vec<usize> = futures::future::try_join_all(many).await.unwrap();
            let expected: Vec<usize> = (before + 1..=before + 200).collect();
            assert_eq!(outputs, expected);
        }
        cluster.settle().await;
    });
}

#[test]
fn who_is_not_awaited_hears_of_a_commit_with_the_next_entry_or_heartbeat() {
    for seed in 0..8 {
        simulate(seed, async {
            let mut cluster = Cluster::new(seed, 3, true);
            cluster.start_all().await;
            let leader = cluster.leader().await;
            put(&cluster, leader, 0..5).await;
            cluster.net.keep_log();
            put(&cluster, leader, 5..45).await;
            let log = cluster.net.log();
            let last = cluster.numbers(leader);
            tokio::time::sleep(Duration::from_millis(200)).await;
            for follower in (1..=3).filter(|id| *id != leader) {
                let name = &cluster.nodes[&follower].name;
                let is_append = |it: &&Delivery| it.to == *name && it.subject.ends_with("append");
                let appends = log.iter().filter(is_append).count();
                // Slow disks hold up an entry for longer than a commit waits for it.
                if seed % 4 != 3 && ReplicaId(follower) != AWAITED {
                    assert!(appends < 50, "{appends} messages for 40 commands");
                }
                assert_eq!(cluster.numbers(follower), last);
            }
        });
    }
}

#[test]
fn commands_that_wait_together_share_entries() {
    simulate(2, async {
        let mut cluster = Cluster::new(2, 3, true);
        cluster.start_all().await;
        let leader = cluster.leader().await;
        let group = cluster.group(leader);
        let many = (0..1000).map(|n| group.propose(Put(n, Vec::new())));
        futures::future::try_join_all(many).await.unwrap();
        let last = group.metrics().borrow().last_log.unwrap();
        assert!(last < 60, "1000 commands took {last} entries");
    });
}

#[test]
fn a_learner_becomes_a_voter_and_replaces_a_member() {
    simulate(3, async {
        let mut cluster = Cluster::new(3, 3, true);
        cluster.start_all().await;
        let leader = cluster.leader().await;
        put(&cluster, leader, 0..20).await;
        cluster.add_node(4, 2);
        cluster.start(4).await;
        assert_eq!(cluster.group(4).metrics().borrow().role, Role::Learner);
        cluster.group(leader).add_learner(ReplicaId(4), node_id(4)).await.unwrap();
        caught_up(&cluster, leader, 4).await;
        let leaving = if leader == 1 { 2 } else { 1 };
        let staying: Vec<u64> = (1..=4).filter(|id| *id != leaving).collect();
        cluster.group(leader).change_voters(voters(1..=4)).await.unwrap();
        cluster.group(leader).change_voters(voters(staying.clone())).await.unwrap();
        let (replicator, group) = cluster.nodes.get_mut(&leaving).unwrap().live.take().unwrap();
        group.remove().await.unwrap();
        assert!(replicator.known_groups().is_empty());
        let members = cluster.group(leader).members();
        assert_eq!(members.voters.keys().map(|id| id.0).collect::<Vec<_>>(), staying);
        put(&cluster, leader, 20..40).await;
        cluster.settle().await;
        assert_eq!(cluster.numbers(4), (0..40).collect::<Vec<_>>());
    });
}

#[test]
fn a_replica_that_missed_the_log_gets_a_snapshot_in_pieces_and_keeps_it_over_a_crash() {
    simulate(4, async {
        let mut cluster = Cluster::new(4, 3, true);
        cluster.snapshot_every_entries = 10;
        cluster.start_all().await;
        let leader = cluster.leader().await;
        let lagging = if leader == 1 { 2 } else { 1 };
        cluster.crash(lagging, 0).await;
        // The state is several pieces long.
        for number in 0..90 {
            cluster.group(leader).propose(Put(number, vec![9; 20_000])).await.unwrap();
        }
        let mut metrics = cluster.group(leader).metrics();
        metrics.wait_for(|now| now.snapshot > Some(60)).await.unwrap();
        let (replicator, group, mut events) = cluster.open(lagging).await.unwrap();
        cluster.nodes.get_mut(&lagging).unwrap().live = Some((replicator, group));
        while !matches!(events.recv().await.unwrap(), Applied::Installed { .. }) {}
        cluster.settle().await;
        cluster.crash(lagging, 0).await;
        cluster.start(lagging).await;
        cluster.settle().await;
        assert_eq!(cluster.numbers(lagging).len(), 90);
    });
}

#[test]
fn a_damaged_snapshot_is_refused_on_open_and_the_replica_can_be_erased() {
    simulate(5, async {
        let mut cluster = Cluster::new(5, 3, true);
        cluster.snapshot_every_entries = 10;
        cluster.start_all().await;
        let leader = cluster.leader().await;
        put(&cluster, leader, 0..40).await;
        cluster.settle().await;
        let mut metrics = cluster.group(1).metrics();
        metrics.wait_for(|now| now.snapshot.is_some()).await.unwrap();
        cluster.crash(1, 0).await;
        let disk = cluster.nodes[&1].disk.clone();
        let files = disk.files();
        let snapshot = files.keys().rfind(|path| path.contains("snap-")).unwrap();
        disk.flip_bit(snapshot, files[snapshot].len() / 2, 4);
        let refused = cluster.open(1).await.map(drop).unwrap_err();
        assert!(matches!(&refused, OpenError::Corrupt { .. }), "{refused}");
        assert!(refused.to_string().contains("erase it and add a new replica"));
    });
}

#[test]
fn replay_is_told_from_live_commands() {
    simulate(6, async {
        let mut cluster = Cluster::new(6, 1, true);
        cluster.start_all().await;
        cluster.leader().await;
        put(&cluster, 1, 0..5).await;
        cluster.crash(1, 0).await;
        let (_replicator, group, mut events) = cluster.open(1).await.unwrap();
        group.propose(Put(5, Vec::new())).await.unwrap();
        let mut seen = Vec::new();
        while seen.len() < 6 {
            if let Applied::Command { command, replay, .. } = events.recv().await.unwrap() {
                seen.push((command.0, replay));
            }
        }
        let expected: Vec<(u64, bool)> = (0..6).map(|n| (n, n < 5)).collect();
        assert_eq!(seen, expected);
    });
}

#[test]
fn a_new_leader_takes_over_and_a_command_in_between_gets_an_honest_answer() {
    simulate(7, async {
        let mut cluster = Cluster::new(7, 3, true);
        cluster.start_all().await;
        let old = cluster.leader().await;
        put(&cluster, old, 0..10).await;
        let other = cluster.live().into_iter().find(|id| *id != old).unwrap();
        cluster.crash(old, 0).await;
        // Proposed to a dead leader: proposed again once the next one is elected.
        cluster.group(other).propose(Put(10, Vec::new())).await.unwrap();
        let new = cluster.leader().await;
        assert_ne!(new, old);
        cluster.start(old).await;
        cluster.settle().await;
        assert_eq!(cluster.numbers(old), (0..11).collect::<Vec<_>>());
    });
}

#[test]
fn a_command_too_large_for_the_bus_is_refused_and_a_backlog_of_large_ones_is_split() {
    simulate(8, async {
        let mut cluster = Cluster::new(8, 3, true);
        cluster.start_all().await;
        let leader = cluster.leader().await;
        let refused = cluster.group(leader).propose(Put(0, vec![1; 2 << 20])).await.unwrap_err();
        assert!(matches!(refused, ProposeError::TooLarge { .. }), "{refused}");
        assert!(refused.certainly_not_executed());
        let lagging = cluster.live().into_iter().find(|id| *id != leader).unwrap();
        cluster.net.isolate(&format!("node-{lagging}"));
        for number in 0..8 {
            cluster.group(leader).propose(Put(number, vec![1; 400 << 10])).await.unwrap();
        }
        cluster.net.rejoin(&format!("node-{lagging}"));
        cluster.settle().await;
        assert_eq!(cluster.numbers(lagging).len(), 8);
    });
}

#[test]
fn without_a_majority_nothing_is_acknowledged_and_the_error_says_what_is_known() {
    simulate(9, async {
        let mut cluster = Cluster::new(9, 3, true);
        cluster.start_all().await;
        let leader = cluster.leader().await;
        for other in cluster.live().into_iter().filter(|id| *id != leader) {
            cluster.net.isolate(&format!("node-{other}"));
        }
        let error = cluster.group(leader).propose(Put(1, Vec::new())).await.unwrap_err();
        assert!(!error.certainly_not_executed(), "{error}");
        assert!(cluster.numbers(leader).is_empty());
        let barrier = cluster.group(leader).read_barrier(Duration::from_secs(1)).await;
        assert!(barrier.is_err());
        cluster.net.heal_all();
        cluster.settle().await;
    });
}

#[test]
fn a_node_whose_disk_fails_stops_answering_and_the_others_go_on() {
    simulate(10, async {
        let mut cluster = Cluster::new(10, 3, true);
        cluster.start_all().await;
        let leader = cluster.leader().await;
        cluster.nodes[&leader].disk.fail_sync_after(0);
        let other = cluster.live().into_iter().find(|id| *id != leader).unwrap();
        let mut failed = cluster.nodes[&leader].live.as_ref().unwrap().0.failed();
        let _outcome = cluster.group(leader).propose(Put(1, Vec::new())).await;
        failed.wait_for(Option::is_some).await.unwrap();
        let (_, stopped) = cluster.nodes.get_mut(&leader).unwrap().live.take().unwrap();
        stopped.metrics().wait_for(|now| !now.running).await.unwrap();
        cluster.group(other).propose(Put(2, Vec::new())).await.unwrap();
    });
}

#[test]
fn a_group_opened_twice_is_refused_and_one_that_was_shut_down_opens_again() {
    simulate(11, async {
        let mut cluster = Cluster::new(11, 1, true);
        cluster.start_all().await;
        cluster.leader().await;
        put(&cluster, 1, 0..3).await;
        let (replicator, group) = cluster.nodes.get_mut(&1).unwrap().live.take().unwrap();
        let options = || callboard_replicated::GroupOptions::new(common::Journal::default());
        let twice = replicator.open_group(group_id(), ReplicaId(1), options()).await;
        assert!(matches!(twice, Err(OpenError::AlreadyOpen(_))));
        group.shutdown().await;
        let (group, _events) =
            replicator.open_group(group_id(), ReplicaId(1), options()).await.unwrap();
        group.propose(Put(3, Vec::new())).await.unwrap();
        assert_eq!(group.read(|journal| journal.numbers.len()), 4);
    });
}

/// Of an earlier version, which knows small numbers only.
#[derive(Debug, Default)]
struct Earlier(usize);

impl Machine for Earlier {
    type Command = (u8, Vec<u8>);
    type Output = usize;

    fn apply(&mut self, _index: u64, _command: Self::Command) -> usize {
        self.0 += 1;
        self.0
    }

    fn snapshot(&self) -> Vec<u8> {
        Vec::new()
    }

    fn restore(_: &[u8]) -> Result<Self, String> {
        Err("it has none".to_owned())
    }
}

#[test]
fn an_entry_of_a_newer_version_stops_an_older_member_alone_and_is_there_after_its_upgrade() {
    simulate(21, async {
        let mut cluster = Cluster::new(21, 3, true);
        for replica in [1, 2] {
            cluster.start(replica).await;
        }
        let leader = cluster.leader().await;
        let older = cluster.replicator(3).await;
        let mut options = GroupOptions::new(Earlier::default());
        options.found = Some((1..=3).map(|id| (ReplicaId(id), node_id(id))).collect());
        let (group, mut events) =
            older.open_group(group_id(), ReplicaId(3), options).await.unwrap();
        tokio::spawn(async move { while events.recv().await.is_some() {} });
        put(&cluster, leader, 0..10).await;
        let mut metrics = group.metrics();
        metrics.wait_for(|now| now.applied >= Some(10)).await.unwrap();
        put(&cluster, leader, 1_000..1_010).await;
        metrics.wait_for(|now| !now.running).await.unwrap();
        assert_eq!(group.read(|machine| machine.0), 10, "what it knows is applied, and no more");
        put(&cluster, leader, 2_000..2_010).await;

        older.crash();
        cluster.net.disconnect(node_id(3).as_str());
        group.shutdown().await;
        cluster.start(3).await;
        cluster.settle().await;
        assert_eq!(cluster.numbers(3).len(), 30);
    });
}
