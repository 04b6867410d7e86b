//! Chunks from node to node over the bulk lane, in pieces that fit the broker's payload limit.
//!
//! Owns the node verbs `chunk-get` and `chunk-put`. What arrives is checked against its hash before
//! it is stored, and a receipt is given only after the fsync.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use callboard_protocol::{
    ActorKind, ClusterId, Envelope, NodeId, OwnerId, Subject, SubjectPattern,
};
use callboard_transport::{Bus, BusError, BusHealth, Message, Subscription};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{sync::watch, time::Instant};

use crate::{
    chunks::{CHUNK_LENGTH_MAX, ChunkError, ChunkId, ChunkStore},
    raft::types::{decode, encode},
};

/// Largest piece in bytes; well under a payload limit of 1 MiB.
pub const PIECE_LENGTH_MAX: usize = 512 << 10;
/// How long one piece may take. The last one of a chunk includes an fsync.
const PIECE_DEADLINE: Duration = Duration::from_secs(10);
/// How often a piece is sent before the peer counts as gone.
const TRIES_MAX: u32 = 3;
/// Chunks that may arrive at once; bounds memory together with [`CHUNK_LENGTH_MAX`].
const ARRIVING_MAX: usize = 16;
/// A chunk whose next piece does not come within this time is dropped.
const ARRIVAL_PATIENCE: Duration = Duration::from_secs(60);
const VERB_GET: &str = "chunk-get";
const VERB_PUT: &str = "chunk-put";

/// Why chunks were not moved.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// The store on this node refused.
    #[error(transparent)]
    Store(#[from] ChunkError),
    /// The other node did not answer.
    #[error("node {node} did not take part: {source}")]
    Bus {
        /// The node.
        node: NodeId,
        /// What the bus said.
        source: BusError,
    },
    /// The other node refused.
    #[error("node {node} refused chunk {id}: {why}")]
    Refused {
        /// The node.
        node: NodeId,
        /// The chunk.
        id: ChunkId,
        /// What it said.
        why: String,
    },
    /// No node that was asked has the chunk.
    #[error("none of the {asked} nodes asked has chunk {id}; wait until one that does is back")]
    Nowhere {
        /// The chunk.
        id: ChunkId,
        /// How many were asked.
        asked: usize,
    },
}

#[derive(Debug, Serialize, Deserialize)]
struct Get {
    owner: OwnerId,
    id: ChunkId,
    offset: u64,
}

#[derive(Debug, Serialize, Deserialize)]
enum GetAnswer {
    Piece { length: u64, bytes: Bytes },
    Missing,
}

#[derive(Debug, Serialize, Deserialize)]
struct Put {
    owner: OwnerId,
    id: ChunkId,
    length: u64,
    offset: u64,
    bytes: Bytes,
}

#[derive(Debug, Serialize, Deserialize)]
enum PutAnswer {
    /// Go on from this offset.
    Continue(u64),
    /// The chunk is there and durable.
    Durable,
    Refused(String),
}

type ChunkKey = (OwnerId, ChunkId);

#[derive(Debug)]
struct Arrival {
    bytes: BytesMut,
    touched: Instant,
}

struct Inner {
    bus: Arc<dyn Bus>,
    cluster: ClusterId,
    store: ChunkStore,
    arriving: Mutex<HashMap<ChunkKey, Arrival>>,
    /// The chunk that was served last, so that its next piece needs no second reading.
    serving: Mutex<Option<(ChunkKey, Bytes)>>,
    tasks: Mutex<Vec<tokio::task::JoinHandle<()>>>,
}

/// Moves chunks between nodes. Clones share it; [`ChunkExchange::stop`] ends serving.
#[derive(Clone)]
pub struct ChunkExchange {
    inner: Arc<Inner>,
}

impl std::fmt::Debug for ChunkExchange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ChunkExchange({})", self.inner.cluster)
    }
}

impl ChunkExchange {
    /// Answers other nodes' requests from `store` and allows to send and fetch.
    ///
    /// # Errors
    /// What the bus says to the subscriptions.
    pub async fn serve(
        bus: Arc<dyn Bus>,
        cluster: ClusterId,
        node: NodeId,
        store: ChunkStore,
    ) -> Result<Self, BusError> {
        let exact =
            |verb| SubjectPattern::Exact(Subject::actor(&cluster, ActorKind::Node, &node, verb));
        let gets = bus.subscribe(&exact(VERB_GET)).await?;
        let puts = bus.subscribe(&exact(VERB_PUT)).await?;
        let inner = Inner {
            bus,
            cluster,
            store,
            arriving: Mutex::default(),
            serving: Mutex::default(),
            tasks: Mutex::default(),
        };
        let exchange = Self { inner: Arc::new(inner) };
        let tasks =
            [gets, puts].map(|messages| tokio::spawn(exchange.clone().answer_all(messages)));
        exchange.tasks().extend(tasks);
        Ok(exchange)
    }

