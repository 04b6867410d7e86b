//! The one writer of the log: batches, syncs, begins segments, frees old ones.

use std::{
    sync::{Arc, PoisonError},
    time::Duration,
};

use super::{
    Inner, Shared, WalError, WalOptions,
    note::{self, Note},
    record::{self, Lsn, Record, SEGMENT_HEADER_LENGTH},
    recover::{DIRECTORY, Tail},
};
use crate::disk::{Disk, DiskFile};

/// Records nobody waits for are written once they fill this much memory.
const LAZY_BYTES_MAX: usize = 1 << 20;

/// Frees the name of a group for records that belong to none.
pub(super) const MARK_GROUP: &str = "mark";

struct Writer {
    shared: Arc<Shared>,
    disk: Arc<dyn Disk>,
    options: WalOptions,
    file: Box<dyn DiskFile>,
    note: Note,
    bases: Vec<Lsn>,
    end: Lsn,
}

enum Work {
    Write(Vec<u8>),
    Close(Vec<u8>),
    Crash,
    /// Nobody has appended for a while.
    SyncNote,
    Nothing,
}

fn path(base: Lsn) -> String {
    format!("{DIRECTORY}/{}", record::segment_name(base))
}

/// Opens the last segment where the log ends and starts writing there.
pub(super) fn start(
    shared: Arc<Shared>,
    disk: Arc<dyn Disk>,
    options: WalOptions,
    tail: Tail,
) -> Result<(), WalError> {
    let Tail { mut bases, end, doubtful, has_gap } = tail;
    let opened = match bases.last().copied() {
        Some(base) if end > base && !has_gap => {
            disk.open_cut(&path(base), end - base + SEGMENT_HEADER_LENGTH as u64, &doubtful)
        }
        _ => {
            if bases.last() != Some(&end) {
                bases.push(end);
            }
            disk.create(&path(end), &record::segment_header(end))
        }
    };
    let name = path(bases.last().copied().unwrap_or(end));
    let file = opened.map_err(|source| WalError::Io { what: "open", path: name, source })?;
    let note = Note::open(disk.as_ref(), end).map_err(|source| WalError::Io {
        what: "write",
        path: note::PATH.to_owned(),
        source,
    })?;
    let virtual_time = disk.virtual_sync_time();
    let writer = Writer { shared, disk, options, file, note, bases, end };
    match virtual_time {
        Some(sync_time) => drop(tokio::spawn(writer.run_task(sync_time))),
        None => {
            std::thread::Builder::new()
                .name("wal".to_owned())
                .spawn(move || writer.run_thread())
                .map_err(|source| WalError::Io {
                what: "start the writer of",
                path: DIRECTORY.to_owned(),
                source,
            })?;
        }
    }
    Ok(())
}

impl Inner {
    fn take_work(&mut self, written: Lsn) -> Work {
        if self.crashed {
            Work::Crash
        } else if self.closing {
            Work::Close(std::mem::take(&mut self.queue))
        } else if !self.queue.is_empty()
            && (self.wanted > written || self.queue.len() > LAZY_BYTES_MAX)
        {
            Work::Write(std::mem::take(&mut self.queue))
        } else {
            Work::Nothing
        }
    }
}

impl Writer {
    fn run_thread(mut self) {
        loop {
            let work = {
                let shared = Arc::clone(&self.shared);
                let mut inner = shared.lock();
                loop {
                    let rest = self.note.sync_in();
                    match (inner.take_work(self.end), rest) {
                        (Work::Nothing, None) => {
                            inner = shared
                                .thread_wake
                                .wait(inner)
                                .unwrap_or_else(PoisonError::into_inner);
                        }
                        (Work::Nothing, Some(rest)) if rest.is_zero() => break Work::SyncNote,
                        (Work::Nothing, Some(rest)) => {
                            let waited = shared.thread_wake.wait_timeout(inner, rest);
                            inner = waited.unwrap_or_else(PoisonError::into_inner).0;
                        }
                        (work, _) => break work,
                    }
                }
            };
            if !self.carry_out(work) {
                return;
            }
        }
    }

