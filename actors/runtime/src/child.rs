//! How a supervisor starts a child, when it starts it again, and how it stops it.

use std::{fmt, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use ractor::{Actor, ActorCell, ActorId, SpawnErr};

use crate::{
    Address, Mail, Presence,
    address::Slot,
    spawn::spawn_linked,
    supervisor::{Supervisor, SupervisorArgs, SupervisorHandle, SupervisorSettings},
};

/// How long a child may take to stop before it is killed, unless its spec says otherwise. An actor
/// has a few round trips to other actors to make at its end; more is a fault.
const STOP_WITHIN: Duration = Duration::from_secs(5);

/// The same for a supervisor, whose children have [`STOP_WITHIN`] each.
const SUPERVISOR_STOP_WITHIN: Duration = Duration::from_secs(60);

/// When a child that ended is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restart {
    /// Always.
    Permanent,
    /// When it failed, panicked or was killed; not when it stopped itself.
    Transient,
    /// Never.
    Temporary,
}

type Start =
    Arc<dyn Fn(ActorCell) -> BoxFuture<'static, Result<ActorCell, SpawnErr>> + Send + Sync>;
type Vacate = Arc<dyn Fn(Option<ActorId>, Presence) + Send + Sync>;

/// A child: its name and how to start, restart and stop it.
#[derive(Clone)]
pub struct ChildSpec {
    pub(crate) name: String,
    pub(crate) restart: Restart,
    pub(crate) stop_within: Duration,
    pub(crate) start: Start,
    vacate: Option<Vacate>,
}

impl fmt::Debug for ChildSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChildSpec({}, {:?})", self.name, self.restart)
    }
}

impl ChildSpec {
    /// A child without an address. `make` is called for every start.
    pub fn new<A: Actor>(
        name: impl Into<String>,
        restart: Restart,
        make: impl Fn() -> (A, A::Arguments) + Send + Sync + 'static,
    ) -> Self {
        let start: Start = Arc::new(move |supervisor| {
            let (actor, args) = make();
            Box::pin(
                async move { Ok(spawn_linked(None, actor, args, supervisor).await?.0.get_cell()) },
            )
        });
        Self { name: name.into(), restart, stop_within: STOP_WITHIN, start, vacate: None }
    }

    /// A child with an address through which at most `in_flight_max` messages wait.
    pub fn addressed<A: Actor, M: Send + 'static>(
        name: impl Into<String>,
        restart: Restart,
        in_flight_max: usize,
        make: impl Fn() -> (A, A::Arguments) + Send + Sync + 'static,
    ) -> (Self, Address<M>)
    where
        A::Msg: From<Mail<M>>,
    {
        Self::addressed_with(name, restart, in_flight_max, A::Msg::from, make)
    }

    /// As [`ChildSpec::addressed`]; `wrap` turns mail into the actor's message and must keep its
    /// permit there, or the bound is void.
    pub fn addressed_with<A: Actor, M: Send + 'static>(
        name: impl Into<String>,
        restart: Restart,
        in_flight_max: usize,
        wrap: impl Fn(Mail<M>) -> A::Msg + Send + Sync + 'static,
        make: impl Fn() -> (A, A::Arguments) + Send + Sync + 'static,
    ) -> (Self, Address<M>) {
        let name = name.into();
        let slot = Slot::new(name.clone(), in_flight_max);
        let vacated = Arc::clone(&slot);
        let address = Address::new(Arc::clone(&slot));
        let wrap = Arc::new(wrap);
        let start: Start = Arc::new(move |supervisor| {
            let (actor, args) = make();
            let (slot, wrap) = (Arc::clone(&slot), Arc::clone(&wrap));
            Box::pin(async move {
                let (actor, _) = spawn_linked(None, actor, args, supervisor).await?;
                let cell = actor.get_cell();
                slot.fill(cell.clone(), move |mail| actor.send_message(wrap(mail)).is_ok());
                Ok(cell)
            })
        });
        let vacate: Vacate = Arc::new(move |only, presence| vacated.vacate(only, presence));
        let spec = Self { name, restart, stop_within: STOP_WITHIN, start, vacate: Some(vacate) };
        (spec, address)
    }

    /// A supervisor as a child. The handle survives its restarts.
    pub fn supervisor(
        name: impl Into<String>,
        restart: Restart,
        settings: SupervisorSettings,
        children: Vec<ChildSpec>,
    ) -> (Self, SupervisorHandle) {
        let name = name.into();
        let args = SupervisorArgs::new(name.clone(), settings, children);
        let events = args.events();
        let (spec, address) = Self::addressed(name, restart, SupervisorHandle::IN_FLIGHT_MAX, {
            move || (Supervisor, args.clone())
        });
        (spec.stop_within(SUPERVISOR_STOP_WITHIN), SupervisorHandle::new(address, events))
    }

    /// How long it may take to stop before it is killed.
    #[must_use]
    pub fn stop_within(mut self, deadline: Duration) -> Self {
        self.stop_within = deadline;
        self
    }

    pub(crate) fn vacate(&self, only: Option<ActorId>, presence: Presence) {
        if let Some(vacate) = &self.vacate {
            vacate(only, presence);
        }
    }
}
