//! A bounded address of a supervised actor that stays valid when the actor is restarted.
//!
//! ractor's mailboxes are unbounded; the bound is kept here: each message sent through an address
//! carries a [`Permit`], and only so many exist. It is given back when the message is dropped,
//! be it handled or lost with the actor.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use ractor::{ActorCell, ActorId, RpcReplyPort};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};

#[cfg(test)]
mod tests;

/// A message's place in a bounded mailbox; dropping it frees the place.
#[derive(Debug, Default)]
pub struct Permit {
    _place: Option<OwnedSemaphorePermit>,
}

/// A message with its place in the mailbox.
#[derive(Debug)]
pub struct Mail<M> {
    /// What it says.
    pub message: M,
    /// Its place; keep it until the message is handled.
    pub permit: Permit,
}

impl<M> From<M> for Mail<M> {
    /// What an actor sends to itself takes no place: it must not be refused its own timers.
    fn from(message: M) -> Self {
        Self { message, permit: Permit::default() }
    }
}

/// Whether an actor is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Presence {
    /// It was never started.
    Starting,
    /// It runs, as this actor.
    Running(ActorId),
    /// It ended and will be started again.
    Restarting,
    /// It ended and its supervisor will not start it again.
    Stopped {
        /// Why.
        reason: String,
    },
}

/// Why a message was not sent. Certainly nothing was done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TellError {
    /// As many messages as it takes are waiting.
    #[error("{name} has {limit} messages waiting and takes no more: try again later")]
    Full {
        /// The actor's name.
        name: String,
        /// How many it takes.
        limit: usize,
    },
    /// It is not started yet, or between two lives.
    #[error("{name} is being started: try again in a moment")]
    Restarting {
        /// The actor's name.
        name: String,
    },
    /// It does not run any more.
    #[error("{name} has stopped: {reason}")]
    Stopped {
        /// The actor's name.
        name: String,
        /// Why.
        reason: String,
    },
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// The question was not sent. Certainly nothing was done.
    #[error(transparent)]
    NotSent(#[from] TellError),
    /// No answer in time. It may have been carried out.
    #[error("{name} did not answer within {waited_ms} ms; it may have done what was asked")]
    TimedOut {
        /// The actor's name.
        name: String,
        /// How long was waited.
        waited_ms: u64,
    },
    /// The actor ended, or dropped the question. It may have been carried out.
    #[error("{name} ended without an answer; it may have done what was asked")]
    Lost {
        /// The actor's name.
        name: String,
    },
}

type Deliver<M> = Arc<dyn Fn(Mail<M>) -> bool + Send + Sync>;

/// What all clones of an address share, and the supervisor fills and empties.
pub(crate) struct Slot<M> {
    name: String,
    limit: usize,
    places: Arc<Semaphore>,
    current: Mutex<Option<(ActorCell, Deliver<M>)>>,
    presence: watch::Sender<Presence>,
}

impl<M: Send + 'static> Slot<M> {
    pub(crate) fn new(name: String, limit: usize) -> Arc<Self> {
        Arc::new(Self {
            name,
            limit,
            places: Arc::new(Semaphore::new(limit)),
            current: Mutex::new(None),
            presence: watch::Sender::new(Presence::Starting),
        })
    }

    /// An actor has started; `deliver` says whether it took the message.
    pub(crate) fn fill(
        &self,
        cell: ActorCell,
        deliver: impl Fn(Mail<M>) -> bool + Send + Sync + 'static,
    ) {
        let id = cell.get_id();
        *self.lock() = Some((cell, Arc::new(deliver)));
        self.presence.send_replace(Presence::Running(id));
    }

    /// The actor has ended. With `only`, nothing happens if another one has moved in since.
    pub(crate) fn vacate(&self, only: Option<ActorId>, presence: Presence) {
        let mut current = self.lock();
        let id = current.as_ref().map(|(cell, _)| cell.get_id());
        if only.is_some() && only != id {
            return;
        }
        *current = None;
        drop(current);
        self.presence.send_replace(presence);
    }

    pub(crate) fn cell(&self) -> Option<ActorCell> {
        self.lock().as_ref().map(|(cell, _)| cell.clone())
    }

    fn lock(&self) -> MutexGuard<'_, Option<(ActorCell, Deliver<M>)>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reaches whichever life of a supervised actor is running.
pub struct Address<M> {
    slot: Arc<Slot<M>>,
}

impl<M> Clone for Address<M> {
    fn clone(&self) -> Self {
        Self { slot: Arc::clone(&self.slot) }
    }
}

impl<M> fmt::Debug for Address<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Address({})", self.slot.name)
    }
}

impl<M: Send + 'static> Address<M> {
    pub(crate) fn new(slot: Arc<Slot<M>>) -> Self {
        Self { slot }
    }

    /// The actor's name among its siblings.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.slot.name
    }

    /// Follows whether the actor is there.
    #[must_use]
    pub fn presence(&self) -> watch::Receiver<Presence> {
        self.slot.presence.subscribe()
    }

    pub(crate) fn cell(&self) -> Option<ActorCell> {
        self.slot.cell()
    }

    /// Sends, without waiting for room or for the message to be handled.
    ///
    /// # Errors
    /// Any [`TellError`]; the message is dropped.
    pub fn tell(&self, message: M) -> Result<(), TellError> {
        let name = || self.slot.name.clone();
        let deliver = self.slot.lock().as_ref().map(|(_, deliver)| Arc::clone(deliver));
        let Some(deliver) = deliver else {
            return Err(match &*self.slot.presence.borrow() {
                Presence::Stopped { reason } => {
                    TellError::Stopped { name: name(), reason: reason.clone() }
                }
                _ => TellError::Restarting { name: name() },
            });
        };
        let place = Arc::clone(&self.slot.places)
            .try_acquire_owned()
            .map_err(|_| TellError::Full { name: name(), limit: self.slot.limit })?;
        let mail = Mail { message, permit: Permit { _place: Some(place) } };
        // It has ended and its supervisor has not been told yet.
        if deliver(mail) { Ok(()) } else { Err(TellError::Restarting { name: name() }) }
    }

    /// Sends a question and waits for its answer, at most `deadline`.
    ///
    /// # Errors
    /// Any [`AskError`].
    pub async fn ask<R: Send + 'static>(
        &self,
        deadline: Duration,
        make: impl FnOnce(RpcReplyPort<R>) -> M + Send,
    ) -> Result<R, AskError> {
        let (sender, answer) = oneshot::channel();
        self.tell(make(sender.into()))?;
        let name = || self.slot.name.clone();
        match tokio::time::timeout(deadline, answer).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) => Err(AskError::Lost { name: name() }),
            Err(_) => Err(AskError::TimedOut {
                name: name(),
                waited_ms: u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX),
            }),
        }
    }
}
