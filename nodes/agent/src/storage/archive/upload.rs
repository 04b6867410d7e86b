//! Copies chunks to the object store in the background.

use std::{
    collections::{BTreeSet, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    time::Duration,
};

use callboard_protocol::OwnerId;
use callboard_replicated::{ChunkId, ChunkStore};
use futures::{StreamExt as _, stream};
use tokio::{sync::Notify, time::Instant};

use super::ObjectArchive;
use crate::storage::keeper::Tally;

/// Objects written at once.
const AT_ONCE: usize = 4;
/// Chunks taken from the queue at a time.
const BATCH: usize = 64;
/// Pause after the object store failed.
const RETRY_AFTER: Duration = Duration::from_secs(5);
/// After this time the object store is asked again whether it has what it was given: another node
/// may have swept it.
const BELIEVED_FOR: Duration = Duration::from_secs(600);

type Key = (OwnerId, ChunkId);

#[derive(Debug, Default)]
struct State {
    waiting: BTreeSet<Key>,
    known: HashSet<Key>,
    known_since: Option<Instant>,
}

/// Chunks that wait to be copied.
#[derive(Debug, Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    filled: Notify,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn offer(&self, owner: &OwnerId, ids: &[ChunkId]) {
        let mut state = self.lock();
        if state.known_since.is_none_or(|since| since.elapsed() >= BELIEVED_FOR) {
            state.known.clear();
            state.known_since = Some(Instant::now());
        }
        for id in ids {
            let key = (owner.clone(), *id);
            if !state.known.contains(&key) {
                state.waiting.insert(key);
            }
        }
        drop(state);
        self.filled.notify_one();
    }

    /// The object store no longer has a chunk.
    pub(super) fn forget(&self, owner: &OwnerId, id: ChunkId) {
        let mut state = self.lock();
        let key = (owner.clone(), id);
        state.waiting.remove(&key);
        state.known.remove(&key);
    }

    fn take(&self) -> Vec<Key> {
        let mut state = self.lock();
        (0..BATCH).map_while(|_| state.waiting.pop_first()).collect()
    }
}

impl ObjectArchive {
    /// Copies what is offered, for ever.
    pub(crate) async fn upload(self: Arc<Self>, chunks: ChunkStore, tally: Arc<Tally>) {
        loop {
            let batch = self.queue.take();
            if batch.is_empty() {
                self.queue.filled.notified().await;
                continue;
            }
            let copies = stream::iter(batch).map(|(owner, id)| {
                let (this, chunks) = (&self, &chunks);
                async move {
                    let copied = this.copy(chunks, &owner, id).await;
                    ((owner, id), copied)
                }
            });
            let done: Vec<(Key, Result<u64, String>)> =
                copies.buffer_unordered(AT_ONCE).collect().await;
            let mut failure = None;
            {
                let mut state = self.queue.lock();
                for (key, copied) in done {
                    match copied {
                        Ok(bytes) => {
                            tally
                                .archived_chunks
                                .fetch_add(u64::from(bytes > 0), Ordering::Relaxed);
                            tally.archived_bytes.fetch_add(bytes, Ordering::Relaxed);
                            state.known.insert(key);
                        }
                        Err(why) => {
                            failure = Some(why);
                            state.waiting.insert(key);
                        }
                    }
                }
            }
            if let Some(why) = failure {
                tracing::warn!(%why, "chunks could not be copied to the object store yet");
                tokio::time::sleep(RETRY_AFTER).await;
            }
        }
    }

    /// Copies one chunk, unless it is there or gone; returns the bytes that were written.
    async fn copy(&self, chunks: &ChunkStore, owner: &OwnerId, id: ChunkId) -> Result<u64, String> {
        if self.has(owner, id).await? {
            return Ok(0);
        }
        let Ok(Some(bytes)) = chunks.get(owner, id).await else { return Ok(0) };
        let length = bytes.len() as u64;
        self.write(owner, id, bytes).await.map(|()| length)
    }
}
