//! Kernel replicas as the agent's replicas.

use std::{
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    time::Duration,
};

use async_trait::async_trait;
use callboard_kernel::{NodeContext, Replica, ReplicaArgs, ReplicaMsg};
use callboard_protocol::{
    KernelId, ReplicaId,
    control::KernelSpec,
    node::{Asleep, PythonStock},
};
use callboard_runtime::{Address, ChildSpec, Mail, Restart};
use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, SupervisionEvent};

use crate::replicas::{ReplicaFactory, ReplicaHandle, SharedSpec};

/// Messages that may be on their way to one replica; the keeper sends one per change of the entry.
const IN_FLIGHT_MAX: usize = 64;
/// How long a replica may take to end in order; then its supervisor kills it.
const STOP_WITHIN: Duration = Duration::from_secs(10);

/// Starts kernel replicas on this node.
#[derive(Debug)]
pub(crate) struct KernelReplicas {
    context: Arc<NodeContext>,
}

impl KernelReplicas {
    pub(crate) fn new(context: Arc<NodeContext>) -> Self {
        Self { context }
    }
}

impl ReplicaFactory for KernelReplicas {
    fn child(
        &self,
        name: &str,
        spec: SharedSpec,
        replica: ReplicaId,
    ) -> (ChildSpec, Arc<dyn ReplicaHandle>) {
        let context = self.context.clone();
        let cell = Arc::new(Mutex::new(None));
        let reached = cell.clone();
        // The entry changes seldom and a stop is sent once: the bound on places would add nothing,
        // so a place is given back when the message is delivered.
        let deliver = |mail: Mail<ReplicaMsg>| mail.message;
        let (child, address) = ChildSpec::addressed_with(
            name,
            Restart::Transient,
            IN_FLIGHT_MAX,
            deliver,
            move || {
                let args = ReplicaArgs { spec: spec.get(), replica, context: context.clone() };
                (Reached { actor: Replica, cell: reached.clone() }, args)
            },
        );
        (child.stop_within(STOP_WITHIN), Arc::new(Handle { address, cell }))
    }

    fn forget(&self, kernel: KernelId, is_stopped: bool) {
        self.context.cursors.forget(kernel);
        let files = self.context.files.clone();
        tokio::task::spawn_blocking(move || {
            if let Err(error) = files.forget(kernel, is_stopped) {
                tracing::warn!(%kernel, %error, "the files of a kernel could not be removed");
            }
        });
    }

    fn python_stock(&self) -> PythonStock {
        self.context.python.status()
    }

    fn unenforced(&self) -> Vec<String> {
        let confinement = &self.context.confinement;
        let mut missing = confinement.cgroups.unenforced_at_all();
        missing.extend(confinement.isolation.as_ref().err().cloned().flatten());
        missing
    }

    fn running_cells(&self) -> u32 {
        self.context.stats.running_cells.load(Ordering::Relaxed)
    }

    fn asleep(&self) -> Asleep {
        let stats = &self.context.stats;
        let count = stats.asleep.load(Ordering::Relaxed);
        Asleep { count, digest: stats.asleep_digest.load(Ordering::Relaxed) }
    }
}

struct Handle {
    address: Address<ReplicaMsg>,
    cell: Arc<Mutex<Option<ActorCell>>>,
}

#[async_trait]
impl ReplicaHandle for Handle {
    fn spec_changed(&self, spec: KernelSpec) {
        if let Err(error) = self.address.tell(ReplicaMsg::SpecChanged(spec)) {
            tracing::debug!(%error, "a replica that restarts reads the new entry then");
        }
    }

    async fn stop(&self, purge: bool) {
        let stopped = self.address.ask(STOP_WITHIN, |done| ReplicaMsg::Stop { purge, done }).await;
        if let Err(error) = stopped {
            tracing::warn!(%error, "a replica did not end in order");
        }
    }

    fn kill_python(&self) {
        if let Err(error) = self.address.tell(ReplicaMsg::KillPython) {
            tracing::debug!(%error, "a replica that restarts has no Python process");
        }
    }

    fn kill(&self) {
        let cell = self.cell.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cell) = &*cell {
            cell.kill();
        }
    }
}

/// An actor that leaves word where it is, so that it can be killed by name.
struct Reached<A> {
    actor: A,
    cell: Arc<Mutex<Option<ActorCell>>>,
}

#[ractor::async_trait]
impl<A: Actor> Actor for Reached<A> {
    type Msg = A::Msg;
    type State = A::State;
    type Arguments = A::Arguments;

    async fn pre_start(
        &self,
        me: ActorRef<A::Msg>,
        args: A::Arguments,
    ) -> Result<A::State, ActorProcessingErr> {
        *self.cell.lock().unwrap_or_else(PoisonError::into_inner) = Some(me.get_cell());
        self.actor.pre_start(me, args).await
    }

    async fn post_start(
        &self,
        me: ActorRef<A::Msg>,
        state: &mut A::State,
    ) -> Result<(), ActorProcessingErr> {
        self.actor.post_start(me, state).await
    }

    async fn post_stop(
        &self,
        me: ActorRef<A::Msg>,
        state: &mut A::State,
    ) -> Result<(), ActorProcessingErr> {
        self.actor.post_stop(me, state).await
    }

    async fn handle(
        &self,
        me: ActorRef<A::Msg>,
        message: A::Msg,
        state: &mut A::State,
    ) -> Result<(), ActorProcessingErr> {
        self.actor.handle(me, message, state).await
    }

    async fn handle_supervisor_evt(
        &self,
        me: ActorRef<A::Msg>,
        event: SupervisionEvent,
        state: &mut A::State,
    ) -> Result<(), ActorProcessingErr> {
        self.actor.handle_supervisor_evt(me, event, state).await
    }
}
