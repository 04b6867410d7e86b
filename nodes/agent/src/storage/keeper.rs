//! The keeper of this node's disk.
//!
//! Owns: the collector's rounds, the scrub, the reserve, the verbs `storage` and `purge`. Never:
//! writes chunks, says what a kernel names. Supervised by the root. A restart loses nothing.
//! Talks to: the bus; whoever follows how full the disk is.

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use callboard_control::DesiredState;
use callboard_protocol::{
    ActorKind, ClusterId, Fault, FaultCode, GroupId, KernelId, NodeId, Subject, SubjectPattern,
    storage::{
        DamagedChunk, DiskBeat, Moved, Named, NamedAmong, NodeStorage, OwnerStorage, Purge, Purged,
    },
};
use callboard_replicated::{ChunkId, Group};
use callboard_transport::{Bus, Message, typed};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::{task::JoinSet, time::Instant};

use super::{
    Storage,
    archive::{self, Sweeper},
    collect,
    disk::Announced,
    scrub,
};

/// How often the disk is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Looks between two rounds of the collector.
const COLLECT_EVERY_LOOKS: u64 = 10;
/// Between the announcement that the disk is too full and the first refusal: the others must know,
/// lest one of them takes a request that was refused here.
const ENFORCED_AFTER: Duration = Duration::from_secs(2);
/// How long a purge waits for the kernel's member to end.
const PURGE_PATIENCE: Duration = Duration::from_secs(20);
const PURGE_POLL: Duration = Duration::from_millis(100);
/// Damaged chunks listed.
const DAMAGED_SHOWN_MAX: usize = 200;

/// What the keeper works with.
#[derive(Clone)]
pub(crate) struct StorageArgs {
    pub(crate) cluster: ClusterId,
    pub(crate) node: NodeId,
    pub(crate) bus: Arc<dyn Bus>,
    pub(crate) storage: Storage,
    pub(crate) group: Group<DesiredState>,
    pub(crate) tally: Arc<Tally>,
}

/// Counters of this life of the node; they survive restarts of the actor.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) scrubbed_chunks: AtomicU64,
    pub(crate) archived_chunks: AtomicU64,
    pub(crate) archived_bytes: AtomicU64,
}

/// What the keeper is told, all by its own tasks.
pub(crate) enum StorageMsg {
    /// Time passed.
    Look,
    /// Somebody asks how it is.
    Storage(Box<Message>),
    /// The sweeper of the object store asks what is named here.
    Named(Box<Message>),
    /// Somebody wants a stopped kernel's chunks gone.
    Purge(Box<Message>),
}

pub(crate) struct StorageKeeper;

pub(crate) struct StorageState {
    args: StorageArgs,
    looks: u64,
    high_since: Option<Instant>,
    collector_waits: Option<String>,
    tasks: JoinSet<()>,
}

#[ractor::async_trait]
impl Actor for StorageKeeper {
    type Msg = StorageMsg;
    type State = StorageState;
    type Arguments = StorageArgs;

