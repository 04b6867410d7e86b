//! Jupyter messages on ZeroMQ: `identities… <IDS|MSG> signature header parent metadata content
//! buffers…`, signed with HMAC-SHA256. Source: Jupyter messaging specification, "The wire protocol".

use std::fmt;

use bytes::Bytes;
use hmac::{Hmac, Mac};
use sha2::Sha256;

use crate::jupyter::{BUFFERS_MAX, Channel, JupyterMessage};

const DELIMITER: &[u8] = b"<IDS|MSG>";
const JSON_PARTS: usize = 4;

/// Why ZeroMQ frames are not a Jupyter message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The frames do not add up.
    #[error("malformed Jupyter message on ZeroMQ: {0}")]
    Framing(&'static str),
    /// It was signed with another key, or changed on its way.
    #[error(
        "a Jupyter message on ZeroMQ has a wrong signature: does the sender have the same connection file?"
    )]
    Signature,
}

/// The key that signs the messages of one connection file. With an empty one nothing is signed.
#[derive(Clone, PartialEq, Eq)]
pub struct SigningKey(String);

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningKey(…)")
    }
}

impl SigningKey {
    /// The `key` of a connection file.
    #[must_use]
    pub fn new(key: String) -> Self {
        Self(key)
    }

    /// A fresh key.
    #[must_use]
    pub fn generate() -> Self {
        Self(uuid::Uuid::new_v4().simple().to_string())
    }

    /// The key as a connection file has it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Nothing if messages are not signed.
    fn mac(&self, parts: [&Bytes; JSON_PARTS]) -> Option<Hmac<Sha256>> {
        if self.0.is_empty() {
            return None;
        }
        // HMAC takes keys of any length.
        let mut mac = Hmac::<Sha256>::new_from_slice(self.0.as_bytes()).ok()?;
        parts.into_iter().for_each(|part| mac.update(part));
        Some(mac)
    }

    /// The message in ZeroMQ frames behind `identities`, signed.
    #[must_use]
    pub fn encode(
        &self,
        identities: impl IntoIterator<Item = Bytes>,
        message: &JupyterMessage,
    ) -> Vec<Bytes> {
        let parts = [&message.header, &message.parent_header, &message.metadata, &message.content];
        let signature = self.mac(parts).map(|mac| hex::encode(mac.finalize().into_bytes()));
        let mut frames: Vec<Bytes> = identities.into_iter().collect();
        frames.push(Bytes::from_static(DELIMITER));
        frames.push(Bytes::from(signature.unwrap_or_default()));
        frames.extend(parts.into_iter().chain(&message.buffers).cloned());
        frames
    }

