//! A small cluster on simulated disks and an in-memory bus, on virtual time.
#![allow(
    dead_code,
    clippy::missing_panics_doc,
    missing_docs,
    unreachable_pub,
    reason = "test support"
)]

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use callboard_protocol::{ClusterId, GroupId, Incarnation, NodeId, ReplicaId};
use callboard_replicated::{
    Applied, Group, GroupOptions, Machine, Replicator, ReplicatorOptions, SimDisk, WalOptions,
};
use callboard_transport::{FaultPlan, Lanes, MemoryNet};
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Put(pub u64, pub Vec<u8>);

/// Remembers every command in order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Journal {
    pub numbers: Vec<u64>,
    pub ballast: Vec<u8>,
}

impl Machine for Journal {
    type Command = Put;
    type Output = usize;

    fn apply(&mut self, _index: u64, command: Put) -> usize {
        self.numbers.push(command.0);
        self.ballast.extend(command.1);
        self.numbers.len()
    }

    fn snapshot(&self) -> Vec<u8> {
        rmp_serde::to_vec(self).unwrap()
    }

    fn restore(bytes: &[u8]) -> Result<Self, String> {
        rmp_serde::from_slice(bytes).map_err(|error| error.to_string())
    }

    fn is_awaited(&self, member: ReplicaId) -> bool {
        member == AWAITED
    }
}

/// The member that is told of each commit at once.
pub const AWAITED: ReplicaId = ReplicaId(2);

pub struct Node {
    pub name: String,
    pub disk: SimDisk,
    pub incarnation: u64,
    pub live: Option<(Replicator, Group<Journal>)>,
}

pub struct Cluster {
    pub net: MemoryNet,
    pub nodes: BTreeMap<u64, Node>,
    pub options: ReplicatorOptions,
    pub snapshot_every_entries: u64,
    pub founders: BTreeSet<u64>,
}

pub fn group_id() -> GroupId {
    GroupId::new("journal").unwrap()
}

pub fn node_id(replica: u64) -> NodeId {
    NodeId::new(format!("node-{replica}")).unwrap()
}

/// Seeds of a test: `CALLBOARD_SEEDS` many, or `default` many, or only `CALLBOARD_SEED`.
pub fn seeds(default: u64) -> std::ops::Range<u64> {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    match number("CALLBOARD_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("CALLBOARD_SEEDS").unwrap_or(default),
    }
}

/// Runs one simulated history on a paused clock; a failure names the seed.
pub fn simulate(seed: u64, history: impl Future<Output = ()>) {
    struct Blame(u64);
    impl Drop for Blame {
        fn drop(&mut self) {
            if std::thread::panicking() {
                eprintln!("failing seed: run again with CALLBOARD_SEED={}", self.0);
            }
        }
    }
    let _blame = Blame(seed);
    // RUST_LOG shows what happened; quiet by default.
    let _second = tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_test_writer()
        .without_time()
        .try_init();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(history);
}

impl Cluster {
    pub fn new(seed: u64, replicas: u64, parallel: bool) -> Self {
        let mut options =
            ReplicatorOptions { parallel_leader_fsync: parallel, ..Default::default() };
        options.wal = WalOptions { segment_bytes: 16 << 10, garbage_bytes_min: 32 << 10 };
        let mut cluster = Self {
            net: MemoryNet::new(seed, FaultPlan::default()),
            nodes: BTreeMap::new(),
            options,
            snapshot_every_entries: 2000,
            founders: (1..=replicas).collect(),
        };
        for replica in 1..=replicas {
            // Every fourth cluster has slow disks of very different speed.
            let slowness = if seed % 4 == 3 { 15 } else { 1 };
            cluster.add_node(replica, slowness * (1 + (seed * 7 + replica * 3) % 6));
        }
        cluster
    }

    pub fn add_node(&mut self, replica: u64, sync_ms: u64) {
        let node = Node {
            name: format!("node-{replica}"),
            disk: SimDisk::new(Duration::from_millis(sync_ms)),
            incarnation: 0,
            live: None,
        };
        self.nodes.insert(replica, node);
    }

