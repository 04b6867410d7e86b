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

use super::directory::SessionConfig;

/// Longest JSON header; names and refusals of a namespace of a hundred thousand names fit.
const HEADER_LENGTH_MAX: usize = 16 << 20;
/// Longest buffer taken from the Python side.
const BUFFER_LENGTH_MAX: u64 = 8 << 30;

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
}

impl Captured {
    /// Bytes of everything that changed.
    #[must_use]
    pub fn length(&self) -> usize {
        self.upsert.iter().flat_map(|group| &group.parts).map(Bytes::len).sum()
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
    /// The pickle stream, then its out-of-band buffers.
    pub parts: Vec<Bytes>,
}

/// The state that was given is in place.
#[derive(Debug, Clone, Deserialize)]
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
    /// The pickle stream, then its out-of-band buffers.
    pub parts: Vec<Bytes>,
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
        Header::Captured { msg_id, upsert, removed, refused, execution_count } => {
            let upsert = distribute(upsert, buffers)?;
            FromPython::Captured(Captured { msg_id, upsert, removed, refused, execution_count })
        }
    })
}

fn distribute(headers: Vec<CapturedHeader>, buffers: Vec<Bytes>) -> io::Result<Vec<CapturedGroup>> {
    let mut buffers = buffers.into_iter();
    headers
        .into_iter()
        .map(|CapturedHeader { group, names, kind, parts }| {
            let taken: Vec<Bytes> = buffers.by_ref().take(parts).collect();
            if taken.len() == parts {
                Ok(CapturedGroup { group, names, kind, parts: taken })
            } else {
                Err(invalid(format!("group {group} lacks some of its {parts} parts")))
            }
        })
        .collect()
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
    let buffers: Vec<&Bytes> = groups.iter().flat_map(|group| &group.parts).collect();
    let json = serde_json::json!({
        "type": "restore",
        "groups": headers,
        "execution_count": execution_count,
        "buffers": buffers.iter().map(|buffer| buffer.len()).collect::<Vec<_>>(),
    });
    write(socket, &json, &buffers).await
}

/// Sets the limits of a capture.
pub(super) async fn write_configure(
    socket: &mut OwnedWriteHalf,
    capture_budget_ms: u64,
) -> io::Result<()> {
    let json = serde_json::json!({
        "type": "configure", "capture_budget_ms": capture_budget_ms, "exclude": [], "buffers": [],
    });
    write(socket, &json, &[]).await
}

/// Makes the process that of a kernel.
pub(super) async fn write_session(
    socket: &mut OwnedWriteHalf,
    session: &SessionConfig,
) -> io::Result<()> {
    let mut json = serde_json::to_value(session).map_err(|error| invalid(error.to_string()))?;
    json["type"] = "configure".into();
    json["buffers"] = serde_json::json!([]);
    write(socket, &json, &[]).await
}

async fn write(
    socket: &mut OwnedWriteHalf,
    header: &serde_json::Value,
    buffers: &[&Bytes],
) -> io::Result<()> {
    let json = serde_json::to_vec(header).map_err(|error| invalid(error.to_string()))?;
    let length = u32::try_from(json.len()).map_err(|error| invalid(error.to_string()))?;
    socket.write_all(&length.to_be_bytes()).await?;
    socket.write_all(&json).await?;
    for buffer in buffers {
        socket.write_all(buffer).await?;
    }
    socket.flush().await
}
