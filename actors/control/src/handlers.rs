//! The verbs of `control.main`, one function each. Only the leader comes here.

use std::collections::BTreeSet;

use callboard_policy::{
    kernelspecs::NoKernelspec,
    limits,
    placement::{PlacementRequest, place},
};
use callboard_protocol::{
    Envelope, Epoch, Fault, FaultCode, NodeId,
    control::{
        FindKernel, HeldRepair, KernelList, KernelSpec, KernelspecList, LabelKernel, ListKernels,
        MemberChange, MemberChanged, NodeHealth, NodeList, NoteNeeds, StartKernel, StopKernel,
    },
};
use callboard_replicated::ProposeError;

use crate::{
    actor::Context,
    desired::{Command, FORMAT_WITH_KERNELSPECS, FORMAT_WITH_USERS, Outcome},
    find::find_kernel,
    listing,
    request::{RegisterNode, Registered, check_labels, check_start},
    users,
    view::{cluster_view, node_list},
};

/// Most distributions a session may need: each is in the desired state, which every node holds.
const DISTRIBUTIONS_MAX: usize = 2_000;

pub(crate) async fn start_kernel(
    context: &Context,
    envelope: &Envelope,
    request: StartKernel,
) -> Result<KernelSpec, Fault> {
    check_start(&request)?;
    if let Some(refusal) = limits::refusal(&request.settings.limits, &context.args.limits_max) {
        return Err(Fault::new(FaultCode::BadRequest, refusal));
    }
    let StartKernel { kernel, name, replicas, options, origin, settings } = request;
    let owner = envelope.owner.clone();
    context.learn_environments().await;
    let environments = context.environments.get();
    let nodes = context.args.nodes.borrow().clone();
    if settings.kernelspec.is_some() && context.environments.is_awaited(&nodes) {
        let text = "a node that has just started has still to say which kernelspecs it has: try again \
                    in a moment";
        return Err(Fault::new(FaultCode::Unavailable, text));
    }
    let members = context.args.group.members();
    let places = context.args.group.read(|state| {
        if state.kernels().contains_key(&kernel) {
            // The machine compares the requests; no place is needed.
            return Ok(Vec::new());
        }
        if let Some(refusal) = state.refusal_to_start(kernel, &owner, name.as_deref()) {
            return Err(Fault::from(refusal));
        }
        let refusal = origin.as_ref().and_then(|origin| state.refusal_of_origin(&owner, origin));
        if let Some(refusal) = refusal {
            return Err(Fault::from(refusal));
        }
        let view = cluster_view(state, &nodes, environments);
        let kernelspec = settings.kernelspec.clone();
        if let Some(name) = &kernelspec {
            view.check_kernelspec(name).map_err(no_kernelspec)?;
            let new = ("kernels of other languages", FORMAT_WITH_KERNELSPECS);
            users::read_by_all(&members, &nodes, &context.args.node, new)?;
        }
        let (present, needs) = (Vec::new(), None);
        let request = PlacementRequest { kernel, count: replicas, present, needs, kernelspec };
        let seed = kernel.0.as_u64_pair().1;
        let placement = place(&view, &request, seed);
        if let Some(shortfall) = placement.shortfall() {
            return Err(Fault::new(FaultCode::Unavailable, shortfall));
        }
        tracing::info!(%placement, "placed");
        // A second member on a node would survive nothing more; it joins once a node is free.
        let mut taken = BTreeSet::new();
        let apart = placement.chosen.into_iter().filter(|it| taken.insert(it.node.clone()));
        Ok(apart.map(|it| (it.node, it.disk)).collect())
    })?;
    let command =
        Command::StartKernel { kernel, owner, name, replicas, places, options, origin, settings };
    match propose(context, command).await? {
        Outcome::Kernel(spec) => {
            context.announce_kernel(kernel, "started", &spec).await;
            context.audit_kernel(envelope, "kernel_started", &spec).await;
            Ok(spec)
        }
        Outcome::AlreadySo(spec) => Ok(spec),
        outcome => Err(unexpected(outcome)),
    }
}

