//! What lies on the node's disk: who may put more there, what goes, what is damaged.
//!
//! [`Storage`] is made before the node starts, since its log may find the disk full.
//! [`StorageKeeper`] is the actor that looks after it.

mod archive;
mod collect;
mod disk;
mod keeper;
mod reserve;
mod scrub;

use std::{path::PathBuf, sync::Arc, time::Duration};

use callboard_policy::disk::DiskLevel;
use callboard_replicated::{ChunkPins, ChunkStore};
use tokio::sync::watch;

pub use archive::{ArchiveError, ObjectArchive};
pub use disk::ReservedDisk;
pub(crate) use keeper::{StorageArgs, StorageKeeper};
pub use reserve::Reserve;
pub(crate) use reserve::wait_for_room;

/// How a node's disk is used.
#[derive(Debug, Clone)]
pub struct StorageOptions {
    /// Most bytes of chunks that one owner's kernels may store from this node; 0 for no limit.
    pub owner_quota_bytes: u64,
    /// How long a chunk that nothing names is kept after somebody last put it or was promised it.
    pub chunk_grace: Duration,
    /// How full the disk may be, in percent, before the node takes no new cells.
    pub disk_high_water_percent: u8,
    /// Bytes set aside for a full disk.
    pub disk_reserve_bytes: u64,
    /// Bytes of chunks per second that are read to find damage; 0 reads none.
    pub scrub_bytes_per_s: u64,
    /// Where a copy of the chunks is kept; empty for none.
    pub object_store_url: String,
}

impl Default for StorageOptions {
    fn default() -> Self {
        Self {
            owner_quota_bytes: 0,
            chunk_grace: Duration::from_secs(120),
            disk_high_water_percent: 95,
            disk_reserve_bytes: 64 << 20,
            scrub_bytes_per_s: 4 << 20,
            object_store_url: String::new(),
        }
    }
}

/// A node's disk, as its parts share it.
#[derive(Debug, Clone)]
pub struct Storage {
    /// The chunks.
    pub chunks: ChunkStore,
    /// Who names which of them.
    pub pins: ChunkPins,
    /// Where the disk is looked at.
    pub root: PathBuf,
    /// What is set aside for a full disk.
    pub reserve: Arc<Reserve>,
    /// Where a copy of the chunks is kept, if one is.
    pub archive: Option<Arc<ObjectArchive>>,
    /// How it is used.
    pub options: StorageOptions,
    pub(crate) level: Arc<watch::Sender<disk::Announced>>,
    pub(crate) refusal: Arc<watch::Sender<Option<String>>>,
}

impl Storage {
    /// The parts together.
    #[must_use]
    pub fn new(
        chunks: ChunkStore,
        root: PathBuf,
        reserve: Arc<Reserve>,
        options: StorageOptions,
    ) -> Self {
        Self {
            chunks,
            pins: ChunkPins::default(),
            root,
            reserve,
            archive: None,
            options,
            level: Arc::new(watch::Sender::new(disk::Announced::default())),
            refusal: Arc::new(watch::Sender::new(None)),
        }
    }

    /// The same with a copy of the chunks in an object store.
    #[must_use]
    pub fn with_archive(self, archive: Option<Arc<ObjectArchive>>) -> Self {
        Self { archive, ..self }
    }

    /// Whether garbage is to go as soon as is safe.
    pub(crate) fn is_tight(&self) -> bool {
        let now = self.level.borrow();
        let (used_bytes, free_bytes) = (now.used_bytes, now.free_bytes);
        let level = DiskLevel { used_bytes, free_bytes };
        level.is_tight(self.options.disk_high_water_percent)
    }

    /// Why no new cells are taken, if so.
    #[must_use]
    pub fn refusal(&self) -> watch::Receiver<Option<String>> {
        self.refusal.subscribe()
    }
}
