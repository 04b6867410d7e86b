//! A real disk that fails when it is told to, for chaos runs.
//!
//! Owns no data. A node puts it in front of its disk only if its configuration asks for it. The
//! orders come in a file beside the data that only the owner of the folder can write; each is
//! taken once. One line, the last word optional, only paths below it are meant:
//!
//! ```text
//! fail_syncs <count> [<path>]    the next syncs end with EIO and nothing of theirs is promised
//! tear <bytes> [<path>]          of the next append only so many bytes are written, then the
//!                                process is killed
//! ```

use std::{
    fmt, fs, io,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use crate::disk::{Disk, DiskFile, DiskNote};

/// `EIO`, as a disk says it.
const EIO: i32 = 5;

/// Kills this very process; does not return in one that is to be killed.
pub type KillProcess = Arc<dyn Fn() + Send + Sync>;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Order {
    FailSyncs { left: u32, below: String },
    Tear { bytes: usize, below: String },
}

fn parse(text: &str) -> Option<Order> {
    let mut words = text.split_whitespace();
    let (what, number, below) = (words.next()?, words.next()?, words.next().unwrap_or_default());
    let below = below.to_owned();
    match what {
        "fail_syncs" => Some(Order::FailSyncs { left: number.parse().ok()?, below }),
        "tear" => Some(Order::Tear { bytes: number.parse().ok()?, below }),
        _ => None,
    }
}

struct Orders {
    file: PathBuf,
    armed: Mutex<Option<Order>>,
    kill: KillProcess,
}

impl Orders {
    /// Looks for an order in the file, and lets `carry_out` use the one that is armed.
    fn with<T>(&self, carry_out: impl FnOnce(&mut Option<Order>) -> T) -> T {
        let mut armed = self.armed.lock().unwrap_or_else(PoisonError::into_inner);
        if armed.is_none()
            && let Ok(text) = fs::read_to_string(&self.file)
        {
            *armed = parse(&text);
            tracing::warn!(order = ?*armed, "this disk was told to fail");
            if let Err(error) = fs::remove_file(&self.file) {
                tracing::warn!(%error, "the order to fail cannot be taken away");
            }
        }
        carry_out(&mut armed)
    }

    /// Fails in place of a sync if it is told to.
    fn sync(&self, path: &str) -> io::Result<()> {
        self.with(|armed| match armed {
            Some(Order::FailSyncs { left, below }) if path.starts_with(below.as_str()) => {
                *left = left.saturating_sub(1);
                if *left == 0 {
                    *armed = None;
                }
                tracing::warn!(path, "a sync fails on purpose");
                Err(io::Error::from_raw_os_error(EIO))
            }
            _ => Ok(()),
        })
    }

    /// How many bytes of an append are written before the process is killed; `None` for all.
    fn tear(&self, path: &str) -> Option<usize> {
        self.with(|armed| match armed {
            Some(Order::Tear { bytes, below }) if path.starts_with(below.as_str()) => {
                let bytes = *bytes;
                *armed = None;
                Some(bytes)
            }
            _ => None,
        })
    }
}

/// The disk. Clones share the orders.
#[derive(Clone)]
pub struct FaultyDisk {
    inner: Arc<dyn Disk>,
    orders: Arc<Orders>,
}

impl fmt::Debug for FaultyDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FaultyDisk({:?})", self.inner)
    }
}

impl FaultyDisk {
    /// Stands before `inner` and takes its orders from `file`.
    #[must_use]
    pub fn new(inner: Arc<dyn Disk>, file: PathBuf, kill: KillProcess) -> Self {
        Self { inner, orders: Arc::new(Orders { file, armed: Mutex::new(None), kill }) }
    }

    fn file(&self, path: &str, inner: Box<dyn DiskFile>) -> Box<dyn DiskFile> {
        Box::new(FaultyFile { inner, path: path.to_owned(), orders: Arc::clone(&self.orders) })
    }
}

struct FaultyFile {
    inner: Box<dyn DiskFile>,
    path: String,
    orders: Arc<Orders>,
}

impl DiskFile for FaultyFile {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if let Some(count) = self.orders.tear(&self.path) {
            // A prefix, but never all of it.
            let torn = &bytes[..count.min(bytes.len().saturating_sub(1))];
            self.inner.append(torn)?;
            tracing::warn!(written = torn.len(), of = bytes.len(), "a write is torn on purpose");
            (self.orders.kill)();
            return Err(io::Error::from_raw_os_error(EIO));
        }
        self.inner.append(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.orders.sync(&self.path)?;
        self.inner.sync()
    }
}

