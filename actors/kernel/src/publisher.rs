//! Sends a kernel's events in order, without making the replica wait for the broker.

use std::sync::Arc;

use bytes::Bytes;
use callboard_protocol::{
    ActorKind, Answer, ClusterId, Envelope, KernelId, OwnerId, Subject,
    jupyter::JupyterMessage,
    kernel::{CellEnd, OutputPlace},
};
use callboard_transport::{Bus, ReplyTo};
use tokio::sync::mpsc;

/// Events that may wait for the broker. What is dropped beyond it is in the log: clients notice
/// the gap by its cursor and fetch it.
const EVENTS_WAITING_MAX: usize = 10_000;

#[derive(Debug)]
enum Outgoing {
    Event(Subject, Envelope, Bytes),
    Answer(ReplyTo, Envelope, Bytes),
}

/// Sends a kernel's events and answers in order.
#[derive(Debug, Clone)]
pub(crate) struct Publisher {
    queue: mpsc::Sender<Outgoing>,
    cluster: ClusterId,
    kernel: KernelId,
    owner: OwnerId,
}

impl Publisher {
    pub(crate) fn start(
        bus: Arc<dyn Bus>,
        cluster: ClusterId,
        kernel: KernelId,
        owner: OwnerId,
    ) -> Self {
        let (queue, mut waiting) = mpsc::channel::<Outgoing>(EVENTS_WAITING_MAX);
        tokio::spawn(async move {
            while let Some(outgoing) = waiting.recv().await {
                let sent = match &outgoing {
                    Outgoing::Event(subject, envelope, payload) => {
                        bus.publish(subject, envelope, payload.clone()).await
                    }
                    Outgoing::Answer(reply_to, envelope, payload) => {
                        bus.respond(reply_to, envelope, payload.clone()).await
                    }
                };
                if let Err(error) = sent {
                    tracing::debug!(%error, "an event or answer was not sent");
                }
            }
        });
        Self { queue, cluster, kernel, owner }
    }

    /// Sends a Jupyter message to whoever follows the kernel.
    pub(crate) fn emitted(&self, message: &JupyterMessage, place: Option<OutputPlace>) {
        let envelope = Envelope { cursor: place, ..Envelope::new(self.owner.clone()) };
        self.send("emitted", envelope, message.encode());
    }

    /// Tells whoever follows the kernel that a cell ended.
    pub(crate) fn ended(&self, end: &CellEnd) {
        match serde_json::to_vec(end) {
            Ok(json) => self.send("ended", Envelope::new(self.owner.clone()), Bytes::from(json)),
            Err(error) => tracing::error!(%error, "a cell's end cannot be written as JSON"),
        }
    }

    /// Answers whoever asked.
    pub(crate) fn answer<T: serde::Serialize>(&self, reply_to: &ReplyTo, answer: &Answer<T>) {
        match serde_json::to_vec(answer) {
            Ok(json) => {
                let envelope = Envelope::new(self.owner.clone());
                self.enqueue(Outgoing::Answer(reply_to.clone(), envelope, Bytes::from(json)));
            }
            Err(error) => tracing::error!(%error, "an answer cannot be written as JSON"),
        }
    }

    fn send(&self, event: &str, envelope: Envelope, payload: Bytes) {
        let subject = Subject::event(&self.cluster, ActorKind::Kernel, self.kernel, event);
        self.enqueue(Outgoing::Event(subject, envelope, payload));
    }

    fn enqueue(&self, outgoing: Outgoing) {
        if self.queue.try_send(outgoing).is_err() {
            tracing::warn!(kernel = %self.kernel, "too many messages wait; one is dropped");
        }
    }
}
