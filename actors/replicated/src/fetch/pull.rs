//! Fetches chunks: from every peer that has some of them at once, then from the archive.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
};

use bytes::{Bytes, BytesMut};
use callboard_protocol::{NodeId, OwnerId};
use futures::future::join_all;

use super::{
    ChunkExchange, ExchangeError, IDS_MAX,
    wire::{Fetch, FetchAnswer, Ids, Lack, LackAnswer, VERB_FETCH, VERB_LACK, at},
};
use crate::chunks::{CHUNK_LENGTH_MAX, ChunkCounters, ChunkError, ChunkId, Staged};

/// Requests under way to one peer.
const LANES: usize = 3;
/// Chunks asked for in one message when it is not known how many fit.
const ASK_FIRST: usize = 4;
/// Most chunks asked for in one message.
const ASK_MAX: usize = 256;
/// Bytes and chunks after which what has arrived is made durable, so that a transfer that is cut
/// short need not begin anew.
const COMMIT_BYTES: u64 = 256 << 20;
const COMMIT_CHUNKS: usize = 1024;

/// What is left to fetch, and from whom.
struct Work {
    waiting: VecDeque<ChunkId>,
    /// Positions of the peers that have a chunk.
    holders: HashMap<ChunkId, HashSet<usize>>,
    staged: Vec<Staged>,
}

impl Work {
    /// Takes up to `most` chunks that a peer has.
    fn take(&mut self, peer: usize, most: usize) -> Vec<ChunkId> {
        let (mut taken, mut others) = (Vec::new(), Vec::new());
        while taken.len() < most
            && let Some(id) = self.waiting.pop_front()
        {
            let has = self.holders.get(&id).is_some_and(|peers| peers.contains(&peer));
            if has { taken.push(id) } else { others.push(id) }
        }
        self.give_back(others);
        taken
    }

    fn give_back(&mut self, ids: Vec<ChunkId>) {
        for id in ids.into_iter().rev() {
            self.waiting.push_front(id);
        }
    }

    fn lost(&mut self, peer: usize, id: ChunkId) {
        if let Some(peers) = self.holders.get_mut(&id) {
            peers.remove(&peer);
        }
    }

    fn is_due(&self) -> bool {
        let bytes: u64 = self.staged.iter().map(Staged::length).sum();
        self.staged.len() >= COMMIT_CHUNKS || bytes >= COMMIT_BYTES
    }
}

/// One call of [`ChunkExchange::pull`].
struct Pull<'a> {
    exchange: &'a ChunkExchange,
    owner: &'a OwnerId,
    peers: &'a [NodeId],
    work: Mutex<Work>,
}

impl ChunkExchange {
    /// Fetches the chunks that are missing here from whichever of the nodes have them, from the
    /// archive what none of them has; `Ok` means that all are here, checked and durable.
    ///
    /// # Errors
    /// [`ExchangeError`]; what was fetched before stays.
    pub async fn pull(
        &self,
        from: &[NodeId],
        owner: &OwnerId,
        ids: &[ChunkId],
    ) -> Result<(), ExchangeError> {
        let store = self.inner.store.clone();
        let _hold = store.hold(owner, ids);
        // What a sender that left off brought need not be fetched.
        self.inner.arrivals.seal_whole(&store, owner, ids).await?;
        let (asked, of_owner) = (ids.to_vec(), owner.clone());
        let present = move || store.present(&of_owner, &asked, true);
        let present: HashSet<ChunkId> = tokio::task::spawn_blocking(present)
            .await
            .map_err(|_| ChunkError::Stopped)?
            .into_iter()
            .collect();
        let mut seen = HashSet::new();
        let wanted: Vec<ChunkId> =
            ids.iter().copied().filter(|id| !present.contains(id) && seen.insert(*id)).collect();
        if wanted.is_empty() {
            return Ok(());
        }
        let (holders, old) = self.who_has(from, owner, &wanted).await;
        let work = Work { waiting: wanted.into(), holders, staged: Vec::new() };
        let pull = Pull { exchange: self, owner, peers: from, work: Mutex::new(work) };
        pull.run(&old).await
    }