    /// The message in ZeroMQ frames, and the identities before it. Signatures are compared in
    /// constant time.
    ///
    /// # Errors
    /// [`WireError`] if it is malformed or its signature is wrong.
    pub fn decode(
        &self,
        channel: Channel,
        mut frames: Vec<Bytes>,
    ) -> Result<(Vec<Bytes>, JupyterMessage), WireError> {
        let delimiter = frames.iter().position(|frame| frame == DELIMITER);
        let start = delimiter.ok_or(WireError::Framing("it lacks the delimiter <IDS|MSG>"))?;
        let rest = frames.split_off(start + 1);
        frames.truncate(start);
        let [signature, header, parent_header, metadata, content, buffers @ ..] = rest.as_slice()
        else {
            return Err(WireError::Framing("it has too few parts"));
        };
        if buffers.len() > BUFFERS_MAX {
            return Err(WireError::Framing("it has too many buffers"));
        }
        if let Some(mac) = self.mac([header, parent_header, metadata, content]) {
            let claimed = hex::decode(signature).map_err(|_| WireError::Signature)?;
            mac.verify_slice(&claimed).map_err(|_| WireError::Signature)?;
        }
        let message = JupyterMessage {
            channel,
            header: header.clone(),
            parent_header: parent_header.clone(),
            metadata: metadata.clone(),
            content: content.clone(),
            buffers: buffers.to_vec(),
        };
        Ok((frames, message))
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn bytes(max: usize) -> impl Strategy<Value = Bytes> {
        vec(any::<u8>(), 0..max).prop_map(Bytes::from)
    }

    fn messages() -> impl Strategy<Value = JupyterMessage> {
        (vec(bytes(40), JSON_PARTS), vec(bytes(40), 0..4)).prop_map(|(json, buffers)| {
            JupyterMessage {
                channel: Channel::Shell,
                header: json[0].clone(),
                parent_header: json[1].clone(),
                metadata: json[2].clone(),
                content: json[3].clone(),
                buffers,
            }
        })
    }

    fn identities() -> impl Strategy<Value = Vec<Bytes>> {
        let is_identity = |frame: &Bytes| frame != DELIMITER;
        vec(bytes(20).prop_filter("an identity", is_identity), 0..3)
    }

    proptest! {
        #[test]
        fn parts_and_identities_survive_the_wire_untouched(
            key in ".{0,80}", identities in identities(), message in messages(),
        ) {
            let key = SigningKey::new(key);
            let frames = key.encode(identities.clone(), &message);
            prop_assert_eq!(key.decode(Channel::Shell, frames), Ok((identities, message)));
        }

        #[test]
        fn a_change_of_any_signed_part_or_of_the_signature_is_noticed(
            identities in identities(), message in messages(),
            part in 0..=JSON_PARTS, at in any::<prop::sample::Index>(), flip in 1..=u8::MAX,
        ) {
            let key = SigningKey::generate();
            let mut frames = key.encode(identities.clone(), &message);
            let frame = &mut frames[identities.len() + 1 + part];
            let mut changed = frame.to_vec();
            if changed.is_empty() {
                changed.push(flip);
            } else {
                let at = at.index(changed.len());
                // Hexadecimal digits are the same in upper case.
                prop_assume!(part > 0 || flip != 0x20);
                changed[at] ^= flip;
            }
            *frame = Bytes::from(changed);
            prop_assert_eq!(key.decode(Channel::Shell, frames), Err(WireError::Signature));
        }

        #[test]
        fn no_frames_make_the_parser_fail_in_another_way(frames in vec(bytes(12), 0..10)) {
            let unsigned = SigningKey::new(String::new());
            let _ = unsigned.decode(Channel::Shell, frames.clone());
            prop_assert!(SigningKey::generate().decode(Channel::Shell, frames).is_err());
        }
    }

    #[test]
    fn a_message_signed_with_another_key_or_with_none_is_refused() {
        let message = JupyterMessage {
            channel: Channel::Shell,
            header: Bytes::from_static(br#"{"msg_id":"1","msg_type":"execute_request"}"#),
            parent_header: Bytes::from_static(b"{}"),
            metadata: Bytes::from_static(b"{}"),
            content: Bytes::from_static(br#"{"code":"x"}"#),
            buffers: vec![Bytes::from_static(b"\x00\x01")],
        };
        for other in [SigningKey::generate(), SigningKey::new(String::new())] {
            let frames = other.encode([], &message);
            let decoded = SigningKey::generate().decode(Channel::Shell, frames);
            assert_eq!(decoded, Err(WireError::Signature));
        }
    }

    /// What Python's `hmac` and `hashlib` make of the same parts.
    #[test]
    fn the_signature_is_the_hexadecimal_digest_of_the_four_json_parts() {
        let part = |text: &'static str| Bytes::from_static(text.as_bytes());
        let message = JupyterMessage {
            channel: Channel::Shell,
            header: part("{\"a\":1}"),
            parent_header: part("{}"),
            metadata: part("{}"),
            content: part("{\"b\":2}"),
            buffers: Vec::new(),
        };
        let frames = SigningKey::new("key".to_owned()).encode([], &message);
        assert_eq!(frames[1], "0206f42f4ae2a48f6054ab91271f90c100f7022f55fb1f23de6377624d533752");
    }
}
