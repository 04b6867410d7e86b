//! The node actor.
//!
//! Owns: the node's heartbeats and its judgement of the others. Never: starts replicas (the keeper
//! does), replaces members (control does). Supervised by the root. A restart loses the silence
//! measured so far, which begins anew. Talks to: the bus; whoever follows the view.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use callboard_control::DesiredState;
use callboard_policy::failure::{FailureConfig, FailureDetector, NodesView};
use callboard_protocol::{
    ActorKind, ClusterId, DiskId, Envelope, Epoch, Fault, FaultCode, Incarnation, NodeId, Subject,
    SubjectPattern,
    control::NodeHealth,
    environment::Environment,
    node::{Beat, Kill},
};
use callboard_replicated::Group;
use callboard_transport::{BusHealth, Lanes, Message, typed};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::{sync::watch, task::JoinSet, time::Instant};

use crate::{
    replicas::{ReplicaFactory, Roster},
    storage::Storage,
};

/// Pause between two heartbeats; three fit into the suspicion time. They are half of what an idle
/// cluster costs.
pub(crate) const BEAT_EVERY: Duration = Duration::from_millis(450);

/// Ends the process as a crash would; tests put something else here.
pub type Crash = Arc<dyn Fn() + Send + Sync>;

/// What the node actor works with.
#[derive(Clone)]
pub(crate) struct NodeActorArgs {
    pub(crate) cluster: ClusterId,
    pub(crate) node: NodeId,
    pub(crate) disk: DiskId,
    pub(crate) incarnation: Incarnation,
    pub(crate) host: String,
    pub(crate) lanes: Lanes,
    pub(crate) group: Group<DesiredState>,
    pub(crate) failure: FailureConfig,
    pub(crate) view: Arc<watch::Sender<NodesView>>,
    pub(crate) python: watch::Receiver<Option<String>>,
    pub(crate) environment: watch::Receiver<Option<Environment>>,
    pub(crate) factory: Arc<dyn ReplicaFactory>,
    pub(crate) roster: Roster,
    /// Number of the last beat; survives restarts of this actor.
    pub(crate) beats: Arc<AtomicU64>,
    pub(crate) crash: Crash,
    pub(crate) storage: Storage,
}

/// What the node actor is told, all by its own tasks.
pub(crate) enum NodeMsg {
    /// It is time for a heartbeat.
    Tick,
    /// A node said something of itself, or someone saw it end.
    Heard(Box<Message>),
    /// Somebody wants something ended.
    Kill(Box<Message>),
    /// Somebody wants to know what is installed here.
    Environment(Box<Message>),
    /// The connection to the bus came or went.
    Bus(BusHealth),
}

pub(crate) struct NodeActor;

pub(crate) struct NodeState {
    args: NodeActorArgs,
    detector: FailureDetector,
    started: Instant,
    _tasks: JoinSet<()>,
}

#[ractor::async_trait]
impl Actor for NodeActor {
    type Msg = NodeMsg;
    type State = NodeState;
    type Arguments = NodeActorArgs;

    async fn pre_start(
        &self,
        me: ActorRef<NodeMsg>,
        args: NodeActorArgs,
    ) -> Result<NodeState, ActorProcessingErr> {
        let mut tasks = JoinSet::new();
        listen(&args, &me, &mut tasks).await?;
        let detector = FailureDetector::new(args.failure, args.node.clone(), 0);
        Ok(NodeState { args, detector, started: Instant::now(), _tasks: tasks })
    }

    async fn handle(
        &self,
        _me: ActorRef<NodeMsg>,
        message: NodeMsg,
        state: &mut NodeState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            NodeMsg::Tick => state.tick().await,
            NodeMsg::Heard(message) => state.heard(&message),
            NodeMsg::Kill(message) => state.kill(&message).await,
            NodeMsg::Environment(message) => state.tell_environment(&message).await,
            NodeMsg::Bus(health) => {
                let now_ms = state.now_ms();
                state.detector.on_bus(now_ms, health == BusHealth::Connected);
                state.look();
            }
        }
        Ok(())
    }
}

async fn listen(
    args: &NodeActorArgs,
    me: &ActorRef<NodeMsg>,
    tasks: &mut JoinSet<()>,
) -> Result<(), ActorProcessingErr> {
    let cluster = args.cluster.clone();
    let events = SubjectPattern::EventsOfKind { cluster, kind: ActorKind::Node };
    let mut events = args.lanes.raft.subscribe(&events).await?;
    let to = me.clone();
    tasks.spawn(async move {
        while let Some(message) = events.next().await {
            if to.send_message(NodeMsg::Heard(Box::new(message))).is_err() {
                return;
            }
        }
    });
    type Wrap = fn(Box<Message>) -> NodeMsg;
    let verbs: [(&str, Wrap); 2] = [("kill", NodeMsg::Kill), ("environment", NodeMsg::Environment)];
    for (verb, wrap) in verbs {
        let subject = Subject::actor(&args.cluster, ActorKind::Node, &args.node, verb);
        let mut asked = args.lanes.control.subscribe(&SubjectPattern::Exact(subject)).await?;
        let to = me.clone();
        tasks.spawn(async move {
            while let Some(message) = asked.next().await {
                if to.send_message(wrap(Box::new(message))).is_err() {
                    return;
                }
            }
        });
    }
    let (to, mut health) = (me.clone(), args.lanes.raft.health());
    tasks.spawn(async move {
        loop {
            let now = *health.borrow_and_update();
            if to.send_message(NodeMsg::Bus(now)).is_err() || health.changed().await.is_err() {
                return;
            }
        }
    });
    let to = me.clone();
    tasks.spawn(async move {
        let mut ticks = tokio::time::interval(BEAT_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if to.send_message(NodeMsg::Tick).is_err() {
                return;
            }
        }
    });
    Ok(())
}

