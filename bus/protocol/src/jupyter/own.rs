//! Messages that Callboard itself says or asks, in a kernel's or a front-end's place.

use std::time::SystemTime;

use bytes::Bytes;
use serde_json::{Value, json};

use super::{Channel, JupyterMessage};
use crate::date::iso8601;

/// Version of the Jupyter messaging protocol that these messages state.
pub const JUPYTER_VERSION: &str = "5.4";

/// What the header of such a message says. Source: Jupyter messaging specification, "General
/// message format".
#[derive(Debug, Clone, Copy)]
pub struct OwnHeader<'a> {
    /// Identity of the message.
    pub msg_id: &'a str,
    /// What it is, such as `status`.
    pub msg_type: &'a str,
    /// Whose it is: the kernel's id, or a session of the one who asks.
    pub session: &'a str,
    /// When it was said.
    pub at: SystemTime,
}

impl JupyterMessage {
    /// A message without parent, metadata and buffers.
    #[must_use]
    pub fn own(channel: Channel, header: OwnHeader<'_>, content: &Value) -> Self {
        let header = json!({
            "msg_id": header.msg_id,
            "msg_type": header.msg_type,
            "session": header.session,
            "username": "callboard",
            "date": iso8601(header.at),
            "version": JUPYTER_VERSION,
        });
        let empty = Bytes::from_static(b"{}");
        Self {
            channel,
            header: header.to_string().into(),
            parent_header: empty.clone(),
            metadata: empty,
            content: content.to_string().into(),
            buffers: Vec::new(),
        }
    }
}
