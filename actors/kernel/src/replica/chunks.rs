//! Chunks of this kernel's state: spread before they are named, kept complete afterwards.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use callboard_policy::terms::Hash;
use callboard_protocol::{NodeId, OwnerId};
use callboard_replicated::{
    ChunkError, ChunkId, ChunkPins, ExchangeError, Group, GroupMetrics, Holder, InMemory,
    RECEIPT_VALID, Role,
};
use futures::StreamExt as _;
use ractor::ActorRef;
use tokio::{
    sync::Notify,
    task::{JoinHandle, JoinSet},
    time::Instant,
};

use super::{Internal, ReplicaMsg, tell};
use crate::{
    KernelMachine, NodeContext, ReplicaArgs,
    state::{self, Named},
};

/// Pause between attempts to reach enough nodes.
const RETRY: Duration = Duration::from_millis(200);
/// How long a finished cell waits for room on full disks before its large variables are refused.
const ROOM_PATIENCE: Duration = Duration::from_secs(5);
/// Chunks read from the disk at once.
const READS_AT_A_TIME: usize = 8;
/// A leader that heard of no majority for longer cannot say what its group committed.
const QUORUM_ACKED_AGO_MAX_MS: u64 = 5_000;

/// Stores `chunks` here and on so many `voters`, the other nodes of the kernel, that `majority` nodes
/// have them on stable storage. Goes on until that is so; the caller drops it when the term is over.
/// Other nodes keep what they gave a receipt for during their grace period, so a receipt counts only
/// for a while.
///
/// While this node's disk is full, others make up the majority without it: [`ChunkKeeper`] fetches the
/// chunks once there is room.
///
/// # Errors
/// A sentence if this owner's quota is used up here, or if for [`ROOM_PATIENCE`] so many nodes had no
/// room, or could not be reached while this one had none, that there was no majority.
pub(super) async fn spread(
    context: &Arc<NodeContext>,
    owner: &OwnerId,
    voters: &[NodeId],
    majority: usize,
    chunks: Vec<Bytes>,
) -> Result<(), String> {
    let (ids, memory) = hashed(chunks).await;
    let _hold = context.chunks.hold(owner, &ids);
    let began = Instant::now();
    let mut here = Err(String::new());
    let mut stored_on: BTreeMap<NodeId, Instant> = BTreeMap::new();
    loop {
        if here.is_err() {
            here = store(context, owner, &ids, &memory).await?;
        }
        let needed = majority - usize::from(here.is_ok());
        stored_on.retain(|_, since| since.elapsed() < RECEIPT_VALID);
        let mut pushes = JoinSet::new();
        for peer in voters.iter().filter(|peer| !stored_on.contains_key(*peer)).cloned() {
            let (context, owner) = (context.clone(), owner.clone());
            let (ids, memory) = (ids.clone(), memory.clone());
            pushes.spawn(async move {
                let began = Instant::now();
                let pushed = context.exchange.push_from(&peer, &owner, &ids, &memory).await;
                (peer, began, pushed)
            });
        }
        let mut full = BTreeMap::new();
        // The slowest peer gets the rest in its own time, by pulling: what reached it stays there.
        while stored_on.len() < needed
            && let Some(pushed) = pushes.join_next().await
        {
            match pushed {
                Ok((peer, began, Ok(()))) => drop(stored_on.insert(peer, began)),
                Ok((peer, _, Err(error @ ExchangeError::NoRoom { .. }))) => {
                    full.insert(peer, error.to_string());
                }
                Ok((_, _, Err(error))) => tracing::debug!(%error, "a peer did not take the state"),
                Err(error) => tracing::debug!(%error, "a transfer ended early"),
            }
        }
        if stored_on.len() >= needed {
            return Ok(());
        }
        let is_hopeless = here.is_err() || voters.len() + 1 - full.len() < majority;
        if is_hopeless && began.elapsed() > ROOM_PATIENCE {
            let why = here.err().or_else(|| full.into_values().next());
            return Err(why.unwrap_or_default());
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Names the chunks, out of the runtime's way.
async fn hashed(chunks: Vec<Bytes>) -> (Vec<ChunkId>, InMemory) {
    let hash = move || {
        let named = chunks.into_iter().map(|bytes| (ChunkId::of(&bytes), bytes));
        let named: Vec<_> = named.collect();
        (named.iter().map(|(id, _)| *id).collect(), InMemory::new(named.into_iter().collect()))
    };
    tokio::task::spawn_blocking(hash).await.unwrap_or_default()
}

/// Stores the chunks on this node; tries again for as long as it fails for other reasons than room.
/// Inside, why there is no room on its disk.
///
/// # Errors
/// A sentence if the owner may not have more here.
async fn store(
    context: &NodeContext,
    owner: &OwnerId,
    ids: &[ChunkId],
    memory: &InMemory,
) -> Result<Result<(), String>, String> {
    loop {
        let Err(error) = context.chunks.put_many(owner, memory.all()).await else {
            return Ok(Ok(()));
        };
        let why = format!("{} has no room for it: {error}", context.node);
        match error {
            ChunkError::OverQuota { .. } => return Err(why),
            error if error.is_no_room() => return Ok(Err(why)),
            error => {
                let chunks = ids.len();
                tracing::warn!(%error, chunks, "the state cannot be stored on this node");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
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
    let ids: Vec<ChunkId> = hashes.iter().copied().map(ChunkId::from).collect();
    let _hold = context.chunks.hold(owner, &ids);
    let missing = context.chunks.missing(owner, &ids);
    if !missing.is_empty() {
        let pulled = context.exchange.pull(peers, owner, &missing).await;
        pulled.map_err(|error| format!("the state cannot be read: {error}"))?;
    }
    let mut reads = futures::stream::iter(hashes.iter().copied())
        .map(|hash| async move {
            read_one(context, owner, peers, hash).await.map(|bytes| (hash, bytes))
        })
        .buffer_unordered(READS_AT_A_TIME);
    let mut read = BTreeMap::new();
    while let Some((hash, bytes)) = reads.next().await.transpose()? {
        read.insert(hash, bytes);
    }
    Ok(read)
}

/// A chunk's bytes; what is damaged here is fetched anew.
async fn read_one(
    context: &NodeContext,
    owner: &OwnerId,
    peers: &[NodeId],
    hash: Hash,
) -> Result<Bytes, String> {
    let id = ChunkId::from(hash);
    if let Ok(Some(bytes)) = context.chunks.get(owner, id).await {
        return Ok(bytes);
    }
    let pulled = context.exchange.pull(peers, owner, &[id]).await;
    pulled.map_err(|error| format!("chunk {id} of the state cannot be read: {error}"))?;
    let bytes = context.chunks.get(owner, id).await.map_err(|error| error.to_string())?;
    bytes.ok_or_else(|| format!("chunk {id} of the state is lost"))
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
#[derive(Debug, Default)]
struct Lists(HashMap<Hash, Vec<Hash>>);

impl Lists {
    /// Reads the indexes that are here and forgets those that nothing names any more.
    async fn update(&mut self, context: &NodeContext, owner: &OwnerId, named: &Named) {
        self.0.retain(|index, _| named.indexes.contains(index));
        for index in &named.indexes {
            if self.0.contains_key(index) {
                continue;
            }
            let read = context.chunks.get(owner, ChunkId::from(*index)).await;
            if let Some(listed) = read.ok().flatten().and_then(|bytes| state::listed_by(&bytes)) {
                self.0.insert(*index, listed);
            }
        }
    }

    /// Every chunk of `named`, unless an index is not here.
    fn all(&self, named: &Named) -> Option<BTreeSet<ChunkId>> {
        let all = named.expand(|index| self.0.get(index).cloned()).ok()?;
        Some(all.into_iter().map(ChunkId::from).collect())
    }

    /// The chunks of `named` that are not here. What an absent index lists is found out when the
    /// index is here.
    fn missing(&self, context: &NodeContext, owner: &OwnerId, named: &Named) -> Vec<ChunkId> {
        let (known, absent): (BTreeSet<Hash>, BTreeSet<Hash>) =
            named.indexes.iter().partition(|index| self.0.contains_key(*index));
        let known = Named { content: named.content.clone(), indexes: known };
        let all = known.expand(|index| self.0.get(index).cloned()).unwrap_or_default();
        let ids: Vec<ChunkId> = all.into_iter().chain(absent).map(ChunkId::from).collect();
        context.chunks.missing(owner, &ids)
    }
}

/// Keeps a replica's chunks complete and says whether they are; pins what the replica names.
#[derive(Debug)]
pub(super) struct ChunkKeeper {
    wake: Arc<Notify>,
    task: JoinHandle<()>,
    pins: ChunkPins,
    holder: Holder,
    registration: u64,
}

/// The chunks that stand in the log directly.
fn ids(named: &Named) -> BTreeSet<ChunkId> {
    named.content.union(&named.indexes).copied().map(ChunkId::from).collect()
}

fn roots(group: &Group<KernelMachine>) -> BTreeSet<ChunkId> {
    ids(&group.read(|machine| Named::by_log(machine.log())))
}

/// Whether a member has applied all that its group has committed, but for the last moment.
fn is_current(metrics: &GroupMetrics) -> bool {
    let is_in_touch = match metrics.role {
        Role::Leader => {
            metrics.members.voters.len() == 1
                || metrics.quorum_acked_ago_ms.is_some_and(|ago| ago < QUORUM_ACKED_AGO_MAX_MS)
        }
        Role::Follower | Role::Learner => metrics.leader.is_some(),
        Role::Candidate | Role::Stopped => false,
    };
    let has_all = metrics.applied.is_some() && metrics.applied == metrics.last_log;
    metrics.running && is_in_touch && has_all
}

impl ChunkKeeper {
    pub(super) fn start(
        args: &ReplicaArgs,
        group: Group<KernelMachine>,
        me: ActorRef<ReplicaMsg>,
    ) -> Self {
        let wake = Arc::new(Notify::new());
        let pins = args.context.pins.clone();
        let holder = (group.id().clone(), args.replica);
        let (seen, look) = (group.metrics(), group.clone());
        let witness = move || {
            // In this order: what is applied after the look is named in addition.
            let is_current = is_current(&seen.borrow());
            is_current.then(|| roots(&look))
        };
        let registration =
            pins.register(holder.clone(), args.spec.owner.clone(), Arc::new(witness));
        let (context, owner, woken) = (args.context.clone(), args.spec.owner.clone(), wake.clone());
        let (replica, pinned) = (args.replica, holder.clone());
        let mut damage = context.chunks.damage();
        let task = tokio::spawn(async move {
            let mut lists = Lists::default();
            loop {
                let (named, of_state) = group
                    .read(|machine| (Named::by_log(machine.log()), Named::by_state(machine.log())));
                lists.update(&context, &owner, &named).await;
                // Without an index nobody knows what it lists: then nothing is pinned anew.
                if let Some(all) = lists.all(&named) {
                    context.pins.publish(&pinned, ids(&named), all);
                }
                let missing = lists.missing(&context, &owner, &named);
                // What only an earlier state or an output needs keeps nobody from taking over.
                let is_readable = lists.missing(&context, &owner, &of_state).is_empty();
                tell(&me, Internal::BaseReadable(is_readable, missing.is_empty()));
                if missing.is_empty() {
                    if group.is_leader() {
                        let all: Vec<ChunkId> =
                            lists.all(&named).unwrap_or_default().into_iter().collect();
                        context.exchange.offer(&owner, &all);
                    }
                    tokio::select! {
                        () = woken.notified() => {}
                        _ = damage.changed() => {}
                    }
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
        Self { wake, task, pins, holder, registration }
    }

    /// Keeps the pins as they are while the replica sleeps. Returns every chunk it names, or nothing
    /// if that is not known.
    pub(super) fn freeze(&self) -> Option<Arc<BTreeSet<ChunkId>>> {
        self.pins.freeze(&self.holder).then(|| self.pins.published(&self.holder))
    }

    /// Looks again: the log moved on.
    pub(super) fn look(&self) {
        self.wake.notify_one();
    }
}

impl Drop for ChunkKeeper {
    fn drop(&mut self) {
        self.task.abort();
        self.pins.unregister(&self.holder, self.registration);
    }
}
