//! The node process: its data directory, its connections, its copy of the desired state, its
//! heartbeats and the replicas it runs.
//!
//! [`run_node`] is `callboard node`; [`RunningNode`] is the same without process, signals and
//! NATS, for tests.

mod data_dir;
mod error;
mod founding;
mod joining;
mod keeper;
mod kernel_replicas;
mod memory;
mod node;
mod node_actor;
mod python;
mod reconcile;
mod replicas;
mod run;
mod storage;
mod sweep;

pub use callboard_kernel::UpkeepConfig;
pub use data_dir::{
    DataDir, DataDirError, Founder, LAST_END_FILE, MachineId, Membership, NotedMembers,
};
pub use error::NodeError;
pub use founding::{FoundingDecision, FoundingStage, FoundingStatus, decide};
pub use memory::use_few_arenas;
pub use node::{NodeParts, NodeServices, RunningNode};
pub use node_actor::Crash;
pub use python::check_python;
pub use replicas::{MemberKey, ReplicaFactory, ReplicaHandle, Roster, SharedSpec};
pub use run::{DISK_FAULTS_FILE, ExitReason, NodeOptions, run_node};
pub use storage::{ArchiveError, ObjectArchive, Reserve, ReservedDisk, Storage, StorageOptions};
pub use sweep::{Swept, sweep};
