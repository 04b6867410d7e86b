//! The control plane's verbs, on `control.main`, and what should exist.
//!
//! Every member of the system group listens; the leader answers.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    environment::{Environment, Kernelspec},
    ids::{DiskId, Epoch, GroupId, KernelId, NodeId, OwnerId, ReplicaId, Seq},
    node::PythonStock,
    storage::DiskBeat,
};

/// Creates a kernel. Idempotent for the same id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartKernel {
    /// The kernel's id, chosen by the client so that a resent request starts one kernel.
    pub kernel: KernelId,
    /// A name for people; unique among the owner's kernels.
    pub name: Option<String>,
    /// How many replicas: 1, 3 or 5.
    pub replicas: u8,
    /// How it is kept.
    #[serde(default, skip_serializing_if = "KernelOptions::is_default")]
    pub options: KernelOptions,
    /// What it begins with; nothing if none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    /// What else its sessions shall have.
    #[serde(default, skip_serializing_if = "KernelSettings::is_default")]
    pub settings: KernelSettings,
}

/// What a kernel begins with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// A state of another kernel of the same owner, which its leader is asked for.
    Kernel {
        /// The other kernel.
        kernel: KernelId,
        /// Which of its states, as in [`crate::history::Rewind::to`].
        at: String,
    },
    /// A state that whoever starts it uploads.
    Upload,
}

/// What a kernel was started with beside its replicas. Stored in logs: add defaulted fields at the
/// end only.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelSettings {
    /// The absolute path of the directory its session starts in, on every node; none is the
    /// session's own, whose files travel.
    #[serde(default)]
    pub directory: Option<String>,
    /// Limits of its own, within those that the cluster sets.
    #[serde(default)]
    pub limits: KernelLimits,
    /// The kernelspec of another language that its process is started by; none is Python.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernelspec: Option<String>,
}

/// Limits of a kernel's processes; `None` is none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct KernelLimits {
    /// Memory of all its processes together, in MiB.
    pub memory_max_mib: Option<u64>,
    /// Share of the processors, in percent of one: 200 are two.
    pub cpu_max_percent: Option<u32>,
    /// How long a cell may run, in seconds.
    pub cell_wall_time_max_s: Option<u64>,
    /// Processes and threads at a time.
    pub processes_max: Option<u64>,
}

impl KernelLimits {
    /// Whether there is none.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl KernelSettings {
    /// Whether nothing out of the ordinary was asked for.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// What is to be known of a session whose state is not replicated, as a sentence; `None` if it is
    /// replicated.
    #[must_use]
    pub fn not_replicated(&self) -> Option<String> {
        let name = self.kernelspec.as_ref()?;
        Some(format!(
            "the state of '{name}' sessions is not replicated: cells and their outputs are kept, but \
             if the process or its node is lost, a fresh process begins without variables"
        ))
    }
}

/// How a kernel is kept while it has nothing to do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct KernelOptions {
    /// Whether its standbys have Python processes; `None`: as its nodes are configured.
    pub standby: Option<Standby>,
    /// Whether it gets no Python process before the first request.
    pub parked: bool,
}

impl KernelOptions {
    /// Whether nothing was asked for.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// What a replica that does not execute has ready.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standby {
    /// Log and state only.
    #[default]
    Thin,
    /// A warm Python process, too.
    Hot,
}

/// Ends a kernel for good. Its id is never used again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopKernel {
    /// Which.
    pub kernel: KernelId,
}

/// Replaces what front-ends note about a kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LabelKernel {
    /// Which.
    pub kernel: KernelId,
    /// The labels: at most 16, with 4 KiB together.
    pub labels: BTreeMap<String, String>,
}

/// Asks for one kernel's entry, by id, name, or unambiguous start of an id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FindKernel {
    /// What the user typed.
    pub text: String,
}

/// What `list_kernels` takes; nothing asks for the first page.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListKernels {
    /// The last kernel of the page before, as [`KernelList::next`] named it.
    #[serde(default)]
    pub after: Option<KernelId>,
    /// The version of a whole list that the asker holds, as [`KernelList::version`] named it. While
    /// nothing has changed since, nothing but this is answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub known: Option<u64>,
}

/// What `list_kernels` answers: as many kernels as fit into one message, in order of their ids.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelList {
    /// Kernels that should exist.
    pub kernels: Vec<KernelSpec>,
    /// If there are more, what to ask for next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<KernelId>,
    /// The same for people whose client does not ask for more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// Changes with every change of the list. Pages of one version make up one list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// The list is still the one that the asker knows; it is not repeated.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unchanged: bool,
}

/// What `list_kernelspecs` answers: the kernelspecs of other languages that nodes have.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelspecList {
    /// By name.
    pub kernelspecs: BTreeMap<String, KernelspecStatus>,
}

/// A kernelspec of another language, and who has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelspecStatus {
    /// As the first of the nodes has it.
    pub spec: Kernelspec,
    /// The nodes that are up and have it.
    pub nodes: Vec<NodeId>,
}

/// A kernel that should exist.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelSpec {
    /// Its id.
    pub kernel: KernelId,
    /// Whose it is.
    pub owner: OwnerId,
    /// A name for people.
    pub name: Option<String>,
    /// How many voters it should have.
    pub replicas_wanted: u8,
    /// Its members that should exist.
    pub replicas: BTreeMap<ReplicaId, ReplicaSpec>,
    /// The id the next member gets. Ids are never reused.
    pub replica_next: ReplicaId,
    /// Changes with every change of the entry.
    pub version: u64,
    /// How it is kept.
    #[serde(default, skip_serializing_if = "KernelOptions::is_default")]
    pub options: KernelOptions,
    /// How often its group was made anew from a survivor of a lost majority.
    #[serde(default, skip_serializing_if = "is_first")]
    pub generation: u64,
    /// The recovery that is under way, if one is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovery: Option<Recovery>,
    /// What it began with, or is about to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    /// What else it was started with.
    #[serde(default, skip_serializing_if = "KernelSettings::is_default")]
    pub settings: KernelSettings,
    /// What its session needs of a node's Python environment, once it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub needs: Option<Environment>,
    /// What front-ends note about it, such as the notebook it belongs to.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

