//! The cluster of these tests, and what its users do.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use callboard_client::{Client, ExecuteEvent, ExecuteOptions, KernelClient};
use callboard_kernel::{
    Cgroups, Confinement, Cursors, FileOptions, NodeContext, NodeStats, PythonConfig, PythonPool,
    Replica, ReplicaArgs, ReplicaMsg, UpkeepConfig,
    python::{Zygote, unpack_package},
};
use callboard_policy::{
    environment::EnvironmentMatch,
    failure::{NodeView, NodesView},
    hibernation::HibernationConfig,
    prewarm::PoolBounds,
};
use callboard_protocol::{
    ActorKind, ClusterId, DiskId, Incarnation, KernelId, NodeId, OwnerId, ReplicaId,
    SubjectPattern,
    control::{KernelOptions, KernelSpec, NodeHealth, Origin, ReplicaSpec, Standing},
    kernel::{CellOutcome, KernelPhase, Level, ReplicaRole},
};
use callboard_replicated::{
    ChunkExchange, ChunkPins, ChunkStore, ChunkStoreOptions, RealDisk, Replicator,
    ReplicatorOptions,
};
use callboard_transport::{Bus, FaultPlan, Lanes, MemoryNet, Subscription};
use ractor::{Actor, ActorRef};
use tokio::sync::watch;

pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

pub(crate) fn python() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let python = root.join(".venv/bin/python");
    assert!(python.exists(), "no Python environment: run `make setup` first");
    python
}

pub(crate) fn node(n: u64) -> NodeId {
    NodeId::new(format!("node-{n}")).unwrap()
}

pub(crate) fn python_config(directory: &Path) -> PythonConfig {
    PythonConfig {
        program: python(),
        package_dir: unpack_package(&directory.join("python")).unwrap(),
        capture_budget_ms: 60_000,
        state_bytes_max: 1 << 30,
        isolated: false,
    }
}

/// Processes are started the long way, or with CALLBOARD_TEST_ZYGOTE come out of a stock.
pub(crate) fn python_pool(directory: &Path, run_dir: &Path) -> PythonPool {
    let config = python_config(directory);
    if std::env::var_os("CALLBOARD_TEST_ZYGOTE").is_none() {
        return PythonPool::bare(config, run_dir);
    }
    let zygote = Zygote::start(config.clone(), "numpy", run_dir).unwrap();
    let bounds = PoolBounds { processes_min: 1, processes_max: 2, memory_reserve_mib: 0 };
    PythonPool::start(config, run_dir, zygote, bounds)
}

pub(crate) struct Member {
    pub(crate) actor: ActorRef<ReplicaMsg>,
    pub(crate) context: Arc<NodeContext>,
    pub(crate) task: tokio::task::JoinHandle<()>,
}

pub(crate) struct Cluster {
    pub(crate) net: MemoryNet,
    pub(crate) directory: tempfile::TempDir,
    pub(crate) spec: KernelSpec,
    pub(crate) nodes: watch::Sender<NodesView>,
    pub(crate) members: BTreeMap<u64, Member>,
    pub(crate) hibernation: HibernationConfig,
    pub(crate) lives: u64,
    /// By the number of the node.
    chunk_options: ChunkOptions,
    /// Why no new cells are taken on any node.
    pub(crate) disk: watch::Sender<Option<String>>,
    pub(crate) upkeep: UpkeepConfig,
}

/// How each node stores its chunks.
type ChunkOptions = Box<dyn Fn(u64) -> ChunkStoreOptions + Send + Sync>;

impl Cluster {
    pub(crate) async fn start() -> Self {
        Self::kept(UpkeepConfig::default(), KernelOptions::default()).await
    }

    pub(crate) async fn start_with(hibernation: HibernationConfig) -> Self {
        Self::with(UpkeepConfig::default(), KernelOptions::default(), hibernation).await
    }

    pub(crate) async fn kept(upkeep: UpkeepConfig, options: KernelOptions) -> Self {
        Self::with(upkeep, options, HibernationConfig::default()).await
    }

    pub(crate) async fn with(
        upkeep: UpkeepConfig,
        options: KernelOptions,
        hibernation: HibernationConfig,
    ) -> Self {
        let chunk_options = Box::new(|_| ChunkStoreOptions::default());
        Self::made(upkeep, options, hibernation, chunk_options).await
    }

    pub(crate) async fn on_disk(chunk_options: ChunkStoreOptions) -> Self {
        Self::on_disks(move |_| chunk_options.clone()).await
    }

    pub(crate) async fn on_disks(
        chunk_options: impl Fn(u64) -> ChunkStoreOptions + Send + Sync + 'static,
    ) -> Self {
        let (upkeep, options) = (UpkeepConfig::default(), KernelOptions::default());
        let chunk_options = Box::new(chunk_options);
        Self::made(upkeep, options, HibernationConfig::default(), chunk_options).await
    }

