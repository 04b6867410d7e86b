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
    Cgroups, Confinement, FileOptions, NodeContext, NodeStats, PythonConfig, PythonPool, Replica,
    ReplicaArgs, ReplicaMsg, UpkeepConfig,
    python::{Zygote, unpack_package},
};
use callboard_policy::{
    environment::EnvironmentMatch,
    failure::{NodeView, NodesView},
    hibernation::HibernationConfig,
    prewarm::PoolBounds,
};
use callboard_protocol::{
    ActorKind, ClusterId, DiskId, Fault, Incarnation, KernelId, NodeId, OwnerId, ReplicaId,
    SubjectPattern,
    control::{
        KernelOptions, KernelSpec, MemberChange, MemberChanged, NodeHealth, Origin, Recovery,
        ReplicaSpec, Standby, Standing,
    },
    history::{KeepState, Rewind, RewindPlan},
    kernel::{CellOutcome, KernelPhase, Level, ReplicaRole},
};
use callboard_replicated::{
    ChunkExchange, ChunkFaults, ChunkPins, ChunkStep, ChunkStore, ChunkStoreOptions, RealDisk,
    Replicator, ReplicatorOptions,
};
use callboard_transport::{FaultPlan, Lanes, MemoryNet, typed};
use ractor::{Actor, ActorRef};
use tokio::sync::watch;

#[path = "replicas/hibernation.rs"]
mod hibernation;

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

fn python_config(directory: &Path) -> PythonConfig {
    PythonConfig {
        program: python(),
        package_dir: unpack_package(&directory.join("python")).unwrap(),
        capture_budget_ms: 60_000,
        state_bytes_max: 1 << 30,
        isolated: false,
    }
}

/// Processes are started the long way, or with CALLBOARD_TEST_ZYGOTE come out of a stock.
fn python_pool(directory: &Path, run_dir: &Path) -> PythonPool {
    let config = python_config(directory);
    if std::env::var_os("CALLBOARD_TEST_ZYGOTE").is_none() {
        return PythonPool::bare(config, run_dir);
    }
    let zygote = Zygote::start(config.clone(), "numpy", run_dir).unwrap();
    let bounds = PoolBounds { processes_min: 1, processes_max: 2, memory_reserve_mib: 0 };
    PythonPool::start(config, run_dir, zygote, bounds)
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
    hibernation: HibernationConfig,
    lives: u64,
    chunk_options: ChunkStoreOptions,
    /// Why no new cells are taken on any node.
    disk: watch::Sender<Option<String>>,
    upkeep: UpkeepConfig,
}

impl Cluster {
    async fn start() -> Self {
        Self::kept(UpkeepConfig::default(), KernelOptions::default()).await
    }

    async fn start_with(hibernation: HibernationConfig) -> Self {
        Self::with(UpkeepConfig::default(), KernelOptions::default(), hibernation).await
    }

    async fn kept(upkeep: UpkeepConfig, options: KernelOptions) -> Self {
        Self::with(upkeep, options, HibernationConfig::default()).await
    }

    async fn with(
        upkeep: UpkeepConfig,
        options: KernelOptions,
        hibernation: HibernationConfig,
    ) -> Self {
        Self::made(upkeep, options, hibernation, ChunkStoreOptions::default()).await
    }

    async fn on_disk(chunk_options: ChunkStoreOptions) -> Self {
        let (upkeep, options) = (UpkeepConfig::default(), KernelOptions::default());
        Self::made(upkeep, options, HibernationConfig::default(), chunk_options).await
    }

