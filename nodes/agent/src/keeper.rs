//! The keeper of this node's replicas.
//!
//! Owns: which replica actors exist, under their supervisor. Never: runs cells, changes the
//! desired state. Supervised by the root. A restart loses nothing: it reads the supervisor's
//! children anew, which it stops and starts again. Talks to: the local copy of the desired state,
//! the replica supervisor, the control plane (lost members).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use callboard_control::DesiredState;
use callboard_protocol::{
    ActorKind, ClusterId, DiskId, Envelope, GroupId, NodeId, Subject,
    control::{KernelSpec, MemberChange, MemberChanged, Standing},
};
use callboard_replicated::{ChunkPins, Group, Replicator};
use callboard_runtime::{SupervisorEvent, SupervisorHandle};
use callboard_transport::{Bus, typed};
use futures::future::join_all;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::{sync::watch, task::JoinSet, time::Instant};

use crate::{
    data_dir::{DataDir, NotedMembers},
    reconcile::{Observed, Task, plan},
    replicas::{MemberKey, ReplicaFactory, ReplicaHandle, Roster, SharedSpec},
};

/// How often it looks when nothing wakes it.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Pause before a replica that could not be started is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(5);
/// Replicas started at a time; each opens its log and subscribes.
const STARTS_AT_A_TIME: usize = 8;
/// How long the control plane may take to note a lost member; it is told again.
const REPORT_WITHIN: Duration = Duration::from_secs(2);

/// What the keeper works with.
#[derive(Clone)]
pub(crate) struct KeeperArgs {
    pub(crate) cluster: ClusterId,
    pub(crate) node: NodeId,
    pub(crate) disk: DiskId,
    pub(crate) dir: Arc<DataDir>,
    pub(crate) bus: Arc<dyn Bus>,
    pub(crate) group: Group<DesiredState>,
    pub(crate) revision: watch::Receiver<u64>,
    pub(crate) replicator: Replicator,
    pub(crate) supervisor: SupervisorHandle,
    pub(crate) factory: Arc<dyn ReplicaFactory>,
    pub(crate) roster: Roster,
    /// Groups with records when this life began.
    pub(crate) groups_at_start: Arc<BTreeSet<GroupId>>,
    pub(crate) pins: ChunkPins,
}

/// What the keeper is told, all by its own tasks.
pub(crate) enum KeeperMsg {
    /// Something may have changed.
    Look,
    /// The supervisor gave a replica up.
    Abandoned(String),
    /// The supervisor was started again, without children.
    Emptied,
}

struct Running {
    spec: SharedSpec,
    handle: Arc<dyn ReplicaHandle>,
}

pub(crate) struct Keeper;

pub(crate) struct KeeperState {
    args: KeeperArgs,
    running: BTreeMap<MemberKey, Running>,
    noted: NotedMembers,
    /// Members that ran here in an earlier life and have no log any more.
    without_log: BTreeSet<MemberKey>,
    not_before: BTreeMap<MemberKey, Instant>,
    /// What was seen when there was nothing to do: the revision of the desired state and the number
    /// of damaged logs.
    settled: Option<(u64, usize)>,
    _tasks: JoinSet<()>,
}

#[ractor::async_trait]
impl Actor for Keeper {
    type Msg = KeeperMsg;
    type State = KeeperState;
    type Arguments = KeeperArgs;

    async fn pre_start(
        &self,
        me: ActorRef<KeeperMsg>,
        args: KeeperArgs,
    ) -> Result<KeeperState, ActorProcessingErr> {
        for child in args.supervisor.children().await.unwrap_or_default() {
            args.supervisor.stop_child(&child.name).await?;
        }
        for key in args.roster.keys() {
            args.roster.remove(&key);
        }
        let noted = args.dir.noted_members()?;
        let is_gone = |group: &GroupId| !args.groups_at_start.contains(group);
        let without_log =
            noted.iter().filter(|(_, group)| is_gone(group)).map(|(key, _)| *key).collect();
        let mut tasks = JoinSet::new();
        tasks.spawn(look_out(args.clone(), me));
        Ok(KeeperState {
            args,
            running: BTreeMap::new(),
            noted,
            without_log,
            not_before: BTreeMap::new(),
            settled: None,
            _tasks: tasks,
        })
    }