    fn tasks(&self) -> MutexGuard<'_, Vec<tokio::task::JoinHandle<()>>> {
        self.inner.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stops answering.
    pub fn stop(&self) {
        for task in self.tasks().drain(..) {
            task.abort();
        }
    }

    async fn answer_all(self, mut messages: Subscription) {
        let mut running = tokio::task::JoinSet::new();
        loop {
            tokio::select! {
                message = messages.next() => {
                    let Some(message) = message else { return };
                    let exchange = self.clone();
                    running.spawn(async move { exchange.answer(message).await });
                }
                Some(_) = running.join_next() => {}
            }
        }
    }

    async fn answer(&self, message: Message) {
        let answer = match message.subject.last() {
            VERB_GET => match decode::<Get>(&message.payload) {
                Ok(get) => encode(&self.answer_get(get).await),
                Err(error) => return tracing::warn!(%error, "dropped a garbled chunk-get"),
            },
            _ => match decode::<Put>(&message.payload) {
                Ok(put) => encode(&self.answer_put(put).await),
                Err(error) => return tracing::warn!(%error, "dropped a garbled chunk-put"),
            },
        };
        if let (Some(reply_to), Ok(payload)) = (&message.reply_to, answer) {
            let envelope = message.envelope.causing();
            if let Err(error) = self.inner.bus.respond(reply_to, &envelope, payload.into()).await {
                tracing::debug!(%error, "an answer could not be sent");
            }
        }
    }

    async fn answer_get(&self, get: Get) -> GetAnswer {
        let key = (get.owner, get.id);
        let served = {
            let serving = self.inner.serving.lock().unwrap_or_else(PoisonError::into_inner);
            serving.as_ref().filter(|(last, _)| *last == key).map(|(_, chunk)| chunk.clone())
        };
        let chunk = match served {
            Some(chunk) if get.offset > 0 => chunk,
            _ => match self.inner.store.get(&key.0, key.1).await {
                Ok(Some(chunk)) => chunk,
                Ok(None) => return GetAnswer::Missing,
                Err(error) => {
                    tracing::error!(%error, "a chunk was asked for but cannot be served");
                    return GetAnswer::Missing;
                }
            },
        };
        let from = usize::try_from(get.offset).unwrap_or(usize::MAX).min(chunk.len());
        let to = chunk.len().min(from + self.piece_length());
        let bytes = chunk.slice(from..to);
        let length = chunk.len() as u64;
        let rest = (to < chunk.len()).then_some((key, chunk));
        *self.inner.serving.lock().unwrap_or_else(PoisonError::into_inner) = rest;
        GetAnswer::Piece { length, bytes }
    }

    fn piece_length(&self) -> usize {
        PIECE_LENGTH_MAX.min(self.inner.bus.payload_max() / 2).max(1)
    }

