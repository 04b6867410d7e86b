//! Brings a replica to life: its Raft group, its subscriptions, the tasks that feed its mailbox.

use std::{
    collections::{BTreeMap, HashMap},
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use callboard_policy::{
    hibernation::Hibernation,
    terms::{Executor, Identity},
};
use callboard_protocol::{
    ActorKind, Incarnation, NodeId, ReplicaId, Seq, SubjectPattern,
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
    KernelMachine, ReplicaArgs, cell_traces::CellTraces, held::HeldState, publisher::Publisher,
    python::PythonProcess, refusal::WithoutRoom, running_cell::OutputNumbers,
};

/// How often time-driven decisions are looked at again.
const TICK: Duration = Duration::from_millis(100);
/// Version of a kernel's entry until its members first change.
const FIRST_VERSION: u64 = 1;
/// How a former life of the node ended if nobody saw it.
const UNSEEN_END: &str = "its process ended and was started again";
/// Bits of an incarnation that count the replica's lives within one life of its node.
pub(super) const LIVES_BITS: u32 = 24;

/// The life of the node in which a replica had this incarnation.
pub(super) fn life_of_node(replica: Incarnation) -> Incarnation {
    Incarnation(replica.0 >> LIVES_BITS)
}

/// Tasks that end with whoever holds them.
#[derive(Debug, Default)]
pub(super) struct Tasks(Vec<JoinHandle<()>>);

impl Tasks {
    pub(super) fn push(&mut self, task: JoinHandle<()>) {
        self.0.push(task);
    }

    /// Forgets those that have ended.
    pub(super) fn tidy(&mut self) {
        self.0.retain(|task| !task.is_finished());
    }

    pub(super) fn abort(&mut self) {
        self.0.drain(..).for_each(|task| task.abort());
    }
}

impl Drop for Tasks {
    fn drop(&mut self) {
        self.abort();
    }
}

/// What a replica holds awake and asleep.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) args: ReplicaArgs,
    pub(super) me: ActorRef<ReplicaMsg>,
    pub(super) executor: Executor,
    pub(super) started: Instant,
    pub(super) publisher: Publisher,
    pub(super) python: Option<PythonProcess>,
    pub(super) python_life: u64,
    pub(super) numbers: OutputNumbers,
    /// What that process takes this replica to hold.
    pub(super) held: HeldState,
    pub(super) without_room: WithoutRoom,
    pub(super) notices: super::parking::Notices,
    pub(super) feeds: Tasks,
}

impl Kept {
    /// Begins a life of the replica: subscribes, and knows nothing of the group yet.
    pub(super) async fn subscribe(
        me: ActorRef<ReplicaMsg>,
        args: ReplicaArgs,
    ) -> anyhow::Result<Self> {
        let context = &args.context;
        let kernel = args.spec.kernel;
        let subscribe = async |kind, id| {
            let cluster = context.cluster.clone();
            context.lanes.control.subscribe(&SubjectPattern::Verbs { cluster, kind, id }).await
        };
        let of_kernel = subscribe(ActorKind::Kernel, kernel.to_string()).await?;
        let own_id = format!("{kernel}-{}", args.replica);
        let of_replica = subscribe(ActorKind::Replica, own_id).await?;
        let mut feeds = Tasks::default();
        feeds.push(feed_bus(&me, of_kernel, Internal::Bus));
        feeds.push(feed_bus(&me, of_replica, Internal::OwnBus));
        feeds.push(feed_changes(&me, context.nodes.clone(), || Internal::Nodes));
        let life = context.stats.replica_lives.fetch_add(1, Ordering::Relaxed);
        let incarnation = Incarnation((context.incarnation.0 << LIVES_BITS) + life);
        let previous_end = context.previous_end.as_deref().unwrap_or(UNSEEN_END);
        let executor = Executor::new(Identity { replica: args.replica, incarnation })
            .after(format!("executor lost on {}: {previous_end}", context.node));
        let publisher = Publisher::start(
            context.lanes.control.clone(),
            context.cluster.clone(),
            kernel,
            args.spec.owner.clone(),
        );
        Ok(Self {
            args,
            me,
            executor,
            started: Instant::now(),
            publisher,
            python: None,
            python_life: 0,
            numbers: OutputNumbers::default(),
            held: HeldState::default(),
            without_room: WithoutRoom::default(),
            notices: super::parking::Notices::default(),
            feeds,
        })
    }
}

impl ReplicaState {
    pub(super) async fn start(me: ActorRef<ReplicaMsg>, args: ReplicaArgs) -> anyhow::Result<Self> {
        let options = GroupOptions {
            found: founders(&args.spec, args.replica),
            ..GroupOptions::new(KernelMachine::default())
        };
        let replicator = args.context.replicator.clone();
        let group = args.spec.group();
        let (group, events) = replicator.open_group(group, args.replica, options).await?;
        Ok(Self::awake(Kept::subscribe(me, args).await?, group, events))
    }

    /// A replica whose group was just opened.
    pub(super) fn awake(
        kept: Kept,
        group: Group<KernelMachine>,
        events: mpsc::UnboundedReceiver<GroupEvent<KernelMachine>>,
    ) -> Self {
        let Kept { args, me, executor, started, publisher, python, .. } = kept;
        let Kept { python_life, numbers, held, without_room, notices, feeds, .. } = kept;
        let mut tasks = Tasks::default();
        tasks.push(feed_group(&me, events));
        tasks.push(feed_changes(&me, group.leader(), || Internal::Membership));
        tasks.push(feed_ticks(&me));
        let now_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let mut state = Self {
            chunk_keeper: chunks::ChunkKeeper::start(&args, group.clone(), me.clone()),
            hibernation: Hibernation::new(args.context.hibernation, args.replica, now_ms),
            notices,
            args,
            me,
            group,
            executor,
            started,
            publisher,
            python,
            python_life,
            python_failures: 0,
            cell: None,
            held,
            numbers,
            held_replies: BTreeMap::new(),
            abort_through: Seq::default(),
            lingering: Vec::new(),
            spreading: None,
            without_room,
            askers: HashMap::new(),
            traces: CellTraces::default(),
            chunks_complete: false,
            needs: super::needs::Needs::default(),
            changing_members: false,
            told_generation: None,
            trouble: super::beginning::Trouble::default(),
            transfers: super::transfer::Transfers::default(),
            wish: None,
            sleep_due: None,
            tasks,
            feeds,
        };
        state.tell_upkeep();
        state.nodes_changed();
        state.membership_changed();
        state.begin();
        state
    }

    /// What it holds in its sleep, and the group that is closed for it. Its tasks end.
    pub(super) fn part(self) -> (Kept, Group<KernelMachine>) {
        let Self { args, me, executor, started, publisher, python, group, .. } = self;
        let Self { python_life, numbers, held, without_room, notices, feeds, .. } = self;
        let kept = Kept {
            args,
            me,
            executor,
            started,
            publisher,
            python,
            python_life,
            numbers,
            held,
            without_room,
            notices,
            feeds,
        };
        (kept, group)
    }
}

/// The members that found the group, if `replica` is one of them and the group may not exist yet.
/// Once the entry has changed, it exists: a founder that comes late is let in by the others. While a
/// kernel is recovered, its only member founds the new group.
fn founders(spec: &KernelSpec, replica: ReplicaId) -> Option<BTreeMap<ReplicaId, NodeId>> {
    let is_founder = (spec.version == FIRST_VERSION || spec.recovery.is_some())
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
