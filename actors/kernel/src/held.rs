//! What the running Python process takes this replica to hold: the base of its patches.
//!
//! Lives as long as the process. It runs ahead of the log by the cells that are on their way there;
//! if one of them is lost, so is the process.

use std::collections::{BTreeSet, HashMap};

use callboard_policy::terms::{Hash, Part};

use crate::chunk_list::ChunkList;

/// A patch was sent for something that is not held here: the two sides disagree.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("part {place} of {group} was sent as a change of something that is not held here")]
pub(crate) struct NotHeld {
    /// The group.
    pub(crate) group: String,
    /// Which of its parts.
    pub(crate) place: usize,
}

/// One part.
#[derive(Debug, Clone)]
pub(crate) struct HeldPart {
    /// As the log has it.
    pub(crate) part: Part,
    /// Its chunks, if it is cut.
    pub(crate) list: Option<ChunkList>,
}

/// One group.
#[derive(Debug, Clone)]
pub(crate) struct HeldGroup {
    /// The capture that sent it.
    pub(crate) version: Option<u64>,
    /// Its parts.
    pub(crate) parts: Vec<HeldPart>,
}

impl HeldGroup {
    /// The chunks of this group, which a majority has.
    pub(crate) fn stored(&self) -> BTreeSet<Hash> {
        let indexes = self.parts.iter().filter_map(|held| match held.part {
            Part::Chunk { hash, .. } => Some(hash),
            Part::Chunked { index, .. } => Some(index),
            Part::Inline(_) => None,
        });
        let lists = self.parts.iter().filter_map(|held| held.list.as_ref());
        indexes.chain(lists.flat_map(ChunkList::hashes)).collect()
    }
}

/// All groups.
#[derive(Debug, Default)]
pub(crate) struct HeldState {
    groups: HashMap<String, HeldGroup>,
}

impl HeldState {
    /// Takes a group out.
    pub(crate) fn take(&mut self, group: &str) -> Option<HeldGroup> {
        self.groups.remove(group)
    }

    /// Puts a group's new version in.
    pub(crate) fn put(&mut self, group: String, held: HeldGroup) {
        self.groups.insert(group, held);
    }
}
