//! A supervisor as others see it.

use std::{fmt, time::Duration};

use ractor::{RpcReplyPort, SpawnErr};
use tokio::sync::broadcast;

use super::{ChildInfo, Supervisor, SupervisorArgs, SupervisorEvent, SupervisorMsg};
use crate::{
    Address, AskError, ChildSpec, Presence, SupervisorSettings, address::Slot, spawn::spawn,
};

/// Longest wait for a supervisor: it may be starting a child, or stopping several, before it
/// comes to the question.
const ANSWER_WITHIN: Duration = Duration::from_secs(120);

/// Why a supervisor did not start.
#[derive(Debug, thiserror::Error)]
#[error("supervisor {supervisor} did not start: {reason}")]
pub struct StartError {
    supervisor: String,
    reason: String,
}

/// Why a supervisor did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SupervisorError {
    /// There is such a child already.
    #[error("there is a child named {0} already: stop it first or choose another name")]
    NameTaken(String),
    /// The child's `pre_start` failed, panicked or took too long.
    #[error("{name} did not start: {reason}")]
    NotStarted {
        /// The child's name.
        name: String,
        /// Why.
        reason: String,
    },
    /// The supervisor did not answer.
    #[error(transparent)]
    Ask(#[from] AskError),
}

/// Commands a supervisor and follows what becomes of its children.
#[derive(Clone)]
pub struct SupervisorHandle {
    address: Address<SupervisorMsg>,
    events: broadcast::Sender<SupervisorEvent>,
}

impl fmt::Debug for SupervisorHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SupervisorHandle({})", self.address.name())
    }
}

/// Starts a supervisor that nobody supervises, and its children in order.
///
/// # Errors
/// If a child does not start; those before it are stopped.
pub async fn spawn_supervisor(
    name: &str,
    settings: SupervisorSettings,
    children: Vec<ChildSpec>,
) -> Result<SupervisorHandle, StartError> {
    let args = SupervisorArgs::new(name.to_owned(), settings, children);
    let events = args.events();
    let failed =
        |failure: SpawnErr| StartError { supervisor: name.to_owned(), reason: failure.to_string() };
    let (actor, _) = spawn(None, Supervisor, args).await.map_err(failed)?;
    let slot = Slot::new(name.to_owned(), SupervisorHandle::IN_FLIGHT_MAX);
    slot.fill(actor.get_cell(), move |mail| actor.send_message(mail).is_ok());
    Ok(SupervisorHandle::new(Address::new(slot), events))
}

impl SupervisorHandle {
    /// Requests that may wait: a node reconciles all its replicas at once.
    pub(crate) const IN_FLIGHT_MAX: usize = 4_096;

    pub(crate) fn new(
        address: Address<SupervisorMsg>,
        events: broadcast::Sender<SupervisorEvent>,
    ) -> Self {
        Self { address, events }
    }

    /// Adds a child and starts it. A child that does not start is not added.
    ///
    /// # Errors
    /// Any [`SupervisorError`].
    pub async fn start_child(&self, spec: ChildSpec) -> Result<(), SupervisorError> {
        self.ask(|reply| SupervisorMsg::StartChild(spec, reply)).await?
    }

    /// Stops a child, kills it if it takes too long, and forgets it. Nothing happens if there is
    /// none of that name.
    ///
    /// # Errors
    /// [`SupervisorError::Ask`].
    pub async fn stop_child(&self, name: &str) -> Result<(), SupervisorError> {
        let name = name.to_owned();
        self.ask(|reply| SupervisorMsg::StopChild(name, reply)).await
    }

    /// Its children, in the order they were first started in.
    ///
    /// # Errors
    /// [`SupervisorError::Ask`].
    pub async fn children(&self) -> Result<Vec<ChildInfo>, SupervisorError> {
        self.ask(SupervisorMsg::ListChildren).await
    }

    /// Follows what happens from now on, over all lives of the supervisor.
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<SupervisorEvent> {
        self.events.subscribe()
    }

    /// Stops the children, last one first, and then the supervisor. Only for a root: another one's
    /// supervisor would start it again.
    pub async fn stop(&self) {
        if let Some(cell) = self.address.cell() {
            cell.stop(None);
        }
        self.wait().await;
    }

    /// Returns once the supervisor's present life is over.
    pub async fn wait(&self) {
        if let Some(cell) = self.address.cell() {
            // Without a timeout it cannot fail.
            let _ = cell.wait(None).await;
        }
    }

    /// Follows whether the supervisor is there.
    #[must_use]
    pub fn presence(&self) -> tokio::sync::watch::Receiver<Presence> {
        self.address.presence()
    }

    async fn ask<R: Send + 'static>(
        &self,
        make: impl FnOnce(RpcReplyPort<R>) -> SupervisorMsg + Send,
    ) -> Result<R, SupervisorError> {
        Ok(self.address.ask(ANSWER_WITHIN, make).await?)
    }
}
