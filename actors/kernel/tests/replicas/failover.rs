//! Executors, their nodes and whole clusters end; sessions go on.

use std::time::Duration;

use callboard_client::{ExecuteEvent, ExecuteOptions};
use callboard_kernel::{Replica, ReplicaArgs, ReplicaMsg};
use callboard_protocol::{
    DiskId, ReplicaId,
    control::{MemberChange, MemberChanged, Recovery, ReplicaSpec, Standing},
    kernel::{CellOutcome, Level},
};
use callboard_transport::typed;
use ractor::Actor;

use super::cluster::{Cluster, DEADLINE, executor, node, run, value};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_variable_outlives_the_executors_node() {
    let mut cluster = Cluster::start().await;
    let client = cluster.client();
    assert_eq!(value(&client, "x = 1").await, "");
    let first = executor(&client).await;
    cluster.kill_node(first).await;
    assert_eq!(value(&client, "x").await, "1");
    assert_ne!(executor(&client).await, first);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_state_changed_piece_by_piece_outlives_the_executors_node() {
    let mut cluster = Cluster::start().await;
    let client = cluster.client();
    let setup = "import numpy as np; x = np.arange(1_000_000); views = [x[5:], x[::2]]\n\
                 words = [f'word {i}' for i in range(200_000)]";
    assert_eq!(value(&client, setup).await, "");
    value(&client, "x[500_000:500_128] = -1").await;
    value(&client, "x[999_999] = -2; words.insert(1000, 'new')").await;
    value(&client, "views[0][0] = -3").await;
    let first = executor(&client).await;
    cluster.kill_node(first).await;
    let check = "y = np.arange(1_000_000); y[500_000:500_128] = -1; y[999_999] = -2; y[5] = -3\n\
                 (bool((x == y).all()), views[1].base is x, len(words), words[1000], words[-1])";
    assert_eq!(value(&client, check).await, "(True, True, 200001, 'new', 'word 199999')");
    // What is patched after a restore has the restored version as its base.
    value(&client, "x[7] = -4").await;
    let second = executor(&client).await;
    cluster.start_member(first).await;
    cluster.kill_node(second).await;
    assert_eq!(value(&client, "int(x[7]), int(x[500_000])").await, "(-4, -1)");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cell_whose_node_dies_ends_interrupted_and_earlier_state_stays() {
    let mut cluster = Cluster::start().await;
    let client = cluster.client();
    value(&client, "import numpy as np; x = np.arange(100_000)").await;
    let first = executor(&client).await;
    let running = {
        let client = client.clone();
        tokio::spawn(async move {
            run(
                &client,
                "print('started', flush=True)\nx[0] = 7\nimport time; time.sleep(600)",
                Level::Durable,
            )
            .await
        })
    };
    let mut events = client.events().await.unwrap();
    while let Some(event) = events.next().await {
        if event.payload.windows(7).any(|window| window == b"started") {
            break;
        }
    }
    cluster.kill_node(first).await;
    let (_, outcome) = running.await.unwrap();
    let CellOutcome::Interrupted { cause } = outcome else { panic!("the cell completed") };
    assert_eq!(cause, format!("executor lost on node-{first}: killed by signal 9"));
    assert_eq!(value(&client, "int(x[0]), len(x)").await, "(0, 100000)");
}

/// The log of the executor's replica is damaged, say: its node is up again before anybody saw it down,
/// and the replica never returns.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cell_ends_whose_executors_node_came_back_at_once_without_its_replica() {
    let mut cluster = Cluster::start().await;
    let client = cluster.client();
    value(&client, "x = 1").await;
    let first = executor(&client).await;
    let timeout = Some(DEADLINE);
    let options = ExecuteOptions { timeout, ..ExecuteOptions::default() };
    let mut cell = client.execute("x = 2; import time; time.sleep(600)", options);
    while !matches!(cell.next().await, Some(Ok(ExecuteEvent::Accepted(_)))) {}
    cluster.lose_node(first).await;
    cluster.hear_again(first, 1);
    while client.show().await.is_err() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    cluster.hear_again(first, 20);
    let outcome = loop {
        match cell.next().await.expect("the execution ended without an end").unwrap() {
            ExecuteEvent::Ended(end) => break end.outcome,
            _ => continue,
        }
    };
    let cause = format!("executor lost on node-{first}: it was started again");
    assert_eq!(outcome, CellOutcome::Interrupted { cause });
    assert_eq!(value(&client, "x").await, "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_comes_back_after_all_nodes_died_at_once() {
    let mut cluster = Cluster::start().await;
    let client = cluster.client();
    value(&client, "words = ['a']; alias = words").await;
    value(&client, "alias.append('b'); print('kept')").await;
    for n in 1..=3 {
        cluster.kill_node(n).await;
    }
    for n in 1..=3 {
        cluster.start_member(n).await;
    }
    assert_eq!(value(&client, "words is alias, words").await, "(True, ['a', 'b'])");
    let outputs = client.outputs(Default::default()).await.unwrap();
    let kept = outputs.outputs.iter().any(|o| o.message.windows(4).any(|w| w == b"kept"));
    assert!(kept, "the output of the second cell is gone");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cell_that_raises_keeps_its_partial_state() {
    let cluster = Cluster::start().await;
    let client = cluster.client();
    let (text, outcome) = run(&client, "y = 5\n1/0", Level::Durable).await;
    assert_eq!(outcome, CellOutcome::Completed);
    assert_eq!(text, "division by zero");
    assert_eq!(value(&client, "y").await, "5");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_process_may_die_and_the_cell_says_how() {
    let cluster = Cluster::start().await;
    let client = cluster.client();
    value(&client, "z = 3").await;
    let code = "z = 4\nimport os, signal; os.kill(os.getpid(), signal.SIGKILL)";
    let (_, outcome) = run(&client, code, Level::Received).await;
    let CellOutcome::Interrupted { cause } = outcome else { panic!("the cell completed") };
    assert!(cause.contains("killed by signal 9"), "{cause}");
    assert_eq!(value(&client, "z").await, "3");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_member_is_replaced_by_one_that_has_everything() {
    let mut cluster = Cluster::start().await;
    let client = cluster.client();
    value(&client, "import numpy as np; big = np.arange(300_000)").await;
    let lost = executor(&client).await;
    cluster.kill_node(lost).await;
    assert_eq!(value(&client, "int(big[-1])").await, "299999");
    let (control, mut reports) = cluster.control().await;
    cluster.change_spec(|spec| {
        spec.replicas.get_mut(&ReplicaId(lost)).unwrap().standing = Standing::Leaver;
        let (disk, standing) = (DiskId::generate(), Standing::Joiner);
        spec.replicas.insert(ReplicaId(4), ReplicaSpec { node: node(4), disk, standing });
    });
    cluster.start_member(4).await;
    for expected in [(4, MemberChange::Joined), (lost, MemberChange::Removed)] {
        let report = loop {
            let message = reports.next().await.unwrap();
            let report: MemberChanged = typed::decode(&message).unwrap();
            typed::answer(&*control, &message, Ok(())).await.unwrap();
            if report.replica == ReplicaId(expected.0) {
                break report;
            }
        };
        assert_eq!(report.change, expected.1);
        cluster.change_spec(|spec| match expected.1 {
            MemberChange::Joined => {
                spec.replicas.get_mut(&ReplicaId(4)).unwrap().standing = Standing::Member;
            }
            _ => drop(spec.replicas.remove(&ReplicaId(lost))),
        });
    }
    let second = executor(&client).await;
    cluster.kill_node(second).await;
    assert_eq!(value(&client, "int(big[-1])").await, "299999");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cells_behind_one_that_raises_are_not_run() {
    let cluster = Cluster::start().await;
    let client = cluster.client();
    value(&client, "done = []").await;
    let codes = ["import time; time.sleep(1); 1/0", "done.append(1)", "done.append(2)"];
    let mut cells = Vec::new();
    for code in codes {
        let timeout = Some(DEADLINE);
        let mut cell =
            client.execute(code, ExecuteOptions { timeout, ..ExecuteOptions::default() });
        // The next one is sent once this one has its place.
        while !matches!(cell.next().await, Some(Ok(ExecuteEvent::Accepted(_)))) {}
        cells.push(cell);
    }
    for mut cell in cells {
        while let Some(event) = cell.next().await {
            if let ExecuteEvent::Ended(end) = event.unwrap() {
                assert_eq!(end.outcome, CellOutcome::Completed);
            }
        }
    }
    assert_eq!(value(&client, "done").await, "[]");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kernel_goes_on_with_one_survivor_of_a_lost_majority() {
    let mut cluster = Cluster::start().await;
    let client = cluster.client();
    value(&client, "import numpy as np; big = np.arange(100_000)").await;
    value(&client, "x = 1").await;
    for n in [1, 2] {
        cluster.kill_node(n).await;
    }
    // The control plane gives the others up, and the survivor's node ends its old member.
    let old = cluster.members.remove(&3).unwrap();
    let (done, stopped) = tokio::sync::oneshot::channel();
    old.actor.send_message(ReplicaMsg::Stop { purge: false, done: done.into() }).unwrap();
    stopped.await.unwrap();
    let cause = "recovered from replica 3 on node-3 after a lost majority".to_owned();
    cluster.change_spec(|spec| {
        let member = ReplicaSpec { node: node(3), ..spec.replicas[&ReplicaId(3)].clone() };
        spec.replicas =
            [(ReplicaId(4), ReplicaSpec { standing: Standing::Founder, ..member })].into();
        spec.generation = 1;
        spec.recovery = Some(Recovery { from: ReplicaId(3), cause: cause.clone() });
    });
    let (_control, mut reports) = cluster.control().await;
    let args =
        ReplicaArgs { spec: cluster.spec.clone(), replica: ReplicaId(4), context: old.context };
    let (actor, _task) = Actor::spawn(None, Replica, args).await.unwrap();
    let report: MemberChanged = typed::decode(&reports.next().await.unwrap()).unwrap();
    assert_eq!((report.replica, report.change), (ReplicaId(4), MemberChange::Recovered));
    assert_eq!(value(&client, "int(big[-1]), x").await, "(99999, 1)");
    let status = client.show().await.unwrap();
    assert_eq!(status.last_loss, Some(cause));
    assert_eq!(client.history().await.unwrap().steps.len(), 3, "its history came along");

    // A member of the former group that comes back hears that it is over.
    cluster.spec.generation = 0;
    cluster.spec.recovery = None;
    cluster.spec.replicas = (1..=3)
        .map(|n| {
            let (disk, standing) = (DiskId::generate(), Standing::Founder);
            (ReplicaId(n), ReplicaSpec { node: node(n), disk, standing })
        })
        .collect();
    cluster.start_member(1).await;
    let back = cluster.members.remove(&1).unwrap();
    tokio::time::timeout(DEADLINE, back.task).await.expect("it does not end").unwrap();
    assert_eq!(value(&client, "x").await, "1");
    actor.stop(None);
}
