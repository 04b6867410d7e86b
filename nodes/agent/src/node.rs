//! One node at work: its system group, its actors and their supervisors.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use callboard_control::{Control, ControlArgs, DesiredState};
use callboard_policy::{
    environment::EnvironmentMatch,
    failure::{FailureConfig, NodesView},
    repair::RepairLimits,
};
use callboard_protocol::{
    ActorKind, ClusterId, Envelope, GroupId, Incarnation, NodeId, Subject, control::KernelLimits,
    environment::Environment, node::NodeExited,
};
use callboard_replicated::{
    Applied, ChunkPins, Disk, Group, GroupOptions, OpenError, Replicator, ReplicatorOptions,
};
use callboard_runtime::{
    ChildSpec, OnExceeded, Restart, SupervisorHandle, SupervisorSettings, spawn_supervisor,
};
use callboard_transport::{Lanes, typed};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};

use crate::{
    data_dir::{DataDir, Membership},
    error::NodeError,
    founding::{FoundingDesk, FoundingStage, FoundingStatus},
    joining::Joining,
    keeper::{Keeper, KeeperArgs},
    node_actor::{Crash, NodeActor, NodeActorArgs},
    replicas::{ReplicaFactory, Roster},
    storage::{Storage, StorageArgs, StorageKeeper},
};

/// How many times slower than a kernel's the system group's clock runs. Its heartbeats are most of
/// what an idle cluster says; and while it has no leader, cells run on and clients ask again.
const SYSTEM_CLOCK_SLOWER: u64 = 4;
/// How long the replica supervisor may take to stop them all, Python processes included.
const REPLICAS_STOP_WITHIN: Duration = Duration::from_secs(30);

/// What a node is made of.
pub struct NodeParts {
    /// The cluster.
    pub cluster: ClusterId,
    /// Its id.
    pub node: NodeId,
    /// The nodes that shall found the cluster if there is none.
    pub bootstrap: Vec<NodeId>,
    /// Its data directory.
    pub dir: Arc<DataDir>,
    /// Which of its lives this is.
    pub incarnation: Incarnation,
    /// Its host's name.
    pub host: String,
    /// Its connections.
    pub lanes: Lanes,
    /// Where the log is written.
    pub disk: Arc<dyn Disk>,
    /// How it replicates.
    pub replicator: ReplicatorOptions,
    /// When the others are suspected and given up.
    pub failure: FailureConfig,
    /// How fast repair may go.
    pub repair: RepairLimits,
    /// What its Python environment lacks.
    pub python: watch::Receiver<Option<String>>,
    /// What is installed in it, once that is known.
    pub environment: watch::Receiver<Option<Environment>>,
    /// How alike the Python environments of a kernel's nodes have to be.
    pub environment_match: EnvironmentMatch,
    /// The most that kernels may ask for.
    pub limits_max: KernelLimits,
    /// Ends the process as a crash would.
    pub crash: Crash,
    /// Of the delays of restarts.
    pub seed: u64,
    /// Its disk.
    pub storage: Storage,
}

/// What a factory of replicas is given.
#[derive(Clone)]
pub struct NodeServices {
    /// The node's log and Raft groups.
    pub replicator: Replicator,
    /// How the nodes are.
    pub nodes: watch::Receiver<NodesView>,
}

/// A node at work.
pub struct RunningNode {
    cluster: ClusterId,
    node: NodeId,
    incarnation: Incarnation,
    lanes: Lanes,
    root: SupervisorHandle,
    group: Group<DesiredState>,
    replicator: Replicator,
    storage: Storage,
    nodes: watch::Receiver<NodesView>,
    revision: watch::Receiver<u64>,
    roster: Roster,
    pump: JoinHandle<()>,
    _desk: FoundingDesk,
}

