//! What should exist: nodes, kernels, users, and the ids of kernels that existed once.
//!
//! A deterministic machine: the same commands in the same order give the same state everywhere.
//! No clock, no chance, no I/O.

mod command;
mod kernels;
#[cfg(test)]
mod tests;
mod users;

use std::collections::BTreeMap;

use callboard_protocol::{DiskId, KernelId, NodeId, ReplicaId, control::KernelSpec};
use callboard_replicated::Machine;
use serde::{Deserialize, Serialize};

pub use command::{Command, Outcome, Refusal};
pub use users::{TOKENS_PER_USER_MAX, USERS_MAX, UserChange};

/// Kernels one owner may have at a time. A kernel that hibernates costs each of its nodes some tens
/// of KiB, so this guards the copies of the desired state (half a KiB each) against a client that
/// starts kernels in a loop; what a node can run at once is bounded by its memory. It is a constant,
/// as every copy must decide alike.
pub const KERNELS_PER_OWNER_MAX: usize = 10_000;
/// Ids of stopped kernels that are remembered one by one: a few MiB of snapshot. Older ones are
/// covered by [`DesiredState::is_below_floor`].
pub const TOMBSTONES_MAX: usize = 100_000;
/// Stopped kernels whose last entry is kept for whoever asks again.
const LAST_SPECS_MAX: usize = 256;
/// Newest format of commands and snapshots that is read here. A snapshot says which one it needs, so
/// that a reader of an older one refuses it and loses nothing; what holds nothing new is written in
/// the first.
pub const FORMAT: u16 = FORMAT_WITH_KERNELSPECS;
/// The format that knew neither users nor labels.
const FORMAT_WITHOUT_USERS: u16 = 1;
/// Users and labels came with this one.
pub(crate) const FORMAT_WITH_USERS: u16 = 2;
/// Kernels of other languages came with this one.
pub(crate) const FORMAT_WITH_KERNELSPECS: u16 = 3;

/// A node that belongs to the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeEntry {
    /// Its present disk.
    pub disk: DiskId,
    /// Its present member id in the system group. A node that lost its disk gets another.
    pub member: ReplicaId,
}

/// The state. See the module's documentation.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DesiredState {
    /// Counts the changes.
    revision: u64,
    nodes: BTreeMap<NodeId, NodeEntry>,
    /// The id the next member of the system group gets; 0 until the group is founded.
    member_next: ReplicaId,
    kernels: BTreeMap<KernelId, KernelSpec>,
    /// Stopped kernels, with the revision that stopped each.
    tombstones: BTreeMap<KernelId, u64>,
    /// The last entries of those stopped latest, by the revision that stopped them.
    last_specs: BTreeMap<u64, KernelSpec>,
    /// No kernel with this id or a lower one may start any more.
    floor: Option<KernelId>,
    /// Who may use the cluster.
    #[serde(default, skip_serializing_if = "users::Users::is_untouched")]
    users: users::Users,
}

impl DesiredState {
    /// Changes with every change of the state.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Whether the founders of the system group are known.
    #[must_use]
    pub fn is_founded(&self) -> bool {
        self.member_next != ReplicaId::default()
    }

    /// The nodes that belong to the cluster.
    #[must_use]
    pub fn nodes(&self) -> &BTreeMap<NodeId, NodeEntry> {
        &self.nodes
    }

    /// The kernels that should exist.
    #[must_use]
    pub fn kernels(&self) -> &BTreeMap<KernelId, KernelSpec> {
        &self.kernels
    }

    /// Whether the kernel existed and was stopped.
    #[must_use]
    pub fn is_stopped(&self, kernel: KernelId) -> bool {
        self.tombstones.contains_key(&kernel) || self.is_below_floor(kernel)
    }

    /// Whether the id is so old that it may have been used and forgotten. Ids are time-ordered, so
    /// that a fresh one never is.
    #[must_use]
    pub fn is_below_floor(&self, kernel: KernelId) -> bool {
        self.floor.is_some_and(|floor| kernel <= floor) && !self.kernels.contains_key(&kernel)
    }

    /// The last entry of a stopped kernel, while it is kept.
    #[must_use]
    pub fn last_spec(&self, kernel: KernelId) -> Option<&KernelSpec> {
        self.tombstones.get(&kernel).and_then(|revision| self.last_specs.get(revision))
    }

    /// Whether a member of a kernel was placed once and should not exist any more. `false` also
    /// when this copy does not know of the kernel: it may lag behind.
    #[must_use]
    pub fn is_member_over(&self, kernel: KernelId, replica: ReplicaId) -> bool {
        match self.kernels.get(&kernel) {
            Some(spec) => spec.replica_next > replica && !spec.replicas.contains_key(&replica),
            None => self.is_stopped(kernel),
        }
    }

