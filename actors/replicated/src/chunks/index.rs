//! What is on the disk, in memory: so that asking for thousands of chunks costs no system call.
//!
//! Pure bookkeeping: no file is touched here, and time is an argument.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use callboard_protocol::OwnerId;
use tokio::time::Instant;

use super::{collect::GRACE_MIN, id::ChunkId};

/// A chunk that is there.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    pub length: u64,
    /// When somebody last put it or was told that it is here, in this life of the node; when it was
    /// found at its start, if nobody did.
    pub touched: Instant,
    /// Whether it was found at the start and nobody has put it or was told of it since.
    pub is_inherited: bool,
}

/// How long chunks are kept that nobody names.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    pub now: Instant,
    /// After somebody put them or was told of them.
    pub grace: Duration,
}

impl Patience {
    pub(super) fn from_now(grace: Duration) -> Self {
        Self { now: Instant::now(), grace }
    }

    pub(super) fn is_over(&self, since: Instant) -> bool {
        self.now.saturating_duration_since(since) >= self.grace
    }

    /// What a former life of the node promised counts for no longer than any receipt.
    fn is_over_for(&self, entry: &Entry) -> bool {
        let grace = if entry.is_inherited { self.grace.min(GRACE_MIN) } else { self.grace };
        Self { grace, ..*self }.is_over(entry.touched)
    }
}

/// A chunk that was found damaged and set aside.
#[derive(Debug, Clone, Copy)]
pub(super) struct Damage {
    pub since: Instant,
    /// Whether its bytes were put again since.
    pub is_repaired: bool,
}

/// An owner's chunks.
#[derive(Debug, Default)]
pub(super) struct OwnerIndex {
    pub chunks: HashMap<ChunkId, Entry>,
    pub bytes: u64,
    /// Chunks that were found damaged and set aside.
    pub damaged: HashMap<ChunkId, Damage>,
    /// Chunks that something under way needs, with how often.
    holds: HashMap<ChunkId, u32>,
}

impl OwnerIndex {
    pub(super) fn insert(&mut self, id: ChunkId, length: u64, now: Instant) {
        self.remove(id);
        self.bytes += length;
        if let Some(damage) = self.damaged.get_mut(&id) {
            damage.is_repaired = true;
        }
        self.chunks.insert(id, Entry { length, touched: now, is_inherited: false });
    }

    /// It lies here since a former life of the node.
    pub(super) fn inherit(&mut self, id: ChunkId, length: u64, now: Instant) {
        self.insert(id, length, now);
        if let Some(entry) = self.chunks.get_mut(&id) {
            entry.is_inherited = true;
        }
    }

    pub(super) fn remove(&mut self, id: ChunkId) -> Option<Entry> {
        let entry = self.chunks.remove(&id)?;
        self.bytes = self.bytes.saturating_sub(entry.length);
        Some(entry)
    }

    pub(super) fn touch(&mut self, id: ChunkId, now: Instant) -> bool {
        let Some(entry) = self.chunks.get_mut(&id) else { return false };
        entry.touched = now;
        entry.is_inherited = false;
        true
    }

    pub(super) fn hold(&mut self, id: ChunkId) {
        *self.holds.entry(id).or_default() += 1;
    }

    pub(super) fn release(&mut self, id: ChunkId) {
        if let Some(count) = self.holds.get_mut(&id) {
            *count -= 1;
            if *count == 0 {
                self.holds.remove(&id);
            }
        }
    }

    /// Whether nobody has touched the chunk for long enough and nothing under way needs it.
    pub(super) fn is_idle(&self, id: ChunkId, patience: Patience) -> bool {
        let entry = self.chunks.get(&id);
        entry.is_some_and(|entry| patience.is_over_for(entry)) && !self.holds.contains_key(&id)
    }

    /// Chunks that are.
    pub(super) fn idle(&self, patience: Patience) -> Vec<ChunkId> {
        self.chunks.keys().copied().filter(|id| self.is_idle(*id, patience)).collect()
    }
}

/// All owners' chunks.
#[derive(Debug, Default)]
pub(super) struct Index {
    pub owners: BTreeMap<OwnerId, OwnerIndex>,
}

impl Index {
    pub(super) fn owner(&mut self, owner: &OwnerId) -> &mut OwnerIndex {
        self.owners.entry(owner.clone()).or_default()
    }

    pub(super) fn entry(&self, owner: &OwnerId, id: ChunkId) -> Option<Entry> {
        self.owners.get(owner)?.chunks.get(&id).copied()
    }
}
