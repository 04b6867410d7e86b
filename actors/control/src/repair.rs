//! What the leader does unasked: records the founders, changes the system group's members, begins
//! repairs of kernels; tells of changed users what a former leader did not get to tell.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use callboard_policy::{
    failure::NodesView,
    repair::{Change, Repair, RepairLimits, RepairPacer, plan_repairs},
};
use callboard_protocol::{
    DiskId, KernelId, NodeId, ReplicaId,
    control::{KernelSpec, Standing},
};
use callboard_replicated::{Group, MemberError};
use serde::Serialize;
use tokio::time::Instant;

use crate::{
    actor::Context,
    desired::{Command, DesiredState, Outcome},
    membership::{MembershipStep, plan_membership},
    users,
    view::cluster_view,
};

/// Log entries a learner may lack when it is made a voter: the next append brings them.
const LAG_ENTRIES_MAX: u64 = 64;
/// How long one change of the system group's members may take before it is looked at again.
const MEMBER_CHANGE_WITHIN: Duration = Duration::from_secs(10);
/// How long a look at which nothing was to be done counts, if nothing has changed: going through a
/// thousand entries twice a second would be most of what an idle cluster does.
const LOOK_COUNTS_FOR: Duration = Duration::from_secs(10);
/// Lost members remembered at a time; their nodes say it again, so that forgetting some is safe.
const LOST_MEMBERS_MAX: usize = 4_096;

/// What the repairing leader remembers. Lost with the actor: nodes report again, and the rate of
/// repairs starts from zero.
#[derive(Debug)]
pub(crate) struct RepairMemory {
    started: Instant,
    pacer: Mutex<RepairPacer>,
    /// Members whose logs are lost though their nodes are well, and why.
    lost: Mutex<BTreeMap<(KernelId, ReplicaId), String>>,
    /// Kernels whose repair waited in the last round, and why.
    held: Mutex<BTreeMap<KernelId, String>>,
    /// What was seen when nothing was to be done, and when.
    settled: Mutex<Option<(Instant, u64, NodesView)>>,
}

impl RepairMemory {
    pub(crate) fn new(limits: RepairLimits) -> Self {
        Self {
            started: Instant::now(),
            pacer: Mutex::new(RepairPacer::new(limits)),
            lost: Mutex::default(),
            held: Mutex::default(),
            settled: Mutex::default(),
        }
    }

    /// A member's log is lost; it is replaced at the next look.
    pub(crate) fn report_lost(&self, kernel: KernelId, replica: ReplicaId, why: String) {
        let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        if lost.len() < LOST_MEMBERS_MAX {
            lost.insert((kernel, replica), why);
        }
        drop(lost);
        self.settle(None);
    }

    /// The lost members that still have to be replaced.
    fn lost(&self, state: &DesiredState) -> BTreeMap<(KernelId, ReplicaId), String> {
        let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        lost.retain(|(kernel, replica), _| {
            let spec = state.kernels().get(kernel);
            let member = spec.and_then(|spec| spec.replicas.get(replica));
            member.is_some_and(|member| member.standing != Standing::Leaver)
        });
        lost.clone()
    }

    /// Kernels whose repair waits, and why.
    pub(crate) fn held(&self) -> BTreeMap<KernelId, String> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_held(&self, held: BTreeMap<KernelId, String>) {
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = held;
    }

    /// Whether nothing was to be done at the last look and nothing has changed since.
    fn is_settled(&self, revision: u64, nodes: &NodesView) -> bool {
        let settled = self.settled.lock().unwrap_or_else(PoisonError::into_inner);
        settled.as_ref().is_some_and(|(since, then, seen)| {
            since.elapsed() < LOOK_COUNTS_FOR && *then == revision && seen.says_the_same_as(nodes)
        })
    }

    fn settle(&self, seen: Option<(u64, NodesView)>) {
        let mut settled = self.settled.lock().unwrap_or_else(PoisonError::into_inner);
        *settled = seen.map(|(revision, nodes)| (Instant::now(), revision, nodes));
    }

