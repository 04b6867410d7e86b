//! One write-ahead log per node, shared by all its Raft groups.
//!
//! Owns the segment files under `wal/` and, in memory, what they say per group. Appending is a
//! copy into a buffer under a lock; one writer takes everything buffered, writes it, syncs once
//! and wakes whoever waited (group commit). The order of calls is the order on disk, so whatever
//! survives a crash is a prefix of what was appended.
//!
//! A write or sync that fails is final: the kernel may have dropped the pages, so a later sync
//! that succeeds would prove nothing. All tickets from then on fail and the process must restart.

mod note;
mod record;
mod recover;
mod state;
#[cfg(test)]
mod tail_tests;
#[cfg(test)]
mod tests;
mod writer;

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use callboard_protocol::GroupId;
use tokio::sync::watch;

pub use record::{Lsn, PAYLOAD_LENGTH_MAX, Record, SEGMENT_HEADER_LENGTH};
pub use recover::Recovered;
pub use state::{GroupLog, Slot};

use crate::disk::Disk;

/// Sizes of the log's files.
#[derive(Debug, Clone)]
pub struct WalOptions {
    /// A segment is closed once it is longer than this.
    pub segment_bytes: u64,
    /// Old segments are freed once the log is longer than this and more than half of it is
    /// garbage.
    pub garbage_bytes_min: u64,
}

impl WalOptions {
    /// Segments of this many bytes, freed once there are more than four.
    #[must_use]
    pub fn of_segments(segment_bytes: u64) -> Self {
        Self { segment_bytes, garbage_bytes_min: segment_bytes.saturating_mul(4) }
    }
}

impl Default for WalOptions {
    fn default() -> Self {
        Self::of_segments(16 << 20)
    }
}

/// Why the log could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum WalError {
    /// The disk refused.
    #[error("cannot {what} the write-ahead log file {path}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: String,
        /// What the disk said.
        source: io::Error,
    },
    /// A later version of the program wrote it.
    #[error(
        "the write-ahead log file {path} has format {version}, which a newer callboard wrote: start \
         this node with that version; nothing was changed"
    )]
    Newer {
        /// Which file.
        path: String,
        /// Its format.
        version: u8,
    },
}

/// The log stopped for good; restart the node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the write-ahead log stopped: {0}; the node must restart")]
pub struct WalFailed(pub String);

/// How far the log is durable.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// Everything before this position is durable.
    pub synced: Lsn,
    /// Why nothing more will be.
    pub failed: Option<WalFailed>,
}

#[derive(Debug)]
struct Inner {
    groups: std::collections::BTreeMap<GroupId, GroupLog>,
    queue: Vec<u8>,
    next_lsn: Lsn,
    wanted: Lsn,
    closing: bool,
    crashed: bool,
}

#[derive(Debug)]
struct Shared {
    inner: Mutex<Inner>,
    thread_wake: std::sync::Condvar,
    task_wake: tokio::sync::Notify,
    progress: watch::Sender<Progress>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        self.thread_wake.notify_all();
        self.task_wake.notify_one();
    }

    fn fail(&self, why: String) {
        self.progress.send_if_modified(|progress| {
            let first = progress.failed.is_none();
            if first {
                progress.failed = Some(WalFailed(why));
            }
            first
        });
    }

    fn push(&self, inner: &mut Inner, group: &GroupId, record: Record) -> Lsn {
        let begin = inner.next_lsn;
        let synced = self.progress.borrow().synced;
        let length = record::encode(&mut inner.queue, group, &record, begin, synced);
        inner.next_lsn += length as u64;
        let end = inner.next_lsn;
        if record.is_promise() {
            inner.wanted = end;
        }
        match record {
            Record::Mark | Record::Judged => {}
            Record::Erase => drop(inner.groups.remove(group)),
            record => inner.groups.entry(group.clone()).or_default().apply(record, begin, end),
        }
        end
    }
}

/// The log. Clones share it.
#[derive(Debug, Clone)]
pub struct Wal {
    shared: Arc<Shared>,
}

/// A promise that what was appended will become durable.
#[derive(Debug)]
pub struct Ticket {
    wal: Wal,
    end: Lsn,
}

impl Ticket {
    /// Waits until it is durable.
    ///
    /// # Errors
    /// [`WalFailed`] if it never will be.
    pub async fn synced(self) -> Result<(), WalFailed> {
        self.wal.synced_to(self.end).await
    }
}

