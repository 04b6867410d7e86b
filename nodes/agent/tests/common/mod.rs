//! Several nodes in one process, on an in-memory bus, simulated disks and a paused clock, with
//! replicas that do no more than exist.
#![allow(dead_code, reason = "each test file uses a part of it")]

mod fake;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use callboard_agent::{
    DataDir, MachineId, MemberKey, NodeParts, NodeServices, ReplicaFactory, Reserve, RunningNode,
    Storage, StorageOptions,
};
use callboard_policy::{failure::FailureConfig, repair::RepairLimits};
use callboard_protocol::{
    ActorKind, ClusterId, Envelope, Fault, KernelId, NodeId, Subject,
    control::{
        KernelSpec, NodeHealth, NodeList, RecoverKernel, RecoveryPlan, Standing, StartKernel,
    },
};
use callboard_replicated::{ChunkStore, ReplicatorOptions, SimDisk};
use callboard_runtime::universe::Universe;
use callboard_transport::{Bus, FaultPlan, Lanes, MemoryNet, typed};
use serde::{Serialize, de::DeserializeOwned};
use tempfile::TempDir;
use tokio::{sync::watch, time::Instant};

use self::fake::FakeReplicas;

/// Silence after which these tests give a node up.
pub(crate) const GONE_AFTER_MS: u64 = 5_000;
/// Virtual time within which the cluster must get where a test waits for it to be.
const WITHIN: Duration = Duration::from_secs(60);

/// Members as they were started: on which node, which one.
pub(crate) type Starts = Arc<Mutex<Vec<(NodeId, MemberKey)>>>;

struct Machine {
    directory: TempDir,
    disk: SimDisk,
    running: Option<RunningNode>,
}

pub(crate) struct TestCluster {
    pub(crate) net: MemoryNet,
    pub(crate) operator: Arc<dyn Bus>,
    pub(crate) starts: Starts,
    machines: BTreeMap<u32, Machine>,
    founders: u32,
    seed: u64,
}

pub(crate) fn node(n: u32) -> NodeId {
    NodeId::new(format!("node-{n}")).unwrap()
}

/// A disk without a reserve, which would take up room of the machine that runs the tests, and without
/// a mark, since how full that machine is must not matter.
fn storage(root: &std::path::Path) -> Storage {
    let (disk_reserve_bytes, disk_high_water_percent) = (0, 100);
    let options =
        StorageOptions { disk_reserve_bytes, disk_high_water_percent, ..StorageOptions::default() };
    let chunks = ChunkStore::open(&root.join("chunks")).unwrap();
    Storage::new(chunks, root.to_owned(), Arc::new(Reserve::open(root, 0)), options)
}

pub(crate) fn cluster() -> ClusterId {
    ClusterId::new("test").unwrap()
}

impl TestCluster {
    /// `founders` nodes that are up and know each other.
    pub(crate) async fn founded(universe: &Universe, founders: u32) -> Self {
        let plan = FaultPlan { delay_min_ms: 0, delay_max_ms: 3, ..FaultPlan::default() };
        let net = MemoryNet::new(universe.seed(), plan);
        let operator = net.connect("operator");
        let starts = Starts::default();
        let machines = BTreeMap::new();
        let mut this = Self { net, operator, starts, machines, founders, seed: universe.seed() };
        this.start(&(1..=founders).collect::<Vec<_>>()).await;
        this.until_up(founders as usize).await;
        this
    }

    /// Starts nodes at once: founders wait for each other.
    pub(crate) async fn start(&mut self, numbers: &[u32]) {
        let late = self.start_in_order(numbers, Duration::ZERO, WITHIN).await;
        assert!(late.is_empty(), "nodes {late:?} wait for ever");
    }