    async fn pre_start(
        &self,
        me: ActorRef<StorageMsg>,
        args: StorageArgs,
    ) -> Result<StorageState, ActorProcessingErr> {
        let mut tasks = JoinSet::new();
        for (verb, wrap) in [
            ("storage", StorageMsg::Storage as fn(Box<Message>) -> StorageMsg),
            ("named", StorageMsg::Named),
            ("purge", StorageMsg::Purge),
        ] {
            let subject = Subject::actor(&args.cluster, ActorKind::Node, &args.node, verb);
            let mut messages = args.bus.subscribe(&SubjectPattern::Exact(subject)).await?;
            let to = me.clone();
            tasks.spawn(async move {
                while let Some(message) = messages.next().await {
                    if to.send_message(wrap(Box::new(message))).is_err() {
                        return;
                    }
                }
            });
        }
        tasks.spawn(async move {
            let mut ticks = tokio::time::interval(LOOK_EVERY);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                if me.send_message(StorageMsg::Look).is_err() {
                    return;
                }
            }
        });
        tasks.spawn(scrub::scrub(args.storage.clone(), args.tally.clone()));
        if let Some(archive) = args.storage.archive.clone() {
            let chunks = args.storage.chunks.clone();
            tasks.spawn(archive.clone().upload(chunks, args.tally.clone()));
            let grace = args.storage.options.chunk_grace;
            tasks.spawn(args.sweeper().sweep_for_ever(archive, grace));
        }
        Ok(StorageState { args, looks: 0, high_since: None, collector_waits: None, tasks })
    }

    async fn handle(
        &self,
        _me: ActorRef<StorageMsg>,
        message: StorageMsg,
        state: &mut StorageState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            StorageMsg::Look => state.look().await,
            StorageMsg::Storage(message) => {
                let storage = state.describe();
                answer(&state.args.bus, &message, Ok(storage)).await;
            }
            StorageMsg::Named(message) => {
                answer(&state.args.bus, &message, state.named(&message)).await;
            }
            StorageMsg::Purge(message) => state.purge(*message),
        }
        Ok(())
    }
}

async fn answer<T: serde::Serialize + Send>(
    bus: &Arc<dyn Bus>,
    message: &Message,
    result: Result<T, Fault>,
) {
    if let Err(fault) = typed::answer(&**bus, message, result).await {
        tracing::debug!(%fault, "an answer about the disk could not be sent");
    }
}

impl StorageState {
    async fn look(&mut self) {
        while self.tasks.try_join_next().is_some() {}
        self.look_at_the_disk();
        self.looks += 1;
        if self.looks.is_multiple_of(COLLECT_EVERY_LOOKS) {
            match collect::collect(&self.args.storage).await {
                Ok(waits) => self.collector_waits = waits,
                Err(error) => {
                    tracing::warn!(%error, "a round of the collector failed");
                    self.collector_waits = Some(error.to_string());
                }
            }
        }
    }

    /// First says that the disk is too full, then acts on it; the other way round when it is not
    /// any more.
    fn look_at_the_disk(&mut self) {
        let Storage { reserve, options, level, refusal, .. } = &self.args.storage;
        let Some(now) = reserve.adjust() else { return };
        let was_high = level.borrow().beat.is_high;
        let (mark, percent) = (options.disk_high_water_percent, now.used_percent());
        let is_high = now.is_high(was_high, mark);
        if !is_high && refusal.send_replace(None).is_some() {
            tracing::info!(percent, "the disk has room again");
            return;
        }
        let beat = DiskBeat { used_percent: percent, is_high };
        let (used_bytes, free_bytes) = (now.used_bytes, now.free_bytes);
        level.send_replace(Announced { beat, used_bytes, free_bytes });
        self.high_since = is_high.then(|| self.high_since.unwrap_or_else(Instant::now));
        let Some(since) = self.high_since else { return };
        if refusal.borrow().is_none() && since.elapsed() >= ENFORCED_AFTER {
            let node = &self.args.node;
            let why = format!(
                "the disk of {node} is {percent} % full, above its mark of {mark} %: free space \
                 on it, delete variables or stop kernels, then try again"
            );
            tracing::error!(%why, "no new cells are taken");
            refusal.send_replace(Some(why));
        }
    }

    fn describe(&self) -> NodeStorage {
        let StorageArgs { node, storage, tally, .. } = &self.args;
        let now = storage.level.borrow().clone();
        let usage = storage.chunks.usage().into_iter();
        let damaged = storage.chunks.damaged().into_iter().take(DAMAGED_SHOWN_MAX);
        NodeStorage {
            node: node.clone(),
            disk_used_bytes: now.used_bytes,
            disk_free_bytes: now.free_bytes,
            disk_high_water_percent: storage.options.disk_high_water_percent,
            disk_is_high: now.beat.is_high,
            reserve_bytes: storage.reserve.held_bytes(),
            owner_quota_bytes: storage.options.owner_quota_bytes,
            owners: usage
                .map(|it| OwnerStorage { owner: it.owner, chunks: it.chunks, bytes: it.bytes })
                .collect(),
            moved: moved(storage, tally),
            collector_waits: self.collector_waits.clone(),
            damaged: damaged
                .map(|(owner, id, is_repaired)| DamagedChunk {
                    kernels: scrub::kernels(storage, &owner, id),
                    chunk: id.to_string(),
                    owner,
                    is_repaired,
                })
                .collect(),
        }
    }

