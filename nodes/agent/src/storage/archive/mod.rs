//! A copy of the chunks in an object store, for the day on which too many disks are lost.
//!
//! Owns the objects `<prefix>/<cluster>/<owner>/<hash>`. It is a copy and no promise: a cell never
//! waits for it, and what is read from it is checked like everything else.

mod sweep;
mod upload;

use std::{path::Path as FilePath, sync::Arc, time::SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use callboard_protocol::{ClusterId, OwnerId};
use callboard_replicated::{ChunkArchive, ChunkId};
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::{
    Error as StoreError, ObjectStore, PutPayload, aws::AmazonS3Builder, local::LocalFileSystem,
    path::Path,
};

pub(super) use sweep::{Sweeper, forget};
use upload::Queue;

/// The object store cannot be used as configured.
#[derive(Debug, thiserror::Error)]
#[error("object_store_url '{url}': {why}")]
pub struct ArchiveError {
    /// What was configured.
    pub url: String,
    /// What is wrong with it, with a next step.
    pub why: String,
}

/// The chunks of a cluster in an object store.
#[derive(Debug)]
pub struct ObjectArchive {
    objects: Arc<dyn ObjectStore>,
    root: Path,
    queue: Queue,
}

/// An object that stands for a chunk.
#[derive(Debug, Clone)]
pub(super) struct Archived {
    pub id: ChunkId,
    pub written: SystemTime,
}

impl ObjectArchive {
    /// The archive at `url`: `file:///directory`, or `s3://bucket/prefix` with endpoint, region and
    /// keys from the environment (`AWS_ENDPOINT`, `AWS_REGION`, `AWS_ACCESS_KEY_ID`,
    /// `AWS_SECRET_ACCESS_KEY`, `AWS_ALLOW_HTTP`). Empty: none.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub fn open(url: &str, cluster: &ClusterId) -> Result<Option<Arc<Self>>, ArchiveError> {
        let fail = |why: String| ArchiveError { url: url.to_owned(), why };
        if url.is_empty() {
            return Ok(None);
        }
        let (objects, prefix): (Arc<dyn ObjectStore>, &str) =
            if let Some(directory) = url.strip_prefix("file://") {
                (local(FilePath::new(directory)).map_err(fail)?, "")
            } else if let Some(rest) = url.strip_prefix("s3://") {
                let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
                let built = AmazonS3Builder::from_env().with_bucket_name(bucket).build();
                let built = built.map_err(|error| {
                    fail(format!("{error}; set AWS_REGION, AWS_ACCESS_KEY_ID and the like"))
                })?;
                (Arc::new(built), prefix)
            } else {
                let why = "use file:///directory or s3://bucket/prefix, or leave it empty";
                return Err(fail(why.to_owned()));
            };
        let root = Path::from(format!("{prefix}/{cluster}"));
        Ok(Some(Arc::new(Self { objects, root, queue: Queue::default() })))
    }

    fn path(&self, owner: &OwnerId, id: ChunkId) -> Path {
        self.root.child(owner.as_str()).child(id.to_string())
    }

    async fn has(&self, owner: &OwnerId, id: ChunkId) -> Result<bool, String> {
        match self.objects.head(&self.path(owner, id)).await {
            Ok(_) => Ok(true),
            Err(StoreError::NotFound { .. }) => Ok(false),
            Err(error) => Err(error.to_string()),
        }
    }

    async fn write(&self, owner: &OwnerId, id: ChunkId, bytes: Bytes) -> Result<(), String> {
        let written = self.objects.put(&self.path(owner, id), PutPayload::from(bytes)).await;
        written.map(drop).map_err(|error| error.to_string())
    }

    async fn remove(&self, owner: &OwnerId, id: ChunkId) -> Result<(), String> {
        match self.objects.delete(&self.path(owner, id)).await {
            Ok(()) | Err(StoreError::NotFound { .. }) => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Owners that have objects.
    async fn owners(&self) -> Result<Vec<OwnerId>, String> {
        let listed = self.objects.list_with_delimiter(Some(&self.root)).await;
        let listed = listed.map_err(|error| error.to_string())?;
        let names = listed.common_prefixes.iter().filter_map(|path| path.filename());
        Ok(names.filter_map(|name| OwnerId::new(name).ok()).collect())
    }

    /// An owner's chunks.
    async fn list(&self, owner: &OwnerId) -> Result<Vec<Archived>, String> {
        let listed = self.objects.list(Some(&self.root.child(owner.as_str())));
        let found = listed.map(|meta| {
            meta.map(|meta| {
                let id = meta.location.filename()?.parse().ok()?;
                Some(Archived { id, written: meta.last_modified.into() })
            })
        });
        let found: Vec<Option<Archived>> =
            found.try_collect().await.map_err(|error: StoreError| error.to_string())?;
        Ok(found.into_iter().flatten().collect())
    }
}

fn local(directory: &FilePath) -> Result<Arc<dyn ObjectStore>, String> {
    if !directory.is_absolute() {
        return Err("use an absolute directory, as in file:///srv/chunks".to_owned());
    }
    std::fs::create_dir_all(directory).map_err(|error| format!("{error}; make it writable"))?;
    let store = LocalFileSystem::new_with_prefix(directory).map_err(|error| error.to_string())?;
    Ok(Arc::new(store))
}

#[async_trait]
impl ChunkArchive for ObjectArchive {
    async fn read(&self, owner: &OwnerId, id: ChunkId) -> Result<Option<Bytes>, String> {
        match self.objects.get(&self.path(owner, id)).await {
            Ok(found) => found.bytes().await.map(Some).map_err(|error| error.to_string()),
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error.to_string()),
        }
    }

    fn offer(&self, owner: &OwnerId, ids: &[ChunkId]) {
        self.queue.offer(owner, ids);
    }
}

#[cfg(test)]
mod tests;
