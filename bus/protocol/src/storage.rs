//! What a node says of its disk and its chunks: verbs `storage`, `purge` and
//! `named` of `node.<id>`.

use serde::{Deserialize, Serialize};

use crate::ids::{KernelId, NodeId, OwnerId};

/// How full a node's disk is; a part of its heartbeat.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskBeat {
    /// In percent of what the node could use.
    pub used_percent: u8,
    /// Whether it is above the high-water mark: the node takes no new cells and no new replicas.
    pub is_high: bool,
}

/// What `storage` answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStorage {
    /// Who.
    pub node: NodeId,
    /// Bytes in use on its disk, by whomever.
    pub disk_used_bytes: u64,
    /// Bytes that it may still write.
    pub disk_free_bytes: u64,
    /// The mark above which it takes no new cells, in percent.
    pub disk_high_water_percent: u8,
    /// Whether it is above the mark.
    pub disk_is_high: bool,
    /// Bytes set aside for a full disk now.
    pub reserve_bytes: u64,
    /// Most bytes of chunks per owner; 0 for no limit.
    pub owner_quota_bytes: u64,
    /// What the owners have here.
    pub owners: Vec<OwnerStorage>,
    /// What moved in this life of the node.
    pub moved: Moved,
    /// Why the collector waits, if it does.
    pub collector_waits: Option<String>,
    /// Chunks found damaged and set aside.
    pub damaged: Vec<DamagedChunk>,
}

/// What an owner has on a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnerStorage {
    /// Who.
    pub owner: OwnerId,
    /// Whole chunks.
    pub chunks: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Counters of one life of a node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Moved {
    /// Bytes of chunks written to the disk.
    pub stored_bytes: u64,
    /// Bytes of chunks sent to other nodes.
    pub sent_bytes: u64,
    /// Bytes of chunks received from other nodes.
    pub received_bytes: u64,
    /// Bytes that were not sent, as the receiver had them.
    pub spared_bytes: u64,
    /// Chunks found damaged.
    pub damaged_chunks: u64,
    /// Chunks collected.
    pub collected_chunks: u64,
    /// Bytes collected.
    pub collected_bytes: u64,
    /// Chunks read by the scrub.
    pub scrubbed_chunks: u64,
    /// Chunks copied to the object store.
    pub archived_chunks: u64,
    /// Their bytes.
    pub archived_bytes: u64,
}

/// A chunk that was found damaged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DamagedChunk {
    /// Whose.
    pub owner: OwnerId,
    /// Its hash.
    pub chunk: String,
    /// The kernels that name it.
    pub kernels: Vec<String>,
    /// Whether its bytes are here again.
    pub is_repaired: bool,
}

/// Removes at once what a kernel that was stopped had on this node and no other kernel names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Purge {
    /// Which.
    pub kernel: KernelId,
}

/// What `named` takes: which of these does a kernel on the node name?
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedAmong {
    /// Whose.
    pub owner: OwnerId,
    /// Their hashes, in hexadecimal digits.
    pub chunks: Vec<String>,
}

/// What `named` answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named {
    /// Positions in the list that was asked about.
    pub positions: Vec<u32>,
}

/// What `purge` did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Purged {
    /// Chunks removed.
    pub chunks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Chunks that something of the same owner was promised a moment ago: they go within the grace
    /// period if nothing names them.
    pub left: u64,
}