    pub async fn start(&mut self, replica: u64) {
        let (replicator, group, mut events) = self.open(replica).await.unwrap();
        tokio::spawn(async move { while events.recv().await.is_some() {} });
        self.nodes.get_mut(&replica).unwrap().live = Some((replicator, group));
    }

    pub async fn open(
        &mut self,
        replica: u64,
    ) -> Result<
        (Replicator, Group<Journal>, tokio::sync::mpsc::UnboundedReceiver<Applied<Journal>>),
        callboard_replicated::OpenError,
    > {
        let founders: BTreeMap<ReplicaId, NodeId> =
            self.founders.iter().map(|id| (ReplicaId(*id), node_id(*id))).collect();
        let replicator = self.open_log(replica).await?;
        let mut options = GroupOptions::new(Journal::default());
        options.snapshot_every_entries = self.snapshot_every_entries;
        if founders.contains_key(&ReplicaId(replica)) {
            options.found = Some(founders);
        }
        let (group, events) =
            replicator.open_group(group_id(), ReplicaId(replica), options).await?;
        Ok((replicator, group, events))
    }

    /// A new life of the node, without its group.
    pub async fn replicator(&mut self, replica: u64) -> Replicator {
        self.open_log(replica).await.unwrap()
    }

    async fn open_log(
        &mut self,
        replica: u64,
    ) -> Result<Replicator, callboard_replicated::OpenError> {
        let node = self.nodes.get_mut(&replica).unwrap();
        node.incarnation += 1;
        let bus = self.net.connect(&node.name);
        let lanes =
            Lanes { control: Arc::clone(&bus), raft: Arc::clone(&bus), bulk: Arc::clone(&bus) };
        Replicator::open(
            ClusterId::new("test").unwrap(),
            node_id(replica),
            Incarnation(node.incarnation),
            lanes,
            Arc::new(node.disk.clone()),
            self.options.clone(),
        )
        .await
    }

    pub async fn start_all(&mut self) {
        for replica in self.nodes.keys().copied().collect::<Vec<_>>() {
            self.start(replica).await;
        }
    }

    /// Loses every byte that was not synced but for `torn` ones.
    pub async fn crash(&mut self, replica: u64, torn: usize) {
        let node = self.nodes.get_mut(&replica).unwrap();
        node.disk = node.disk.crash(torn);
        if let Some((replicator, group)) = node.live.take() {
            replicator.crash();
            self.net.disconnect(&node.name);
            group.shutdown().await;
        }
    }

    /// Ends the process alone: its disk keeps every byte that was written.
    pub async fn kill(&mut self, replica: u64) {
        let node = self.nodes.get_mut(&replica).unwrap();
        node.disk = node.disk.kill();
        if let Some((replicator, group)) = node.live.take() {
            replicator.crash();
            self.net.disconnect(&node.name);
            group.shutdown().await;
        }
    }

    pub fn group(&self, replica: u64) -> &Group<Journal> {
        &self.nodes[&replica].live.as_ref().unwrap().1
    }

    pub fn live(&self) -> Vec<u64> {
        self.nodes.iter().filter(|(_, node)| node.live.is_some()).map(|(id, _)| *id).collect()
    }

    pub fn numbers(&self, replica: u64) -> Vec<u64> {
        self.group(replica).read(|journal| journal.numbers.clone())
    }

    /// Waits for a leader that a majority obeys, and names it.
    pub async fn leader(&self) -> u64 {
        for _ in 0..2000 {
            for replica in self.live() {
                let group = self.group(replica);
                if group.is_leader() && group.read_barrier(Duration::from_millis(500)).await.is_ok()
                {
                    return replica;
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("no leader within a virtual minute");
    }

    /// Waits until every live replica has applied what the leader has. A command whose proposer
    /// gave up may still arrive meanwhile.
    pub async fn settle(&self) {
        for _ in 0..2000 {
            let expected = self.numbers(self.leader().await);
            if self.live().into_iter().all(|replica| self.numbers(replica) == expected) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        for replica in self.live() {
            let metrics = self.group(replica).metrics().borrow().clone();
            eprintln!("replica {replica}: {metrics:?}, {:?}", self.numbers(replica));
        }
        panic!("the replicas do not agree within 40 virtual seconds");
    }
}