impl Wal {
    /// Opens the log below `disk`, or begins one, and starts its writer. Blocks on the disk.
    /// With a disk on virtual time this must run inside a tokio runtime.
    ///
    /// # Errors
    /// [`WalError`] if the disk refuses. Damage is no error: see [`Recovered`].
    pub fn open(disk: Arc<dyn Disk>, options: WalOptions) -> Result<(Self, Recovered), WalError> {
        let (recovered, tail) = recover::recover(disk.as_ref())?;
        let (progress, _) = watch::channel(Progress { synced: tail.end, failed: None });
        let shared = Arc::new(Shared {
            inner: Mutex::new(Inner {
                groups: recovered.groups.clone(),
                queue: Vec::new(),
                next_lsn: tail.end,
                wanted: tail.end,
                closing: false,
                crashed: false,
            }),
            thread_wake: std::sync::Condvar::new(),
            task_wake: tokio::sync::Notify::new(),
            progress,
        });
        writer::start(Arc::clone(&shared), disk, options, tail)?;
        let wal = Self { shared };
        if !recovered.is_judged {
            wal.judge(&recovered);
        }
        Ok((wal, recovered))
    }

    /// Writes down which groups the damage touches, before any other record: the next opening
    /// could not tell a group that is founded after it from one that lost its beginning in it.
    fn judge(&self, recovered: &Recovered) {
        for group in &recovered.corrupt_groups {
            let _ordered = self.append(group, [Record::Damaged]);
        }
        if let Ok(group) = GroupId::new(writer::MARK_GROUP) {
            let _ordered = self.append(&group, [Record::Judged]);
        }
    }

    /// Appends records of one group, in order. They are visible to [`Wal::group`] at once.
    pub fn append(&self, group: &GroupId, records: impl IntoIterator<Item = Record>) -> Ticket {
        let mut inner = self.shared.lock();
        let mut end = inner.next_lsn;
        for record in records {
            end = self.shared.push(&mut inner, group, record);
        }
        drop(inner);
        self.shared.wake();
        Ticket { wal: self.clone(), end }
    }

    /// Looks at a group's log.
    pub fn group<T>(&self, group: &GroupId, look: impl FnOnce(&GroupLog) -> T) -> T {
        let inner = self.shared.lock();
        match inner.groups.get(group) {
            Some(log) => look(log),
            None => look(&GroupLog::default()),
        }
    }

    /// Groups with records.
    #[must_use]
    pub fn group_ids(&self) -> Vec<GroupId> {
        self.shared.lock().groups.keys().cloned().collect()
    }

    /// Everything before this position is durable.
    #[must_use]
    pub fn synced(&self) -> Lsn {
        self.shared.progress.borrow().synced
    }

    /// Waits until everything before `end` is durable.
    ///
    /// # Errors
    /// [`WalFailed`] if it never will be.
    pub async fn synced_to(&self, end: Lsn) -> Result<(), WalFailed> {
        let mut progress = self.shared.progress.subscribe();
        if progress.borrow().synced < end {
            let mut inner = self.shared.lock();
            inner.wanted = inner.wanted.max(end);
            drop(inner);
            self.shared.wake();
        }
        let reached = progress.wait_for(|now| now.synced >= end || now.failed.is_some()).await;
        match reached {
            Ok(now) if now.synced >= end => Ok(()),
            Ok(now) => Err(now.failed.clone().unwrap_or(WalFailed(String::new()))),
            Err(_) => Err(WalFailed("its writer is gone".to_owned())),
        }
    }

    /// Waits until every promise of the group so far is durable.
    ///
    /// # Errors
    /// [`WalFailed`] if it never will be.
    pub async fn promises_synced(&self, group: &GroupId) -> Result<(), WalFailed> {
        let end = self.group(group, |log| log.promised);
        self.synced_to(end).await
    }

    /// Follows how far the log is durable, and whether it failed.
    #[must_use]
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.shared.progress.subscribe()
    }

    /// Writes and syncs what is queued and stops the writer. Later appends fail.
    pub async fn close(&self) {
        self.shared.lock().closing = true;
        self.shared.wake();
        let mut progress = self.shared.progress.subscribe();
        drop(progress.wait_for(|now| now.failed.is_some()).await);
    }

    /// Stops the writer without writing what is queued, as a crash would.
    pub fn crash(&self) {
        self.shared.lock().crashed = true;
        self.shared.fail("crashed on purpose".to_owned());
        self.shared.wake();
    }
}