impl RunningNode {
    /// Brings a node up. Waits for the other founders, or for the control plane, as long as it
    /// takes; drop the future to give up.
    ///
    /// # Errors
    /// [`NodeError`].
    pub async fn start(
        parts: NodeParts,
        make_factory: impl FnOnce(&NodeServices) -> Result<Arc<dyn ReplicaFactory>, NodeError>,
    ) -> Result<Self, NodeError> {
        let status = FoundingStatus {
            disk: parts.dir.disk(),
            bootstrap: parts.bootstrap.clone(),
            stage: FoundingStage::Fresh,
        };
        let bus = parts.lanes.control.clone();
        let desk = FoundingDesk::open(bus, &parts.cluster, &parts.node, status).await?;
        let replicator = Replicator::open(
            parts.cluster.clone(),
            parts.node.clone(),
            parts.incarnation,
            parts.lanes.clone(),
            parts.disk.clone(),
            parts.replicator.clone(),
        )
        .await?;
        let groups_at_start = Arc::new(replicator.known_groups());
        let (membership, group, applied) = open_system_group(&parts, &replicator, &desk).await?;
        let (revision_tx, revision) = watch::channel(group.read(DesiredState::revision));
        let pump = tokio::spawn(follow(group.clone(), applied, revision_tx));
        let (view, nodes) = watch::channel(NodesView::default());
        let services = NodeServices { replicator: replicator.clone(), nodes: nodes.clone() };
        let factory = make_factory(&services)?;
        let roster = Roster::default();
        let (replicas_child, replicas) = replica_supervisor(&parts);
        let actors = (replicas, factory.clone(), roster.clone());
        let keeper = keeper_args(&parts, &group, &revision, &replicator, actors, groups_at_start);
        let storage = storage_args(&parts, &group)?;
        let control = control_args(&parts, &membership, &group, &nodes, &revision);
        let node_actor = node_actor_args(&parts, &group, view, factory, &roster);
        let permanent = Restart::Permanent;
        let children = vec![
            ChildSpec::new("control", permanent, move || (Control, control.clone())),
            ChildSpec::new("node", permanent, move || (NodeActor, node_actor.clone())),
            replicas_child,
            ChildSpec::new("storage", permanent, move || (StorageKeeper, storage.clone())),
            ChildSpec::new("keeper", permanent, move || (Keeper, keeper.clone())),
        ];
        let settings = SupervisorSettings { seed: parts.seed, ..SupervisorSettings::default() };
        let root = spawn_supervisor("root", settings, children).await?;
        let NodeParts { cluster, node, incarnation, lanes, storage, .. } = parts;
        Ok(Self {
            cluster,
            node,
            incarnation,
            lanes,
            root,
            group,
            replicator,
            storage,
            nodes,
            revision,
            roster,
            pump,
            _desk: desk,
        })
    }

    /// Its copy of the desired state.
    #[must_use]
    pub fn group(&self) -> &Group<DesiredState> {
        &self.group
    }

    /// Follows the revision of its copy of the desired state.
    #[must_use]
    pub fn revision(&self) -> watch::Receiver<u64> {
        self.revision.clone()
    }

    /// How it sees the nodes.
    #[must_use]
    pub fn nodes(&self) -> watch::Receiver<NodesView> {
        self.nodes.clone()
    }

    /// Who names which chunks on it.
    #[must_use]
    pub fn pins(&self) -> ChunkPins {
        self.storage.pins.clone()
    }

    /// The replicas it runs.
    #[must_use]
    pub fn roster(&self) -> &Roster {
        &self.roster
    }

    /// Waits until it can no longer go on and must be started again; says why.
    pub async fn failed(&self) -> String {
        let mut log = self.replicator.failed();
        let mut chunks = self.storage.chunks.failed();
        let mut group = self.group.metrics();
        tokio::select! {
            biased;
            () = self.root.wait() => "its supervisors gave up".to_owned(),
            Ok(reason) = log.wait_for(Option::is_some) => {
                reason.clone().unwrap_or_default()
            }
            Ok(reason) = chunks.wait_for(Option::is_some) => {
                reason.clone().unwrap_or_default()
            }
            // Without it this node follows no change any more.
            Ok(_) = group.wait_for(|now| !now.running) => {
                "its copy of the desired state stopped".to_owned()
            }
        }
    }

    /// Ends it in order: replicas, actors, groups, log. Nothing is lost.
    pub async fn stop(self) {
        let subject = Subject::event(&self.cluster, ActorKind::Node, &self.node, "exited");
        self.root.stop().await;
        self.group.shutdown().await;
        self.pump.abort();
        self.replicator.close().await;
        let exited = NodeExited {
            node: self.node.clone(),
            incarnation: Some(self.incarnation),
            how: "stopped in order".to_owned(),
        };
        let envelope = Envelope::default();
        if let Err(fault) = typed::announce(&*self.lanes.raft, &subject, &envelope, &exited).await {
            tracing::debug!(%fault, "the end of this node could not be announced");
        }
    }

    /// Ends it as a power cut would: nothing that is not on disk yet gets there. For tests.
    pub async fn crash(self) {
        self.replicator.crash();
        self.pump.abort();
        self.root.stop().await;
        self.group.shutdown().await;
    }
}

fn replica_supervisor(parts: &NodeParts) -> (ChildSpec, SupervisorHandle) {
    let settings = SupervisorSettings {
        on_exceeded: OnExceeded::Abandon,
        seed: parts.seed.wrapping_add(1),
        ..SupervisorSettings::default()
    };
    let (child, handle) =
        ChildSpec::supervisor("replicas", Restart::Permanent, settings, Vec::new());
    (child.stop_within(REPLICAS_STOP_WITHIN), handle)
}

fn keeper_args(
    parts: &NodeParts,
    group: &Group<DesiredState>,
    revision: &watch::Receiver<u64>,
    replicator: &Replicator,
    (supervisor, factory, roster): (SupervisorHandle, Arc<dyn ReplicaFactory>, Roster),
    groups_at_start: Arc<BTreeSet<GroupId>>,
) -> KeeperArgs {
    KeeperArgs {
        cluster: parts.cluster.clone(),
        node: parts.node.clone(),
        disk: parts.dir.disk(),
        dir: parts.dir.clone(),
        bus: parts.lanes.control.clone(),
        group: group.clone(),
        revision: revision.clone(),
        replicator: replicator.clone(),
        supervisor,
        factory,
        roster,
        groups_at_start,
        pins: parts.storage.pins.clone(),
    }
}

