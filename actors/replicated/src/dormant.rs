//! A replica whose Raft does not run: it sleeps.
//!
//! Owns: the replica's Raft subject while it sleeps, and its note on disk. Never: decides when to
//! sleep or to wake.
//!
//! Raft allows any member to be stopped at any time and started later with its log, so nothing
//! here touches safety. Before a replica sleeps it is snapshotted and its log purged, so that a
//! sleeping group costs no memory and no room in the write-ahead log. The note lets a node that
//! starts leave the group asleep without reading its snapshot. It is believed only if the log says
//! the same: one record written after the replica woke (the vote of a later term, if nothing else)
//! and the note is void, whether or not it was removed.

use std::sync::Arc;

use bytes::Bytes;
use callboard_protocol::{GroupId, ReplicaId};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::{
    disk::Disk,
    group::Group,
    machine::{Applied, Machine},
    options::{GroupOptions, OpenError},
    raft::{
        log_store::LogStore,
        server::{Heard, Listener, is_call},
        state_machine::Replica,
        types::{LogId, decode, encode},
    },
    replicator::Replicator,
};

const MAGIC: [u8; 8] = *b"CBSLEEP\x01";
const HEADER_LENGTH: usize = 12;

/// Where a replica fell asleep.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SleepNote {
    /// Its Raft term.
    pub term: u64,
    /// Index of its last log entry, which it has applied.
    pub index: u64,
    /// What whoever put it to sleep wants to know of it without waking it.
    pub summary: Bytes,
}

/// The note as it is stored: MessagePack after a header of magic and checksum.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Stored {
    replica: ReplicaId,
    /// The vote's record, byte for byte.
    vote: Bytes,
    term: u64,
    last: LogId,
    summary: Bytes,
}

fn path(group: &GroupId) -> String {
    format!("groups/{group}/asleep")
}

fn file_bytes(stored: &Stored) -> std::io::Result<Vec<u8>> {
    let body = encode(stored).map_err(std::io::Error::other)?;
    let mut bytes = Vec::with_capacity(HEADER_LENGTH + body.len());
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&crc32c::crc32c(&body).to_le_bytes());
    bytes.extend_from_slice(&body);
    Ok(bytes)
}

fn parse(bytes: &[u8]) -> Option<Stored> {
    let (header, body) = bytes.split_at_checked(HEADER_LENGTH)?;
    let crc = u32::from_le_bytes(header.get(8..)?.try_into().ok()?);
    if header.get(..8)? != MAGIC || crc32c::crc32c(body) != crc {
        return None;
    }
    decode(body).ok()
}

/// A replica whose Raft has stopped and that still holds its machine.
pub struct Closed<M: Machine> {
    replicator: Replicator,
    group: GroupId,
    id: ReplicaId,
    replica: Replica<M>,
    heard: Option<Heard>,
}

impl<M: Machine> std::fmt::Debug for Closed<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Closed({}, replica {})", self.group, self.id)
    }
}

impl<M: Machine> Closed<M> {
    pub(crate) fn new(
        replicator: Replicator,
        group: GroupId,
        id: ReplicaId,
        replica: Replica<M>,
        heard: Option<Heard>,
    ) -> Self {
        Self { replicator, group, id, replica, heard }
    }

    /// Looks at the machine.
    pub fn read<T>(&self, look: impl FnOnce(&M) -> T) -> T {
        self.replica.read(look)
    }

    /// Whether everything in the log is applied, so that nothing waits for the replica.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.replica.last_applied().map(|id| id.index) == self.replica.log().last_index()
    }

    /// Snapshots the machine, purges its log, leaves a note and lets go of the memory. `called` is
    /// told once a Raft message asks for the replica.
    ///
    /// A disk that refuses costs only memory and time at the next start: the replica sleeps all
    /// the same, and its log has everything.
    pub async fn sleep(self, summary: Bytes, called: impl FnOnce() + Send + 'static) -> Dormant {
        let log = self.replica.log();
        let applied = self.replica.last_applied();
        let is_whole = self.is_whole();
        let (vote, term) = log.recorded_vote().unwrap_or_default();
        let index = applied.map_or(0, |id| id.index);
        if let (Some(last), true) = (applied, is_whole) {
            let stored = Stored { replica: self.id, vote, term, last, summary: summary.clone() };
            if let Err(error) = self.leave(&stored).await {
                tracing::warn!(group = %self.group, %error, "a group sleeps without a note");
            }
        } else {
            tracing::warn!(group = %self.group, "a group sleeps with entries still to be applied");
        }
        let note = SleepNote { term, index, summary };
        Dormant::new(self.replicator, self.group, self.id, note, self.heard, called)
    }

    async fn leave(&self, stored: &Stored) -> std::io::Result<()> {
        self.replica.condense().await.map_err(std::io::Error::other)?;
        let (disk, path) = (Arc::clone(&self.replicator.inner.disk), path(&self.group));
        let bytes = file_bytes(stored)?;
        on_disk(disk, move |disk| disk.write_atomically(&path, &bytes)).await
    }
}

