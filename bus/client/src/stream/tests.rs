use bytes::Bytes;
use callboard_protocol::{
    Term,
    jupyter::Channel,
    kernel::{CellOutcome, Output},
};
use proptest::prelude::*;

use super::*;

fn cursor(term: u64, number: u64) -> OutputCursor {
    OutputCursor { term: Term(term), number }
}

fn message(text: &str) -> JupyterMessage {
    let json = |text: String| Bytes::from(text);
    JupyterMessage {
        channel: Channel::Iopub,
        header: json(format!(r#"{{"msg_id":"{text}","msg_type":"stream"}}"#)),
        parent_header: json("{}".to_owned()),
        metadata: json("{}".to_owned()),
        content: json("{}".to_owned()),
        buffers: Vec::new(),
    }
}

fn place(at: OutputCursor) -> OutputPlace {
    OutputPlace { cursor: at, cell: Seq(1) }
}

fn end(seq: u64, last_output: Option<OutputCursor>) -> CellEnd {
    let (msg_id, term) = (format!("m{seq}"), last_output.map_or(Term(1), |last| last.term));
    CellEnd { seq: Seq(seq), msg_id, term, outcome: CellOutcome::Completed, last_output }
}

fn logged(places: &[OutputCursor], more: bool) -> Outputs {
    let output = |at: &OutputCursor| Output {
        place: place(*at),
        message: message(&at.to_string()).encode(),
    };
    Outputs {
        outputs: places.iter().map(output).collect(),
        gap: false,
        more,
        ended: Vec::new(),
        part: None,
    }
}

/// What comes, in a form to compare.
fn drain(stream: &mut Stream) -> Vec<String> {
    std::iter::from_fn(|| stream.pop())
        .map(|next| match next {
            Next::Message(message, Some(place)) => {
                assert_eq!(message.parse_header().unwrap().msg_id, place.cursor.to_string());
                place.cursor.to_string()
            }
            Next::Message(message, None) => message.parse_header().unwrap().msg_id,
            Next::Ended(end) => format!("end {}", end.seq),
            Next::Gap => "gap".to_owned(),
        })
        .collect()
}

fn emit(stream: &mut Stream, at: OutputCursor) {
    stream.on_emitted(Some(place(at)), None, message(&at.to_string()));
}

#[test]
fn a_status_waits_for_the_output_that_was_lost_before_it() {
    let mut stream = Stream::default();
    emit(&mut stream, cursor(1, 1));
    stream.on_emitted(None, Some(cursor(1, 2)), message("idle"));
    stream.on_ended(end(1, Some(cursor(1, 2))));
    assert_eq!(drain(&mut stream), ["1.1"]);
    assert_eq!(stream.missing_since(), Some(cursor(1, 1)));
    stream.on_fetched(logged(&[], false));
    assert_eq!(drain(&mut stream), Vec::<String>::new());
    stream.on_fetched(logged(&[cursor(1, 2)], false));
    assert_eq!(drain(&mut stream), ["1.2", "idle", "end 1"]);
    assert_eq!(stream.missing_since(), None);
}

#[test]
fn a_new_term_is_entered_once_the_log_has_nothing_more_of_the_old_one() {
    let mut stream = Stream::default();
    emit(&mut stream, cursor(1, 1));
    emit(&mut stream, cursor(2, 1));
    assert_eq!(drain(&mut stream), ["1.1"]);
    stream.on_fetched(logged(&[cursor(1, 2)], false));
    assert_eq!(drain(&mut stream), ["1.2", "2.1"]);
    emit(&mut stream, cursor(1, 3));
    assert_eq!(drain(&mut stream), Vec::<String>::new());
}

#[test]
fn an_output_that_no_log_will_ever_have_is_given_up() {
    let mut stream = Stream::default();
    emit(&mut stream, cursor(1, 1));
    emit(&mut stream, cursor(1, 3));
    assert_eq!(drain(&mut stream), ["1.1"]);
    for _ in 0..FRUITLESS_MAX {
        assert_eq!(stream.missing_since(), Some(cursor(1, 1)));
        stream.on_fetched(logged(&[], false));
    }
    assert_eq!(drain(&mut stream), ["gap", "1.3"]);
}

#[test]
fn an_output_whose_executor_is_known_to_be_lost_is_given_up_at_once() {
    let mut stream = Stream::default();
    emit(&mut stream, cursor(1, 1));
    emit(&mut stream, cursor(1, 3));
    emit(&mut stream, cursor(2, 1));
    assert_eq!(drain(&mut stream), ["1.1"]);
    stream.on_fetched(logged(&[], false));
    assert_eq!(drain(&mut stream), Vec::<String>::new());
    stream.on_fetched(logged(&[], false));
    assert_eq!(drain(&mut stream), ["gap", "1.3"]);
    stream.on_fetched(logged(&[], false));
    assert_eq!(drain(&mut stream), ["2.1"]);
}

#[test]
fn ends_of_fetched_cells_come_after_their_last_output() {
    let mut stream = Stream::default();
    stream.begin_after(cursor(1, 0), true);
    let page = logged(&[cursor(1, 1), cursor(1, 2)], true);
    stream.on_fetched(Outputs { ended: vec![end(1, Some(cursor(1, 1)))], ..page });
    assert_eq!(drain(&mut stream), ["1.1", "end 1", "1.2"]);
    let page = logged(&[cursor(1, 3)], false);
    stream.on_fetched(Outputs { ended: vec![end(2, Some(cursor(1, 3)))], ..page });
    stream.on_ended(end(2, Some(cursor(1, 3))));
    assert_eq!(drain(&mut stream), ["1.3", "end 2"]);
}

proptest! {
    /// Whatever is lost or doubled on the way, every output comes once and in order.
    #[test]
    fn every_output_comes_once_and_in_order(
        terms in prop::collection::vec(1_u64..6, 1..4),
        fates in prop::collection::vec(0_u8..4, 20),
    ) {
        let all: Vec<OutputCursor> = (1..)
            .zip(&terms)
            .flat_map(|(term, count)| (1..=*count).map(move |number| cursor(term, number)))
            .collect();
        let mut stream = Stream::default();
        stream.begin_after(cursor(1, 0), false);
        let mut seen = Vec::new();
        for (at, fate) in all.iter().zip(&fates) {
            for _ in 0..*fate % 3 {
                emit(&mut stream, *at);
            }
            seen.extend(drain(&mut stream));
        }
        stream.on_ended(end(9, all.last().copied()));
        for _ in 0..100 {
            seen.extend(drain(&mut stream));
            let Some(since) = stream.missing_since() else { break };
            let missing: Vec<OutputCursor> = all.iter().copied().filter(|it| *it > since).collect();
            let page = missing.iter().copied().take(2).collect::<Vec<_>>();
            stream.on_fetched(logged(&page, missing.len() > 2));
        }
        let mut expected: Vec<String> = all.iter().map(ToString::to_string).collect();
        expected.push("end 9".to_owned());
        prop_assert_eq!(seen, expected);
    }
}
