//! A kernel replica: one member of a kernel's Raft group, with a Python process ready to run its
//! cells.
//!
//! [`Replica`] is the actor. The rules it follows are pure and live in
//! `callboard_policy::terms`; this crate carries them out: bus, log, chunks, Python.

mod aborted;
mod cell_traces;
mod chunk_list;
mod cursors;
mod held;
mod machine;
mod publisher;
pub mod python;
mod refusal;
mod replica;
mod requests;
mod running_cell;
mod said;
mod state;

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64},
    },
};

use callboard_policy::{
    environment::EnvironmentMatch, failure::NodesView, hibernation::HibernationConfig,
    terms::Upkeep,
};
use callboard_protocol::{
    ClusterId, Incarnation, NodeId, ReplicaId,
    control::{KernelLimits, KernelSpec, Standby},
    environment::Environment,
};
use callboard_replicated::{ChunkExchange, ChunkPins, ChunkStore, Replicator};
use callboard_transport::Lanes;
use tokio::sync::watch;

pub use chunk_list::IndexError;
pub use cursors::Cursors;
pub use machine::KernelMachine;
pub use python::{
    Cgroups, FileOptions, Isolation, KernelPrograms, PipPolicy, PythonConfig, PythonPool,
};
pub use replica::{Replica, ReplicaMsg};
pub use state::{all_chunks, listed_by};

/// What a replica needs of the node it lives on.
#[derive(Debug)]
pub struct NodeContext {
    /// The cluster.
    pub cluster: ClusterId,
    /// The node.
    pub node: NodeId,
    /// Which of the node's lives this is.
    pub incarnation: Incarnation,
    /// How the life before this one ended, if that was seen: `killed by signal 9`.
    pub previous_end: Option<String>,
    /// The node's connections.
    pub lanes: Lanes,
    /// The node's write-ahead log and Raft groups.
    pub replicator: Replicator,
    /// The node's chunks.
    pub chunks: ChunkStore,
    /// Who on this node names which of them.
    pub pins: ChunkPins,
    /// Whether the node's disk has room for more cells.
    pub disk: watch::Receiver<Option<String>>,
    /// Sends chunks to other nodes and fetches them.
    pub exchange: ChunkExchange,
    /// Where Python processes come from.
    pub python: PythonPool,
    /// How kernels of other languages are started, by kernelspec; empty until that is known.
    pub programs: watch::Receiver<KernelPrograms>,
    /// Where the files of sessions are.
    pub files: FileOptions,
    /// What limits its kernels' processes have.
    pub confinement: Confinement,
    /// How kernels are kept that have nothing to do.
    pub upkeep: UpkeepConfig,
    /// Where sockets and pid files go; private to the node.
    pub run_dir: PathBuf,
    /// What is installed in the node's Python environment, once that is known.
    pub environment: watch::Receiver<Option<Environment>>,
    /// How alike the Python environments of a kernel's nodes have to be.
    pub environment_match: EnvironmentMatch,
    /// How the nodes are.
    pub nodes: watch::Receiver<NodesView>,
    /// When its idle kernels sleep.
    pub hibernation: HibernationConfig,
    /// What the node reports of its load.
    pub stats: Arc<NodeStats>,
    /// How far front-ends have seen its kernels' outputs.
    pub cursors: Cursors,
}

/// How a node keeps kernels that have nothing to do, unless they say otherwise.
#[derive(Debug, Clone, Copy, Default)]
pub struct UpkeepConfig {
    /// Whether standbys have a warm Python process.
    pub standby: Standby,
    /// Milliseconds without a cell after which a kernel is parked; `None`: never.
    pub park_after_ms: Option<u64>,
    /// Whether kernels are parked that hold what only a live process can hold.
    pub park_with_refused: bool,
}

impl UpkeepConfig {
    fn of(&self, KernelSpec { options, settings, .. }: &KernelSpec) -> Upkeep {
        // What has no state but its process is never parked.
        let park_after_ms = self.park_after_ms.filter(|_| settings.kernelspec.is_none());
        Upkeep {
            hot_standbys: options.standby.unwrap_or(self.standby) == Standby::Hot,
            starts_parked: options.parked,
            park_after_ms,
            parks_with_refused: self.park_with_refused,
        }
    }
}

/// What limits the processes of a node's kernels have.
#[derive(Debug, Clone)]
pub struct Confinement {
    /// How they are enforced.
    pub cgroups: Cgroups,
    /// The most that a kernel may have.
    pub most: KernelLimits,
    /// What gives each kernel a uid of its own; else why none does, if that was wished for.
    pub isolation: Result<Isolation, Option<String>>,
}

/// What a node reports of its load.
#[derive(Debug, Default)]
pub struct NodeStats {
    /// Cells that run now.
    pub running_cells: AtomicU32,
    /// Replicas started in this life of the node.
    pub replica_lives: AtomicU64,
    /// Replicas that sleep.
    pub asleep: AtomicU32,
    /// Their shares of the digest, combined by exclusive or.
    pub asleep_digest: AtomicU64,
}

/// What to run.
#[derive(Debug, Clone)]
pub struct ReplicaArgs {
    /// The kernel.
    pub spec: KernelSpec,
    /// Which of its members.
    pub replica: ReplicaId,
    /// The node.
    pub context: Arc<NodeContext>,
}
