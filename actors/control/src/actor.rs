//! The control actor.
//!
//! Owns: the answers on `control.main.*` and the leader's unasked work. Never: starts replicas,
//! holds state of record (the system group does). Supervised by the node's root supervisor. A
//! restart loses requests under way (clients resend) and the pace of repairs; the rest is read
//! from the group. Talks to: the system group, the bus.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use callboard_policy::{environment::EnvironmentMatch, failure::NodesView, repair::RepairLimits};
use callboard_protocol::{
    ActorKind, ClusterId, DiskId, Envelope, Epoch, Fault, FaultCode, KernelId, NodeId, ReplicaId,
    Subject, SubjectPattern,
    control::{KernelLimits, ListKernels, NodeHealth},
    users::ListUsers,
};
use callboard_replicated::Group;
use callboard_transport::{Bus, Lanes, Message, typed};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore, watch},
    task::JoinSet,
};

use crate::{desired::DesiredState, environments::Learned, handlers, recover, repair, users};

/// How often the leader looks for work when nothing wakes it.
const WORK_EVERY: Duration = Duration::from_millis(500);
/// Requests answered at a time; each waits for one proposal or one round of the group.
const REQUESTS_MAX: usize = 256;
/// How long the leader may take to make sure that it still leads.
const BARRIER_WITHIN: Duration = Duration::from_secs(1);
/// The id in `control.<id>.*`.
const CONTROL_ID: &str = "main";

/// What the control actor works with.
#[derive(Clone)]
pub struct ControlArgs {
    /// The cluster.
    pub cluster: ClusterId,
    /// The node it runs on.
    pub node: NodeId,
    /// The node's connections.
    pub lanes: Lanes,
    /// The system group.
    pub group: Group<DesiredState>,
    /// Who founded the group, if this node is one of them.
    pub founders: Option<BTreeMap<ReplicaId, (NodeId, DiskId)>>,
    /// How the nodes are.
    pub nodes: watch::Receiver<NodesView>,
    /// The revision of the local copy of the desired state; changes wake the leader.
    pub revision: watch::Receiver<u64>,
    /// How fast repair may go.
    pub repair_limits: RepairLimits,
    /// How alike the Python environments of a kernel's nodes have to be.
    pub environment_match: EnvironmentMatch,
    /// The most that kernels may ask for.
    pub limits_max: KernelLimits,
}

/// What the control actor is told, all by its own tasks.
pub enum ControlMsg {
    /// A request, with its place among those answered at a time.
    Request(Box<Message>, OwnedSemaphorePermit),
    /// It is time to look for work.
    Work,
    /// The round of work is over.
    Worked,
}

/// What handlers and the repair work share.
pub(crate) struct Context {
    pub(crate) args: ControlArgs,
    pub(crate) repair: repair::RepairMemory,
    pub(crate) environments: Learned,
    pub(crate) users_told: users::Told,
    /// Asks for a round of work soon.
    pub(crate) wake: Notify,
}

/// The control actor.
#[derive(Debug)]
pub struct Control;

/// A control actor at work. Dropping it ends its tasks.
pub struct ControlState {
    context: Arc<Context>,
    tasks: JoinSet<()>,
    is_working: bool,
    is_work_due: bool,
}

#[ractor::async_trait]
impl Actor for Control {
    type Msg = ControlMsg;
    type State = ControlState;
    type Arguments = ControlArgs;

    async fn pre_start(
        &self,
        me: ActorRef<ControlMsg>,
        args: ControlArgs,
    ) -> Result<ControlState, ActorProcessingErr> {
        let repair = repair::RepairMemory::new(args.repair_limits);
        let environments = Learned::new(args.environment_match);
        let context = Arc::new(Context {
            args,
            repair,
            environments,
            users_told: users::Told::default(),
            wake: Notify::new(),
        });
        let mut tasks = JoinSet::new();
        listen(&context, &me, &mut tasks).await?;
        tasks.spawn(look_for_work(context.clone(), me));
        Ok(ControlState { context, tasks, is_working: false, is_work_due: false })
    }

