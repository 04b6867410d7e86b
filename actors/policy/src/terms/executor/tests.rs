//! When things are tried, and what requests are told: what the model check takes as arbitrary.

use bytes::Bytes;
use callboard_protocol::{FaultCode, Incarnation};

use super::*;
use crate::terms::Entry;

const ME: ReplicaId = ReplicaId(2);

fn executor() -> Executor {
    let mut executor = Executor::new(Identity { replica: ME, incarnation: Incarnation(1) });
    let log = KernelLog::default();
    executor.step(&log, Input::Voters(vec![ReplicaId(1), ME]), 0);
    executor.step(&log, Input::BaseReadable(true), 0);
    executor
}

fn request(msg_id: &str, hash: u8) -> Input {
    Input::Requested(Request {
        msg_id: msg_id.to_owned(),
        hash: [hash; 32],
        level: Level::Durable,
        frame: Bytes::new(),
        horizon: None,
    })
}

fn proposed(actions: &[Action]) -> Vec<Entry> {
    let entries = actions.iter().filter_map(|action| match action {
        Action::Propose(entry) => Some(entry.clone()),
        _ => None,
    });
    entries.collect()
}

fn accepts(actions: &[Action]) -> Vec<String> {
    let ids = proposed(actions).into_iter().filter_map(|entry| match entry {
        Entry::Accept { msg_id, .. } => Some(msg_id),
        _ => None,
    });
    ids.collect()
}

fn is_conflict(actions: &[Action]) -> bool {
    actions.iter().any(|action| {
        matches!(action, Action::Answer { answer: Err(fault), .. } if fault.code == FaultCode::Conflict)
    })
}

/// An executor that serves term 1, and its log.
fn serving() -> (Executor, KernelLog) {
    let (mut executor, mut log) = (executor(), KernelLog::default());
    executor.step(&log, Input::PythonWarm, 0);
    let (term, incarnation) = (Term(1), Incarnation(1));
    let opened =
        log.apply(Entry::Takeover { term, replica: ME, incarnation, base: Seq::default() });
    executor.step(&log, Input::Applied(opened), 0);
    executor.step(&log, Input::Restored(term), 0);
    assert_eq!(executor.python(), PythonPhase::Serving(term));
    (executor, log)
}

#[test]
fn a_follower_leaves_the_leader_time_to_take_over() {
    let log = KernelLog::default();
    let mut later = KernelLog::default();
    let (term, replica, incarnation) = (Term(1), ReplicaId(1), Incarnation(1));
    later.apply(Entry::Takeover { term, replica, incarnation, base: Seq::default() });
    later.apply(Entry::Abandon { term, cause: "lost".to_owned() });
    for (log, stagger_ms) in [(&log, FIRST_TAKEOVER_STAGGER_MS), (&later, TAKEOVER_STAGGER_MS)] {
        let mut follower = executor();
        assert_eq!(proposed(&follower.step(log, Input::PythonWarm, 0)), []);
        let patience_ms = 2 * stagger_ms;
        assert_eq!(proposed(&follower.step(log, Input::Tick, patience_ms - 1)), []);
        assert_eq!(proposed(&follower.step(log, Input::Tick, patience_ms)).len(), 1);
    }
    let mut leader = executor();
    leader.step(&log, Input::Leading(true), 0);
    assert_eq!(proposed(&leader.step(&log, Input::PythonWarm, 0)).len(), 1);
}

#[test]
fn a_proposal_nothing_was_heard_of_is_made_again_after_a_while_and_at_once_when_due() {
    let log = KernelLog::default();
    let mut leader = executor();
    leader.step(&log, Input::Leading(true), 0);
    let first = proposed(&leader.step(&log, Input::PythonWarm, 0));
    assert_eq!(proposed(&leader.step(&log, Input::Tick, REPROPOSE_MS - 1)), []);
    assert_eq!(proposed(&leader.step(&log, Input::Tick, REPROPOSE_MS)), first);
    leader.make_due();
    assert_eq!(proposed(&leader.step(&log, Input::Tick, REPROPOSE_MS + 1)), first);
}

#[test]
fn a_leader_leaves_a_live_executor_time_to_order_a_request_and_a_lost_one_none() {
    let (_, log) = serving();
    let leader = || {
        let identity = Identity { replica: ReplicaId(1), incarnation: Incarnation(1) };
        let mut leader = Executor::new(identity);
        leader.step(&log, Input::Leading(true), 0);
        leader
    };
    let mut patient = leader();
    assert!(accepts(&patient.step(&log, request("a", 1), 0)).is_empty());
    assert!(accepts(&patient.step(&log, Input::Tick, ACCEPT_GRACE_MS - 1)).is_empty());
    assert_eq!(accepts(&patient.step(&log, Input::Tick, ACCEPT_GRACE_MS)), ["a"]);
    let mut hasty = leader();
    hasty.step(&log, Input::Suspects([(ME, "silent".to_owned())].into()), 0);
    assert_eq!(accepts(&hasty.step(&log, request("a", 1), 0)), ["a"]);
}

#[test]
fn a_resent_request_keeps_its_place_in_line() {
    let log = KernelLog::default();
    let mut replica = executor();
    for msg_id in ["a", "b", "a"] {
        replica.step(&log, request(msg_id, 1), 0);
    }
    assert_eq!(accepts(&replica.step(&log, Input::Leading(true), 0)), ["a", "b"]);
}

#[test]
fn another_request_under_a_waiting_id_is_a_conflict_and_the_first_one_stays() {
    let (mut replica, mut log) = (executor(), KernelLog::default());
    replica.step(&log, request("a", 1), 0);
    assert!(is_conflict(&replica.step(&log, request("a", 2), 0)));
    let entries = proposed(&replica.step(&log, Input::Leading(true), 0));
    assert!(matches!(&entries[..], [Entry::Accept { hash, .. }] if *hash == [1; 32]));
    // Elsewhere the other one came first.
    let Entry::Accept { msg_id, level, request, horizon, grant, .. } = entries[0].clone() else {
        unreachable!()
    };
    let other = Entry::Accept { msg_id, level, request, horizon, grant, hash: [2; 32] };
    let applied = log.apply(other);
    assert!(is_conflict(&replica.step(&log, Input::Applied(applied), 0)));
}

#[test]
fn a_request_nobody_ordered_is_forgotten() {
    let log = KernelLog::default();
    let mut replica = executor();
    replica.step(&log, request("a", 1), 0);
    replica.step(&log, Input::Tick, REQUEST_KEPT_MS + 1);
    assert!(accepts(&replica.step(&log, Input::Leading(true), REQUEST_KEPT_MS + 2)).is_empty());
}

#[test]
fn a_long_term_remembers_no_attempts_of_ended_cells() {
    let (mut executor, mut log) = serving();
    for number in 1..=50 {
        let actions = executor.step(&log, request(&format!("cell-{number}"), 1), 0);
        let accepted = log.apply(proposed(&actions).remove(0));
        let actions = executor.step(&log, Input::Applied(accepted), 0);
        assert!(matches!(&actions[..], [Action::Answer { .. }, Action::Run { .. }]), "{actions:?}");
        let finished = Input::Finished {
            term: Term(1),
            seq: Seq(number),
            outputs: Vec::new(),
            delta: StateDelta::default(),
        };
        let entry = proposed(&executor.step(&log, finished, 0)).remove(0);
        let completed = log.apply(entry);
        let actions = executor.step(&log, Input::Applied(completed), 0);
        assert!(matches!(&actions[..], [Action::PublishEnded(_)]), "{actions:?}");
    }
    assert!(executor.tried.len() <= 1, "{:?}", executor.tried);
}
