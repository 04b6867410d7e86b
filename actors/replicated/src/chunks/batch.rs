//! Many chunks at once: staged under temporary names, made durable with few syncs, then named.

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
    sync::atomic::Ordering,
};

use bytes::Bytes;
use callboard_protocol::OwnerId;
use tokio::time::Instant;

use super::{
    error::ChunkError,
    files::{self, ChunkStep, failed},
    id::ChunkId,
    store::{CHUNK_LENGTH_MAX, ChunkStore, TEMPORARY, blocking},
};

/// A chunk's bytes under a temporary name. Dropped without a commit, they are removed.
#[derive(Debug)]
pub(crate) struct Staged {
    id: ChunkId,
    length: u64,
    temporary: PathBuf,
}

impl Drop for Staged {
    fn drop(&mut self) {
        if !self.is_named() {
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

impl Staged {
    pub(crate) fn id(&self) -> ChunkId {
        self.id
    }

    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    fn named(&mut self) {
        self.temporary = PathBuf::new();
    }

    fn is_named(&self) -> bool {
        self.temporary.as_os_str().is_empty()
    }
}

impl ChunkStore {
    /// Stores one chunk; see [`ChunkStore::put_many`].
    ///
    /// # Errors
    /// Those of [`ChunkStore::put_many`].
    pub async fn put(&self, owner: &OwnerId, bytes: Bytes) -> Result<ChunkId, ChunkError> {
        let id = ChunkId::of(&bytes);
        self.put_many(owner, vec![(id, bytes)]).await.map(|()| id)
    }

    /// Stores chunks under their hashes; `Ok` means that all of them are durable. A chunk that is
    /// there already is compared, not written.
    ///
    /// # Errors
    /// [`ChunkError::TooLarge`], [`ChunkError::OverQuota`], [`ChunkError::Full`],
    /// [`ChunkError::Io`]: some of the chunks may be there then. After a failed sync
    /// [`ChunkStore::failed`] says so, and nothing is stored any more.
    pub async fn put_many(
        &self,
        owner: &OwnerId,
        chunks: Vec<(ChunkId, Bytes)>,
    ) -> Result<(), ChunkError> {
        let (store, owner) = (self.clone(), owner.clone());
        blocking(move || {
            let new = store.new_among(&owner, chunks);
            store.check_quota(&owner, &new)?;
            let staged = new.iter().map(|(id, bytes)| store.stage(&owner, *id, bytes));
            let staged = staged.collect::<Result<Vec<_>, _>>()?;
            store.commit(&owner, staged)
        })
        .await
    }

    /// Stores one chunk whose hash was checked, from another node: no quota.
    pub(crate) async fn take(
        &self,
        owner: &OwnerId,
        id: ChunkId,
        bytes: Bytes,
    ) -> Result<(), ChunkError> {
        let (store, owner) = (self.clone(), owner.clone());
        blocking(move || {
            let staged = store.stage(&owner, id, &bytes)?;
            store.commit(&owner, vec![staged])
        })
        .await
    }

    /// Those that are not here whole, each once; the others count as touched.
    fn new_among(
        &self,
        owner: &OwnerId,
        mut chunks: Vec<(ChunkId, Bytes)>,
    ) -> Vec<(ChunkId, Bytes)> {
        let mut seen = HashSet::new();
        chunks.retain(|(id, bytes)| seen.insert(*id) && !self.is_here(owner, *id, bytes));
        chunks
    }

    /// A name alone proves nothing: the bytes may have rotted since.
    fn is_here(&self, owner: &OwnerId, id: ChunkId, bytes: &[u8]) -> bool {
        self.has(owner, id)
            && fs::read(self.path(owner, id)).is_ok_and(|present| present == bytes)
            && self.index().owner(owner).touch(id, Instant::now())
    }

    fn check_quota(&self, owner: &OwnerId, new: &[(ChunkId, Bytes)]) -> Result<(), ChunkError> {
        let quota_bytes = self.inner.options.owner_quota_bytes;
        let wanted_bytes: u64 = new.iter().map(|(_, bytes)| bytes.len() as u64).sum();
        let used_bytes = self.index().owner(owner).bytes;
        if quota_bytes == 0 || wanted_bytes == 0 || used_bytes + wanted_bytes <= quota_bytes {
            return Ok(());
        }
        let owner = owner.clone();
        Err(ChunkError::OverQuota { owner, used_bytes, wanted_bytes, quota_bytes })
    }

    /// Writes a chunk under a temporary name. Blocks.
    pub(crate) fn stage(
        &self,
        owner: &OwnerId,
        id: ChunkId,
        bytes: &[u8],
    ) -> Result<Staged, ChunkError> {
        if bytes.len() > CHUNK_LENGTH_MAX {
            return Err(ChunkError::TooLarge { length: bytes.len() });
        }
        self.check_failed()?;
        let directory = self.owner_directory(owner);
        if !directory.is_dir() {
            fs::create_dir_all(&directory).map_err(failed("make", &directory))?;
            self.synced(files::sync_directory(&self.inner.options.faults, &self.inner.directory))?;
        }
        let number = self.inner.temporaries.fetch_add(1, Ordering::Relaxed);
        let temporary = directory.join(format!("{TEMPORARY}{number}-{id}"));
        let options = &self.inner.options;
        files::write((&options.room, &options.faults), &temporary, bytes)?;
        Ok(Staged { id, length: bytes.len() as u64, temporary })
    }

    /// Makes staged chunks durable and names them. Blocks.
    pub(crate) fn commit(
        &self,
        owner: &OwnerId,
        mut staged: Vec<Staged>,
    ) -> Result<(), ChunkError> {
        if staged.is_empty() {
            return self.check_failed();
        }
        self.check_failed()?;
        let faults = &self.inner.options.faults;
        let temporaries: Vec<PathBuf> = staged.iter().map(|it| it.temporary.clone()).collect();
        self.synced(files::sync_all(faults, &self.inner.anchor, &temporaries))?;
        let named = staged.iter_mut().try_for_each(|it| self.name(owner, it));
        self.synced(files::sync_directory(faults, &self.owner_directory(owner)))?;
        let (mut index, now) = (self.index(), Instant::now());
        let of_owner = index.owner(owner);
        for it in staged.iter().filter(|it| it.is_named()) {
            of_owner.insert(it.id, it.length, now);
            self.inner.counters.stored_bytes.fetch_add(it.length, Ordering::Relaxed);
        }
        named
    }

    fn name(&self, owner: &OwnerId, staged: &mut Staged) -> Result<(), ChunkError> {
        let path: &Path = &self.path(owner, staged.id);
        // Under the lock, so that the collector cannot take the new file for the old one.
        let mut index = self.index();
        index.owner(owner).remove(staged.id);
        let rename = || {
            self.inner.options.faults.check(ChunkStep::Rename)?;
            fs::rename(&staged.temporary, path)
        };
        rename().map_err(failed("rename", path))?;
        staged.named();
        Ok(())
    }

    /// A failed sync is final: the kernel may have dropped the pages it could not write.
    fn synced(&self, result: Result<(), ChunkError>) -> Result<(), ChunkError> {
        result.inspect_err(|error| self.fail(error))
    }

    /// Of `ids`, those that are here; they are read and checked with `verify`, and count as touched
    /// then. Blocks.
    pub(crate) fn present(&self, owner: &OwnerId, ids: &[ChunkId], verify: bool) -> Vec<ChunkId> {
        let present = ids.iter().copied().filter(|id| {
            if !verify {
                return self.has(owner, *id);
            }
            self.has(owner, *id)
                && matches!(self.get_blocking(owner, *id), Ok(Some(_)))
                && self.index().owner(owner).touch(*id, Instant::now())
        });
        present.collect()
    }

    /// Of `ids`, those that are here; they count as touched.
    pub(crate) fn keep(&self, owner: &OwnerId, ids: &[ChunkId]) -> Vec<ChunkId> {
        let (mut index, now) = (self.index(), Instant::now());
        let of_owner = index.owner(owner);
        ids.iter().copied().filter(|id| of_owner.touch(*id, now)).collect()
    }

    /// Bytes of those of `ids` that are here.
    pub(crate) fn length_of(&self, owner: &OwnerId, ids: &[ChunkId]) -> u64 {
        let index = self.index();
        ids.iter().filter_map(|id| index.entry(owner, *id)).map(|entry| entry.length).sum()
    }
}
