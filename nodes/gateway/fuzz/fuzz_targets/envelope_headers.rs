//! Headers of envelopes, one `name:value` a line: what is understood is the same after it is written
//! again.
#![no_main]

use callboard_protocol::Envelope;

libfuzzer_sys::fuzz_target!(|text: &str| {
    let headers = || text.lines().filter_map(|line| line.split_once(':'));
    let (envelope, malformed) =
        Envelope::from_headers(|name| headers().find(|(it, _)| *it == name).map(|(_, value)| value));
    assert!(malformed.iter().all(|name| headers().any(|(it, _)| it == *name)));
    let written = envelope.to_headers();
    let (again, malformed) = Envelope::from_headers(|name| {
        written.iter().find(|(it, _)| *it == name).map(|(_, value)| value.as_str())
    });
    assert_eq!((again, malformed), (envelope, Vec::new()));
});
