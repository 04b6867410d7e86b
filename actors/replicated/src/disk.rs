//! The disk as the write-ahead log and the snapshots see it, and the real one behind it.
//!
//! Owns no data. Everything durable in this crate but chunks goes through [`Disk`], so that a test
//! can put a simulated disk in its place and take away every byte that was not synced.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Seek as _, SeekFrom, Write as _},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

/// A file that only grows.
pub trait DiskFile: Send + 'static {
    /// Adds bytes at the end; they are durable only after [`DiskFile::sync`].
    ///
    /// # Errors
    /// Whatever the disk says. Some of the bytes may have been written, but for a full disk.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// Makes everything appended so far durable.
    ///
    /// # Errors
    /// Whatever the disk says. Never call it again after a failure: the kernel may have dropped
    /// the pages it could not write.
    fn sync(&mut self) -> io::Result<()>;
}

/// A small file that is overwritten in place.
pub trait DiskNote: Send + 'static {
    /// Overwrites it, in at most one page. The end of the process leaves the new content; a power
    /// cut may bring back what the file held at the last [`DiskNote::sync`].
    ///
    /// # Errors
    /// Whatever the disk says.
    fn write(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// Makes the content durable.
    ///
    /// # Errors
    /// Whatever the disk says; as after a failed [`DiskFile::sync`], never call it again.
    fn sync(&mut self) -> io::Result<()>;
}

/// A directory tree; paths are relative with `/` between their parts.
pub trait Disk: Send + Sync + std::fmt::Debug + 'static {
    /// Names of the entries of a directory, sorted; empty if it does not exist.
    ///
    /// # Errors
    /// Whatever the disk says.
    fn list(&self, directory: &str) -> io::Result<Vec<String>>;

    /// A whole file.
    ///
    /// # Errors
    /// `NotFound`, or whatever the disk says.
    fn read(&self, path: &str) -> io::Result<Vec<u8>>;

    /// Replaces a file as a whole, durably: afterwards a crash leaves the new content, before it
    /// the old one.
    ///
    /// # Errors
    /// Whatever the disk says.
    fn write_atomically(&self, path: &str, bytes: &[u8]) -> io::Result<()>;

    /// Makes a new file with `header` as its content, durably.
    ///
    /// # Errors
    /// Whatever the disk says.
    fn create(&self, path: &str, header: &[u8]) -> io::Result<Box<dyn DiskFile>>;

    /// Opens a file for appending after cutting it to `length` bytes, and makes that durable.
    ///
    /// `doubtful` is what its last bytes are: they were read, but may be in the system's cache
    /// alone, marked as written by a sync that failed. They are written again, so that the sync
    /// here means something.
    ///
    /// # Errors
    /// Whatever the disk says.
    fn open_cut(&self, path: &str, length: u64, doubtful: &[u8]) -> io::Result<Box<dyn DiskFile>>;

    /// Opens a note, empty if there was none. [`Disk::read`] reads it.
    ///
    /// # Errors
    /// Whatever the disk says.
    fn open_note(&self, path: &str) -> io::Result<Box<dyn DiskNote>>;

    /// Removes a file durably; one that is not there is no error.
    ///
    /// # Errors
    /// Whatever the disk says.
    fn remove(&self, path: &str) -> io::Result<()>;

    /// Removes a directory with nothing in it; one that is not there is no error.
    ///
    /// # Errors
    /// Whatever the disk says, also that something is in it.
    fn remove_directory(&self, path: &str) -> io::Result<()>;

    /// `Some` for a disk whose calls return at once, on virtual time: the log then runs as a task
    /// of the caller's runtime and sleeps this long per sync, and needs no thread.
    fn virtual_sync_time(&self) -> Option<Duration>;
}

/// A directory of the real file system.
#[derive(Debug, Clone)]
pub struct RealDisk {
    root: PathBuf,
}

impl RealDisk {
    /// The tree below `root`, which is created on first write.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    fn prepare(&self, path: &str) -> io::Result<PathBuf> {
        let full = self.root.join(path);
        if let Some(parent) = full.parent()
            && !parent.is_dir()
        {
            fs::create_dir_all(parent)?;
            for ancestor in parent.ancestors().skip(1) {
                sync_directory(ancestor)?;
                if ancestor == self.root || !ancestor.starts_with(&self.root) {
                    break;
                }
            }
        }
        Ok(full)
    }
}

fn sync_directory(path: &Path) -> io::Result<()> {
    if path.as_os_str().is_empty() { Ok(()) } else { File::open(path)?.sync_all() }
}

fn sync_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), sync_directory)
}

struct RealFile(File);

struct RealNote(File);

impl DiskNote for RealNote {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all_at(bytes, 0)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.0.sync_data()
    }
}

impl DiskFile for RealFile {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let from = self.0.stream_position()?;
        let written = self.0.write_all(bytes);
        if let Err(error) = &written
            && matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
        {
            // Taken back, so that it may be tried again once there is room.
            self.0.set_len(from)?;
            self.0.seek(io::SeekFrom::Start(from))?;
        }
        written
    }

    fn sync(&mut self) -> io::Result<()> {
        self.0.sync_data()
    }
}

impl Disk for RealDisk {
    fn list(&self, directory: &str) -> io::Result<Vec<String>> {
        let entries = match fs::read_dir(self.root.join(directory)) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut names = Vec::new();
        for entry in entries {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        Ok(names)
    }

    fn read(&self, path: &str) -> io::Result<Vec<u8>> {
        fs::read(self.root.join(path))
    }

    fn write_atomically(&self, path: &str, bytes: &[u8]) -> io::Result<()> {
        let full = self.prepare(path)?;
        let temporary = full.with_extension("tmp");
        let mut file = File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, &full)?;
        sync_parent(&full)
    }

    fn create(&self, path: &str, header: &[u8]) -> io::Result<Box<dyn DiskFile>> {
        let full = self.prepare(path)?;
        let mut file = File::create(&full)?;
        file.write_all(header)?;
        file.sync_all()?;
        sync_parent(&full)?;
        Ok(Box::new(RealFile(file)))
    }

    fn open_cut(&self, path: &str, length: u64, doubtful: &[u8]) -> io::Result<Box<dyn DiskFile>> {
        let full = self.root.join(path);
        let mut file = OpenOptions::new().write(true).open(&full)?;
        file.set_len(length)?;
        file.seek(SeekFrom::Start(length.saturating_sub(doubtful.len() as u64)))?;
        file.write_all(doubtful)?;
        file.sync_all()?;
        sync_parent(&full)?;
        // In append mode the place is not that of the end until something is written.
        let mut file = file;
        file.seek(io::SeekFrom::End(0))?;
        Ok(Box::new(RealFile(file)))
    }

    fn open_note(&self, path: &str) -> io::Result<Box<dyn DiskNote>> {
        let full = self.prepare(path)?;
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&full)?;
        file.sync_all()?;
        sync_parent(&full)?;
        Ok(Box::new(RealNote(file)))
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        let full = self.root.join(path);
        match fs::remove_file(&full) {
            Ok(()) => sync_parent(&full),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn remove_directory(&self, path: &str) -> io::Result<()> {
        match fs::remove_dir(self.root.join(path)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn virtual_sync_time(&self) -> Option<Duration> {
        None
    }
}
