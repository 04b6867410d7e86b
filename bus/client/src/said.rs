//! Jupyter messages that Callboard says itself, in the kernel's name: what a front-end has to be
//! told when no process is there to say it.
//!
//! Ids follow from the kernel and the request, so that two gateways say the same message.

use std::time::SystemTime;

use bytes::Bytes;
use callboard_protocol::{
    KernelId,
    jupyter::{Channel, JupyterMessage, OwnHeader},
};
use serde_json::{Value, json};
use uuid::Uuid;

/// What an error of Callboard's own is called in a cell.
pub const ERROR_NAME: &str = "Callboard";

/// Says things about one request.
#[derive(Debug, Clone, Copy)]
pub struct Said<'a> {
    /// In whose name.
    pub kernel: KernelId,
    /// The header of the request; `{}` if none is meant.
    pub parent: &'a Bytes,
}

impl Said<'_> {
    /// `status`: `busy` or `idle`.
    #[must_use]
    pub fn status(&self, state: &str) -> JupyterMessage {
        self.message(Channel::Iopub, "status", state, &json!({ "execution_state": state }))
    }

    /// `clear_output`: what the cell showed so far is about to come again.
    #[must_use]
    pub fn clear_output(&self) -> JupyterMessage {
        self.message(Channel::Iopub, "clear_output", "", &json!({ "wait": false }))
    }

    /// `stream`: a line on the cell's standard error.
    #[must_use]
    pub fn notice(&self, text: &str) -> JupyterMessage {
        self.message(Channel::Iopub, "stream", text, &json!({ "name": "stderr", "text": text }))
    }

    /// `error`: why the cell ended, as its output.
    #[must_use]
    pub fn error(&self, why: &str) -> JupyterMessage {
        self.message(Channel::Iopub, "error", why, &error(why))
    }

    /// The reply that a request of `msg_type` failed.
    #[must_use]
    pub fn failed(&self, channel: Channel, msg_type: &str, why: &str) -> JupyterMessage {
        let mut content = error(why);
        content["status"] = "error".into();
        if msg_type == "execute_request" {
            content["user_expressions"] = json!({});
            content["payload"] = json!([]);
        }
        self.reply(channel, msg_type, &content)
    }

    /// The reply to a request of `msg_type`.
    #[must_use]
    pub fn reply(&self, channel: Channel, msg_type: &str, content: &Value) -> JupyterMessage {
        let stem = msg_type.strip_suffix("_request").unwrap_or(msg_type);
        self.message(channel, &format!("{stem}_reply"), "", content)
    }

    fn message(
        &self,
        channel: Channel,
        msg_type: &str,
        salt: &str,
        content: &Value,
    ) -> JupyterMessage {
        let name = [msg_type.as_bytes(), salt.as_bytes(), self.parent].join(&0);
        let header = OwnHeader {
            msg_id: &Uuid::new_v5(&self.kernel.0, &name).to_string(),
            msg_type,
            session: &self.kernel.to_string(),
            at: SystemTime::now(),
        };
        let message = JupyterMessage::own(channel, header, content);
        JupyterMessage { parent_header: self.parent.clone(), ..message }
    }
}

fn error(why: &str) -> Value {
    json!({ "ename": ERROR_NAME, "evalue": why, "traceback": [format!("{ERROR_NAME}: {why}")] })
}
