//! Jupyter messages on a websocket: the legacy framings of `jupyter_server` and
//! `v1.kernel.websocket.jupyter.org`. Parsing and writing only; parts are passed on untouched.
//!
//! Legacy without buffers is one text frame, a JSON object of the parts. With buffers it is a
//! binary frame: big-endian `u32` count and offsets, that JSON, the buffers. Source:
//! `jupyter_server/services/kernels/connection/base.py`.

use bytes::{Bytes, BytesMut};
use callboard_protocol::jupyter::{BUFFERS_MAX, Channel, Header, JupyterError, JupyterMessage};
use serde::Deserialize;
use serde_json::value::RawValue;

/// The subprotocol whose frames are the bus's own.
pub const V1_PROTOCOL: &str = "v1.kernel.websocket.jupyter.org";

const WORD: usize = 4;

/// Why a frame is no Jupyter message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// It is no JSON object of a message's parts.
    #[error(
        "the frame is no Jupyter message: {0}; expected JSON with channel, header, parent_header, \
         metadata and content"
    )]
    Json(String),
    /// Its offsets do not add up.
    #[error("the frame is no Jupyter message: {0}")]
    Offsets(&'static str),
    /// It names a channel that is none.
    #[error("there is no channel '{0}': use shell, control or stdin")]
    Channel(String),
    /// It is malformed otherwise.
    #[error(transparent)]
    Jupyter(#[from] JupyterError),
}

#[derive(Deserialize)]
struct Legacy<'a> {
    #[serde(default)]
    channel: Option<String>,
    #[serde(borrow)]
    header: &'a RawValue,
    #[serde(borrow, default)]
    parent_header: Option<&'a RawValue>,
    #[serde(borrow, default)]
    metadata: Option<&'a RawValue>,
    #[serde(borrow, default)]
    content: Option<&'a RawValue>,
}

/// Reads a legacy text frame. A message without a channel belongs on `shell`, as `nbclient` has it.
///
/// # Errors
/// [`FrameError`] if it is no message.
pub fn parse_text(text: &[u8]) -> Result<JupyterMessage, FrameError> {
    let parts: Legacy<'_> =
        serde_json::from_slice(text).map_err(|error| FrameError::Json(error.to_string()))?;
    let channel = match parts.channel.as_deref() {
        None | Some("shell") => Channel::Shell,
        Some("control") => Channel::Control,
        Some("stdin") => Channel::Stdin,
        Some("iopub") => Channel::Iopub,
        Some(other) => return Err(FrameError::Channel(other.chars().take(64).collect())),
    };
    let part = |value: Option<&RawValue>| match value.map(RawValue::get) {
        None | Some("null") => Bytes::from_static(b"{}"),
        Some(json) => Bytes::copy_from_slice(json.as_bytes()),
    };
    Ok(JupyterMessage {
        channel,
        header: part(Some(parts.header)),
        parent_header: part(parts.parent_header),
        metadata: part(parts.metadata),
        content: part(parts.content),
        buffers: Vec::new(),
    })
}

/// Reads a legacy binary frame.
///
/// # Errors
/// [`FrameError`] if it is no message.
pub fn parse_binary(frame: &Bytes) -> Result<JupyterMessage, FrameError> {
    let word = |index: usize| -> Result<usize, FrameError> {
        let bytes = frame
            .get(index * WORD..(index + 1) * WORD)
            .and_then(|bytes| <[u8; WORD]>::try_from(bytes).ok())
            .ok_or(FrameError::Offsets("it ends within its offsets"))?;
        Ok(u32::from_be_bytes(bytes) as usize)
    };
    let count = word(0)?;
    if !(1..=BUFFERS_MAX + 1).contains(&count) {
        return Err(FrameError::Offsets("it has no parts, or too many"));
    }
    let mut offsets = (1..=count).map(word).collect::<Result<Vec<_>, _>>()?;
    offsets.push(frame.len());
    if offsets[0] != WORD * (count + 1) || !offsets.is_sorted() {
        return Err(FrameError::Offsets("its offsets do not match its length"));
    }
    let mut message = parse_text(&frame[offsets[0]..offsets[1]])?;
    message.buffers = offsets[1..].windows(2).map(|pair| frame.slice(pair[0]..pair[1])).collect();
    Ok(message)
}

/// Writes the JSON of a legacy frame. Clients need `msg_id` and `msg_type` beside the header, too.
#[must_use]
pub fn write_text(message: &JupyterMessage, header: &Header) -> String {
    let json = |part: &Bytes| {
        if part.is_empty() { "{}".into() } else { String::from_utf8_lossy(part).into_owned() }
    };
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    format!(
        r#"{{"channel":"{}","header":{},"parent_header":{},"metadata":{},"content":{},"buffers":[],"msg_id":{},"msg_type":{}}}"#,
        message.channel.as_str(),
        json(&message.header),
        json(&message.parent_header),
        json(&message.metadata),
        json(&message.content),
        quoted(&header.msg_id),
        quoted(&header.msg_type),
    )
}

/// Writes a legacy binary frame; `None` if it is over the 4 GiB that its offsets can name.
#[must_use]
pub fn write_binary(message: &JupyterMessage, header: &Header) -> Option<Bytes> {
    let json = write_text(message, header);
    let parts =
        || std::iter::once(json.as_bytes()).chain(message.buffers.iter().map(AsRef::as_ref));
    let count = parts().count();
    let mut offset = WORD * (count + 1);
    let total = offset + parts().map(<[u8]>::len).sum::<usize>();
    let mut out = BytesMut::with_capacity(total);
    out.extend_from_slice(&u32::try_from(count).ok()?.to_be_bytes());
    for part in parts() {
        out.extend_from_slice(&u32::try_from(offset).ok()?.to_be_bytes());
        offset += part.len();
    }
    for part in parts() {
        out.extend_from_slice(part);
    }
    Some(out.freeze())
}

#[cfg(test)]
mod tests;
