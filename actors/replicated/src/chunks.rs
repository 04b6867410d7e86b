//! A content-addressed chunk store in one directory, scoped per owner.
//!
//! Owns the files `<directory>/<owner>/<hash>`. A chunk is written to a temporary name and renamed,
//! so a name always stands for whole content as far as the kernel knows; only [`ChunkStore::sync`]
//! makes it survive a power cut. Every read checks the hash: a damaged chunk is set aside and from
//! then on missing, so that it is fetched from a peer and never served.

use std::{
    collections::HashSet,
    fmt,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use callboard_protocol::OwnerId;
use serde::{Deserialize, Serialize};

/// Largest chunk in bytes: it is held in memory while it is hashed and sent.
pub const CHUNK_LENGTH_MAX: usize = 64 << 20;
const TEMPORARY: &str = "tmp-";
const QUARANTINE: &str = "damaged-";

/// The BLAKE3 hash of a chunk's bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ChunkId([u8; 32]);

/// A text is not a chunk id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a chunk id: expected 64 hexadecimal digits")]
pub struct ChunkIdError(String);

impl ChunkId {
    /// The id of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }
}

impl From<[u8; 32]> for ChunkId {
    /// The chunk whose bytes have this blake3 hash.
    fn from(hash: [u8; 32]) -> Self {
        Self(hash)
    }
}

impl fmt::Display for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChunkId({})", hex::encode(&self.0[..6]))
    }
}

impl FromStr for ChunkId {
    type Err = ChunkIdError;
    fn from_str(text: &str) -> Result<Self, ChunkIdError> {
        let mut id = [0; 32];
        hex::decode_to_slice(text, &mut id).map_err(|_| ChunkIdError(text.to_owned()))?;
        Ok(Self(id))
    }
}

impl TryFrom<String> for ChunkId {
    type Error = ChunkIdError;
    fn try_from(text: String) -> Result<Self, ChunkIdError> {
        text.parse()
    }
}

impl From<ChunkId> for String {
    fn from(id: ChunkId) -> Self {
        id.to_string()
    }
}

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
    /// The blocking task was stopped with its runtime.
    #[error("the chunk store is shutting down")]
    Stopped,
}

/// What [`ChunkStore::collect`] did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Collected {
    /// Chunks removed.
    pub chunks: u64,
    /// Their bytes.
    pub bytes: u64,
}

#[derive(Debug)]
struct Inner {
    directory: PathBuf,
    temporaries: AtomicU64,
}

/// The store. Clones share it.
#[derive(Debug, Clone)]
pub struct ChunkStore {
    inner: Arc<Inner>,
}

fn failed<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> ChunkError + 'a {
    move |source| ChunkError::Io { what, path: path.to_owned(), source }
}

fn file_names(directory: &Path) -> Result<Vec<String>, ChunkError> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed("list", directory)(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed("list", directory))?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    Ok(names)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ChunkError> + Send + 'static,
) -> Result<T, ChunkError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| ChunkError::Stopped)?
}

impl ChunkStore {
    /// Opens the store, or begins one, and sweeps what a crash left half written. Blocks.
    ///
    /// # Errors
    /// [`ChunkError::Io`].
    pub fn open(directory: &Path) -> Result<Self, ChunkError> {
        fs::create_dir_all(directory).map_err(failed("make", directory))?;
        for owner in file_names(directory)? {
            let owner = directory.join(owner);
            if !owner.is_dir() {
                continue;
            }
            for name in file_names(&owner)?.iter().filter(|name| name.starts_with(TEMPORARY)) {
                let path = owner.join(name);
                fs::remove_file(&path).map_err(failed("remove", &path))?;
            }
        }
        let inner = Inner { directory: directory.to_owned(), temporaries: AtomicU64::new(0) };
        Ok(Self { inner: Arc::new(inner) })
    }

    fn owner_directory(&self, owner: &OwnerId) -> PathBuf {
        self.inner.directory.join(owner.as_str())
    }

    fn path(&self, owner: &OwnerId, id: ChunkId) -> PathBuf {
        self.owner_directory(owner).join(id.to_string())
    }

    /// Stores bytes under their hash. Durable only after [`ChunkStore::sync`].
    ///
    /// # Errors
    /// [`ChunkError::TooLarge`], [`ChunkError::Io`].
    pub async fn put(&self, owner: &OwnerId, bytes: Bytes) -> Result<ChunkId, ChunkError> {
        if bytes.len() > CHUNK_LENGTH_MAX {
            return Err(ChunkError::TooLarge { length: bytes.len() });
        }
        let (store, owner) = (self.clone(), owner.clone());
        blocking(move || store.put_blocking(&owner, &bytes)).await
    }