    async fn handle(
        &self,
        _me: ActorRef<KeeperMsg>,
        message: KeeperMsg,
        state: &mut KeeperState,
    ) -> Result<(), ActorProcessingErr> {
        if !matches!(message, KeeperMsg::Look) {
            state.settled = None;
        }
        match message {
            KeeperMsg::Look => state.look().await,
            KeeperMsg::Abandoned(name) => state.abandoned(&name).await,
            KeeperMsg::Emptied => {
                for key in std::mem::take(&mut state.running).into_keys() {
                    state.args.roster.remove(&key);
                }
                state.look().await;
            }
        }
        Ok(())
    }
}

/// Wakes the keeper: on every change of the desired state, on a replica given up, in time.
async fn look_out(args: KeeperArgs, me: ActorRef<KeeperMsg>) {
    let mut revision = args.revision.clone();
    let mut events = args.supervisor.events();
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let message = tokio::select! {
            _ = ticks.tick() => KeeperMsg::Look,
            changed = revision.changed() => match changed {
                Ok(()) => KeeperMsg::Look,
                Err(_) => return,
            },
            event = events.recv() => match event {
                Ok(SupervisorEvent::ChildAbandoned { name, reason }) => {
                    tracing::error!(replica = %name, %reason, "a replica was given up for now");
                    KeeperMsg::Abandoned(name)
                }
                Ok(SupervisorEvent::Started { .. }) => KeeperMsg::Emptied,
                Ok(_) => continue,
                Err(tokio::sync::broadcast::error::RecvError::Lagged(_)) => KeeperMsg::Look,
                Err(tokio::sync::broadcast::error::RecvError::Closed) => return,
            },
        };
        if me.send_message(message).is_err() {
            return;
        }
    }
}

fn child_name((kernel, replica): MemberKey) -> String {
    format!("{kernel}-{replica}")
}

impl KeeperState {
    async fn look(&mut self) {
        let seen = self.seen();
        if self.settled == Some(seen) {
            return;
        }
        let tasks = self.plan();
        self.settled = tasks.is_empty().then_some(seen);
        let mut starts = Vec::new();
        for task in tasks {
            match task {
                Task::Start(key, spec) => starts.push((key, spec)),
                Task::Tell(key, spec) => self.tell(key, spec),
                Task::Halt(key) => drop(self.end(key, false).await),
                Task::Purge(key) => self.purge(key).await,
                Task::Erase(key) => self.erase(key).await,
                Task::Report(key, why) => self.report(key, why).await,
            }
        }
        for batch in starts.chunks(STARTS_AT_A_TIME) {
            self.start(batch).await;
        }
    }

    fn seen(&self) -> (u64, usize) {
        let revision = self.args.group.read(DesiredState::revision);
        (revision, self.args.replicator.corrupt_groups().len())
    }

    fn plan(&self) -> Vec<Task> {
        let args = &self.args;
        let running = self.running.iter().map(|(key, it)| (*key, it.spec.version())).collect();
        let corrupt = args.replicator.corrupt_groups();
        args.group.read(|state| {
            let standing =
                |key: &MemberKey| Some(state.kernels().get(&key.0)?.replicas.get(&key.1)?.standing);
            // One that was still joining may not have had a log yet.
            let lost = self
                .without_log
                .iter()
                .filter(|key| standing(key) != Some(Standing::Joiner))
                .map(|key| (*key, format!("its log is missing on {}", args.node)))
                .collect();
            let seen = Observed {
                node: &args.node,
                disk: args.disk,
                running: &running,
                noted: &self.noted,
                lost: &lost,
                corrupt: &corrupt,
            };
            plan(state, &seen)
        })
    }

    async fn start(&mut self, batch: &[(MemberKey, KernelSpec)]) {
        let now = Instant::now();
        let due: Vec<_> = batch
            .iter()
            .filter(|(key, _)| self.not_before.get(key).is_none_or(|at| *at <= now))
            .map(|(key, spec)| {
                let shared = SharedSpec::new(spec.clone());
                let (child, handle) =
                    self.args.factory.child(&child_name(*key), shared.clone(), key.1);
                (*key, shared, child, handle)
            })
            .collect();
        let supervisor = &self.args.supervisor;
        let started = join_all(due.into_iter().map(|(key, spec, child, handle)| async move {
            (key, spec, handle, supervisor.start_child(child).await)
        }))
        .await;
        for (key, spec, handle, result) in started {
            match result.map_err(|error| error.to_string()) {
                Ok(()) => self.started(key, spec, handle),
                Err(error) => {
                    tracing::warn!(kernel = %key.0, replica = %key.1, %error, "a replica did not start");
                    self.not_before.insert(key, now + RETRY_AFTER);
                }
            }
        }
    }

