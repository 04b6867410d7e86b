//! One trace over several processes, as a collector sees it. Each "process" is this test's own
//! program, run again with a role in its environment.
#![cfg(feature = "otlp")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::{
    collections::BTreeSet,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    process::Command,
};

use callboard_protocol::Envelope;
use callboard_transport::telemetry::{continued, init, inject_from};

const ENDPOINT_VARIABLE: &str = "CALLBOARD_TEST_OTLP";
const PARENT_VARIABLE: &str = "CALLBOARD_TEST_TRACEPARENT";

/// What one process does: continues the trace it is given, and prints the one it hands on.
#[test]
fn process_of_a_trace() {
    let Ok(endpoint) = std::env::var(ENDPOINT_VARIABLE) else { return };
    let guard = init("test-process", Some(&endpoint)).unwrap();
    let arrived =
        Envelope { traceparent: std::env::var(PARENT_VARIABLE).ok(), ..Envelope::default() };
    let span = continued(tracing::info_span!(target: "callboard_test", "hop"), &arrived);
    let mut sent = arrived.causing();
    inject_from(&span, &mut sent);
    println!("traceparent={}", sent.traceparent.unwrap());
    drop(span);
    drop(guard);
}

/// Reads one POST and answers it.
fn accept_export(listener: &TcpListener) -> Vec<u8> {
    let (stream, _): (TcpStream, _) = listener.accept().unwrap();
    let mut reader = BufReader::new(stream);
    let (mut line, mut length) = (String::new(), 0);
    reader.read_line(&mut line).unwrap();
    assert!(line.starts_with("POST /v1/traces "), "{line}");
    while line.trim() != "" {
        line.clear();
        reader.read_line(&mut line).unwrap();
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    reader.get_mut().write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").unwrap();
    body
}

fn run_process(endpoint: &str, parent: Option<&str>) -> String {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "process_of_a_trace", "--nocapture"]).env(ENDPOINT_VARIABLE, endpoint);
    if let Some(parent) = parent {
        command.env(PARENT_VARIABLE, parent);
    }
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let (_, rest) = text.split_once("traceparent=").unwrap();
    rest.lines().next().unwrap().to_owned()
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len() / 2).map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap()).collect()
}

#[test]
fn two_processes_share_one_trace_at_the_collector() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let collector =
        std::thread::spawn(move || [accept_export(&listener), accept_export(&listener)]);
    let first = run_process(&endpoint, None);
    let second = run_process(&endpoint, Some(&first));
    let part = |text: &str, index| text.split('-').nth(index).unwrap().to_owned();
    assert_eq!(part(&first, 1), part(&second, 1), "one trace id");
    assert_ne!(part(&first, 2), part(&second, 2), "two spans");
    let holds = |body: &[u8], id: &str| {
        let wanted = unhex(id);
        body.windows(wanted.len()).any(|window| window == wanted)
    };
    let bodies = collector.join().unwrap();
    for (body, own) in bodies.iter().zip([&first, &second]) {
        assert!(holds(body, &part(own, 1)), "the export lacks its trace");
        assert!(holds(body, &part(own, 2)), "the export lacks its span");
    }
    assert!(holds(&bodies[1], &part(&first, 2)), "the second span names the first as parent");
    assert_eq!(bodies.iter().collect::<BTreeSet<_>>().len(), 2);
}