    /// Which of the peers have which chunks, and the peers that do not understand the question.
    async fn who_has(
        &self,
        peers: &[NodeId],
        owner: &OwnerId,
        wanted: &[ChunkId],
    ) -> (HashMap<ChunkId, HashSet<usize>>, Vec<NodeId>) {
        let answers = join_all(peers.iter().map(|peer| async move {
            let mut has = Vec::new();
            for batch in wanted.chunks(IDS_MAX) {
                let lack = Lack { owner: owner.clone(), ids: Ids::new(batch), verify: false };
                let answer: LackAnswer = self.request(peer, VERB_LACK, owner, &lack).await?;
                let lacking: HashSet<ChunkId> = at(batch, &answer.lacking).into_iter().collect();
                has.extend(batch.iter().copied().filter(|id| !lacking.contains(id)));
            }
            Ok::<_, ExchangeError>(has)
        }))
        .await;
        let mut holders: HashMap<ChunkId, HashSet<usize>> = HashMap::new();
        let mut old = Vec::new();
        for (number, (peer, answer)) in peers.iter().zip(answers).enumerate() {
            match answer {
                Ok(has) => has.into_iter().for_each(|id| {
                    holders.entry(id).or_default().insert(number);
                }),
                Err(error) if error.is_unknown_verb() => old.push(peer.clone()),
                Err(error) => tracing::warn!(node = %peer, %error, "a peer does not answer"),
            }
        }
        (holders, old)
    }
}

