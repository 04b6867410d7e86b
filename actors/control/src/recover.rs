//! `recover_kernel`: a kernel whose majority is lost goes on with one member that is not.
//!
//! Never done by itself: what the lost members acknowledged and the survivor did not hear is gone,
//! and only a person can know that they will not come back.

use std::time::Duration;

use callboard_protocol::{
    ActorKind, Envelope, Fault, FaultCode, KernelId, ReplicaId, Subject,
    control::{Holdings, KernelSpec, RecoverKernel, RecoveryPlan, ReplicaSpec},
};
use callboard_transport::{Bus, typed};
use tokio::time::Instant;

use crate::{
    actor::Context,
    desired::{Command, Outcome, Refusal},
    handlers::{propose, unexpected},
};

/// How long a kernel's group may stay silent before it counts as without a leader: several
/// elections.
const SILENT_FOR: Duration = Duration::from_secs(3);
/// How long one question to a replica may take.
const ASK_WITHIN: Duration = Duration::from_millis(1_500);
/// Pause between questions to a group.
const ASK_EVERY: Duration = Duration::from_millis(250);

/// Says what a recovery would do, or does it.
pub(crate) async fn recover_kernel(
    context: &Context,
    envelope: &Envelope,
    request: RecoverKernel,
) -> Result<RecoveryPlan, Fault> {
    let RecoverKernel { kernel, from, version, plan_only } = request;
    let spec = context.args.group.read(|state| state.kernels().get(&kernel).cloned());
    let spec = spec.ok_or(Refusal::NoSuchKernel { kernel })?;
    if let Some(version) = version.filter(|version| *version != spec.version) {
        let actual = spec.version;
        return Err(Refusal::Stale { kernel, decided_on: version, actual }.into());
    }
    if let Some(recovery) = &spec.recovery {
        let what = format!("it is being recovered from member {}", recovery.from);
        return Err(Refusal::InFlight { kernel, what }.into());
    }
    let Some(survivor) = spec.replicas.get(&from).cloned() else {
        return Err(no_such_member(&spec, from));
    };
    refuse_if_alive(context, &spec).await?;
    let holds = holdings(context, kernel, from, &survivor).await?;
    let lost = spec.replicas.iter().filter(|(id, _)| **id != from);
    let lost = lost.map(|(id, member)| (*id, member.node.clone())).collect();
    let node = survivor.node;
    let plan = RecoveryPlan { spec, from, node, holds, lost };
    if plan_only { Ok(plan) } else { carry_out(context, envelope, plan).await }
}

fn no_such_member(spec: &KernelSpec, from: ReplicaId) -> Fault {
    let kernel = spec.kernel;
    let members: Vec<String> =
        spec.replicas.iter().map(|(id, member)| format!("{id} on {}", member.node)).collect();
    let text = format!("kernel {kernel} has no member {from}: it has {}", members.join(", "));
    Fault::new(FaultCode::NotFound, text)
}

/// A group that still has a leader with a majority needs no recovery, and must not be doubled.
async fn refuse_if_alive(context: &Context, spec: &KernelSpec) -> Result<(), Fault> {
    let kernel = spec.kernel;
    let subject = Subject::actor(&context.args.cluster, ActorKind::Kernel, kernel, "alive");
    let until = Instant::now() + SILENT_FOR;
    while Instant::now() < until {
        let bus: &dyn Bus = &*context.args.lanes.control;
        let leader: Result<ReplicaId, Fault> =
            typed::ask(bus, &subject, &Envelope::default(), &(), ASK_WITHIN).await;
        if let Ok(leader) = leader {
            let text = format!(
                "kernel {kernel} is alive: member {leader} leads a majority of its members; what \
                 is missing is replaced by itself, see `callboard kernel show {kernel}`"
            );
            return Err(Fault::new(FaultCode::Conflict, text));
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
    Ok(())
}

async fn holdings(
    context: &Context,
    kernel: KernelId,
    from: ReplicaId,
    survivor: &ReplicaSpec,
) -> Result<Holdings, Fault> {
    let id = format!("{kernel}-{from}");
    let subject = Subject::actor(&context.args.cluster, ActorKind::Replica, id, "holdings");
    let bus: &dyn Bus = &*context.args.lanes.control;
    let asked = typed::ask(bus, &subject, &Envelope::default(), &(), ASK_WITHIN).await;
    asked.map_err(|_: Fault| {
        let text = format!(
            "member {from} of kernel {kernel} does not answer on {}: it can only be recovered \
             from while its node runs and its log is whole; see `callboard nodes`",
            survivor.node
        );
        Fault::new(FaultCode::Unavailable, text)
    })
}

async fn carry_out(
    context: &Context,
    envelope: &Envelope,
    plan: RecoveryPlan,
) -> Result<RecoveryPlan, Fault> {
    let RecoveryPlan { spec, from, node, .. } = &plan;
    let (kernel, version, from) = (spec.kernel, spec.version, *from);
    let cause = format!("recovered from replica {from} on {node} after a lost majority");
    let command = Command::RecoverKernel { kernel, version, from, cause };
    match propose(context, command).await? {
        Outcome::Kernel(spec) => {
            tracing::warn!(%kernel, %from, "a kernel is recovered from one of its members");
            context.announce_kernel(kernel, "recovery_begun", &spec).await;
            context.audit_kernel(envelope, "kernel_recovered", &spec).await;
            Ok(RecoveryPlan { spec, ..plan })
        }
        outcome => Err(unexpected(outcome)),
    }
}
