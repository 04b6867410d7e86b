//! Reads chunks slowly, again and again, to find damage before the bytes are needed.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use callboard_protocol::OwnerId;
use callboard_replicated::{ChunkError, ChunkId};

use super::{Storage, keeper::Tally};

/// Pause after a round that found nothing to read.
const IDLE_PAUSE: Duration = Duration::from_secs(10);
/// Shortest pause between two chunks: small ones cost a system call each.
const PAUSE_MIN: Duration = Duration::from_millis(20);

/// Scrubs for ever.
pub(super) async fn scrub(storage: Storage, tally: Arc<Tally>) {
    let rate = storage.options.scrub_bytes_per_s;
    if rate == 0 {
        return;
    }
    loop {
        tokio::time::sleep(IDLE_PAUSE).await;
        for usage in storage.chunks.usage() {
            for id in storage.chunks.list(&usage.owner) {
                let length = look(&storage, &usage.owner, id).await;
                tally.scrubbed_chunks.fetch_add(1, Ordering::Relaxed);
                let pause = Duration::from_millis(length.saturating_mul(1000) / rate);
                tokio::time::sleep(pause.max(PAUSE_MIN)).await;
            }
        }
    }
}

/// Reads one chunk; the store sets it aside if it is damaged. Returns its length.
async fn look(storage: &Storage, owner: &OwnerId, id: ChunkId) -> u64 {
    match storage.chunks.get(owner, id).await {
        Ok(chunk) => chunk.map_or(0, |bytes| bytes.len() as u64),
        Err(ChunkError::Corrupt(_)) => {
            let kernels = kernels(storage, owner, id);
            tracing::error!(chunk = %id, %owner, ?kernels, "the scrub found a damaged chunk");
            0
        }
        Err(error) => {
            tracing::warn!(chunk = %id, %error, "a chunk could not be read by the scrub");
            0
        }
    }
}

/// The kernels that name a chunk.
pub(super) fn kernels(storage: &Storage, owner: &OwnerId, id: ChunkId) -> Vec<String> {
    let holders = storage.pins.who_names(owner, id).into_iter();
    holders.map(|(group, _)| group.to_string()).collect()
}
