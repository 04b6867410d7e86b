//! `callboard kernel recover`: a kernel whose majority is lost goes on with one survivor.

use callboard_protocol::{
    ReplicaId,
    control::{RecoverKernel, RecoveryPlan},
};

use crate::{
    context::{Context, confirm},
    exit::{Exit, Outcome},
    output::say,
};

/// Runs the verb.
///
/// # Errors
/// A [`crate::exit::Failure`] if the kernel is alive, the survivor does not answer, or the user
/// says no.
pub async fn run(context: &Context, kernel: &str, from: u64, yes: bool) -> Outcome {
    let (client, spec) = context.find(kernel).await?;
    say("asking whether the kernel is alive; this takes a few seconds");
    let (kernel, from) = (spec.kernel, ReplicaId(from));
    let asked = RecoverKernel { kernel, from, version: None, plan_only: true };
    let control = client.control();
    let plan = control.recover_kernel(&asked).await?;
    confirm(&explain(&plan), yes)?;
    let version = Some(plan.spec.version);
    let wish = RecoverKernel { version, plan_only: false, ..asked };
    let done = control.recover_kernel(&wish).await?;
    say(&format!("see `callboard kernel show {kernel}` for how it goes on"));
    context.printer.data(&done, |done| done.spec.kernel.to_string())?;
    Ok(Exit::Ok)
}

/// What a recovery does and what it may lose, in lines.
fn explain(plan: &RecoveryPlan) -> String {
    let RecoveryPlan { spec, from, node, holds, lost } = plan;
    let given_up: Vec<String> =
        lost.iter().map(|(replica, node)| format!("{replica} on {node}")).collect();
    let mut lines = vec![
        format!(
            "This makes replica {from} on {node} the whole of kernel {}, and gives up {}: should \
             they come back, they are erased.",
            spec.kernel,
            given_up.join(" and ")
        ),
        format!(
            "Replica {from} has the state after cell {}; the last cell it knows of is {}.",
            holds.completed, holds.accepted
        ),
    ];
    if holds.unconfirmed > 0 {
        lines.push(format!(
            "The last {} entries of its log were not confirmed to it; they count, so cells may \
             turn out to have completed that it does not speak of now.",
            holds.unconfirmed
        ));
    }
    if holds.missing_chunks > 0 {
        lines.push(format!(
            "It lacks {} parts of that state: it can be restored only if another node has them.",
            holds.missing_chunks
        ));
    }
    lines.push(
        "Cells that only the lost replicas acknowledged are gone: nobody here can know whether \
         there were any. A cell that was running ends interrupted."
            .to_owned(),
    );
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use callboard_protocol::{
        KernelId, NodeId, OwnerId, Seq,
        control::{Holdings, KernelSpec},
    };

    use super::*;

    #[test]
    fn a_plan_says_what_goes_on_what_is_given_up_and_what_may_be_missing() {
        let node = |n: u64| NodeId::new(format!("node-{n}")).unwrap();
        let spec = KernelSpec {
            kernel: KernelId::generate(),
            owner: OwnerId::default(),
            name: None,
            replicas_wanted: 3,
            replicas: [].into(),
            replica_next: ReplicaId(4),
            version: 1,
            generation: 0,
            recovery: None,
            origin: None,
            settings: Default::default(),
            needs: None,
            labels: std::collections::BTreeMap::new(),
            options: Default::default(),
        };
        let (accepted, completed) = (Seq(8), Seq(7));
        let holds = Holdings { accepted, completed, unconfirmed: 2, missing_chunks: 0 };
        let lost = [(ReplicaId(1), node(1)), (ReplicaId(3), node(3))].into();
        let plan = RecoveryPlan { spec, from: ReplicaId(2), node: node(2), holds, lost };
        let text = explain(&plan);
        for part in [
            "replica 2 on node-2",
            "1 on node-1 and 3 on node-3",
            "after cell 7",
            "last 2 entries",
            "are gone",
        ] {
            assert!(text.contains(part), "'{part}' is missing: {text}");
        }
        assert!(!text.contains("lacks"), "{text}");
    }
}
