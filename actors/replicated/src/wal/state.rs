//! What the records of one group add up to. The same code runs for a live append and for replay.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::record::{Lsn, Record};

/// A value and where its record ends in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// Position of its record.
    pub begin: Lsn,
    /// Position after its record: synced once the log is synced up to here.
    pub end: Lsn,
    /// The value.
    pub bytes: Bytes,
}

/// A group's log as its records say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GroupLog {
    /// The vote.
    pub vote: Option<Slot>,
    /// The last known committed log id.
    pub committed: Option<Slot>,
    /// The last purged index and its log id.
    pub purged: Option<(u64, Slot)>,
    /// The entries by index.
    pub entries: BTreeMap<u64, Slot>,
    /// Position after the last record on whose durability an answer may depend.
    pub promised: Lsn,
    /// The record that says that records of the group were lost.
    pub damaged: Option<Slot>,
}

impl GroupLog {
    /// Carries out one record that stands at `begin..end`.
    pub fn apply(&mut self, record: Record, begin: Lsn, end: Lsn) {
        if record.is_promise() {
            self.promised = end;
        }
        let slot = |bytes| Slot { begin, end, bytes };
        match record {
            Record::Vote(bytes) => self.vote = Some(slot(bytes)),
            Record::Committed(bytes) => self.committed = Some(slot(bytes)),
            Record::Entry { index, bytes } => {
                self.entries.split_off(&index);
                self.entries.insert(index, slot(bytes));
            }
            Record::Truncate { from } => drop(self.entries.split_off(&from)),
            Record::Purge { upto, bytes } => {
                self.entries = self.entries.split_off(&(upto + 1));
                self.purged = Some((upto, slot(bytes)));
            }
            Record::Copy { index, bytes } => {
                if self.purged.as_ref().is_none_or(|(upto, _)| index > *upto) {
                    self.entries.insert(index, slot(bytes));
                }
            }
            Record::Erase => *self = Self { promised: end, ..Self::default() },
            Record::Damaged => self.damaged = Some(slot(Bytes::new())),
            Record::Mark | Record::Judged => {}
        }
    }

    /// Whether no entry is missing between the purged ones and the last.
    #[must_use]
    pub fn is_contiguous(&self) -> bool {
        let first = self.purged.as_ref().map_or(0, |(upto, _)| upto + 1);
        self.entries.keys().copied().eq(first..first + self.entries.len() as u64)
    }

    /// Whether nothing is recorded.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.vote.is_none()
            && self.committed.is_none()
            && self.purged.is_none()
            && self.entries.is_empty()
            && self.damaged.is_none()
    }

    fn slots(&self) -> impl Iterator<Item = &Slot> {
        self.vote
            .iter()
            .chain(&self.committed)
            .chain(self.purged.iter().map(|(_, slot)| slot))
            .chain(&self.damaged)
            .chain(self.entries.values())
    }

    /// Bytes of records that are still needed.
    #[must_use]
    pub fn live_bytes(&self) -> u64 {
        self.slots().map(|slot| slot.end - slot.begin).sum()
    }

    /// Records that say again what stands before `boundary` and is still needed.
    #[must_use]
    pub fn records_before(&self, boundary: Lsn) -> Vec<Record> {
        let old = |slot: &&Slot| slot.begin < boundary;
        let mut records = Vec::new();
        records.extend(
            self.purged
                .iter()
                .filter(|(_, slot)| old(&slot))
                .map(|(upto, slot)| Record::Purge { upto: *upto, bytes: slot.bytes.clone() }),
        );
        records.extend(
            self.entries
                .iter()
                .filter(|(_, slot)| old(slot))
                .map(|(index, slot)| Record::Copy { index: *index, bytes: slot.bytes.clone() }),
        );
        records.extend(
            self.committed.iter().filter(old).map(|slot| Record::Committed(slot.bytes.clone())),
        );
        records.extend(self.vote.iter().filter(old).map(|slot| Record::Vote(slot.bytes.clone())));
        records.extend(self.damaged.iter().filter(old).map(|_| Record::Damaged));
        records
    }
}