fn control_args(
    parts: &NodeParts,
    membership: &Membership,
    group: &Group<DesiredState>,
    nodes: &watch::Receiver<NodesView>,
    revision: &watch::Receiver<u64>,
) -> ControlArgs {
    let founders: BTreeMap<_, _> =
        membership.founders.iter().map(|it| (it.member, (it.node.clone(), it.disk))).collect();
    ControlArgs {
        cluster: parts.cluster.clone(),
        node: parts.node.clone(),
        lanes: parts.lanes.clone(),
        group: group.clone(),
        founders: (!founders.is_empty()).then_some(founders),
        nodes: nodes.clone(),
        revision: revision.clone(),
        repair_limits: parts.repair,
        environment_match: parts.environment_match,
        limits_max: parts.limits_max,
    }
}

fn node_actor_args(
    parts: &NodeParts,
    group: &Group<DesiredState>,
    view: watch::Sender<NodesView>,
    factory: Arc<dyn ReplicaFactory>,
    roster: &Roster,
) -> NodeActorArgs {
    NodeActorArgs {
        cluster: parts.cluster.clone(),
        node: parts.node.clone(),
        disk: parts.dir.disk(),
        incarnation: parts.incarnation,
        host: parts.host.clone(),
        lanes: parts.lanes.clone(),
        group: group.clone(),
        failure: parts.failure,
        view: Arc::new(view),
        python: parts.python.clone(),
        environment: parts.environment.clone(),
        factory,
        roster: roster.clone(),
        beats: Arc::new(AtomicU64::new(0)),
        crash: parts.crash.clone(),
        storage: parts.storage.clone(),
    }
}

/// What the keeper of the disk works with. Members that a former life left on the disk are
/// expected to say which chunks they name.
fn storage_args(parts: &NodeParts, group: &Group<DesiredState>) -> Result<StorageArgs, NodeError> {
    for ((_, replica), group) in parts.dir.noted_members()? {
        parts.storage.pins.expect((group, replica));
    }
    Ok(StorageArgs {
        cluster: parts.cluster.clone(),
        node: parts.node.clone(),
        bus: parts.lanes.control.clone(),
        storage: parts.storage.clone(),
        group: group.clone(),
        tally: Arc::default(),
    })
}

type SystemGroup = (Group<DesiredState>, mpsc::UnboundedReceiver<Applied<DesiredState>>);

/// Opens this node's member of the system group; takes a fresh one if its log is damaged or gone.
async fn open_system_group(
    parts: &NodeParts,
    replicator: &Replicator,
    desk: &FoundingDesk,
) -> Result<
    (Membership, Group<DesiredState>, mpsc::UnboundedReceiver<Applied<DesiredState>>),
    NodeError,
> {
    let joining = Joining {
        cluster: &parts.cluster,
        node: &parts.node,
        bootstrap: &parts.bootstrap,
        dir: &parts.dir,
        bus: parts.lanes.control.clone(),
        desk,
    };
    let system = GroupId::system();
    let mut membership = joining.settle().await?;
    // Not only a founder's: any member may have voted.
    let is_gone = membership.opened && !replicator.known_groups().contains(&system);
    if is_gone || replicator.corrupt_groups().contains(&system) {
        membership = start_over(&joining, replicator, &membership).await?;
    }
    let (group, applied) = match open(replicator, &membership).await {
        Err(OpenError::Corrupt { .. }) => {
            membership = start_over(&joining, replicator, &membership).await?;
            open(replicator, &membership).await?
        }
        opened => opened?,
    };
    if !membership.opened {
        membership.opened = true;
        parts.dir.save_membership(&membership)?;
    }
    Ok((membership, group, applied))
}

async fn open(replicator: &Replicator, membership: &Membership) -> Result<SystemGroup, OpenError> {
    let founders: BTreeMap<_, _> =
        membership.founders.iter().map(|it| (it.member, it.node.clone())).collect();
    let options = GroupOptions {
        found: (!founders.is_empty()).then_some(founders),
        timing: Some(replicator.timing().slower(SYSTEM_CLOCK_SLOWER)),
        ..GroupOptions::new(DesiredState::default())
    };
    replicator.open_group(GroupId::system(), membership.member, options).await
}

/// The log of the old member must not vote any more: a fresh member learns from the others.
async fn start_over(
    joining: &Joining<'_>,
    replicator: &Replicator,
    old: &Membership,
) -> Result<Membership, NodeError> {
    tracing::error!(
        member = %old.member,
        "the copy of the desired state on this disk cannot be trusted: a fresh one is made from the others"
    );
    let membership = joining.replace(old.member).await?;
    replicator.erase(&GroupId::system()).await?;
    Ok(membership)
}

/// Turns what is applied into revisions that others follow.
async fn follow(
    group: Group<DesiredState>,
    mut applied: mpsc::UnboundedReceiver<Applied<DesiredState>>,
    revision: watch::Sender<u64>,
) {
    while applied.recv().await.is_some() {
        let now = group.read(DesiredState::revision);
        revision.send_if_modified(|last| std::mem::replace(last, now) != now);
    }
}
