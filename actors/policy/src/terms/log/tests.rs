//! Properties of the replicated machine.

use callboard_protocol::kernel::OutputPlace;
use proptest::prelude::*;

use super::*;
use crate::terms::Part;

const DURABLE: Level = Level::Durable;
const RECEIVED: Level = Level::Received;

fn accept(name: &str, level: Level, grant: Option<u64>) -> Entry {
    Entry::Accept {
        msg_id: name.to_owned(),
        hash: [1; 32],
        level,
        request: Bytes::from_static(b"request"),
        horizon: None,
        grant: grant.map(Term),
    }
}

fn accept_since(name: &str, horizon: u64) -> Entry {
    let Entry::Accept { msg_id, hash, level, request, grant, .. } = accept(name, DURABLE, None)
    else {
        unreachable!()
    };
    Entry::Accept { msg_id, hash, level, request, grant, horizon: Some(Seq(horizon)) }
}

fn takeover(term: u64, base: u64) -> Entry {
    let (replica, incarnation) = (ReplicaId(term), Incarnation(1));
    Entry::Takeover { term: Term(term), replica, incarnation, base: Seq(base) }
}

fn start(term: u64, seq: u64) -> Entry {
    Entry::Start { term: Term(term), seq: Seq(seq) }
}

fn abandon(term: u64) -> Entry {
    Entry::Abandon { term: Term(term), cause: "killed".to_owned() }
}

fn cursor(term: u64, number: u64) -> OutputCursor {
    OutputCursor { term: Term(term), number }
}

fn output(term: u64, number: u64, cell: u64, length: usize) -> LoggedOutput {
    LoggedOutput {
        place: OutputPlace { cursor: cursor(term, number), cell: Seq(cell) },
        message: Part::Inline(Bytes::from(vec![0; length])),
    }
}

fn complete(term: u64, seq: u64, outputs: Vec<LoggedOutput>) -> Entry {
    let group = StateGroup {
        names: vec![format!("v{seq}")],
        kind: "values".to_owned(),
        parts: vec![Part::Inline(Bytes::from(vec![seq as u8]))],
    };
    let delta = StateDelta {
        upsert: vec![(format!("g{seq}"), group)],
        execution_count: seq,
        ..StateDelta::default()
    };
    Entry::Complete { term: Term(term), seq: Seq(seq), outputs, delta }
}

fn log_of(entries: impl IntoIterator<Item = Entry>) -> KernelLog {
    let mut log = KernelLog::default();
    for entry in entries {
        log.apply(entry);
    }
    log
}

fn pending(log: &KernelLog) -> Vec<u64> {
    log.pending().iter().map(|cell| cell.seq.0).collect()
}

fn interrupted(applied: Applied) -> Vec<u64> {
    match applied {
        Applied::Closed { interrupted, .. } => interrupted.iter().map(|end| end.seq.0).collect(),
        other => panic!("not a closed term: {other:?}"),
    }
}

#[test]
fn the_first_cell_of_a_session_has_number_one() {
    assert_eq!(KernelLog::default().execution_count(), 1);
}

#[test]
fn the_first_of_complete_and_abandon_wins() {
    let opened = || log_of([takeover(1, 0), accept("a", DURABLE, Some(1))]);
    let mut log = opened();
    assert!(matches!(log.apply(complete(1, 1, vec![])), Applied::Completed(_)));
    assert!(interrupted(log.apply(abandon(1))).is_empty());
    assert_eq!((log.completed(), log.manifest().len()), (Seq(1), 1));

    let mut log = opened();
    assert_eq!(interrupted(log.apply(abandon(1))), [1]);
    assert_eq!(log.apply(complete(1, 1, vec![])), Applied::Ignored);
    assert_eq!((log.completed(), log.manifest().len()), (Seq(0), 0));
}

#[test]
fn an_abandon_interrupts_granted_cells_up_to_the_first_durable_one() {
    let cells = |log: &mut KernelLog, cells: &[(Level, Option<u64>)]| {
        for (index, (level, grant)) in cells.iter().enumerate() {
            log.apply(accept(&format!("cell-{index}"), *level, *grant));
        }
    };
    let (mine, nobody) = (Some(1), None);
    for (queue, expected) in [
        (vec![(DURABLE, mine), (DURABLE, mine)], vec![1]),
        (vec![(RECEIVED, mine), (RECEIVED, mine), (DURABLE, mine), (DURABLE, mine)], vec![1, 2, 3]),
        (vec![(RECEIVED, mine), (RECEIVED, nobody), (RECEIVED, mine)], vec![1]),
        (vec![(DURABLE, nobody), (DURABLE, mine)], vec![]),
    ] {
        let mut log = log_of([takeover(1, 0)]);
        cells(&mut log, &queue);
        assert_eq!(interrupted(log.apply(abandon(1))), expected, "{queue:?}");
        let kept: Vec<u64> =
            (1..=queue.len() as u64).filter(|seq| !expected.contains(seq)).collect();
        assert_eq!(pending(&log), kept, "{queue:?}");
    }
}

