//! Content-addressed chunks on one node's disk, scoped per owner.
//!
//! [`ChunkStore`] owns the files, [`ChunkPins`] knows who names which of them. A chunk is content,
//! so it never changes; it is there whole and durable, or not at all.

mod batch;
mod collect;
mod error;
mod files;
mod format;
mod id;
mod index;
mod pins;
mod store;

pub(crate) use batch::Staged;
pub use collect::{GRACE_MIN, RECEIPT_VALID};
pub use error::ChunkError;
pub use files::{ChunkFaults, ChunkRoom, ChunkStep};
pub use id::{ChunkId, ChunkIdError};
pub use pins::{ChunkPins, Heard, Holder, Waiting, Witness};
pub use store::{
    CHUNK_LENGTH_MAX, ChunkCounters, ChunkHold, ChunkStore, ChunkStoreOptions, Collected,
    OwnerUsage,
};
