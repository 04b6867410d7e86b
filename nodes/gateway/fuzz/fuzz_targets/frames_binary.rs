//! Legacy binary frames of websockets: one that is a message is the same after it is written again.
#![no_main]

use bytes::Bytes;

#[path = "../../src/frames.rs"]
#[allow(dead_code, reason = "each target uses a part")]
mod frames;

libfuzzer_sys::fuzz_target!(|frame: &[u8]| {
    let Ok(message) = frames::parse_binary(&Bytes::copy_from_slice(frame)) else { return };
    let Ok(header) = message.parse_header() else { return };
    let written = frames::write_binary(&message, &header).expect("it is small");
    assert_eq!(frames::parse_binary(&written), Ok(message));
});
