use callboard_protocol::{Epoch, node::NodeExited};
use proptest::prelude::{prop, prop_assert, prop_assert_eq, proptest};
use uuid::Uuid;

use super::*;

const TICK_MS: u64 = 250;

fn node(number: usize) -> NodeId {
    NodeId::new(format!("node-{number}")).unwrap()
}

fn disk(number: usize) -> DiskId {
    DiskId(Uuid::from_u128(number as u128))
}

fn beat(number: usize, incarnation: u64, at_ms: u64) -> Beat {
    Beat {
        node: node(number),
        disk: disk(number),
        incarnation: Incarnation(incarnation),
        number: at_ms / TICK_MS,
        pid: 1,
        host: "host".to_owned(),
        replicas: 0,
        running_cells: 0,
        epoch: Epoch(1),
        suspects: vec![],
        python_problem: None,
        disk_level: None,
        environment: None,
        unenforced: Vec::new(),
        asleep: Default::default(),
        python_stock: Default::default(),
        desired_format: 0,
    }
}

fn exited(number: usize, incarnation: Option<u64>) -> NodeExited {
    NodeExited {
        node: node(number),
        incarnation: incarnation.map(Incarnation),
        how: "killed by signal 9".to_owned(),
    }
}

/// A detector on node-0 and the beats it hears.
struct Bench {
    detector: FailureDetector,
    now_ms: u64,
}

impl Bench {
    fn new() -> Self {
        let detector = FailureDetector::new(FailureConfig::default(), node(0), 0);
        Self { detector, now_ms: 0 }
    }

    /// Lets time pass while the given nodes are heard in their first life.
    fn hear(&mut self, nodes: &[usize], for_ms: u64) -> NodesView {
        let end_ms = self.now_ms + for_ms;
        let mut view = self.detector.tick(self.now_ms);
        while self.now_ms < end_ms {
            self.now_ms += TICK_MS;
            for number in nodes {
                self.detector.on_beat(self.now_ms, &beat(*number, 1, self.now_ms));
            }
            view = self.detector.tick(self.now_ms);
        }
        view
    }
}

fn health(view: &NodesView, number: usize) -> NodeHealth {
    view.nodes[&node(number)].health
}

#[test]
fn silence_is_suspected_then_gone_then_forgiven() {
    let mut bench = Bench::new();
    bench.hear(&[0, 1, 2], 1_000);
    assert_eq!(health(&bench.hear(&[0, 1], 1_250), 2), NodeHealth::Up);
    let view = bench.hear(&[0, 1], 250);
    assert_eq!(health(&view, 2), NodeHealth::Suspected);
    assert_eq!(view.outage, None, "one of three is not more than a third");
    assert_eq!(health(&bench.hear(&[0, 1], 58_000), 2), NodeHealth::Suspected);
    assert_eq!(health(&bench.hear(&[0, 1], 500), 2), NodeHealth::Gone);
    assert_eq!(health(&bench.hear(&[0, 1, 2], 250), 2), NodeHealth::Up);
}

#[test]
fn an_exit_is_suspected_at_once_and_only_a_newer_life_clears_it() {
    let mut bench = Bench::new();
    bench.hear(&[0, 1, 2], 1_000);
    bench.detector.on_exited(bench.now_ms, &exited(2, Some(1)));
    let view = bench.detector.tick(bench.now_ms);
    assert_eq!(health(&view, 2), NodeHealth::Suspected);
    assert_eq!(view.nodes[&node(2)].how.as_deref(), Some("killed by signal 9"));
    assert_eq!(health(&bench.hear(&[0, 1, 2], 250), 2), NodeHealth::Suspected, "a late beat");
    bench.detector.on_beat(bench.now_ms, &beat(2, 2, 0));
    let view = bench.detector.tick(bench.now_ms);
    assert_eq!(health(&view, 2), NodeHealth::Up);
    assert_eq!(view.nodes[&node(2)].how, None);
    bench.detector.on_exited(bench.now_ms, &exited(2, Some(1)));
    bench.detector.on_beat(bench.now_ms, &beat(2, 1, 9_000));
    let view = bench.detector.tick(bench.now_ms);
    assert_eq!(health(&view, 2), NodeHealth::Up, "reports of an older life change nothing");
    assert_eq!(view.nodes[&node(2)].incarnation, Incarnation(2));
}

#[test]
fn an_exit_of_an_unnamed_life_is_cleared_by_beats_that_go_on() {
    let mut bench = Bench::new();
    bench.hear(&[0, 1, 2], 1_000);
    bench.detector.on_exited(bench.now_ms, &exited(2, None));
    assert_eq!(health(&bench.hear(&[0, 1, 2], 250), 2), NodeHealth::Suspected);
    assert_eq!(health(&bench.hear(&[0, 1, 2], 250), 2), NodeHealth::Up);
}

#[test]
fn a_node_with_another_disk_is_believed_once_the_old_one_is_silent() {
    let mut bench = Bench::new();
    bench.hear(&[0, 1, 2], 1_000);
    let replaced = Beat { disk: disk(77), ..beat(2, 1, 0) };
    bench.detector.on_beat(bench.now_ms, &replaced);
    assert_eq!(bench.detector.tick(bench.now_ms).nodes[&node(2)].disk, disk(2));
    bench.hear(&[0, 1], 1_500);
    bench.detector.on_beat(bench.now_ms, &replaced);
    let view = bench.detector.tick(bench.now_ms);
    assert_eq!((view.nodes[&node(2)].disk, health(&view, 2)), (disk(77), NodeHealth::Up));
}

