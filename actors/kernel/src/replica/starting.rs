//! Brings a replica to life: its Raft group, its subscriptions, the tasks that feed its mailbox.

use std::{
    collections::{BTreeMap, HashMap},
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use callboard_policy::terms::{Executor, Identity};
use callboard_protocol::{
    ActorKind, GroupId, Incarnation, NodeId, ReplicaId, Seq, SubjectPattern,
    control::{KernelSpec, Standing},
};
use callboard_replicated::{Applied as GroupEvent, Group, GroupOptions};
use callboard_transport::Subscription;
use ractor::ActorRef;
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::MissedTickBehavior,
};

use super::{Internal, ReplicaMsg, ReplicaState, chunks, tell};
use crate::{
    KernelMachine, ReplicaArgs, cell_traces::CellTraces, publisher::Publisher,
    running_cell::OutputNumbers,
};

/// How often time-driven decisions are looked at again.
const TICK: Duration = Duration::from_millis(100);
/// Version of a kernel's entry until its members first change.
const FIRST_VERSION: u64 = 1;
/// How a former life of the node ended if nobody saw it.
const UNSEEN_END: &str = "its process ended and was started again";
/// Bits of an incarnation that count the replica's lives within one life of its node.
const LIVES_BITS: u32 = 24;

impl ReplicaState {
    pub(super) async fn start(me: ActorRef<ReplicaMsg>, args: ReplicaArgs) -> anyhow::Result<Self> {
        let context = &args.context;
        let kernel = args.spec.kernel;
        let options = GroupOptions {
            found: founders(&args.spec, args.replica),
            ..GroupOptions::new(KernelMachine::default())
        };
        let (group, events) =
            context.replicator.open_group(GroupId::from(kernel), args.replica, options).await?;
        let subscribe = async |kind, id| {
            let cluster = context.cluster.clone();
            context.lanes.control.subscribe(&SubjectPattern::Verbs { cluster, kind, id }).await
        };
        let of_kernel = subscribe(ActorKind::Kernel, kernel.to_string()).await?;
        let own_id = format!("{kernel}-{}", args.replica);
        let of_replica = subscribe(ActorKind::Replica, own_id).await?;
        let life = context.stats.replica_lives.fetch_add(1, Ordering::Relaxed);
        let incarnation = Incarnation((context.incarnation.0 << LIVES_BITS) + life);
        let tasks = vec![
            feed_group(&me, events),
            feed_bus(&me, of_kernel, Internal::Bus),
            feed_bus(&me, of_replica, Internal::OwnBus),
            feed_changes(&me, context.nodes.clone(), || Internal::Nodes),
            feed_changes(&me, group.leader(), || Internal::Membership),
            feed_ticks(&me),
        ];
        let previous_end = context.previous_end.as_deref().unwrap_or(UNSEEN_END);
        let executor = Executor::new(Identity { replica: args.replica, incarnation })
            .after(format!("executor lost on {}: {previous_end}", context.node));
        let publisher = Publisher::start(
            context.lanes.control.clone(),
            context.cluster.clone(),
            kernel,
            args.spec.owner.clone(),
        );
        let chunk_keeper = chunks::ChunkKeeper::start(&args, group.clone(), me.clone());
        let mut state = Self::new(args, me, group, executor, publisher, chunk_keeper, tasks);
        state.nodes_changed();
        state.membership_changed();
        Ok(state)
    }

    fn new(
        args: ReplicaArgs,
        me: ActorRef<ReplicaMsg>,
        group: Group<KernelMachine>,
        executor: Executor,
        publisher: Publisher,
        chunk_keeper: chunks::ChunkKeeper,
        tasks: Vec<JoinHandle<()>>,
    ) -> Self {
        Self {
            args,
            me,
            group,
            executor,
            started: Instant::now(),
            publisher,
            python: None,
            python_life: 0,
            python_failures: 0,
            cell: None,
            numbers: OutputNumbers::default(),
            held_replies: BTreeMap::new(),
            abort_through: Seq::default(),
            lingering: Vec::new(),
            spreading: None,
            askers: HashMap::new(),
            traces: CellTraces::default(),
            chunk_keeper,
            base_readable: false,
            needs: super::needs::Needs::default(),
            changing_members: false,
            tasks,
        }
    }
}

/// The members that found the group, if `replica` is one of them and the group may not exist yet.
/// Once the entry has changed, it exists: a founder that comes late is let in by the others.
fn founders(spec: &KernelSpec, replica: ReplicaId) -> Option<BTreeMap<ReplicaId, NodeId>> {
    let is_founder = spec.version == FIRST_VERSION
        && spec.replicas.get(&replica).is_some_and(|r| r.standing == Standing::Founder);
    is_founder
        .then(|| spec.replicas.iter().map(|(id, replica)| (*id, replica.node.clone())).collect())
}

fn feed_group(
    me: &ActorRef<ReplicaMsg>,
    mut events: mpsc::UnboundedReceiver<GroupEvent<KernelMachine>>,
) -> JoinHandle<()> {
    let me = me.clone();
    tokio::spawn(async move {
        while let Some(event) = events.recv().await {
            tell(&me, Internal::Group(event));
        }
    })
}

fn feed_bus(
    me: &ActorRef<ReplicaMsg>,
    mut messages: Subscription,
    wrap: fn(Box<callboard_transport::Message>) -> Internal,
) -> JoinHandle<()> {
    let me = me.clone();
    tokio::spawn(async move {
        while let Some(message) = messages.next().await {
            tell(&me, wrap(Box::new(message)));
        }
    })
}

fn feed_changes<T: Send + Sync + 'static>(
    me: &ActorRef<ReplicaMsg>,
    mut changes: watch::Receiver<T>,
    changed: fn() -> Internal,
) -> JoinHandle<()> {
    let me = me.clone();
    tokio::spawn(async move {
        while changes.changed().await.is_ok() {
            tell(&me, changed());
        }
    })
}

fn feed_ticks(me: &ActorRef<ReplicaMsg>) -> JoinHandle<()> {
    let me = me.clone();
    tokio::spawn(async move {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            tell(&me, Internal::Tick);
        }
    })
}
