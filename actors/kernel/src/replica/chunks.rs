//! Chunks of this kernel's state: spread before they are named, kept complete afterwards.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use callboard_policy::terms::Hash;
use callboard_protocol::{NodeId, OwnerId};
use callboard_replicated::{ChunkId, Group};
use ractor::ActorRef;
use tokio::{sync::Notify, task::JoinHandle};

use super::{Internal, ReplicaMsg, tell};
use crate::{
    KernelMachine, NodeContext, ReplicaArgs,
    state::{self, Named},
};

/// Pause between attempts to reach enough nodes.
const RETRY: Duration = Duration::from_millis(200);

/// Stores `chunks` here and on so many `peers` that `majority` nodes have them on stable storage.
/// Goes on until that is so; the caller drops it when the term is over.
pub(super) async fn spread(
    context: &Arc<NodeContext>,
    owner: &OwnerId,
    peers: &[NodeId],
    majority: usize,
    chunks: Vec<Bytes>,
) {
    let ids = loop {
        match store(context, owner, &chunks).await {
            Ok(ids) => break ids,
            Err(error) => {
                tracing::warn!(%error, "the state cannot be stored on this node");
                tokio::time::sleep(RETRY).await;
            }
        }
    };
    let mut stored_on = BTreeSet::new();
    loop {
        let mut pushes = tokio::task::JoinSet::new();
        for peer in peers.iter().filter(|peer| !stored_on.contains(*peer)).cloned() {
            let (context, owner, ids) = (context.clone(), owner.clone(), ids.clone());
            pushes.spawn(
                async move { context.exchange.push(&peer, &owner, &ids).await.map(|()| peer) },
            );
        }
        // The slowest peer gets the rest in its own time, by pulling.
        while stored_on.len() + 1 < majority
            && let Some(pushed) = pushes.join_next().await
        {
            match pushed {
                Ok(Ok(peer)) => drop(stored_on.insert(peer)),
                Ok(Err(error)) => tracing::debug!(%error, "a peer did not take the state"),
                Err(error) => tracing::debug!(%error, "a transfer ended early"),
            }
        }
        if stored_on.len() + 1 >= majority {
            pushes.detach_all();
            return;
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn store(
    context: &NodeContext,
    owner: &OwnerId,
    chunks: &[Bytes],
) -> Result<Vec<ChunkId>, callboard_replicated::ChunkError> {
    let mut ids = Vec::with_capacity(chunks.len());
    for chunk in chunks {
        ids.push(context.chunks.put(owner, chunk.clone()).await?);
    }
    context.chunks.sync(owner, &ids).await?;
    Ok(ids)
}

/// The bytes of all `hashes`, fetched from `peers` where they are missing or damaged here.
///
/// # Errors
/// A sentence if a chunk can be had nowhere.
pub(super) async fn read_all(
    context: &NodeContext,
    owner: &OwnerId,
    peers: &[NodeId],
    hashes: &BTreeSet<Hash>,
) -> Result<BTreeMap<Hash, Bytes>, String> {
    let mut read = BTreeMap::new();
    for hash in hashes {
        let id = ChunkId::from(*hash);
        let mut bytes = context.chunks.get(owner, id).await.ok().flatten();
        if bytes.is_none() {
            let pulled = context.exchange.pull(peers, owner, &[id]).await;
            pulled.map_err(|error| format!("chunk {id} of the state cannot be read: {error}"))?;
            bytes = context.chunks.get(owner, id).await.map_err(|error| error.to_string())?;
        }
        let bytes = bytes.ok_or_else(|| format!("chunk {id} of the state is lost"))?;
        read.insert(*hash, bytes);
    }
    Ok(read)
}

/// The bytes of all chunks that are `named`, those that indexes list among them.
///
/// # Errors
/// A sentence if a chunk can be had nowhere, or an index cannot be read.
pub(super) async fn read_named(
    context: &NodeContext,
    owner: &OwnerId,
    peers: &[NodeId],
    named: &Named,
) -> Result<BTreeMap<Hash, Bytes>, String> {
    let mut read = read_all(context, owner, peers, &named.indexes).await?;
    let all = named.expand(|index| state::listed_by(read.get(index)?)).map_err(|index| {
        format!("index {} of the state cannot be understood", ChunkId::from(index))
    })?;
    let content = all.difference(&named.indexes).copied().collect();
    read.append(&mut read_all(context, owner, peers, &content).await?);
    Ok(read)
}

/// What the indexes list that were read so far: they are looked at after every cell.
#[derive(Debug, Clone, Default)]
struct Lists(Arc<Mutex<HashMap<Hash, Vec<Hash>>>>);

impl Lists {
    fn lock(&self) -> MutexGuard<'_, HashMap<Hash, Vec<Hash>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the indexes that are here and forgets those that nothing names any more.
    async fn update(&self, context: &NodeContext, owner: &OwnerId, named: &Named) {
        let unread: Vec<Hash> = {
            let mut lists = self.lock();
            lists.retain(|index, _| named.indexes.contains(index));
            named.indexes.iter().filter(|index| !lists.contains_key(*index)).copied().collect()
        };
        for index in unread {
            let read = context.chunks.get(owner, ChunkId::from(index)).await;
            if let Some(listed) = read.ok().flatten().and_then(|bytes| state::listed_by(&bytes)) {
                self.lock().insert(index, listed);
            }
        }
    }

    /// The chunks of `named`. What an index lists that is not here is found out when it is.
    fn expand(&self, named: &Named) -> BTreeSet<Hash> {
        let lists = self.lock();
        let listed = |index| lists.get(index).cloned().unwrap_or_default();
        named.expand(|index| Some(listed(index))).unwrap_or_default()
    }

    /// Those of them that are not here.
    fn missing(&self, context: &NodeContext, owner: &OwnerId, named: &Named) -> Vec<ChunkId> {
        let ids: Vec<ChunkId> = self.expand(named).into_iter().map(ChunkId::from).collect();
        context.chunks.missing(owner, &ids)
    }
}

/// Keeps a replica's chunks complete and says whether they are.
#[derive(Debug)]
pub(super) struct ChunkKeeper {
    wake: Arc<Notify>,
    lists: Lists,
    task: JoinHandle<()>,
}

impl ChunkKeeper {
    pub(super) fn start(
        args: &ReplicaArgs,
        group: Group<KernelMachine>,
        me: ActorRef<ReplicaMsg>,
    ) -> Self {
        let wake = Arc::new(Notify::new());
        let (context, owner, woken) = (args.context.clone(), args.spec.owner.clone(), wake.clone());
        let replica = args.replica;
        let lists = Lists::default();
        let known = lists.clone();
        let task = tokio::spawn(async move {
            loop {
                let (named, of_state) = group
                    .read(|machine| (Named::by_log(machine.log()), Named::by_state(machine.log())));
                lists.update(&context, &owner, &named).await;
                let missing = lists.missing(&context, &owner, &named);
                // What only an earlier state or an output needs keeps nobody from taking over.
                let is_readable = lists.missing(&context, &owner, &of_state).is_empty();
                tell(&me, Internal::BaseReadable(is_readable, missing.is_empty()));
                if missing.is_empty() {
                    woken.notified().await;
                    continue;
                }
                let members = group.members();
                let peers: Vec<NodeId> = members
                    .voters
                    .into_iter()
                    .chain(members.learners)
                    .filter(|(id, _)| *id != replica)
                    .map(|(_, node)| node)
                    .collect();
                if let Err(error) = context.exchange.pull(&peers, &owner, &missing).await {
                    tracing::debug!(%error, missing = missing.len(), "chunks are still missing");
                    tokio::time::sleep(RETRY).await;
                }
            }
        });
        wake.notify_one();
        Self { wake, lists: known, task }
    }

    /// Every chunk of `named`, as far as its indexes are here.
    pub(super) fn expand(&self, named: &Named) -> BTreeSet<Hash> {
        self.lists.expand(named)
    }

    /// The chunks of `named` that are known not to be here.
    pub(super) fn missing(
        &self,
        context: &NodeContext,
        owner: &OwnerId,
        named: &Named,
    ) -> Vec<ChunkId> {
        self.lists.missing(context, owner, named)
    }

    /// Looks again: the log moved on.
    pub(super) fn look(&self) {
        self.wake.notify_one();
    }
}

impl Drop for ChunkKeeper {
    fn drop(&mut self) {
        self.task.abort();
    }
}
