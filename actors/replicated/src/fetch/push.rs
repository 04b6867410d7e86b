//! Sends chunks: asks what the other node lacks, streams that, and gets one receipt for all.

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use callboard_protocol::{NodeId, OwnerId};
use futures::{StreamExt as _, stream::FuturesUnordered};

use super::{
    ChunkExchange, ExchangeError, IDS_MAX, PIECE_OVERHEAD,
    wire::{
        Ids, Lack, LackAnswer, Piece, Seal, SealAnswer, Send, SendAnswer, VERB_LACK, VERB_SEAL,
        VERB_SEND, at,
    },
};
use crate::chunks::{ChunkCounters, ChunkError, ChunkId};

/// Messages under way to one node: hides the round trip, bounds memory to some MiB.
const WINDOW: usize = 8;
/// How often what got lost is sent again.
const ROUNDS_MAX: usize = 3;
/// Pause before a node with too much on its way is tried again.
const BUSY_PAUSE: Duration = Duration::from_millis(100);
/// How often it is tried.
const BUSY_TRIES_MAX: u32 = 100;

/// Chunks at hand in memory, which need not be read from the disk to be sent.
/// Clones share them.
#[derive(Debug, Clone, Default)]
pub struct InMemory {
    chunks: Arc<HashMap<ChunkId, Bytes>>,
}

impl InMemory {
    /// These chunks.
    #[must_use]
    pub fn new(chunks: HashMap<ChunkId, Bytes>) -> Self {
        Self { chunks: Arc::new(chunks) }
    }

    fn get(&self, id: ChunkId) -> Option<Bytes> {
        self.chunks.get(&id).cloned()
    }

    /// All of them.
    #[must_use]
    pub fn all(&self) -> Vec<(ChunkId, Bytes)> {
        self.chunks.iter().map(|(id, bytes)| (*id, bytes.clone())).collect()
    }
}

impl ChunkExchange {
    /// Sends chunks to a node; `Ok` means that all are durable there and kept for a grace period.
    ///
    /// # Errors
    /// [`ExchangeError`].
    pub async fn push(
        &self,
        to: &NodeId,
        owner: &OwnerId,
        ids: &[ChunkId],
    ) -> Result<(), ExchangeError> {
        self.push_from(to, owner, ids, &InMemory::default()).await
    }

    /// Like [`ChunkExchange::push`], with those of the chunks that are at hand.
    ///
    /// # Errors
    /// [`ExchangeError`].
    pub async fn push_from(
        &self,
        to: &NodeId,
        owner: &OwnerId,
        ids: &[ChunkId],
        memory: &InMemory,
    ) -> Result<(), ExchangeError> {
        for batch in ids.chunks(IDS_MAX) {
            match self.push_batch(to, owner, batch, memory).await {
                Err(error) if error.is_unknown_verb() => {
                    for id in batch {
                        let chunk = self.at_hand(owner, *id, memory).await?;
                        self.push_one(to, owner, *id, chunk).await?;
                    }
                }
                pushed => pushed?,
            }
        }
        Ok(())
    }

    async fn at_hand(
        &self,
        owner: &OwnerId,
        id: ChunkId,
        memory: &InMemory,
    ) -> Result<Bytes, ExchangeError> {
        if let Some(bytes) = memory.get(id) {
            return Ok(bytes);
        }
        Ok(self.inner.store.get(owner, id).await?.ok_or(ChunkError::Missing(id))?)
    }