    async fn made(
        upkeep: UpkeepConfig,
        options: KernelOptions,
        hibernation: HibernationConfig,
        chunk_options: ChunkStoreOptions,
    ) -> Self {
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
            generation: 0,
            recovery: None,
            origin: None,
            settings: Default::default(),
            needs: None,
            options,
        };
        let mut cluster = Self {
            net: MemoryNet::new(1, FaultPlan::default()),
            directory: tempfile::tempdir().unwrap(),
            spec,
            nodes: watch::Sender::new(NodesView::default()),
            members: BTreeMap::new(),
            hibernation,
            lives: 0,
            chunk_options,
            disk: watch::Sender::new(None),
            upkeep,
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
        let options = self.chunk_options.clone();
        let chunks = ChunkStore::open_with(&directory.join("chunks"), options).unwrap();
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
            pins: ChunkPins::default(),
            disk: self.disk.subscribe(),
            exchange,
            python: python_pool(&directory, &run_dir),
            upkeep: self.upkeep,
            environment: watch::channel(None).1,
            environment_match: EnvironmentMatch::default(),
            files: FileOptions::new(directory.join("work")),
            confinement: Confinement {
                cgroups: Cgroups::prepare(&directory.join("no-cgroups"), "test"),
                most: Default::default(),
                isolation: Err(None),
            },
            run_dir,
            nodes: self.nodes.subscribe(),
            hibernation: self.hibernation,
            stats: Arc::new(NodeStats::default()),
        });
        let args = ReplicaArgs {
            spec: self.spec.clone(),
            replica: ReplicaId(n),
            context: context.clone(),
        };
        let (actor, task) = Actor::spawn(None, Replica, args).await.unwrap();
        self.members.insert(n, Member { actor, context, task });
        self.see(n, |_| NodeView {
            health: NodeHealth::Up,
            incarnation,
            disk: self.spec.replicas[&ReplicaId(n)].disk,
            silent_ms: 0,
            how: None,
            last_beat: None,
        });
    }

    /// What the nodes see of one of them from now on; only news wakes who follows, as in a node.
    fn see(&self, n: u64, change: impl FnOnce(Option<&NodeView>) -> NodeView) {
        self.nodes.send_if_modified(|view| {
            let before = view.clone();
            view.nodes.insert(node(n), change(before.nodes.get(&node(n))));
            !view.says_the_same_as(&before)
        });
    }

    fn set_health(&self, n: u64, health: NodeHealth) {
        let how = (health != NodeHealth::Up).then(|| "killed by signal 9".to_owned());
        self.see(n, |seen| NodeView { health, how, ..seen.unwrap().clone() });
    }

    /// The node is heard in a later life, in which none of its replicas has come back.
    fn hear_again(&self, n: u64, beats: u64) {
        for number in 1..=beats {
            self.see(n, |seen| {
                let (seen, life) = (seen.unwrap(), Incarnation(self.lives + 1));
                let beat = serde_json::json!({
                    "node": node(n), "disk": seen.disk, "incarnation": life, "number": number,
                    "pid": 1, "host": "h", "replicas": 0, "running_cells": 0, "epoch": 1,
                    "suspects": [], "python_problem": null,
                });
                let last_beat = Some(serde_json::from_value(beat).unwrap());
                NodeView { health: NodeHealth::Up, incarnation: life, last_beat, ..seen.clone() }
            });
        }
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
        self.lose_node(n).await;
        self.set_health(n, NodeHealth::Suspected);
    }

    /// As if the node's process had been killed, and nobody had noticed yet.
    async fn lose_node(&mut self, n: u64) {
        let member = self.members.remove(&n).unwrap();
        self.net.disconnect(node(n).as_str());
        member.context.replicator.crash();
        member.actor.kill();
        member.task.await.unwrap();
    }

    /// Python processes that run now, by their pid files.
    fn pythons(&self) -> usize {
        let run_dirs = (1..=3).map(|n| self.directory.path().join(format!("node-{n}/run")));
        let is_pid = |entry: std::io::Result<std::fs::DirEntry>| {
            entry.unwrap().path().extension().is_some_and(|it| it == "pid")
        };
        let count =
            |dir: PathBuf| std::fs::read_dir(dir).unwrap().map(is_pid).filter(|is| *is).count();
        run_dirs.map(count).sum()
    }

    async fn pythons_become(&self, wanted: usize) {
        let becoming = async {
            while self.pythons() != wanted {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let why = || format!("{} processes, not {wanted}", self.pythons());
        tokio::time::timeout(DEADLINE, becoming).await.unwrap_or_else(|_| panic!("{}", why()));
    }

    /// Another kernel on the same nodes, which begins with a state of the first.
    async fn branch(&mut self, at: &str) -> KernelClient {
        let origin = Origin::Kernel { kernel: self.spec.kernel, at: at.to_owned() };
        let mut spec = KernelSpec { kernel: KernelId::generate(), version: 1, ..self.spec.clone() };
        spec.origin = Some(origin);
        for (n, member) in &self.members {
            let context = member.context.clone();
            let args = ReplicaArgs { spec: spec.clone(), replica: ReplicaId(*n), context };
            Actor::spawn(None, Replica, args).await.unwrap();
        }
        let bus = self.net.connect("client");
        Client::new(bus, ClusterId::new("test").unwrap()).kernel(spec.kernel)
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

async fn phase_becomes(client: &KernelClient, wanted: KernelPhase) {
    let becoming = async {
        while client.show().await.map(|status| status.phase) != Ok(wanted) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let why = || panic!("the kernel does not become {wanted:?}");
    tokio::time::timeout(DEADLINE, becoming).await.unwrap_or_else(|_| why());
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

/// The names that are not kept, with the reasons.
async fn refused(client: &KernelClient) -> Vec<(String, String)> {
    let refused = client.show().await.unwrap().refused;
    refused.into_iter().map(|it| (it.name, it.reason)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_variable_over_the_quota_is_refused_by_name_until_it_goes_and_the_rest_is_kept() {
    let options = ChunkStoreOptions { owner_quota_bytes: 2_000_000, ..Default::default() };
    let mut cluster = Cluster::on_disk(options).await;
    let client = cluster.client();
    value(&client, "import os; fits = os.urandom(500_000); big = fits; print(len(fits))").await;
    assert_eq!(refused(&client).await, []);
    value(&client, "big = os.urandom(4_000_000); small = 1").await;
    let found = refused(&client).await;
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].0, "big");
    for part in ["quota of 2000000 bytes", "delete variables", "assign it again"] {
        assert!(found[0].1.contains(part), "{part} is missing in: {}", found[0].1);
    }
    assert_eq!(value(&client, "other = 2; len(big)").await, "4000000");
    assert_eq!(refused(&client).await.len(), 1, "it is not kept yet");
    let first = executor(&client).await;
    cluster.kill_node(first).await;
    let names = "small, other, len(fits), 'big' in globals()";
    assert_eq!(value(&client, names).await, "(1, 2, 500000, False)");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_full_disks_a_cell_ends_without_its_large_variables_and_they_are_kept_once_there_is_room()
 {
    let is_full = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let looked_at = is_full.clone();
    let faults = ChunkFaults::new(move |step| {
        let full = step == ChunkStep::Write && looked_at.load(std::sync::atomic::Ordering::SeqCst);
        if full { Err(std::io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    });
    let options = ChunkStoreOptions { faults, ..Default::default() };
    let mut cluster = Cluster::on_disk(options).await;
    let client = cluster.client();
    value(&client, "import os; kept = os.urandom(300_000)").await;
    is_full.store(true, std::sync::atomic::Ordering::SeqCst);
    value(&client, "big = os.urandom(300_000); small = 1").await;
    let found = refused(&client).await;
    assert!(found.len() == 1 && found[0].0 == "big", "{found:?}");
    assert!(found[0].1.contains("the disk is full"), "{}", found[0].1);
    is_full.store(false, std::sync::atomic::Ordering::SeqCst);
    value(&client, "big = os.urandom(300_000)").await;
    assert_eq!(refused(&client).await, []);
    let first = executor(&client).await;
    cluster.kill_node(first).await;
    assert_eq!(value(&client, "small, len(kept), len(big)").await, "(1, 300000, 300000)");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_disk_is_above_its_mark_turns_new_cells_away_with_a_sentence() {
    let cluster = Cluster::start().await;
    let client = cluster.client();
    value(&client, "x = 1").await;
    cluster.disk.send_replace(Some("the disk of node-1 is 96 % full: free space".to_owned()));
    let options = ExecuteOptions { timeout: Some(DEADLINE), ..ExecuteOptions::default() };
    let mut execution = client.execute("x = 2", options);
    let error = loop {
        match execution.next().await {
            Some(Ok(ExecuteEvent::Notice(notice))) => eprintln!("notice: {notice}"),
            Some(Ok(event)) => panic!("the cell was taken: {event:?}"),
            Some(Err(error)) => break error.to_string(),
            None => panic!("the execution ended without an end"),
        }
    };
    assert!(error.contains("free space"), "{error}");
    cluster.disk.send_replace(None);
    assert_eq!(value(&client, "x").await, "1");
}
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_executor_has_a_python_process_unless_standbys_are_hot() {
    let cluster = Cluster::start().await;
    assert_eq!(value(&cluster.client(), "1 + 1").await, "2");
    cluster.pythons_become(1).await;
    let hot = KernelOptions { standby: Some(Standby::Hot), parked: false };
    let cluster = Cluster::kept(UpkeepConfig::default(), hot).await;
    cluster.pythons_become(3).await;
    assert_eq!(value(&cluster.client(), "1 + 1").await, "2");
    cluster.pythons_become(3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_kernel_is_parked_and_its_next_cell_finds_its_variables() {
    let upkeep = UpkeepConfig { park_after_ms: Some(300), ..UpkeepConfig::default() };
    let cluster = Cluster::kept(upkeep, KernelOptions::default()).await;
    let client = cluster.client();
    value(&client, "import numpy as np; x = np.arange(100_000); y = [1]").await;
    for round in 2..4 {
        phase_becomes(&client, KernelPhase::Parked).await;
        cluster.pythons_become(0).await;
        assert_eq!(
            value(&client, "y.append(0); int(x[-1]), len(y)").await,
            format!("(99999, {round})")
        );
    }
    assert_eq!(client.show().await.unwrap().last_loss, None, "parking is no loss");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kernel_that_holds_a_socket_is_not_parked() {
    let upkeep = UpkeepConfig { park_after_ms: Some(200), ..UpkeepConfig::default() };
    let cluster = Cluster::kept(upkeep, KernelOptions::default()).await;
    let client = cluster.client();
    value(&client, "import socket; s = socket.socket()").await;
    tokio::time::sleep(Duration::from_millis(800)).await;
    assert_eq!(client.show().await.unwrap().phase, KernelPhase::Idle);
    value(&client, "s.close(); del s").await;
    phase_becomes(&client, KernelPhase::Parked).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kernel_that_starts_parked_has_no_python_before_its_first_cell() {
    let options = KernelOptions { standby: Some(Standby::Hot), parked: true };
    let cluster = Cluster::kept(UpkeepConfig::default(), options).await;
    let client = cluster.client();
    phase_becomes(&client, KernelPhase::Parked).await;
    assert_eq!(cluster.pythons(), 0);
    assert_eq!(value(&client, "1 + 1").await, "2");
}

async fn rewind(client: &KernelClient, to: &str) -> Result<RewindPlan, Fault> {
    let (id, to) = (uuid::Uuid::now_v7().to_string(), to.to_owned());
    client.rewind(&Rewind { id, to, position: None, plan_only: false }).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rewind_gives_the_session_back_as_it_was_and_outlives_the_executor() {
    let mut cluster = Cluster::start().await;
    let client = cluster.client();
    value(&client, "import numpy as np; big = np.arange(100_000); words = ['a']").await;
    value(&client, "big[0] = 7; words.append('b'); alias = words").await;
    let kept = KeepState { name: "both".to_owned(), drop: false };
    client.keep_state(&kept).await.unwrap();
    value(&client, "del big, words").await;
    let plan = rewind(&client, "1").await.unwrap();
    assert_eq!((plan.cell.0, plan.execution_count), (1, 2));
    assert_eq!(plan.restored, ["big", "words"]);
    assert_eq!(plan.removed, ["alias"]);
    assert_eq!(value(&client, "int(big[0]), words, 'alias' in dir()").await, "(0, ['a'], False)");
    assert_eq!(client.show().await.unwrap().last_loss, None, "nothing was lost");
    let at_work = executor(&client).await;
    cluster.kill_node(at_work).await;
    let plan = rewind(&client, "both").await.unwrap();
    assert_eq!(plan.redone.iter().map(|it| it.cell.0).collect::<Vec<_>>(), [2]);
    assert_eq!(value(&client, "int(big[0]), words, alias is words").await, "(7, ['a', 'b'], True)");
    let history = client.history().await.unwrap();
    assert_eq!(history.steps.len(), 7);
    assert_eq!(
        history.steps[0].cell.first_line,
        "import numpy as np; big = np.arange(100_000); words = ['a']"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rewind_that_cannot_be_done_gets_a_sentence_and_changes_nothing() {
    let cluster = Cluster::start().await;
    let client = cluster.client();
    value(&client, "x = 1").await;
    let fault = rewind(&client, "9").await.unwrap_err();
    assert!(fault.message.contains("no cell 9 yet"), "{fault}");
    let fault = rewind(&client, "nosuch").await.unwrap_err();
    assert!(fault.message.contains("no checkpoint 'nosuch'"), "{fault}");
    let position = client.history().await.unwrap().position;
    let stale =
        Rewind { id: "s".into(), to: "0".into(), position: Some(position + 1), plan_only: false };
    let fault = client.rewind(&stale).await.unwrap_err();
    assert!(fault.message.contains("has moved on"), "{fault}");
    let timeout = Some(DEADLINE);
    let options = ExecuteOptions { timeout, ..ExecuteOptions::default() };
    let mut cell = client.execute("import time; time.sleep(600)", options);
    while !matches!(cell.next().await, Some(Ok(ExecuteEvent::Accepted(_)))) {}
    let fault = rewind(&client, "0").await.unwrap_err();
    assert!(fault.message.contains("cell 2 is running or waiting"), "{fault}");
    loop {
        client.interrupt().await.unwrap();
        let next = tokio::time::timeout(Duration::from_secs(1), cell.next()).await;
        if matches!(next, Ok(Some(Ok(ExecuteEvent::Ended(_))))) {
            break;
        }
    }
    assert_eq!(value(&client, "x").await, "1");
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
    let id = ClusterId::new("test").unwrap();
    let pattern =
        SubjectPattern::Verbs { cluster: id, kind: ActorKind::Control, id: "main".to_owned() };
    let mut reports = cluster.net.connect("control").subscribe(&pattern).await.unwrap();
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_branch_begins_with_an_earlier_state_and_the_two_go_apart() {
    let mut cluster = Cluster::start().await;
    let client = cluster.client();
    value(&client, "import numpy as np; big = np.arange(100_000); words = ['a']").await;
    value(&client, "big[0] = 7; words.append('b')").await;
    let first = cluster.branch("1").await;
    let gone = cluster.branch("9").await;
    assert_eq!(value(&first, "int(big[0]), words").await, "(0, ['a'])");
    value(&first, "big[0] = 5").await;
    assert_eq!(value(&client, "int(big[0]), words").await, "(7, ['a', 'b'])");
    assert_eq!(value(&first, "int(big[0])").await, "5");
    let waits = loop {
        let status = gone.show().await;
        match status.ok().and_then(|status| status.waits_for) {
            Some(waits) if waits.contains("no cell 9 yet") => break waits,
            _ => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    };
    assert!(waits.starts_with("it waits for the state 9 of kernel"), "{waits}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cell_rewinds_its_own_session_and_hears_why_it_cannot() {
    let cluster = Cluster::start().await;
    let client = cluster.client();
    value(&client, "x = 1").await;
    value(&client, "x = 2; y = 3").await;
    let text = value(&client, "%callboard rewind 1").await;
    assert!(text.contains("the state after cell 1; undone: 2, and this cell"), "{text}");
    assert_eq!(value(&client, "x, 'y' in dir()").await, "(1, False)");
    let text = value(&client, "%callboard rewind 99").await;
    assert!(text.contains("not rewound: there is no cell 99 yet"), "{text}");
    assert_eq!(value(&client, "x").await, "1");
    let text = value(&client, "%callboard rewind").await;
    assert!(text.contains("Name one state"), "{text}");
}
