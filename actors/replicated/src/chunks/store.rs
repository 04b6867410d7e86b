//! The chunk store: files `<directory>/<owner>/<hash>`.
//!
//! A chunk is written under a temporary name, made durable, and only then given its own name: a
//! name stands for whole content, also after a power cut. Every read checks the hash: a damaged
//! chunk is set aside and from then on missing, so that it is fetched from a peer and never served.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use callboard_protocol::OwnerId;
use tokio::{sync::watch, time::Instant};

use super::{
    error::ChunkError,
    files::{self, ChunkFaults, ChunkRoom, ChunkStep, failed},
    format,
    id::ChunkId,
    index::{Damage, Index},
};

/// Largest chunk in bytes: it is held in memory while it is hashed and sent.
pub const CHUNK_LENGTH_MAX: usize = 64 << 20;
pub(super) const TEMPORARY: &str = "tmp-";
pub(super) const QUARANTINE: &str = "damaged-";

/// What was collected.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Collected {
    /// Chunks removed.
    pub chunks: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// What an owner has on the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnerUsage {
    /// Whose.
    pub owner: OwnerId,
    /// Whole chunks.
    pub chunks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Chunks found damaged and set aside.
    pub damaged: u64,
}

/// What moved, in this life of the node.
#[derive(Debug, Default)]
pub struct ChunkCounters {
    /// Bytes of chunks written to the disk.
    pub stored_bytes: AtomicU64,
    /// Bytes of chunks sent to other nodes.
    pub sent_bytes: AtomicU64,
    /// Bytes of chunks received from other nodes.
    pub received_bytes: AtomicU64,
    /// Bytes that were to be sent and that the receiver had already.
    pub spared_bytes: AtomicU64,
    /// Chunks found damaged.
    pub damaged_chunks: AtomicU64,
    /// Chunks collected.
    pub collected_chunks: AtomicU64,
    /// Bytes collected.
    pub collected_bytes: AtomicU64,
}

impl ChunkCounters {
    pub(crate) fn add(counter: &AtomicU64, by: usize) {
        counter.fetch_add(by as u64, Ordering::Relaxed);
    }
}

/// How a store is run.
#[derive(Debug, Clone, Default)]
pub struct ChunkStoreOptions {
    /// Bytes that one owner may store from this node's kernels; 0 for no limit. What other nodes
    /// send is not counted against it: they have checked.
    pub owner_quota_bytes: u64,
    /// Where chunks must leave room for others.
    pub room: ChunkRoom,
    /// Steps that fail, for tests.
    pub faults: ChunkFaults,
}

#[derive(Debug)]
pub(super) struct Inner {
    pub directory: PathBuf,
    /// Open before anything is written, so that `syncfs` on it reports every failed write since.
    pub anchor: File,
    pub options: ChunkStoreOptions,
    pub temporaries: AtomicU64,
    index: Mutex<Index>,
    failed: watch::Sender<Option<String>>,
    damage: watch::Sender<u64>,
    pub counters: ChunkCounters,
}

/// The store. Clones share it.
#[derive(Debug, Clone)]
pub struct ChunkStore {
    pub(super) inner: Arc<Inner>,
}

/// Keeps chunks from being collected for as long as it lives.
#[derive(Debug)]
pub struct ChunkHold {
    store: ChunkStore,
    owner: OwnerId,
    ids: Vec<ChunkId>,
}

impl Drop for ChunkHold {
    fn drop(&mut self) {
        let (mut index, now) = (self.store.index(), Instant::now());
        let owner = index.owner(&self.owner);
        for id in &self.ids {
            owner.release(*id);
            owner.touch(*id, now);
        }
    }
}

pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ChunkError> + Send + 'static,
) -> Result<T, ChunkError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| ChunkError::Stopped)?
}

impl ChunkStore {
    /// Opens the store, or begins one, with default options. Blocks.
    ///
    /// # Errors
    /// [`ChunkStore::open_with`]'s.
    pub fn open(directory: &Path) -> Result<Self, ChunkError> {
        Self::open_with(directory, ChunkStoreOptions::default())
    }

