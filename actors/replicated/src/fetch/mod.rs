//! Chunks from node to node over the bulk lane.
//!
//! Owns the node verbs `chunk-lack`, `chunk-send`, `chunk-seal` and `chunk-fetch`, and the older
//! `chunk-get` and `chunk-put` for nodes of the version before. Only what the receiver lacks moves.
//! What arrives is checked against its hash before it is stored, and a receipt is given only after
//! the sync.

mod arrivals;
mod pull;
mod push;
mod serve;
mod single;
mod wire;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use callboard_protocol::{
    ActorKind, ClusterId, Envelope, NodeId, OwnerId, Subject, SubjectPattern,
};
use callboard_transport::{Bus, BusError, BusHealth};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{sync::watch, task::JoinHandle};

use self::arrivals::Arrivals;
pub use self::push::InMemory;
use crate::{
    chunks::{ChunkError, ChunkId, ChunkStore},
    raft::types::{decode, encode},
};

/// How long one message may take to be answered.
const PIECE_DEADLINE: Duration = Duration::from_secs(10);
/// How long a batch may take to become durable: a slow disk writes some hundred MiB in it.
const SEAL_DEADLINE: Duration = Duration::from_secs(30);
/// How often a message is sent before the peer counts as gone.
const TRIES_MAX: u32 = 3;
/// How long to wait for a broker that went away.
const RECONNECT_PATIENCE: Duration = Duration::from_secs(15);
/// Pause after a reconnection: the peer has to come back as well.
const AFTER_RECONNECT: Duration = Duration::from_millis(250);
/// Looks for a peer after a reconnection.
const RETURNS_MAX: u32 = 20;
/// Ids in one message; 32 bytes each.
const IDS_MAX: usize = 4096;
/// Bytes of a piece that are not the chunk's: id, length, offset, MessagePack.
const PIECE_OVERHEAD: usize = 96;

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
    /// The other node refused chunks as they arrived together.
    #[error("node {node} refused {chunks} chunks: {why}")]
    BatchRefused {
        /// The node.
        node: NodeId,
        /// How many.
        chunks: usize,
        /// What it said.
        why: String,
    },
    /// The other node has no room for them.
    #[error("node {node} has no room: {why}")]
    NoRoom {
        /// The node.
        node: NodeId,
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

impl ExchangeError {
    fn is_unknown_verb(&self) -> bool {
        matches!(self, Self::Bus { source: BusError::NoResponders(_), .. })
    }
}

/// Where chunks are kept besides the nodes.
#[async_trait]
pub trait ChunkArchive: Send + Sync + std::fmt::Debug + 'static {
    /// A chunk's bytes, if it is there.
    ///
    /// # Errors
    /// A sentence.
    async fn read(&self, owner: &OwnerId, id: ChunkId) -> Result<Option<Bytes>, String>;

    /// Copies chunks of this node there, some time.
    fn offer(&self, owner: &OwnerId, ids: &[ChunkId]);
}

struct Inner {
    bus: Arc<dyn Bus>,
    cluster: ClusterId,
    store: ChunkStore,
    archive: Option<Arc<dyn ChunkArchive>>,
    arrivals: Arrivals,
    single: single::Single,
    tasks: Mutex<Vec<JoinHandle<()>>>,
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
        Self::serve_with(bus, cluster, node, store, None).await
    }

    /// Like [`ChunkExchange::serve`], with a place to fetch from what no node has.
    ///
    /// # Errors
    /// What the bus says to the subscriptions.
    pub async fn serve_with(
        bus: Arc<dyn Bus>,
        cluster: ClusterId,
        node: NodeId,
        store: ChunkStore,
        archive: Option<Arc<dyn ChunkArchive>>,
    ) -> Result<Self, BusError> {
        let exchange = Self::silent(bus, cluster, store, archive);
        exchange.answer_verbs(&node, &serve::VERBS).await?;
        Ok(exchange)
    }

    /// A node of the version before: it knows only `chunk-get` and `chunk-put`. For tests of
    /// clusters of mixed versions.
    ///
    /// # Errors
    /// What the bus says to the subscriptions.
    pub async fn serve_like_version_0_1(
        bus: Arc<dyn Bus>,
        cluster: ClusterId,
        node: NodeId,
        store: ChunkStore,
    ) -> Result<Self, BusError> {
        let exchange = Self::silent(bus, cluster, store, None);
        exchange.answer_verbs(&node, &[wire::VERB_GET, wire::VERB_PUT]).await?;
        Ok(exchange)
    }

    fn silent(
        bus: Arc<dyn Bus>,
        cluster: ClusterId,
        store: ChunkStore,
        archive: Option<Arc<dyn ChunkArchive>>,
    ) -> Self {
        let inner = Inner {
            bus,
            cluster,
            store,
            archive,
            arrivals: Arrivals::default(),
            single: single::Single::default(),
            tasks: Mutex::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    async fn answer_verbs(&self, node: &NodeId, verbs: &[&str]) -> Result<(), BusError> {
        for &verb in verbs {
            let subject = Subject::actor(&self.inner.cluster, ActorKind::Node, node, verb);
            let messages = self.inner.bus.subscribe(&SubjectPattern::Exact(subject)).await?;
            self.tasks().push(tokio::spawn(self.clone().answer_all(messages)));
        }
        Ok(())
    }

    fn tasks(&self) -> MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.inner.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Copies chunks of this node to the archive, if there is one, some time.
    pub fn offer(&self, owner: &OwnerId, ids: &[ChunkId]) {
        if let Some(archive) = &self.inner.archive {
            archive.offer(owner, ids);
        }
    }

    /// Stops answering.
    pub fn stop(&self) {
        for task in self.tasks().drain(..) {
            task.abort();
        }
    }

    /// Most bytes of chunks in one message; leaves room for what is said around them.
    fn batch_length(&self) -> usize {
        (self.inner.bus.payload_max() / 8 * 7).max(2 * PIECE_OVERHEAD)
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
        let deadline = if verb == wire::VERB_SEAL { SEAL_DEADLINE } else { PIECE_DEADLINE };
        let (mut tries, mut returns_left) = (0, 0);
        let mut health = self.inner.bus.health();
        loop {
            tries += 1;
            health.mark_unchanged();
            let request = self.inner.bus.request(&subject, &envelope, payload.clone(), deadline);
            let sent = tokio::select! {
                sent = request => sent,
                // The message or its answer went down with the broker. Sent twice, it counts once.
                () = reconnected(&mut health), if tries < TRIES_MAX => {
                    returns_left = RETURNS_MAX;
                    continue;
                }
            };
            match sent {
                Ok(answer) => {
                    return decode(&answer.payload).map_err(|error| garbled(error.to_string()));
                }
                Err(BusError::TimedOut { .. }) if tries < TRIES_MAX => {}
                Err(BusError::Disconnected(_)) if tries < TRIES_MAX => {
                    let stands = health.wait_for(|now| *now == BusHealth::Connected);
                    drop(tokio::time::timeout(RECONNECT_PATIENCE, stands).await);
                    returns_left = RETURNS_MAX;
                }
                Err(BusError::NoResponders(_)) if returns_left > 0 => {
                    returns_left -= 1;
                    tries -= 1;
                    tokio::time::sleep(AFTER_RECONNECT).await;
                }
                Err(error) => return Err(failed(error)),
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
