//! Each invariant fires on a planted violation, and none on an ordinary history.

use super::*;

const DONE: EndTold = EndTold { ending: Ending::Completed, was_applied: true };

fn start(term: u64, replica: u64) -> StartSeen {
    StartSeen { term: Term(term), replica: ReplicaId(replica), incarnation: Incarnation(1) }
}

/// Two durable cells: the first completed in term 1, the second was interrupted in it.
fn ordinary() -> Facts {
    let mut completed = CellFacts::new(Level::Durable);
    completed.seq = Some(Seq(1));
    completed.starts.push(start(1, 1));
    completed.ends.push((Ending::Completed, Term(1)));
    completed.told.push(DONE);
    let mut interrupted = CellFacts::new(Level::Durable);
    interrupted.seq = Some(Seq(2));
    interrupted.starts.push(start(1, 1));
    interrupted.ends.push((Ending::Interrupted, Term(1)));
    interrupted.told.push(EndTold { ending: Ending::Interrupted, was_applied: true });
    Facts {
        cells: vec![completed, interrupted],
        state: vec![0],
        openings: vec![TermOpened { term: Term(2), previous: Term(1), previous_open: false }],
        bases: vec![BaseRestored { term: Term(2), given: vec![0], due: vec![0] }],
        ..Facts::default()
    }
}

fn broken_by(spoil: impl FnOnce(&mut Facts)) -> Vec<&'static str> {
    let mut facts = ordinary();
    spoil(&mut facts);
    broken(&facts).map(|invariant| invariant.id).collect()
}

#[test]
fn an_ordinary_history_breaks_nothing() {
    assert_eq!(broken_by(|_| ()), Vec::<&str>::new());
    assert_eq!(broken(&Facts::default()).count(), 0, "nothing seen, nothing broken");
}

#[test]
fn a_second_start_breaks_at_most_once() {
    let ids = broken_by(|facts| facts.cells[1].starts.push(start(2, 2)));
    assert_eq!(ids, ["AT_MOST_ONCE"]);
}

#[test]
fn a_durable_answer_without_its_state_breaks_ack_durable() {
    let ids = broken_by(|facts| facts.state.clear());
    assert_eq!(ids, ["ACK_DURABLE", "ORDER"]);
}

#[test]
fn two_ends_of_a_cell_break_one_outcome() {
    let ids = broken_by(|facts| facts.cells[1].told.insert(0, DONE));
    assert!(ids.contains(&"ONE_OUTCOME"), "{ids:?}");
    let ids = broken_by(|facts| facts.cells[0].ends.push((Ending::Interrupted, Term(2))));
    assert_eq!(ids, ["ONE_OUTCOME"]);
}

#[test]
fn a_received_cell_may_be_told_completed_and_then_interrupted_but_not_the_other_way() {
    let ids = broken_by(|facts| {
        facts.cells[1].level = Level::Received;
        facts.cells[1].told.insert(0, EndTold { was_applied: false, ..DONE });
    });
    assert_eq!(ids, Vec::<&str>::new());
    let ids = broken_by(|facts| {
        facts.cells[0].level = Level::Received;
        facts.cells[0].told.push(EndTold { ending: Ending::Interrupted, was_applied: true });
    });
    assert_eq!(ids, ["ONE_OUTCOME"]);
}

#[test]
fn an_answer_ahead_of_the_log_breaks_reply_after_apply() {
    let ids = broken_by(|facts| facts.cells[0].told[0].was_applied = false);
    assert_eq!(ids, ["REPLY_AFTER_APPLY"]);
}

#[test]
fn overlapping_terms_and_shared_terms_break_one_executor() {
    let ids = broken_by(|facts| facts.openings[0].previous_open = true);
    assert_eq!(ids, ["ONE_EXECUTOR"]);
    let ids = broken_by(|facts| facts.openings[0].term = Term(1));
    assert_eq!(ids, ["ONE_EXECUTOR"]);
    let ids = broken_by(|facts| facts.cells[1].starts[0].replica = ReplicaId(2));
    assert_eq!(ids, ["ONE_EXECUTOR"]);
    let ids = broken_by(|facts| facts.cells[0].ends[0].1 = Term(2));
    assert_eq!(ids, ["ONE_EXECUTOR"]);
}

#[test]
fn a_base_that_is_not_the_completed_state_breaks_base() {
    assert_eq!(broken_by(|facts| facts.bases[0].given.clear()), ["BASE"]);
    assert_eq!(broken_by(|facts| facts.bases[0].given.push(1)), ["BASE"]);
}

#[test]
fn a_shared_place_or_a_state_out_of_order_breaks_order() {
    assert_eq!(broken_by(|facts| facts.cells[1].seq = Some(Seq(1))), ["ORDER"]);
    let ids = broken_by(|facts| facts.state = vec![0, 0]);
    assert_eq!(ids, ["ORDER"]);
    let ids = broken_by(|facts| {
        facts.cells[1] = facts.cells[0].clone();
        facts.cells[1].seq = Some(Seq(2));
        facts.state = vec![1, 0];
    });
    assert_eq!(ids, ["ORDER"]);
}

#[test]
fn state_of_an_interrupted_cell_is_found() {
    let ids = broken_by(|facts| facts.state.push(1));
    assert_eq!(ids, ["INTERRUPTED_HAS_NO_STATE"]);
}

#[test]
fn a_cell_that_vanishes_or_ends_while_pending_is_a_lost_request() {
    assert_eq!(broken_by(|facts| facts.cells[0].is_pending = true), ["NO_LOST_REQUEST"]);
    let ids = broken_by(|facts| {
        facts.cells[1].ends.clear();
        facts.cells[1].told.clear();
    });
    assert_eq!(ids, ["NO_LOST_REQUEST"]);
}

#[test]
fn a_completed_cell_may_be_missing_only_if_a_rewind_took_it_back() {
    let missing = |facts: &mut Facts| facts.state.retain(|cell| *cell != 0);
    assert_eq!(broken_by(missing), ["ACK_DURABLE", "ORDER"]);
    let taken_back = |facts: &mut Facts| {
        missing(facts);
        facts.undone = vec![0];
    };
    assert_eq!(broken_by(taken_back), Vec::<&str>::new());
    assert_eq!(broken_by(|facts| facts.undone = vec![0]), ["ACK_DURABLE", "ORDER"]);
}

#[test]
fn a_rewind_to_another_state_or_past_a_waiting_cell_breaks_rewind() {
    let seen = |given: &[usize], had_pending| {
        let rewind = RewindSeen { given: given.to_vec(), due: vec![0], had_pending };
        broken_by(|facts| facts.rewinds.push(rewind))
    };
    assert_eq!(seen(&[0], false), Vec::<&str>::new());
    assert_eq!(seen(&[], false), ["REWIND"]);
    assert_eq!(seen(&[0], true), ["REWIND"]);
}
