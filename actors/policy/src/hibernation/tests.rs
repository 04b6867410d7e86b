//! Groups fall asleep together, and lost, doubled and late words leave nobody asleep alone.

use callboard_protocol::{DiskId, Incarnation};

use super::*;
use crate::failure::NodeView;

const CONFIG: HibernationConfig =
    HibernationConfig { after_ms: 1_000, retry_ms: 500, agree_within_ms: 200, stagger_ms: 100 };

fn id(n: u64) -> ReplicaId {
    ReplicaId(n)
}

fn situation(me: u64) -> Situation {
    Situation {
        leading: me == 1,
        term: 4,
        index: Some(9),
        others: (1..=3).filter(|n| *n != me).map(id).collect(),
        spec_version: 1,
        busy: None,
    }
}

fn offer(attempt: u64) -> SleepOffer {
    SleepOffer { from: id(1), attempt, term: 4, index: 9, spec_version: 1 }
}

fn answer(attempt: u64, from: u64, agreed: bool) -> Input {
    Input::Answered { attempt, from: id(from), agreed }
}

fn machine(me: u64) -> Hibernation {
    Hibernation::new(CONFIG, id(me), 0)
}

#[test]
fn the_leader_sleeps_once_all_have_agreed() {
    let (mut leader, seen) = (machine(1), situation(1));
    assert_eq!(leader.step(Input::Look, &seen, 999), None);
    let others: BTreeSet<ReplicaId> = [id(2), id(3)].into();
    let asked = leader.step(Input::Look, &seen, 1_000);
    assert_eq!(asked, Some(Action::Ask(offer(1), others.clone())));
    assert_eq!(leader.step(answer(1, 2, true), &seen, 1_010), None);
    // The same answer twice is one answer.
    assert_eq!(leader.step(answer(1, 2, true), &seen, 1_011), None);
    let slept = leader.step(answer(1, 3, true), &seen, 1_020);
    assert_eq!(slept, Some(Action::Sleep(offer(1), others)));
}

#[test]
fn one_that_cannot_keeps_all_awake_for_a_while() {
    let (mut leader, seen) = (machine(1), situation(1));
    leader.step(Input::Look, &seen, 1_000);
    leader.step(answer(1, 2, false), &seen, 1_010);
    assert_eq!(leader.step(answer(1, 3, true), &seen, 1_011), None);
    assert_eq!(leader.step(Input::Look, &seen, 1_500), None, "not at once");
    assert!(
        matches!(leader.step(Input::Look, &seen, 1_510), Some(Action::Ask(o, _)) if o.attempt == 2)
    );
    // An answer to the former question counts for nothing.
    leader.step(answer(1, 2, true), &seen, 1_511);
    assert_eq!(leader.step(answer(2, 3, true), &seen, 1_512), None);
}

#[test]
fn a_lost_answer_ends_the_attempt() {
    let (mut leader, seen) = (machine(1), situation(1));
    leader.step(Input::Look, &seen, 1_000);
    leader.step(answer(1, 2, true), &seen, 1_010);
    assert_eq!(leader.step(Input::Look, &seen, 1_200), None);
    assert_eq!(leader.step(answer(1, 3, true), &seen, 1_201), None, "too late");
}

#[test]
fn a_request_meanwhile_keeps_everybody_awake() {
    let (mut leader, seen) = (machine(1), situation(1));
    leader.step(Input::Look, &seen, 1_000);
    leader.step(Input::Active, &seen, 1_005);
    leader.step(answer(1, 2, true), &seen, 1_010);
    assert_eq!(leader.step(answer(1, 3, true), &seen, 1_011), None);
    let (mut member, seen) = (machine(2), situation(2));
    assert_eq!(member.step(Input::Asked(offer(1)), &seen, 0), Some(Action::Answer(None)));
    member.step(Input::Active, &seen, 5);
    assert_eq!(member.step(Input::Told(offer(1)), &seen, 6), None, "it broke its word in time");
}

