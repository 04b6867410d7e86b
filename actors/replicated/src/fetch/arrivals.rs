//! Chunks on their way in: assembled from pieces in any order, written as they are whole, made
//! durable together when the sender says that it has sent all.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use callboard_protocol::OwnerId;
use tokio::{sync::Notify, time::Instant};

use super::wire::{Piece, SealAnswer, positions};
use crate::chunks::{CHUNK_LENGTH_MAX, ChunkError, ChunkId, ChunkStore, Staged};

/// Bytes of chunks that are not whole yet, over all senders; bounds memory.
const PARTIAL_BYTES_MAX: usize = 4 * CHUNK_LENGTH_MAX;
/// What nobody asked about for this long is dropped.
const PATIENCE: Duration = Duration::from_secs(60);

type Key = (OwnerId, ChunkId);

#[derive(Debug)]
struct Partial {
    bytes: BytesMut,
    offsets: BTreeSet<u64>,
    left: usize,
    touched: Instant,
}

#[derive(Debug, Default)]
struct State {
    partial: HashMap<Key, Partial>,
    staged: HashMap<Key, (Staged, Instant)>,
    sealing: HashSet<Key>,
}

/// What became of a piece.
#[derive(Debug)]
pub(super) enum Taken {
    /// It waits for the others of its chunk, or was known.
    Waits,
    /// It was the last one.
    Whole(ChunkId, Bytes),
    /// There is no room for it now.
    Busy,
    /// It makes no sense.
    Refused(String),
}

#[derive(Debug, Default)]
pub(super) struct Arrivals {
    state: Mutex<State>,
    sealed: Notify,
}

impl Arrivals {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a piece.
    pub(super) fn take(&self, owner: &OwnerId, piece: Piece) -> Taken {
        let length = usize::try_from(piece.length).unwrap_or(usize::MAX);
        if length > CHUNK_LENGTH_MAX {
            return Taken::Refused(ChunkError::TooLarge { length }.to_string());
        }
        let Some(id) = piece.id.one() else {
            return Taken::Refused("a piece without a chunk id".to_owned());
        };
        let offset = usize::try_from(piece.offset).unwrap_or(usize::MAX);
        if offset.saturating_add(piece.bytes.len()) > length {
            return Taken::Refused(format!("a piece beyond the end of chunk {id}"));
        }
        let key = (owner.clone(), id);
        let now = Instant::now();
        let mut state = self.lock();
        state.forget_old(now);
        if state.staged.contains_key(&key) || state.sealing.contains(&key) {
            return Taken::Waits;
        }
        if piece.bytes.len() == length {
            state.partial.remove(&key);
            return Taken::Whole(id, piece.bytes);
        }
        state.assemble(key, id, offset, length, &piece.bytes, now)
    }

    /// Remembers a whole chunk that was written.
    pub(super) fn staged(&self, owner: &OwnerId, id: ChunkId, staged: Staged) {
        let mut state = self.lock();
        let key = (owner.clone(), id);
        // Arrived twice: the first one counts, the other file is removed as it is dropped.
        if !state.sealing.contains(&key) {
            state.staged.entry(key).or_insert((staged, Instant::now()));
        }
    }

    /// Those of `ids` that are whole here and not durable yet.
    pub(super) fn unsealed(&self, owner: &OwnerId, ids: &[ChunkId]) -> HashSet<ChunkId> {
        let (mut state, now) = (self.lock(), Instant::now());
        let mut unsealed = HashSet::new();
        for id in ids {
            let key = (owner.clone(), *id);
            if let Some((_, touched)) = state.staged.get_mut(&key) {
                *touched = now;
                unsealed.insert(*id);
            } else if state.sealing.contains(&key) {
                unsealed.insert(*id);
            }
        }
        unsealed
    }

