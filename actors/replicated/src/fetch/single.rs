//! One chunk, one piece after the other: how the version before moves chunks.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use callboard_protocol::{NodeId, OwnerId};
use tokio::time::Instant;

use super::{
    ChunkExchange, ExchangeError,
    wire::{Get, GetAnswer, Put, PutAnswer, VERB_GET, VERB_PUT},
};
use crate::chunks::{CHUNK_LENGTH_MAX, ChunkCounters, ChunkError, ChunkId};

/// Largest piece in bytes; well under a payload limit of 1 MiB.
const PIECE_LENGTH_MAX: usize = 512 << 10;
/// Chunks that may arrive at once; bounds memory together with [`CHUNK_LENGTH_MAX`].
const ARRIVING_MAX: usize = 16;
/// A chunk whose next piece does not come within this time is dropped.
const ARRIVAL_PATIENCE: Duration = Duration::from_secs(60);

type ChunkKey = (OwnerId, ChunkId);

#[derive(Debug)]
struct Arrival {
    bytes: BytesMut,
    touched: Instant,
}

/// What is under way piece by piece.
#[derive(Debug, Default)]
pub(super) struct Single {
    arriving: Mutex<HashMap<ChunkKey, Arrival>>,
    /// The chunk that was served last, so that its next piece needs no second reading.
    serving: Mutex<Option<(ChunkKey, Bytes)>>,
}

impl ChunkExchange {
    /// A chunk's bytes; from the last reading if the asker goes on with it.
    pub(super) async fn read_to_serve(
        &self,
        owner: &OwnerId,
        id: ChunkId,
        offset: usize,
    ) -> Option<Bytes> {
        if offset > 0 {
            let key = (owner.clone(), id);
            let serving = self.inner.single.serving.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((_, chunk)) = serving.as_ref().filter(|(last, _)| *last == key) {
                return Some(chunk.clone());
            }
        }
        match self.inner.store.get(owner, id).await {
            Ok(chunk) => chunk,
            Err(error) => {
                tracing::error!(%error, "a chunk was asked for but cannot be served");
                None
            }
        }
    }

    /// Keeps a chunk of which the part from `to` on was not sent yet.
    pub(super) fn remember_rest(&self, owner: &OwnerId, id: ChunkId, chunk: &Bytes, to: usize) {
        let key = (owner.clone(), id);
        let mut serving = self.inner.single.serving.lock().unwrap_or_else(PoisonError::into_inner);
        if to < chunk.len() {
            *serving = Some((key, chunk.clone()));
        } else if serving.as_ref().is_some_and(|(last, _)| *last == key) {
            *serving = None;
        }
    }

    pub(super) async fn answer_get(&self, get: Get) -> GetAnswer {
        let from = usize::try_from(get.offset).unwrap_or(usize::MAX);
        let Some(chunk) = self.read_to_serve(&get.owner, get.id, from).await else {
            return GetAnswer::Missing;
        };
        let from = from.min(chunk.len());
        let to = chunk.len().min(from + self.piece_length());
        let bytes = chunk.slice(from..to);
        self.remember_rest(&get.owner, get.id, &chunk, to);
        ChunkCounters::add(&self.inner.store.counters().sent_bytes, bytes.len());
        GetAnswer::Piece { length: chunk.len() as u64, bytes }
    }

    fn piece_length(&self) -> usize {
        PIECE_LENGTH_MAX.min(self.inner.bus.payload_max() / 2).max(1)
    }

    pub(super) async fn answer_put(&self, put: Put) -> PutAnswer {
        let length = usize::try_from(put.length).unwrap_or(usize::MAX);
        if length > CHUNK_LENGTH_MAX {
            return PutAnswer::Refused(ChunkError::TooLarge { length }.to_string());
        }
        ChunkCounters::add(&self.inner.store.counters().received_bytes, put.bytes.len());
        let key = (put.owner.clone(), put.id);
        let begun = self.lock_arriving(|arriving| arriving.contains_key(&key));
        // Looks at the bytes, not only at the name, so that damage here is repaired by the sender.
        if !begun
            && matches!(self.inner.store.get(&put.owner, put.id).await, Ok(Some(_)))
            && !self.inner.store.keep(&put.owner, &[put.id]).is_empty()
        {
            return PutAnswer::Durable;
        }
        if !begun && put.offset != 0 {
            return PutAnswer::Continue(0);
        }
        let whole = match self.collect_piece(&key, &put, length) {
            Ok(whole) => whole,
            Err(answer) => return answer,
        };
        if ChunkId::of(&whole) != put.id {
            return PutAnswer::Refused("the bytes do not match the hash".to_owned());
        }
        match self.inner.store.take(&put.owner, put.id, whole).await {
            Ok(()) => PutAnswer::Durable,
            Err(error) => PutAnswer::Refused(error.to_string()),
        }
    }

