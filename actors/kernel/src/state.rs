//! Between the bytes of a session and what the log names: small parts stay in the log, larger ones
//! become a chunk, large ones several chunks and their index.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use callboard_policy::terms::{Hash, KernelLog, LoggedOutput, Part, StateDelta, StateGroup};

use crate::{
    chunk_list::{ChunkList, ONE_CHUNK_MAX},
    held::{HeldGroup, HeldPart, HeldState, NotHeld},
    python::{Captured, CapturedPart, RestoreGroup},
    running_cell::PlacedOutput,
};

/// Parts up to this size are kept in the log: a file and its fsync would cost more.
pub(crate) const INLINE_PART_MAX: usize = 8 << 10;
/// Most inline bytes one entry may carry, so that it stays far below the broker's limit.
pub(crate) const INLINE_ENTRY_MAX: usize = 256 << 10;
/// Most inline bytes a manifest may hold, since every snapshot carries them.
const INLINE_MANIFEST_MAX: u64 = 1 << 20;

/// How a part's content decides where it is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cut {
    /// Memory, written in place.
    Evenly,
    /// A stream, where something may be inserted.
    ByContent,
}

/// Turns bytes into parts; what does not stay inline is collected as chunks to store.
#[derive(Debug)]
pub(crate) struct Packer {
    inline_left: usize,
    chunks: Vec<Bytes>,
    /// Chunks that a majority has already.
    stored: BTreeSet<Hash>,
}

impl Packer {
    /// A packer for one entry on top of the state in `log`.
    pub(crate) fn new(log: &KernelLog) -> Self {
        let held: u64 = log
            .manifest()
            .values()
            .flat_map(|group| &group.parts)
            .map(|part| if let Part::Inline(bytes) = part { bytes.len() as u64 } else { 0 })
            .sum();
        let left = usize::try_from(INLINE_MANIFEST_MAX.saturating_sub(held)).unwrap_or(0);
        let inline_left = left.min(INLINE_ENTRY_MAX);
        Self { inline_left, chunks: Vec::new(), stored: BTreeSet::new() }
    }

    fn part(&mut self, bytes: Bytes, cut: Cut) -> HeldPart {
        if bytes.len() <= INLINE_PART_MAX && bytes.len() <= self.inline_left {
            self.inline_left -= bytes.len();
            return HeldPart { part: Part::Inline(bytes), list: None };
        }
        if bytes.len() <= ONE_CHUNK_MAX {
            let length = bytes.len() as u64;
            return HeldPart { part: Part::Chunk { hash: self.store(bytes), length }, list: None };
        }
        let (list, pieces) = match cut {
            Cut::Evenly => ChunkList::cut_evenly(&bytes),
            Cut::ByContent => ChunkList::cut_by_content(&bytes),
        };
        for (hash, piece) in list.hashes().zip(pieces) {
            if self.stored.insert(hash) {
                self.chunks.push(piece);
            }
        }
        self.listed(list)
    }

    /// A part that consists of chunks which are stored or collected.
    fn listed(&mut self, list: ChunkList) -> HeldPart {
        let (index, length) = (self.store(list.encode()), list.length());
        HeldPart { part: Part::Chunked { index, length }, list: Some(list) }
    }

    fn store(&mut self, bytes: Bytes) -> Hash {
        let hash = *blake3::hash(&bytes).as_bytes();
        if self.stored.insert(hash) {
            self.chunks.push(bytes);
        }
        hash
    }

    /// What a cell changed, as the log has it. `held` is brought up to what was captured.
    ///
    /// # Errors
    /// [`NotHeld`] if a patch is for something else than what is held; `held` is of no use then.
    pub(crate) fn delta(
        &mut self,
        captured: Captured,
        held: &mut HeldState,
    ) -> Result<StateDelta, NotHeld> {
        let mut upsert = Vec::with_capacity(captured.upsert.len());
        for group in captured.upsert {
            let before = held.take(&group.group);
            self.stored = before.as_ref().map(HeldGroup::stored).unwrap_or_default();
            let mut parts = Vec::with_capacity(group.parts.len());
            for (place, part) in group.parts.into_iter().enumerate() {
                let cut = if place == 0 { Cut::ByContent } else { Cut::Evenly };
                parts.push(match part {
                    CapturedPart::Whole(bytes) => self.part(bytes, cut),
                    CapturedPart::Patch(patch) => {
                        let base = before.as_ref().filter(|it| it.version == group.base);
                        let base = base.and_then(|it| it.parts.get(place));
                        let patched = base.and_then(|base| self.patched(base, &patch, cut));
                        patched.ok_or_else(|| NotHeld { group: group.group.clone(), place })?
                    }
                });
            }
            let logged = parts.iter().map(|held| held.part.clone()).collect();
            held.put(group.group.clone(), HeldGroup { version: group.version, parts });
            let logged = StateGroup { names: group.names, kind: group.kind, parts: logged };
            upsert.push((group.group, logged));
        }
        captured.removed.iter().for_each(|group| drop(held.take(group)));
        Ok(StateDelta {
            upsert,
            removed: captured.removed,
            refused: captured.refused,
            execution_count: captured.execution_count,
        })
    }