struct FaultyNote {
    inner: Box<dyn DiskNote>,
    path: String,
    orders: Arc<Orders>,
}

impl DiskNote for FaultyNote {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.inner.write(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.orders.sync(&self.path)?;
        self.inner.sync()
    }
}

impl Disk for FaultyDisk {
    fn list(&self, directory: &str) -> io::Result<Vec<String>> {
        self.inner.list(directory)
    }

    fn read(&self, path: &str) -> io::Result<Vec<u8>> {
        self.inner.read(path)
    }

    fn write_atomically(&self, path: &str, bytes: &[u8]) -> io::Result<()> {
        self.orders.sync(path)?;
        self.inner.write_atomically(path, bytes)
    }

    fn create(&self, path: &str, header: &[u8]) -> io::Result<Box<dyn DiskFile>> {
        self.orders.sync(path)?;
        Ok(self.file(path, self.inner.create(path, header)?))
    }

    fn open_cut(&self, path: &str, length: u64, doubtful: &[u8]) -> io::Result<Box<dyn DiskFile>> {
        self.orders.sync(path)?;
        Ok(self.file(path, self.inner.open_cut(path, length, doubtful)?))
    }

    fn open_note(&self, path: &str) -> io::Result<Box<dyn DiskNote>> {
        let inner = self.inner.open_note(path)?;
        Ok(Box::new(FaultyNote { inner, path: path.to_owned(), orders: self.orders.clone() }))
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        self.inner.remove(path)
    }

    fn remove_directory(&self, path: &str) -> io::Result<()> {
        self.inner.remove_directory(path)
    }

    fn virtual_sync_time(&self) -> Option<Duration> {
        self.inner.virtual_sync_time()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use bytes::Bytes;
    use callboard_protocol::GroupId;

    use super::*;
    use crate::{
        RealDisk,
        wal::{Record, Wal, WalOptions},
    };

    fn entry(index: u64) -> Record {
        Record::Entry { index, bytes: Bytes::from(vec![7; 50]) }
    }

    /// A log on a disk that is told to fail between two appends; returns what is read back.
    async fn after(order: &str, kills_wanted: u32) -> usize {
        let folder = tempfile::tempdir().unwrap();
        let group = GroupId::new("a").unwrap();
        let kills = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&kills);
        let kill: KillProcess = Arc::new(move || {
            counted.fetch_add(1, Ordering::SeqCst);
        });
        let file = folder.path().join("disk-faults");
        let real = Arc::new(RealDisk::new(folder.path()));
        let disk = Arc::new(FaultyDisk::new(real.clone(), file.clone(), kill));
        let (wal, _) = Wal::open(disk, WalOptions::default()).unwrap();
        wal.append(&group, [entry(0)]).synced().await.unwrap();
        fs::write(&file, order).unwrap();
        let error = wal.append(&group, [entry(1)]).synced().await.unwrap_err();
        assert!(error.to_string().contains("the node must restart"), "{error}");
        assert!(wal.append(&group, [entry(2)]).synced().await.is_err(), "a failure is final");
        assert!(!file.exists(), "an order is taken once");
        assert_eq!(kills.load(Ordering::SeqCst), kills_wanted);
        let (wal, recovered) = Wal::open(real, WalOptions::default()).unwrap();
        assert!(recovered.corrupt_groups.is_empty());
        wal.close().await;
        recovered.groups[&group].entries.len()
    }

    #[tokio::test]
    async fn a_sync_that_fails_on_purpose_stops_the_log_for_good() {
        // Never acknowledged, yet written: it may be there.
        assert_eq!(after("fail_syncs 1 wal/", 0).await, 2);
    }

    #[tokio::test]
    async fn a_write_that_is_torn_on_purpose_ends_the_process_and_is_cut() {
        assert_eq!(after("tear 20", 1).await, 1);
        assert_eq!(after("tear 100000 wal/", 1).await, 1, "never the whole write");
    }

    #[test]
    fn an_order_names_what_and_where() {
        assert_eq!(parse("tear 5"), Some(Order::Tear { bytes: 5, below: String::new() }));
        let below = "groups/".to_owned();
        assert_eq!(parse("fail_syncs 2 groups/\n"), Some(Order::FailSyncs { left: 2, below }));
        assert_eq!(parse("fail_syncs"), None);
        assert_eq!(parse("explode 1"), None);
    }
}
