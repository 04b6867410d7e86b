//! A file that takes up room until the disk is full: then it is given up, so that what runs can
//! come to its end.

use std::{
    fs::{self, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use callboard_policy::disk::DiskLevel;
use nix::{fcntl::posix_fallocate, sys::statvfs::statvfs};

const FILE: &str = "reserve";
/// Bytes that must be free for a node to start.
const START_BYTES_MIN: u64 = 1 << 20;
/// Between two looks at a disk that is full.
const ROOM_POLL: Duration = Duration::from_secs(1);

/// The reserve of one data directory.
#[derive(Debug)]
pub struct Reserve {
    path: PathBuf,
    bytes: u64,
    held: Mutex<u64>,
}

/// How full the file system of a directory is.
///
/// # Errors
/// What the system says.
pub(crate) fn level(directory: &Path) -> io::Result<DiskLevel> {
    let stat = statvfs(directory).map_err(io::Error::from)?;
    let unit = stat.fragment_size();
    let used = stat.blocks().saturating_sub(stat.blocks_free());
    Ok(DiskLevel {
        used_bytes: used.saturating_mul(unit),
        free_bytes: stat.blocks_available().saturating_mul(unit),
    })
}

/// Waits until there is room enough to start: a log that cannot be written to would only end the
/// process again. A reserve that a former life left is given up for it.
pub(crate) async fn wait_for_room(root: &Path, reserve_bytes: u64) {
    let mut is_told = false;
    while let Ok(now) = level(root)
        && now.free_bytes < START_BYTES_MIN
    {
        if reserve_bytes > 0 && fs::remove_file(root.join(FILE)).is_ok() {
            tracing::error!("the disk is full: its reserve is given up");
            continue;
        }
        if !is_told {
            let (root, free) = (root.display(), now.free_bytes);
            tracing::error!(%root, free, "the disk is full: free space on it, and the node starts");
            is_told = true;
        }
        tokio::time::sleep(ROOM_POLL).await;
    }
}

impl Reserve {
    /// The reserve below `root`, as a former life left it, adjusted to what there is room for.
    #[must_use]
    pub fn open(root: &Path, bytes: u64) -> Self {
        let path = root.join(FILE);
        let held = fs::metadata(&path).map_or(0, |metadata| metadata.len());
        let this = Self { path, bytes, held: Mutex::new(held) };
        if held != bytes {
            this.release();
        }
        this.adjust();
        this
    }

    /// Bytes set aside now.
    #[must_use]
    pub fn held_bytes(&self) -> u64 {
        *self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether chunks of `bytes` may be written to the file system of `root`; if it does not say how
    /// full it is, the write will tell.
    #[must_use]
    pub fn has_room_for_chunks(&self, root: &Path, bytes: u64) -> bool {
        let now = level(root);
        now.map_or(true, |now| now.has_room_for_chunks(bytes, self.held_bytes(), self.bytes))
    }

    /// Gives it up. Returns whether there was one.
    pub fn release(&self) -> bool {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if *held == 0 {
            return false;
        }
        match fs::remove_file(&self.path) {
            Ok(()) => *held = 0,
            Err(error) if error.kind() == io::ErrorKind::NotFound => *held = 0,
            Err(error) => {
                tracing::error!(%error, "the reserve of the disk cannot be given up");
                return false;
            }
        }
        true
    }

    /// Gives it up or sets it aside again, as the disk is; returns how full the disk is then.
    pub fn adjust(&self) -> Option<DiskLevel> {
        let root = self.path.parent()?;
        let now = level(root).ok()?;
        if self.held_bytes() > 0 && now.needs_reserve(self.bytes) {
            if self.release() {
                tracing::error!(bytes = self.bytes, "the disk is full: its reserve is given up");
            }
            return level(root).ok();
        }
        if self.held_bytes() == 0 && self.bytes > 0 && now.has_room_for_reserve(self.bytes) {
            match self.set_aside() {
                Ok(()) => *self.held.lock().unwrap_or_else(PoisonError::into_inner) = self.bytes,
                Err(error) => {
                    let _ = fs::remove_file(&self.path);
                    tracing::warn!(%error, "no reserve could be set aside on the disk");
                }
            }
            return level(root).ok();
        }
        Some(now)
    }

    fn set_aside(&self) -> io::Result<()> {
        let file = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(&self.path)?;
        let length = i64::try_from(self.bytes).unwrap_or(i64::MAX);
        posix_fallocate(&file, 0, length).map_err(io::Error::from)?;
        file.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reserve_takes_up_room_is_given_up_once_and_comes_back() {
        let directory = tempfile::tempdir().unwrap();
        let reserve = Reserve::open(directory.path(), 1 << 20);
        let file = directory.path().join(FILE);
        assert_eq!((reserve.held_bytes(), fs::metadata(&file).unwrap().len()), (1 << 20, 1 << 20));
        assert!(reserve.release() && !file.exists());
        assert!(!reserve.release(), "there is none");
        reserve.adjust().unwrap();
        assert_eq!(reserve.held_bytes(), 1 << 20);
        drop(reserve);
        let smaller = Reserve::open(directory.path(), 1 << 10);
        assert_eq!((smaller.held_bytes(), fs::metadata(&file).unwrap().len()), (1 << 10, 1 << 10));
    }
}
