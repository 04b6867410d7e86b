//! Sends a kernel's events in order, without making the replica wait for the broker.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use callboard_protocol::{
    ActorKind, Answer, ClusterId, Envelope, KernelId, OwnerId, Seq, Subject,
    jupyter::JupyterMessage,
    kernel::{CellEnd, OutputCursor, OutputPlace, TookOver},
};
use callboard_transport::{Bus, ReplyTo};
use tokio::sync::{OwnedSemaphorePermit, mpsc};

/// Longest output that is sent as it comes: what the broker takes. Clients fetch a longer one from the
/// log.
const SENT_BYTES_MAX: usize = 1000 << 10;
/// Events that may wait for the broker. What is dropped beyond it is in the log: clients notice
/// the gap by its cursor and fetch it.
const EVENTS_WAITING_MAX: usize = 10_000;

#[derive(Debug)]
enum Outgoing {
    Event(Subject, Envelope, Bytes),
    Answer(ReplyTo, Envelope, Bytes),
    Release(OwnedSemaphorePermit),
}

/// Sends a kernel's events and answers in order.
#[derive(Debug, Clone)]
pub(crate) struct Publisher {
    queue: mpsc::Sender<Outgoing>,
    cluster: ClusterId,
    kernel: KernelId,
    owner: OwnerId,
    last_output: Arc<Mutex<Option<OutputCursor>>>,
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
                let sent = match outgoing {
                    Outgoing::Event(subject, envelope, payload) => {
                        bus.publish(&subject, &envelope, payload).await
                    }
                    Outgoing::Answer(reply_to, envelope, payload) => {
                        bus.respond(&reply_to, &envelope, payload).await
                    }
                    Outgoing::Release(room) => {
                        drop(room);
                        Ok(())
                    }
                };
                if let Err(error) = sent {
                    tracing::debug!(%error, "an event or answer was not sent");
                }
            }
        });
        Self { queue, cluster, kernel, owner, last_output: Arc::default() }
    }

    /// Sends a Jupyter message to whoever follows the kernel.
    pub(crate) fn emitted(&self, message: &JupyterMessage, place: Option<OutputPlace>) {
        let after = {
            let mut last = self.last_output.lock().unwrap_or_else(PoisonError::into_inner);
            match place {
                Some(place) => {
                    *last = Some(place.cursor);
                    None
                }
                None => *last,
            }
        };
        let message = message.encode();
        if place.is_some() && message.len() > SENT_BYTES_MAX {
            return;
        }
        let envelope = Envelope { cursor: place, after, ..Envelope::new(self.owner.clone()) };
        self.send("emitted", envelope, message);
    }

    /// Lets go of `room` once all before it has been sent.
    pub(crate) fn release(&self, room: Option<OwnedSemaphorePermit>) {
        if let Some(room) = room {
            // Without a place in the queue it is let go now.
            let _ = self.queue.try_send(Outgoing::Release(room));
        }
    }

    /// Tells whoever follows the kernel that its log is about to have all outputs up to `last`: some of
    /// them were too large to be sent.
    pub(crate) fn stored(&self, last: OutputCursor) {
        self.say("stored", &last);
    }

    /// Tells whoever follows the kernel that it has another executor.
    pub(crate) fn took_over(&self, event: &TookOver) {
        self.say("took_over", event);
    }

    /// Tells whoever watches the kernel that a cell runs.
    pub(crate) fn began(&self, cell: Seq) {
        self.say("began", &cell);
    }

    /// Tells whoever follows the kernel that a cell ended.
    pub(crate) fn ended(&self, end: &CellEnd) {
        self.say("ended", end);
    }

    fn say<T: serde::Serialize>(&self, event: &str, body: &T) {
        match serde_json::to_vec(body) {
            Ok(json) => self.send(event, Envelope::new(self.owner.clone()), Bytes::from(json)),
            Err(error) => tracing::error!(%error, event, "an event cannot be written as JSON"),
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use callboard_protocol::SubjectPattern;
    use callboard_transport::{BusError, BusHealth, Message, Subscription};
    use tokio::sync::{Semaphore, watch};

    use super::*;

    /// A broker that takes as many messages as it is given leave to.
    #[derive(Debug)]
    struct SlowBus(Semaphore);

    #[ractor::async_trait]
    impl Bus for SlowBus {
        async fn publish(&self, _: &Subject, _: &Envelope, _: Bytes) -> Result<(), BusError> {
            self.0.acquire().await.unwrap().forget();
            Ok(())
        }

        async fn request(
            &self,
            _: &Subject,
            _: &Envelope,
            _: Bytes,
            _: Duration,
        ) -> Result<Message, BusError> {
            unimplemented!()
        }

        async fn respond(&self, _: &ReplyTo, _: &Envelope, _: Bytes) -> Result<(), BusError> {
            unimplemented!()
        }

        async fn subscribe(&self, _: &SubjectPattern) -> Result<Subscription, BusError> {
            unimplemented!()
        }

        fn payload_max(&self) -> usize {
            1 << 20
        }

        fn health(&self) -> watch::Receiver<BusHealth> {
            unimplemented!()
        }
    }

    #[tokio::test]
    async fn room_for_another_output_comes_when_the_one_before_was_sent() {
        let bus = Arc::new(SlowBus(Semaphore::new(0)));
        let publisher = Publisher::start(
            bus.clone(),
            ClusterId::new("c").unwrap(),
            KernelId::generate(),
            OwnerId::default(),
        );
        let outputs = Arc::new(Semaphore::new(2));
        for seq in [1, 2] {
            let room = outputs.clone().acquire_owned().await.unwrap();
            publisher.began(Seq(seq));
            publisher.release(Some(room));
        }
        tokio::task::yield_now().await;
        assert_eq!(outputs.available_permits(), 0, "nothing was sent");
        bus.0.add_permits(1);
        let _first = outputs.clone().acquire_owned().await.unwrap();
        tokio::task::yield_now().await;
        assert_eq!(outputs.available_permits(), 0, "the second was not sent");
        bus.0.add_permits(1);
        let _second = outputs.acquire().await.unwrap();
    }
}