    /// Makes what arrived of `ids` durable, and says what is not there.
    pub(super) async fn seal(
        &self,
        store: &ChunkStore,
        owner: &OwnerId,
        ids: Vec<ChunkId>,
    ) -> SealAnswer {
        let staged = loop {
            let sealed = self.sealed.notified();
            if let Some(staged) = self.begin_seal(owner, &ids) {
                break staged;
            }
            sealed.await;
        };
        let sealing: Vec<Key> = staged.iter().map(|it| (owner.clone(), it.id())).collect();
        let (of_store, of_owner) = (store.clone(), owner.clone());
        let committed =
            tokio::task::spawn_blocking(move || of_store.commit(&of_owner, staged)).await;
        {
            let mut state = self.lock();
            for key in &sealing {
                state.sealing.remove(key);
            }
        }
        self.sealed.notify_waiters();
        match committed {
            Ok(Ok(())) => {}
            Ok(Err(error)) if error.is_no_room() => return SealAnswer::NoRoom(error.to_string()),
            Ok(Err(error)) => return SealAnswer::Refused(error.to_string()),
            Err(_) => return SealAnswer::Refused(ChunkError::Stopped.to_string()),
        }
        let kept: HashSet<ChunkId> = store.keep(owner, &ids).into_iter().collect();
        let lacking = positions(&ids, |id| !kept.contains(id));
        if lacking.is_empty() { SealAnswer::Durable } else { SealAnswer::Lacking(lacking) }
    }

    /// Makes durable what has arrived whole of `ids`, whether its sender goes on or not.
    ///
    /// # Errors
    /// What the store says.
    pub(super) async fn seal_whole(
        &self,
        store: &ChunkStore,
        owner: &OwnerId,
        ids: &[ChunkId],
    ) -> Result<(), ChunkError> {
        let unsealed: Vec<ChunkId> = self.unsealed(owner, ids).into_iter().collect();
        if unsealed.is_empty() {
            return Ok(());
        }
        match self.seal(store, owner, unsealed).await {
            SealAnswer::Durable | SealAnswer::Lacking(_) => Ok(()),
            SealAnswer::Refused(why) | SealAnswer::NoRoom(why) => {
                tracing::debug!(%why, "what arrived could not be kept");
                store.check_failed()
            }
        }
    }

    /// What is staged of `ids`, unless another call is making some of them durable.
    fn begin_seal(&self, owner: &OwnerId, ids: &[ChunkId]) -> Option<Vec<Staged>> {
        let mut state = self.lock();
        let keys = || ids.iter().map(|id| (owner.clone(), *id));
        if keys().any(|key| state.sealing.contains(&key)) {
            return None;
        }
        let mut staged = Vec::new();
        for key in keys() {
            if let Some((it, _)) = state.staged.remove(&key) {
                state.sealing.insert(key);
                staged.push(it);
            }
        }
        Some(staged)
    }
}

impl State {
    fn forget_old(&mut self, now: Instant) {
        self.partial.retain(|_, it| now.duration_since(it.touched) < PATIENCE);
        self.staged.retain(|_, (_, touched)| now.duration_since(*touched) < PATIENCE);
    }

    fn assemble(
        &mut self,
        key: Key,
        id: ChunkId,
        offset: usize,
        length: usize,
        bytes: &[u8],
        now: Instant,
    ) -> Taken {
        let partial_bytes: usize = self.partial.values().map(|it| it.bytes.len()).sum();
        if !self.partial.contains_key(&key) && partial_bytes + length > PARTIAL_BYTES_MAX {
            return Taken::Busy;
        }
        let partial = self.partial.entry(key.clone()).or_insert_with(|| Partial {
            bytes: BytesMut::zeroed(length),
            offsets: BTreeSet::new(),
            left: length,
            touched: now,
        });
        partial.touched = now;
        if partial.bytes.len() != length {
            return Taken::Refused(format!("chunk {id} changed its length"));
        }
        if partial.offsets.insert(offset as u64) {
            partial.bytes[offset..offset + bytes.len()].copy_from_slice(bytes);
            partial.left = partial.left.saturating_sub(bytes.len());
        }
        if partial.left > 0 {
            return Taken::Waits;
        }
        match self.partial.remove(&key) {
            Some(whole) => Taken::Whole(id, whole.bytes.freeze()),
            None => Taken::Waits,
        }
    }
}
