//! Idle kernels sleep; the next cell finds everything, whatever happened in the night.

use std::{sync::atomic::Ordering, time::Duration};

use callboard_kernel::ReplicaMsg;
use callboard_policy::hibernation::HibernationConfig;
use callboard_protocol::{
    DiskId, ReplicaId,
    control::{MemberChange, MemberChanged, NodeHealth, ReplicaSpec, Standing},
    kernel::KernelPhase,
};
use callboard_transport::{FaultPlan, typed};
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::cluster::{Cluster, DEADLINE, Member, executor, node, value};

/// Short enough for a test; long enough that a cell in progress is not called idle.
const QUICK: HibernationConfig =
    HibernationConfig { after_ms: 400, retry_ms: 200, agree_within_ms: 1_000, stagger_ms: 100 };

impl Cluster {
    fn asleep(&self) -> Vec<u64> {
        let sleeps = |member: &Member| member.context.stats.asleep.load(Ordering::Relaxed) == 1;
        self.members.iter().filter(|(_, member)| sleeps(member)).map(|(id, _)| *id).collect()
    }

    async fn all_asleep(&self) {
        let sleeping = async {
            while self.asleep().len() < self.members.len() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let slept = tokio::time::timeout(DEADLINE, sleeping).await;
        assert!(slept.is_ok(), "only {:?} of {:?} sleep", self.asleep(), self.members.keys());
    }

    async fn all_awake(&self) {
        let waking = async {
            while !self.asleep().is_empty() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        assert!(tokio::time::timeout(DEADLINE, waking).await.is_ok(), "{:?} sleep", self.asleep());
    }

    fn raft_messages(&self) -> usize {
        self.net.log().iter().filter(|it| it.subject.contains(".raft.")).count()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sleeping_kernel_says_nothing_and_answers_the_next_cell() {
    let cluster = Cluster::start_with(QUICK).await;
    let client = cluster.client();
    value(&client, "x = 41").await;
    cluster.all_asleep().await;
    cluster.net.keep_log();
    let before = cluster.raft_messages();
    let status = client.show().await.unwrap();
    assert_eq!(status.phase, KernelPhase::Hibernating);
    assert_eq!(status.names, ["x"]);
    assert_eq!(status.replicas.len(), 3);
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert_eq!(cluster.raft_messages(), before, "somebody spoke in his sleep");
    assert_eq!(cluster.asleep().len(), 3, "a look at the kernel woke it");
    let digest = |member: &Member| member.context.stats.asleep_digest.load(Ordering::Relaxed);
    assert!(cluster.members.values().all(|member| digest(member) != 0));
    assert_eq!(value(&client, "x + 1").await, "42");
    cluster.all_asleep().await;
    assert_eq!(value(&client, "x + 2").await, "43");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_session_in_memory_is_the_same_after_the_night() {
    let cluster = Cluster::start_with(QUICK).await;
    let client = cluster.client();
    value(&client, "import os; pid = os.getpid()").await;
    for _ in 0..3 {
        cluster.all_asleep().await;
        assert_eq!(value(&client, "os.getpid() == pid").await, "True");
    }
    let outputs = client.outputs(Default::default()).await.unwrap();
    assert_eq!(
        outputs.outputs.iter().filter(|o| o.message.windows(4).any(|w| w == b"True")).count(),
        3
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_loss_of_the_executors_node_wakes_the_others_and_nothing_else_does() {
    let mut cluster = Cluster::start_with(QUICK).await;
    let client = cluster.client();
    value(&client, "x = 5").await;
    let executing = executor(&client).await;
    cluster.all_asleep().await;
    let idle = (1..=3).find(|n| *n != executing).unwrap();
    cluster.set_health(idle, NodeHealth::Suspected);
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(cluster.asleep().len(), 3, "suspicion of a standby's node woke somebody");
    cluster.set_health(idle, NodeHealth::Up);
    cluster.kill_node(executing).await;
    cluster.all_awake().await;
    let survivor = loop {
        let now = executor(&client).await;
        if now != executing {
            break now;
        }
    };
    assert_ne!(survivor, executing);
    assert_eq!(value(&client, "x").await, "5");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_nodes_may_restart_while_the_kernel_sleeps_and_leave_it_asleep() {
    let mut cluster = Cluster::start_with(QUICK).await;
    let client = cluster.client();
    value(&client, "words = ['a']; alias = words").await;
    cluster.all_asleep().await;
    // So many silent nodes are an outage; without one, whoever sees the executor's node silent wakes.
    let outage = Some("3 of 3 nodes are silent".to_owned());
    cluster.nodes.send_modify(|view| view.outage = outage);
    for n in 1..=3 {
        cluster.kill_node(n).await;
    }
    for n in 1..=3 {
        cluster.start_member(n).await;
    }
    cluster.nodes.send_modify(|view| view.outage = None);
    assert_eq!(cluster.asleep(), [1, 2, 3], "they start asleep");
    assert_eq!(client.show().await.unwrap().phase, KernelPhase::Hibernating);
    value(&client, "alias.append('b')").await;
    assert_eq!(value(&client, "words is alias, words").await, "(True, ['a', 'b'])");
    cluster.all_asleep().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_python_process_that_dies_in_the_night_is_noticed() {
    let cluster = Cluster::start_with(QUICK).await;
    let client = cluster.client();
    value(&client, "x = 7").await;
    let executing = executor(&client).await;
    cluster.all_asleep().await;
    cluster.members[&executing].actor.send_message(ReplicaMsg::KillPython).unwrap();
    cluster.all_awake().await;
    assert_eq!(value(&client, "x").await, "7");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_of_its_members_wakes_a_kernel_and_it_sleeps_again_when_they_are_whole() {
    let mut cluster = Cluster::start_with(QUICK).await;
    let client = cluster.client();
    value(&client, "x = 9").await;
    let executing = executor(&client).await;
    let leaver = (1..=3).find(|n| *n != executing).unwrap();
    cluster.all_asleep().await;
    let (control, mut reports) = cluster.control().await;
    cluster.change_spec(|spec| {
        spec.replicas.get_mut(&ReplicaId(leaver)).unwrap().standing = Standing::Leaver;
        let (disk, standing) = (DiskId::generate(), Standing::Joiner);
        spec.replicas.insert(ReplicaId(4), ReplicaSpec { node: node(4), disk, standing });
    });
    cluster.start_member(4).await;
    for (expected, change) in [(4, MemberChange::Joined), (leaver, MemberChange::Removed)] {
        loop {
            let message = reports.next().await.unwrap();
            let report: MemberChanged = typed::decode(&message).unwrap();
            typed::answer(&*control, &message, Ok(())).await.unwrap();
            if report.replica == ReplicaId(expected) {
                assert_eq!(report.change, change);
                break;
            }
        }
        cluster.change_spec(|spec| match change {
            MemberChange::Joined => {
                spec.replicas.get_mut(&ReplicaId(4)).unwrap().standing = Standing::Member;
            }
            _ => drop(spec.replicas.remove(&ReplicaId(leaver))),
        });
    }
    cluster.kill_node(leaver).await;
    cluster.all_asleep().await;
    assert_eq!(value(&client, "x").await, "9");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_acknowledged_cell_is_lost_over_nights_with_faults() {
    let seed = std::env::var("CALLBOARD_SEED").ok().and_then(|it| it.parse().ok()).unwrap_or(1);
    eprintln!("reproduce with CALLBOARD_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let mut cluster = Cluster::start_with(QUICK).await;
    let client = cluster.client();
    value(&client, "done = []").await;
    let mut expected: Vec<u32> = Vec::new();
    for night in 0..8 {
        cluster.all_asleep().await;
        let fault = rng.random_range(0..5);
        eprintln!("night {night}: fault {fault}");
        match fault {
            0 => {
                let n = rng.random_range(1..=3);
                cluster.kill_node(n).await;
                cluster.start_member(n).await;
            }
            1 => {
                cluster.net.set_broker_outage(true);
                tokio::time::sleep(Duration::from_millis(500)).await;
                cluster.net.set_broker_outage(false);
            }
            2 => {
                for n in 1..=3 {
                    cluster.kill_node(n).await;
                }
                for n in 1..=3 {
                    cluster.start_member(n).await;
                }
            }
            3 => {
                let plan = FaultPlan { drop_probability: 0.02, ..FaultPlan::default() };
                cluster.net.set_plan(plan);
            }
            _ => {}
        }
        value(&client, &format!("done.append({night})")).await;
        expected.push(night);
        cluster.net.set_plan(FaultPlan::default());
    }
    assert_eq!(value(&client, "done").await, format!("{expected:?}"));
}
