//! Cells that wait behind one that raised are not run.
//!
//! A front-end that runs a whole notebook sends all cells at once and expects the kernel to stop at
//! the first error (`stop_on_error` of `execute_request`, true unless said otherwise; source:
//! Jupyter messaging specification). A stock kernel aborts what is in its queue; here the queue is
//! the log, so the executor ends the waiting cells with an `aborted` reply.

use bytes::Bytes;
use callboard_policy::terms::KernelLog;
use callboard_protocol::{
    KernelId,
    jupyter::{Channel, JupyterMessage},
};
use serde::Deserialize;

use crate::python::Captured;

#[derive(Deserialize)]
struct Wish {
    #[serde(default = "yes")]
    stop_on_error: bool,
}

#[derive(Deserialize)]
struct Status {
    status: String,
}

fn yes() -> bool {
    true
}

/// Whether the cells behind `request` are to be aborted if it raises.
pub(crate) fn stops_on_error(request: &JupyterMessage) -> bool {
    request.parse_content::<Wish>().is_ok_and(|wish| wish.stop_on_error)
}

/// Whether a reply says that its cell raised.
pub(crate) fn has_raised(reply: &JupyterMessage) -> bool {
    reply.parse_content::<Status>().is_ok_and(|content| content.status == "error")
}

/// The reply to a cell that is not run, and the `idle` status that ends it.
pub(crate) fn aborted(kernel: KernelId, request: &JupyterMessage) -> [JupyterMessage; 2] {
    let message = |channel, msg_type: &str, content: serde_json::Value| {
        let header = serde_json::json!({
            "msg_id": uuid::Uuid::new_v4(), "msg_type": msg_type, "session": kernel,
            "username": "callboard", "version": "5.4", "date": null,
        });
        JupyterMessage {
            channel,
            header: Bytes::from(header.to_string()),
            parent_header: request.header.clone(),
            metadata: Bytes::from_static(b"{}"),
            content: Bytes::from(content.to_string()),
            buffers: Vec::new(),
        }
    };
    [
        message(Channel::Shell, "execute_reply", serde_json::json!({ "status": "aborted" })),
        message(Channel::Iopub, "status", serde_json::json!({ "execution_state": "idle" })),
    ]
}

/// A status of the kernel that no request caused.
pub(crate) fn status(kernel: KernelId, state: &str) -> JupyterMessage {
    let header = serde_json::json!({
        "msg_id": uuid::Uuid::new_v4(), "msg_type": "status", "session": kernel,
        "username": "callboard", "version": "5.4", "date": null,
    });
    let content = serde_json::json!({ "execution_state": state });
    JupyterMessage {
        channel: Channel::Iopub,
        header: Bytes::from(header.to_string()),
        parent_header: Bytes::from_static(b"{}"),
        metadata: Bytes::from_static(b"{}"),
        content: Bytes::from(content.to_string()),
        buffers: Vec::new(),
    }
}

/// A line that a cell shows on its standard error, though it did not write it.
pub(crate) fn said(kernel: KernelId, msg_id: &str, text: &str) -> JupyterMessage {
    let header = serde_json::json!({
        "msg_id": uuid::Uuid::new_v4(), "msg_type": "stream", "session": kernel,
        "username": "callboard", "version": "5.4", "date": null,
    });
    let parent = serde_json::json!({ "msg_id": msg_id, "msg_type": "execute_request" });
    let content = serde_json::json!({ "name": "stderr", "text": text });
    JupyterMessage {
        channel: Channel::Iopub,
        header: Bytes::from(header.to_string()),
        parent_header: Bytes::from(parent.to_string()),
        metadata: Bytes::from_static(b"{}"),
        content: Bytes::from(content.to_string()),
        buffers: Vec::new(),
    }
}

/// What a cell that is not run changes: nothing.
pub(crate) fn nothing_changed(log: &KernelLog, msg_id: String) -> Captured {
    Captured {
        msg_id,
        upsert: Vec::new(),
        removed: Vec::new(),
        refused: log.refused().to_vec(),
        execution_count: log.execution_count(),
        rewind: None,
    }
}