fn is_first(generation: &u64) -> bool {
    *generation == 0
}

impl KernelSpec {
    /// The Raft group of its present members.
    #[must_use]
    pub fn group(&self) -> GroupId {
        GroupId::of_kernel(self.kernel, self.generation)
    }
}

/// A group that is made anew from one member of the former one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recovery {
    /// The member whose log the new group begins with. It belonged to the generation before.
    pub from: ReplicaId,
    /// What happened, for people.
    pub cause: String,
}

/// What `recover_kernel` takes: the kernel's majority is lost for good, and a survivor shall be
/// made a group of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecoverKernel {
    /// Which kernel.
    pub kernel: KernelId,
    /// Its survivor.
    pub from: ReplicaId,
    /// The version of its entry that this was decided on; the present one if none is named.
    #[serde(default)]
    pub version: Option<u64>,
    /// Whether only to say what would be done.
    #[serde(default)]
    pub plan_only: bool,
}

/// What `recover_kernel` answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecoveryPlan {
    /// The entry, before a plan or after it was carried out.
    pub spec: KernelSpec,
    /// The survivor.
    pub from: ReplicaId,
    /// Where it is.
    pub node: NodeId,
    /// What it has.
    pub holds: Holdings,
    /// The members that are given up, and where they were.
    pub lost: BTreeMap<ReplicaId, NodeId>,
}

/// What a member has, by its own word: the answer to `replica.<id>.holdings`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holdings {
    /// The last cell with a place in its log, as far as it is known to be confirmed.
    pub accepted: Seq,
    /// The last cell whose state it has.
    pub completed: Seq,
    /// Entries at the end of its log that it does not know to be confirmed. They count.
    pub unconfirmed: u64,
    /// Parts of the present state that it lacks.
    pub missing_chunks: u64,
}

/// What `note_needs` takes: what a kernel's session needs of Python has changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NoteNeeds {
    /// Of which kernel.
    pub kernel: KernelId,
    /// What it needs now.
    pub needs: Environment,
}

/// One member that should exist.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaSpec {
    /// Where.
    pub node: NodeId,
    /// On which of the node's disks. A node with another disk must not start it.
    pub disk: DiskId,
    /// What it is for.
    pub standing: Standing,
}

/// What a member is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// One of the members the group was founded with; it may initialise an empty log.
    Founder,
    /// Added later: starts empty and learns.
    Joiner,
    /// A joiner that votes by now. It never initialises an empty log.
    Member,
    /// To be removed from the group, after the others are whole.
    Leaver,
}

/// What `member_changed` takes: the group's leader has changed its members towards the entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberChanged {
    /// Of which kernel.
    pub kernel: KernelId,
    /// Which member.
    pub replica: ReplicaId,
    /// What became of it.
    pub change: MemberChange,
}

/// What became of a member of a kernel's group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MemberChange {
    /// A joiner has all of the log and votes.
    Joined,
    /// A leaver is no longer in the group.
    Removed,
    /// The group that was made anew from a survivor has all that the survivor had.
    Recovered,
    /// Its log on this disk cannot be trusted; sent by its node, which does not start it again.
    Lost {
        /// What was found, for people.
        why: String,
    },
}

/// What `list_nodes` answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeList {
    /// Every node known, in order of id.
    pub nodes: Vec<NodeStatus>,
    /// Why no repair is done just now, if so.
    pub outage: Option<String>,
    /// The current control epoch.
    pub epoch: Epoch,
    /// The node whose control actor answered.
    pub leader: NodeId,
    /// Kernels that need a repair which cannot begin now.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub held: Vec<HeldRepair>,
}

/// A kernel that needs a repair which cannot begin now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldRepair {
    /// Which.
    pub kernel: KernelId,
    /// Why not, as a clause.
    pub reason: String,
}

/// A node as the control plane sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Who.
    pub node: NodeId,
    /// Its disk.
    pub disk: DiskId,
    /// How it is.
    pub health: NodeHealth,
    /// Milliseconds since it was last heard.
    pub silent_ms: u64,
    /// Process id on its host.
    pub pid: u32,
    /// Its host.
    pub host: String,
    /// Which of its lives this is.
    pub incarnation: u64,
    /// Members placed on it.
    pub replicas: u32,
    /// Cells it executes now.
    pub running_cells: u32,
    /// What its Python environment lacks; `None` if it can run kernels.
    pub python_problem: Option<String>,
    /// How full its disk is; unknown of nodes of the version before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_level: Option<DiskBeat>,
    /// Digest of its Python environment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<String>,
    /// Limits of kernels that it cannot enforce, each as a sentence.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unenforced: Vec<String>,
    /// Its replicas that sleep.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub asleep: u32,
    /// Its stock of Python processes.
    #[serde(default, skip_serializing_if = "PythonStock::is_empty")]
    pub python_stock: PythonStock,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// How a node is, judged from its heartbeats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeHealth {
    /// Heard of within the suspicion time.
    Up,
    /// Silent, or seen to end, and expected back.
    Suspected,
    /// Gone for longer than the replacement time; its members are being replaced.
    Gone,
}
