//! Why the store could not do what it was asked.

use std::{io, path::PathBuf};

use callboard_protocol::OwnerId;

use super::{id::ChunkId, store::CHUNK_LENGTH_MAX};

/// Why the store could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ChunkError {
    /// The disk refused.
    #[error("the chunk store cannot {what} {path}: {source}", path = path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the disk said.
        source: io::Error,
    },
    /// There is no room.
    #[error("the disk is full: cannot {what} {path}; free space on it", path = path.display())]
    Full {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
    },
    /// The owner may not store more on this node.
    #[error(
        "{wanted_bytes} bytes more are over the quota of {quota_bytes} bytes that owner '{owner}' \
         has on this node, of which {used_bytes} are in use; delete variables or stop kernels"
    )]
    OverQuota {
        /// Whose.
        owner: OwnerId,
        /// In use.
        used_bytes: u64,
        /// Asked for.
        wanted_bytes: u64,
        /// Allowed.
        quota_bytes: u64,
    },
    /// The chunk's bytes are not what its name says. It was set aside and is missing now.
    #[error("chunk {0} is damaged on this disk; it was set aside and must be fetched from a peer")]
    Corrupt(ChunkId),
    /// The chunk is not here.
    #[error("chunk {0} is not on this disk")]
    Missing(ChunkId),
    /// Too much for one chunk.
    #[error(
        "{length} bytes are over the limit of {CHUNK_LENGTH_MAX} bytes for one chunk; split it"
    )]
    TooLarge {
        /// How much.
        length: usize,
    },
    /// The store was written by another version.
    #[error(
        "the chunks in {path} have format {found}, this version of Callboard knows format {known}: \
         start the version that wrote them, or move the folder away and let the chunks be fetched \
         from the other nodes",
        path = path.display()
    )]
    Format {
        /// The store.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// The one that can be read.
        known: u32,
    },
    /// What the store says of its version makes no sense.
    #[error(
        "{path} does not say which format the chunks beside it have: restore it from a copy, or \
         move the folder away and let the chunks be fetched from the other nodes",
        path = path.display()
    )]
    FormatUnreadable {
        /// The file.
        path: PathBuf,
    },
    /// A sync failed before: nothing more is promised in this life of the node.
    #[error("the chunk store failed ({0}); the node must be started again")]
    Failed(String),
    /// The blocking task was stopped with its runtime.
    #[error("the chunk store is shutting down")]
    Stopped,
}

impl ChunkError {
    /// Whether the bytes found no room: more of them later may.
    #[must_use]
    pub fn is_no_room(&self) -> bool {
        matches!(self, Self::Full { .. } | Self::OverQuota { .. })
    }
}