impl Pull<'_> {
    fn work(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn run(&self, old: &[NodeId]) -> Result<(), ExchangeError> {
        loop {
            let before = self.work().waiting.len();
            let lanes = (0..self.peers.len()).flat_map(|peer| [peer; LANES]);
            let ran = join_all(lanes.map(|peer| self.lane(peer))).await;
            ran.into_iter().collect::<Result<(), _>>()?;
            let left = self.work().waiting.len();
            // What a peer failed to give may be had from another one.
            if left == 0 || left == before {
                break;
            }
        }
        let left: Vec<ChunkId> = self.work().waiting.drain(..).collect();
        let mut nowhere = None;
        for id in left {
            match self.elsewhere(old, id).await {
                Some(bytes) => self.arrived(id, bytes).await?,
                None => drop(nowhere.get_or_insert(id)),
            }
        }
        self.commit().await?;
        match nowhere {
            Some(id) => Err(ExchangeError::Nowhere { id, asked: self.peers.len() }),
            None => Ok(()),
        }
    }

    /// Fetches from one peer until there is nothing left that it has. Only this node's own store
    /// makes it fail.
    async fn lane(&self, peer: usize) -> Result<(), ExchangeError> {
        let mut most = ASK_FIRST;
        loop {
            let asked = self.work().take(peer, most);
            if asked.is_empty() {
                return Ok(());
            }
            let fetched = self.fetch(peer, &asked).await;
            let (got, missing) = match fetched {
                Ok(fetched) => fetched,
                Err(error) => {
                    let node = &self.peers[peer];
                    tracing::warn!(%node, %error, "a peer stopped giving chunks");
                    let mut work = self.work();
                    let all: Vec<ChunkId> = work.holders.keys().copied().collect();
                    all.into_iter().for_each(|id| work.lost(peer, id));
                    work.give_back(asked);
                    return Ok(());
                }
            };
            most = (got.len() * 2).clamp(1, ASK_MAX);
            let mut whole = HashSet::new();
            for (id, bytes) in got {
                if ChunkId::of(&bytes) == id {
                    whole.insert(id);
                    self.arrived(id, bytes).await?;
                } else {
                    let node = &self.peers[peer];
                    tracing::error!(%node, chunk = %id, "a peer sent damaged bytes");
                    self.work().lost(peer, id);
                }
            }
            let mut work = self.work();
            if whole.is_empty() && missing.is_empty() {
                asked.iter().for_each(|id| work.lost(peer, *id));
            }
            missing.into_iter().for_each(|id| work.lost(peer, id));
            work.give_back(asked.into_iter().filter(|id| !whole.contains(id)).collect());
        }
    }

    /// Whole chunks as the peer has them, and those that it does not have.
    async fn fetch(
        &self,
        peer: usize,
        ids: &[ChunkId],
    ) -> Result<(Vec<(ChunkId, Bytes)>, Vec<ChunkId>), ExchangeError> {
        let answer = self.ask(peer, ids, 0).await?;
        let mut got = Vec::new();
        for piece in answer.pieces {
            let Some(id) = piece.id.one() else { continue };
            let length = usize::try_from(piece.length).unwrap_or(usize::MAX).min(CHUNK_LENGTH_MAX);
            if piece.bytes.len() >= length {
                got.push((id, piece.bytes));
                continue;
            }
            let mut whole = BytesMut::from(&*piece.bytes);
            while whole.len() < length {
                let answer = self.ask(peer, &[id], whole.len() as u64).await?;
                match answer.pieces.first() {
                    Some(next) if !next.bytes.is_empty() => whole.extend_from_slice(&next.bytes),
                    _ => break,
                }
            }
            got.push((id, whole.freeze()));
        }
        Ok((got, at(ids, &answer.missing)))
    }

    async fn ask(
        &self,
        peer: usize,
        ids: &[ChunkId],
        offset: u64,
    ) -> Result<FetchAnswer, ExchangeError> {
        let fetch = Fetch { owner: self.owner.clone(), ids: Ids::new(ids), offset };
        let node = &self.peers[peer];
        let answer: FetchAnswer =
            self.exchange.request(node, VERB_FETCH, self.owner, &fetch).await?;
        let bytes = answer.pieces.iter().map(|piece| piece.bytes.len()).sum();
        let counters = self.exchange.inner.store.counters();
        ChunkCounters::add(&counters.received_bytes, bytes);
        Ok(answer)
    }

    /// Writes a chunk; every now and then makes what was written durable.
    async fn arrived(&self, id: ChunkId, bytes: Bytes) -> Result<(), ExchangeError> {
        let (store, owner) = (self.exchange.inner.store.clone(), self.owner.clone());
        let staged = tokio::task::spawn_blocking(move || store.stage(&owner, id, &bytes));
        let staged = staged.await.map_err(|_| ChunkError::Stopped)??;
        let is_due = {
            let mut work = self.work();
            work.staged.push(staged);
            work.is_due()
        };
        if is_due { self.commit().await } else { Ok(()) }
    }

    async fn commit(&self) -> Result<(), ExchangeError> {
        let staged = std::mem::take(&mut self.work().staged);
        let (store, owner) = (self.exchange.inner.store.clone(), self.owner.clone());
        let committed = tokio::task::spawn_blocking(move || store.commit(&owner, staged)).await;
        Ok(committed.map_err(|_| ChunkError::Stopped)??)
    }

    /// A chunk from a node of the version before, or from the archive.
    async fn elsewhere(&self, old: &[NodeId], id: ChunkId) -> Option<Bytes> {
        let exchange = self.exchange;
        for node in old {
            match exchange.fetch_one(node, self.owner, id).await {
                Ok(Some(bytes)) if ChunkId::of(&bytes) == id => return Some(bytes),
                Ok(Some(_)) => tracing::error!(%node, chunk = %id, "a peer sent damaged bytes"),
                Ok(None) => {}
                Err(error) => tracing::warn!(%node, chunk = %id, %error, "a peer does not answer"),
            }
        }
        match exchange.inner.archive.as_ref()?.read(self.owner, id).await {
            Ok(Some(bytes)) if ChunkId::of(&bytes) == id => Some(bytes),
            Ok(Some(_)) => {
                tracing::error!(chunk = %id, "the object store holds damaged bytes");
                None
            }
            Ok(None) => None,
            Err(error) => {
                tracing::warn!(chunk = %id, %error, "the object store does not answer");
                None
            }
        }
    }
}