    fn started(&mut self, key: MemberKey, spec: SharedSpec, handle: Arc<dyn ReplicaHandle>) {
        tracing::info!(kernel = %key.0, replica = %key.1, "a replica runs");
        self.not_before.remove(&key);
        self.without_log.remove(&key);
        let group = spec.get().group();
        if let Err(error) = self.args.dir.note_member(&group, key.1) {
            tracing::error!(%error, "a replica could not be noted");
        }
        self.noted.insert(key, group);
        self.args.roster.insert(key, handle.clone());
        self.running.insert(key, Running { spec, handle });
    }

    fn tell(&mut self, key: MemberKey, spec: KernelSpec) {
        if let Some(running) = self.running.get(&key) {
            running.spec.set(spec.clone());
            running.handle.spec_changed(spec);
        }
    }

    async fn purge(&mut self, key: MemberKey) {
        if self.end(key, true).await {
            self.erase(key).await;
        }
    }

    /// Ends a replica in order; whether it ran.
    async fn end(&mut self, key: MemberKey, purge: bool) -> bool {
        let Some(running) = self.running.remove(&key) else { return false };
        tracing::info!(kernel = %key.0, replica = %key.1, purge, "a replica ends");
        self.args.roster.remove(&key);
        running.handle.stop(purge).await;
        if let Err(error) = self.args.supervisor.stop_child(&child_name(key)).await {
            tracing::warn!(%error, "a replica's supervisor did not stop it");
        }
        true
    }

    /// The group a member is or was of.
    fn group_of(&self, key: &MemberKey) -> GroupId {
        self.noted.get(key).cloned().unwrap_or_else(|| {
            let spec = |state: &DesiredState| state.kernels().get(&key.0).map(KernelSpec::group);
            self.args.group.read(spec).unwrap_or_else(|| GroupId::of_kernel(key.0, 0))
        })
    }

    async fn erase(&mut self, key: MemberKey) {
        let group = self.group_of(&key);
        if let Err(error) = self.args.replicator.erase(&group).await {
            tracing::warn!(kernel = %key.0, %error, "a log could not be erased; it is tried again");
            return;
        }
        if let Err(error) = self.args.dir.forget_member(&group, key.1) {
            tracing::warn!(%error, "a replica could not be forgotten; it is tried again");
            return;
        }
        self.args.pins.forget(&(group, key.1));
        self.noted.remove(&key);
        self.without_log.remove(&key);
        self.not_before.remove(&key);
        let mut others = self.noted.keys().chain(self.running.keys());
        if !others.any(|other| other.0 == key.0) {
            let is_stopped = self.args.group.read(|state| state.is_stopped(key.0));
            self.args.factory.forget(key.0, is_stopped);
        }
    }

    async fn report(&mut self, key: MemberKey, why: String) {
        let now = Instant::now();
        if self.not_before.get(&key).is_some_and(|at| *at > now) {
            return;
        }
        self.not_before.insert(key, now + RETRY_AFTER);
        tracing::error!(kernel = %key.0, replica = %key.1, %why, "a replica is to be replaced");
        let args = &self.args;
        let subject = Subject::actor(&args.cluster, ActorKind::Control, "main", "member_changed");
        let (kernel, replica) = key;
        let change = MemberChanged { kernel, replica, change: MemberChange::Lost { why } };
        let told: Result<KernelSpec, _> =
            typed::ask(&*args.bus, &subject, &Envelope::default(), &change, REPORT_WITHIN).await;
        if let Err(fault) = told {
            tracing::debug!(%fault, "the control plane was not told of a lost member yet");
        }
    }

    async fn abandoned(&mut self, name: &str) {
        let Some(key) = self.running.keys().find(|key| child_name(**key) == name).copied() else {
            return;
        };
        self.running.remove(&key);
        self.args.roster.remove(&key);
        if let Err(error) = self.args.supervisor.stop_child(name).await {
            tracing::warn!(%error, "a replica that was given up could not be forgotten");
        }
        self.not_before.insert(key, Instant::now() + RETRY_AFTER);
    }
}
