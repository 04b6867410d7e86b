//! Jupyter messages as they travel on the bus: parts untouched.
//!
//! The framing is `v1.kernel.websocket.jupyter.org`: a little-endian `u64` count of offsets, the
//! offsets, then the parts `channel, header, parent_header, metadata, content, buffers…` end to
//! end. The first offset is where the first part starts, the last one is the total length.

mod own;

use std::ops::Range;

use bytes::{Bytes, BytesMut};
use serde::Deserialize;

pub use self::own::{JUPYTER_VERSION, OwnHeader};

/// Most buffers one message may have; a message with more is malformed rather than useful.
pub const BUFFERS_MAX: usize = 4096;

const FIXED_PARTS: usize = 5;
const WORD: usize = 8;

/// Why bytes are not a Jupyter message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JupyterError {
    /// The framing does not add up.
    #[error(
        "malformed Jupyter message: {0}; expected the v1.kernel.websocket.jupyter.org framing (see docs/protocol.md)"
    )]
    Framing(&'static str),
    /// A part that must be a JSON object of a known shape is not.
    #[error("malformed Jupyter message: its {part} is not valid: {why}")]
    Part {
        /// Which part.
        part: &'static str,
        /// What the JSON parser said.
        why: String,
    },
}

/// Which socket of the Jupyter protocol a message belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Channel {
    /// Requests that are ordered and may run user code.
    Shell,
    /// Requests that overtake: interrupt, shutdown, debug.
    Control,
    /// Answers to `input_request`.
    Stdin,
    /// Outputs and status, kernel to everyone.
    Iopub,
}

impl Channel {
    /// The name of the channel on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Shell => "shell",
            Self::Control => "control",
            Self::Stdin => "stdin",
            Self::Iopub => "iopub",
        }
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        [Self::Shell, Self::Control, Self::Stdin, Self::Iopub]
            .into_iter()
            .find(|channel| channel.as_str().as_bytes() == bytes)
    }
}

/// The fields of a Jupyter header that Callboard reads. The header itself is passed on as bytes.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Header {
    /// Identity of the message.
    pub msg_id: String,
    /// What it is, such as `execute_request`.
    pub msg_type: String,
    /// The front-end's session.
    #[serde(default)]
    pub session: String,
}

/// A Jupyter message, its parts as they came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JupyterMessage {
    /// The channel it belongs to.
    pub channel: Channel,
    /// JSON: identity of the message.
    pub header: Bytes,
    /// JSON: header of the message it answers, or `{}`.
    pub parent_header: Bytes,
    /// JSON object.
    pub metadata: Bytes,
    /// JSON object.
    pub content: Bytes,
    /// Binary parts.
    pub buffers: Vec<Bytes>,
}

impl JupyterMessage {
    /// Parses the v1 framing without copying the parts.
    ///
    /// # Errors
    /// [`JupyterError::Framing`] if the offsets do not add up or the channel is unknown.
    pub fn decode(frame: &Bytes) -> Result<Self, JupyterError> {
        let word = |index: usize| -> Result<usize, JupyterError> {
            let bytes = frame
                .get(index * WORD..(index + 1) * WORD)
                .and_then(|bytes| <[u8; WORD]>::try_from(bytes).ok())
                .ok_or(JupyterError::Framing("it ends within its offsets"))?;
            usize::try_from(u64::from_le_bytes(bytes))
                .map_err(|_| JupyterError::Framing("an offset is too large"))
        };
        let offset_count = word(0)?;
        if !(FIXED_PARTS + 1..=FIXED_PARTS + 1 + BUFFERS_MAX).contains(&offset_count) {
            return Err(JupyterError::Framing("it has too few or too many parts"));
        }
        let offsets = (1..=offset_count).map(word).collect::<Result<Vec<_>, _>>()?;
        if offsets.first() != Some(&(WORD * (offset_count + 1)))
            || offsets.last() != Some(&frame.len())
            || !offsets.is_sorted()
        {
            return Err(JupyterError::Framing("its offsets do not match its length"));
        }
        let ranges: Vec<Range<usize>> = offsets.windows(2).map(|pair| pair[0]..pair[1]).collect();
        let part = |index: usize| frame.slice(ranges[index].clone());
        Ok(Self {
            channel: Channel::parse(&part(0))
                .ok_or(JupyterError::Framing("its channel is unknown"))?,
            header: part(1),
            parent_header: part(2),
            metadata: part(3),
            content: part(4),
            buffers: (FIXED_PARTS..ranges.len()).map(part).collect(),
        })
    }

    /// Writes the v1 framing.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let fixed: [&[u8]; FIXED_PARTS] = [
            self.channel.as_str().as_bytes(),
            &self.header,
            &self.parent_header,
            &self.metadata,
            &self.content,
        ];
        let parts = || fixed.iter().copied().chain(self.buffers.iter().map(AsRef::as_ref));
        let offset_count = parts().count() + 1;
        let mut offset = WORD * (offset_count + 1);
        let total = offset + parts().map(<[u8]>::len).sum::<usize>();
        let mut out = BytesMut::with_capacity(total);
        out.extend_from_slice(&(offset_count as u64).to_le_bytes());
        out.extend_from_slice(&(offset as u64).to_le_bytes());
        for part in parts() {
            offset += part.len();
            out.extend_from_slice(&(offset as u64).to_le_bytes());
        }
        for part in parts() {
            out.extend_from_slice(part);
        }
        out.freeze()
    }

    /// The fields of the header that matter here.
    ///
    /// # Errors
    /// [`JupyterError::Part`] if the header lacks `msg_id` or `msg_type` or is not JSON.
    pub fn parse_header(&self) -> Result<Header, JupyterError> {
        parse_part("header", &self.header)
    }

    /// The `msg_id` of the message this one answers, if there is one.
    #[must_use]
    pub fn parent_msg_id(&self) -> Option<String> {
        parse_part::<Header>("parent_header", &self.parent_header).ok().map(|header| header.msg_id)
    }

    /// Reads the content as `T`.
    ///
    /// # Errors
    /// [`JupyterError::Part`] if it is not of that shape.
    pub fn parse_content<'a, T: Deserialize<'a>>(&'a self) -> Result<T, JupyterError> {
        parse_part("content", &self.content)
    }
}

fn parse_part<'a, T: Deserialize<'a>>(
    part: &'static str,
    bytes: &'a [u8],
) -> Result<T, JupyterError> {
    serde_json::from_slice(bytes)
        .map_err(|error| JupyterError::Part { part, why: error.to_string() })
}