    fn named(&self, message: &Message) -> Result<Named, Fault> {
        let asked: NamedAmong = typed::decode(message)?;
        let named = self.args.storage.pins.named(&asked.owner);
        let named =
            named.map_err(|waiting| Fault::new(FaultCode::Unavailable, waiting.to_string()))?;
        let is_named = |text: &str| text.parse::<ChunkId>().is_ok_and(|id| named.contains(&id));
        let positions = (0..).zip(&asked.chunks).filter(|(_, text)| is_named(text.as_str()));
        Ok(Named { positions: positions.map(|(position, _)| position).collect() })
    }

    fn purge(&mut self, message: Message) {
        let (bus, args) = (self.args.bus.clone(), self.args.clone());
        self.tasks.spawn(async move {
            let result = match typed::decode::<Purge>(&message) {
                Ok(Purge { kernel }) => purge(&args, kernel).await,
                Err(fault) => Err(fault),
            };
            answer(&bus, &message, result).await;
        });
    }
}

/// Waits until the kernel's members here are gone, then removes what only they named.
async fn purge(args: &StorageArgs, kernel: KernelId) -> Result<Purged, Fault> {
    let storage = &args.storage;
    let until = Instant::now() + PURGE_PATIENCE;
    let is_meant = |group: &GroupId| is_of(group, kernel);
    while storage.pins.has_group(is_meant) {
        if Instant::now() >= until {
            let why = format!(
                "kernel {kernel} still runs here; stop it first: its chunks go within the grace \
                 period after that"
            );
            return Err(Fault::new(FaultCode::Unavailable, why));
        }
        tokio::time::sleep(PURGE_POLL).await;
    }
    let departed = storage.pins.take_departed(is_meant);
    let purged = collect::purge(storage, &departed).await;
    let purged =
        purged.map_err(|error| Fault::maybe_executed(FaultCode::Internal, error.to_string()))?;
    if let Some(archive) = &storage.archive {
        for (owner, chunks) in &departed {
            archive::forget(&args.sweeper(), archive, owner, chunks).await;
        }
    }
    Ok(purged)
}

/// Whether a group is a kernel's, also after recoveries from a lost majority.
fn is_of(group: &GroupId, kernel: KernelId) -> bool {
    group.kernel().is_some_and(|(of, _)| of == kernel)
}

impl StorageArgs {
    fn sweeper(&self) -> Sweeper {
        let (cluster, bus) = (self.cluster.clone(), self.bus.clone());
        Sweeper { cluster, bus, group: self.group.clone() }
    }
}

fn moved(storage: &Storage, tally: &Tally) -> Moved {
    let counters = storage.chunks.counters();
    let read = |counter: &AtomicU64| counter.load(std::sync::atomic::Ordering::Relaxed);
    Moved {
        stored_bytes: read(&counters.stored_bytes),
        sent_bytes: read(&counters.sent_bytes),
        received_bytes: read(&counters.received_bytes),
        spared_bytes: read(&counters.spared_bytes),
        damaged_chunks: read(&counters.damaged_chunks),
        collected_chunks: read(&counters.collected_chunks),
        collected_bytes: read(&counters.collected_bytes),
        scrubbed_chunks: read(&tally.scrubbed_chunks),
        archived_chunks: read(&tally.archived_chunks),
        archived_bytes: read(&tally.archived_bytes),
    }
}