    /// Whether a kernel is being recovered from this member, which belongs to the former group:
    /// its log is needed until that is done, and it must not run.
    #[must_use]
    pub fn is_recovered_from(&self, kernel: KernelId, replica: ReplicaId) -> bool {
        let recovery = self.kernels.get(&kernel).and_then(|spec| spec.recovery.as_ref());
        recovery.is_some_and(|recovery| recovery.from == replica)
    }

    /// How many members the kernels have on each node.
    #[must_use]
    pub fn placed(&self) -> BTreeMap<NodeId, u32> {
        let mut placed = BTreeMap::new();
        for member in self.kernels.values().flat_map(|spec| spec.replicas.values()) {
            *placed.entry(member.node.clone()).or_insert(0_u32) += 1;
        }
        placed
    }

    fn found(&mut self, members: BTreeMap<ReplicaId, (NodeId, DiskId)>) -> Outcome {
        if self.is_founded() {
            return Outcome::Unchanged;
        }
        self.member_next = members.keys().max().copied().unwrap_or_default().next();
        for (member, (node, disk)) in members {
            self.nodes.insert(node, NodeEntry { disk, member });
        }
        Outcome::Founded
    }

    fn register(&mut self, node: NodeId, disk: DiskId, lost: Option<ReplicaId>) -> Outcome {
        if !self.is_founded() {
            return Outcome::Refused(Refusal::NotFounded);
        }
        if let Some(entry) = self.nodes.get(&node)
            && entry.disk == disk
            && lost != Some(entry.member)
        {
            return Outcome::Registered { entry: entry.clone(), is_new: false };
        }
        let entry = NodeEntry { disk, member: self.member_next };
        self.member_next = self.member_next.next();
        self.nodes.insert(node, entry.clone());
        Outcome::Registered { entry, is_new: true }
    }
}

impl Machine for DesiredState {
    type Command = Command;
    type Output = Outcome;

    fn apply(&mut self, _index: u64, command: Command) -> Outcome {
        let outcome = match command {
            Command::Found { members } => self.found(members),
            Command::RegisterNode { node, disk, lost } => self.register(node, disk, lost),
            Command::StartKernel {
                kernel,
                owner,
                name,
                replicas,
                places,
                options,
                origin,
                settings,
            } => {
                let asked = kernels::Asked { options, settings, origin };
                self.start_kernel((kernel, owner, name), replicas, places, asked)
            }
            Command::StopKernel { kernel } => self.stop_kernel(kernel),
            Command::ChangeMembers { kernel, version, join, leave } => {
                self.change_members(kernel, version, join, leave)
            }
            Command::MemberJoined { kernel, replica } => self.member_joined(kernel, replica),
            Command::MemberRemoved { kernel, replica } => self.member_removed(kernel, replica),
            Command::RecoverKernel { kernel, version, from, cause } => {
                self.recover_kernel(kernel, version, from, cause)
            }
            Command::MemberRecovered { kernel, replica } => self.member_recovered(kernel, replica),
            Command::NoteNeeds { kernel, needs } => self.note_needs(kernel, needs),
            Command::LabelKernel { kernel, labels } => self.label_kernel(kernel, labels),
            Command::AddUser { user, role } => self.add_user(user, role),
            Command::RemoveUser { user } => self.remove_user(user),
            Command::AddToken { user, id, entry } => self.add_token(user, id, entry),
            Command::RevokeToken { id } => self.revoke_token(id),
        };
        if outcome.is_change() {
            self.revision += 1;
        }
        outcome
    }

    fn snapshot(&self) -> Vec<u8> {
        let any = |is_new: fn(&KernelSpec) -> bool| self.kernels.values().any(is_new);
        let format = if any(|spec| spec.settings.kernelspec.is_some()) {
            FORMAT_WITH_KERNELSPECS
        } else if !self.users.is_untouched() || any(|spec| !spec.labels.is_empty()) {
            FORMAT_WITH_USERS
        } else {
            FORMAT_WITHOUT_USERS
        };
        // Writing plain data to memory cannot fail.
        rmp_serde::to_vec_named(&(format, self)).unwrap_or_default()
    }

    fn restore(bytes: &[u8]) -> Result<Self, String> {
        let (format, state): (u16, Self) =
            rmp_serde::from_slice(bytes).map_err(|error| error.to_string())?;
        if (FORMAT_WITHOUT_USERS..=FORMAT).contains(&format) {
            Ok(state)
        } else {
            Err(format!("snapshot format {format} of the desired state is not known here"))
        }
    }
}
