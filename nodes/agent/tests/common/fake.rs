//! A replica without a kernel: it keeps a log, and says what a kernel's leader would say of its
//! members.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use callboard_agent::{ReplicaFactory, ReplicaHandle, SharedSpec};
use callboard_control::DesiredState;
use callboard_protocol::{
    ActorKind, ClusterId, Envelope, KernelId, NodeId, ReplicaId, Subject, SubjectPattern,
    control::{Holdings, KernelSpec, MemberChange, MemberChanged, Standing},
};
use callboard_replicated::{Group, GroupOptions, Replicator};
use callboard_runtime::{Address, ChildSpec, Mail, Restart};
use callboard_transport::{Bus, typed};
use ractor::{Actor, ActorProcessingErr, ActorRef};

use super::Starts;

#[derive(Clone)]
pub(crate) struct FakeReplicas {
    pub(crate) cluster: ClusterId,
    pub(crate) node: NodeId,
    pub(crate) bus: Arc<dyn Bus>,
    pub(crate) starts: Starts,
    pub(crate) replicator: Replicator,
}

pub(crate) enum FakeMsg {
    Spec(Box<KernelSpec>),
    Drive,
}

struct Fake;

struct FakeState {
    world: FakeReplicas,
    spec: KernelSpec,
    replica: ReplicaId,
    group: Group<DesiredState>,
    answering: tokio::task::JoinHandle<()>,
}

struct Handle(Address<FakeMsg>);

impl ReplicaFactory for FakeReplicas {
    fn child(
        &self,
        name: &str,
        spec: SharedSpec,
        replica: ReplicaId,
    ) -> (ChildSpec, Arc<dyn ReplicaHandle>) {
        let world = self.clone();
        let (child, address) =
            ChildSpec::addressed::<Fake, FakeMsg>(name, Restart::Transient, 64, move || {
                (Fake, (world.clone(), spec.get(), replica))
            });
        (child, Arc::new(Handle(address)))
    }

    fn running_cells(&self) -> u32 {
        0
    }
}

#[async_trait]
impl ReplicaHandle for Handle {
    fn spec_changed(&self, spec: KernelSpec) {
        let _ = self.0.tell(FakeMsg::Spec(Box::new(spec)));
    }

    async fn stop(&self, _purge: bool) {}

    fn kill_python(&self) {}

    fn kill(&self) {}
}

#[ractor::async_trait]
impl Actor for Fake {
    type Msg = Mail<FakeMsg>;
    type State = FakeState;
    type Arguments = (FakeReplicas, KernelSpec, ReplicaId);

    async fn pre_start(
        &self,
        me: ActorRef<Mail<FakeMsg>>,
        (world, spec, replica): Self::Arguments,
    ) -> Result<FakeState, ActorProcessingErr> {
        world.starts.lock().unwrap().push((world.node.clone(), (spec.kernel, replica)));
        let founders = spec.replicas.iter().map(|(id, it)| (*id, it.node.clone())).collect();
        let is_founder = spec.replicas[&replica].standing == Standing::Founder;
        let options = GroupOptions {
            found: is_founder.then_some(founders),
            ..GroupOptions::new(DesiredState::default())
        };
        let (group, _) = world.replicator.open_group(spec.group(), replica, options).await?;
        me.send_message(FakeMsg::Drive.into())?;
        let answering = tokio::spawn(answer(world.clone(), spec.kernel, replica, group.clone()));
        Ok(FakeState { world, spec, replica, group, answering })
    }

    async fn post_stop(
        &self,
        _me: ActorRef<Mail<FakeMsg>>,
        state: &mut FakeState,
    ) -> Result<(), ActorProcessingErr> {
        state.answering.abort();
        state.group.shutdown().await;
        Ok(())
    }

    async fn handle(
        &self,
        me: ActorRef<Mail<FakeMsg>>,
        mail: Mail<FakeMsg>,
        state: &mut FakeState,
    ) -> Result<(), ActorProcessingErr> {
        if let FakeMsg::Spec(spec) = mail.message {
            state.spec = *spec;
        }
        if state.drive().await.is_err() {
            me.send_after(Duration::from_millis(500), || FakeMsg::Drive.into());
        }
        Ok(())
    }
}

/// Says what a replica says of itself and its group.
async fn answer(
    world: FakeReplicas,
    kernel: KernelId,
    replica: ReplicaId,
    group: Group<DesiredState>,
) {
    let pattern = |kind, id| SubjectPattern::Verbs { cluster: world.cluster.clone(), kind, id };
    let own = format!("{kernel}-{replica}");
    let mut of_kernel =
        world.bus.subscribe(&pattern(ActorKind::Kernel, kernel.to_string())).await.unwrap();
    let mut own = world.bus.subscribe(&pattern(ActorKind::Replica, own)).await.unwrap();
    loop {
        tokio::select! {
            Some(message) = own.next() => {
                let holdings = Holdings::default();
                let _ = typed::answer(&*world.bus, &message, Ok(holdings)).await;
            }
            Some(message) = of_kernel.next() => {
                if group.is_leader() && group.read_barrier(Duration::from_secs(1)).await.is_ok() {
                    let _ = typed::answer(&*world.bus, &message, Ok(replica)).await;
                }
            }
            else => return,
        }
    }
}

impl FakeState {
    /// A joiner says that it votes; a member says that the leavers are out.
    async fn drive(&mut self) -> Result<(), ()> {
        let Some(own) = self.spec.replicas.get(&self.replica) else { return Ok(()) };
        if own.standing == Standing::Joiner {
            self.say(self.replica, MemberChange::Joined).await?;
        }
        if self.spec.recovery.is_some() {
            self.say(self.replica, MemberChange::Recovered).await?;
        }
        let own = self.spec.replicas[&self.replica].standing;
        let leavers = self.spec.replicas.iter().filter(|(_, it)| it.standing == Standing::Leaver);
        let leavers: Vec<ReplicaId> = leavers.map(|(id, _)| *id).collect();
        if own == Standing::Member {
            for leaver in leavers {
                self.say(leaver, MemberChange::Removed).await?;
            }
        }
        Ok(())
    }

    async fn say(&mut self, replica: ReplicaId, change: MemberChange) -> Result<(), ()> {
        let subject =
            Subject::actor(&self.world.cluster, ActorKind::Control, "main", "member_changed");
        let changed = MemberChanged { kernel: self.spec.kernel, replica, change };
        let envelope = Envelope::default();
        let within = Duration::from_secs(2);
        let bus = &*self.world.bus;
        let spec: KernelSpec =
            typed::ask(bus, &subject, &envelope, &changed, within).await.map_err(|_| ())?;
        self.spec = spec;
        Ok(())
    }
}