#[test]
fn a_cell_granted_in_a_closed_term_needs_a_grant_of_the_open_one() {
    let mut log = log_of([
        takeover(1, 0),
        accept("a", DURABLE, Some(1)),
        accept("b", DURABLE, Some(1)),
        abandon(1),
        takeover(2, 0),
    ]);
    assert_eq!(log.apply(complete(2, 2, vec![])), Applied::Ignored);
    assert_eq!(log.apply(start(1, 2)), Applied::Ignored);
    assert_eq!(log.apply(start(2, 2)), Applied::Granted(Seq(2)));
    assert!(matches!(log.apply(complete(2, 2, vec![])), Applied::Completed(_)));
}

#[test]
fn a_takeover_needs_a_closed_term_the_next_number_and_the_last_base() {
    let mut log = log_of([takeover(1, 0)]);
    assert_eq!(log.apply(takeover(2, 0)), Applied::Ignored, "a term is open");
    log.apply(accept("a", DURABLE, Some(1)));
    log.apply(complete(1, 1, vec![]));
    log.apply(abandon(1));
    for stale in [takeover(1, 1), takeover(3, 1), takeover(2, 0)] {
        assert_eq!(log.apply(stale), Applied::Ignored);
    }
    assert_eq!(log.apply(takeover(2, 1)), Applied::Opened(Term(2)));
}

#[test]
fn a_repeated_accept_keeps_its_place_and_upgrades_the_grant_only_to_the_open_term() {
    let mut log = log_of([takeover(1, 0), accept("a", DURABLE, None)]);
    let again = Applied::Accepted { seq: Seq(1), duplicate: true };
    assert_eq!(log.apply(accept("a", DURABLE, Some(7))), again);
    assert_eq!(log.pending()[0].grant, None);
    assert_eq!(log.apply(accept("a", DURABLE, Some(1))), again);
    assert_eq!(log.pending()[0].grant, Some(Term(1)));
    assert_eq!(log.apply(accept("a", DURABLE, None)), again);
    assert_eq!(log.pending()[0].grant, Some(Term(1)));
}

#[test]
fn an_id_used_for_another_request_is_a_conflict_before_and_after_the_end() {
    let other = Entry::Accept {
        msg_id: "a".to_owned(),
        hash: [2; 32],
        level: DURABLE,
        request: Bytes::new(),
        horizon: None,
        grant: None,
    };
    let mut log = log_of([takeover(1, 0), accept("a", DURABLE, Some(1))]);
    assert_eq!(log.apply(other.clone()), Applied::Conflict);
    log.apply(complete(1, 1, vec![]));
    assert_eq!(log.apply(other), Applied::Conflict);
}

#[test]
fn requests_older_than_the_dedupe_window_are_refused_and_never_run_again() {
    let mut log = log_of([takeover(1, 0)]);
    let total = DEDUPE_CELLS_MAX as u64 + 2;
    for seq in 1..=total {
        log.apply(accept(&format!("cell-{seq}"), DURABLE, Some(1)));
        log.apply(complete(1, seq, vec![]));
    }
    assert!(log.request("cell-2").is_none());
    assert!(log.request("cell-3").is_some());
    assert_eq!(log.apply(accept_since("cell-2", 1)), Applied::Expired);
    assert_eq!(
        log.apply(accept_since("cell-3", 2)),
        Applied::Accepted { seq: Seq(3), duplicate: true }
    );
    assert_eq!(
        log.apply(accept_since("fresh", 2)),
        Applied::Accepted { seq: Seq(total + 1), duplicate: false }
    );
}

#[test]
fn the_queue_is_bounded_and_a_full_one_still_knows_its_cells() {
    let mut log = KernelLog::default();
    for index in 0..QUEUE_DEPTH_MAX {
        log.apply(accept(&format!("cell-{index}"), DURABLE, None));
    }
    assert_eq!(log.apply(accept("one-more", DURABLE, None)), Applied::QueueFull);
    assert_eq!(
        log.apply(accept("cell-0", DURABLE, None)),
        Applied::Accepted { seq: Seq(1), duplicate: true }
    );
}