fn no_kernelspec(why: NoKernelspec) -> Fault {
    let code = match &why {
        NoKernelspec::Unknown { .. } => FaultCode::NotFound,
        NoKernelspec::Unsaid { .. } => FaultCode::Unavailable,
    };
    Fault::new(code, why.to_string())
}

/// The kernelspecs of other languages that nodes have.
pub(crate) async fn list_kernelspecs(context: &Context) -> KernelspecList {
    context.learn_environments().await;
    let environments = context.environments.get();
    let nodes = context.args.nodes.borrow().clone();
    let view = context.args.group.read(|state| cluster_view(state, &nodes, environments));
    KernelspecList { kernelspecs: view.kernelspecs() }
}

pub(crate) async fn stop_kernel(
    context: &Context,
    envelope: &Envelope,
    request: StopKernel,
) -> Result<KernelSpec, Fault> {
    let kernel = request.kernel;
    match propose(context, Command::StopKernel { kernel }).await? {
        Outcome::Stopped { last: Some(spec), is_new } => {
            if is_new {
                context.announce_kernel(kernel, "stopped", &spec).await;
                context.audit_kernel(envelope, "kernel_stopped", &spec).await;
            }
            Ok(spec)
        }
        Outcome::Stopped { last: None, .. } => {
            let text =
                format!("kernel {kernel} was stopped long ago; there is nothing left to stop");
            Err(Fault::new(FaultCode::NotFound, text))
        }
        outcome => Err(unexpected(outcome)),
    }
}

pub(crate) async fn note_needs(context: &Context, request: NoteNeeds) -> Result<KernelSpec, Fault> {
    let NoteNeeds { kernel, needs } = request;
    if needs.distributions.len() > DISTRIBUTIONS_MAX {
        let text = format!("a session cannot need more than {DISTRIBUTIONS_MAX} distributions");
        return Err(Fault::new(FaultCode::TooLarge, text));
    }
    match propose(context, Command::NoteNeeds { kernel, needs }).await? {
        Outcome::Kernel(spec) | Outcome::AlreadySo(spec) => Ok(spec),
        outcome => Err(unexpected(outcome)),
    }
}

pub(crate) fn list_kernels(context: &Context, asked: &ListKernels) -> KernelList {
    context.args.group.read(|state| listing::page(state, asked))
}

pub(crate) fn find(
    context: &Context,
    envelope: &Envelope,
    request: &FindKernel,
) -> Result<KernelSpec, Fault> {
    context.args.group.read(|state| find_kernel(state, &envelope.owner, request.text.trim()))
}

pub(crate) fn list_nodes(context: &Context) -> NodeList {
    let args = &context.args;
    let epoch = Epoch(args.group.metrics().borrow().term);
    let nodes = args.nodes.borrow().clone();
    let mut list = args.group.read(|state| node_list(state, &nodes, epoch, args.node.clone()));
    let held = context.repair.held().into_iter();
    list.held = held.map(|(kernel, reason)| HeldRepair { kernel, reason }).collect();
    list
}

pub(crate) async fn register_node(
    context: &Context,
    request: RegisterNode,
) -> Result<Registered, Fault> {
    let RegisterNode { node, disk, lost } = request;
    refuse_a_double(context, &node, disk)?;
    let command = Command::RegisterNode { node: node.clone(), disk, lost };
    match propose(context, command).await? {
        Outcome::Registered { entry, is_new } => {
            if is_new {
                tracing::info!(%node, %disk, member = %entry.member, "a node joins the cluster");
                context.announce("node_registered", &node).await;
            }
            Ok(Registered { member: entry.member })
        }
        outcome => Err(unexpected(outcome)),
    }
}

