//! A subscription that is known to stand.
//!
//! A broker handles what one connection sends in order, and it answers in order. So once a message
//! to our own inbox came back, every earlier SUB was handled. Whether it was granted cannot be
//! read off that: the refusal takes another way through the client and may come later. So the broker
//! is asked for our permissions too; and a refusal that comes all the same ends the subscription.

use std::{pin::pin, time::Duration};

use async_nats::{Client, Subscriber, connection::State};
use bytes::Bytes;
use callboard_protocol::{Subject, SubjectPattern};
use futures::StreamExt as _;
use tokio::{
    sync::{broadcast, mpsc},
    time::{Instant, timeout, timeout_at},
};

use super::{Violation, disconnected, grants, headers};
use crate::bus::{BusError, Losses, Message, SUBSCRIPTION_CAPACITY, Subscription};

/// How long a subscription may take to be confirmed.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(5);
/// After this a probe counts as lost, as in a reconnect, and another is sent.
const PROBE_TIMEOUT: Duration = Duration::from_millis(500);

pub(super) async fn confirmed(
    client: &Client,
    mut violations: broadcast::Receiver<Violation>,
    pattern: &SubjectPattern,
    losses: Losses,
) -> Result<Subscription, BusError> {
    if client.connection_state() != State::Connected {
        return Err(disconnected());
    }
    let subject = pattern.to_string();
    let until = Instant::now() + CONFIRM_TIMEOUT;
    let timed_out = || BusError::TimedOut {
        subject: subject.clone(),
        waited_ms: u64::try_from(CONFIRM_TIMEOUT.as_millis()).unwrap_or(u64::MAX),
    };
    let subscriber = timeout_at(until, client.subscribe(subject.clone()))
        .await
        .map_err(|_| timed_out())?
        .map_err(|_| disconnected())?;
    let inbox = client.new_inbox();
    let mut echoes = timeout_at(until, client.subscribe(inbox.clone()))
        .await
        .map_err(|_| timed_out())?
        .map_err(|_| disconnected())?;
    timeout_at(until, echo(client, &inbox, &mut echoes)).await.map_err(|_| timed_out())??;
    if !grants::may_subscribe(client, &subject).await {
        return Err(BusError::Forbidden(subject));
    }
    let is_ours = {
        let wanted = [subject.clone(), inbox];
        move |violation: &Violation| violation.subscription && wanted.contains(&violation.subject)
    };
    while let Ok(violation) = violations.try_recv() {
        if is_ours(&violation) {
            return Err(BusError::Forbidden(violation.subject));
        }
    }
    let (sender, receiver) = mpsc::channel(SUBSCRIPTION_CAPACITY);
    tokio::spawn(forward(subject, subscriber, sender, losses.clone(), violations));
    Ok(Subscription::new(receiver, losses))
}

async fn echo(client: &Client, inbox: &str, echoes: &mut Subscriber) -> Result<(), BusError> {
    loop {
        client.publish(inbox.to_owned(), Bytes::new()).await.map_err(|_| disconnected())?;
        match timeout(PROBE_TIMEOUT, echoes.next()).await {
            Ok(Some(_)) => return Ok(()),
            Ok(None) => return Err(disconnected()),
            Err(_) => {}
        }
    }
}

/// Carries messages over until the reader or the connection is gone. Never waits for the reader.
async fn forward(
    pattern: String,
    mut subscriber: Subscriber,
    sender: mpsc::Sender<Message>,
    losses: Losses,
    mut violations: broadcast::Receiver<Violation>,
) {
    let refusal = async {
        loop {
            match violations.recv().await {
                Ok(violation) if violation.subscription && violation.subject == pattern => return,
                Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
            }
        }
    };
    let mut refusal = pin!(refusal);
    loop {
        let message = tokio::select! {
            biased;
            () = sender.closed() => return,
            message = subscriber.next() => message,
            () = &mut refusal => return,
        };
        let Some(message) = message else { return };
        let Ok(subject) = message.subject.as_str().parse::<Subject>() else {
            tracing::debug!(subject = %message.subject, "a subject of no known shape; ignored");
            continue;
        };
        match sender.try_send(headers::to_message(subject, message)) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Closed(_)) => return,
            Err(mpsc::error::TrySendError::Full(_)) => losses.count(&pattern),
        }
    }
}