    async fn made(
        upkeep: UpkeepConfig,
        options: KernelOptions,
        hibernation: HibernationConfig,
        chunk_options: ChunkOptions,
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
            labels: BTreeMap::new(),
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

    pub(crate) async fn start_member(&mut self, n: u64) {
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
        let options = (self.chunk_options)(n);
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
            programs: watch::channel(Default::default()).1,
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
            cursors: Cursors::default(),
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
    pub(crate) fn see(&self, n: u64, change: impl FnOnce(Option<&NodeView>) -> NodeView) {
        self.nodes.send_if_modified(|view| {
            let before = view.clone();
            view.nodes.insert(node(n), change(before.nodes.get(&node(n))));
            !view.says_the_same_as(&before)
        });
    }

    pub(crate) fn set_health(&self, n: u64, health: NodeHealth) {
        let how = (health != NodeHealth::Up).then(|| "killed by signal 9".to_owned());
        self.see(n, |seen| NodeView { health, how, ..seen.unwrap().clone() });
    }

    /// The node is heard in a later life, in which none of its replicas has come back.
    pub(crate) fn hear_again(&self, n: u64, beats: u64) {
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

    pub(crate) fn change_spec(&mut self, change: impl FnOnce(&mut KernelSpec)) {
        change(&mut self.spec);
        self.spec.version += 1;
        for member in self.members.values() {
            member.actor.send_message(ReplicaMsg::SpecChanged(self.spec.clone())).unwrap();
        }
    }

    /// As if the node's process had been killed, and its end seen.
    pub(crate) async fn kill_node(&mut self, n: u64) {
        self.lose_node(n).await;
        self.set_health(n, NodeHealth::Suspected);
    }

    /// As if the node's process had been killed, and nobody had noticed yet.
    pub(crate) async fn lose_node(&mut self, n: u64) {
        let member = self.members.remove(&n).unwrap();
        self.net.disconnect(node(n).as_str());
        member.context.replicator.crash();
        member.actor.kill();
        member.task.await.unwrap();
    }

    /// Python processes that run now, by their pid files.
    pub(crate) fn pythons(&self) -> usize {
        let run_dirs = (1..=3).map(|n| self.directory.path().join(format!("node-{n}/run")));
        let is_pid = |entry: std::io::Result<std::fs::DirEntry>| {
            entry.unwrap().path().extension().is_some_and(|it| it == "pid")
        };
        let count =
            |dir: PathBuf| std::fs::read_dir(dir).unwrap().map(is_pid).filter(|is| *is).count();
        run_dirs.map(count).sum()
    }

    pub(crate) async fn pythons_become(&self, wanted: usize) {
        let becoming = async {
            while self.pythons() != wanted {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let why = || format!("{} processes, not {wanted}", self.pythons());
        tokio::time::timeout(DEADLINE, becoming).await.unwrap_or_else(|_| panic!("{}", why()));
    }

    /// Another kernel on the same nodes, which begins with a state of the first.
    pub(crate) async fn branch(&mut self, at: &str) -> KernelClient {
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

    /// The control plane's place on the bus, and what members report to it.
    pub(crate) async fn control(&self) -> (Arc<dyn Bus>, Subscription) {
        let cluster = ClusterId::new("test").unwrap();
        let id = "main".to_owned();
        let pattern = SubjectPattern::Verbs { cluster, kind: ActorKind::Control, id };
        let control = self.net.connect("control");
        let reports = control.subscribe(&pattern).await.unwrap();
        (control, reports)
    }

    pub(crate) fn client(&self) -> KernelClient {
        let bus = self.net.connect("client");
        Client::new(bus, ClusterId::new("test").unwrap()).kernel(self.spec.kernel)
    }
}

pub(crate) async fn executor(client: &KernelClient) -> u64 {
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

pub(crate) async fn phase_becomes(client: &KernelClient, wanted: KernelPhase) {
    let becoming = async {
        while client.show().await.map(|status| status.phase) != Ok(wanted) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let why = || panic!("the kernel does not become {wanted:?}");
    tokio::time::timeout(DEADLINE, becoming).await.unwrap_or_else(|_| why());
}

/// What a cell printed or returned as text, and how it ended.
pub(crate) async fn run(client: &KernelClient, code: &str, level: Level) -> (String, CellOutcome) {
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

pub(crate) async fn value(client: &KernelClient, code: &str) -> String {
    let (text, outcome) = run(client, code, Level::Durable).await;
    assert_eq!(outcome, CellOutcome::Completed, "{code}: {text}");
    text
}
