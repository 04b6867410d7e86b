//! What a node says in the name of a kernel, where no process of the kernel says it.

use std::time::SystemTime;

use bytes::Bytes;
use callboard_protocol::{
    KernelId,
    jupyter::{Channel, JupyterMessage, OwnHeader},
};
use serde_json::{Value, json};
use uuid::Uuid;

/// A message with an id of its own, said now.
pub(crate) fn message(
    kernel: KernelId,
    channel: Channel,
    msg_type: &str,
    content: &Value,
) -> JupyterMessage {
    let header = OwnHeader {
        msg_id: &Uuid::new_v4().to_string(),
        msg_type,
        session: &kernel.to_string(),
        at: SystemTime::now(),
    };
    JupyterMessage::own(channel, header, content)
}

/// A status of the kernel that no request caused.
pub(crate) fn status(kernel: KernelId, state: &str) -> JupyterMessage {
    message(kernel, Channel::Iopub, "status", &json!({ "execution_state": state }))
}

/// A text that the cell whose request has the header `parent` shows on `stream`.
pub(crate) fn stream(kernel: KernelId, parent: Bytes, stream: &str, text: &str) -> JupyterMessage {
    let content = json!({ "name": stream, "text": text });
    let message = message(kernel, Channel::Iopub, "stream", &content);
    JupyterMessage { parent_header: parent, ..message }
}

/// A text that the cell `msg_id` shows on its standard error, though it did not write it.
pub(crate) fn warning(kernel: KernelId, msg_id: &str, text: &str) -> JupyterMessage {
    let parent = json!({ "msg_id": msg_id, "msg_type": "execute_request" });
    stream(kernel, parent.to_string().into(), "stderr", text)
}
