//! Jupyter messages on ZeroMQ: `identities… <IDS|MSG> signature header parent metadata content
//! buffers…`, signed with HMAC-SHA256. Source: Jupyter messaging specification, "The wire protocol".

use bytes::Bytes;
use callboard_protocol::jupyter::{Channel, JupyterMessage};
use hmac::{Hmac, Mac};
use sha2::Sha256;
use zeromq::ZmqMessage;

const DELIMITER: &[u8] = b"<IDS|MSG>";
const JSON_PARTS: usize = 4;

/// The key that signs the messages of one Python process.
#[derive(Clone)]
pub(super) struct SigningKey(String);

impl SigningKey {
    pub(super) fn generate() -> Self {
        Self(uuid::Uuid::new_v4().simple().to_string())
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    fn mac(&self, parts: &[&Bytes]) -> Option<Hmac<Sha256>> {
        let mut mac = Hmac::<Sha256>::new_from_slice(self.0.as_bytes()).ok()?;
        for part in parts {
            mac.update(part);
        }
        Some(mac)
    }

    /// The message in ZeroMQ frames, signed.
    pub(super) fn encode(&self, message: &JupyterMessage) -> ZmqMessage {
        let parts = [&message.header, &message.parent_header, &message.metadata, &message.content];
        let signature = self
            .mac(&parts)
            .map(|mac| hex::encode(mac.finalize().into_bytes()))
            .unwrap_or_default();
        let mut out = ZmqMessage::from(Bytes::from_static(DELIMITER));
        out.push_back(Bytes::from(signature));
        for part in parts {
            out.push_back(part.clone());
        }
        for buffer in &message.buffers {
            out.push_back(buffer.clone());
        }
        out
    }

    /// The message in ZeroMQ frames; `None` if it is malformed or its signature is wrong.
    pub(super) fn decode(&self, channel: Channel, message: ZmqMessage) -> Option<JupyterMessage> {
        let frames = message.into_vec();
        let start = frames.iter().position(|frame| frame.as_ref() == DELIMITER)? + 1;
        let (signature, rest) = frames.get(start..)?.split_first()?;
        let (json, buffers) = rest.split_at_checked(JSON_PARTS)?;
        let [header, parent_header, metadata, content] = json else { return None };
        let claimed = hex::decode(signature).ok()?;
        self.mac(&[header, parent_header, metadata, content])?.verify_slice(&claimed).ok()?;
        Some(JupyterMessage {
            channel,
            header: header.clone(),
            parent_header: parent_header.clone(),
            metadata: metadata.clone(),
            content: content.clone(),
            buffers: buffers.to_vec(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message() -> JupyterMessage {
        JupyterMessage {
            channel: Channel::Shell,
            header: Bytes::from_static(br#"{"msg_id":"1","msg_type":"execute_request"}"#),
            parent_header: Bytes::from_static(b"{}"),
            metadata: Bytes::from_static(b"{}"),
            content: Bytes::from_static(br#"{"code":"x"}"#),
            buffers: vec![Bytes::from_static(b"\x00\x01")],
        }
    }

    #[test]
    fn parts_survive_the_wire_untouched() {
        let key = SigningKey::generate();
        assert_eq!(key.decode(Channel::Shell, key.encode(&message())), Some(message()));
    }

    #[test]
    fn a_message_signed_with_another_key_is_refused() {
        let frames = SigningKey::generate().encode(&message());
        assert_eq!(SigningKey::generate().decode(Channel::Shell, frames), None);
    }
}
