//! A disk in memory that knows which bytes were synced, for tests that pull the plug.
//!
//! A handle from before a crash is dead: whatever it is asked fails, so that tasks of the crashed
//! node cannot touch what the restarted one reads.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use crate::disk::{Disk, DiskFile, DiskNote};

#[derive(Debug, Default, Clone)]
struct Content {
    bytes: Vec<u8>,
    synced_length: usize,
}

#[derive(Debug, Default, Clone)]
struct NoteContent {
    bytes: Vec<u8>,
    synced: Vec<u8>,
}

#[derive(Debug, Default)]
struct Platter {
    files: BTreeMap<String, Content>,
    notes: BTreeMap<String, NoteContent>,
    generation: u64,
    syncs_until_failure: Option<u64>,
    bytes_until_full: Option<usize>,
    refuses_below: Option<String>,
    sync_count: u64,
}

/// The simulated disk. Clones share the bytes; see [`SimDisk::crash`].
#[derive(Debug, Clone)]
pub struct SimDisk {
    platter: Arc<Mutex<Platter>>,
    generation: u64,
    sync_time: Duration,
}

fn locked(platter: &Mutex<Platter>) -> MutexGuard<'_, Platter> {
    platter.lock().unwrap_or_else(PoisonError::into_inner)
}

fn dead() -> io::Error {
    io::Error::other("this simulated disk handle is from before a crash")
}

impl SimDisk {
    /// An empty disk whose sync takes `sync_time` of virtual time.
    #[must_use]
    pub fn new(sync_time: Duration) -> Self {
        Self { platter: Arc::default(), generation: 0, sync_time }
    }

    /// Pulls the plug: every byte that was not synced is gone, but for the first `torn_bytes` of
    /// each file's unsynced tail. Returns the disk as the next start finds it.
    #[must_use]
    pub fn crash(&self, torn_bytes: usize) -> Self {
        let mut platter = locked(&self.platter);
        platter.generation += 1;
        platter.syncs_until_failure = None;
        platter.bytes_until_full = None;
        platter.refuses_below = None;
        for content in platter.files.values_mut() {
            let kept = content.bytes.len().min(content.synced_length + torn_bytes);
            content.bytes.truncate(kept);
            content.synced_length = kept;
        }
        for note in platter.notes.values_mut() {
            note.bytes.clone_from(&note.synced);
        }
        self.next_life(&platter)
    }

    /// Ends the process alone: the system keeps every byte that was written. Returns the disk as
    /// the next start finds it.
    #[must_use]
    pub fn kill(&self) -> Self {
        let mut platter = locked(&self.platter);
        platter.generation += 1;
        platter.syncs_until_failure = None;
        platter.bytes_until_full = None;
        platter.refuses_below = None;
        self.next_life(&platter)
    }

    fn next_life(&self, platter: &Platter) -> Self {
        Self {
            platter: Arc::clone(&self.platter),
            generation: platter.generation,
            sync_time: self.sync_time,
        }
    }

    /// The sync after the next `count` ones fails.
    pub fn fail_sync_after(&self, count: u64) {
        locked(&self.platter).syncs_until_failure = Some(count);
    }

    /// Writes beyond the next `count` bytes fail for lack of space, after a short write.
    pub fn full_after(&self, count: usize) {
        locked(&self.platter).bytes_until_full = Some(count);
    }

    /// Whole files below `path` cannot be written until the next crash.
    pub fn refuse_below(&self, path: &str) {
        locked(&self.platter).refuses_below = Some(path.to_owned());
    }

    /// Turns one bit over. Bits of a byte count from the lowest.
    pub fn flip_bit(&self, path: &str, byte: usize, bit: u8) {
        if let Some(content) = locked(&self.platter).files.get_mut(path)
            && let Some(byte) = content.bytes.get_mut(byte)
        {
            *byte ^= 1 << (bit % 8);
        }
    }

    /// Cuts the last `count` bytes off a file, synced or not.
    pub fn cut_tail(&self, path: &str, count: usize) {
        if let Some(content) = locked(&self.platter).files.get_mut(path) {
            content.bytes.truncate(content.bytes.len().saturating_sub(count));
            content.synced_length = content.synced_length.min(content.bytes.len());
        }
    }

    /// Every file with its content, but no notes.
    #[must_use]
    pub fn files(&self) -> BTreeMap<String, Vec<u8>> {
        locked(&self.platter).files.iter().map(|(k, v)| (k.clone(), v.bytes.clone())).collect()
    }

