//! Drives the group's members towards the kernel's entry in the desired state.
//!
//! The group's leader does it, one change at a time: learner, then voter, then the old member is
//! removed, and only a member whose log and chunks are complete becomes a voter.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use callboard_policy::{
    failure::{NodeView, NodesView},
    terms::{Input, OpenTerm},
};
use callboard_protocol::{
    ActorKind, Envelope, NodeId, ReplicaId, Subject,
    control::{KernelSpec, MemberChange, MemberChanged, NodeHealth, Standing},
};
use callboard_replicated::Members;
use callboard_transport::typed;
use ractor::ActorStatus;

use super::{Internal, ReplicaState, starting::life_of_node, tell};

/// Log entries a learner may lack when it is made a voter: the next append brings them.
const LAG_ENTRIES_MAX: u64 = 16;
/// How long to wait for a learner to say whether its chunks are complete.
const READINESS_WITHIN: Duration = Duration::from_millis(500);
/// How long the control plane may take to note a change.
const REPORT_WITHIN: Duration = Duration::from_secs(2);

/// One change of a group's members.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    AddLearner(ReplicaId, NodeId),
    SetVoters(BTreeSet<ReplicaId>),
    RemoveLearner(ReplicaId),
}

/// The next step from `members` to `spec`. `caught_up` are learners whose log is complete.
fn next_change(
    spec: &KernelSpec,
    members: &Members,
    caught_up: &BTreeSet<ReplicaId>,
) -> Option<Step> {
    let staying = || spec.replicas.iter().filter(|(_, r)| r.standing != Standing::Leaver);
    for (id, replica) in staying() {
        if !members.voters.contains_key(id) && !members.learners.contains_key(id) {
            return Some(Step::AddLearner(*id, replica.node.clone()));
        }
    }
    for (id, _) in staying() {
        if members.learners.contains_key(id) && caught_up.contains(id) {
            let mut voters: BTreeSet<ReplicaId> = members.voters.keys().copied().collect();
            voters.insert(*id);
            return Some(Step::SetVoters(voters));
        }
    }
    let kept: BTreeSet<ReplicaId> =
        staying().map(|(id, _)| *id).filter(|id| members.voters.contains_key(id)).collect();
    let is_whole = kept.len() == staying().count() && !kept.is_empty();
    if is_whole && kept.len() < members.voters.len() {
        return Some(Step::SetVoters(kept));
    }
    members
        .learners
        .keys()
        .find(|id| spec.replicas.get(id).is_none_or(|r| r.standing == Standing::Leaver))
        .map(|id| Step::RemoveLearner(*id))
}

/// What the control plane does not know yet of the group's members.
fn unreported(spec: &KernelSpec, members: &Members) -> Option<(ReplicaId, MemberChange)> {
    spec.replicas.iter().find_map(|(id, replica)| match replica.standing {
        Standing::Joiner if members.voters.contains_key(id) => Some((*id, MemberChange::Joined)),
        Standing::Leaver
            if !members.voters.contains_key(id) && !members.learners.contains_key(id) =>
        {
            Some((*id, MemberChange::Removed))
        }
        _ => None,
    })
}

