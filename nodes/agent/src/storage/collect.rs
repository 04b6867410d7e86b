//! One round of the collector: chunks go that nothing on this node names and nobody was promised
//! within the grace period.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use callboard_protocol::{OwnerId, storage::Purged};
use callboard_replicated::{ChunkError, ChunkId, GRACE_MIN, RECEIPT_VALID};

use super::Storage;

/// Most chunks removed in one round, so that a round stays short.
const ROUND_CHUNKS_MAX: usize = 4096;

/// Removes garbage; returns why some owner's could not be judged, if so.
pub(super) async fn collect(storage: &Storage) -> Result<Option<String>, ChunkError> {
    let Storage { chunks, pins, options, .. } = storage;
    let mut waits = None;
    let is_tight = storage.is_tight();
    let grace = if is_tight { options.chunk_grace.min(GRACE_MIN) } else { options.chunk_grace };
    for usage in chunks.usage() {
        let owner = &usage.owner;
        match chunks.collect_unnamed(pins, owner, grace, ROUND_CHUNKS_MAX).await? {
            Ok(gone) if gone.chunks > 0 => {
                tracing::info!(%owner, chunks = gone.chunks, bytes = gone.bytes, "collected");
            }
            Ok(_) => {}
            Err(waiting) => drop(waits.get_or_insert(waiting.to_string())),
        }
    }
    Ok(waits)
}

/// Removes what the members of a kernel that was stopped named and nobody else does, without the
/// grace period: only what something else of the owner was promised a moment ago stays.
pub(super) async fn purge(
    storage: &Storage,
    departed: &[(OwnerId, Arc<BTreeSet<ChunkId>>)],
) -> Result<Purged, ChunkError> {
    let Storage { chunks, pins, .. } = storage;
    let mut purged = Purged::default();
    for (owner, departed) in departed {
        let is_shared = pins.has_owner(owner);
        let named = match pins.named(owner) {
            Ok(named) => named,
            Err(waiting) => {
                tracing::info!(%waiting, "purged chunks go when that is known");
                purged.left += departed.len() as u64;
                continue;
            }
        };
        let grace = if is_shared { RECEIPT_VALID * 2 } else { Duration::ZERO };
        let garbage: Vec<ChunkId> =
            departed.iter().filter(|id| !named.contains(id)).copied().collect();
        let asked = garbage.len() as u64;
        let gone = chunks.remove_idle(owner, garbage, grace).await?;
        purged.chunks += gone.chunks;
        purged.bytes += gone.bytes;
        purged.left += asked - gone.chunks;
    }
    Ok(purged)
}