#[test]
fn a_member_sleeps_only_where_it_said_it_would() {
    let seen = situation(2);
    let promised = || {
        let mut member = machine(2);
        assert_eq!(member.step(Input::Asked(offer(7)), &seen, 0), Some(Action::Answer(None)));
        member
    };
    let asleep = Some(Action::Sleep(offer(7), BTreeSet::new()));
    assert_eq!(promised().step(Input::Told(offer(7)), &seen, 10), asleep);
    // Never asked, or asked another question.
    assert_eq!(machine(2).step(Input::Told(offer(7)), &seen, 10), None);
    assert_eq!(promised().step(Input::Told(offer(6)), &seen, 10), None);
    // Told twice, told late, and moved on.
    let mut member = promised();
    member.step(Input::Told(offer(7)), &seen, 10);
    assert_eq!(member.step(Input::Told(offer(7)), &seen, 11), None);
    assert_eq!(promised().step(Input::Told(offer(7)), &seen, 400), None);
    for moved in [
        Situation { term: 5, ..seen.clone() },
        Situation { index: Some(10), ..seen.clone() },
        Situation { index: None, ..seen.clone() },
        Situation { spec_version: 2, ..seen.clone() },
        Situation { leading: true, ..seen.clone() },
        Situation { busy: Some("a cell"), ..seen.clone() },
    ] {
        assert_eq!(promised().step(Input::Told(offer(7)), &moved, 10), None, "{moved:?}");
        let mut member = machine(2);
        let answered = member.step(Input::Asked(offer(7)), &moved, 10);
        assert!(matches!(answered, Some(Action::Answer(Some(_)))), "{moved:?}: {answered:?}");
    }
}

#[test]
fn zero_means_never_and_a_single_member_asks_nobody() {
    let never = HibernationConfig { after_ms: 0, ..CONFIG };
    let mut leader = Hibernation::new(never, id(1), 0);
    assert_eq!(leader.step(Input::Look, &situation(1), u64::MAX), None);
    let mut member = Hibernation::new(never, id(2), 0);
    let answered = member.step(Input::Asked(offer(1)), &situation(2), 0);
    assert!(matches!(answered, Some(Action::Answer(Some(_)))));
    let alone = Situation { others: BTreeSet::new(), ..situation(1) };
    let slept = machine(1).step(Input::Look, &alone, 1_000);
    assert_eq!(slept, Some(Action::Sleep(offer(1), BTreeSet::new())));
}

/// Three machines and a bus that loses, doubles and delays. A group may end with some asleep and
/// some awake only if an awake one has no leader left, so that it will call the others; and nobody
/// sleeps who was busy since it agreed.
#[test]
fn any_order_of_words_leaves_nobody_asleep_under_a_leader() {
    for seed in 0..3_000 {
        let mut chance = Chance::new(seed);
        let mut machines: Vec<Hibernation> = (1..=3).map(machine).collect();
        let mut asleep = [false; 3];
        let mut seen: Vec<Situation> = (1..=3).map(situation).collect();
        let mut wires: Vec<(usize, Input)> = Vec::new();
        for now_ms in (1_000..4_000).step_by(20) {
            wires.push((0, Input::Look));
            if chance.next_u64().is_multiple_of(90) {
                let busy = usize::try_from(chance.between(0, 2)).unwrap();
                machines[busy].step(Input::Active, &seen[busy], now_ms);
            }
            let mut later = Vec::new();
            for (to, input) in std::mem::take(&mut wires) {
                match chance.between(0, 9) {
                    0 => continue,
                    1 => later.push((to, input.clone())),
                    2 => {
                        later.push((to, input));
                        continue;
                    }
                    _ => {}
                }
                if asleep[to] {
                    continue;
                }
                match machines[to].step(input.clone(), &seen[to], now_ms) {
                    Some(Action::Ask(offer, others)) => later.extend(
                        others.iter().map(|o| (o.0 as usize - 1, Input::Asked(offer.clone()))),
                    ),
                    Some(Action::Answer(no)) => {
                        let Input::Asked(offer) = input else { panic!("an answer to {input:?}") };
                        let from = id(to as u64 + 1);
                        let (attempt, agreed) = (offer.attempt, no.is_none());
                        later.push((0, Input::Answered { attempt, from, agreed }));
                    }
                    Some(Action::Sleep(offer, others)) => {
                        asleep[to] = true;
                        later.extend(
                            others.iter().map(|o| (o.0 as usize - 1, Input::Told(offer.clone()))),
                        );
                    }
                    None => {}
                }
            }
            wires = later;
            assert!(
                asleep[0] || !(asleep[1] || asleep[2]),
                "seed {seed}: a member sleeps under a leader that is awake"
            );
            if asleep == [true; 3] {
                // Everybody wakes in a new term; words of the old one are still about.
                asleep = [false; 3];
                for (n, seen) in seen.iter_mut().enumerate() {
                    seen.term += 1;
                    machines[n] = Hibernation::new(CONFIG, id(n as u64 + 1), now_ms);
                }
            }
        }
    }
}