    /// Starts nodes one `gap` after the other; returns those that wait for others until `within`.
    pub(crate) async fn start_in_order(
        &mut self,
        numbers: &[u32],
        gap: Duration,
        within: Duration,
    ) -> Vec<u32> {
        let starting = (0_u32..).zip(numbers).map(|(place, n)| {
            let machine = self.machines.entry(*n).or_insert_with(|| Machine {
                directory: tempfile::tempdir().unwrap(),
                disk: SimDisk::new(Duration::from_millis(1)),
                running: None,
            });
            let id = node(*n);
            let here = MachineId("test".to_owned());
            let dir = Arc::new(DataDir::open(machine.directory.path(), &id, &here, false).unwrap());
            let connect = || self.net.connect(id.as_str());
            let lanes = Lanes { control: connect(), raft: connect(), bulk: connect() };
            let (own, bus, starts) = (id.clone(), lanes.control.clone(), self.starts.clone());
            let make = move |services: &NodeServices| {
                let replicator = services.replicator.clone();
                let fakes = FakeReplicas { cluster: cluster(), node: own, bus, starts, replicator };
                Ok(Arc::new(fakes) as Arc<dyn ReplicaFactory>)
            };
            let incarnation = dir.begin_life().unwrap();
            let parts = NodeParts {
                cluster: cluster(),
                node: id,
                bootstrap: (1..=self.founders).map(node).collect(),
                incarnation,
                host: "test".to_owned(),
                lanes,
                disk: Arc::new(machine.disk.clone()),
                replicator: ReplicatorOptions::default(),
                failure: FailureConfig { gone_after_ms: GONE_AFTER_MS, ..Default::default() },
                repair: RepairLimits::default(),
                python: watch::channel(None).1,
                environment: watch::channel(None).1,
                environment_match: Default::default(),
                limits_max: Default::default(),
                crash: Arc::new(|| {}),
                seed: self.seed + u64::from(*n),
                storage: storage(dir.root()),
                dir,
            };
            async move {
                tokio::time::sleep(gap * place).await;
                let started = RunningNode::start(parts, make);
                let started = tokio::time::timeout(within, started).await.ok();
                (*n, started.map(|it| it.expect("a node did not start")))
            }
        });
        let mut late = Vec::new();
        for (n, running) in futures::future::join_all(starting).await {
            if running.is_none() {
                late.push(n);
            }
            self.machines.get_mut(&n).unwrap().running = running;
        }
        late
    }

    /// A power cut at one node.
    pub(crate) async fn crash(&mut self, n: u32) {
        let machine = self.machines.get_mut(&n).unwrap();
        self.net.disconnect(node(n).as_str());
        machine.running.take().unwrap().crash().await;
        machine.disk = machine.disk.crash(0);
    }

    /// A node's disk is replaced by an empty one, while it is down.
    pub(crate) fn lose_disk(&mut self, n: u32) {
        assert!(self.machines.remove(&n).unwrap().running.is_none(), "it must be down");
    }

    /// The simulated disk of a node.
    pub(crate) fn disk(&self, n: u32) -> &SimDisk {
        &self.machines[&n].disk
    }

    /// Flips a bit in the payload of a kernel's first record on a node's disk.
    pub(crate) fn damage_log(&self, n: u32, kernel: KernelId) {
        let name = kernel.to_string();
        let found = self.disk(n).files().into_iter().find_map(|(path, bytes)| {
            let at = bytes.windows(name.len()).position(|it| it == name.as_bytes())?;
            path.starts_with("wal/").then_some((path, at))
        });
        let (path, at) = found.expect("the kernel has no record");
        self.disk(n).flip_bit(&path, at + name.len() + 1, 3);
    }

    /// The data directory of a node.
    pub(crate) fn directory(&self, n: u32) -> &std::path::Path {
        self.machines[&n].directory.path()
    }

    pub(crate) fn running(&self, n: u32) -> &RunningNode {
        self.machines[&n].running.as_ref().unwrap()
    }

    /// Removes every file of a node's log and nothing else, while it is down.
    pub(crate) fn lose_log(&self, n: u32) {
        for path in self.disk(n).files().into_keys() {
            callboard_replicated::Disk::remove(self.disk(n), &path).unwrap();
        }
    }

    /// Flips a bit in the middle of a node's log, in whatever stands there.
    pub(crate) fn damage_anything(&self, n: u32) {
        let files = self.disk(n).files();
        let (path, bytes) = files.iter().rfind(|(path, _)| path.starts_with("wal/")).unwrap();
        self.disk(n).flip_bit(path, bytes.len() / 2, 3);
    }

    /// Ends every node in order.
    pub(crate) async fn stop(mut self) {
        for machine in self.machines.values_mut() {
            if let Some(running) = machine.running.take() {
                running.stop().await;
            }
        }
    }

