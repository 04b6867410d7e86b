//! The Unix socket on which the Python side hands over what changed.
//!
//! A frame is a big-endian `u32` length, that many bytes of JSON, then the raw buffers whose
//! lengths the JSON lists under `buffers`.

use std::io;

use bytes::Bytes;
use callboard_protocol::kernel::Refused;
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, BufReader},
    net::unix::{OwnedReadHalf, OwnedWriteHalf},
};

use super::{directory::SessionConfig, isolation::SessionUser};

/// Longest JSON header; names and refusals of a namespace of a hundred thousand names fit.
const HEADER_LENGTH_MAX: usize = 16 << 20;
/// Longest buffer taken from the Python side; its own limit, in the configuration, comes first.
const BUFFER_LENGTH_MAX: u64 = 64 << 30;
/// The protocol that this node speaks; 1 knew no patches.
pub(super) const PROTOCOL_VERSION: u32 = 2;

/// The Python process introduces itself.
#[derive(Debug, Clone, Deserialize)]
pub struct Hello {
    /// Version of this socket's protocol.
    pub protocol: u32,
    /// Its process id.
    pub pid: i32,
    /// Version of the interpreter.
    pub python: String,
}

/// A captured group of names; its bytes follow the header.
#[derive(Debug, Clone, Deserialize)]
struct CapturedHeader {
    group: String,
    names: Vec<String>,
    kind: String,
    parts: usize,
    /// Which capture this is; later patches refer to it.
    #[serde(default)]
    version: Option<u64>,
    /// The version that the patches are for.
    #[serde(default)]
    base: Option<u64>,
    /// Parts whose buffer holds the chunks that changed, one behind the other.
    #[serde(default)]
    patches: Vec<PatchHeader>,
}

#[derive(Debug, Clone, Deserialize)]
struct PatchHeader {
    part: usize,
    length: u64,
    chunk: u32,
    changed: Vec<u32>,
}

/// What one request changed.
#[derive(Debug, Default)]
pub struct Captured {
    /// The request.
    pub msg_id: String,
    /// Groups that are new or changed.
    pub upsert: Vec<CapturedGroup>,
    /// Groups that are gone.
    pub removed: Vec<String>,
    /// Every name that cannot be carried.
    pub refused: Vec<Refused>,
    /// The kernel's execution count.
    pub execution_count: u64,
    /// The state that the cell asked to go back to, if it did.
    pub rewind: Option<String>,
    /// Whether front-ends know already that the request is over, so that no `idle` follows.
    pub is_told: bool,
}

impl Captured {
    /// Bytes of everything that changed.
    #[must_use]
    pub fn length(&self) -> usize {
        self.upsert.iter().flat_map(|group| &group.parts).map(|part| part.bytes().len()).sum()
    }
}

/// A group of names that share references, with its bytes.
#[derive(Debug)]
pub struct CapturedGroup {
    /// Its id.
    pub group: String,
    /// Its names.
    pub names: Vec<String>,
    /// What sort of state it is.
    pub kind: String,
    /// Which capture this is; later patches refer to it.
    pub version: Option<u64>,
    /// The version that its patches are for.
    pub base: Option<u64>,
    /// The pickle stream, then its out-of-band buffers.
    pub parts: Vec<CapturedPart>,
}

impl CapturedGroup {
    /// Its first part, if that came whole.
    pub(crate) fn first_whole(&self) -> Option<&Bytes> {
        match self.parts.first()? {
            CapturedPart::Whole(bytes) => Some(bytes),
            CapturedPart::Patch(_) => None,
        }
    }
}

/// A part, whole or as what changed.
#[derive(Debug)]
pub enum CapturedPart {
    /// All of it.
    Whole(Bytes),
    /// What changed since the group's base.
    Patch(PartPatch),
}

impl CapturedPart {
    /// What was sent of it.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        match self {
            Self::Whole(bytes) => bytes,
            Self::Patch(patch) => &patch.bytes,
        }
    }
}

/// The chunks of a part that may have changed; the rest is as in the group's base.
#[derive(Debug)]
pub struct PartPatch {
    /// Bytes of the whole part, as before.
    pub length: u64,
    /// Bytes of each of its chunks but the last.
    pub chunk: u32,
    /// Places of the chunks that may have changed; none if the part is as it was.
    pub changed: Vec<u32>,
    /// Their bytes, one behind the other.
    pub bytes: Bytes,
}

/// The state that was given is in place.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Restored {
    /// Names that could not be rebuilt, and why.
    #[serde(default)]
    pub failed: Vec<Refused>,
}

/// A group to restore.
#[derive(Debug, Clone)]
pub struct RestoreGroup {
    /// Its id.
    pub group: String,
    /// Its names.
    pub names: Vec<String>,
    /// What sort of state it is.
    pub kind: String,
    /// The pickle stream, then its out-of-band buffers, each in pieces.
    pub parts: Vec<Vec<Bytes>>,
}

impl RestoreGroup {
    /// The first piece of its first part: all of it, unless it is large.
    pub(crate) fn first_piece(&self) -> Option<&Bytes> {
        self.parts.first()?.first()
    }
}

#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Header {
    Hello(Hello),
    Captured {
        msg_id: String,
        #[serde(default)]
        upsert: Vec<CapturedHeader>,
        #[serde(default)]
        removed: Vec<String>,
        #[serde(default)]
        refused: Vec<Refused>,
        #[serde(default)]
        execution_count: u64,
        #[serde(default)]
        rewind: Option<String>,
        #[serde(default)]
        is_told: bool,
    },
    Saving {
        msg_id: String,
    },
    Restored(Restored),
    Error {
        message: String,
    },
}

#[derive(Debug, Deserialize)]
struct Lengths {
    #[serde(default)]
    buffers: Vec<u64>,
}

