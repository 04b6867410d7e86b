//! Which members of which kernels to replace, add or remove, and which to leave alone for now.
//!
//! One change in flight per kernel, a bounded number per period over all kernels, and none at all
//! while silence proves nothing. Kernels closest to losing their majority come first.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
};

use callboard_protocol::{
    KernelId, NodeId, ReplicaId,
    control::{KernelSpec, NodeHealth, ReplicaSpec, Standing},
};
use serde::{Deserialize, Serialize};

use crate::{
    failure::NodesView,
    placement::{Chosen, ClusterView, PlacementRequest, Verdict, place},
};

#[cfg(test)]
mod tests;

/// How fast repair may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RepairLimits {
    /// Changes that may begin within `period_ms`.
    pub changes_max: u32,
    /// The period they are counted over, in milliseconds.
    pub period_ms: u64,
}

impl Default for RepairLimits {
    /// Eight in ten seconds: each copies a kernel's state over the bus that cells use, too.
    fn default() -> Self {
        Self { changes_max: 8, period_ms: 10_000 }
    }
}

/// Remembers when changes began.
#[derive(Debug, Clone)]
pub struct RepairPacer {
    limits: RepairLimits,
    begun_ms: VecDeque<u64>,
}

impl RepairPacer {
    /// None has begun.
    #[must_use]
    pub fn new(limits: RepairLimits) -> Self {
        Self { limits, begun_ms: VecDeque::new() }
    }

    /// How many may begin at `now_ms`.
    #[must_use]
    pub fn allowance(&self, now_ms: u64) -> usize {
        let recent = self
            .begun_ms
            .iter()
            .filter(|at| now_ms.saturating_sub(**at) < self.limits.period_ms)
            .count();
        usize::try_from(self.limits.changes_max).unwrap_or(usize::MAX).saturating_sub(recent)
    }

    /// One has begun. Call for each repair that is carried out.
    pub fn record(&mut self, now_ms: u64) {
        let period_ms = self.limits.period_ms;
        self.begun_ms.retain(|at| now_ms.saturating_sub(*at) < period_ms);
        self.begun_ms.push_back(now_ms);
    }
}

/// What to do to a kernel's members.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// Add a joiner and make `old` a leaver.
    Replace {
        /// The member to remove once the joiner is a voter.
        old: ReplicaId,
        /// Where the joiner goes.
        joiner: Chosen,
    },
    /// Add a joiner.
    Grow {
        /// Where it goes.
        joiner: Chosen,
    },
    /// Make `old` a leaver: there are more members than wanted.
    Shrink {
        /// The member to remove.
        old: ReplicaId,
    },
    /// Make a joiner whose node was lost while it was joining a leaver.
    Withdraw {
        /// The joiner.
        old: ReplicaId,
    },
}

/// One repair to begin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repair {
    /// Of which kernel.
    pub kernel: KernelId,
    /// The version of its entry this was decided on; carry out only if it still is.
    pub spec_version: u64,
    /// What to do.
    pub change: Change,
    /// Why, as a sentence.
    pub reason: String,
}

/// A kernel that needs a repair which cannot begin now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Which.
    pub kernel: KernelId,
    /// Why not, as a sentence.
    pub reason: String,
}

/// What to begin now, and what not.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepairPlan {
    /// Why nothing is repaired at all just now, if so.
    pub frozen: Option<String>,
    /// To begin now, the most urgent first.
    pub repairs: Vec<Repair>,
    /// Waiting.
    pub held: Vec<Held>,
}

impl fmt::Display for RepairPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(why) = &self.frozen {
            writeln!(f, "no repair now: {why}")?;
        }
        for it in &self.repairs {
            writeln!(f, "{}: {:?}, as {}", it.kernel, it.change, it.reason)?;
        }
        for it in &self.held {
            writeln!(f, "{}: waiting, as {}", it.kernel, it.reason)?;
        }
        Ok(())
    }
}

