//! The supervisor: starts children, starts them again as its policy says, and fails when that does
//! not help.
//!
//! It owns which children run and which are waiting to run again. It never handles a child's
//! messages. It is supervised by whoever started it; a root's end is seen by
//! [`SupervisorHandle::wait`]. A restart loses the children added by
//! [`SupervisorHandle::start_child`] and the restarts counted; the children of its list are started
//! afresh.

use std::{sync::Arc, time::Duration};

use callboard_policy::restart::{RestartPolicy, Strategy};
use ractor::{
    Actor, ActorCell, ActorId, ActorProcessingErr, ActorRef, RpcReplyPort, Signal, SupervisionEvent,
};
use tokio::sync::broadcast;

use crate::{ChildSpec, Mail};

mod children;
mod handle;
#[cfg(test)]
mod tests;

use children::Children;
pub use handle::{StartError, SupervisorError, SupervisorHandle, spawn_supervisor};

/// How many events a slow listener may be behind before it misses some.
const EVENTS_KEPT: usize = 256;

/// What a supervisor does when a child ends again and again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OnExceeded {
    /// As OTP: restarts are counted over all children; the supervisor stops the others and fails.
    #[default]
    Escalate,
    /// Restarts are counted per child; that one stays down and the others go on. For children that
    /// have nothing to do with each other, such as the replicas of different kernels.
    Abandon,
}

/// How a supervisor treats children that end.
#[derive(Debug, Clone, Copy, Default)]
pub struct SupervisorSettings {
    /// Who is started again with the one that failed.
    pub strategy: Strategy,
    /// How often and after how long.
    pub policy: RestartPolicy,
    /// What to do when that is exceeded.
    pub on_exceeded: OnExceeded,
    /// Of the stream that delays are drawn from.
    pub seed: u64,
}

/// What a supervisor tells its listeners.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SupervisorEvent {
    /// The supervisor has started, with the children of its list only.
    Started {
        /// Its name.
        supervisor: String,
    },
    /// A child has started, for the first time or again.
    ChildStarted {
        /// Its name.
        name: String,
    },
    /// A child has ended, or could not start, without having been told to stop.
    ChildExited {
        /// Its name.
        name: String,
        /// How.
        reason: String,
    },
    /// A child will be started again.
    ChildRestarting {
        /// Its name.
        name: String,
        /// After this many milliseconds.
        after_ms: u64,
    },
    /// A child was told to stop and has.
    ChildStopped {
        /// Its name.
        name: String,
    },
    /// A child ended too often and stays down.
    ChildAbandoned {
        /// Its name.
        name: String,
        /// Why.
        reason: String,
    },
    /// The supervisor itself fails.
    Escalated {
        /// Its name.
        supervisor: String,
        /// Why.
        reason: String,
    },
}

/// What a supervisor says of a child.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChildInfo {
    /// Its name.
    pub name: String,
    /// What it does.
    pub state: ChildState,
    /// How often it was started again.
    pub restarts: u32,
}

/// What a child does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChildState {
    /// It runs.
    Running,
    /// It waits to be started again.
    Restarting,
    /// It was told to stop.
    Stopping,
    /// It ended too often.
    Abandoned,
}

pub(crate) enum SupervisorMsg {
    StartChild(ChildSpec, RpcReplyPort<Result<(), SupervisorError>>),
    StopChild(String, RpcReplyPort<()>),
    ListChildren(RpcReplyPort<Vec<ChildInfo>>),
    RestartDue { round: u64 },
    StopOverdue { actor: ActorId },
}

#[derive(Clone)]
pub(crate) struct SupervisorArgs {
    pub(crate) name: String,
    pub(crate) settings: SupervisorSettings,
    pub(crate) children: Arc<Vec<ChildSpec>>,
    pub(crate) events: broadcast::Sender<SupervisorEvent>,
}

impl SupervisorArgs {
    pub(crate) fn new(
        name: String,
        settings: SupervisorSettings,
        children: Vec<ChildSpec>,
    ) -> Self {
        let events = broadcast::Sender::new(EVENTS_KEPT);
        Self { name, settings, children: Arc::new(children), events }
    }

    pub(crate) fn events(&self) -> broadcast::Sender<SupervisorEvent> {
        self.events.clone()
    }

    fn tell(&self, event: SupervisorEvent) {
        // Nobody may be listening.
        let _ = self.events.send(event);
    }
}

pub(crate) struct Supervisor;

/// Timers of the supervisor to itself.
#[derive(Clone)]
struct Timers(ActorRef<Mail<SupervisorMsg>>);

impl Timers {
    fn after(&self, delay: Duration, message: impl FnOnce() -> SupervisorMsg + Send + 'static) {
        // The timer's task ends by itself, at the latest after the delay.
        drop(self.0.send_after(delay, move || Mail::from(message())));
    }

    fn supervisor(&self) -> ActorCell {
        self.0.get_cell()
    }
}

#[ractor::async_trait]
impl Actor for Supervisor {
    type Msg = Mail<SupervisorMsg>;
    type State = Children;
    type Arguments = SupervisorArgs;

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        args: SupervisorArgs,
    ) -> Result<Children, ActorProcessingErr> {
        let mut children = Children::new(args.clone(), Timers(myself));
        for spec in args.children.iter() {
            if let Err(failure) = children.start_child(spec.clone()).await {
                children.stop_all(&failure.to_string()).await;
                return Err(failure.into());
            }
        }
        args.tell(SupervisorEvent::Started { supervisor: args.name.clone() });
        Ok(children)
    }

    async fn handle(
        &self,
        _: ActorRef<Self::Msg>,
        mail: Self::Msg,
        children: &mut Children,
    ) -> Result<(), ActorProcessingErr> {
        let Mail { message, permit: _permit } = mail;
        match message {
            SupervisorMsg::StartChild(spec, reply) => {
                let _ = reply.send(children.start_child(spec).await);
            }
            SupervisorMsg::StopChild(name, reply) => children.stop_child(&name, reply),
            SupervisorMsg::ListChildren(reply) => drop(reply.send(children.list())),
            SupervisorMsg::RestartDue { round } => children.restart(round).await?,
            SupervisorMsg::StopOverdue { actor } => children.kill_overdue(actor),
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _: ActorRef<Self::Msg>,
        event: SupervisionEvent,
        children: &mut Children,
    ) -> Result<(), ActorProcessingErr> {
        match event {
            SupervisionEvent::ActorFailed(cell, failure) => {
                children.on_exit(cell.get_id(), true, format!("failed: {failure}")).await?;
            }
            SupervisionEvent::ActorTerminated(cell, state, reason) => {
                // ractor hands over no last state of an actor that was killed while it started or
                // stopped, and names the signal as the reason of any other that was.
                let killed = state.is_none() || reason == Some(Signal::Kill.to_string());
                let reason = reason.unwrap_or_else(|| "stopped by itself".to_owned());
                children.on_exit(cell.get_id(), killed, reason).await?;
            }
            _ => {}
        }
        Ok(())
    }

    async fn post_stop(
        &self,
        _: ActorRef<Self::Msg>,
        children: &mut Children,
    ) -> Result<(), ActorProcessingErr> {
        children.stop_all("its supervisor was stopped").await;
        Ok(())
    }
}