    /// A repair has begun.
    fn record(&self, now_ms: u64) {
        self.pacer.lock().unwrap_or_else(PoisonError::into_inner).record(now_ms);
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// A repair as watchers see it.
#[derive(Debug, Clone, Serialize)]
struct RepairBegun<'a> {
    spec: &'a KernelSpec,
    change: &'a Change,
    reason: &'a str,
}

/// One round of the leader's own work. Does nothing on other members.
pub(crate) async fn work(context: &Context) {
    let group = &context.args.group;
    if !group.is_leader() {
        return;
    }
    users::tell(context).await;
    record_founders(context).await;
    change_members(context).await;
    repair_kernels(context).await;
}

async fn record_founders(context: &Context) {
    let args = &context.args;
    if args.group.read(DesiredState::is_founded) {
        return;
    }
    let Some(members) = args.founders.clone() else { return };
    match args.group.propose(Command::Found { members: members.clone() }).await {
        Ok(Outcome::Founded) => {
            let nodes: Vec<&NodeId> = members.values().map(|(node, _)| node).collect();
            tracing::info!(?nodes, "the cluster is founded");
            context.announce("founded", &nodes).await;
        }
        Ok(_) => {}
        Err(error) => tracing::debug!(%error, "founders not recorded yet"),
    }
}

async fn change_members(context: &Context) {
    let group = &context.args.group;
    let view = context.args.nodes.borrow().clone();
    let metrics = group.metrics().borrow().clone();
    let last = metrics.last_log.unwrap_or(0);
    let caught_up: BTreeSet<ReplicaId> = metrics
        .matched
        .iter()
        .filter(|(_, matched)| matched.is_some_and(|m| m + LAG_ENTRIES_MAX >= last))
        .map(|(id, _)| *id)
        .collect();
    let members = group.members();
    let step = group.read(|state| plan_membership(state.nodes(), &members, &caught_up, &view));
    let Some(step) = step else { return };
    tracing::info!(?step, "changing the members of the system group");
    match tokio::time::timeout(MEMBER_CHANGE_WITHIN, take(group, step)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "a change of the system group's members failed"),
        Err(_) => tracing::warn!("a change of the system group's members takes long"),
    }
}

async fn take(group: &Group<DesiredState>, step: MembershipStep) -> Result<(), MemberError> {
    match step {
        MembershipStep::AddLearner(id, node) => group.add_learner(id, node).await,
        MembershipStep::SetVoters(voters) => group.change_voters(voters).await,
        MembershipStep::RemoveLearner(id) => group.remove_learner(id).await,
    }
}

async fn repair_kernels(context: &Context) {
    let memory = &context.repair;
    context.learn_environments().await;
    let environments = context.environments.get();
    let nodes = context.args.nodes.borrow().clone();
    let now_ms = memory.now_ms();
    let revision = context.args.group.read(DesiredState::revision);
    if memory.is_settled(revision, &nodes) {
        return;
    }
    let (plan, lost) = context.args.group.read(|state| {
        let lost = memory.lost(state);
        let specs: Vec<KernelSpec> =
            state.kernels().values().map(|spec| without_lost_disks(spec, &lost)).collect();
        let cluster = cluster_view(state, &nodes, environments);
        let pacer = memory.pacer.lock().unwrap_or_else(PoisonError::into_inner);
        (plan_repairs(&specs, &nodes, &cluster, now_ms, &pacer), lost)
    });
    let is_calm = plan.frozen.is_none() && plan.repairs.is_empty() && plan.held.is_empty();
    memory.settle(is_calm.then(|| (revision, nodes.clone())));
    for held in &plan.held {
        tracing::debug!(kernel = %held.kernel, reason = %held.reason, "repair waits");
    }
    memory.set_held(plan.held.iter().map(|it| (it.kernel, it.reason.clone())).collect());
    for mut repair in plan.repairs {
        let (_, leave) = sides(&repair.change);
        if let Some(why) = leave.and_then(|old| lost.get(&(repair.kernel, old))) {
            repair.reason.clone_from(why);
        }
        begin(context, repair, now_ms).await;
    }
}

/// The entry as the planner should see it: a member whose log is lost is as good as one whose
/// disk is, so it shows one that no node has.
fn without_lost_disks(
    spec: &KernelSpec,
    lost: &BTreeMap<(KernelId, ReplicaId), String>,
) -> KernelSpec {
    let mut spec = spec.clone();
    for (replica, member) in &mut spec.replicas {
        if lost.contains_key(&(spec.kernel, *replica)) {
            member.disk = DiskId(Default::default());
        }
    }
    spec
}

async fn begin(context: &Context, repair: Repair, now_ms: u64) {
    let (join, leave) = sides(&repair.change);
    let command =
        Command::ChangeMembers { kernel: repair.kernel, version: repair.spec_version, join, leave };
    match context.args.group.propose(command).await {
        Ok(Outcome::Kernel(spec)) => {
            tracing::info!(kernel = %repair.kernel, change = ?repair.change, reason = %repair.reason, "repair begins");
            context.repair.record(now_ms);
            let begun = RepairBegun { spec: &spec, change: &repair.change, reason: &repair.reason };
            context.announce_kernel(repair.kernel, "repair_begun", &begun).await;
        }
        Ok(outcome) => tracing::debug!(?outcome, "a repair was decided on an old view"),
        Err(error) => tracing::debug!(%error, "a repair could not be ordered"),
    }
}

/// Who joins where, and who leaves.
fn sides(change: &Change) -> (Option<(NodeId, DiskId)>, Option<ReplicaId>) {
    match change {
        Change::Replace { old, joiner } => (Some((joiner.node.clone(), joiner.disk)), Some(*old)),
        Change::Grow { joiner } => (Some((joiner.node.clone(), joiner.disk)), None),
        Change::Shrink { old } | Change::Withdraw { old } => (None, Some(*old)),
    }
}