    async fn run_task(mut self, sync_time: Duration) {
        loop {
            let work = self.shared.lock().take_work(self.end);
            match work {
                Work::Nothing => match self.note.sync_in() {
                    None => self.shared.task_wake.notified().await,
                    Some(rest) => {
                        let wake = self.shared.task_wake.notified();
                        let rested = tokio::time::timeout(rest, wake).await.is_err();
                        if rested && !self.carry_out(Work::SyncNote) {
                            return;
                        }
                    }
                },
                Work::Write(batch) => {
                    if let Err(error) = self.file.append(&batch) {
                        self.shared.fail(format!("write failed: {error}"));
                        return;
                    }
                    tokio::time::sleep(sync_time).await;
                    if self.shared.lock().crashed || !self.synced(batch.len()) {
                        return;
                    }
                }
                last => {
                    let _ended = self.carry_out(last);
                    return;
                }
            }
        }
    }

    /// Returns whether there is more to do.
    fn carry_out(&mut self, work: Work) -> bool {
        match work {
            Work::Nothing => true,
            Work::Crash => false,
            Work::Write(batch) => self.write(&batch),
            Work::SyncNote => self.sync_note(),
            Work::Close(batch) => {
                let written = batch.is_empty() || self.write(&batch);
                if written && self.write_mark() && self.sync_note() {
                    self.shared.fail("it was closed".to_owned());
                }
                false
            }
        }
    }

    fn write(&mut self, batch: &[u8]) -> bool {
        if let Err(error) = self.file.append(batch) {
            self.shared.fail(format!("write failed: {error}"));
            return false;
        }
        self.synced(batch.len())
    }

    /// Syncs what was written, tells everybody, and keeps house.
    fn synced(&mut self, length: usize) -> bool {
        let result = self.file.sync();
        if let Err(error) = result {
            self.shared.fail(format!("fsync failed: {error}"));
            return false;
        }
        if let Err(error) = self.tell_synced(length) {
            self.shared.fail(format!("cannot note what is synced: {error}"));
            return false;
        }
        if let Err(error) = self.keep_house() {
            self.shared.fail(format!("cannot change segments: {error}"));
            return false;
        }
        true
    }

    /// First the note, then everybody.
    fn tell_synced(&mut self, length: usize) -> std::io::Result<()> {
        self.end += length as u64;
        self.note.write(self.end)?;
        self.shared.progress.send_modify(|progress| progress.synced = self.end);
        Ok(())
    }

    fn sync_note(&mut self) -> bool {
        let result = self.note.sync();
        if let Err(error) = &result {
            self.shared.fail(format!("fsync of {} failed: {error}", note::PATH));
        }
        result.is_ok()
    }

    /// A record after the last sync, so that the next opening knows all before it was promised.
    fn write_mark(&mut self) -> bool {
        let Ok(group) = callboard_protocol::GroupId::new(MARK_GROUP) else { return true };
        let mut bytes = Vec::new();
        record::encode(&mut bytes, &group, &Record::Mark, self.end, self.end);
        self.write(&bytes)
    }

    fn keep_house(&mut self) -> std::io::Result<()> {
        let base = self.bases.last().copied().unwrap_or(0);
        if self.end - base <= self.options.segment_bytes {
            return Ok(());
        }
        self.file = self.disk.create(&path(self.end), &record::segment_header(self.end))?;
        self.bases.push(self.end);
        while let Some(boundary) = self.segment_to_free() {
            let batch = self.copy_before(boundary);
            self.file.append(&batch)?;
            self.file.sync()?;
            self.tell_synced(batch.len())?;
            let oldest = self.bases.remove(0);
            self.disk.remove(&path(oldest))?;
        }
        Ok(())
    }

    /// Where the oldest segment ends, if it is worth freeing.
    fn segment_to_free(&self) -> Option<Lsn> {
        let (oldest, boundary) = (*self.bases.first()?, *self.bases.get(1)?);
        let total = self.end - oldest;
        let live: u64 = self.shared.lock().groups.values().map(super::GroupLog::live_bytes).sum();
        (total > self.options.garbage_bytes_min && total > live.saturating_mul(2))
            .then_some(boundary)
    }

    /// Queues again what is still needed from before `boundary`; takes the whole queue.
    fn copy_before(&self, boundary: Lsn) -> Vec<u8> {
        let mut inner = self.shared.lock();
        let groups: Vec<_> = inner.groups.keys().cloned().collect();
        for group in groups {
            let records = inner.groups.get(&group).map(|log| log.records_before(boundary));
            for record in records.unwrap_or_default() {
                self.shared.push(&mut inner, &group, record);
            }
        }
        std::mem::take(&mut inner.queue)
    }
}
