//! Envelopes as NATS headers, and NATS messages as ours.

use std::sync::Once;

use async_nats::HeaderMap;
use callboard_protocol::{Envelope, Subject};

use crate::bus::{Message, ReplyTo};

pub(super) fn from_envelope(envelope: &Envelope) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in envelope.to_headers() {
        headers.insert(name, value);
    }
    headers
}

pub(super) fn to_message(subject: Subject, message: async_nats::Message) -> Message {
    let envelope = message.headers.as_ref().map_or_else(Envelope::default, to_envelope);
    let reply_to = message.reply.as_ref().and_then(|reply| {
        let inbox = ReplyTo::inbox(reply.as_str());
        if inbox.is_none() {
            tracing::debug!(%subject, %reply, "a reply subject that is no inbox; not answered");
        }
        inbox
    });
    Message { subject, reply_to, envelope, payload: message.payload }
}

fn to_envelope(headers: &HeaderMap) -> Envelope {
    static TOLD: Once = Once::new();
    let (envelope, malformed) =
        Envelope::from_headers(|name| headers.get(name).map(async_nats::HeaderValue::as_str));
    if !malformed.is_empty() {
        TOLD.call_once(|| {
            tracing::debug!(?malformed, "malformed headers count as absent; not logged again");
        });
    }
    envelope
}