    /// Asks the control plane once.
    pub(crate) async fn try_ask<Req: Serialize + Sync, Rep: DeserializeOwned>(
        &self,
        verb: &str,
        request: &Req,
    ) -> Result<Rep, Fault> {
        let subject = Subject::actor(&cluster(), ActorKind::Control, "main", verb);
        let envelope = Envelope::default();
        typed::ask(&*self.operator, &subject, &envelope, request, Duration::from_secs(2)).await
    }

    /// Asks for a recovery once; the control plane takes seconds to see that a group is dead.
    pub(crate) async fn recover(&self, request: &RecoverKernel) -> Result<RecoveryPlan, Fault> {
        let subject = Subject::actor(&cluster(), ActorKind::Control, "main", "recover_kernel");
        let envelope = Envelope::default();
        typed::ask(&*self.operator, &subject, &envelope, request, Duration::from_secs(15)).await
    }

    /// Asks until `accept` makes something of the answer.
    pub(crate) async fn until<Rep: DeserializeOwned, T>(
        &self,
        what: &str,
        verb: &str,
        request: &(impl Serialize + Sync),
        accept: impl Fn(Rep) -> Option<T>,
    ) -> T {
        let began = Instant::now();
        let mut last = None;
        while began.elapsed() < WITHIN {
            match self.try_ask::<_, serde_json::Value>(verb, request).await {
                Ok(answer) => {
                    let value = serde_json::from_value(answer.clone()).unwrap();
                    if let Some(done) = accept(value) {
                        return done;
                    }
                    last = Some(answer.to_string());
                }
                Err(fault) => last = Some(fault.to_string()),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("not within {WITHIN:?}: {what}; last heard: {last:?}");
    }

    pub(crate) async fn until_up(&self, count: usize) -> NodeList {
        let all_up = |list: NodeList| {
            let up = list.nodes.iter().filter(|it| it.health == NodeHealth::Up && it.pid != 0);
            (up.count() == count).then_some(list)
        };
        self.until(&format!("{count} nodes up"), "list_nodes", &(), all_up).await
    }

    /// Starts a kernel of three and waits until its members run.
    pub(crate) async fn start_kernel(&self, kernel: KernelId) -> KernelSpec {
        let request = StartKernel {
            kernel,
            name: None,
            replicas: 3,
            options: Default::default(),
            origin: None,
            settings: Default::default(),
        };
        let spec: KernelSpec = self.until("a kernel", "start_kernel", &request, Some).await;
        self.until_running(&spec).await;
        spec
    }

    /// Whether every member that should run does.
    pub(crate) fn all_run(&self, spec: &KernelSpec) -> bool {
        spec.replicas.iter().all(|(replica, member)| {
            let machine = self.machines.iter().find(|(n, _)| node(**n) == member.node).unwrap().1;
            let running = machine.running.as_ref();
            running.is_some_and(|it| it.roster().keys().contains(&(spec.kernel, *replica)))
        })
    }

    /// Waits until the kernel has three settled members that all run: what is read of a cluster
    /// that just came up may be from before it noticed a loss.
    pub(crate) async fn until_whole(&self, kernel: KernelId) -> KernelSpec {
        self.until_spec("a whole kernel", kernel, |it| is_whole(it) && self.all_run(it)).await
    }

    /// Waits until every member that should run does.
    pub(crate) async fn until_running(&self, spec: &KernelSpec) {
        let began = Instant::now();
        loop {
            if self.all_run(spec) {
                return;
            }
            assert!(began.elapsed() < WITHIN, "members of {spec:?} do not run");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub(crate) async fn spec(&self, kernel: KernelId) -> KernelSpec {
        self.until_spec("the entry", kernel, |_| true).await
    }

    pub(crate) async fn until_spec(
        &self,
        what: &str,
        kernel: KernelId,
        accept: impl Fn(&KernelSpec) -> bool,
    ) -> KernelSpec {
        let find = callboard_protocol::control::FindKernel { text: kernel.to_string() };
        self.until(what, "find_kernel", &find, |spec: KernelSpec| accept(&spec).then_some(spec))
            .await
    }
}

/// Whether a kernel has three members and none joins or leaves.
pub(crate) fn is_whole(spec: &KernelSpec) -> bool {
    let is_settled = |standing| !matches!(standing, Standing::Joiner | Standing::Leaver);
    spec.replicas.len() == 3 && spec.replicas.values().all(|it| is_settled(it.standing))
}
