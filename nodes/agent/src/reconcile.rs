//! What to do so that this node runs the members it should. Pure.

use std::collections::{BTreeMap, BTreeSet};

use callboard_control::DesiredState;
use callboard_protocol::{
    DiskId, GroupId, NodeId,
    control::{KernelSpec, ReplicaSpec, Standing},
};

use crate::{data_dir::NotedMembers, replicas::MemberKey};

#[cfg(test)]
mod tests;

/// What is, as far as this node can see.
#[derive(Debug)]
pub(crate) struct Observed<'a> {
    pub(crate) node: &'a NodeId,
    pub(crate) disk: DiskId,
    /// Members that run, with the version of the entry they were told last.
    pub(crate) running: &'a BTreeMap<MemberKey, u64>,
    /// Members that have run on this disk and were not erased.
    pub(crate) noted: &'a NotedMembers,
    /// Members whose log is lost, and why. They must never run again.
    pub(crate) lost: &'a BTreeMap<MemberKey, String>,
    /// Groups whose log on this disk is damaged.
    pub(crate) corrupt: &'a BTreeSet<GroupId>,
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Task {
    /// Run it.
    Start(MemberKey, KernelSpec),
    /// The kernel's entry changed.
    Tell(MemberKey, KernelSpec),
    /// End it, but keep its log: another group begins with it.
    Halt(MemberKey),
    /// End it, for good.
    Purge(MemberKey),
    /// Remove what is on disk of one that does not run.
    Erase(MemberKey),
    /// Ask the control plane to replace it.
    Report(MemberKey, String),
}

/// What to do now. Only what the copy of the desired state says for certain is removed: a copy
/// that lags does not know of a kernel, which is no reason to erase it.
pub(crate) fn plan(state: &DesiredState, seen: &Observed<'_>) -> Vec<Task> {
    let mut tasks = Vec::new();
    for (key, version) in seen.running {
        match state.kernels().get(&key.0) {
            _ if state.is_recovered_from(key.0, key.1) => tasks.push(Task::Halt(*key)),
            _ if state.is_member_over(key.0, key.1) => tasks.push(Task::Purge(*key)),
            Some(spec) if spec.version != *version => tasks.push(Task::Tell(*key, spec.clone())),
            _ => {}
        }
    }
    let idle = |key: &&MemberKey| !seen.running.contains_key(key);
    let is_needed = |key: &&MemberKey| state.is_recovered_from(key.0, key.1);
    for key in seen.noted.keys().filter(idle).filter(|key| !is_needed(key)) {
        let is_unusable = seen.is_unusable(key);
        if state.is_member_over(key.0, key.1) || (is_unusable && is_leaving(state, key)) {
            tasks.push(Task::Erase(*key));
        }
    }
    for spec in state.kernels().values() {
        let here = |member: &ReplicaSpec| member.node == *seen.node && member.disk == seen.disk;
        for (replica, member) in spec.replicas.iter().filter(|(_, member)| here(member)) {
            let key = (spec.kernel, *replica);
            tasks.extend(seen.look_after(key, member.standing, spec));
        }
    }
    tasks
}

fn is_leaving(state: &DesiredState, (kernel, replica): &MemberKey) -> bool {
    let member = state.kernels().get(kernel).and_then(|spec| spec.replicas.get(replica));
    member.is_some_and(|member| member.standing == Standing::Leaver)
}

impl Observed<'_> {
    fn is_unusable(&self, key: &MemberKey) -> bool {
        let group = self.noted.get(key);
        self.lost.contains_key(key) || group.is_some_and(|group| self.corrupt.contains(group))
    }

    /// What to do for a member that should run here.
    fn look_after(&self, key: MemberKey, standing: Standing, spec: &KernelSpec) -> Option<Task> {
        if self.running.contains_key(&key) {
            return None;
        }
        if let Some(why) = self.lost.get(&key) {
            return (standing != Standing::Leaver).then(|| Task::Report(key, why.clone()));
        }
        if self.corrupt.contains(&spec.group()) {
            // A damaged log is of the member that ran here; if none is on record, of this one.
            let is_its_log = self.noted.contains_key(&key) || !self.has_other(&key, spec);
            let is_reported = standing == Standing::Leaver;
            let why = format!("its log on {} is damaged", self.node);
            return match (is_its_log, is_reported) {
                (true, false) => Some(Task::Report(key, why)),
                (true, true) => (!self.noted.contains_key(&key)).then_some(Task::Erase(key)),
                (false, _) => None,
            };
        }
        // The log on this disk has room for one member of a kernel's group.
        if self.has_other(&key, spec) {
            return None;
        }
        // One that never ran here and shall leave has nothing to contribute.
        let is_needed = standing != Standing::Leaver || self.noted.contains_key(&key);
        is_needed.then(|| Task::Start(key, spec.clone()))
    }

    /// Whether another member of the kernel is on this disk. One that the new group begins with is
    /// of another group and only in the way while it runs.
    fn has_other(&self, (kernel, replica): &MemberKey, spec: &KernelSpec) -> bool {
        let is_other = |key: &&MemberKey| key.0 == *kernel && key.1 != *replica;
        let from = spec.recovery.as_ref().map(|recovery| recovery.from);
        let is_in_the_way = |key: &&MemberKey| Some(key.1) != from;
        self.running.keys().any(|key| is_other(&key))
            || self.noted.keys().filter(is_in_the_way).any(|key| is_other(&key))
    }
}
