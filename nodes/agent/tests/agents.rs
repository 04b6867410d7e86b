//! Agents together: founding, leadership, repair, outages, lost disks.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod common;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use callboard_protocol::{
    FaultCode, KernelId, NodeId, ReplicaId,
    control::{
        KernelSpec, MemberChange, MemberChanged, NodeHealth, RecoverKernel, StartKernel, StopKernel,
    },
};
use callboard_runtime::universe::Universe;
use uuid::Uuid;

use self::common::{GONE_AFTER_MS, TestCluster, is_whole, node};

fn kernel(n: u128) -> KernelId {
    KernelId(Uuid::from_u128(n))
}

/// A test's own seed, or the one to try it with instead.
fn seed(own: u64) -> u64 {
    std::env::var("CALLBOARD_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(own)
}

fn number(node: &NodeId) -> u32 {
    node.as_str().strip_prefix("node-").unwrap().parse().unwrap()
}

fn places(spec: &KernelSpec) -> BTreeSet<&NodeId> {
    spec.replicas.values().map(|it| &it.node).collect()
}

#[test]
fn three_nodes_form_the_system_group_and_its_leader_starts_kernels() {
    Universe::run(seed(11), |universe| async move {
        let cluster = TestCluster::founded(&universe, 3).await;
        for n in 1..=3 {
            assert_eq!(cluster.running(n).group().members().voters.len(), 3);
        }
        let spec = cluster.start_kernel(kernel(1)).await;
        assert_eq!(places(&spec).len(), 3, "no two on one node");
        let request = StartKernel {
            kernel: kernel(1),
            name: None,
            replicas: 3,
            options: Default::default(),
            origin: None,
            settings: Default::default(),
        };
        let again: KernelSpec = cluster.try_ask("start_kernel", &request).await.unwrap();
        assert_eq!(again, spec);
        let other = StartKernel { name: Some("other".to_owned()), ..request };
        let fault = cluster.try_ask::<_, KernelSpec>("start_kernel", &other).await.unwrap_err();
        assert_eq!(fault.code, FaultCode::Conflict);
        let fault = cluster.try_ask::<_, ()>("dance", &()).await.unwrap_err();
        assert!(fault.message.contains("has no verb 'dance'"), "{fault}");
        cluster.stop().await;
    });
}

#[test]
fn a_stopped_kernels_members_end_everywhere() {
    Universe::run(seed(12), |universe| async move {
        let cluster = TestCluster::founded(&universe, 3).await;
        cluster.start_kernel(kernel(1)).await;
        let stop = StopKernel { kernel: kernel(1) };
        let last: KernelSpec = cluster.try_ask("stop_kernel", &stop).await.unwrap();
        assert_eq!(last.kernel, kernel(1));
        for n in 1..=3 {
            while !cluster.running(n).roster().is_empty() {
                universe.advance(Duration::from_millis(50)).await;
            }
        }
        let request = StartKernel {
            kernel: kernel(1),
            name: None,
            replicas: 3,
            options: Default::default(),
            origin: None,
            settings: Default::default(),
        };
        let fault = cluster.try_ask::<_, KernelSpec>("start_kernel", &request).await.unwrap_err();
        assert!(fault.message.contains("was stopped"), "{fault}");
        cluster.stop().await;
    });
}

#[test]
fn after_the_leaders_death_another_node_answers_and_nothing_is_lost() {
    Universe::run(seed(13), |universe| async move {
        let mut cluster = TestCluster::founded(&universe, 3).await;
        let spec = cluster.start_kernel(kernel(1)).await;
        let first = cluster.until_up(3).await;
        cluster.crash(number(&first.leader)).await;
        let second = cluster.until_up(2).await;
        assert_ne!(second.leader, first.leader);
        assert!(second.epoch > first.epoch);
        assert_eq!(cluster.spec(kernel(1)).await, spec);
        cluster.start(&[number(&first.leader)]).await;
        cluster.until_up(3).await;
        cluster.until_running(&spec).await;
        cluster.stop().await;
    });
}

#[test]
fn a_gone_nodes_members_are_replaced_exactly_once_and_end_when_it_returns() {
    Universe::run(seed(14), |universe| async move {
        let mut cluster = TestCluster::founded(&universe, 3).await;
        cluster.start(&[4]).await;
        cluster.until_up(4).await;
        let spec = cluster.start_kernel(kernel(1)).await;
        let (lost, at) = spec.replicas.iter().next().unwrap();
        let victim = number(&at.node);
        cluster.crash(victim).await;
        universe.advance(Duration::from_millis(GONE_AFTER_MS / 2)).await;
        assert_eq!(cluster.spec(kernel(1)).await, spec, "silence is not yet loss");
        let whole = cluster
            .until_spec("a whole kernel", kernel(1), |it| {
                is_whole(it) && !it.replicas.contains_key(lost)
            })
            .await;
        assert_eq!(places(&whole).len(), 3);
        assert!(!places(&whole).contains(&node(victim)));
        assert_eq!(whole.replica_next, ReplicaId(5), "one joiner and no more");
        cluster.until_running(&whole).await;
        universe.advance(Duration::from_secs(30)).await;
        cluster.start(&[victim]).await;
        cluster.until_up(4).await;
        universe.advance(Duration::from_secs(5)).await;
        assert_eq!(cluster.spec(kernel(1)).await, whole);
        assert!(cluster.running(victim).roster().is_empty(), "its member is over");
        cluster.stop().await;
    });
}

#[test]
fn nothing_is_replaced_while_the_broker_is_down_or_too_many_are_silent() {
    Universe::run(seed(15), |universe| async move {
        let mut cluster = TestCluster::founded(&universe, 3).await;
        cluster.start(&[4]).await;
        cluster.until_up(4).await;
        let spec = cluster.start_kernel(kernel(1)).await;
        cluster.net.set_broker_outage(true);
        universe.advance(Duration::from_millis(4 * GONE_AFTER_MS)).await;
        cluster.net.set_broker_outage(false);
        cluster.until_up(4).await;
        universe.advance(Duration::from_millis(GONE_AFTER_MS / 2)).await;
        assert_eq!(cluster.spec(kernel(1)).await, spec, "the broker was down");

        let list = cluster.until_up(4).await;
        let free: Vec<u32> = (1..=4).filter(|n| node(*n) != list.leader).collect();
        let (a, b) = (free[0], free[1]);
        cluster.net.isolate(node(a).as_str());
        cluster.net.isolate(node(b).as_str());
        universe.advance(Duration::from_millis(4 * GONE_AFTER_MS)).await;
        cluster.net.heal_all();
        let list = cluster.until_up(4).await;
        assert!(list.nodes.iter().all(|it| it.health == NodeHealth::Up));
        assert_eq!(cluster.spec(kernel(1)).await, spec, "half of the nodes were silent");
        cluster.stop().await;
    });
}

#[test]
fn a_node_that_lost_its_disk_gets_a_fresh_member_id_everywhere() {
    Universe::run(seed(16), |universe| async move {
        let mut cluster = TestCluster::founded(&universe, 3).await;
        let spec = cluster.start_kernel(kernel(1)).await;
        let (lost, _) = spec.replicas.iter().find(|(_, it)| it.node == node(3)).unwrap();
        cluster.crash(3).await;
        cluster.lose_disk(3);
        cluster.start(&[3]).await;
        cluster.until_up(3).await;
        assert_eq!(cluster.running(3).group().replica(), ReplicaId(4));
        let whole = cluster
            .until_spec("a whole kernel", kernel(1), |it| {
                is_whole(it) && !it.replicas.contains_key(lost)
            })
            .await;
        let (fresh, at) = whole.replicas.iter().find(|(_, it)| it.node == node(3)).unwrap();
        assert_eq!(*fresh, ReplicaId(4));
        assert_ne!(at.disk, spec.replicas[lost].disk);
        cluster.until_running(&whole).await;
        let wanted = BTreeSet::from([ReplicaId(1), ReplicaId(2), ReplicaId(4)]);
        for _ in 0..600 {
            let members = cluster.running(1).group().members();
            if members.voters.keys().copied().collect::<BTreeSet<_>>() == wanted {
                break;
            }
            universe.advance(Duration::from_millis(100)).await;
        }
        let members = cluster.running(1).group().members();
        assert_eq!(members.voters.into_keys().collect::<BTreeSet<_>>(), wanted);
        cluster.stop().await;
    });
}

#[test]
fn a_damaged_copy_of_the_desired_state_is_rebuilt_under_a_fresh_id() {
    Universe::run(seed(17), |universe| async move {
        let mut cluster = TestCluster::founded(&universe, 3).await;
        let spec = cluster.start_kernel(kernel(1)).await;
        cluster.crash(2).await;
        let files = cluster.disk(2).files();
        let (path, bytes) = files.iter().find(|(path, _)| path.starts_with("wal/")).unwrap();
        cluster.disk(2).flip_bit(path, bytes.len() / 2, 3);
        cluster.start(&[2]).await;
        cluster.until_up(3).await;
        assert_eq!(cluster.running(2).group().replica(), ReplicaId(4));
        let mut revision = cluster.running(2).revision();
        let has_kernel =
            || cluster.running(2).group().read(|it| it.kernels().contains_key(&kernel(1)));
        while !has_kernel() {
            tokio::time::timeout(Duration::from_secs(60), revision.changed())
                .await
                .unwrap()
                .unwrap();
        }
        // The node's log is one: the flipped bit may have hit the kernel's member there as well, which is
        // then replaced. The others are as they were, and the copy is what the cluster has.
        loop {
            let copy = cluster
                .running(2)
                .group()
                .read(|it| it.kernels().get(&kernel(1)).cloned())
                .unwrap();
            let others = |spec: &KernelSpec| {
                let others = spec.replicas.clone().into_iter().filter(|it| it.1.node != node(2));
                others.collect::<BTreeMap<_, _>>()
            };
            assert_eq!(others(&copy), others(&spec));
            if cluster.spec(kernel(1)).await == copy {
                break;
            }
            tokio::time::timeout(Duration::from_secs(60), revision.changed())
                .await
                .unwrap()
                .unwrap();
        }
        cluster.stop().await;
    });
}

#[test]
fn a_member_whose_log_is_lost_is_replaced_even_on_its_own_node() {
    Universe::run(seed(18), |universe| async move {
        let cluster = TestCluster::founded(&universe, 3).await;
        let spec = cluster.start_kernel(kernel(1)).await;
        let (lost, at) = spec.replicas.iter().next().unwrap();
        let why = "its log is damaged".to_owned();
        let change = MemberChange::Lost { why };
        let report = MemberChanged { kernel: kernel(1), replica: *lost, change };
        let _: KernelSpec = cluster.try_ask("member_changed", &report).await.unwrap();
        let replacing =
            cluster.until_spec("a joiner", kernel(1), |it| it.replica_next == ReplicaId(5)).await;
        assert_eq!(replacing.replicas[&ReplicaId(4)].node, at.node, "no other node is free");
        universe.advance(Duration::from_secs(30)).await;
        assert_eq!(cluster.spec(kernel(1)).await.replica_next, ReplicaId(5), "exactly once");
        cluster.stop().await;
    });
}

#[test]
fn a_kernels_damaged_log_is_found_at_start_and_its_member_replaced_once() {
    Universe::run(seed(19), |universe| async move {
        let mut cluster = TestCluster::founded(&universe, 3).await;
        let spec = cluster.start_kernel(kernel(1)).await;
        universe.advance(Duration::from_secs(2)).await;
        let (lost, _) = spec.replicas.iter().find(|(_, it)| it.node == node(3)).unwrap();
        cluster.crash(3).await;
        cluster.damage_log(3, kernel(1));
        cluster.start(&[3]).await;
        let whole = cluster
            .until_spec("a whole kernel", kernel(1), |it| {
                is_whole(it) && !it.replicas.contains_key(lost)
            })
            .await;
        assert_eq!(whole.replica_next, ReplicaId(5));
        assert_eq!(whole.replicas[&ReplicaId(4)].node, node(3));
        cluster.until_running(&whole).await;
        let started = cluster.starts.lock().unwrap().clone();
        let again = started.iter().filter(|it| **it == (node(3), (kernel(1), *lost)));
        assert_eq!(again.count(), 1, "the damaged member did not run again");
        cluster.stop().await;
    });
}

#[test]
fn after_a_power_cut_everywhere_all_kernels_and_members_are_back() {
    Universe::run(seed(20), |universe| async move {
        let mut cluster = TestCluster::founded(&universe, 3).await;
        let spec = cluster.start_kernel(kernel(1)).await;
        for n in 1..=3 {
            cluster.crash(n).await;
        }
        cluster.start(&[1, 2, 3]).await;
        cluster.until_up(3).await;
        assert_eq!(cluster.spec(kernel(1)).await, spec);
        cluster.until_running(&spec).await;
        cluster.stop().await;
    });
}

#[test]
fn a_kernel_recovers_from_one_member_and_the_lost_ones_end_when_they_return() {
    Universe::run(seed(21), |universe| async move {
        let mut cluster = TestCluster::founded(&universe, 3).await;
        cluster.start(&[4, 5]).await;
        cluster.until_up(5).await;
        let spec = cluster.start_kernel(kernel(1)).await;
        let recover = |from: ReplicaId, plan_only| RecoverKernel {
            kernel: kernel(1),
            from,
            version: None,
            plan_only,
        };
        let ids: Vec<ReplicaId> = spec.replicas.keys().copied().collect();
        let fault = cluster.recover(&recover(ids[0], true)).await.unwrap_err();
        assert!(fault.message.contains("is alive"), "{fault}");
        let fault = cluster.recover(&recover(ReplicaId(9), true)).await.unwrap_err();
        assert!(fault.message.contains("has no member 9: it has 1 on node-"), "{fault}");

        // Two of its nodes go at once; four of five would be needed to replace them by itself.
        let (survivor, lost) = (ids[2], [ids[0], ids[1]]);
        for id in lost {
            cluster.crash(number(&spec.replicas[&id].node)).await;
        }
        cluster.until_up(3).await;
        let fault = cluster.recover(&recover(lost[0], false)).await.unwrap_err();
        assert!(fault.message.contains("does not answer on node-"), "{fault}");
        let plan = cluster.recover(&recover(survivor, true)).await.unwrap();
        assert_eq!(
            (plan.node.clone(), plan.lost.len()),
            (spec.replicas[&survivor].node.clone(), 2)
        );
        assert_eq!(cluster.spec(kernel(1)).await.generation, 0, "only a plan");
        cluster.recover(&recover(survivor, false)).await.unwrap();
        let alone = |it: &KernelSpec| it.recovery.is_none() && it.generation == 1;
        let recovered = cluster.until_spec("recovered", kernel(1), alone).await;
        assert!(recovered.replicas.contains_key(&ReplicaId(4)), "{recovered:?}");
        assert!(!recovered.replicas.contains_key(&survivor));
        cluster.until_running(&recovered).await;

        let back: Vec<u32> = lost.iter().map(|id| number(&spec.replicas[id].node)).collect();
        cluster.start(&back).await;
        cluster.until_up(5).await;
        universe.advance(Duration::from_secs(5)).await;
        for n in back {
            let here = cluster.running(n).roster().keys();
            assert!(here.iter().all(|(_, id)| *id >= ReplicaId(4)), "node-{n} runs {here:?}");
        }
        // Before that, too many nodes were silent for any repair.
        let whole = cluster.until_spec("a whole kernel", kernel(1), is_whole).await;
        cluster.until_running(&whole).await;
        assert_eq!(whole.generation, 1);
        cluster.stop().await;
    });
}
