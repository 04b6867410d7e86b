//! A log that adopts another is that log, with nothing open.

use callboard_protocol::{
    Incarnation, ReplicaId, Seq, Term,
    kernel::{CellOutcome, Level},
};

use super::*;
use crate::terms::{Entry, StateDelta};

fn accept(name: &str, grant: Option<u64>) -> Entry {
    Entry::Accept {
        msg_id: name.to_owned(),
        hash: [1; 32],
        level: Level::Durable,
        request: Bytes::from_static(b"request"),
        horizon: None,
        grant: grant.map(Term),
    }
}

fn takeover(term: u64, base: u64) -> Entry {
    let (replica, incarnation) = (ReplicaId(2), Incarnation(1));
    Entry::Takeover { term: Term(term), replica, incarnation, base: Seq(base) }
}

/// One cell completed, one running, one waiting.
fn earlier() -> KernelLog {
    let mut log = KernelLog::default();
    let delta = StateDelta { execution_count: 2, ..StateDelta::default() };
    for entry in [
        takeover(1, 0),
        accept("done", Some(1)),
        Entry::Complete { term: Term(1), seq: Seq(1), outputs: Vec::new(), delta },
        accept("running", Some(1)),
        accept("waiting", None),
    ] {
        log.apply(entry);
    }
    log
}

fn pieces(log: &KernelLog, length: usize) -> Vec<Entry> {
    let bytes = Bytes::from(rmp_serde::to_vec(log).unwrap());
    let total = bytes.len() as u64;
    let starts = (0..bytes.len()).step_by(length);
    let piece = |at: usize| Entry::Adopt {
        offset: at as u64,
        bytes: bytes.slice(at..bytes.len().min(at + length)),
        total,
        cause: "recovered".to_owned(),
    };
    starts.map(piece).collect()
}

#[test]
fn a_log_goes_on_where_the_adopted_one_was_and_its_running_cell_ends_interrupted() {
    let pieces = pieces(&earlier(), 40);
    assert!(pieces.len() > 2);
    let mut log = KernelLog::default();
    let mut last = Applied::Ignored;
    for piece in &pieces {
        assert_eq!(log.begun_from(), None);
        last = log.apply(piece.clone());
        assert_eq!(log.apply(takeover(1, 0)), Applied::Ignored, "not before it has begun");
        if log.begun_from().is_none() {
            assert_eq!(log.apply(accept("early", None)), Applied::QueueFull);
            // Said twice, it counts once.
            assert_eq!(log.apply(piece.clone()), last);
        }
    }
    let Applied::Closed { interrupted, .. } = last else { panic!("{last:?}") };
    assert_eq!(interrupted.len(), 1);
    let cause = "recovered".to_owned();
    assert_eq!(interrupted[0].outcome, CellOutcome::Interrupted { cause });
    assert_eq!((log.begun_from(), log.last_loss()), (Some("recovered"), Some("recovered")));
    assert_eq!((log.accepted(), log.completed(), log.last_term()), (Seq(3), Seq(1), Term(1)));
    assert_eq!(log.pending().len(), 1, "the one that cannot have been started waits on");
    let again = Applied::Accepted { seq: Seq(1), duplicate: true };
    assert_eq!(log.apply(accept("done", None)), again, "what ran is remembered");
    for piece in pieces {
        assert_eq!(log.apply(piece), Applied::Ignored, "it has begun");
    }
    assert_eq!(log.apply(takeover(2, 1)), Applied::Opened(Term(2)));
}

#[test]
fn a_log_that_is_in_use_adopts_nothing_and_mixed_pieces_are_begun_again() {
    let mut used = KernelLog::default();
    used.apply(accept("a", None));
    let before = used.clone();
    assert_eq!(used.apply(pieces(&earlier(), 1 << 20)[0].clone()), Applied::Ignored);
    assert_eq!(used, before);
    let mut log = KernelLog::default();
    let junk = Bytes::from_static(b"junk");
    let entry = Entry::Adopt { offset: 0, bytes: junk, total: 4, cause: String::new() };
    assert_eq!(log.apply(entry), Applied::Holding(0));
    assert_eq!(log, KernelLog::default());
    for piece in pieces(&earlier(), 100) {
        log.apply(piece);
    }
    assert_eq!(log.completed(), Seq(1));
}

fn group(name: &str) -> (String, StateGroup) {
    let names = vec![name.to_owned()];
    (name.to_owned(), StateGroup { names, kind: "variables".to_owned(), parts: Vec::new() })
}

fn page(skip: u64, names: &[&str], is_last: bool) -> Entry {
    let end = SeedEnd { refused: Vec::new(), execution_count: 8, from: "kernel a".to_owned() };
    let groups = names.iter().map(|name| group(name)).collect();
    Entry::Seed { skip, groups, end: is_last.then_some(end) }
}

#[test]
fn a_log_begins_with_a_state_given_in_pages_and_cells_wait_for_it() {
    let mut log = KernelLog::default();
    assert_eq!(log.apply(page(0, &["x", "y"], false)), Applied::Holding(2));
    assert_eq!(log.apply(page(0, &["x", "y"], false)), Applied::Holding(2), "said twice");
    assert_eq!(log.apply(page(5, &["z"], true)), Applied::Holding(2), "a page is missing");
    assert_eq!(log.apply(takeover(1, 0)), Applied::Ignored, "not before it has begun");
    let waits = log.apply(accept("early", None));
    assert_eq!(waits, Applied::Accepted { seq: Seq(1), duplicate: false });
    assert_eq!(log.apply(page(2, &["z"], true)), Applied::Begun);
    assert_eq!(log.manifest().len(), 3);
    assert_eq!((log.execution_count(), log.begun_from()), (8, Some("kernel a")));
    assert_eq!(log.apply(page(0, &["w"], true)), Applied::Ignored, "it has begun");
    assert_eq!(log.apply(takeover(1, 0)), Applied::Opened(Term(1)));
    log.apply(Entry::Start { term: Term(1), seq: Seq(1) });
    let removed = vec!["x".to_owned()];
    let delta = StateDelta { removed, execution_count: 9, ..StateDelta::default() };
    log.apply(Entry::Complete { term: Term(1), seq: Seq(1), outputs: Vec::new(), delta });
    let start = log.find_state("0").unwrap();
    assert_eq!(log.moment_at(&start).unwrap().manifest.len(), 3, "what it began with is kept");
}

#[test]
fn a_log_whose_cells_have_run_begins_with_nothing() {
    let mut log = KernelLog::default();
    log.apply(takeover(1, 0));
    let before = log.clone();
    assert_eq!(log.apply(page(0, &["x"], true)), Applied::Ignored);
    assert_eq!(log, before);
}