/// A message from the Python side.
#[derive(Debug)]
pub(super) enum FromPython {
    Hello(Hello),
    Captured(Captured),
    Saving { msg_id: String },
    Restored(Restored),
    Error { message: String },
}

fn invalid(why: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.into())
}

/// Reads one message.
pub(super) async fn read(socket: &mut BufReader<OwnedReadHalf>) -> io::Result<FromPython> {
    let length = socket.read_u32().await? as usize;
    if length > HEADER_LENGTH_MAX {
        return Err(invalid(format!("a header of {length} bytes from the Python side")));
    }
    let mut json = vec![0; length];
    socket.read_exact(&mut json).await?;
    let lengths: Lengths = serde_json::from_slice(&json).map_err(|e| invalid(e.to_string()))?;
    let mut buffers = Vec::with_capacity(lengths.buffers.len());
    for length in lengths.buffers {
        if length > BUFFER_LENGTH_MAX {
            return Err(invalid(format!("a buffer of {length} bytes from the Python side")));
        }
        let mut buffer = vec![0; usize::try_from(length).map_err(|e| invalid(e.to_string()))?];
        socket.read_exact(&mut buffer).await?;
        buffers.push(Bytes::from(buffer));
    }
    let header = serde_json::from_slice(&json).map_err(|error| invalid(error.to_string()))?;
    Ok(match header {
        Header::Hello(hello) => FromPython::Hello(hello),
        Header::Saving { msg_id } => FromPython::Saving { msg_id },
        Header::Restored(restored) => FromPython::Restored(restored),
        Header::Error { message } => FromPython::Error { message },
        Header::Captured { msg_id, upsert, removed, refused, execution_count, rewind, is_told } => {
            let upsert = distribute(upsert, buffers)?;
            FromPython::Captured(Captured {
                msg_id,
                upsert,
                removed,
                refused,
                execution_count,
                rewind,
                is_told,
            })
        }
    })
}

fn distribute(headers: Vec<CapturedHeader>, buffers: Vec<Bytes>) -> io::Result<Vec<CapturedGroup>> {
    let mut buffers = buffers.into_iter();
    headers.into_iter().map(|header| captured_group(header, &mut buffers)).collect()
}

fn captured_group(
    header: CapturedHeader,
    buffers: &mut impl Iterator<Item = Bytes>,
) -> io::Result<CapturedGroup> {
    let CapturedHeader { group, names, kind, parts: count, version, base, patches } = header;
    let mut parts: Vec<CapturedPart> = buffers.take(count).map(CapturedPart::Whole).collect();
    if parts.len() != count {
        return Err(invalid(format!("group {group} lacks some of its {count} parts")));
    }
    for PatchHeader { part, length, chunk, changed } in patches {
        let place = parts.get_mut(part);
        let place = place.ok_or_else(|| invalid(format!("group {group} has no part {part}")))?;
        let bytes = place.bytes().clone();
        *place = CapturedPart::Patch(PartPatch { length, chunk, changed, bytes });
    }
    Ok(CapturedGroup { group, names, kind, version, base, parts })
}

#[derive(Serialize)]
struct RestoreGroupHeader<'a> {
    group: &'a str,
    names: &'a [String],
    kind: &'a str,
    parts: usize,
}

/// Gives the Python side the whole state.
pub(super) async fn write_restore(
    socket: &mut OwnedWriteHalf,
    groups: &[RestoreGroup],
    execution_count: u64,
) -> io::Result<()> {
    let headers: Vec<_> = groups
        .iter()
        .map(|group| RestoreGroupHeader {
            group: &group.group,
            names: &group.names,
            kind: &group.kind,
            parts: group.parts.len(),
        })
        .collect();
    let parts = || groups.iter().flat_map(|group| &group.parts);
    let pieces: Vec<&Bytes> = parts().flatten().collect();
    let length = |part: &Vec<Bytes>| part.iter().map(Bytes::len).sum::<usize>();
    let json = serde_json::json!({
        "type": "restore",
        "groups": headers,
        "execution_count": execution_count,
        "buffers": parts().map(length).collect::<Vec<_>>(),
    });
    write(socket, &json, &pieces).await
}

/// Sets the limits of a capture.
pub(super) async fn write_configure(
    socket: &mut OwnedWriteHalf,
    capture_budget_ms: u64,
    state_bytes_max: u64,
) -> io::Result<()> {
    let json = serde_json::json!({
        "type": "configure", "capture_budget_ms": capture_budget_ms,
        "state_bytes_max": state_bytes_max, "exclude": [], "buffers": [],
    });
    write(socket, &json, &[]).await
}

/// Makes the process that of a kernel.
pub(super) async fn write_session(
    socket: &mut OwnedWriteHalf,
    session: &SessionConfig,
    user: Option<&SessionUser>,
) -> io::Result<()> {
    let mut json = serde_json::to_value(session).map_err(|error| invalid(error.to_string()))?;
    json["type"] = "configure".into();
    json["user"] = serde_json::to_value(user).map_err(|error| invalid(error.to_string()))?;
    json["buffers"] = serde_json::json!([]);
    write(socket, &json, &[]).await
}

async fn write(
    socket: &mut OwnedWriteHalf,
    header: &serde_json::Value,
    pieces: &[&Bytes],
) -> io::Result<()> {
    let json = serde_json::to_vec(header).map_err(|error| invalid(error.to_string()))?;
    let length = u32::try_from(json.len()).map_err(|error| invalid(error.to_string()))?;
    socket.write_all(&length.to_be_bytes()).await?;
    socket.write_all(&json).await?;
    for piece in pieces {
        socket.write_all(piece).await?;
    }
    socket.flush().await
}
