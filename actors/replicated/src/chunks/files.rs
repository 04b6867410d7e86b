//! The steps the store does on files, each of which may fail, also on a test's wish.

use std::{
    fmt,
    fs::{self, File},
    io::{self, Write as _},
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

use super::error::ChunkError;

/// From this many new files on, one `syncfs` of the whole file system is cheaper than an fsync per
/// file, though others' dirty pages may be among what it waits for.
const SYNCFS_FROM: usize = 48;
/// Threads that fsync at once below that: the file system commits them together.
const SYNC_THREADS: usize = 4;

/// A step that can fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ChunkStep {
    /// Writing a chunk's bytes under a temporary name.
    Write,
    /// Making bytes durable.
    Sync,
    /// Giving a chunk its name.
    Rename,
    /// Making names durable.
    SyncDirectory,
    /// Reading a chunk.
    Read,
}

type Fault = dyn Fn(ChunkStep) -> io::Result<()> + Send + Sync;

/// Lets a test make steps fail.
#[derive(Clone, Default)]
pub struct ChunkFaults(Option<Arc<Fault>>);

impl ChunkFaults {
    /// Asks `fault` before every step; its error is the step's.
    pub fn new(fault: impl Fn(ChunkStep) -> io::Result<()> + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(fault)))
    }

    pub(super) fn check(&self, step: ChunkStep) -> io::Result<()> {
        self.0.as_ref().map_or(Ok(()), |fault| fault(step))
    }
}

impl fmt::Debug for ChunkFaults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "ChunkFaults(some)" } else { "ChunkFaults(none)" })
    }
}

type Room = dyn Fn(u64) -> bool + Send + Sync;

/// Whether there is room for more chunks. A disk is full for chunks before it is full: they are most
/// of what lies on it, and the log must go on.
#[derive(Clone, Default)]
pub struct ChunkRoom(Option<Arc<Room>>);

impl ChunkRoom {
    /// Asks `is_there` before every write, with the bytes to be written. Otherwise the disk decides.
    pub fn new(is_there: impl Fn(u64) -> bool + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(is_there)))
    }

    fn check(&self, bytes: &[u8]) -> io::Result<()> {
        let is_there = self.0.as_ref().is_none_or(|is_there| is_there(bytes.len() as u64));
        if is_there { Ok(()) } else { Err(io::ErrorKind::StorageFull.into()) }
    }
}

impl fmt::Debug for ChunkRoom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "ChunkRoom(limited)" } else { "ChunkRoom(the disk's)" })
    }
}

/// What a refusal of the disk means.
pub(super) fn failed<'a>(
    what: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> ChunkError + 'a {
    move |source| match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            ChunkError::Full { what, path: path.to_owned() }
        }
        _ => ChunkError::Io { what, path: path.to_owned(), source },
    }
}

pub(super) fn names(directory: &Path) -> Result<Vec<String>, ChunkError> {
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

/// Writes a new file; what was written of it is removed if that fails.
pub(super) fn write(
    (room, faults): (&ChunkRoom, &ChunkFaults),
    path: &Path,
    bytes: &[u8],
) -> Result<(), ChunkError> {
    let write = || {
        room.check(bytes)?;
        faults.check(ChunkStep::Write)?;
        fs::write(path, bytes)
    };
    write().map_err(|error| {
        let _ = fs::remove_file(path);
        failed("write", path)(error)
    })
}

/// Replaces a small file durably.
pub(super) fn write_small(path: &Path, bytes: &[u8]) -> Result<(), ChunkError> {
    let beside = path.with_extension("new");
    let write = || {
        let mut file = File::create(&beside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&beside, path)?;
        path.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
    };
    write().map_err(failed("write", path))
}

/// Makes the bytes of new files durable, with few syncs. `anchor` is an open directory of their
/// file system.
pub(super) fn sync_all(
    faults: &ChunkFaults,
    anchor: &File,
    paths: &[PathBuf],
) -> Result<(), ChunkError> {
    let Some(first) = paths.first() else { return Ok(()) };
    faults.check(ChunkStep::Sync).map_err(failed("sync", first))?;
    if paths.len() >= SYNCFS_FROM {
        let synced = nix::unistd::syncfs(anchor.as_fd()).map_err(io::Error::from);
        return synced.map_err(failed("sync", first));
    }
    let sync = |path: &PathBuf| {
        File::open(path).and_then(|file| file.sync_all()).map_err(failed("sync", path))
    };
    if paths.len() == 1 {
        return sync(first);
    }
    let share = paths.len().div_ceil(SYNC_THREADS);
    thread::scope(|scope| {
        let shares: Vec<_> = paths
            .chunks(share)
            .map(|share| scope.spawn(move || share.iter().try_for_each(sync)))
            .collect();
        shares.into_iter().try_for_each(|share| match share.join() {
            Ok(result) => result,
            Err(_) => Err(failed("sync", first)(io::Error::other("a thread ended early"))),
        })
    })
}

/// Makes names in a directory durable.
pub(super) fn sync_directory(faults: &ChunkFaults, path: &Path) -> Result<(), ChunkError> {
    let sync = || {
        faults.check(ChunkStep::SyncDirectory)?;
        File::open(path)?.sync_all()
    };
    sync().map_err(failed("sync", path))
}
