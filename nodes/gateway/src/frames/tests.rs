use proptest::prelude::*;

use super::*;

fn message(buffers: Vec<Bytes>) -> JupyterMessage {
    let json = |text: &'static str| Bytes::from_static(text.as_bytes());
    JupyterMessage {
        channel: Channel::Iopub,
        header: json(r#"{"msg_id":"m\"1","msg_type":"stream","session":"s","extra":[1, 2]}"#),
        parent_header: json(r#"{"msg_id":"p"}"#),
        metadata: json("{}"),
        content: json(r#"{"name":"stdout","text":"é\n"}"#),
        buffers,
    }
}

#[test]
fn a_text_frame_keeps_unknown_fields_and_names_the_message() {
    let message = message(Vec::new());
    let text = write_text(&message, &message.parse_header().unwrap());
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(value["msg_id"], "m\"1");
    assert_eq!(value["msg_type"], "stream");
    assert_eq!(value["header"]["extra"], serde_json::json!([1, 2]));
    assert_eq!(parse_text(text.as_bytes()).unwrap(), message);
}

#[test]
fn a_frame_without_a_channel_is_for_shell_and_lacking_parts_are_empty() {
    let read = parse_text(br#"{"header":{"msg_id":"a","msg_type":"b"},"content":null}"#).unwrap();
    assert_eq!(read.channel, Channel::Shell);
    assert_eq!((&read.content[..], &read.metadata[..]), (&b"{}"[..], &b"{}"[..]));
}

#[test]
fn bad_frames_are_refused_in_a_sentence() {
    for (text, reason) in [
        (&b"[]"[..], "no Jupyter message"),
        (b"{}", "missing field `header`"),
        (br#"{"header":{},"channel":"hb"}"#, "no channel 'hb'"),
        (b"\xff", "no Jupyter message"),
    ] {
        let error = parse_text(text).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
    let error = parse_binary(&Bytes::from_static(b"\0\0\0\x02\0\0\0\x0c")).unwrap_err();
    assert!(error.to_string().contains("ends within its offsets"), "{error}");
}

proptest! {
    #[test]
    fn binary_frames_come_back_as_they_were(
        buffers in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..50), 0..5),
    ) {
        let message = message(buffers.into_iter().map(Bytes::from).collect());
        let frame = write_binary(&message, &message.parse_header().unwrap()).unwrap();
        prop_assert_eq!(parse_binary(&frame).unwrap(), message);
    }

    #[test]
    fn no_bytes_make_a_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse_text(&bytes);
        let _ = parse_binary(&Bytes::from(bytes.clone()));
        let _ = JupyterMessage::decode(&Bytes::from(bytes));
    }

    #[test]
    fn no_offsets_make_a_parser_panic(words in prop::collection::vec(0_u32..40, 0..12)) {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
        let _ = parse_binary(&Bytes::from(bytes));
    }
}