    /// How many syncs were carried out.
    #[must_use]
    pub fn sync_count(&self) -> u64 {
        locked(&self.platter).sync_count
    }

    fn live(&self) -> io::Result<MutexGuard<'_, Platter>> {
        let platter = locked(&self.platter);
        if platter.generation == self.generation { Ok(platter) } else { Err(dead()) }
    }
}

struct SimFile {
    disk: SimDisk,
    path: String,
}

impl DiskFile for SimFile {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut platter = self.disk.live()?;
        let room = platter.bytes_until_full.unwrap_or(usize::MAX);
        let written = bytes.len().min(room);
        if let Some(left) = &mut platter.bytes_until_full {
            *left -= written;
        }
        let content = platter.files.get_mut(&self.path).ok_or(io::ErrorKind::NotFound)?;
        content.bytes.extend_from_slice(&bytes[..written]);
        if written < bytes.len() { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut platter = self.disk.live()?;
        platter.sync_count += 1;
        match &mut platter.syncs_until_failure {
            Some(0) => return Err(io::Error::other("simulated fsync failure")),
            Some(left) => *left -= 1,
            None => {}
        }
        let content = platter.files.get_mut(&self.path).ok_or(io::ErrorKind::NotFound)?;
        content.synced_length = content.bytes.len();
        Ok(())
    }
}

struct SimNote {
    disk: SimDisk,
    path: String,
}

impl DiskNote for SimNote {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut platter = self.disk.live()?;
        platter.notes.entry(self.path.clone()).or_default().bytes = bytes.to_vec();
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut platter = self.disk.live()?;
        let note = platter.notes.entry(self.path.clone()).or_default();
        note.synced.clone_from(&note.bytes);
        Ok(())
    }
}

impl Disk for SimDisk {
    fn list(&self, directory: &str) -> io::Result<Vec<String>> {
        let platter = self.live()?;
        let prefix = format!("{directory}/");
        let mut names: Vec<String> = platter
            .files
            .keys()
            .filter_map(|path| path.strip_prefix(&prefix))
            .map(|rest| rest.split('/').next().unwrap_or(rest).to_owned())
            .collect();
        names.dedup();
        Ok(names)
    }

    fn read(&self, path: &str) -> io::Result<Vec<u8>> {
        let platter = self.live()?;
        if let Some(note) = platter.notes.get(path) {
            return Ok(note.bytes.clone());
        }
        Ok(platter.files.get(path).ok_or(io::ErrorKind::NotFound)?.bytes.clone())
    }

    fn write_atomically(&self, path: &str, bytes: &[u8]) -> io::Result<()> {
        let content = Content { bytes: bytes.to_vec(), synced_length: bytes.len() };
        let mut platter = self.live()?;
        if platter.refuses_below.as_ref().is_some_and(|below| path.starts_with(below.as_str())) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        platter.files.insert(path.to_owned(), content);
        Ok(())
    }

    fn create(&self, path: &str, header: &[u8]) -> io::Result<Box<dyn DiskFile>> {
        self.write_atomically(path, header)?;
        Ok(Box::new(SimFile { disk: self.clone(), path: path.to_owned() }))
    }

    fn open_cut(&self, path: &str, length: u64, doubtful: &[u8]) -> io::Result<Box<dyn DiskFile>> {
        let mut platter = self.live()?;
        let content = platter.files.get_mut(path).ok_or(io::ErrorKind::NotFound)?;
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        content.bytes.truncate(length.saturating_sub(doubtful.len()));
        content.bytes.extend_from_slice(doubtful);
        content.synced_length = content.bytes.len();
        Ok(Box::new(SimFile { disk: self.clone(), path: path.to_owned() }))
    }

    fn open_note(&self, path: &str) -> io::Result<Box<dyn DiskNote>> {
        self.live()?.notes.entry(path.to_owned()).or_default();
        Ok(Box::new(SimNote { disk: self.clone(), path: path.to_owned() }))
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        self.live()?.files.remove(path);
        Ok(())
    }

    fn remove_directory(&self, _path: &str) -> io::Result<()> {
        // Directories are parts of names here.
        self.live().map(|_| ())
    }

    fn virtual_sync_time(&self) -> Option<Duration> {
        Some(self.sync_time)
    }
}
