//! The commands about kernels.

use std::collections::BTreeMap;

use callboard_policy::repair::in_flight;
use callboard_protocol::{
    DiskId, KernelId, NodeId, OwnerId, ReplicaId,
    control::{KernelOptions, KernelSettings, KernelSpec, Origin, Recovery, ReplicaSpec, Standing},
    environment::Environment,
};

use super::{
    DesiredState, KERNELS_PER_OWNER_MAX, LAST_SPECS_MAX, Outcome, Refusal, TOMBSTONES_MAX,
};

/// What a kernel was asked for with, beside its name and places.
pub(super) struct Asked {
    /// How it is kept.
    pub(super) options: KernelOptions,
    /// What its sessions shall have.
    pub(super) settings: KernelSettings,
    /// What it begins with.
    pub(super) origin: Option<Origin>,
}

impl DesiredState {
    /// Why a kernel may not start under this id, owner and name; `None` if it may.
    #[must_use]
    pub fn refusal_to_start(
        &self,
        kernel: KernelId,
        owner: &OwnerId,
        name: Option<&str>,
    ) -> Option<Refusal> {
        if self.tombstones.contains_key(&kernel) {
            return Some(Refusal::WasStopped { kernel });
        }
        if self.is_below_floor(kernel) {
            return Some(Refusal::TooOld { kernel });
        }
        let mut count = 0;
        for other in self.kernels.values().filter(|other| other.owner == *owner) {
            count += 1;
            if let Some(name) = name
                && other.name.as_deref() == Some(name)
            {
                let (owner, name) = (owner.clone(), name.to_owned());
                return Some(Refusal::NameTaken { owner, name, kernel: other.kernel });
            }
        }
        (count >= KERNELS_PER_OWNER_MAX).then(|| Refusal::TooMany { owner: owner.clone() })
    }

    /// Why a kernel of `owner` may not begin with this; `None` if it may.
    #[must_use]
    pub fn refusal_of_origin(&self, owner: &OwnerId, origin: &Origin) -> Option<Refusal> {
        let Origin::Kernel { kernel, .. } = origin else { return None };
        match self.kernels.get(kernel) {
            None => Some(Refusal::NoSuchKernel { kernel: *kernel }),
            Some(spec) if spec.owner != *owner => {
                Some(Refusal::OtherOwner { kernel: *kernel, owner: owner.clone() })
            }
            Some(spec) => {
                let kernelspec = spec.settings.kernelspec.clone()?;
                Some(Refusal::NoState { kernel: *kernel, kernelspec })
            }
        }
    }

    pub(super) fn start_kernel(
        &mut self,
        (kernel, owner, name): (KernelId, OwnerId, Option<String>),
        replicas: u8,
        places: Vec<(NodeId, DiskId)>,
        Asked { options, settings, origin }: Asked,
    ) -> Outcome {
        if let Some(spec) = self.kernels.get(&kernel) {
            let is_same = spec.owner == owner
                && spec.name == name
                && spec.replicas_wanted == replicas
                && spec.options == options
                && spec.origin == origin
                && spec.settings == settings;
            return if is_same {
                Outcome::AlreadySo(spec.clone())
            } else {
                Outcome::Refused(Refusal::OtherRequest { kernel })
            };
        }
        if let Some(refusal) = self.refusal_to_start(kernel, &owner, name.as_deref()) {
            return Outcome::Refused(refusal);
        }
        if places.is_empty() {
            let what = format!("kernel {kernel} was to start with no place for any member");
            return Outcome::Refused(Refusal::Malformed(what));
        }
        let mut spec = KernelSpec {
            kernel,
            owner,
            name,
            replicas_wanted: replicas,
            replicas: [].into(),
            replica_next: ReplicaId(1),
            version: 1,
            generation: 0,
            recovery: None,
            origin,
            settings,
            needs: None,
            labels: BTreeMap::new(),
            options,
        };
        for (node, disk) in places {
            add_member(&mut spec, node, disk, Standing::Founder);
        }
        self.kernels.insert(kernel, spec.clone());
        Outcome::Kernel(spec)
    }