/// Plans repairs. The same arguments give the same plan.
#[must_use]
pub fn plan_repairs(
    specs: &[KernelSpec],
    nodes: &NodesView,
    cluster: &ClusterView,
    now_ms: u64,
    pacer: &RepairPacer,
) -> RepairPlan {
    let frozen = nodes.outage.clone().or_else(|| nodes.too_many_silent());
    let mut plan = RepairPlan { frozen, ..RepairPlan::default() };
    if plan.frozen.is_some() {
        return plan;
    }
    let mut cluster = cluster.clone();
    let mut allowance = pacer.allowance(now_ms);
    let mut patients: Vec<Patient<'_>> =
        specs.iter().map(|spec| Patient::examine(spec, nodes)).collect();
    patients.sort_by_key(|it| (it.losses_to_spare, it.spec.kernel));
    for patient in patients {
        match patient.prescribe(&cluster) {
            Ok(None) => {}
            Ok(Some(_)) if allowance == 0 => plan.held.push(Held {
                kernel: patient.spec.kernel,
                reason: "enough repairs have begun within the period".to_owned(),
            }),
            Ok(Some(repair)) => {
                if let Change::Replace { joiner, .. } | Change::Grow { joiner } = &repair.change {
                    cluster.add_member(&joiner.node);
                }
                allowance -= 1;
                plan.repairs.push(repair);
            }
            Err(reason) => plan.held.push(Held { kernel: patient.spec.kernel, reason }),
        }
    }
    plan
}

/// A kernel and what became of its members.
struct Patient<'a> {
    spec: &'a KernelSpec,
    /// Members on nodes or disks that will not come back, and how that is known.
    lost: BTreeMap<ReplicaId, String>,
    /// How many more members may be lost before the majority is; negative if it is lost already.
    losses_to_spare: i64,
}

impl<'a> Patient<'a> {
    fn examine(spec: &'a KernelSpec, nodes: &NodesView) -> Self {
        let lost: BTreeMap<_, _> = spec
            .replicas
            .iter()
            .filter_map(|(id, member)| Some((*id, loss(member, nodes)?)))
            .collect();
        let voters = || spec.replicas.iter().filter(|(_, it)| it.standing != Standing::Joiner);
        let unheard = |member: &ReplicaSpec| {
            nodes.nodes.get(&member.node).is_none_or(|view| view.health != NodeHealth::Up)
        };
        let alive =
            voters().filter(|(id, it)| !lost.contains_key(id) && !unheard(it)).count() as i64;
        let majority = voters().count() as i64 / 2 + 1;
        Self { spec, lost, losses_to_spare: alive - majority }
    }

    /// What to begin; `Ok(None)` if nothing is wrong; a sentence if something is that must wait.
    fn prescribe(&self, cluster: &ClusterView) -> Result<Option<Repair>, String> {
        if let Some(repair) = self.withdraw() {
            return Ok(Some(repair));
        }
        let wanted = usize::from(self.spec.replicas_wanted);
        let members = self.spec.replicas.len();
        let ailing = !self.lost.is_empty() || members != wanted;
        if let Some(change) = in_flight(self.spec) {
            return if ailing { Err(change) } else { Ok(None) };
        }
        if ailing && self.losses_to_spare < 0 {
            return Err("most of its members are not heard, so it cannot change them; \
                 if they are lost for good, `callboard kernel recover` makes a group of one that is not"
                .to_owned());
        }
        if members > wanted {
            return Ok(self.shrink(cluster));
        }
        if let Some((old, why)) = self.lost.iter().next() {
            let joiner = self.free_node(cluster, Some(*old))?;
            let change = Change::Replace { old: *old, joiner };
            return Ok(Some(self.repair(change, why.clone())));
        }
        if members < wanted {
            let joiner = self.free_node(cluster, None)?;
            let reason = format!("it has {members} of {wanted} members");
            return Ok(Some(self.repair(Change::Grow { joiner }, reason)));
        }
        Ok(self.spread(cluster).or_else(|| self.refit(cluster)))
    }

    fn repair(&self, change: Change, reason: String) -> Repair {
        Repair { kernel: self.spec.kernel, spec_version: self.spec.version, change, reason }
    }

    fn withdraw(&self) -> Option<Repair> {
        let joins = |id: &ReplicaId| {
            self.spec.replicas.get(id).is_some_and(|it| it.standing == Standing::Joiner)
        };
        let (old, why) = self.lost.iter().find(|(id, _)| joins(id))?;
        Some(self.repair(Change::Withdraw { old: *old }, format!("while joining, {why}")))
    }

