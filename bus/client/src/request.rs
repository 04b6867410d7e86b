//! Jupyter requests, complete: header, metadata and content as a kernel expects them.

use std::time::SystemTime;

use callboard_protocol::{
    jupyter::{Channel, JupyterMessage, OwnHeader},
    kernel::Level,
};
use serde_json::{Value, json};

/// A message that asks a kernel to run `code`.
#[must_use]
pub fn execute_request(code: &str, msg_id: &str, session: &str, level: Level) -> JupyterMessage {
    let content = json!({
        "code": code,
        "silent": false,
        "store_history": true,
        "user_expressions": {},
        "allow_stdin": false,
        "stop_on_error": true,
    });
    let metadata = json!({ "callboard": { "level": level } });
    let message = own(Channel::Shell, "execute_request", msg_id, session, &content);
    JupyterMessage { metadata: metadata.to_string().into(), ..message }
}

/// A message on the control channel, such as `interrupt_request`.
#[must_use]
pub fn control_request(msg_type: &str, msg_id: &str, session: &str) -> JupyterMessage {
    own(Channel::Control, msg_type, msg_id, session, &json!({}))
}

fn own(
    channel: Channel,
    msg_type: &str,
    msg_id: &str,
    session: &str,
    content: &Value,
) -> JupyterMessage {
    let header = OwnHeader { msg_id, msg_type, session, at: SystemTime::now() };
    JupyterMessage::own(channel, header, content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_execute_request_has_every_field_of_the_protocol() {
        let request = execute_request("x = 1", "id-1", "session-1", Level::Received);
        let request = JupyterMessage::decode(&request.encode()).unwrap();
        let header: Value = serde_json::from_slice(&request.header).unwrap();
        for field in ["msg_id", "msg_type", "session", "username", "date", "version"] {
            assert!(header[field].is_string(), "{field} is missing in {header}");
        }
        assert_eq!(header["version"], "5.4");
        let metadata: Value = serde_json::from_slice(&request.metadata).unwrap();
        assert_eq!(metadata["callboard"]["level"], "received");
        let content: Value = request.parse_content().unwrap();
        assert_eq!(
            (content["code"].as_str(), content["silent"].as_bool()),
            (Some("x = 1"), Some(false))
        );
    }
}