#[test]
fn outputs_are_dropped_oldest_first_and_the_gap_is_told() {
    let mut log = log_of([takeover(1, 0), accept("a", DURABLE, Some(1))]);
    let third = OUTPUT_BYTES_MAX as usize / 3 + 1;
    for number in 1..=4 {
        log.apply(Entry::Emit { term: Term(1), outputs: vec![output(1, number, 1, third)] });
    }
    let numbers = |since| {
        let (outputs, gap) = log.outputs_since(since);
        (outputs.map(|output| output.place.cursor.number).collect::<Vec<_>>(), gap)
    };
    assert_eq!(numbers(OutputCursor::default()), (vec![3, 4], true));
    assert_eq!(numbers(cursor(1, 2)), (vec![3, 4], false));
    assert_eq!(numbers(cursor(1, 3)), (vec![4], false));
}

#[test]
fn an_output_that_is_longer_than_all_that_are_kept_is_kept_until_others_follow() {
    let mut log = log_of([takeover(1, 0), accept("a", DURABLE, Some(1))]);
    let (huge, half) = (OUTPUT_BYTES_MAX as usize * 2, OUTPUT_BYTES_MAX as usize / 2);
    let mut kept_after = |number, length| {
        log.apply(Entry::Emit { term: Term(1), outputs: vec![output(1, number, 1, length)] });
        let (outputs, gap) = log.outputs_since(OutputCursor::default());
        (outputs.map(|output| output.place.cursor.number).collect::<Vec<_>>(), gap)
    };
    assert_eq!(kept_after(1, huge), (vec![1], false));
    assert_eq!(kept_after(2, 1), (vec![1, 2], false));
    assert_eq!(kept_after(3, half), (vec![2, 3], true));
    assert_eq!(kept_after(4, huge), (vec![3, 4], true));
}

#[test]
fn outputs_are_kept_once_and_in_order_however_their_proposals_arrive() {
    let mut log = log_of([takeover(1, 0), accept("a", DURABLE, Some(1))]);
    let emit = |numbers: [u64; 2]| Entry::Emit {
        term: Term(1),
        outputs: numbers.map(|number| output(1, number, 1, 1)).to_vec(),
    };
    for numbers in [[3, 4], [1, 2], [3, 4]] {
        log.apply(emit(numbers));
    }
    let Applied::Completed(end) =
        log.apply(complete(1, 1, vec![output(1, 4, 1, 1), output(1, 5, 1, 1)]))
    else {
        panic!("the cell completes")
    };
    assert_eq!(end.last_output, Some(cursor(1, 5)));
    let (outputs, _) = log.outputs_since(OutputCursor::default());
    let numbers: Vec<u64> = outputs.map(|output| output.place.cursor.number).collect();
    assert_eq!(numbers, [1, 2, 3, 4, 5]);
}

#[test]
fn the_last_output_of_an_interrupted_cell_is_its_own() {
    let mut log = log_of([
        takeover(1, 0),
        accept("a", DURABLE, Some(1)),
        complete(1, 1, vec![output(1, 1, 1, 1)]),
        accept("silent", DURABLE, Some(1)),
    ]);
    let Applied::Closed { interrupted, .. } = log.apply(abandon(1)) else { panic!("open") };
    assert_eq!(interrupted[0].last_output, None);
}

fn entry() -> impl Strategy<Value = Entry> {
    let (term, seq, name) = (1..4_u64, 1..6_u64, 0..6_u8);
    let level = prop_oneof![Just(DURABLE), Just(RECEIVED)];
    let grant = proptest::option::of(1..4_u64);
    let outputs = proptest::collection::vec(
        (1..9_u64, 0..4_usize).prop_map(|(number, length)| output(1, number, 1, length)),
        0..3,
    );
    prop_oneof![
        4 => (name, level, grant)
            .prop_map(|(name, level, grant)| accept(&format!("cell-{name}"), level, grant)),
        2 => (term.clone(), 0..6_u64).prop_map(|(term, base)| takeover(term, base)),
        2 => (term.clone(), seq.clone()).prop_map(|(term, seq)| start(term, seq)),
        4 => (term.clone(), seq, outputs)
            .prop_map(|(term, seq, outputs)| complete(term, seq, outputs)),
        1 => term.prop_map(abandon),
    ]
}

