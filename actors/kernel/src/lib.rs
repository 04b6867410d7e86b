//! A kernel replica: one member of a kernel's Raft group, with a Python process ready to run its
//! cells.
//!
//! [`Replica`] is the actor. The rules it follows are pure and live in
//! `callboard_policy::terms`; this crate carries them out: bus, log, chunks, Python.

mod aborted;
mod cell_traces;
mod machine;
mod publisher;
pub mod python;
mod replica;
mod requests;
mod running_cell;
mod state;

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64},
    },
};

use callboard_policy::{environment::EnvironmentMatch, failure::NodesView};
use callboard_protocol::{
    ClusterId, Incarnation, NodeId, ReplicaId, control::KernelSpec, environment::Environment,
};
use callboard_replicated::{ChunkExchange, ChunkStore, Replicator};
use callboard_transport::Lanes;
use tokio::sync::watch;

pub use machine::KernelMachine;
pub use python::{FileOptions, PipPolicy, PythonConfig};
pub use replica::{Replica, ReplicaMsg};

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
    /// Sends chunks to other nodes and fetches them.
    pub exchange: ChunkExchange,
    /// How to run Python.
    pub python: PythonConfig,
    /// Where the files of sessions are.
    pub files: FileOptions,
    /// Where sockets and pid files go; private to the node.
    pub run_dir: PathBuf,
    /// What is installed in the node's Python environment, once that is known.
    pub environment: watch::Receiver<Option<Environment>>,
    /// How alike the Python environments of a kernel's nodes have to be.
    pub environment_match: EnvironmentMatch,
    /// How the nodes are.
    pub nodes: watch::Receiver<NodesView>,
    /// What the node reports of its load.
    pub stats: Arc<NodeStats>,
}

/// What a node reports of its load.
#[derive(Debug, Default)]
pub struct NodeStats {
    /// Cells that run now.
    pub running_cells: AtomicU32,
    /// Replicas started in this life of the node.
    pub replica_lives: AtomicU64,
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
