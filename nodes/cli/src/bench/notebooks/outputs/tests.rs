use bytes::Bytes;
use callboard_protocol::jupyter::Channel;
use serde_json::json;

use super::*;

fn message(kind: &str, content: &Value) -> JupyterMessage {
    let header = json!({ "msg_id": "1", "msg_type": kind, "session": "s" });
    JupyterMessage {
        channel: Channel::Iopub,
        header: Bytes::from(header.to_string()),
        parent_header: Bytes::from_static(b"{}"),
        metadata: Bytes::from_static(b"{}"),
        content: Bytes::from(content.to_string()),
        buffers: Vec::new(),
    }
}

fn cell(messages: &[(&str, Value)]) -> CellOutputs {
    let mut outputs = CellOutputs::default();
    messages.iter().for_each(|(kind, content)| outputs.take(&message(kind, content)));
    outputs.finish()
}

fn stream(name: &str, text: &str) -> (&'static str, Value) {
    ("stream", json!({ "name": name, "text": text }))
}

fn figure(data: Value) -> (&'static str, Value) {
    ("display_data", json!({ "data": data, "metadata": {} }))
}

#[test]
fn where_a_stream_is_cut_and_where_objects_lie_makes_no_difference() {
    let left = cell(&[stream("stdout", "<A at 0x7f"), stream("stdout", "e1>\nb\n")]);
    let right = cell(&[stream("stdout", "<A at 0x01>\nb\n"), stream("stderr", "")]);
    assert_eq!(left, right);
    let place = |pid| stream("stderr", &format!("/tmp/ipykernel_{pid}/99.py:3: FutureWarning: x"));
    assert_eq!(cell(&[place(12)]), cell(&[place(3456)]));
    let other = stream("stderr", "/tmp/ipykernel_12/98.py:3: FutureWarning: x");
    assert_ne!(cell(&[place(12)]), cell(&[other]));
}

#[test]
fn a_changed_line_a_lost_stream_and_an_added_one_are_told() {
    let left = cell(&[stream("stdout", "a\nb\n"), stream("stderr", "warned\n")]);
    let right = cell(&[stream("stdout", "a\nc\n")]);
    assert_eq!(
        left.differences(&right),
        ["stderr line 1: \"warned\" became \"\"", "stdout line 2: \"b\" became \"c\""]
    );
    assert_eq!(right.differences(&left).len(), 2);
}

#[test]
fn an_image_must_be_there_but_its_bytes_are_its_own() {
    let with =
        |image: &str| cell(&[figure(json!({ "text/plain": "<Figure>", "image/png": image }))]);
    assert_eq!(with("AAAA"), with("BBBB"));
    assert_eq!(with("AAAA").images(), 1);
    let without = cell(&[figure(json!({ "text/plain": "<Figure>" }))]);
    assert_eq!(with("AAAA").differences(&without), ["output 0: {\"image/png\"} became {}"]);
    assert_eq!(with("").differences(&without), [""; 0]);
    assert!(!with("AAAA").differences(&cell(&[])).is_empty());
}

#[test]
fn the_number_and_the_text_of_a_result_count_and_so_does_an_error() {
    let result = |count, text: &str| {
        let content = json!({ "execution_count": count, "data": { "text/plain": text } });
        cell(&[("execute_result", content)])
    };
    assert!(result(3, "1").differences(&result(3, "1")).is_empty());
    assert_eq!(result(3, "1").differences(&result(4, "2")).len(), 2);
    let error = cell(&[("error", json!({ "ename": "NameError", "evalue": "x" }))]);
    assert_eq!(error.error(), Some(("NameError", "x")));
    assert_eq!(cell(&[]).differences(&error).len(), 1);
}

#[test]
fn names_on_which_the_plain_runs_agree_are_held_against_the_session() {
    let transcript =
        |names: &str| Transcript { cells: Vec::new(), closing: cell(&[stream("stdout", names)]) };
    let mut plain = transcript("a: int 1\nt: float 0.1\nx: str 'x'");
    plain.keep_common_names(&transcript("a: int 1\nt: float 0.2\nx: str 'x'"));
    assert_eq!(plain.names(), 2);
    assert!(plain.names_differing(&transcript("a: int 1\nt: float 0.3\nx: str 'x'")).is_empty());
    let lost = plain.names_differing(&transcript("a: int 2"));
    assert_eq!(lost, ["\"a: int 1\" became \"a: int 2\"", "\"x: str 'x'\" is missing"]);
}

#[test]
fn cells_that_are_missing_are_told() {
    let of =
        |count| Transcript { cells: vec![CellOutputs::default(); count], ..Default::default() };
    assert_eq!(of(2).differences(&of(1)), ["2 cells became 1"]);
}
