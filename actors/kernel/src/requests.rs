//! What a message on a kernel's subject asks for.

use callboard_policy::terms::Request;
use callboard_protocol::{
    Fault, FaultCode, Seq,
    jupyter::{Channel, JupyterMessage},
    kernel::Level,
};
use callboard_transport::{Message, typed};
use serde::Deserialize;

use crate::replica::{VERB_OFFER, VERB_SLEEP};

/// Largest request that is put in the log. With its envelope it stays under the broker's limit.
pub(crate) const REQUEST_LENGTH_MAX: usize = 512 << 10;

/// What a message on a kernel's subject asks for.
#[derive(Debug)]
pub(crate) enum Asked {
    /// A request that may run user code: ordered by the log.
    Cell(Request),
    /// A request that runs none: passed to the Python process at once.
    Direct(JupyterMessage),
    /// Interrupt what runs.
    Interrupt(JupyterMessage),
    /// Outputs since a cursor; JSON.
    Outputs,
    /// The kernel's status.
    Show,
    /// How far a front-end's session is, or was; JSON.
    Seen,
    /// What became of a request; JSON.
    Fate,
    /// A verb of the kernel's history; JSON.
    Undo,
    /// A piece of a chunk of the kernel's state; JSON.
    GetChunk,
    /// A piece of a chunk that the kernel is to begin with; JSON.
    PutChunk,
    /// Whether the kernel's group has a leader and a majority.
    Alive,
    /// The leader of one of the kernel's groups says which generation it is of; JSON.
    Generation(u64),
}

#[derive(Debug, Default, Deserialize)]
struct Metadata {
    #[serde(default)]
    callboard: Wishes,
}

/// What a front-end may say under `callboard` in a request's metadata.
#[derive(Debug, Default, Deserialize)]
struct Wishes {
    #[serde(default)]
    level: Level,
    #[serde(default)]
    horizon: Option<Seq>,
}

/// Whether a message asks only how the kernel is.
pub(crate) fn is_show(message: &Message) -> bool {
    message.subject.last() == "show"
}

/// Whether a message says or asks how far a front-end's session is.
pub(crate) fn is_seen(message: &Message) -> bool {
    message.subject.last() == "seen"
}

/// Whether a message only says which generation of the kernel's group lives.
pub(crate) fn is_generation(message: &Message) -> bool {
    message.subject.last() == "generation"
}

/// Whether a message on a replica's subject is about falling asleep: late when it reaches one that
/// sleeps.
pub(crate) fn is_about_sleep(message: &Message) -> bool {
    matches!(message.subject.last(), VERB_OFFER | VERB_SLEEP)
}

/// Reads a message on a kernel's subject.
///
/// # Errors
/// A [`Fault`] in a sentence if it is malformed, too large, or of an unknown verb.
pub(crate) fn parse(message: &Message) -> Result<Asked, Fault> {
    let channel = match message.subject.last() {
        "shell" => Channel::Shell,
        "control" => Channel::Control,
        "stdin" => Channel::Stdin,
        "outputs" => return Ok(Asked::Outputs),
        "show" => return Ok(Asked::Show),
        "seen" => return Ok(Asked::Seen),
        "fate" => return Ok(Asked::Fate),
        "log" | "checkpoint" | "rewind" | "restart" | "manifest" | "seed" => {
            return Ok(Asked::Undo);
        }
        "chunk" => return Ok(Asked::GetChunk),
        "put_chunk" => return Ok(Asked::PutChunk),
        "alive" => return Ok(Asked::Alive),
        "generation" => return typed::decode(message).map(Asked::Generation),
        verb => {
            return Err(Fault::new(
                FaultCode::BadRequest,
                format!(
                    "a kernel has no verb '{verb}': use shell, control, stdin, outputs, show, \
                     log, checkpoint, rewind, restart or manifest"
                ),
            ));
        }
    };
    let bad = |why: String| Fault::new(FaultCode::BadRequest, why);
    let jupyter = JupyterMessage::decode(&message.payload).map_err(|why| bad(why.to_string()))?;
    let header = jupyter.parse_header().map_err(|why| bad(why.to_string()))?;
    if jupyter.channel != channel {
        return Err(bad(format!(
            "a message of channel '{}' on the subject of '{}': send it to its own subject",
            jupyter.channel.as_str(),
            channel.as_str()
        )));
    }
    match (channel, header.msg_type.as_str()) {
        (Channel::Control, "interrupt_request") => Ok(Asked::Interrupt(jupyter)),
        (Channel::Control, "shutdown_request") => Err(bad(
            "a kernel on the bus is stopped with the control verb stop_kernel, not with a \
             shutdown_request: its replicas would only start again"
                .to_owned(),
        )),
        (Channel::Shell, "execute_request" | "comm_open" | "comm_msg" | "comm_close") => {
            cell(message, &jupyter, header.msg_id).map(Asked::Cell)
        }
        _ => Ok(Asked::Direct(jupyter)),
    }
}

fn cell(message: &Message, jupyter: &JupyterMessage, msg_id: String) -> Result<Request, Fault> {
    if message.payload.len() > REQUEST_LENGTH_MAX {
        return Err(Fault::new(
            FaultCode::TooLarge,
            format!(
                "a request of {} bytes is over the limit of {REQUEST_LENGTH_MAX} bytes: load large \
                 data from a file or an object store inside the cell",
                message.payload.len()
            ),
        ));
    }
    if msg_id.is_empty() || msg_id.len() > 256 {
        return Err(Fault::new(
            FaultCode::BadRequest,
            "a Jupyter msg_id has 1 to 256 characters: use a UUID",
        ));
    }
    let metadata: Metadata = if jupyter.metadata.is_empty() {
        Metadata::default()
    } else {
        serde_json::from_slice(&jupyter.metadata).map_err(|why| {
            Fault::new(
                FaultCode::BadRequest,
                format!("malformed Jupyter message: its metadata is not valid: {why}"),
            )
        })?
    };
    if jupyter.parse_content::<serde::de::IgnoredAny>().is_err() {
        return Err(Fault::new(
            FaultCode::BadRequest,
            "malformed Jupyter message: its content is not JSON",
        ));
    }
    let mut hasher = blake3::Hasher::new();
    hasher.update(&jupyter.content);
    for buffer in &jupyter.buffers {
        hasher.update(&(buffer.len() as u64).to_le_bytes());
        hasher.update(buffer);
    }
    Ok(Request {
        msg_id,
        hash: *hasher.finalize().as_bytes(),
        level: metadata.callboard.level,
        frame: message.payload.clone(),
        horizon: metadata.callboard.horizon,
    })
}