    pub(super) fn stop_kernel(&mut self, kernel: KernelId) -> Outcome {
        let Some(spec) = self.kernels.remove(&kernel) else {
            return if self.is_stopped(kernel) {
                Outcome::Stopped { last: self.last_spec(kernel).cloned(), is_new: false }
            } else {
                Outcome::Refused(Refusal::NoSuchKernel { kernel })
            };
        };
        let stopped_at = self.revision + 1;
        self.tombstones.insert(kernel, stopped_at);
        self.last_specs.insert(stopped_at, spec.clone());
        while self.last_specs.len() > LAST_SPECS_MAX {
            self.last_specs.pop_first();
        }
        while self.tombstones.len() > TOMBSTONES_MAX {
            if let Some((oldest, _)) = self.tombstones.pop_first() {
                self.floor = self.floor.max(Some(oldest));
            }
        }
        Outcome::Stopped { last: Some(spec), is_new: true }
    }

    pub(super) fn change_members(
        &mut self,
        kernel: KernelId,
        version: u64,
        join: Option<(NodeId, DiskId)>,
        leave: Option<ReplicaId>,
    ) -> Outcome {
        let Some(spec) = self.kernels.get_mut(&kernel) else {
            return Outcome::Refused(Refusal::NoSuchKernel { kernel });
        };
        if let Err(refusal) = check_change(spec, version, join.is_some(), leave) {
            return Outcome::Refused(refusal);
        }
        if let Some(member) = leave.and_then(|replica| spec.replicas.get_mut(&replica)) {
            member.standing = Standing::Leaver;
        }
        if let Some((node, disk)) = join {
            add_member(spec, node, disk, Standing::Joiner);
        }
        spec.version += 1;
        Outcome::Kernel(spec.clone())
    }

    pub(super) fn note_needs(&mut self, kernel: KernelId, needs: Environment) -> Outcome {
        let Some(spec) = self.kernels.get_mut(&kernel) else {
            return Outcome::Refused(Refusal::NoSuchKernel { kernel });
        };
        if spec.needs.as_ref() == Some(&needs) {
            return Outcome::AlreadySo(spec.clone());
        }
        spec.needs = Some(needs);
        spec.version += 1;
        Outcome::Kernel(spec.clone())
    }

    /// The version stays: no member of the kernel has to know.
    pub(super) fn label_kernel(
        &mut self,
        kernel: KernelId,
        labels: BTreeMap<String, String>,
    ) -> Outcome {
        let Some(spec) = self.kernels.get_mut(&kernel) else {
            return Outcome::Refused(Refusal::NoSuchKernel { kernel });
        };
        if spec.labels == labels {
            return Outcome::AlreadySo(spec.clone());
        }
        spec.labels = labels;
        Outcome::Kernel(spec.clone())
    }

    pub(super) fn member_joined(&mut self, kernel: KernelId, replica: ReplicaId) -> Outcome {
        let Some(spec) = self.kernels.get_mut(&kernel) else {
            return Outcome::Refused(Refusal::NoSuchKernel { kernel });
        };
        let Some(member) = spec.replicas.get_mut(&replica) else {
            return Outcome::Refused(Refusal::NoSuchMember { kernel, replica });
        };
        if member.standing != Standing::Joiner {
            return Outcome::AlreadySo(spec.clone());
        }
        member.standing = Standing::Member;
        spec.version += 1;
        Outcome::Kernel(spec.clone())
    }