#[test]
fn nobody_is_gone_while_more_than_a_third_is_silent() {
    let mut bench = Bench::new();
    bench.hear(&[0, 1, 2], 1_000);
    let view = bench.hear(&[0], 200_000);
    assert_eq!(
        (health(&view, 1), health(&view, 2)),
        (NodeHealth::Suspected, NodeHealth::Suspected)
    );
    assert!(view.outage.unwrap().contains("2 of 3 nodes are silent (node-1, node-2)"));
    let view = bench.hear(&[0, 1], 2_500);
    assert!(view.outage.is_some(), "thaws only after a healthy interval");
    let view = bench.hear(&[0, 1], 1_000);
    assert_eq!((view.outage.clone(), health(&view, 2)), (None, NodeHealth::Suspected));
    assert_eq!(health(&bench.hear(&[0, 1], 58_000), 2), NodeHealth::Suspected, "clock restarted");
    assert_eq!(health(&bench.hear(&[0, 1], 2_500), 2), NodeHealth::Gone);
}

#[test]
fn a_lost_connection_suspects_nobody() {
    let mut bench = Bench::new();
    bench.hear(&[0, 1, 2], 1_000);
    bench.detector.on_bus(bench.now_ms, false);
    let view = bench.hear(&[], 100_000);
    assert!(view.outage.as_ref().unwrap().contains("lost its connection"));
    assert_eq!(health(&view, 1), NodeHealth::Up);
    bench.detector.on_bus(bench.now_ms, true);
    let view = bench.hear(&[], 1_250);
    assert!(view.outage.is_some());
    assert_eq!(health(&view, 1), NodeHealth::Up);
    let view = bench.hear(&[0, 1, 2], 3_250);
    assert_eq!(view.outage, None);
}

#[test]
fn a_broker_that_delivers_nothing_is_an_outage() {
    let mut bench = Bench::new();
    bench.hear(&[0, 1, 2, 3], 1_000);
    let view = bench.hear(&[1, 2, 3], 1_500);
    assert!(view.outage.unwrap().contains("does not hear its own heartbeats"));
}

#[test]
fn a_node_that_was_stopped_suspects_nobody_when_it_wakes() {
    let mut bench = Bench::new();
    bench.hear(&[0, 1, 2], 1_000);
    bench.now_ms += 100_000;
    let view = bench.detector.tick(bench.now_ms);
    assert!(view.outage.as_ref().unwrap().contains("stopped for 100000 ms"));
    assert_eq!((health(&view, 1), health(&view, 2)), (NodeHealth::Up, NodeHealth::Up));
    let view = bench.hear(&[0, 1, 2], 2_750);
    assert!(view.outage.is_some());
    let view = bench.hear(&[0, 1, 2], 500);
    assert_eq!((view.outage.clone(), health(&view, 2)), (None, NodeHealth::Up));
}

#[test]
fn a_new_life_is_news_and_that_it_has_settled_is_news_once() {
    let mut bench = Bench::new();
    let mut shown = bench.hear(&[0, 1], 5_000);
    let mut news = Vec::new();
    for number in 1..30 {
        bench.now_ms += TICK_MS;
        let mut again = beat(1, 2, bench.now_ms);
        again.number = number;
        bench.detector.on_beat(bench.now_ms, &again);
        bench.detector.on_beat(bench.now_ms, &beat(0, 1, bench.now_ms));
        let view = bench.detector.tick(bench.now_ms);
        if !view.says_the_same_as(&shown) {
            news.push((number, view.nodes[&node(1)].has_settled()));
        }
        shown = view;
    }
    assert_eq!(news, [(1, false), (BEATS_TO_SETTLE, true)]);
}

proptest! {
    /// Whatever happens, a node becomes gone only outside an outage, after `gone_after_ms` of
    /// real silence, and we never suspect ourselves.
    #[test]
    fn gone_needs_silence_and_no_outage(
        steps in prop::collection::vec((0_u8..8, 0_usize..5, 1_u64..20_000), 1..200),
    ) {
        let mut detector = FailureDetector::new(FailureConfig::default(), node(0), 0);
        let mut now_ms = 0;
        let mut before = NodesView::default();
        for (what, who, amount) in steps {
            match what {
                0..3 => now_ms += amount % 1_000,
                3 => now_ms += amount,
                4 => detector.on_bus(now_ms, amount % 3 != 0),
                5 => detector.on_exited(now_ms, &exited(who, (amount % 2 == 0).then_some(1))),
                _ => detector.on_beat(now_ms, &beat(who, 1 + amount / 15_000, now_ms)),
            }
            let view = detector.tick(now_ms);
            for (id, now) in &view.nodes {
                let was = before.nodes.get(id).map(|view| view.health);
                if now.health == NodeHealth::Gone && was != Some(NodeHealth::Gone) {
                    prop_assert_eq!(&view.outage, &None);
                    prop_assert!(now.silent_ms >= FailureConfig::default().gone_after_ms);
                }
            }
            if let Some(own) = view.nodes.get(&node(0)) {
                prop_assert_eq!(own.health, NodeHealth::Up);
            }
            before = view;
        }
    }
}