    /// A part with some of its chunks replaced; None if the patch does not fit it.
    fn patched(
        &mut self,
        base: &HeldPart,
        patch: &crate::python::PartPatch,
        cut: Cut,
    ) -> Option<HeldPart> {
        if base.part.length() != patch.length {
            return None;
        }
        if patch.changed.is_empty() {
            return Some(match &base.part {
                Part::Inline(bytes) => self.part(bytes.clone(), cut),
                Part::Chunk { .. } | Part::Chunked { .. } => base.clone(),
            });
        }
        let mut list = base.list.clone().filter(|list| list.fixed() == Some(patch.chunk))?;
        let mut start = 0;
        for index in &patch.changed {
            let index = usize::try_from(*index).ok()?;
            let end = start + list.length_at(index)?;
            if end > patch.bytes.len() {
                return None;
            }
            let piece = patch.bytes.slice(start..end);
            start = end;
            // The Python side names what may have changed; what did not costs nothing further.
            if list.replace(index, &piece)? {
                self.chunks.push(piece);
            }
        }
        (start == patch.bytes.len()).then(|| self.listed(list))
    }

    /// Outputs, as the log has them.
    pub(crate) fn outputs(&mut self, outputs: &[PlacedOutput]) -> Vec<LoggedOutput> {
        outputs
            .iter()
            .map(|output| LoggedOutput {
                place: output.place,
                message: self.part(output.message.encode(), Cut::Evenly).part,
            })
            .collect()
    }

    /// The chunks that have to be on stable storage of a majority before the entry is proposed.
    pub(crate) fn into_chunks(self) -> Vec<Bytes> {
        self.chunks
    }
}

/// Chunks that are named somewhere: by themselves, and as an index of more.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Named {
    /// Chunks that hold content.
    pub(crate) content: BTreeSet<Hash>,
    /// Chunks that list other chunks.
    pub(crate) indexes: BTreeSet<Hash>,
}

impl Named {
    /// What these parts name.
    pub(crate) fn of<'a>(parts: impl IntoIterator<Item = &'a Part>) -> Self {
        let mut named = Self::default();
        for part in parts {
            match part {
                Part::Inline(_) => {}
                Part::Chunk { hash, .. } => drop(named.content.insert(*hash)),
                Part::Chunked { index, .. } => drop(named.indexes.insert(*index)),
            }
        }
        named
    }

    /// What the log names: of its state, of its kept outputs, and of earlier states that it can go
    /// back to.
    pub(crate) fn by_log(log: &KernelLog) -> Self {
        let (outputs, _) = log.outputs_since(callboard_protocol::kernel::OutputCursor::default());
        let parts = log.manifest().values().chain(log.kept_groups()).flat_map(|group| &group.parts);
        Self::of(parts.chain(outputs.map(|output| &output.message)))
    }

    /// What an executor needs to take over.
    pub(crate) fn by_state(log: &KernelLog) -> Self {
        Self::of(log.manifest().values().flat_map(|group| &group.parts))
    }

    /// Every chunk, the indexes and what they list among them. `list` gives what an index lists.
    ///
    /// # Errors
    /// The first index that `list` does not know.
    pub(crate) fn expand(
        &self,
        mut list: impl FnMut(&Hash) -> Option<Vec<Hash>>,
    ) -> Result<BTreeSet<Hash>, Hash> {
        let mut all = self.content.clone();
        for index in &self.indexes {
            all.insert(*index);
            all.extend(list(index).ok_or(*index)?);
        }
        Ok(all)
    }
}

/// The hashes that an index lists; none if it cannot be read.
#[must_use]
pub fn listed_by(index: &[u8]) -> Option<Vec<Hash>> {
    let list = ChunkList::decode(index);
    list.inspect_err(|error| tracing::error!(%error, "a part of the state"))
        .ok()
        .map(|list| list.hashes().collect())
}

/// Every chunk that a kernel's log names, directly or through an index, for the collector of
/// garbage: what is not among them is not needed. `read` gives an index's bytes.
///
/// # Errors
/// The hash of an index that `read` does not have; nothing may be collected then.
pub fn all_chunks(
    log: &KernelLog,
    mut read: impl FnMut(&Hash) -> Option<Bytes>,
) -> Result<BTreeSet<Hash>, Hash> {
    Named::by_log(log).expand(|index| listed_by(&read(index)?))
}

/// The pieces that make up a part, read through `get`.
///
/// # Errors
/// The hash of the first chunk that cannot be read.
pub(crate) fn pieces(
    part: &Part,
    mut get: impl FnMut(&Hash) -> Option<Bytes>,
) -> Result<Vec<Bytes>, Hash> {
    match part {
        Part::Inline(bytes) => Ok(vec![bytes.clone()]),
        Part::Chunk { hash, .. } => Ok(vec![get(hash).ok_or(*hash)?]),
        Part::Chunked { index, .. } => {
            let listed = get(index).and_then(|bytes| listed_by(&bytes)).ok_or(*index)?;
            listed.iter().map(|hash| get(hash).ok_or(*hash)).collect()
        }
    }
}

/// The groups of a manifest with their bytes, read through `get`.
///
/// # Errors
/// The hash of the first chunk that cannot be read.
pub(crate) fn restore_groups(
    manifest: &BTreeMap<String, StateGroup>,
    mut get: impl FnMut(&Hash) -> Option<Bytes>,
) -> Result<Vec<RestoreGroup>, Hash> {
    manifest
        .iter()
        .map(|(id, group)| {
            let parts: Result<_, Hash> =
                group.parts.iter().map(|part| pieces(part, &mut get)).collect();
            Ok(RestoreGroup {
                group: id.clone(),
                names: group.names.clone(),
                kind: group.kind.clone(),
                parts: parts?,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests;
