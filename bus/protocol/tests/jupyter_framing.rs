//! The Jupyter framing: what is encoded decodes to itself, and no bytes make the decoder panic.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use bytes::Bytes;
use callboard_protocol::jupyter::{Channel, JupyterMessage};
use proptest::{collection::vec, prelude::*};

fn part() -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..64).prop_map(Bytes::from)
}

fn message() -> impl Strategy<Value = JupyterMessage> {
    let channel = prop_oneof![
        Just(Channel::Shell),
        Just(Channel::Control),
        Just(Channel::Stdin),
        Just(Channel::Iopub)
    ];
    (channel, part(), part(), part(), part(), vec(part(), 0..5)).prop_map(
        |(channel, header, parent_header, metadata, content, buffers)| JupyterMessage {
            channel,
            header,
            parent_header,
            metadata,
            content,
            buffers,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_message_survives_its_frame(message in message()) {
        prop_assert_eq!(JupyterMessage::decode(&message.encode()).unwrap(), message);
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in vec(any::<u8>(), 0..256)) {
        let _ = JupyterMessage::decode(&Bytes::from(bytes));
    }

    #[test]
    fn arbitrary_words_never_panic(words in vec(prop_oneof![0..200_u64, any::<u64>()], 0..24)) {
        let bytes: Vec<u8> = words.into_iter().flat_map(u64::to_le_bytes).collect();
        let _ = JupyterMessage::decode(&Bytes::from(bytes));
    }

    #[test]
    fn a_damaged_frame_is_refused_or_differs(
        message in message(), at: prop::sample::Index, bit in 0..8_u8
    ) {
        let mut bytes = message.encode().to_vec();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        if let Ok(decoded) = JupyterMessage::decode(&Bytes::from(bytes)) {
            prop_assert_ne!(decoded, message);
        }
    }

    #[test]
    fn a_cut_frame_is_refused(message in message(), at: prop::sample::Index) {
        let frame = message.encode();
        let cut = frame.slice(..at.index(frame.len()));
        prop_assert!(JupyterMessage::decode(&cut).is_err());
    }
}

#[test]
fn the_first_frame_version_keeps_its_bytes() {
    let message = JupyterMessage {
        channel: Channel::Shell,
        header: Bytes::from_static(br#"{"msg_id":"m","msg_type":"execute_request"}"#),
        parent_header: Bytes::from_static(b"{}"),
        metadata: Bytes::from_static(b"{}"),
        content: Bytes::from_static(br#"{"code":"1"}"#),
        buffers: vec![Bytes::from_static(b"\x00\xff")],
    };
    let mut golden = Vec::new();
    for word in [7_u64, 64, 69, 112, 114, 116, 128, 130] {
        golden.extend_from_slice(&word.to_le_bytes());
    }
    golden.extend_from_slice(
        b"shell{\"msg_id\":\"m\",\"msg_type\":\"execute_request\"}{}{}{\"code\":\"1\"}\x00\xff",
    );
    assert_eq!(message.encode(), golden);
    assert_eq!(JupyterMessage::decode(&Bytes::from(golden)).unwrap(), message);
    assert_eq!(message.parse_header().unwrap().msg_type, "execute_request");
    assert_eq!(message.parent_msg_id(), None);
}
