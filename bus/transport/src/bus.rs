//! The bus as every actor sees it: publish, request, subscribe, respond.
//!
//! At most once, like core NATS: nothing here retries. Order holds per sender and subject.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use callboard_protocol::{Envelope, Subject, SubjectPattern};
use tokio::sync::{mpsc, watch};

/// Why the bus did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BusError {
    /// Nobody listens on the subject.
    #[error("nobody answers on {0}")]
    NoResponders(String),
    /// No answer came in time. The request may have been carried out.
    #[error("no answer on {subject} within {waited_ms} ms")]
    TimedOut {
        /// Where.
        subject: String,
        /// How long was waited.
        waited_ms: u64,
    },
    /// The payload is larger than the broker takes.
    #[error("a message of {length} bytes is over the broker's limit of {limit} bytes")]
    TooLarge {
        /// Its length.
        length: usize,
        /// The limit.
        limit: usize,
    },
    /// There is no connection to the broker just now.
    #[error("not connected to the broker: {0}")]
    Disconnected(String),
    /// The broker refused the subject to this user.
    #[error("the broker's permissions forbid {0} to this user")]
    Forbidden(String),
}

/// Whether the connection to the broker stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BusHealth {
    /// It stands.
    Connected,
    /// It does not; the client is trying to connect again.
    Disconnected,
}

/// Messages that may wait in one subscription. A reader that falls this far behind loses messages
/// (at most once), which streams notice by their sequence numbers; 4096 Raft or Jupyter messages of
/// a few KiB are some tens of MiB at the worst.
pub const SUBSCRIPTION_CAPACITY: usize = 4096;

/// First token of every reply subject; answers go nowhere else.
pub const INBOX_ROOT: &str = "_INBOX";

/// Where an answer to a message goes. Opaque.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplyTo(pub(crate) String);

impl ReplyTo {
    /// Wraps a reply subject, if it is an inbox. Whoever answers may publish where the asker may
    /// not, so a reply subject of any other sort would lend the asker that right.
    pub(crate) fn inbox(subject: &str) -> Option<Self> {
        let rest = subject.strip_prefix(INBOX_ROOT)?.strip_prefix('.')?;
        (!rest.is_empty()).then(|| Self(subject.to_owned()))
    }
}

/// A message that arrived.
#[derive(Debug, Clone)]
pub struct Message {
    /// On which subject.
    pub subject: Subject,
    /// Where the sender awaits an answer, if it does.
    pub reply_to: Option<ReplyTo>,
    /// What it says about itself.
    pub envelope: Envelope,
    /// Its body.
    pub payload: Bytes,
}

/// A stream of messages. Dropping it ends the subscription.
#[derive(Debug)]
pub struct Subscription {
    messages: mpsc::Receiver<Message>,
    losses: Losses,
    known: u64,
}

/// Counts the messages that a subscription had no room for. Clones count together.
#[derive(Debug, Clone, Default)]
pub(crate) struct Losses {
    own: Arc<AtomicU64>,
    /// Those of its connection of which it is not known whose they were.
    shared: Arc<AtomicU64>,
}

impl Losses {
    pub(crate) fn of_connection(shared: Arc<AtomicU64>) -> Self {
        Self { own: Arc::default(), shared }
    }

    /// Counts one. Warns, but not of each.
    pub(crate) fn count(&self, pattern: &dyn fmt::Display) {
        let lost = self.own.fetch_add(1, Ordering::Release) + 1;
        if lost.is_power_of_two() {
            tracing::warn!(%pattern, lost, "a slow subscription loses messages");
        }
    }

    fn all(&self) -> u64 {
        self.own.load(Ordering::Acquire) + self.shared.load(Ordering::Acquire)
    }
}

impl Subscription {
    pub(crate) fn new(messages: mpsc::Receiver<Message>, losses: Losses) -> Self {
        Self { messages, known: losses.all(), losses }
    }

    /// The next message; `None` once the bus is closed.
    pub async fn next(&mut self) -> Option<Message> {
        self.messages.recv().await
    }

    /// Whether messages were lost since the last call, as they were read too slowly.
    pub fn has_lost(&mut self) -> bool {
        let lost = self.losses.all();
        std::mem::replace(&mut self.known, lost) != lost
    }
}

/// One connection to the bus.
#[async_trait]
pub trait Bus: Send + Sync + std::fmt::Debug + 'static {
    /// Sends to whoever listens; nobody may.
    ///
    /// # Errors
    /// [`BusError::TooLarge`], [`BusError::Disconnected`].
    async fn publish(
        &self,
        subject: &Subject,
        envelope: &Envelope,
        payload: Bytes,
    ) -> Result<(), BusError>;

    /// Sends and waits for the first answer, at most `deadline`.
    ///
    /// # Errors
    /// Any [`BusError`]. After [`BusError::TimedOut`] the request may have been carried out.
    async fn request(
        &self,
        subject: &Subject,
        envelope: &Envelope,
        payload: Bytes,
        deadline: Duration,
    ) -> Result<Message, BusError>;

    /// Answers a message.
    ///
    /// # Errors
    /// [`BusError::TooLarge`], [`BusError::Disconnected`].
    async fn respond(
        &self,
        reply_to: &ReplyTo,
        envelope: &Envelope,
        payload: Bytes,
    ) -> Result<(), BusError>;

    /// Listens. Returns once a round trip through the broker confirmed the subscription, so that
    /// whoever is told afterwards reaches it.
    ///
    /// # Errors
    /// [`BusError::Disconnected`], [`BusError::Forbidden`], [`BusError::TimedOut`].
    async fn subscribe(&self, pattern: &SubjectPattern) -> Result<Subscription, BusError>;

    /// Largest payload in bytes.
    fn payload_max(&self) -> usize;

    /// Follows whether the connection stands.
    fn health(&self) -> watch::Receiver<BusHealth>;
}

/// A node's connections. Raft and heartbeats never queue behind bulk transfers.
#[derive(Debug, Clone)]
pub struct Lanes {
    /// Commands, queries, cells and their outputs.
    pub control: Arc<dyn Bus>,
    /// Raft and heartbeats.
    pub raft: Arc<dyn Bus>,
    /// Chunks of state.
    pub bulk: Arc<dyn Bus>,
}
