//! Requests and answers as values: JSON bodies, [`Answer`] replies, failures in sentences.

use std::time::Duration;

use bytes::Bytes;
use callboard_protocol::{ActorKind, Answer, Envelope, Fault, FaultCode, Subject};
use serde::{Serialize, de::DeserializeOwned};

use crate::bus::{Bus, BusError, Message};

/// Sends a request and reads its answer.
///
/// # Errors
/// What the other side answered, or a [`Fault`] that names who is missing. After a lost answer its
/// certainty says that the request may have been carried out.
pub async fn ask<Req: Serialize + Sync + ?Sized, Rep: DeserializeOwned>(
    bus: &dyn Bus,
    subject: &Subject,
    envelope: &Envelope,
    request: &Req,
    deadline: Duration,
) -> Result<Rep, Fault> {
    let body = encode(request)?;
    let mut envelope = envelope.clone();
    let deadline_ms = u32::try_from(deadline.as_millis()).unwrap_or(u32::MAX);
    envelope.deadline_ms.get_or_insert(deadline_ms);
    let reply = bus
        .request(subject, &envelope, body, deadline)
        .await
        .map_err(|error| bus_fault(subject, &error))?;
    let answer: Answer<Rep> = serde_json::from_slice(&reply.payload).map_err(|error| {
        let message = format!(
            "the answer of {} cannot be read ({error}): do all parts of the cluster run the same version of Callboard?",
            actor(subject)
        );
        Fault::maybe_executed(FaultCode::Internal, message)
    })?;
    answer.into()
}

/// Answers a message, if its sender awaits an answer.
///
/// # Errors
/// A [`Fault`] if the answer could not be sent; the asker will then see a time-out.
pub async fn answer<T: Serialize + Send>(
    bus: &dyn Bus,
    message: &Message,
    result: Result<T, Fault>,
) -> Result<(), Fault> {
    let Some(reply_to) = &message.reply_to else { return Ok(()) };
    let body = encode(&Answer::from(result))?;
    let envelope = message.envelope.causing();
    match bus.respond(reply_to, &envelope, body).await {
        Err(error @ BusError::TooLarge { .. }) => {
            let text = format!("the answer is too large to be sent: {error}");
            let fault = Fault::maybe_executed(FaultCode::TooLarge, text);
            let body = encode(&Answer::<T>::Err(fault.clone()))?;
            let _ = bus.respond(reply_to, &envelope, body).await;
            Err(fault)
        }
        result => result.map_err(|error| bus_fault(&message.subject, &error)),
    }
}

/// Tells whoever listens that something happened.
///
/// # Errors
/// A [`Fault`] if the event could not be sent.
pub async fn announce<T: Serialize + Sync + ?Sized>(
    bus: &dyn Bus,
    subject: &Subject,
    envelope: &Envelope,
    event: &T,
) -> Result<(), Fault> {
    let body = encode(event)?;
    bus.publish(subject, envelope, body).await.map_err(|error| bus_fault(subject, &error))
}

/// Reads a message's JSON body. An empty body counts as `null`, so that a verb that takes nothing
/// may be sent nothing.
///
/// # Errors
/// [`FaultCode::BadRequest`] with what is wrong and where.
pub fn decode<T: DeserializeOwned>(message: &Message) -> Result<T, Fault> {
    let body: &[u8] = if message.payload.is_empty() { b"null" } else { &message.payload };
    serde_json::from_slice(body).map_err(|error| {
        let text = format!(
            "the body sent to {} is not what '{}' takes: {error}; see docs/protocol.md",
            message.subject,
            message.subject.last()
        );
        Fault::new(FaultCode::BadRequest, text)
    })
}

/// Like [`decode`], but an empty body asks for the default.
///
/// # Errors
/// As [`decode`].
pub fn decode_or_default<T: DeserializeOwned + Default>(message: &Message) -> Result<T, Fault> {
    if message.payload.is_empty() { Ok(T::default()) } else { decode(message) }
}

/// What a failure of the bus means to whoever asked `subject`.
#[must_use]
pub fn bus_fault(subject: &Subject, error: &BusError) -> Fault {
    let who = actor(subject);
    match error {
        BusError::NoResponders(_) => {
            Fault::new(FaultCode::Unavailable, format!("{who} does not answer: {}", hint(subject)))
        }
        BusError::TimedOut { waited_ms, .. } => Fault::maybe_executed(
            FaultCode::TimedOut,
            format!(
                "{who} did not answer within {waited_ms} ms; it may have carried out the request, so look before you send it again"
            ),
        ),
        BusError::TooLarge { length, limit } => Fault::new(
            FaultCode::TooLarge,
            format!(
                "the message to {who} has {length} bytes, the limit is {limit}: send less at once or raise the broker's payload limit"
            ),
        ),
        BusError::Disconnected(why) => Fault::new(
            FaultCode::Unavailable,
            format!(
                "no connection to the broker ({why}): try again shortly, or see `callboard doctor`"
            ),
        ),
        BusError::Forbidden(subject) => Fault::new(
            FaultCode::BadRequest,
            format!("these credentials do not permit {subject}: use those of another role"),
        ),
    }
}

fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Bytes, Fault> {
    serde_json::to_vec(value)
        .map(Bytes::from)
        .map_err(|error| Fault::new(FaultCode::Internal, format!("cannot write JSON: {error}")))
}

fn actor(subject: &Subject) -> String {
    match subject {
        Subject::Actor { kind: ActorKind::Control, .. } => "the control actor".to_owned(),
        Subject::Actor { kind, id, .. } | Subject::Event { kind, id, .. } => format!("{kind} {id}"),
        Subject::Raft { group, replica, .. } => format!("member {replica} of group {group}"),
    }
}

fn hint(subject: &Subject) -> &'static str {
    match subject {
        Subject::Actor { kind: ActorKind::Control, .. } => {
            "is the cluster up? try `callboard up` or `callboard doctor`"
        }
        Subject::Actor { kind: ActorKind::Kernel, .. } => {
            "was it stopped, or are its nodes down? see `callboard kernel list` and `callboard nodes`"
        }
        Subject::Actor { .. } | Subject::Event { .. } | Subject::Raft { .. } => {
            "its node may be down; see `callboard nodes`"
        }
    }
}
