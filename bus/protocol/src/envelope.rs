//! What every message says about itself, apart from its body.
//!
//! On NATS the envelope travels in headers, so that the body stays exactly what the sender wrote
//! (a Jupyter message, a JSON object, a Raft record) and a client of a few lines may leave every
//! header out.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::ids::{Epoch, MessageId, OwnerId};
use crate::kernel::{OutputCursor, OutputPlace};

/// Header with the owner.
pub const HEADER_OWNER: &str = "Cb-Owner";
/// Header with the message id.
pub const HEADER_MESSAGE_ID: &str = "Cb-Message-Id";
/// Header with the id of the message that caused this one.
pub const HEADER_CAUSE: &str = "Cb-Cause";
/// Header with the time left for an answer, in milliseconds.
pub const HEADER_DEADLINE_MS: &str = "Cb-Deadline-Ms";
/// Header with the fencing epoch.
pub const HEADER_EPOCH: &str = "Cb-Epoch";
/// Header with the place of an output in its kernel's stream, `<term>.<number>.<cell>`.
pub const HEADER_CURSOR: &str = "Cb-Cursor";
/// Header with the place of the last output before a message that has none, `<term>.<number>`.
pub const HEADER_AFTER: &str = "Cb-After";
/// Header with the W3C trace context.
pub const HEADER_TRACEPARENT: &str = "traceparent";

/// Longest trace context passed on, in bytes. Version 00 has 55; later ones may append.
pub const TRACEPARENT_LENGTH_MAX: usize = 128;
/// Most bytes that an envelope adds to a message on NATS: ids of at most 64 bytes, counters of
/// at most 62, the trace context, and the names of the headers.
pub const HEADERS_LENGTH_MAX: usize = 1024;

/// What a message says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// On whose behalf the message is sent.
    pub owner: OwnerId,
    /// Identity of the message; a redelivery carries the same one.
    pub message_id: MessageId,
    /// The message that led to this one.
    pub cause: Option<MessageId>,
    /// Milliseconds within which an answer is of use, counted from receipt. Relative, so that no
    /// two clocks need to agree.
    pub deadline_ms: Option<u32>,
    /// Highest control epoch the sender knew; orders of a lower one than a node has obeyed are
    /// refused.
    pub epoch: Epoch,
    /// Place of an output in its kernel's stream; only on `emitted` events.
    pub cursor: Option<OutputPlace>,
    /// Place of the last output before a message that has none itself, so that whoever missed that
    /// output notices; only on `emitted` events.
    #[serde(default)]
    pub after: Option<OutputCursor>,
    /// W3C `traceparent`, if the sender is being traced.
    pub traceparent: Option<String>,
}

impl Envelope {
    /// An envelope for a message nobody caused.
    #[must_use]
    pub fn new(owner: OwnerId) -> Self {
        Self {
            owner,
            message_id: MessageId::generate(),
            cause: None,
            deadline_ms: None,
            epoch: Epoch::default(),
            cursor: None,
            after: None,
            traceparent: None,
        }
    }

    /// An envelope for a message that `self` leads to: same owner and trace, fresh id.
    #[must_use]
    pub fn causing(&self) -> Self {
        Self {
            owner: self.owner.clone(),
            message_id: MessageId::generate(),
            cause: Some(self.message_id),
            deadline_ms: None,
            epoch: self.epoch,
            cursor: None,
            after: None,
            traceparent: self.traceparent.clone(),
        }
    }
}

impl Envelope {
    /// The envelope as headers, in a fixed order; those without a value are left out.
    #[must_use]
    pub fn to_headers(&self) -> Vec<(&'static str, String)> {
        let mut headers = vec![
            (HEADER_OWNER, self.owner.to_string()),
            (HEADER_MESSAGE_ID, self.message_id.to_string()),
        ];
        headers.extend(self.cause.map(|cause| (HEADER_CAUSE, cause.to_string())));
        headers.extend(self.deadline_ms.map(|ms| (HEADER_DEADLINE_MS, ms.to_string())));
        if self.epoch != Epoch::default() {
            headers.push((HEADER_EPOCH, self.epoch.to_string()));
        }
        headers.extend(self.cursor.map(|place| (HEADER_CURSOR, place.to_string())));
        headers.extend(self.after.map(|cursor| (HEADER_AFTER, cursor.to_string())));
        if let Some(traceparent) = self.traceparent.as_ref().filter(|text| is_traceparent(text)) {
            headers.push((HEADER_TRACEPARENT, traceparent.clone()));
        }
        headers
    }

    /// Reads an envelope from headers and names the ones that are malformed. A malformed header
    /// counts as absent, an absent one as its default.
    pub fn from_headers<'a>(
        get: impl Fn(&'static str) -> Option<&'a str>,
    ) -> (Self, Vec<&'static str>) {
        fn parsed<T: FromStr>(
            name: &'static str,
            text: Option<&str>,
            malformed: &mut Vec<&'static str>,
        ) -> Option<T> {
            let value = text?.parse().ok();
            if value.is_none() {
                malformed.push(name);
            }
            value
        }
        let mut malformed = Vec::new();
        let bad = &mut malformed;
        let envelope = Self {
            owner: parsed(HEADER_OWNER, get(HEADER_OWNER), bad).unwrap_or_default(),
            message_id: parsed(HEADER_MESSAGE_ID, get(HEADER_MESSAGE_ID), bad)
                .unwrap_or_else(MessageId::generate),
            cause: parsed(HEADER_CAUSE, get(HEADER_CAUSE), bad),
            deadline_ms: parsed(HEADER_DEADLINE_MS, get(HEADER_DEADLINE_MS), bad),
            epoch: parsed(HEADER_EPOCH, get(HEADER_EPOCH), bad).map(Epoch).unwrap_or_default(),
            cursor: parsed(HEADER_CURSOR, get(HEADER_CURSOR), bad),
            after: parsed(HEADER_AFTER, get(HEADER_AFTER), bad),
            traceparent: get(HEADER_TRACEPARENT).and_then(|text| {
                if is_traceparent(text) {
                    return Some(text.to_owned());
                }
                bad.push(HEADER_TRACEPARENT);
                None
            }),
        };
        (envelope, malformed)
    }
}

/// Whether `text` may be a W3C `traceparent` of any version: printable, without spaces, and no
/// longer than [`TRACEPARENT_LENGTH_MAX`].
fn is_traceparent(text: &str) -> bool {
    (1..=TRACEPARENT_LENGTH_MAX).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic())
}

impl Default for Envelope {
    fn default() -> Self {
        Self::new(OwnerId::default())
    }
}
