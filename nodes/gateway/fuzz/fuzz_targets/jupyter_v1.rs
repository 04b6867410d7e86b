//! The framing of the bus and of `v1.kernel.websocket.jupyter.org`: there is one frame per message.
#![no_main]

use bytes::Bytes;
use callboard_protocol::jupyter::JupyterMessage;

libfuzzer_sys::fuzz_target!(|frame: &[u8]| {
    let frame = Bytes::copy_from_slice(frame);
    let Ok(message) = JupyterMessage::decode(&frame) else { return };
    assert_eq!(message.encode(), frame);
    let _ = (message.parse_header(), message.parent_msg_id());
});
