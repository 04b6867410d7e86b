//! What can be asked of the desired state, and what comes of it.

use std::collections::BTreeMap;

use callboard_protocol::{
    DiskId, Fault, FaultCode, KernelId, NodeId, OwnerId, ReplicaId,
    control::{KernelOptions, KernelSettings, KernelSpec, Origin},
    environment::Environment,
    users::{TokenEntry, TokenId, UserEntry, UserRole},
};
use serde::{Deserialize, Serialize};

use super::{KERNELS_PER_OWNER_MAX, NodeEntry, TOKENS_PER_USER_MAX, USERS_MAX, UserChange};

/// A change of the desired state. Stored in the log: add variants and defaulted fields only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Records who founded the system group. Only the first one counts.
    Found {
        /// The founders.
        members: BTreeMap<ReplicaId, (NodeId, DiskId)>,
    },
    /// A node is there, with this disk.
    RegisterNode {
        /// Which.
        node: NodeId,
        /// Its disk.
        disk: DiskId,
        /// Its member of the system group whose log on this disk is lost, if one is.
        lost: Option<ReplicaId>,
    },
    /// A kernel should exist.
    StartKernel {
        /// Its id.
        kernel: KernelId,
        /// Whose it is.
        owner: OwnerId,
        /// A name, unique among the owner's kernels.
        name: Option<String>,
        /// How many voters it should have.
        replicas: u8,
        /// Where its founders go.
        places: Vec<(NodeId, DiskId)>,
        /// How it is kept.
        #[serde(default)]
        options: KernelOptions,
        /// What it begins with, if not empty.
        #[serde(default)]
        origin: Option<Origin>,
        /// What else it was asked for with. A kernelspec is read by [`super::FORMAT`] 3 and later.
        #[serde(default)]
        settings: KernelSettings,
    },
    /// A kernel should not exist any more.
    StopKernel {
        /// Which.
        kernel: KernelId,
    },
    /// A member should be added, or removed, or both.
    ChangeMembers {
        /// Of which kernel.
        kernel: KernelId,
        /// The version of its entry that this was decided on.
        version: u64,
        /// Where the new one goes.
        join: Option<(NodeId, DiskId)>,
        /// The one to remove.
        leave: Option<ReplicaId>,
    },
    /// A joiner votes.
    MemberJoined {
        /// Of which kernel.
        kernel: KernelId,
        /// Which.
        replica: ReplicaId,
    },
    /// A leaver is out of its group.
    MemberRemoved {
        /// Of which kernel.
        kernel: KernelId,
        /// Which.
        replica: ReplicaId,
    },
    /// A kernel's group should be made anew from one of its members: the majority is lost.
    RecoverKernel {
        /// Which kernel.
        kernel: KernelId,
        /// The version of its entry that this was decided on.
        version: u64,
        /// The survivor.
        from: ReplicaId,
        /// What happened, for people.
        cause: String,
    },
    /// The group that was made anew has all that the survivor had.
    MemberRecovered {
        /// Of which kernel.
        kernel: KernelId,
        /// Its first member.
        replica: ReplicaId,
    },
    /// What a kernel's session needs of Python has changed.
    NoteNeeds {
        /// Of which kernel.
        kernel: KernelId,
        /// What it needs now.
        needs: Environment,
    },
    /// Front-ends note this about a kernel. Read by [`super::FORMAT`] 2 and later.
    LabelKernel {
        /// Which.
        kernel: KernelId,
        /// All of its labels.
        labels: BTreeMap<String, String>,
    },
    /// There should be such a user, with this role. Read by [`super::FORMAT`] 2 and later, as are
    /// all commands about users.
    AddUser {
        /// Who.
        user: OwnerId,
        /// What it may do.
        role: UserRole,
    },
    /// A user should not exist any more.
    RemoveUser {
        /// Who.
        user: OwnerId,
    },
    /// A user should have one more access token.
    AddToken {
        /// Who.
        user: OwnerId,
        /// What the token is called.
        id: TokenId,
        /// What to know of it.
        entry: TokenEntry,
    },
    /// An access token should not be valid any more.
    RevokeToken {
        /// Which.
        id: TokenId,
    },
}