async fn on_disk<T: Send + 'static>(
    disk: Arc<dyn Disk>,
    work: impl FnOnce(&dyn Disk) -> std::io::Result<T> + Send + 'static,
) -> std::io::Result<T> {
    if disk.virtual_sync_time().is_some() {
        return work(&*disk);
    }
    tokio::task::spawn_blocking(move || work(&*disk)).await.map_err(std::io::Error::other)?
}

/// A replica that sleeps. Dropping it stops it as dropping a [`Group`] would.
#[derive(Debug)]
pub struct Dormant {
    replicator: Replicator,
    group: GroupId,
    id: ReplicaId,
    note: SleepNote,
    ear: Option<Listener>,
    is_released: bool,
}

impl Dormant {
    fn new(
        replicator: Replicator,
        group: GroupId,
        id: ReplicaId,
        note: SleepNote,
        heard: Option<Heard>,
        called: impl FnOnce() + Send + 'static,
    ) -> Self {
        let term = note.term;
        let ear =
            heard.map(|heard| Listener::doze(heard, move |message| is_call(message, term), called));
        Self { replicator, group, id, note, ear, is_released: false }
    }

    /// Where it fell asleep.
    #[must_use]
    pub fn note(&self) -> &SleepNote {
        &self.note
    }

    /// Opens the replica again. A message that came meanwhile, the one that called for it
    /// included, is answered then. Nobody waits for a leader's lease: there is none.
    ///
    /// # Errors
    /// [`OpenError`], as for [`Replicator::open_group`].
    pub async fn wake<M: Machine>(
        mut self,
        options: GroupOptions<M>,
    ) -> Result<(Group<M>, mpsc::UnboundedReceiver<Applied<M>>), OpenError> {
        self.is_released = true;
        let heard = match self.ear.take() {
            Some(ear) => ear.take().await,
            None => None,
        };
        self.replicator.open_claimed(self.group.clone(), self.id, options, heard).await
    }

    /// Erases the replica's log and snapshots durably.
    ///
    /// # Errors
    /// [`OpenError`] if the disk refuses.
    pub async fn remove(self) -> Result<(), OpenError> {
        let (replicator, group) = (self.replicator.clone(), self.group.clone());
        drop(self);
        replicator.erase(&group).await
    }
}

impl Drop for Dormant {
    fn drop(&mut self) {
        if let Some(ear) = self.ear.take() {
            ear.abort();
        }
        if !self.is_released {
            self.replicator.closed(&self.group);
        }
    }
}

impl Replicator {
    /// A replica that fell asleep in an earlier life of the node, and has slept since; `None` if it
    /// must be opened. Reads no snapshot.
    ///
    /// # Errors
    /// [`OpenError`], as for [`Replicator::open_group`].
    pub async fn doze(
        &self,
        group: GroupId,
        replica: ReplicaId,
        called: impl FnOnce() + Send + 'static,
    ) -> Result<Option<Dormant>, OpenError> {
        let Some(stored) = self.read_note(&group, replica).await else { return Ok(None) };
        self.claim(&group)?;
        let heard = match self.listen(&group, replica).await {
            Ok(heard) => heard,
            Err(error) => {
                self.closed(&group);
                return Err(error);
            }
        };
        let Stored { term, last, summary, .. } = stored;
        let note = SleepNote { term, index: last.index, summary };
        Ok(Some(Dormant::new(self.clone(), group, replica, note, Some(heard), called)))
    }

    /// The note of a replica, if its log agrees with it.
    async fn read_note(&self, group: &GroupId, replica: ReplicaId) -> Option<Stored> {
        let (disk, path) = (Arc::clone(&self.inner.disk), path(group));
        let bytes = on_disk(disk, move |disk| disk.read(&path)).await.ok()?;
        let stored = parse(&bytes)?;
        let (_, covered) = tokio::sync::watch::channel(Default::default());
        let log = LogStore::new(self.inner.wal.clone(), group.clone(), replica.0, false, covered);
        let agrees = stored.replica == replica
            && log.last_index() == Some(stored.last.index)
            && log.recorded_vote().is_some_and(|(vote, _)| vote == stored.vote);
        agrees.then_some(stored)
    }
}

#[cfg(test)]
mod tests {
    use openraft::CommittedLeaderId;

    use super::*;

    fn stored() -> Stored {
        let last = LogId::new(CommittedLeaderId::new(3, 1), 17);
        let (vote, summary) = (Bytes::from_static(b"vote"), Bytes::from_static(b"{}"));
        Stored { replica: ReplicaId(1), vote, term: 3, last, summary }
    }

    #[test]
    fn a_note_is_read_back_and_a_damaged_one_is_none() {
        let bytes = file_bytes(&stored()).unwrap();
        assert_eq!(parse(&bytes), Some(stored()));
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert_eq!(parse(&damaged), None, "byte {at}");
            assert_eq!(parse(&bytes[..at]), None, "cut at {at}");
        }
    }
}
