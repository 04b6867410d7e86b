//! Three replicas of one kernel in one process: in-memory bus, real disks, real Python.
//!
//! Reproduce: `make setup && cargo test -p callboard-kernel --test replicas`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use callboard_client::{Client, ExecuteEvent, ExecuteOptions, KernelClient};
use callboard_kernel::{
    FileOptions, NodeContext, NodeStats, PythonConfig, Replica, ReplicaArgs, ReplicaMsg,
    python::unpack_package,
};
use callboard_policy::{
    environment::EnvironmentMatch,
    failure::{NodeView, NodesView},
};
use callboard_protocol::{
    ActorKind, ClusterId, DiskId, Incarnation, KernelId, NodeId, OwnerId, ReplicaId,
    SubjectPattern,
    control::{KernelSpec, MemberChange, MemberChanged, NodeHealth, ReplicaSpec, Standing},
    kernel::{CellOutcome, Level, ReplicaRole},
};
use callboard_replicated::{ChunkExchange, ChunkStore, RealDisk, Replicator, ReplicatorOptions};
use callboard_transport::{FaultPlan, Lanes, MemoryNet, typed};
use ractor::{Actor, ActorRef};
use tokio::sync::watch;

const DEADLINE: Duration = Duration::from_secs(60);

fn python() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let python = root.join(".venv/bin/python");
    assert!(python.exists(), "no Python environment: run `make setup` first");
    python
}

fn node(n: u64) -> NodeId {
    NodeId::new(format!("node-{n}")).unwrap()
}

struct Member {
    actor: ActorRef<ReplicaMsg>,
    context: Arc<NodeContext>,
    task: tokio::task::JoinHandle<()>,
}

struct Cluster {
    net: MemoryNet,
    directory: tempfile::TempDir,
    spec: KernelSpec,
    nodes: watch::Sender<NodesView>,
    members: BTreeMap<u64, Member>,
    lives: u64,
}

impl Cluster {
    async fn start() -> Self {
        let replicas = (1..=3)
            .map(|n| {
                let disk = DiskId::generate();
                let standing = Standing::Founder;
                (ReplicaId(n), ReplicaSpec { node: node(n), disk, standing })
            })
            .collect();
        let spec = KernelSpec {
            kernel: KernelId::generate(),
            owner: OwnerId::default(),
            name: None,
            replicas_wanted: 3,
            replicas,
            replica_next: ReplicaId(4),
            version: 1,
            settings: Default::default(),
            needs: None,
        };
        let mut cluster = Self {
            net: MemoryNet::new(1, FaultPlan::default()),
            directory: tempfile::tempdir().unwrap(),
            spec,
            nodes: watch::Sender::new(NodesView::default()),
            members: BTreeMap::new(),
            lives: 0,
        };
        for n in 1..=3 {
            cluster.start_member(n).await;
        }
        cluster
    }

    async fn start_member(&mut self, n: u64) {
        self.lives += 1;
        let incarnation = Incarnation(self.lives);
        let directory = self.directory.path().join(format!("node-{n}"));
        let run_dir = directory.join("run");
        std::fs::create_dir_all(&run_dir).unwrap();
        let cluster = ClusterId::new("test").unwrap();
        let bus = self.net.connect(node(n).as_str());
        let lanes = Lanes { control: bus.clone(), raft: bus.clone(), bulk: bus };
        let disk = Arc::new(RealDisk::new(directory.clone()));
        let replicator = Replicator::open(
            cluster.clone(),
            node(n),
            incarnation,
            lanes.clone(),
            disk,
            ReplicatorOptions::default(),
        )
        .await
        .unwrap();
        let chunks = ChunkStore::open(&directory.join("chunks")).unwrap();
        let exchange =
            ChunkExchange::serve(lanes.bulk.clone(), cluster.clone(), node(n), chunks.clone())
                .await
                .unwrap();
        let context = Arc::new(NodeContext {
            cluster,
            node: node(n),
            incarnation,
            previous_end: None,
            lanes,
            replicator,
            chunks,
            exchange,
            python: PythonConfig {
                program: python(),
                package_dir: unpack_package(&directory.join("python")).unwrap(),
                capture_budget_ms: 60_000,
                directory: None,
                packages: None,
            },
            environment: watch::channel(None).1,
            environment_match: EnvironmentMatch::default(),
            files: FileOptions::new(directory.join("work")),
            run_dir,
            nodes: self.nodes.subscribe(),
            stats: Arc::new(NodeStats::default()),
        });
        let args = ReplicaArgs {
            spec: self.spec.clone(),
            replica: ReplicaId(n),
            context: context.clone(),
        };
        let (actor, task) = Actor::spawn(None, Replica, args).await.unwrap();
        self.members.insert(n, Member { actor, context, task });
        self.set_health(n, NodeHealth::Up);
    }