    async fn answer_put(&self, put: Put) -> PutAnswer {
        let length = usize::try_from(put.length).unwrap_or(usize::MAX);
        if length > CHUNK_LENGTH_MAX {
            return PutAnswer::Refused(ChunkError::TooLarge { length }.to_string());
        }
        // Looks at the bytes, not only at the name, so that damage here is repaired by the sender.
        let key = (put.owner.clone(), put.id);
        let begun = self.arriving().contains_key(&key);
        if !begun && matches!(self.inner.store.get(&put.owner, put.id).await, Ok(Some(_))) {
            return self.make_durable(&put.owner, put.id).await;
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
        match self.inner.store.put(&put.owner, whole).await {
            Ok(id) => self.make_durable(&put.owner, id).await,
            Err(error) => PutAnswer::Refused(error.to_string()),
        }
    }

    fn arriving(&self) -> MutexGuard<'_, HashMap<ChunkKey, Arrival>> {
        self.inner.arriving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a piece; returns the whole chunk once it is complete, else what to answer.
    fn collect_piece(&self, key: &ChunkKey, put: &Put, length: usize) -> Result<Bytes, PutAnswer> {
        let mut arriving = self.arriving();
        arriving.retain(|_, arrival| arrival.touched.elapsed() < ARRIVAL_PATIENCE);
        if arriving.len() >= ARRIVING_MAX && !arriving.contains_key(key) {
            return Err(PutAnswer::Refused("too many chunks arrive at once; try later".to_owned()));
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
    }

    async fn make_durable(&self, owner: &OwnerId, id: ChunkId) -> PutAnswer {
        match self.inner.store.sync(owner, &[id]).await {
            Ok(()) => PutAnswer::Durable,
            Err(error) => PutAnswer::Refused(error.to_string()),
        }
    }

    async fn request<T: Serialize, R: DeserializeOwned>(
        &self,
        node: &NodeId,
        verb: &str,
        owner: &OwnerId,
        body: &T,
    ) -> Result<R, ExchangeError> {
        let failed = |source| ExchangeError::Bus { node: node.clone(), source };
        let garbled = |error: String| failed(BusError::Disconnected(format!("garbled: {error}")));
        let subject = Subject::actor(&self.inner.cluster, ActorKind::Node, node, verb);
        let payload = Bytes::from(encode(body).map_err(|error| garbled(error.to_string()))?);
        let envelope = Envelope::new(owner.clone());
        let mut tries = 0;
        loop {
            tries += 1;
            let mut health = self.inner.bus.health();
            health.mark_unchanged();
            let request =
                self.inner.bus.request(&subject, &envelope, payload.clone(), PIECE_DEADLINE);
            let sent = tokio::select! {
                sent = request => sent,
                // The piece or its answer went down with the broker. Sent twice, it arrives once.
                () = reconnected(&mut health), if tries < TRIES_MAX => continue,
            };
            match sent {
                Ok(answer) => {
                    return decode(&answer.payload).map_err(|error| garbled(error.to_string()));
                }
                Err(BusError::TimedOut { .. }) if tries < TRIES_MAX => {}
                Err(error) => return Err(failed(error)),
            }
        }
    }

    /// Sends chunks to a node; `Ok` means that all are fsynced there.
    ///
    /// # Errors
    /// [`ExchangeError`].
    pub async fn push(
        &self,
        to: &NodeId,
        owner: &OwnerId,
        ids: &[ChunkId],
    ) -> Result<(), ExchangeError> {
        for id in ids {
            let chunk = self.inner.store.get(owner, *id).await?;
            self.push_one(to, owner, *id, chunk.ok_or(ChunkError::Missing(*id))?).await?;
        }
        Ok(())
    }

    async fn push_one(
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

    /// Fetches the chunks that are missing here from whichever of the nodes has them; `Ok` means
    /// that all are here, checked and fsynced.
    ///
    /// # Errors
    /// [`ExchangeError`]; what was fetched before stays.
    pub async fn pull(
        &self,
        from: &[NodeId],
        owner: &OwnerId,
        ids: &[ChunkId],
    ) -> Result<(), ExchangeError> {
        for id in ids {
            match self.inner.store.get(owner, *id).await {
                Ok(Some(_)) => {}
                Ok(None) | Err(ChunkError::Corrupt(_)) => self.pull_one(from, owner, *id).await?,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(self.inner.store.sync(owner, ids).await?)
    }

    async fn pull_one(
        &self,
        from: &[NodeId],
        owner: &OwnerId,
        id: ChunkId,
    ) -> Result<(), ExchangeError> {
        for node in from {
            match self.fetch(node, owner, id).await {
                Ok(Some(bytes)) if ChunkId::of(&bytes) == id => {
                    self.inner.store.put(owner, bytes).await?;
                    return Ok(());
                }
                Ok(Some(_)) => tracing::error!(%node, chunk = %id, "a peer sent damaged bytes"),
                Ok(None) => {}
                Err(error) => tracing::warn!(%node, chunk = %id, %error, "a peer does not answer"),
            }
        }
        Err(ExchangeError::Nowhere { id, asked: from.len() })
    }

    async fn fetch(
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
                    chunk.extend_from_slice(&bytes);
                    if chunk.len() >= length || bytes.is_empty() || chunk.len() > CHUNK_LENGTH_MAX {
                        return Ok(Some(chunk.freeze()));
                    }
                }
            }
        }
    }
}

/// Returns once a connection that was lost in the meantime stands again.
async fn reconnected(health: &mut watch::Receiver<BusHealth>) {
    while health.changed().await.is_ok() {
        if *health.borrow_and_update() == BusHealth::Connected {
            return;
        }
    }
    std::future::pending().await
}