    /// Opens the store, or begins one, and sweeps what a crash left half written. Blocks.
    ///
    /// # Errors
    /// [`ChunkError::Io`], [`ChunkError::Full`], [`ChunkError::Format`],
    /// [`ChunkError::FormatUnreadable`].
    pub fn open_with(directory: &Path, options: ChunkStoreOptions) -> Result<Self, ChunkError> {
        fs::create_dir_all(directory).map_err(failed("make", directory))?;
        let anchor = File::open(directory).map_err(failed("open", directory))?;
        format::check(directory)?;
        let mut index = Index::default();
        for name in files::names(directory)? {
            let path = directory.join(&name);
            if let Ok(owner) = OwnerId::new(name)
                && path.is_dir()
            {
                scan(&path, &owner, &mut index)?;
                // A name that a former life did not get to sync may be promised now.
                files::sync_directory(&options.faults, &path)?;
            }
        }
        let inner = Inner {
            directory: directory.to_owned(),
            anchor,
            options,
            temporaries: AtomicU64::new(0),
            index: Mutex::new(index),
            failed: watch::Sender::new(None),
            damage: watch::Sender::new(0),
            counters: ChunkCounters::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    pub(super) fn index(&self) -> MutexGuard<'_, Index> {
        self.inner.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn owner_directory(&self, owner: &OwnerId) -> PathBuf {
        self.inner.directory.join(owner.as_str())
    }

    pub(super) fn path(&self, owner: &OwnerId, id: ChunkId) -> PathBuf {
        self.owner_directory(owner).join(id.to_string())
    }

    /// Follows whether a sync failed; `Some` says why. Then nothing is promised any more and the
    /// process must be started again.
    #[must_use]
    pub fn failed(&self) -> watch::Receiver<Option<String>> {
        self.inner.failed.subscribe()
    }

    pub(super) fn fail(&self, why: &ChunkError) {
        tracing::error!(%why, "the chunk store cannot promise anything any more");
        self.inner.failed.send_if_modified(|failed| {
            let is_first = failed.is_none();
            failed.get_or_insert_with(|| why.to_string());
            is_first
        });
    }

    pub(crate) fn check_failed(&self) -> Result<(), ChunkError> {
        match &*self.inner.failed.borrow() {
            Some(why) => Err(ChunkError::Failed(why.clone())),
            None => Ok(()),
        }
    }

    /// Changes whenever a chunk was found damaged: whoever names it should fetch it anew.
    #[must_use]
    pub fn damage(&self) -> watch::Receiver<u64> {
        self.inner.damage.subscribe()
    }

    /// Chunks found damaged and set aside, and whether their bytes are here again.
    #[must_use]
    pub fn damaged(&self) -> Vec<(OwnerId, ChunkId, bool)> {
        let index = self.index();
        let owners = index.owners.iter();
        owners
            .flat_map(|(owner, it)| {
                it.damaged.iter().map(|(id, damage)| (owner.clone(), *id, damage.is_repaired))
            })
            .collect()
    }

    /// An owner's chunks, sorted.
    #[must_use]
    pub fn list(&self, owner: &OwnerId) -> Vec<ChunkId> {
        let index = self.index();
        let mut ids: Vec<ChunkId> = index
            .owners
            .get(owner)
            .map(|it| it.chunks.keys().copied().collect())
            .unwrap_or_default();
        ids.sort_unstable();
        ids
    }

    /// What moved, in this life of the node.
    #[must_use]
    pub fn counters(&self) -> &ChunkCounters {
        &self.inner.counters
    }

    /// A chunk's bytes, if it is here and whole.
    ///
    /// # Errors
    /// [`ChunkError::Corrupt`] when damage is found; from then on the chunk is missing.
    /// [`ChunkError::Io`].
    pub async fn get(&self, owner: &OwnerId, id: ChunkId) -> Result<Option<Bytes>, ChunkError> {
        let (store, owner) = (self.clone(), owner.clone());
        blocking(move || store.get_blocking(&owner, id)).await
    }

    pub(crate) fn get_blocking(
        &self,
        owner: &OwnerId,
        id: ChunkId,
    ) -> Result<Option<Bytes>, ChunkError> {
        let path = self.path(owner, id);
        let Some(bytes) = self.read(&path)? else {
            if self.index().owner(owner).remove(id).is_some() {
                tracing::error!(chunk = %id, "a chunk vanished from this disk");
            }
            return Ok(None);
        };
        if ChunkId::of(&bytes) == id {
            return Ok(Some(Bytes::from(bytes)));
        }
        self.set_aside(owner, id)?;
        Err(ChunkError::Corrupt(id))
    }

    fn read(&self, path: &Path) -> Result<Option<Vec<u8>>, ChunkError> {
        self.inner.options.faults.check(ChunkStep::Read).map_err(failed("read", path))?;
        match fs::read(path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("read", path)(error)),
        }
    }

    fn set_aside(&self, owner: &OwnerId, id: ChunkId) -> Result<(), ChunkError> {
        let path = self.path(owner, id);
        let mut index = self.index();
        // Somebody may have put it again since it was read.
        if self.read(&path)?.is_none_or(|bytes| ChunkId::of(&bytes) == id) {
            return Ok(());
        }
        let aside = path.with_file_name(format!("{QUARANTINE}{id}"));
        fs::rename(&path, &aside).map_err(failed("set aside", &path))?;
        let of_owner = index.owner(owner);
        of_owner.remove(id);
        of_owner.damaged.insert(id, Damage { since: Instant::now(), is_repaired: false });
        self.inner.damage.send_modify(|count| *count += 1);
        ChunkCounters::add(&self.inner.counters.damaged_chunks, 1);
        tracing::error!(chunk = %id, %owner, "a chunk is damaged on this disk; set aside");
        Ok(())
    }

    /// Whether a chunk is here. Does not look at its bytes.
    #[must_use]
    pub fn has(&self, owner: &OwnerId, id: ChunkId) -> bool {
        self.index().entry(owner, id).is_some()
    }

    /// Those of `ids` that are not here.
    #[must_use]
    pub fn missing(&self, owner: &OwnerId, ids: &[ChunkId]) -> Vec<ChunkId> {
        let index = self.index();
        ids.iter().copied().filter(|id| index.entry(owner, *id).is_none()).collect()
    }

    /// Keeps chunks from being collected, whether they are here already or not, until the hold is
    /// dropped; then they count as just touched.
    #[must_use]
    pub fn hold(&self, owner: &OwnerId, ids: &[ChunkId]) -> ChunkHold {
        let mut index = self.index();
        let of_owner = index.owner(owner);
        ids.iter().for_each(|id| of_owner.hold(*id));
        ChunkHold { store: self.clone(), owner: owner.clone(), ids: ids.to_vec() }
    }

    /// Owners that have chunks here, and how much.
    #[must_use]
    pub fn usage(&self) -> Vec<OwnerUsage> {
        let index = self.index();
        let owners = index.owners.iter();
        owners
            .map(|(owner, of_owner)| OwnerUsage {
                owner: owner.clone(),
                chunks: of_owner.chunks.len() as u64,
                bytes: of_owner.bytes,
                damaged: of_owner.damaged.len() as u64,
            })
            .filter(|usage| usage.chunks > 0 || usage.damaged > 0)
            .collect()
    }
}

pub(super) fn remove_file(path: &Path) -> Result<(), ChunkError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Reads what one owner has, and removes what was half written.
fn scan(directory: &Path, owner: &OwnerId, index: &mut Index) -> Result<(), ChunkError> {
    let now = Instant::now();
    let of_owner = index.owner(owner);
    for name in files::names(directory)? {
        let path = directory.join(&name);
        if name.starts_with(TEMPORARY) {
            remove_file(&path)?;
        } else if let Some(Ok(id)) = name.strip_prefix(QUARANTINE).map(str::parse) {
            of_owner.damaged.insert(id, Damage { since: now, is_repaired: false });
        } else if let Ok(id) = name.parse() {
            let length = fs::metadata(&path).map_err(failed("look at", &path))?.len();
            of_owner.inherit(id, length, now);
        }
    }
    Ok(())
}
