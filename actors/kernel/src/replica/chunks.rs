//! Chunks of this kernel's state: spread before they are named, kept complete afterwards.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use callboard_policy::terms::Hash;
use callboard_protocol::{NodeId, OwnerId};
use callboard_replicated::{ChunkId, Group};
use ractor::ActorRef;
use tokio::{sync::Notify, task::JoinHandle};

use super::{Internal, ReplicaMsg, tell};
use crate::{KernelMachine, NodeContext, ReplicaArgs, state};

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

/// Keeps a replica's chunks complete and says whether they are.
#[derive(Debug)]
pub(super) struct ChunkKeeper {
    wake: Arc<Notify>,
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
        let task = tokio::spawn(async move {
            loop {
                let named = group.read(|machine| state::chunks_named(machine.log()));
                let ids: Vec<ChunkId> = named.into_iter().map(ChunkId::from).collect();
                let missing = context.chunks.missing(&owner, &ids);
                // What only an earlier state or an output needs keeps nobody from taking over.
                let of_state: Vec<ChunkId> = group.read(|machine| {
                    state::chunks_of_state(machine.log()).map(ChunkId::from).collect()
                });
                let is_readable = context.chunks.missing(&owner, &of_state).is_empty();
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
        Self { wake, task }
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
