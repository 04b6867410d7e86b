//! A disk that gives its reserve up before it fails.

use std::{io, sync::Arc, time::Duration};

use callboard_protocol::storage::DiskBeat;
use callboard_replicated::{
    Disk,
    disk::{DiskFile, DiskNote},
};

use super::reserve::Reserve;

/// What the node says of its disk.
#[derive(Debug, Clone, Default)]
pub(crate) struct Announced {
    pub beat: DiskBeat,
    pub used_bytes: u64,
    pub free_bytes: u64,
}

/// A disk that is tried again with its reserve given up when it is full: the log must be able to
/// write, so that a cell that runs can end.
#[derive(Debug)]
pub struct ReservedDisk {
    disk: Arc<dyn Disk>,
    reserve: Arc<Reserve>,
}

impl ReservedDisk {
    /// `disk` with its reserve.
    pub fn new(disk: Arc<dyn Disk>, reserve: Arc<Reserve>) -> Self {
        Self { disk, reserve }
    }

    fn wrap(&self, file: Box<dyn DiskFile>) -> Box<dyn DiskFile> {
        Box::new(ReservedFile { file, reserve: self.reserve.clone() })
    }
}

struct ReservedFile {
    file: Box<dyn DiskFile>,
    reserve: Arc<Reserve>,
}

/// Does it, and once more without the reserve if the disk is full.
fn with_reserve<T>(reserve: &Reserve, mut act: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    match act() {
        Err(error) if is_full(&error) && reserve.release() => {
            tracing::error!(%error, "the disk is full: its reserve is given up");
            act()
        }
        done => done,
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

impl DiskFile for ReservedFile {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        // A file that found no room has taken back what it wrote of it.
        with_reserve(&self.reserve, || self.file.append(bytes))
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.sync()
    }
}

impl Disk for ReservedDisk {
    fn list(&self, directory: &str) -> io::Result<Vec<String>> {
        self.disk.list(directory)
    }

    fn read(&self, path: &str) -> io::Result<Vec<u8>> {
        self.disk.read(path)
    }

    fn write_atomically(&self, path: &str, bytes: &[u8]) -> io::Result<()> {
        with_reserve(&self.reserve, || self.disk.write_atomically(path, bytes))
    }

    fn create(&self, path: &str, header: &[u8]) -> io::Result<Box<dyn DiskFile>> {
        let file = with_reserve(&self.reserve, || self.disk.create(path, header))?;
        Ok(self.wrap(file))
    }

    fn open_cut(&self, path: &str, length: u64, doubtful: &[u8]) -> io::Result<Box<dyn DiskFile>> {
        let file = with_reserve(&self.reserve, || self.disk.open_cut(path, length, doubtful))?;
        Ok(self.wrap(file))
    }

    fn open_note(&self, path: &str) -> io::Result<Box<dyn DiskNote>> {
        with_reserve(&self.reserve, || self.disk.open_note(path))
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        self.disk.remove(path)
    }

    fn remove_directory(&self, path: &str) -> io::Result<()> {
        self.disk.remove_directory(path)
    }

    fn virtual_sync_time(&self) -> Option<Duration> {
        self.disk.virtual_sync_time()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// A disk that is full as long as a reserve lies on it.
    #[derive(Debug)]
    struct Full {
        reserve: Arc<Reserve>,
        written: Arc<Mutex<Vec<u8>>>,
    }

    impl Full {
        fn write(&self, bytes: &[u8]) -> io::Result<()> {
            if self.reserve.held_bytes() > 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.written.lock().unwrap().extend_from_slice(bytes);
            Ok(())
        }
    }

    impl DiskFile for Full {
        fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
            self.write(bytes)
        }
        fn sync(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Disk for Full {
        fn list(&self, _: &str) -> io::Result<Vec<String>> {
            Ok(Vec::new())
        }
        fn read(&self, _: &str) -> io::Result<Vec<u8>> {
            Err(io::ErrorKind::NotFound.into())
        }
        fn write_atomically(&self, _: &str, bytes: &[u8]) -> io::Result<()> {
            self.write(bytes)
        }
        fn create(&self, _: &str, _: &[u8]) -> io::Result<Box<dyn DiskFile>> {
            let (reserve, written) = (self.reserve.clone(), self.written.clone());
            Ok(Box::new(Self { reserve, written }))
        }
        fn open_cut(&self, path: &str, _: u64, _: &[u8]) -> io::Result<Box<dyn DiskFile>> {
            self.create(path, &[])
        }
        fn open_note(&self, _: &str) -> io::Result<Box<dyn DiskNote>> {
            Err(io::ErrorKind::Unsupported.into())
        }
        fn remove(&self, _: &str) -> io::Result<()> {
            Ok(())
        }
        fn remove_directory(&self, _: &str) -> io::Result<()> {
            Ok(())
        }
        fn virtual_sync_time(&self) -> Option<Duration> {
            None
        }
    }

    #[test]
    fn a_full_disk_costs_the_reserve_and_then_it_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let reserve = Arc::new(Reserve::open(directory.path(), 4096));
        let written = Arc::new(Mutex::new(Vec::new()));
        let full = Full { reserve: reserve.clone(), written: written.clone() };
        let disk = ReservedDisk::new(Arc::new(full), reserve.clone());
        let mut file = disk.create("wal", &[]).unwrap();
        file.append(b"a cell's end").unwrap();
        assert_eq!(
            (written.lock().unwrap().as_slice(), reserve.held_bytes()),
            (&b"a cell's end"[..], 0)
        );
        reserve.adjust().unwrap();
        disk.write_atomically("snapshot", b"!").unwrap();
        assert_eq!(reserve.held_bytes(), 0);
    }
}