    fn put_blocking(&self, owner: &OwnerId, bytes: &[u8]) -> Result<ChunkId, ChunkError> {
        let id = ChunkId::of(bytes);
        let path = self.path(owner, id);
        match fs::read(&path) {
            // A name alone proves nothing: the bytes may have rotted since.
            Ok(present) if present == bytes => {
                let file = File::open(&path).map_err(failed("open", &path))?;
                let touched = file.set_modified(SystemTime::now());
                touched.map_err(failed("touch", &path))?;
                return Ok(id);
            }
            _ => {}
        }
        let directory = self.owner_directory(owner);
        fs::create_dir_all(&directory).map_err(failed("make", &directory))?;
        let number = self.inner.temporaries.fetch_add(1, Ordering::Relaxed);
        let temporary = directory.join(format!("{TEMPORARY}{number}-{id}"));
        fs::write(&temporary, bytes).map_err(failed("write", &temporary))?;
        fs::rename(&temporary, &path).map_err(failed("rename", &temporary))?;
        Ok(id)
    }

    /// Makes chunks durable: their bytes and their names.
    ///
    /// # Errors
    /// [`ChunkError::Missing`], [`ChunkError::Io`]. After a failed sync the chunks must not be
    /// promised to anyone; put them again or restart the node.
    pub async fn sync(&self, owner: &OwnerId, ids: &[ChunkId]) -> Result<(), ChunkError> {
        if ids.is_empty() {
            return Ok(());
        }
        let (store, owner, ids) = (self.clone(), owner.clone(), ids.to_vec());
        blocking(move || {
            for id in ids {
                let path = store.path(&owner, id);
                match File::open(&path) {
                    Ok(file) => file.sync_all().map_err(failed("sync", &path))?,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {
                        return Err(ChunkError::Missing(id));
                    }
                    Err(error) => return Err(failed("open", &path)(error)),
                }
            }
            for directory in [store.owner_directory(&owner), store.inner.directory.clone()] {
                let synced = File::open(&directory).and_then(|file| file.sync_all());
                synced.map_err(failed("sync", &directory))?;
            }
            Ok(())
        })
        .await
    }

    /// A chunk's bytes, if it is here and whole.
    ///
    /// # Errors
    /// [`ChunkError::Corrupt`] when damage is found; from then on the chunk is missing.
    /// [`ChunkError::Io`].
    pub async fn get(&self, owner: &OwnerId, id: ChunkId) -> Result<Option<Bytes>, ChunkError> {
        let path = self.path(owner, id);
        blocking(move || {
            let bytes = match fs::read(&path) {
                Ok(bytes) => bytes,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(failed("read", &path)(error)),
            };
            if ChunkId::of(&bytes) == id {
                return Ok(Some(Bytes::from(bytes)));
            }
            let aside = path.with_file_name(format!("{QUARANTINE}{id}"));
            fs::rename(&path, &aside).map_err(failed("set aside", &path))?;
            tracing::error!(chunk = %id, "a chunk is damaged on this disk; set aside");
            Err(ChunkError::Corrupt(id))
        })
        .await
    }

    /// Whether a chunk is here. Does not look at its bytes.
    #[must_use]
    pub fn has(&self, owner: &OwnerId, id: ChunkId) -> bool {
        self.path(owner, id).is_file()
    }

    /// Those of `ids` that are not here.
    #[must_use]
    pub fn missing(&self, owner: &OwnerId, ids: &[ChunkId]) -> Vec<ChunkId> {
        ids.iter().copied().filter(|id| !self.has(owner, *id)).collect()
    }

    /// Removes the owner's chunks that are not in `live` and were not put within `grace`, and
    /// damaged ones as old.
    ///
    /// # Errors
    /// [`ChunkError::Io`].
    pub async fn collect(
        &self,
        owner: &OwnerId,
        live: &HashSet<ChunkId>,
        grace: Duration,
    ) -> Result<Collected, ChunkError> {
        let (directory, live) = (self.owner_directory(owner), live.clone());
        blocking(move || {
            let mut collected = Collected::default();
            for name in file_names(&directory)? {
                let is_garbage = match name.parse::<ChunkId>() {
                    Ok(id) => !live.contains(&id),
                    Err(_) => name.starts_with(QUARANTINE),
                };
                let path = directory.join(&name);
                let Ok(metadata) = fs::metadata(&path) else { continue };
                let age = metadata.modified().ok().and_then(|then| then.elapsed().ok());
                if is_garbage && age.is_some_and(|age| age >= grace) {
                    fs::remove_file(&path).map_err(failed("remove", &path))?;
                    collected.chunks += 1;
                    collected.bytes += metadata.len();
                }
            }
            Ok(collected)
        })
        .await
    }
}
