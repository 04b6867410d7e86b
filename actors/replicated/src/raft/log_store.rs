//! openraft's log of one group, kept in the node's write-ahead log.
//!
//! See the [module above](super) for why a leader's entries may be reported as flushed early, and
//! for why a vote that was committed to this very replica is read back as uncommitted.

use std::{fmt::Debug, ops::RangeBounds};

use bytes::Bytes;
use callboard_protocol::GroupId;
use openraft::{
    EntryPayload, LogState, OptionalSend, RaftLogReader, StorageIOError,
    storage::{LogFlushed, RaftLogStorage},
};
use tokio::sync::watch;

use super::types::{Entry, LogId, StorageError, TypeConfig, Vote, decode, encode};
use crate::wal::{Lsn, Record, Slot, Wal};

/// How far a durable snapshot covers the log.
#[derive(Debug, Clone, Default)]
pub(crate) struct Covered {
    /// Index of the last entry it covers.
    pub upto: Option<u64>,
    /// A snapshot could not be written or restored; the replica stops.
    pub failed: bool,
}

/// The log of one group.
#[derive(Debug, Clone)]
pub(crate) struct LogStore {
    pub wal: Wal,
    pub group: GroupId,
    pub replica: u64,
    pub parallel_leader_fsync: bool,
    /// How far a durable snapshot covers the log.
    pub covered: watch::Receiver<Covered>,
    /// Whether the group slept: then nobody led it when it was opened, and a leader's lease that
    /// counts from the opening would only hold up the next one.
    pub woken: bool,
    vote: Option<Vote>,
}

fn read_error(error: impl std::error::Error + 'static) -> StorageError {
    StorageIOError::read_logs(&error).into()
}

fn write_error(error: impl std::error::Error + 'static) -> StorageError {
    StorageIOError::write_logs(&error).into()
}

fn decode_slot<T: serde::de::DeserializeOwned>(slot: &Slot) -> Result<T, StorageError> {
    decode(&slot.bytes).map_err(read_error)
}

impl LogStore {
    pub(crate) fn new(
        wal: Wal,
        group: GroupId,
        replica: u64,
        parallel_leader_fsync: bool,
        covered: watch::Receiver<Covered>,
    ) -> Self {
        Self { wal, group, replica, parallel_leader_fsync, covered, woken: false, vote: None }
    }

    /// Index of the last entry or purged entry.
    pub(crate) fn last_index(&self) -> Option<u64> {
        self.wal.group(&self.group, |log| {
            let purged = log.purged.as_ref().map(|(upto, _)| *upto);
            log.entries.last_key_value().map(|(index, _)| *index).or(purged)
        })
    }

    /// Position up to which the log must be synced for the entry at `index` to be durable.
    pub(crate) fn durable_at(&self, index: u64) -> Lsn {
        self.wal.group(&self.group, |log| log.entries.get(&index).map_or(0, |slot| slot.end))
    }

    /// The last log id at or below `log_id` that is durable here; `None` also if the log no longer
    /// holds what `log_id` names.
    pub(crate) fn clamp_to_synced(&self, log_id: LogId) -> Option<LogId> {
        let synced = self.wal.synced();
        let clamped = self.wal.group(&self.group, |log| {
            let purged =
                || log.purged.as_ref().and_then(|(_, slot)| decode::<LogId>(&slot.bytes).ok());
            if log.purged.as_ref().is_some_and(|(upto, _)| log_id.index <= *upto) {
                return Some(log_id);
            }
            let durable = |(_, slot): &(&u64, &Slot)| slot.end <= synced;
            match log.entries.range(..=log_id.index).rev().find(durable) {
                Some((_, slot)) => decode::<Entry>(&slot.bytes).ok().map(|entry| entry.log_id),
                None => purged(),
            }
        });
        clamped.filter(|clamped| *clamped <= log_id)
    }

    /// The vote as it is recorded, and its term.
    pub(crate) fn recorded_vote(&self) -> Option<(Bytes, u64)> {
        let slot = self.wal.group(&self.group, |log| log.vote.clone())?;
        let vote: Vote = decode(&slot.bytes).ok()?;
        Some((slot.bytes, vote.leader_id.term))
    }

