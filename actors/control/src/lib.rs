//! The control plane: what should exist, and who sees to it.
//!
//! [`DesiredState`] is the machine of the system Raft group; every node holds a copy. [`Control`]
//! is the actor that answers `control.main.*` and repairs, on whichever node leads the group.
//!
//! Invariant: nothing here starts or stops a replica. Nodes reconcile against their copy of the
//! desired state; kernels' own leaders change their groups' members.

mod actor;
mod audit;
mod desired;
mod environments;
mod find;
mod handlers;
mod listing;
mod membership;
mod recover;
mod repair;
mod request;
mod users;
mod view;

pub use actor::{Control, ControlArgs, ControlMsg};
pub use desired::{
    Command, DesiredState, FORMAT, KERNELS_PER_OWNER_MAX, NodeEntry, Outcome, Refusal,
    TOKENS_PER_USER_MAX, TOMBSTONES_MAX, USERS_MAX, UserChange,
};
pub use membership::{MembershipStep, plan_membership};
pub use request::{NAME_LENGTH_MAX, RegisterNode, Registered};
