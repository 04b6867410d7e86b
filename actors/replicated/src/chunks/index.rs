//! What is on the disk, in memory: so that asking for thousands of chunks costs no system call.
//!
//! Pure bookkeeping: no file is touched here, and time is an argument.

use std::collections::{BTreeMap, HashMap};

use callboard_protocol::OwnerId;
use tokio::time::Instant;

use super::id::ChunkId;

/// A chunk that is there.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    pub length: u64,
    /// When somebody last put it or was told that it is here, in this life of the node.
    pub touched: Instant,
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
        self.chunks.insert(id, Entry { length, touched: now });
    }

    pub(super) fn remove(&mut self, id: ChunkId) -> Option<Entry> {
        let entry = self.chunks.remove(&id)?;
        self.bytes = self.bytes.saturating_sub(entry.length);
        Some(entry)
    }

    pub(super) fn touch(&mut self, id: ChunkId, now: Instant) -> bool {
        let entry = self.chunks.get_mut(&id);
        entry.map(|entry| entry.touched = now).is_some()
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

    /// Whether nobody touched the chunk since `before` and nothing under way needs it.
    pub(super) fn is_idle(&self, id: ChunkId, before: Instant) -> bool {
        let entry = self.chunks.get(&id);
        entry.is_some_and(|entry| entry.touched <= before) && !self.holds.contains_key(&id)
    }

    /// Chunks that are idle since `before`.
    pub(super) fn idle(&self, before: Instant) -> Vec<ChunkId> {
        self.chunks.keys().copied().filter(|id| self.is_idle(*id, before)).collect()
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
