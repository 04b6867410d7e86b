//! Between the bytes of a session and what the log names: small parts stay in the log, large ones
//! become chunks.

use std::collections::BTreeSet;

use bytes::Bytes;
use callboard_policy::terms::{Hash, KernelLog, LoggedOutput, Part, StateDelta, StateGroup};

use crate::{
    python::{Captured, RestoreGroup},
    running_cell::PlacedOutput,
};

/// Parts up to this size are kept in the log: a file and its fsync would cost more.
const INLINE_PART_MAX: usize = 8 << 10;
/// Most inline bytes one entry may carry, so that it stays far below the broker's limit.
const INLINE_ENTRY_MAX: usize = 256 << 10;
/// Most inline bytes a manifest may hold, since every snapshot carries them.
const INLINE_MANIFEST_MAX: u64 = 1 << 20;

/// Turns bytes into parts; what does not stay inline is collected as chunks to store.
#[derive(Debug)]
pub(crate) struct Packer {
    inline_left: usize,
    chunks: Vec<Bytes>,
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
        Self { inline_left: left.min(INLINE_ENTRY_MAX), chunks: Vec::new() }
    }

    fn part(&mut self, bytes: Bytes) -> Part {
        if bytes.len() <= INLINE_PART_MAX && bytes.len() <= self.inline_left {
            self.inline_left -= bytes.len();
            return Part::Inline(bytes);
        }
        let hash = *blake3::hash(&bytes).as_bytes();
        let length = bytes.len() as u64;
        self.chunks.push(bytes);
        Part::Chunk { hash, length }
    }

    /// What a cell changed, as the log has it.
    pub(crate) fn delta(&mut self, captured: Captured) -> StateDelta {
        let upsert = captured
            .upsert
            .into_iter()
            .map(|group| {
                let parts = group.parts.into_iter().map(|bytes| self.part(bytes)).collect();
                (group.group, StateGroup { names: group.names, kind: group.kind, parts })
            })
            .collect();
        StateDelta {
            upsert,
            removed: captured.removed,
            refused: captured.refused,
            execution_count: captured.execution_count,
        }
    }

    /// Outputs, as the log has them.
    pub(crate) fn outputs(&mut self, outputs: &[PlacedOutput]) -> Vec<LoggedOutput> {
        outputs
            .iter()
            .map(|output| LoggedOutput {
                place: output.place,
                message: self.part(output.message.encode()),
            })
            .collect()
    }

    /// The chunks that have to be on stable storage of a majority before the entry is proposed.
    pub(crate) fn into_chunks(self) -> Vec<Bytes> {
        self.chunks
    }
}

/// The chunks that the log names: those of its state, of its kept outputs, and of earlier states
/// that it can go back to.
pub(crate) fn chunks_named(log: &KernelLog) -> BTreeSet<Hash> {
    let (outputs, _) = log.outputs_since(callboard_protocol::kernel::OutputCursor::default());
    let kept = log.kept_groups().flat_map(|group| &group.parts);
    let kept = chunks_of(kept.chain(outputs.map(|output| &output.message)));
    kept.chain(chunks_of_state(log)).collect()
}

/// The chunks that an executor needs to take over.
pub(crate) fn chunks_of_state(log: &KernelLog) -> impl Iterator<Item = Hash> {
    chunks_of(log.manifest().values().flat_map(|group| &group.parts))
}

fn chunks_of<'a>(parts: impl Iterator<Item = &'a Part>) -> impl Iterator<Item = Hash> {
    parts.filter_map(|part| match part {
        Part::Chunk { hash, .. } => Some(*hash),
        Part::Inline(_) => None,
    })
}

/// The groups of a manifest with their bytes, read through `get`.
///
/// # Errors
/// The hash of the first chunk that cannot be read.
pub(crate) fn restore_groups(
    log: &KernelLog,
    mut get: impl FnMut(&Hash) -> Option<Bytes>,
) -> Result<Vec<RestoreGroup>, Hash> {
    log.manifest()
        .iter()
        .map(|(id, group)| {
            let parts = group
                .parts
                .iter()
                .map(|part| match part {
                    Part::Inline(bytes) => Ok(bytes.clone()),
                    Part::Chunk { hash, .. } => get(hash).ok_or(*hash),
                })
                .collect::<Result<Vec<_>, _>>()?;
            Ok(RestoreGroup {
                group: id.clone(),
                names: group.names.clone(),
                kind: group.kind.clone(),
                parts,
            })
        })
        .collect()
}