    async fn push_batch(
        &self,
        to: &NodeId,
        owner: &OwnerId,
        ids: &[ChunkId],
        memory: &InMemory,
    ) -> Result<(), ExchangeError> {
        let lack = Lack { owner: owner.clone(), ids: Ids::new(ids), verify: true };
        let answer: LackAnswer = self.request(to, VERB_LACK, owner, &lack).await?;
        let mut lacking = at(ids, &answer.lacking);
        let store = &self.inner.store;
        let spared = store.length_of(owner, ids).saturating_sub(store.length_of(owner, &lacking));
        ChunkCounters::add(
            &store.counters().spared_bytes,
            usize::try_from(spared).unwrap_or(usize::MAX),
        );
        if lacking.is_empty() && !answer.unsealed {
            return Ok(());
        }
        let refused =
            |why| ExchangeError::BatchRefused { node: to.clone(), chunks: ids.len(), why };
        for _ in 0..ROUNDS_MAX {
            self.send_all(to, owner, &lacking, memory).await?;
            let seal = Seal { owner: owner.clone(), ids: Ids::new(ids) };
            match self.request(to, VERB_SEAL, owner, &seal).await? {
                SealAnswer::Durable => return Ok(()),
                SealAnswer::Refused(why) => return Err(refused(why)),
                SealAnswer::NoRoom(why) => return Err(no_room(to, why)),
                SealAnswer::Lacking(again) => lacking = at(ids, &again),
            }
        }
        Err(refused("they do not arrive".to_owned()))
    }

    async fn send_all(
        &self,
        to: &NodeId,
        owner: &OwnerId,
        ids: &[ChunkId],
        memory: &InMemory,
    ) -> Result<(), ExchangeError> {
        let limit = self.batch_length();
        let mut sending = FuturesUnordered::new();
        let (mut pieces, mut length) = (Vec::new(), 0);
        for id in ids {
            let chunk = self.at_hand(owner, *id, memory).await?;
            for piece in pieces_of(*id, &chunk, limit - PIECE_OVERHEAD) {
                let more = piece.bytes.len() + PIECE_OVERHEAD;
                if length + more > limit && !pieces.is_empty() {
                    while sending.len() >= WINDOW {
                        sending.next().await.transpose()?;
                    }
                    sending.push(self.send(to, owner, std::mem::take(&mut pieces)));
                    length = 0;
                }
                length += more;
                pieces.push(piece);
            }
        }
        if !pieces.is_empty() {
            sending.push(self.send(to, owner, pieces));
        }
        while sending.next().await.transpose()?.is_some() {}
        Ok(())
    }

    async fn send(
        &self,
        to: &NodeId,
        owner: &OwnerId,
        pieces: Vec<Piece>,
    ) -> Result<(), ExchangeError> {
        let chunks = pieces.len();
        let refused = |why| ExchangeError::BatchRefused { node: to.clone(), chunks, why };
        let bytes = pieces.iter().map(|piece| piece.bytes.len()).sum();
        let send = Send { owner: owner.clone(), pieces };
        for _ in 0..BUSY_TRIES_MAX {
            match self.request(to, VERB_SEND, owner, &send).await? {
                SendAnswer::Taken => {
                    ChunkCounters::add(&self.inner.store.counters().sent_bytes, bytes);
                    return Ok(());
                }
                SendAnswer::Refused(why) => return Err(refused(why)),
                SendAnswer::NoRoom(why) => return Err(no_room(to, why)),
                SendAnswer::Busy => tokio::time::sleep(BUSY_PAUSE).await,
            }
        }
        Err(refused("too many chunks arrive there at once".to_owned()))
    }
}

fn no_room(node: &NodeId, why: String) -> ExchangeError {
    ExchangeError::NoRoom { node: node.clone(), why }
}

/// A chunk in pieces of at most `limit` bytes; an empty one is one piece.
fn pieces_of(id: ChunkId, chunk: &Bytes, limit: usize) -> impl Iterator<Item = Piece> {
    let ids = Ids::new(&[id]);
    let count = chunk.len().div_ceil(limit).max(1);
    (0..count).map(move |number| {
        let from = number * limit;
        let bytes = chunk.slice(from..chunk.len().min(from + limit));
        Piece { id: ids.clone(), length: chunk.len() as u64, offset: from as u64, bytes }
    })
}