    /// Gives every member up but one, which founds the group anew under a fresh id.
    pub(super) fn recover_kernel(
        &mut self,
        kernel: KernelId,
        version: u64,
        from: ReplicaId,
        cause: String,
    ) -> Outcome {
        let Some(spec) = self.kernels.get_mut(&kernel) else {
            return Outcome::Refused(Refusal::NoSuchKernel { kernel });
        };
        let refusal = if spec.version != version {
            Some(Refusal::Stale { kernel, decided_on: version, actual: spec.version })
        } else if spec.recovery.is_some() {
            in_flight(spec).map(|what| Refusal::InFlight { kernel, what })
        } else {
            None
        };
        if let Some(refusal) = refusal {
            return Outcome::Refused(refusal);
        }
        let Some(survivor) = spec.replicas.get(&from).cloned() else {
            return Outcome::Refused(Refusal::NoSuchMember { kernel, replica: from });
        };
        if survivor.standing == Standing::Joiner {
            return Outcome::Refused(Refusal::NeverWhole { kernel, replica: from });
        }
        spec.replicas.clear();
        add_member(spec, survivor.node, survivor.disk, Standing::Founder);
        spec.generation += 1;
        spec.recovery = Some(Recovery { from, cause });
        spec.version += 1;
        Outcome::Kernel(spec.clone())
    }

    pub(super) fn member_recovered(&mut self, kernel: KernelId, replica: ReplicaId) -> Outcome {
        let Some(spec) = self.kernels.get_mut(&kernel) else {
            return Outcome::Refused(Refusal::NoSuchKernel { kernel });
        };
        let Some(member) = spec.replicas.get_mut(&replica) else {
            return Outcome::Refused(Refusal::NoSuchMember { kernel, replica });
        };
        if spec.recovery.is_none() {
            return Outcome::AlreadySo(spec.clone());
        }
        spec.recovery = None;
        member.standing = Standing::Member;
        spec.version += 1;
        Outcome::Kernel(spec.clone())
    }

    pub(super) fn member_removed(&mut self, kernel: KernelId, replica: ReplicaId) -> Outcome {
        let Some(spec) = self.kernels.get_mut(&kernel) else {
            return Outcome::Refused(Refusal::NoSuchKernel { kernel });
        };
        match spec.replicas.get(&replica).map(|member| member.standing) {
            Some(Standing::Leaver) => {
                spec.replicas.remove(&replica);
                spec.version += 1;
                Outcome::Kernel(spec.clone())
            }
            Some(_) => {
                let what = format!("member {replica} of kernel {kernel} left without being asked");
                Outcome::Refused(Refusal::Malformed(what))
            }
            None if replica < spec.replica_next => Outcome::AlreadySo(spec.clone()),
            None => Outcome::Refused(Refusal::NoSuchMember { kernel, replica }),
        }
    }
}

fn add_member(spec: &mut KernelSpec, node: NodeId, disk: DiskId, standing: Standing) {
    spec.replicas.insert(spec.replica_next, ReplicaSpec { node, disk, standing });
    spec.replica_next = spec.replica_next.next();
}

/// One change at a time, decided on the present version. A joiner that was itself lost may be made
/// a leaver while it joins; nothing else may overlap.
fn check_change(
    spec: &KernelSpec,
    version: u64,
    joins: bool,
    leave: Option<ReplicaId>,
) -> Result<(), Refusal> {
    let kernel = spec.kernel;
    if spec.version != version {
        return Err(Refusal::Stale { kernel, decided_on: version, actual: spec.version });
    }
    if !joins && leave.is_none() {
        return Err(Refusal::Malformed(format!("an empty change of kernel {kernel}'s members")));
    }
    let leaver = match leave {
        None => None,
        Some(replica) => match spec.replicas.get(&replica) {
            Some(member) => Some(member.standing),
            None => return Err(Refusal::NoSuchMember { kernel, replica }),
        },
    };
    let withdraws = !joins && leaver == Some(Standing::Joiner);
    match in_flight(spec) {
        Some(what) if !withdraws => Err(Refusal::InFlight { kernel, what }),
        _ => Ok(()),
    }
}
