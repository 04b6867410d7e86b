//! Ids, subjects, envelopes and messages: everything two Callboard processes must agree on.
//!
//! Invariant: nothing here does I/O, knows a runtime or reads a clock.

pub mod audit;
mod base64_bytes;
pub mod control;
pub mod date;
pub mod envelope;
pub mod environment;
pub mod fault;
pub mod history;
pub mod ids;
pub mod jupyter;
pub mod kernel;
pub mod node;
pub mod storage;
pub mod subject;
pub mod users;
pub mod zmq;

pub use envelope::Envelope;
pub use fault::{Answer, Certainty, Fault, FaultCode};
pub use ids::{
    ClusterId, DiskId, Epoch, GroupId, Incarnation, KernelId, MessageId, NodeId, OwnerId,
    ReplicaId, Seq, Term,
};
pub use subject::{ActorKind, Subject, SubjectPattern};