    fn set_health(&self, n: u64, health: NodeHealth) {
        self.nodes.send_modify(|view| {
            view.nodes.insert(
                node(n),
                NodeView {
                    health,
                    incarnation: Incarnation(1),
                    disk: DiskId::generate(),
                    silent_ms: 0,
                    how: (health != NodeHealth::Up).then(|| "killed by signal 9".to_owned()),
                    last_beat: None,
                },
            );
        });
    }

    fn change_spec(&mut self, change: impl FnOnce(&mut KernelSpec)) {
        change(&mut self.spec);
        self.spec.version += 1;
        for member in self.members.values() {
            member.actor.send_message(ReplicaMsg::SpecChanged(self.spec.clone())).unwrap();
        }
    }

    /// As if the node's process had been killed, and its end seen.
    async fn kill_node(&mut self, n: u64) {
        let member = self.members.remove(&n).unwrap();
        self.net.disconnect(node(n).as_str());
        member.context.replicator.crash();
        member.actor.kill();
        member.task.await.unwrap();
        self.set_health(n, NodeHealth::Suspected);
    }

    fn client(&self) -> KernelClient {
        let bus = self.net.connect("client");
        Client::new(bus, ClusterId::new("test").unwrap()).kernel(self.spec.kernel)
    }
}

async fn executor(client: &KernelClient) -> u64 {
    loop {
        if let Ok(status) = client.show().await {
            let found = status.replicas.iter().find(|r| r.role == ReplicaRole::Executor);
            if let Some(found) = found {
                return found.replica.0;
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// What a cell printed or returned as text, and how it ended.
async fn run(client: &KernelClient, code: &str, level: Level) -> (String, CellOutcome) {
    let options = ExecuteOptions { level, timeout: Some(DEADLINE), ..ExecuteOptions::default() };
    let mut execution = client.execute(code, options);
    let mut text = String::new();
    while let Some(event) = execution.next().await {
        match event.unwrap() {
            ExecuteEvent::Output(message, _) => {
                let content: serde_json::Value = message.parse_content().unwrap();
                if let Some(stream) = content.get("text").and_then(|text| text.as_str()) {
                    text.push_str(stream);
                }
                if let Some(error) = content.get("evalue").and_then(|text| text.as_str())
                    && message.parse_header().unwrap().msg_type == "error"
                {
                    text.push_str(error);
                }
                if let Some(result) = content.pointer("/data/text~1plain").and_then(|t| t.as_str())
                {
                    text.push_str(result);
                }
            }
            ExecuteEvent::Ended(end) => return (text, end.outcome),
            ExecuteEvent::Accepted(_) => {}
            ExecuteEvent::Notice(notice) => eprintln!("notice: {notice}"),
        }
    }
    panic!("the execution ended without an end");
}

async fn value(client: &KernelClient, code: &str) -> String {
    let (text, outcome) = run(client, code, Level::Durable).await;
    assert_eq!(outcome, CellOutcome::Completed, "{code}: {text}");
    text
}

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
    let id = ClusterId::new("test").unwrap();
    let pattern =
        SubjectPattern::Verbs { cluster: id, kind: ActorKind::Control, id: "main".to_owned() };
    let control = cluster.net.connect("control");
    let mut reports = control.subscribe(&pattern).await.unwrap();
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