/// What came of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The founders are recorded.
    Founded,
    /// The node belongs to the cluster.
    Registered {
        /// Its entry.
        entry: NodeEntry,
        /// Whether the entry is new.
        is_new: bool,
    },
    /// The kernel's entry is now this.
    Kernel(KernelSpec),
    /// The kernel is stopped; its last entry, if it is still kept.
    Stopped {
        /// The last entry.
        last: Option<KernelSpec>,
        /// Whether this very command stopped it.
        is_new: bool,
    },
    /// The user's entry is now this, or was this last.
    User {
        /// The entry.
        entry: UserEntry,
        /// What this very command changed about it.
        change: Option<UserChange>,
    },
    /// What was asked for was so already.
    AlreadySo(KernelSpec),
    /// What was asked for was so already.
    Unchanged,
    /// Nothing was changed.
    Refused(Refusal),
}

impl Outcome {
    /// Whether the state changed.
    #[must_use]
    pub fn is_change(&self) -> bool {
        match self {
            Self::Founded | Self::Kernel(_) => true,
            Self::Registered { is_new, .. } | Self::Stopped { is_new, .. } => *is_new,
            Self::User { change, .. } => change.is_some(),
            Self::AlreadySo(_) | Self::Unchanged | Self::Refused(_) => false,
        }
    }
}