/// Notes what front-ends say of a kernel of theirs.
pub(crate) async fn label_kernel(
    context: &Context,
    request: LabelKernel,
) -> Result<KernelSpec, Fault> {
    let LabelKernel { kernel, labels } = request;
    check_labels(&labels)?;
    let args = &context.args;
    let view = args.nodes.borrow().clone();
    users::read_by_all(&args.group.members(), &view, &args.node, ("labels", FORMAT_WITH_USERS))?;
    match propose(context, Command::LabelKernel { kernel, labels }).await? {
        Outcome::Kernel(spec) => {
            context.announce_kernel(kernel, "labelled", &spec.labels).await;
            Ok(spec)
        }
        Outcome::AlreadySo(spec) => Ok(spec),
        outcome => Err(unexpected(outcome)),
    }
}

/// A node that is heard on another disk is not replaced by whoever claims its name.
fn refuse_a_double(
    context: &Context,
    node: &NodeId,
    disk: callboard_protocol::DiskId,
) -> Result<(), Fault> {
    let nodes = context.args.nodes.borrow();
    let Some(view) = nodes.nodes.get(node) else { return Ok(()) };
    let Some(beat) = &view.last_beat else { return Ok(()) };
    if view.disk == disk || view.health != NodeHealth::Up {
        return Ok(());
    }
    let text = format!(
        "{node} is running already (process {} on {}) with another data directory: \
         stop that one, or give this one another --id",
        beat.pid, beat.host
    );
    Err(Fault::new(FaultCode::Conflict, text))
}

pub(crate) async fn member_changed(
    context: &Context,
    request: MemberChanged,
) -> Result<KernelSpec, Fault> {
    let MemberChanged { kernel, replica, change } = request;
    let (command, event) = match change {
        MemberChange::Joined => (Command::MemberJoined { kernel, replica }, "member_joined"),
        MemberChange::Removed => (Command::MemberRemoved { kernel, replica }, "member_removed"),
        MemberChange::Recovered => (Command::MemberRecovered { kernel, replica }, "recovered"),
        MemberChange::Lost { why } => return member_lost(context, kernel, replica, why),
    };
    match propose(context, command).await? {
        Outcome::Kernel(spec) => {
            context.announce_kernel(kernel, event, &spec).await;
            let is_whole = spec.replicas.len() == usize::from(spec.replicas_wanted)
                && callboard_policy::repair::in_flight(&spec).is_none();
            if is_whole {
                context.announce_kernel(kernel, "repaired", &spec).await;
            }
            Ok(spec)
        }
        Outcome::AlreadySo(spec) => Ok(spec),
        outcome => Err(unexpected(outcome)),
    }
}

fn member_lost(
    context: &Context,
    kernel: callboard_protocol::KernelId,
    replica: callboard_protocol::ReplicaId,
    why: String,
) -> Result<KernelSpec, Fault> {
    let spec = context.args.group.read(|state| state.kernels().get(&kernel).cloned());
    let Some(spec) = spec else {
        return Err(crate::Refusal::NoSuchKernel { kernel }.into());
    };
    if spec.replicas.contains_key(&replica) {
        context.repair.report_lost(kernel, replica, why);
        context.wake.notify_one();
    }
    Ok(spec)
}

pub(crate) async fn propose(context: &Context, command: Command) -> Result<Outcome, Fault> {
    context.args.group.propose(command).await.map_err(|error| match error {
        ProposeError::TooLarge { length, limit } => Fault::new(
            FaultCode::TooLarge,
            format!("the request takes {length} bytes, the limit is {limit}: shorten the name"),
        ),
        ProposeError::NotExecuted { reason } => Fault::new(
            FaultCode::Unavailable,
            format!("the control plane is changing its leader ({reason}): try again in a moment"),
        ),
        ProposeError::Unknown { reason } => Fault::maybe_executed(
            FaultCode::Unavailable,
            format!(
                "the control plane lost its majority while it did this ({reason}): \
                 see `callboard nodes`, then look whether it was done"
            ),
        ),
    })
}

pub(crate) fn unexpected(outcome: Outcome) -> Fault {
    match outcome {
        Outcome::Refused(refusal) => refusal.into(),
        other => Fault::maybe_executed(
            FaultCode::Internal,
            format!("a defect: the desired state answered {other:?}; please report it"),
        ),
    }
}