proptest! {
    #[test]
    fn equal_entries_make_equal_logs_also_through_a_snapshot(
        entries in proptest::collection::vec(entry(), 0..60),
        at in 0..60_usize,
    ) {
        let at = at.min(entries.len());
        let whole = log_of(entries.clone());
        let snapshot = log_of(entries[..at].to_vec());
        let bytes = rmp_serde::to_vec_named(&snapshot).unwrap();
        let mut restored: KernelLog = rmp_serde::from_slice(&bytes).unwrap();
        prop_assert_eq!(&restored, &snapshot);
        for entry in &entries[at..] {
            restored.apply(entry.clone());
        }
        prop_assert_eq!(restored, whole);
    }

    #[test]
    fn an_ignored_entry_changes_nothing_and_a_repeated_one_adds_nothing(
        entries in proptest::collection::vec(entry(), 0..60),
    ) {
        let mut log = KernelLog::default();
        for entry in entries {
            let before = log.clone();
            if log.apply(entry.clone()) == Applied::Ignored {
                prop_assert_eq!(&before, &log);
            }
            let after = log.clone();
            log.apply(entry);
            prop_assert_eq!(after, log.clone());
        }
    }

    #[test]
    fn cells_end_in_order_each_once_and_ends_stay(
        entries in proptest::collection::vec(entry(), 0..80),
    ) {
        let mut log = KernelLog::default();
        let mut ended: Vec<CellEnd> = Vec::new();
        for entry in entries {
            match log.apply(entry) {
                Applied::Completed(end) => ended.push(end),
                Applied::Closed { interrupted, .. } => ended.extend(interrupted),
                _ => {}
            }
            prop_assert!(ended.windows(2).all(|pair| pair[0].seq < pair[1].seq));
            for end in &ended {
                prop_assert_eq!(log.request(&end.msg_id).and_then(|known| known.2), Some(end));
            }
            let open = log.accepted().0 - ended.len() as u64;
            prop_assert_eq!(log.pending().len() as u64, open);
            let completed: Vec<String> = ended
                .iter()
                .filter(|end| end.outcome == CellOutcome::Completed)
                .map(|end| format!("g{}", end.seq))
                .collect();
            prop_assert!(log.manifest().keys().eq(completed.iter()));
        }
    }
}

#[test]
fn a_term_is_parked_only_while_no_cell_waits_and_leaves_no_loss_behind() {
    let mut log = KernelLog::default();
    let park = |term| Entry::Park { term: Term(term) };
    assert_eq!(log.apply(park(1)), Applied::Ignored, "no term is open");
    log.apply(takeover(1, 0));
    log.apply(accept("a", DURABLE, Some(1)));
    assert_eq!(log.apply(park(1)), Applied::Ignored, "a cell waits");
    log.apply(complete(1, 1, Vec::new()));
    assert_eq!(log.apply(park(2)), Applied::Ignored, "not that term");
    assert_eq!(log.apply(park(1)), Applied::Parked(Term(1)));
    assert!(log.is_parked() && log.open_term().is_none() && log.last_loss().is_none());
    let kept: KernelLog = rmp_serde::from_slice(&rmp_serde::to_vec(&log).unwrap()).unwrap();
    assert_eq!(kept, log);
    assert_eq!(log.apply(takeover(2, 1)), Applied::Opened(Term(2)));
    assert!(!log.is_parked());
}

#[test]
fn a_snapshot_from_before_parking_still_reads() {
    let mut log = KernelLog::default();
    log.apply(takeover(1, 0));
    let bytes = rmp_serde::to_vec(&log).unwrap();
    // An array of 19: the last ones are `parked`, the history and the beginning.
    assert_eq!(bytes[..3], [0xdc, 0, 19]);
    let newer = [
        rmp_serde::to_vec(&log.parked).unwrap(),
        rmp_serde::to_vec(&log.history).unwrap(),
        rmp_serde::to_vec(&log.beginning).unwrap(),
    ]
    .concat();
    assert!(bytes.ends_with(&newer));
    let mut former = bytes[..bytes.len() - newer.len()].to_vec();
    former[2] = 16;
    assert_eq!(rmp_serde::from_slice::<KernelLog>(&former).unwrap(), log);
}

#[test]
fn a_process_of_a_later_term_lacks_what_cells_have_done_unless_a_restart_was_wished_for() {
    let mut log = log_of([takeover(1, 0)]);
    assert!(!log.has_outlived_its_process(Term(1)), "there was no cell");
    for entry in [accept("a", DURABLE, Some(1)), complete(1, 1, Vec::new())] {
        log.apply(entry);
    }
    assert!(!log.has_outlived_its_process(Term(1)), "it ran in this very process");
    log.apply(abandon(1));
    log.apply(takeover(2, 1));
    assert!(log.has_outlived_its_process(Term(2)));
    let copy = rmp_serde::from_slice::<KernelLog>(&rmp_serde::to_vec(&log).unwrap()).unwrap();
    assert!(copy.has_outlived_its_process(Term(2)), "a snapshot knows it, too");
    log.apply(Entry::Restart { id: "wish".to_owned() });
    log.apply(takeover(3, 1));
    assert!(!log.has_outlived_its_process(Term(3)));
    for entry in [accept("b", DURABLE, Some(3)), complete(3, 2, Vec::new()), abandon(3)] {
        log.apply(entry);
    }
    log.apply(takeover(4, 2));
    assert!(log.has_outlived_its_process(Term(4)));
}