    fn is_leaders_append(&self, entries: &[Entry]) -> bool {
        let Some(vote) = self.vote.filter(|vote| vote.is_committed()) else { return false };
        let leader = vote.leader_id();
        leader.voted_for() == Some(self.replica)
            && entries.iter().all(|entry| {
                entry.log_id.leader_id.term == leader.term
                    && entry.log_id.leader_id.node_id == self.replica
                    && !matches!(entry.payload, EntryPayload::Membership(_))
            })
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, StorageError> {
        let found: Vec<Bytes> = self.wal.group(&self.group, |log| {
            log.entries.range(range).map(|(_, slot)| slot.bytes.clone()).collect()
        });
        found.iter().map(|bytes| decode(bytes).map_err(read_error)).collect()
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, StorageError> {
        let (purged, last) = self.wal.group(&self.group, |log| {
            let last = log.entries.last_key_value().map(|(_, slot)| slot.clone());
            (log.purged.as_ref().map(|(_, slot)| slot.clone()), last)
        });
        let last_purged_log_id = purged.as_ref().map(decode_slot).transpose()?;
        let last = last.as_ref().map(decode_slot::<Entry>).transpose()?;
        let last_log_id = last.map(|entry| entry.log_id).or(last_purged_log_id);
        Ok(LogState { last_purged_log_id, last_log_id })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StorageError> {
        self.vote = Some(*vote);
        let bytes = encode(vote).map_err(write_error)?;
        let ticket = self.wal.append(&self.group, [Record::Vote(bytes.into())]);
        ticket.synced().await.map_err(|error| StorageIOError::write_vote(&error).into())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError> {
        let slot = self.wal.group(&self.group, |log| log.vote.clone());
        let mut vote: Option<Vote> = slot.as_ref().map(decode_slot).transpose()?;
        if let Some(vote) = &mut vote
            && (self.woken || vote.leader_id().voted_for() == Some(self.replica))
        {
            vote.committed = false;
        }
        self.vote = vote;
        Ok(vote)
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), StorageError> {
        if let Some(committed) = committed {
            let bytes = encode(&committed).map_err(write_error)?;
            let _lazy = self.wal.append(&self.group, [Record::Committed(bytes.into())]);
        }
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, StorageError> {
        let slot = self.wal.group(&self.group, |log| log.committed.clone());
        let committed: Option<LogId> = slot.as_ref().map(decode_slot).transpose()?;
        Ok(committed.filter(|id| self.last_index().is_some_and(|last| id.index <= last)))
    }

    async fn append<I>(
        &mut self,
        entries: I,
        callback: LogFlushed<TypeConfig>,
    ) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        let mut records = Vec::with_capacity(entries.len());
        for entry in &entries {
            let bytes = Bytes::from(encode(entry).map_err(write_error)?);
            records.push(Record::Entry { index: entry.log_id.index, bytes });
        }
        let ticket = self.wal.append(&self.group, records);
        if self.parallel_leader_fsync && self.is_leaders_append(&entries) {
            callback.log_io_completed(Ok(()));
        } else {
            tokio::spawn(async move {
                callback.log_io_completed(ticket.synced().await.map_err(std::io::Error::other));
            });
        }
        Ok(())
    }

    async fn truncate(&mut self, log_id: LogId) -> Result<(), StorageError> {
        let _ordered = self.wal.append(&self.group, [Record::Truncate { from: log_id.index }]);
        Ok(())
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), StorageError> {
        let purged = self.wal.group(&self.group, |log| log.purged.as_ref().map(|(upto, _)| *upto));
        if purged >= Some(log_id.index) {
            return Ok(());
        }
        // openraft asks for this before the snapshot that makes it harmless is on disk.
        let decided = |now: &Covered| now.upto >= Some(log_id.index) || now.failed;
        if self.covered.wait_for(decided).await.map_err(write_error)?.failed {
            let error = std::io::Error::other("the snapshot that replaces the log was not written");
            return Err(write_error(error));
        }
        let at = self.wal.group(&self.group, |log| log.entries.get(&log_id.index).cloned());
        let agrees = match &at {
            Some(slot) => decode_slot::<Entry>(slot)?.log_id == log_id,
            None => false,
        };
        let mut records = Vec::new();
        if !agrees {
            // Whatever is here does not continue the snapshot that replaces it.
            records.push(Record::Truncate { from: 0 });
        }
        let bytes = encode(&log_id).map_err(write_error)?;
        records.push(Record::Purge { upto: log_id.index, bytes: bytes.into() });
        let _lazy = self.wal.append(&self.group, records);
        Ok(())
    }
}
