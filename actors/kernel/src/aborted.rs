//! Cells that wait behind one that raised are not run.
//!
//! A front-end that runs a whole notebook sends all cells at once and expects the kernel to stop at
//! the first error (`stop_on_error` of `execute_request`, true unless said otherwise; source:
//! Jupyter messaging specification). A stock kernel aborts what is in its queue; here the queue is
//! the log, so the executor ends the waiting cells with an `aborted` reply.

use callboard_policy::terms::KernelLog;
use callboard_protocol::{
    KernelId,
    jupyter::{Channel, JupyterMessage},
};
use serde::Deserialize;
use serde_json::json;

use crate::{python::Captured, said};

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
    let message = |channel, msg_type, content| JupyterMessage {
        parent_header: request.header.clone(),
        ..said::message(kernel, channel, msg_type, &content)
    };
    [
        message(Channel::Shell, "execute_reply", json!({ "status": "aborted" })),
        message(Channel::Iopub, "status", json!({ "execution_state": "idle" })),
    ]
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
        is_told: false,
    }
}