/// Members that cannot be counted on, and why.
///
/// A node that is up again is no sign that its replica is: if the node ended and came back while
/// nobody led who could see it down, the executor of an open term is gone all the same. Its disk and
/// the number of its life tell.
fn suspects(
    view: &NodesView,
    members: &Members,
    spec: &KernelSpec,
    open: Option<&OpenTerm>,
) -> BTreeMap<ReplicaId, String> {
    let mut suspects = BTreeMap::new();
    if view.outage.is_none() {
        for (id, node) in members.voters.iter().chain(&members.learners) {
            let Some(seen) = view.nodes.get(node) else { continue };
            let disk = spec.replicas.get(id).map(|member| member.disk);
            let of_term = open.filter(|open| open.replica == *id);
            let how = if seen.health != NodeHealth::Up {
                let silent = || format!("silent for {} ms", seen.silent_ms);
                seen.how.clone().unwrap_or_else(silent)
            } else if disk.is_some_and(|disk| disk != seen.disk) {
                "it came back with another disk".to_owned()
            } else if of_term.is_some_and(|open| is_in_another_life(seen, open)) {
                "it was started again".to_owned()
            } else {
                continue;
            };
            suspects.insert(*id, format!("executor lost on {node}: {how}"));
        }
    }
    let voters = &members.voters;
    if let Some(OpenTerm { replica, .. }) = open
        && !voters.is_empty()
        && !voters.contains_key(replica)
    {
        let cause = format!("executor lost: replica {replica} left the kernel's group");
        suspects.insert(*replica, cause);
    }
    suspects
}

/// Whether a node was started again since it opened the term, and for so long that its replica, if it
/// had come back, would have said so itself and known why the life before ended.
fn is_in_another_life(seen: &NodeView, open: &OpenTerm) -> bool {
    seen.incarnation > life_of_node(open.incarnation) && seen.has_settled()
}

impl ReplicaState {
    pub(super) fn spec_changed(&mut self, spec: KernelSpec) {
        if spec.version >= self.args.spec.version {
            self.args.spec = spec;
            self.tell_upkeep();
            self.nodes_changed();
            self.drive_membership();
        }
    }

    /// Tells the machine how the kernel is to be kept.
    pub(super) fn tell_upkeep(&mut self) {
        let upkeep = self.args.context.upkeep.of(&self.args.spec);
        self.step(Input::Upkeep(upkeep));
    }

    /// Tells the machine which members cannot be counted on.
    pub(super) fn nodes_changed(&mut self) {
        let view = self.args.context.nodes.borrow().clone();
        let open = self.read(|log| log.open_term());
        let suspects = suspects(&view, &self.group.members(), &self.args.spec, open.as_ref());
        self.step(Input::Suspects(suspects));
    }

    /// Nodes of the group's other members.
    pub(super) fn peers(&self) -> Vec<NodeId> {
        let members = self.group.members();
        let others = members.voters.into_iter().chain(members.learners);
        others.filter(|(id, _)| *id != self.args.replica).map(|(_, node)| node).collect()
    }

    /// Nodes of the other members that have a vote: a copy elsewhere makes nothing safe.
    pub(super) fn voters(&self) -> Vec<NodeId> {
        let voters = self.group.members().voters.into_iter();
        voters.filter(|(id, _)| *id != self.args.replica).map(|(_, node)| node).collect()
    }

    /// How many voters make a majority.
    pub(super) fn majority(&self) -> usize {
        self.group.members().voters.len() / 2 + 1
    }

    pub(super) fn membership_changed(&mut self) {
        let voters = self.group.members().voters.into_keys().collect();
        let leading = self.group.is_leader();
        self.step(Input::Voters(voters));
        self.step(Input::Leading(leading));
        self.nodes_changed();
    }

