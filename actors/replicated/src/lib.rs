//! Durable replication: the node's write-ahead log, Raft groups over the bus, content-addressed
//! chunks.
//!
//! A node opens one [`Replicator`]; it opens a [`Group`] per kernel replica and for the system
//! group. Each group carries a deterministic [`Machine`].

pub mod chunks;
pub mod disk;
mod dormant;
pub mod faulty_disk;
pub mod fetch;
mod group;
mod machine;
mod options;
mod proposer;
mod raft;
mod replicator;
mod salvage;
pub mod sim_disk;
pub mod wal;

pub use chunks::{
    CHUNK_LENGTH_MAX, ChunkCounters, ChunkError, ChunkFaults, ChunkHold, ChunkId, ChunkPins,
    ChunkRoom, ChunkStep, ChunkStore, ChunkStoreOptions, Collected, GRACE_MIN, Heard, Holder,
    OwnerUsage, RECEIPT_VALID, Waiting, Witness,
};
pub use disk::{Disk, RealDisk};
pub use dormant::{Closed, Dormant, SleepNote};
pub use faulty_disk::{FaultyDisk, KillProcess};
pub use fetch::{ChunkArchive, ChunkExchange, ExchangeError, InMemory};
pub use group::{Group, GroupMetrics, MemberError, PROPOSE_DEADLINE, ReadError, Role};
pub use machine::{Applied, Machine, Members};
pub use options::{GroupOptions, OpenError, RaftTiming, ReplicatorOptions};
pub use proposer::ProposeError;
pub use raft::{server::MemberStatus, state_machine::BeforeSnapshot};
pub use replicator::Replicator;
pub use salvage::Salvaged;
pub use sim_disk::SimDisk;
pub use wal::{Wal, WalError, WalFailed, WalOptions};