    async fn handle(
        &self,
        me: ActorRef<ControlMsg>,
        message: ControlMsg,
        state: &mut ControlState,
    ) -> Result<(), ActorProcessingErr> {
        while let Some(ended) = state.tasks.try_join_next() {
            ended?;
        }
        match message {
            ControlMsg::Request(request, permit) => {
                let context = state.context.clone();
                state.tasks.spawn(async move {
                    respond(&context, &request).await;
                    drop(permit);
                });
            }
            ControlMsg::Work if state.is_working => state.is_work_due = true,
            ControlMsg::Work => state.work(me),
            ControlMsg::Worked => {
                state.is_working = false;
                if std::mem::take(&mut state.is_work_due) {
                    state.work(me);
                }
            }
        }
        Ok(())
    }
}

impl ControlState {
    /// Begins a round of work; the next one begins after it.
    fn work(&mut self, me: ActorRef<ControlMsg>) {
        self.is_working = true;
        let context = self.context.clone();
        self.tasks.spawn(async move {
            repair::work(&context).await;
            // Fails only if the actor has ended.
            let _ = me.send_message(ControlMsg::Worked);
        });
    }
}

async fn listen(
    context: &Context,
    me: &ActorRef<ControlMsg>,
    tasks: &mut JoinSet<()>,
) -> Result<(), ActorProcessingErr> {
    let args = &context.args;
    let pattern = SubjectPattern::Verbs {
        cluster: args.cluster.clone(),
        kind: ActorKind::Control,
        id: CONTROL_ID.to_owned(),
    };
    let mut requests = args.lanes.control.subscribe(&pattern).await?;
    let places = Arc::new(Semaphore::new(REQUESTS_MAX));
    let (group, me) = (args.group.clone(), me.clone());
    tasks.spawn(async move {
        while let Some(message) = requests.next().await {
            if !group.is_leader() {
                continue;
            }
            let Ok(permit) = places.clone().acquire_owned().await else { return };
            if me.send_message(ControlMsg::Request(Box::new(message), permit)).is_err() {
                return;
            }
        }
    });
    Ok(())
}