    /// As the leader, takes the next step towards the desired members, if none is on its way.
    pub(super) fn drive_membership(&mut self) {
        if !self.group.is_leader() || self.changing_members {
            return;
        }
        let metrics = self.group.metrics().borrow().clone();
        let last = metrics.last_log.unwrap_or(0);
        let caught_up = metrics
            .matched
            .iter()
            .filter(|(_, matched)| matched.is_some_and(|m| m + LAG_ENTRIES_MAX >= last))
            .map(|(id, _)| *id)
            .collect();
        if self.report_recovered() {
            return;
        }
        if let Some((replica, change)) = unreported(&self.args.spec, &metrics.members) {
            self.report(replica, change);
            return;
        }
        let Some(change) = next_change(&self.args.spec, &metrics.members, &caught_up) else {
            return;
        };
        if let Step::SetVoters(voters) = &change
            && self.runs_on_someone_outside(voters)
        {
            // It is looked at again at the next tick.
            return;
        }
        self.changing_members = true;
        tracing::info!(kernel = %self.args.spec.kernel, ?change, "changing members");
        let (group, me) = (self.group.clone(), self.me.clone());
        let (context, kernel) = (self.args.context.clone(), self.args.spec.kernel);
        let known: BTreeSet<ReplicaId> = metrics.members.voters.keys().copied().collect();
        self.tasks.push(tokio::spawn(async move {
            let result = match change {
                Step::AddLearner(id, node) => group.add_learner(id, node).await,
                Step::RemoveLearner(id) => group.remove_learner(id).await,
                Step::SetVoters(voters) => {
                    let bus = &*context.lanes.control;
                    let mut is_ready = true;
                    for id in voters.difference(&known) {
                        let id = format!("{kernel}-{id}");
                        let subject =
                            Subject::actor(&context.cluster, ActorKind::Replica, id, "readiness");
                        let envelope = Envelope::default();
                        let ready: Result<bool, _> =
                            typed::ask(bus, &subject, &envelope, &(), READINESS_WITHIN).await;
                        is_ready &= ready.unwrap_or(false);
                    }
                    if is_ready { group.change_voters(voters).await } else { Ok(()) }
                }
            };
            if let Err(error) = result {
                tracing::debug!(%error, "a change of members failed; it is tried again");
            }
            if me.get_status() < ActorStatus::Stopping {
                tell(&me, Internal::MembershipChanged);
            }
        }));
    }
}

impl ReplicaState {
    /// Whether a replica that would no longer vote is at a cell: it is removed when it is idle.
    fn runs_on_someone_outside(&self, voters: &BTreeSet<ReplicaId>) -> bool {
        self.read(|log| {
            let Some(open) = log.open_term() else { return false };
            let is_at_work =
                log.pending().front().is_some_and(|cell| cell.grant == Some(open.term));
            is_at_work && !voters.contains(&open.replica) && !self.executor.suspects(open.replica)
        })
    }

    /// Tells the control plane of a change; said again until the entry shows it.
    pub(super) fn report(&mut self, replica: ReplicaId, change: MemberChange) {
        self.changing_members = true;
        let (context, me) = (self.args.context.clone(), self.me.clone());
        let report = MemberChanged { kernel: self.args.spec.kernel, replica, change };
        self.tasks.push(tokio::spawn(async move {
            let bus = &*context.lanes.control;
            let subject =
                Subject::actor(&context.cluster, ActorKind::Control, "main", "member_changed");
            let envelope = Envelope::default();
            let reported: Result<serde::de::IgnoredAny, _> =
                typed::ask(bus, &subject, &envelope, &report, REPORT_WITHIN).await;
            if let Err(error) = reported {
                tracing::debug!(%error, "a change of members could not be reported yet");
            }
            tell(&me, Internal::MembershipChanged);
        }));
    }
}

#[cfg(test)]
mod tests {
    use callboard_protocol::{
        DiskId, Incarnation, KernelId, OwnerId, Term, control::ReplicaSpec, node::Beat,
    };

    use super::*;
    use crate::replica::starting::LIVES_BITS;

    fn node(n: u64) -> NodeId {
        NodeId::new(format!("node-{n}")).unwrap()
    }

    fn spec(replicas: &[(u64, Standing)]) -> KernelSpec {
        KernelSpec {
            kernel: KernelId::generate(),
            owner: OwnerId::default(),
            name: None,
            replicas_wanted: 3,
            replicas: replicas
                .iter()
                .map(|(n, standing)| {
                    let disk = DiskId::generate();
                    (ReplicaId(*n), ReplicaSpec { node: node(*n), disk, standing: *standing })
                })
                .collect(),
            replica_next: ReplicaId(9),
            version: 1,
            generation: 0,
            recovery: None,
            origin: None,
            settings: Default::default(),
            needs: None,
            labels: BTreeMap::new(),
            options: Default::default(),
        }
    }