    fn lock_arriving<T>(&self, look: impl FnOnce(&mut HashMap<ChunkKey, Arrival>) -> T) -> T {
        look(&mut self.inner.single.arriving.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Adds a piece; returns the whole chunk once it is complete, else what to answer.
    fn collect_piece(&self, key: &ChunkKey, put: &Put, length: usize) -> Result<Bytes, PutAnswer> {
        self.lock_arriving(|arriving| {
            arriving.retain(|_, arrival| arrival.touched.elapsed() < ARRIVAL_PATIENCE);
            if arriving.len() >= ARRIVING_MAX && !arriving.contains_key(key) {
                let why = "too many chunks arrive at once; try later".to_owned();
                return Err(PutAnswer::Refused(why));
            }
            let arrival = arriving
                .entry(key.clone())
                .or_insert_with(|| Arrival { bytes: BytesMut::new(), touched: Instant::now() });
            arrival.touched = Instant::now();
            if put.offset == arrival.bytes.len() as u64
                && arrival.bytes.len() + put.bytes.len() <= length
            {
                arrival.bytes.extend_from_slice(&put.bytes);
            }
            if arrival.bytes.len() < length {
                return Err(PutAnswer::Continue(arrival.bytes.len() as u64));
            }
            Ok(arriving.remove(key).map(|arrival| arrival.bytes.freeze()).unwrap_or_default())
        })
    }

    pub(super) async fn push_one(
        &self,
        to: &NodeId,
        owner: &OwnerId,
        id: ChunkId,
        chunk: Bytes,
    ) -> Result<(), ExchangeError> {
        let refused = |why| ExchangeError::Refused { node: to.clone(), id, why };
        let mut offset = 0;
        // The receiver may ask to start over once, if it restarted or forgot an old arrival.
        let pieces_max = 2 * (chunk.len() / self.piece_length() + 2);
        for _ in 0..pieces_max {
            let end = chunk.len().min(offset + self.piece_length());
            let put = Put {
                owner: owner.clone(),
                id,
                length: chunk.len() as u64,
                offset: offset as u64,
                bytes: chunk.slice(offset..end),
            };
            ChunkCounters::add(&self.inner.store.counters().sent_bytes, put.bytes.len());
            match self.request(to, VERB_PUT, owner, &put).await? {
                PutAnswer::Durable => return Ok(()),
                PutAnswer::Refused(why) => return Err(refused(why)),
                PutAnswer::Continue(next) => {
                    offset = usize::try_from(next).unwrap_or(0).min(chunk.len());
                }
            }
        }
        Err(refused("it keeps asking for the same piece".to_owned()))
    }

    pub(super) async fn fetch_one(
        &self,
        node: &NodeId,
        owner: &OwnerId,
        id: ChunkId,
    ) -> Result<Option<Bytes>, ExchangeError> {
        let mut chunk = BytesMut::new();
        loop {
            let get = Get { owner: owner.clone(), id, offset: chunk.len() as u64 };
            match self.request(node, VERB_GET, owner, &get).await? {
                GetAnswer::Missing => return Ok(None),
                GetAnswer::Piece { length, bytes } => {
                    let length = usize::try_from(length).unwrap_or(usize::MAX);
                    ChunkCounters::add(&self.inner.store.counters().received_bytes, bytes.len());
                    chunk.extend_from_slice(&bytes);
                    if chunk.len() >= length || bytes.is_empty() || chunk.len() > CHUNK_LENGTH_MAX {
                        return Ok(Some(chunk.freeze()));
                    }
                }
            }
        }
    }
}