fn nodes(healths: &[(u64, NodeHealth)]) -> NodesView {
    let view = |health| NodeView {
        health,
        incarnation: Incarnation(1),
        disk: DiskId::generate(),
        silent_ms: 0,
        how: None,
        last_beat: None,
    };
    let node = |n: &u64| NodeId::new(format!("node-{n}")).unwrap();
    let nodes = healths.iter().map(|(n, health)| (node(n), view(*health))).collect();
    NodesView { outage: None, nodes }
}

fn sleeping(me: u64) -> Sleeping {
    let voters = (1..=3).map(|n| (id(n), NodeId::new(format!("node-{n}")).unwrap())).collect();
    Sleeping { me: id(me), leader: id(2), executor: Some(id(3)), voters }
}

#[test]
fn exactly_one_answers_for_a_sleeping_group() {
    use NodeHealth::{Gone, Suspected, Up};
    for (healths, expected) in [
        ([(1, Up), (2, Up), (3, Up)], 2),
        ([(1, Up), (2, Suspected), (3, Up)], 1),
        ([(1, Gone), (2, Suspected), (3, Up)], 3),
        ([(1, Gone), (2, Gone), (3, Gone)], 2),
    ] {
        let view = nodes(&healths);
        let who: Vec<u64> = (1..=3).filter(|me| sleeping(*me).answers(&view)).collect();
        assert_eq!(who, [expected], "{healths:?}");
    }
}

#[test]
fn only_the_loss_of_the_executor_wakes_a_group_and_no_outage_does() {
    use NodeHealth::{Suspected, Up};
    let lost = nodes(&[(1, Up), (2, Up), (3, Suspected)]);
    assert!(sleeping(1).has_lost_its_executor(&lost));
    assert!(!sleeping(1).has_lost_its_executor(&nodes(&[(1, Suspected), (2, Suspected), (3, Up)])));
    let outage = NodesView { outage: Some("the bus is down".to_owned()), ..lost.clone() };
    assert!(!sleeping(1).has_lost_its_executor(&outage));
    let parked = Sleeping { executor: None, ..sleeping(1) };
    assert!(!parked.has_lost_its_executor(&lost));
}

#[test]
fn delays_spread_and_a_digest_does_not_depend_on_the_order() {
    let kernels: Vec<KernelId> = (0..200).map(|_| KernelId::generate()).collect();
    let delays: BTreeSet<u64> = kernels.iter().map(|it| wake_delay_ms(*it, &CONFIG)).collect();
    assert!(delays.len() > 50, "{delays:?}");
    assert!(delays.iter().all(|delay| *delay <= CONFIG.stagger_ms));
    let share = |kernel: &KernelId| digest_share(*kernel, id(1), 9, 4);
    let forth = kernels.iter().fold(0, |sum, it| sum ^ share(it));
    let back = kernels.iter().rev().fold(0, |sum, it| sum ^ share(it));
    assert_eq!(forth, back);
    assert_ne!(share(&kernels[0]), digest_share(kernels[0], id(1), 10, 4));
}
