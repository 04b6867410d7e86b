//! One connection to an in-memory network.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use callboard_protocol::{Envelope, Subject, SubjectPattern};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until, timeout},
};

use super::Shared;
use crate::bus::{
    Bus, BusError, BusHealth, INBOX_ROOT, Losses, Message, ReplyTo, SUBSCRIPTION_CAPACITY,
    Subscription,
};

#[derive(Debug)]
pub(super) struct MemoryBus {
    shared: Arc<Shared>,
    connection: u64,
    health: watch::Receiver<BusHealth>,
}

impl MemoryBus {
    pub(super) fn new(shared: Arc<Shared>, name: &str) -> Self {
        let (connection, health) = shared.lock().connect(name);
        Self { shared, connection, health }
    }

    fn check(&self, payload: &Bytes) -> Result<(), BusError> {
        let net = self.shared.lock();
        if let Some(why) = net.trouble(self.connection) {
            return Err(BusError::Disconnected(why.to_owned()));
        }
        let (length, limit) = (payload.len(), net.plan.payload_max);
        if length > limit { Err(BusError::TooLarge { length, limit }) } else { Ok(()) }
    }

    /// Delivers what is due at once, and sees to it that the rest is delivered when it is.
    fn pump(&self) {
        let mut net = self.shared.lock();
        if net.pump().is_none() {
            return;
        }
        if net.pump.as_ref().is_none_or(tokio::task::AbortHandle::is_finished) {
            let task = tokio::spawn(pump(Arc::downgrade(&self.shared)));
            net.pump = Some(task.abort_handle());
        }
        self.shared.pump.notify_one();
    }

    /// What a reply subject of this network looks like: `_INBOX.memory.<number>.<subject asked>`.
    fn reply_to(inbox: u64, subject: &Subject) -> ReplyTo {
        ReplyTo(format!("{INBOX_ROOT}.memory.{inbox}.{subject}"))
    }

    fn parse_reply_to(reply_to: &ReplyTo) -> Option<(u64, Subject)> {
        let rest = reply_to.0.strip_prefix(INBOX_ROOT)?.strip_prefix(".memory.")?;
        let (inbox, subject) = rest.split_once('.')?;
        Some((inbox.parse().ok()?, subject.parse().ok()?))
    }
}

/// Delivers late messages at their time, until the network is gone.
async fn pump(shared: Weak<Shared>) {
    loop {
        let Some(strong) = shared.upgrade() else { return };
        let next = strong.lock().pump();
        // Ends when nothing is under way: an idle network must not hold a task.
        let Some(next) = next else {
            strong.lock().pump = None;
            return;
        };
        wait(strong, next).await;
    }
}

async fn wait(shared: Arc<Shared>, next: Instant) {
    tokio::select! {
        () = sleep_until(next) => {}
        () = shared.pump.notified() => {}
    }
}

#[async_trait]
impl Bus for MemoryBus {
    async fn publish(
        &self,
        subject: &Subject,
        envelope: &Envelope,
        payload: Bytes,
    ) -> Result<(), BusError> {
        self.check(&payload)?;
        let (subject, envelope) = (subject.clone(), envelope.clone());
        let message = Message { subject, reply_to: None, envelope, payload };
        self.shared.lock().publish(self.connection, &message);
        self.pump();
        Ok(())
    }

    async fn request(
        &self,
        subject: &Subject,
        envelope: &Envelope,
        payload: Bytes,
        deadline: Duration,
    ) -> Result<Message, BusError> {
        self.check(&payload)?;
        let answer = {
            let mut net = self.shared.lock();
            let (inbox, answer) = net.open_inbox(self.connection);
            let reply_to = Some(Self::reply_to(inbox, subject));
            let (subject, envelope) = (subject.clone(), envelope.clone());
            let message = Message { subject, reply_to, envelope, payload };
            if net.publish(self.connection, &message) == 0 {
                return Err(BusError::NoResponders(message.subject.to_string()));
            }
            answer
        };
        self.pump();
        match timeout(deadline, answer).await {
            Ok(Ok(message)) => Ok(message),
            Err(_) | Ok(Err(_)) => Err(BusError::TimedOut {
                subject: subject.to_string(),
                waited_ms: u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX),
            }),
        }
    }

    async fn respond(
        &self,
        reply_to: &ReplyTo,
        envelope: &Envelope,
        payload: Bytes,
    ) -> Result<(), BusError> {
        self.check(&payload)?;
        let Some((inbox, subject)) = Self::parse_reply_to(reply_to) else {
            return Err(BusError::Forbidden(reply_to.0.clone()));
        };
        let message = Message { subject, reply_to: None, envelope: envelope.clone(), payload };
        self.shared.lock().respond(self.connection, inbox, &message);
        self.pump();
        Ok(())
    }

    async fn subscribe(&self, pattern: &SubjectPattern) -> Result<Subscription, BusError> {
        self.check(&Bytes::new())?;
        let (sender, receiver) = mpsc::channel(SUBSCRIPTION_CAPACITY);
        let losses = Losses::default();
        self.shared.lock().listen(self.connection, pattern.clone(), sender, losses.clone());
        Ok(Subscription::new(receiver, losses))
    }

    fn payload_max(&self) -> usize {
        self.shared.lock().plan.payload_max
    }

    fn health(&self) -> watch::Receiver<BusHealth> {
        self.health.clone()
    }
}

impl Drop for MemoryBus {
    fn drop(&mut self) {
        // A subscription outlives its bus, as on NATS, and then its connection's name is needed.
        let mut net = self.shared.lock();
        if !net.has_listeners(self.connection) {
            net.drop_connection(self.connection);
        }
    }
}
