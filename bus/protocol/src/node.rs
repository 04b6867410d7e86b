//! What node processes say of themselves.
//!
//! Events of `node.<id>`: `beat` carries a [`Beat`] several times a second; `exited` an
//! [`NodeExited`], sent by whoever watched the process end. Verbs: `kill` takes [`Kill`].

use serde::{Deserialize, Serialize};

use crate::{
    ids::{DiskId, Epoch, Incarnation, KernelId, NodeId, ReplicaId},
    storage::DiskBeat,
};

/// A node is alive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beat {
    /// Who.
    pub node: NodeId,
    /// Its data directory's identity.
    pub disk: DiskId,
    /// Which of its process's lives this is.
    pub incarnation: Incarnation,
    /// Number of this beat within the incarnation.
    pub number: u64,
    /// Process id, for operators on the same machine.
    pub pid: u32,
    /// Host name.
    pub host: String,
    /// Replicas it runs now.
    pub replicas: u32,
    /// Cells it executes now.
    pub running_cells: u32,
    /// Highest control epoch it obeyed.
    pub epoch: Epoch,
    /// Nodes it has not heard of for longer than the suspicion time.
    pub suspects: Vec<NodeId>,
    /// What its Python environment lacks to run kernels; `None` if it can.
    pub python_problem: Option<String>,
    /// Digest of its Python environment, once that is known; the verb `environment` tells the rest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<String>,
    /// Limits of kernels that it cannot enforce, each as a sentence.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unenforced: Vec<String>,
    /// Its replicas that sleep.
    #[serde(default, skip_serializing_if = "Asleep::is_none")]
    pub asleep: Asleep,
    /// How full its disk is; unknown of nodes of the version before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_level: Option<DiskBeat>,
    /// Its stock of Python processes.
    #[serde(default, skip_serializing_if = "PythonStock::is_empty")]
    pub python_stock: PythonStock,
    /// Newest format of the desired state that it reads; 0 of nodes of the version before.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub desired_format: u16,
}

fn is_zero(number: &u16) -> bool {
    *number == 0
}

/// A node's replicas that sleep and so say nothing themselves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asleep {
    /// How many.
    pub count: u32,
    /// Of kernel, replica, last index and Raft term of each, whatever their order.
    pub digest: u64,
}

impl Asleep {
    fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

/// Python processes that a node has started ahead of demand.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PythonStock {
    /// Ready to be taken.
    pub ready: u32,
    /// How many there should be.
    pub target: u32,
    /// The process that new ones are forked from, if there is one.
    pub zygote_pid: Option<u32>,
    /// Libraries it has imported.
    pub preloaded: u32,
}

impl PythonStock {
    /// Whether there is neither stock nor zygote.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A node's process was seen to end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeExited {
    /// Who.
    pub node: NodeId,
    /// Which of its lives ended, if known.
    pub incarnation: Option<Incarnation>,
    /// How it ended, such as `killed by signal 9`.
    pub how: String,
}

/// Ends something on a node, for chaos tests and operators. Answered before it is carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kill {
    /// The node process itself, by SIGKILL.
    Node,
    /// The Python process of a replica, by SIGKILL.
    Python {
        /// Its kernel.
        kernel: KernelId,
        /// The replica.
        replica: ReplicaId,
    },
    /// The replica actor; its supervisor starts it again.
    Replica {
        /// Its kernel.
        kernel: KernelId,
        /// The replica.
        replica: ReplicaId,
    },
}