    fn members(voters: &[u64], learners: &[u64]) -> Members {
        let map = |ids: &[u64]| ids.iter().map(|n| (ReplicaId(*n), node(*n))).collect();
        Members { voters: map(voters), learners: map(learners) }
    }

    fn beat(member: &ReplicaSpec, life: u64, number: u64) -> Beat {
        let beat = serde_json::json!({
            "node": member.node, "disk": member.disk, "incarnation": life, "number": number,
            "pid": 1, "host": "h", "replicas": 1, "running_cells": 0, "epoch": 1,
            "suspects": [], "python_problem": null,
        });
        serde_json::from_value(beat).unwrap()
    }

    fn view(spec: &KernelSpec, life: u64, beats: u64) -> NodesView {
        let seen = |member: &ReplicaSpec| NodeView {
            health: NodeHealth::Up,
            incarnation: Incarnation(life),
            disk: member.disk,
            silent_ms: 3,
            how: None,
            last_beat: Some(beat(member, life, beats)),
        };
        let nodes = spec.replicas.values().map(|it| (it.node.clone(), seen(it))).collect();
        NodesView { nodes, ..NodesView::default() }
    }

    #[test]
    fn an_executor_whose_node_is_up_in_another_life_or_with_another_disk_is_lost() {
        let spec = spec(&[(1, Standing::Founder), (2, Standing::Founder)]);
        let members = members(&[1, 2], &[]);
        let open = OpenTerm {
            term: Term(4),
            replica: ReplicaId(1),
            incarnation: Incarnation((3 << LIVES_BITS) + 7),
        };
        let found = |view: &NodesView| suspects(view, &members, &spec, Some(&open));
        assert_eq!(found(&view(&spec, 3, 99)), BTreeMap::new(), "the same life");
        let early = found(&view(&spec, 4, 1));
        assert_eq!(early, BTreeMap::new(), "its replica may still come and say why");
        let restarted = found(&view(&spec, 4, 99));
        assert_eq!(restarted.keys().copied().collect::<Vec<_>>(), [ReplicaId(1)]);
        assert!(restarted[&ReplicaId(1)].contains("node-1: it was started again"));
        let mut wiped = view(&spec, 1, 1);
        wiped.nodes.get_mut(&node(1)).unwrap().disk = DiskId::generate();
        assert!(found(&wiped)[&ReplicaId(1)].contains("another disk"));
        wiped.outage = Some("the broker is away".to_owned());
        assert_eq!(found(&wiped), BTreeMap::new(), "nobody is judged during an outage");
    }

    fn ids(ids: &[u64]) -> BTreeSet<ReplicaId> {
        ids.iter().map(|n| ReplicaId(*n)).collect()
    }

    #[test]
    fn a_member_is_replaced_learner_first_and_the_old_one_goes_last() {
        use Standing::{Founder, Joiner, Leaver};
        let spec = spec(&[(1, Founder), (2, Founder), (3, Leaver), (4, Joiner)]);
        let next = |m: &Members, caught_up: &[u64]| next_change(&spec, m, &ids(caught_up));
        assert_eq!(
            next(&members(&[1, 2, 3], &[]), &[]),
            Some(Step::AddLearner(ReplicaId(4), node(4)))
        );
        assert_eq!(next(&members(&[1, 2, 3], &[4]), &[]), None);
        assert_eq!(
            next(&members(&[1, 2, 3], &[4]), &[4]),
            Some(Step::SetVoters(ids(&[1, 2, 3, 4])))
        );
        assert_eq!(next(&members(&[1, 2, 3, 4], &[]), &[]), Some(Step::SetVoters(ids(&[1, 2, 4]))));
        assert_eq!(next(&members(&[1, 2, 4], &[]), &[]), None);
    }
}
