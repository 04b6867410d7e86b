//! Legacy text frames of websockets: one that is a message is the same after it is written again.
#![no_main]

#[path = "../../src/frames.rs"]
#[allow(dead_code, reason = "each target uses a part")]
mod frames;

libfuzzer_sys::fuzz_target!(|text: &[u8]| {
    let Ok(message) = frames::parse_text(text) else { return };
    let Ok(header) = message.parse_header() else { return };
    let written = frames::write_text(&message, &header);
    assert_eq!(frames::parse_text(written.as_bytes()), Ok(message));
});