/// Time, the nodes, the desired state and the leadership each give the leader work.
async fn look_for_work(context: Arc<Context>, me: ActorRef<ControlMsg>) {
    let mut nodes = context.args.nodes.clone();
    let mut revision = context.args.revision.clone();
    let mut leader = context.args.group.leader();
    let mut ticks = tokio::time::interval(WORK_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut health = health_of(&nodes);
    loop {
        let is_alive = tokio::select! {
            _ = ticks.tick() => true,
            () = context.wake.notified() => true,
            changed = nodes.changed() => {
                let seen = health_of(&nodes);
                if changed.is_ok() && seen == health {
                    continue;
                }
                health = seen;
                changed.is_ok()
            }
            changed = revision.changed() => changed.is_ok(),
            changed = leader.changed() => changed.is_ok(),
        };
        if !is_alive || me.send_message(ControlMsg::Work).is_err() {
            return;
        }
    }
}

/// What of the view matters to repair; silence alone changes with every look.
fn health_of(nodes: &watch::Receiver<NodesView>) -> (bool, Vec<(NodeId, DiskId, NodeHealth)>) {
    let view = nodes.borrow();
    let seen = view.nodes.iter().map(|(id, node)| (id.clone(), node.disk, node.health));
    (view.outage.is_some(), seen.collect())
}

async fn respond(context: &Context, message: &Message) {
    let group = &context.args.group;
    if group.read_barrier(BARRIER_WITHIN).await.is_err() {
        // Another member leads, or nobody does; whoever leads next answers the resent request.
        return;
    }
    let bus: &dyn Bus = &*context.args.lanes.control;
    let envelope = &message.envelope;
    let sent = match message.subject.last() {
        "start_kernel" => {
            serve(bus, message, |it| handlers::start_kernel(context, envelope, it)).await
        }
        "stop_kernel" => {
            serve(bus, message, |it| handlers::stop_kernel(context, envelope, it)).await
        }
        // Nothing, as older clients send it, asks for the first page.
        "list_kernels" => {
            serve(bus, message, async |it: Option<ListKernels>| {
                Ok(handlers::list_kernels(context, &it.unwrap_or_default()))
            })
            .await
        }
        "find_kernel" => {
            serve(bus, message, async |it| handlers::find(context, envelope, &it)).await
        }
        "list_nodes" => typed::answer(bus, message, Ok(handlers::list_nodes(context))).await,
        "list_kernelspecs" => {
            typed::answer(bus, message, Ok(handlers::list_kernelspecs(context).await)).await
        }
        "register_node" => serve(bus, message, |it| handlers::register_node(context, it)).await,
        "member_changed" => serve(bus, message, |it| handlers::member_changed(context, it)).await,
        "recover_kernel" => {
            serve(bus, message, |it| recover::recover_kernel(context, envelope, it)).await
        }
        "label_kernel" => serve(bus, message, |it| handlers::label_kernel(context, it)).await,
        "note_needs" => serve(bus, message, |it| handlers::note_needs(context, it)).await,
        "add_user" => serve(bus, message, |it| users::add_user(context, envelope, it)).await,
        "remove_user" => serve(bus, message, |it| users::remove_user(context, envelope, it)).await,
        "add_token" => serve(bus, message, |it| users::add_token(context, envelope, it)).await,
        "revoke_token" => {
            serve(bus, message, |it| users::revoke_token(context, envelope, it)).await
        }
        "list_users" => {
            serve(bus, message, async |it: Option<ListUsers>| {
                Ok(users::list_users(context, &it.unwrap_or_default()))
            })
            .await
        }
        unknown => typed::answer::<()>(bus, message, Err(unknown_verb(unknown))).await,
    };
    if let Err(fault) = sent {
        tracing::debug!(%fault, subject = %message.subject, "an answer could not be sent");
    }
}

/// Reads what a verb takes, has it done, and answers.
async fn serve<Req: DeserializeOwned, Rep: Serialize + Send>(
    bus: &dyn Bus,
    message: &Message,
    verb: impl AsyncFnOnce(Req) -> Result<Rep, Fault>,
) -> Result<(), Fault> {
    let result = match typed::decode(message) {
        Ok(request) => verb(request).await,
        Err(fault) => Err(fault),
    };
    typed::answer(bus, message, result).await
}

fn unknown_verb(verb: &str) -> Fault {
    let text = format!(
        "the control actor has no verb '{verb}': use start_kernel, stop_kernel, list_kernels, \
         find_kernel, list_nodes, list_kernelspecs, register_node, member_changed, recover_kernel, \
         note_needs, label_kernel, add_user, remove_user, add_token, revoke_token or list_users (see docs/protocol.md)"
    );
    Fault::new(FaultCode::BadRequest, text)
}

impl Context {
    /// Learns what is not known of the nodes' Python environments.
    pub(crate) async fn learn_environments(&self) {
        let nodes = self.args.nodes.borrow().clone();
        let bus = &*self.args.lanes.control;
        self.environments.learn(bus, &self.args.cluster, &nodes).await;
    }

    /// Tells watchers that something happened to the control plane. They can do without.
    pub(crate) async fn announce<T: Serialize + Sync + ?Sized>(&self, event: &str, body: &T) {
        self.publish(ActorKind::Control, CONTROL_ID.to_owned(), event, body).await;
    }

    /// Tells watchers that something happened to a kernel. They can do without.
    pub(crate) async fn announce_kernel<T: Serialize + Sync + ?Sized>(
        &self,
        kernel: KernelId,
        event: &str,
        body: &T,
    ) {
        self.publish(ActorKind::Kernel, kernel.to_string(), event, body).await;
    }

    async fn publish<T: Serialize + Sync + ?Sized>(
        &self,
        kind: ActorKind,
        id: String,
        event: &str,
        body: &T,
    ) {
        let args = &self.args;
        let subject = Subject::event(&args.cluster, kind, id, event);
        let epoch = Epoch(args.group.metrics().borrow().term);
        let envelope = Envelope { epoch, ..Envelope::default() };
        if let Err(fault) = typed::announce(&*args.lanes.control, &subject, &envelope, body).await {
            tracing::debug!(%fault, %subject, "an event could not be sent");
        }
    }
}