/// Why a command changed nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The system group's founders are not recorded yet.
    #[error("the cluster is still being founded: try again in a moment")]
    NotFounded,
    /// The id belongs to a kernel that was started by another request.
    #[error(
        "kernel {kernel} exists already and was started with other options: \
         start yours under a fresh id"
    )]
    OtherRequest {
        /// The id.
        kernel: KernelId,
    },
    /// The id belongs to a kernel that was stopped.
    #[error(
        "kernel {kernel} was stopped, and its id is never used again: start one under a fresh id"
    )]
    WasStopped {
        /// The id.
        kernel: KernelId,
    },
    /// The id is older than those of the stopped kernels that are remembered.
    #[error(
        "kernel id {kernel} is too old to know whether it was used before: \
         start the kernel under a fresh, time-ordered id (UUID version 7)"
    )]
    TooOld {
        /// The id.
        kernel: KernelId,
    },
    /// The owner has another kernel of the name.
    #[error(
        "{owner} has a kernel named '{name}' already ({kernel}): \
         choose another name, or stop that one with `callboard kernel stop {name}`"
    )]
    NameTaken {
        /// The owner.
        owner: OwnerId,
        /// The name.
        name: String,
        /// The kernel that has it.
        kernel: KernelId,
    },
    /// The owner has as many kernels as one may have.
    #[error(
        "{owner} has {KERNELS_PER_OWNER_MAX} kernels, which is the limit: \
         stop one that is not needed with `callboard kernel stop`"
    )]
    TooMany {
        /// The owner.
        owner: OwnerId,
    },
    /// There is no such kernel.
    #[error("there is no kernel {kernel}: see `callboard kernel list`")]
    NoSuchKernel {
        /// The id.
        kernel: KernelId,
    },
    /// The kernel is of another owner.
    #[error(
        "kernel {kernel} belongs to another owner: its state cannot be taken into a kernel of \
         {owner}"
    )]
    OtherOwner {
        /// The kernel.
        kernel: KernelId,
        /// Who asked.
        owner: OwnerId,
    },
    /// The kernel has no state that another one could begin with.
    #[error(
        "kernel {kernel} runs '{kernelspec}', whose state is not replicated, so that no other kernel \
         can begin with it: start one with `callboard kernel start --kernelspec {kernelspec}` and run \
         the cells again"
    )]
    NoState {
        /// The kernel.
        kernel: KernelId,
        /// Its kernelspec.
        kernelspec: String,
    },
    /// The kernel has no such member.
    #[error("kernel {kernel} has no member {replica}: see `callboard kernel show {kernel}`")]
    NoSuchMember {
        /// The kernel.
        kernel: KernelId,
        /// The member.
        replica: ReplicaId,
    },
    /// The member never had the kernel's state.
    #[error(
        "member {replica} of kernel {kernel} was still joining and does not have the kernel's \
         state: recover from another one, see `callboard kernel list --output json`"
    )]
    NeverWhole {
        /// The kernel.
        kernel: KernelId,
        /// The member.
        replica: ReplicaId,
    },
    /// The kernel's entry has changed since the decision.
    #[error("kernel {kernel} has changed meanwhile (version {actual}, decided on {decided_on})")]
    Stale {
        /// The kernel.
        kernel: KernelId,
        /// The version decided on.
        decided_on: u64,
        /// The present one.
        actual: u64,
    },
    /// Another change of the kernel's members is under way.
    #[error("kernel {kernel} is changing its members already: {what}")]
    InFlight {
        /// The kernel.
        kernel: KernelId,
        /// Which change, as a clause.
        what: String,
    },
    /// There is no such user.
    #[error(
        "there is no user '{user}': see `callboard user list`, or add it with `callboard user add \
         {user}`"
    )]
    NoSuchUser {
        /// The name.
        user: OwnerId,
    },
    /// The cluster has as many users as it may have.
    #[error(
        "the cluster has {USERS_MAX} users, which is the limit: remove one that is not needed with \
         `callboard user remove`"
    )]
    TooManyUsers,
    /// The user has kernels.
    #[error(
        "{user} still owns {count} kernels, which nobody would own without it: stop them first with \
         `callboard kernel stop` (`callboard kernel list --output json` says whose each is)"
    )]
    OwnsKernels {
        /// The user.
        user: OwnerId,
        /// How many.
        count: usize,
    },
    /// The user has as many tokens as one may have.
    #[error(
        "{user} has {TOKENS_PER_USER_MAX} tokens, which is the limit: revoke one that is not needed \
         with `callboard user revoke` (see `callboard user list`)"
    )]
    TooManyTokens {
        /// The user.
        user: OwnerId,
    },
    /// The id belongs to another token.
    #[error("there is another token {id} already: make yours under a fresh id")]
    TokenTaken {
        /// The id.
        id: TokenId,
    },
    /// There is no such token.
    #[error("there is no token {id}, or it was revoked already: see `callboard user list`")]
    NoSuchToken {
        /// The id.
        id: TokenId,
    },
    /// The command asks for what no caller may ask for.
    #[error("a defect: {0}; please report it")]
    Malformed(String),
}

impl From<Refusal> for Fault {
    fn from(refusal: Refusal) -> Self {
        let code = match refusal {
            Refusal::NotFounded => FaultCode::Unavailable,
            Refusal::OtherRequest { .. }
            | Refusal::WasStopped { .. }
            | Refusal::NameTaken { .. }
            | Refusal::NeverWhole { .. }
            | Refusal::OwnsKernels { .. }
            | Refusal::TokenTaken { .. }
            | Refusal::InFlight { .. } => FaultCode::Conflict,
            Refusal::TooOld { .. } | Refusal::OtherOwner { .. } | Refusal::NoState { .. } => {
                FaultCode::BadRequest
            }
            Refusal::TooMany { .. } | Refusal::TooManyUsers | Refusal::TooManyTokens { .. } => {
                FaultCode::Exhausted
            }
            Refusal::NoSuchKernel { .. }
            | Refusal::NoSuchMember { .. }
            | Refusal::NoSuchUser { .. }
            | Refusal::NoSuchToken { .. } => FaultCode::NotFound,
            Refusal::Stale { .. } => FaultCode::Stale,
            Refusal::Malformed(_) => FaultCode::Internal,
        };
        Self::new(code, refusal.to_string())
    }
}