impl NodeState {
    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    async fn tick(&mut self) {
        let now_ms = self.now_ms();
        let expected: Vec<_> = self.args.group.read(|state| {
            let nodes = state.nodes().iter();
            nodes.map(|(node, entry)| (node.clone(), entry.disk)).collect()
        });
        for (node, disk) in expected {
            self.detector.expect(now_ms, node, disk);
        }
        self.look();
        self.beat().await;
    }

    /// Judges anew and tells whoever follows.
    fn look(&mut self) {
        let now_ms = self.now_ms();
        let view = self.detector.tick(now_ms);
        let last = self.args.view.borrow().clone();
        if last.outage != view.outage {
            match &view.outage {
                Some(outage) => tracing::warn!(%outage, "no member is replaced for now"),
                None => tracing::info!("the outage is over"),
            }
        }
        for (node, now) in &view.nodes {
            let before = last.nodes.get(node).map(|it| it.health);
            if before.is_some_and(|before| before != now.health) {
                tracing::info!(%node, health = ?now.health, how = ?now.how, "a node's health changed");
            }
        }
        // Silence grows with every look; a thousand replicas need not be woken to be told.
        self.args.view.send_if_modified(|shown| {
            let is_news = !shown.says_the_same_as(&view);
            *shown = view;
            is_news
        });
    }

    async fn beat(&self) {
        let args = &self.args;
        let suspects = {
            let view = args.view.borrow();
            let silent = view.nodes.iter().filter(|(_, it)| it.health != NodeHealth::Up);
            silent.map(|(node, _)| node.clone()).collect()
        };
        let epoch = Epoch(args.group.metrics().borrow().term);
        let python_problem = args.python.borrow().clone();
        let beat = Beat {
            node: args.node.clone(),
            disk: args.disk,
            incarnation: args.incarnation,
            number: args.beats.fetch_add(1, Ordering::Relaxed) + 1,
            pid: std::process::id(),
            host: args.host.clone(),
            replicas: u32::try_from(args.roster.len()).unwrap_or(u32::MAX),
            running_cells: args.factory.running_cells(),
            epoch,
            suspects,
            python_problem,
            disk_level: Some(args.storage.level.borrow().beat.clone()),
            environment: args.environment.borrow().as_ref().map(|it| it.id.clone()),
            unenforced: args.factory.unenforced(),
            asleep: args.factory.asleep(),
            python_stock: args.factory.python_stock(),
            desired_format: callboard_control::FORMAT,
        };
        let subject = Subject::event(&args.cluster, ActorKind::Node, &args.node, "beat");
        let envelope = Envelope { epoch, ..Envelope::default() };
        if let Err(fault) = typed::announce(&*args.lanes.raft, &subject, &envelope, &beat).await {
            tracing::debug!(%fault, "a heartbeat could not be sent");
        }
    }

    fn heard(&mut self, message: &Message) {
        let now_ms = self.now_ms();
        match message.subject.last() {
            "beat" => match typed::decode(message) {
                Ok(beat) => self.detector.on_beat(now_ms, &beat),
                Err(fault) => tracing::debug!(%fault, "a heartbeat could not be read"),
            },
            "exited" => match typed::decode(message) {
                Ok(exited) => {
                    self.detector.on_exited(now_ms, &exited);
                    self.look();
                }
                Err(fault) => tracing::debug!(%fault, "the end of a node could not be read"),
            },
            _ => {}
        }
    }

    async fn tell_environment(&self, message: &Message) {
        let known = self.args.environment.borrow().clone();
        let unknown = || {
            let text = format!("{} is still looking at its Python: ask again", self.args.node);
            Fault::new(FaultCode::Unavailable, text)
        };
        let bus = &*self.args.lanes.control;
        if let Err(fault) = typed::answer(bus, message, known.ok_or_else(unknown)).await {
            tracing::debug!(%fault, "this node's environment could not be sent");
        }
    }

    async fn kill(&self, message: &Message) {
        let args = &self.args;
        let target = typed::decode::<Kill>(message).and_then(|kill| self.find(kill));
        let reply = target.as_ref().map(|_| ()).map_err(Clone::clone);
        if let Err(fault) = typed::answer(&*args.lanes.control, message, reply).await {
            tracing::debug!(%fault, "the answer to a kill could not be sent");
        }
        if let Ok(end) = target {
            end();
        }
    }

    /// How to carry a kill out.
    fn find(&self, kill: Kill) -> Result<Box<dyn FnOnce() + Send>, Fault> {
        let args = &self.args;
        let get = |key| {
            let missing = || Fault::new(FaultCode::NotFound, args.roster.missing(&args.node, key));
            args.roster.get(&key).ok_or_else(missing)
        };
        match kill {
            Kill::Node => {
                let crash = args.crash.clone();
                Ok(Box::new(move || crash()))
            }
            Kill::Python { kernel, replica } => {
                let handle = get((kernel, replica))?;
                Ok(Box::new(move || handle.kill_python()))
            }
            Kill::Replica { kernel, replica } => {
                let handle = get((kernel, replica))?;
                Ok(Box::new(move || handle.kill()))
            }
        }
    }
}