    /// Removes the member that is missed least: a lost one, then one that shares its node, then
    /// one on the most loaded node, then the youngest.
    fn shrink(&self, cluster: &ClusterView) -> Option<Repair> {
        let doubled = self.doubled();
        let load = |node: &NodeId| {
            cluster.nodes.iter().find(|it| it.node == *node).map_or(0, |it| it.replicas)
        };
        let (old, _) = self.spec.replicas.iter().max_by_key(|(id, it)| {
            (self.lost.contains_key(id), doubled.contains(id), load(&it.node), **id)
        })?;
        let reason =
            format!("it has {} of {} members", self.spec.replicas.len(), self.spec.replicas_wanted);
        Some(self.repair(Change::Shrink { old: *old }, reason))
    }

    /// Moves one of two members that share a node once another node is free.
    fn spread(&self, cluster: &ClusterView) -> Option<Repair> {
        let old = *self.doubled().last()?;
        let joiner = self.free_node(cluster, None).ok()?;
        let node = &self.spec.replicas.get(&old)?.node;
        let reason = format!("two of its members share {node} and {} is free", joiner.node);
        Some(self.repair(Change::Replace { old, joiner }, reason))
    }

    /// Moves a member off a node whose Python environment is not what the session needs, once another
    /// node's is.
    fn refit(&self, cluster: &ClusterView) -> Option<Repair> {
        let needs = self.spec.needs.as_ref()?;
        let (old, node, misfit) = self.spec.replicas.iter().find_map(|(id, member)| {
            Some((*id, &member.node, cluster.misfit(&member.node, needs)?))
        })?;
        let joiner = self.free_node(cluster, None).ok()?;
        let reason =
            format!("the Python environment of {node} {misfit}, and {} has it", joiner.node);
        Some(self.repair(Change::Replace { old, joiner }, reason))
    }

    /// Members beyond the first on their node.
    fn doubled(&self) -> BTreeSet<ReplicaId> {
        let mut seen = BTreeSet::new();
        let members = self.spec.replicas.iter();
        members.filter(|(_, it)| !seen.insert(&it.node)).map(|(id, _)| *id).collect()
    }

    /// A node without a member of this kernel but for the one to be replaced.
    fn free_node(
        &self,
        cluster: &ClusterView,
        replaced: Option<ReplicaId>,
    ) -> Result<Chosen, String> {
        let others = self.spec.replicas.iter().filter(|(id, _)| Some(**id) != replaced);
        let request = PlacementRequest {
            kernel: self.spec.kernel,
            count: 1,
            present: others.map(|(_, it)| it.node.clone()).collect(),
            needs: self.spec.needs.clone(),
            kernelspec: self.spec.settings.kernelspec.clone(),
        };
        let seed = self.spec.kernel.0.as_u64_pair().1 ^ self.spec.version;
        let placement = place(cluster, &request, seed);
        match placement.chosen.first() {
            Some(chosen) if !placement.shared => Ok(chosen.clone()),
            Some(_) => {
                let usable = placement
                    .verdicts
                    .iter()
                    .filter(|it| matches!(it.verdict, Verdict::Load(_)))
                    .count();
                let refusals = placement.refusals();
                let others = match refusals.is_empty() {
                    true => String::new(),
                    false => format!(" ({})", refusals.join("; ")),
                };
                Err(format!(
                    "each of the {usable} usable nodes holds a member already{others}: add a node"
                ))
            }
            None => Err(placement.shortfall().unwrap_or_default()),
        }
    }
}

/// How it is known that a member will not come back. A node that was never heard of is given the
/// benefit of the doubt.
fn loss(member: &ReplicaSpec, nodes: &NodesView) -> Option<String> {
    let view = nodes.nodes.get(&member.node)?;
    if view.disk != member.disk {
        return Some(format!("{} came back with another disk", member.node));
    }
    (view.health == NodeHealth::Gone).then(|| match &view.how {
        Some(how) => format!("{} is gone ({how})", member.node),
        None => format!("{} is gone, silent for {} s", member.node, view.silent_ms / 1_000),
    })
}

/// The change that is under way in a kernel, as a sentence.
#[must_use]
pub fn in_flight(spec: &KernelSpec) -> Option<String> {
    if let Some(recovery) = &spec.recovery {
        return Some(format!("it is being recovered from member {}", recovery.from));
    }
    let changing = |standing| spec.replicas.iter().find(move |(_, it)| it.standing == standing);
    if let Some((id, member)) = changing(Standing::Joiner) {
        return Some(format!("member {id} is still joining on {}", member.node));
    }
    let (id, member) = changing(Standing::Leaver)?;
    Some(format!("member {id} is still leaving {}", member.node))
}
