//! When things are tried, and what requests are told: what the model check takes as arbitrary.

use bytes::Bytes;
use callboard_protocol::{FaultCode, Incarnation, kernel::Refused};

use super::*;
use crate::terms::Entry;

const ME: ReplicaId = ReplicaId(2);

const HOT: Upkeep = Upkeep {
    hot_standbys: true,
    starts_parked: false,
    park_after_ms: None,
    parks_with_refused: false,
};
const THIN: Upkeep = Upkeep { hot_standbys: false, ..HOT };

/// One with a Python process that is starting.
fn executor() -> Executor {
    kept(HOT)
}

fn kept(upkeep: Upkeep) -> Executor {
    let mut executor = Executor::new(Identity { replica: ME, incarnation: Incarnation(1) });
    let log = KernelLog::default();
    executor.step(&log, Input::Voters(vec![ReplicaId(1), ME]), 0);
    executor.step(&log, Input::BaseReadable(true), 0);
    executor.step(&log, Input::Upkeep(upkeep), 0);
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
    serving_kept(HOT)
}

fn serving_kept(upkeep: Upkeep) -> (Executor, KernelLog) {
    let (mut executor, mut log) = (kept(upkeep), KernelLog::default());
    executor.step(&log, Input::Leading(true), 0);
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

fn starts(actions: &[Action]) -> bool {
    actions.contains(&Action::StartPython)
}

/// Term 1 of the other replica, open.
fn led_by_another() -> KernelLog {
    let mut log = KernelLog::default();
    let (term, replica, incarnation) = (Term(1), ReplicaId(1), Incarnation(1));
    log.apply(Entry::Takeover { term, replica, incarnation, base: Seq::default() });
    log
}

#[test]
fn a_thin_replica_starts_python_when_it_is_its_turn_to_take_over() {
    let log = KernelLog::default();
    assert!(starts(&kept(THIN).step(&log, Input::Leading(true), 0)), "the leader at once");
    let mut closed = led_by_another();
    closed.apply(Entry::Abandon { term: Term(1), cause: "lost".to_owned() });
    for (log, stagger_ms) in [(&log, FIRST_START_STAGGER_MS), (&closed, START_STAGGER_MS)] {
        let mut follower = kept(THIN);
        follower.closed_since_ms = None;
        follower.step(log, Input::Tick, 0);
        assert!(!starts(&follower.step(log, Input::Tick, 2 * stagger_ms - 1)));
        assert!(starts(&follower.step(log, Input::Tick, 2 * stagger_ms)));
    }
    let mut standby = kept(THIN);
    let open = led_by_another();
    standby.step(&open, Input::Leading(true), 0);
    assert!(!starts(&standby.step(&open, Input::Tick, 100_000)), "another one executes");
}

#[test]
fn a_replica_that_lost_the_race_gives_its_python_back_and_a_hot_one_keeps_it() {
    for (upkeep, is_kept) in [(THIN, false), (HOT, true)] {
        for is_warm in [false, true] {
            let mut replica = kept(upkeep);
            let mut log = KernelLog::default();
            replica.step(&log, Input::Leading(true), 0);
            if is_warm {
                replica.step(&log, Input::PythonWarm, 0);
            }
            log.clone_from(&led_by_another());
            let actions = replica.step(&log, Input::Applied(Applied::Opened(Term(1))), 0);
            assert_eq!(!actions.contains(&Action::ReleasePython), is_kept, "{actions:?}");
            assert_eq!(replica.python() == PythonPhase::Absent, !is_kept);
        }
    }
}

#[test]
fn an_idle_kernel_is_parked_after_its_time_and_the_next_cell_brings_it_back() {
    let parks = |actions: &[Action]| proposed(actions).contains(&Entry::Park { term: Term(1) });
    let (mut executor, mut log) = serving_kept(Upkeep { park_after_ms: Some(50), ..THIN });
    assert!(!parks(&executor.step(&log, Input::Tick, 49)));
    executor.step(&log, Input::Wanted, 49);
    assert!(!parks(&executor.step(&log, Input::Tick, 98)), "a completion was asked for");
    assert!(parks(&executor.step(&log, Input::Tick, 99)));
    let parked = log.apply(Entry::Park { term: Term(1) });
    let actions = executor.step(&log, Input::Applied(parked), 100);
    assert!(actions.contains(&Action::KillPython), "{actions:?}");
    assert!(executor.is_resting(&log));
    assert!(!starts(&executor.step(&log, Input::Tick, 100_000)));
    let accept = proposed(&executor.step(&log, request("a", 1), 100_000)).remove(0);
    assert!(matches!(accept, Entry::Accept { grant: None, .. }), "{accept:?}");
    let accepted = log.apply(accept);
    assert!(starts(&executor.step(&log, Input::Applied(accepted), 100_001)));
}

#[test]
fn what_needs_a_live_process_keeps_a_kernel_from_being_parked() {
    for (parks_with_refused, is_parked) in [(false, false), (true, true)] {
        let upkeep = Upkeep { park_after_ms: Some(50), parks_with_refused, ..THIN };
        let (mut executor, mut log) = serving_kept(upkeep);
        let accept = proposed(&executor.step(&log, request("a", 1), 0)).remove(0);
        log.apply(accept);
        let refused = Refused { name: "sock".to_owned(), reason: "a socket".to_owned() };
        let delta = StateDelta { refused: vec![refused], ..StateDelta::default() };
        let seq = Seq(1);
        log.apply(Entry::Complete { term: Term(1), seq, outputs: Vec::new(), delta });
        executor.step(&log, Input::Tick, 10);
        let actions = executor.step(&log, Input::Tick, 100);
        assert_eq!(!proposed(&actions).is_empty(), is_parked, "{actions:?}");
    }
}

#[test]
fn a_kernel_that_starts_parked_rests_until_it_is_wanted() {
    let log = KernelLog::default();
    let mut leader = Executor::new(Identity { replica: ME, incarnation: Incarnation(1) });
    leader.step(&log, Input::Upkeep(Upkeep { starts_parked: true, ..HOT }), 0);
    leader.step(&log, Input::Voters(vec![ME]), 0);
    leader.step(&log, Input::Leading(true), 0);
    assert!(!starts(&leader.step(&log, Input::BaseReadable(true), 0)));
    assert!(leader.is_resting(&log));
    assert!(starts(&leader.step(&log, Input::Wanted, 0)));
}
