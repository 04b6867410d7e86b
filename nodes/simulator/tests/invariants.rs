//! Random traces through every scheduler. A second set of books, kept from what goes in and comes
//! out alone, says whether GPUs were given twice, in parts, too late or not at all.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::collections::{BTreeMap, BTreeSet};

use callboard_policy::gpu::{
    costs::Start,
    decision::RUNNERS_UP_MAX,
    fleet::{NodeState, Slot},
    presets::BOUND_MS,
    scheduler::{Effect, Input, Scheduler},
};
use callboard_protocol::KernelId;
use callboard_simulator::{
    compare::{self, Kind},
    costs::Cluster,
    engine::{Setting, Watch},
    metrics::Window,
    trace::{MINUTE_MS, Task, Trace},
};
use proptest::prelude::*;

/// Slower than any start of a node that is drawn.
const BOOT_MAX_MS: u64 = 30_000;

/// Books kept beside the scheduler's own.
struct Books {
    kind: Kind,
    /// GPUs of each node.
    nodes: BTreeMap<Slot, u32>,
    /// Who holds what where.
    held: BTreeMap<KernelId, (Slot, u32)>,
    open: BTreeSet<KernelId>,
    /// What waits, since when, for how many.
    waiting: BTreeMap<KernelId, (u64, u32)>,
    log: Vec<String>,
    keeps_log: bool,
}

impl Books {
    fn new(kind: Kind, keeps_log: bool) -> Self {
        Self {
            kind,
            nodes: BTreeMap::new(),
            held: BTreeMap::new(),
            open: BTreeSet::new(),
            waiting: BTreeMap::new(),
            log: Vec::new(),
            keeps_log,
        }
    }

    fn holds_sessions(&self) -> bool {
        self.kind.name().starts_with("reservation")
    }

    fn input(&mut self, now_ms: u64, input: &Input) {
        match input {
            Input::NodeUp { slot, shape } => {
                assert_eq!(self.nodes.insert(*slot, shape.gpus), None, "{slot} is up twice");
            }
            Input::CellSubmitted { kernel, gpus, .. } => {
                assert_eq!(self.waiting.insert(*kernel, (now_ms, *gpus)), None);
            }
            Input::Released { kernel } => {
                assert!(self.held.remove(kernel).is_some(), "{kernel} released nothing");
            }
            Input::SessionOpened { kernel, .. } => {
                self.open.insert(*kernel);
            }
            Input::SessionClosed { kernel } => {
                self.open.remove(kernel);
                self.held.remove(kernel);
            }
            _ => {}
        }
    }

    fn effect(&mut self, now_ms: u64, effect: &Effect) {
        match effect {
            Effect::Grant { kernel, slot, gpus, start, reasons } => {
                let (since_ms, wanted) =
                    self.waiting.remove(kernel).expect("granted to one that waits");
                assert_eq!(*gpus, wanted, "all or nothing");
                if *start != Start::Resident {
                    let before = self.held.insert(*kernel, (*slot, *gpus));
                    assert_eq!(before, None, "{kernel} held GPUs already");
                    // Made on the fleet as it was then: the grants before it in one go changed no
                    // number of nodes.
                    let refused: u32 = reasons.refused.values().sum();
                    let nodes = u32::try_from(self.nodes.len()).unwrap();
                    assert!(refused < nodes, "{nodes} nodes, reasons {reasons:?}");
                    if self.kind == Kind::Callboard {
                        let others = (nodes - refused - 1) as usize;
                        assert_eq!(
                            reasons.runners_up.len(),
                            others.min(RUNNERS_UP_MAX),
                            "{reasons:?}"
                        );
                    }
                }
                let waited_ms = now_ms - since_ms;
                let bound_ms = BOUND_MS + BOOT_MAX_MS;
                if self.kind == Kind::Callboard {
                    assert!(waited_ms <= bound_ms, "{kernel} waited {waited_ms} ms");
                }
            }
            Effect::Reclaimed { kernel } => {
                assert!(self.held.remove(kernel).is_some(), "{kernel} had nothing to reclaim");
            }
            Effect::GiveBack { slot } => {
                assert!(self.held.values().all(|it| it.0 != *slot), "{slot} is in use");
                assert!(self.nodes.remove(slot).is_some(), "{slot} was given back twice");
            }
            _ => {}
        }
    }

    fn check(&self, scheduler: &Scheduler) {
        let mut used: BTreeMap<Slot, u32> = BTreeMap::new();
        for (slot, gpus) in self.held.values() {
            *used.entry(*slot).or_default() += gpus;
        }
        for (slot, gpus) in &used {
            assert!(gpus <= &self.nodes[slot], "{slot}: {gpus} GPUs held");
        }
        for (slot, node) in scheduler.fleet().iter() {
            assert_eq!(node.held, used.get(&slot).copied().unwrap_or(0), "{slot}");
            assert_eq!(node.usable(), self.nodes[&slot]);
        }
        // What a node's members use together is what their kernels say.
        let mut subscribed: BTreeMap<Slot, (u32, u32)> = BTreeMap::new();
        for kernel in &self.open {
            let session = scheduler.session(*kernel).unwrap();
            for slot in session.members.iter().chain(session.moving.iter().map(|it| &it.1)) {
                let sum = subscribed.entry(*slot).or_default();
                *sum = (sum.0 + session.gpus, sum.1 + 1);
            }
        }
        for (slot, node) in scheduler.fleet().iter() {
            let sum = subscribed.get(&slot).copied().unwrap_or_default();
            assert_eq!((node.subscribed, node.members), sum, "{slot}");
        }
        // Work is conserved: what waits fits nowhere. NotebookOS looks again only after a pause, and
        // in a strict queue only the first counts.
        if self.kind == Kind::Notebookos || self.holds_sessions() {
            return;
        }
        let is_strict = self.kind == Kind::FcfsBatch;
        let mut waiting: Vec<_> =
            self.waiting.iter().map(|(it, cell)| (cell.0, *it, cell.1)).collect();
        waiting.sort_unstable();
        for (_, kernel, gpus) in waiting.into_iter().take(if is_strict { 1 } else { usize::MAX }) {
            let Some(session) = scheduler.session(kernel) else { continue };
            // A kernel whose GPUs are still being cleared has its turn when they are.
            if self.held.contains_key(&kernel)
                || (self.kind == Kind::Callboard && session.members.len() < 3)
            {
                continue;
            }
            for (slot, node) in scheduler.fleet().iter() {
                let fits = node.state == NodeState::Open && node.free >= gpus;
                assert!(!fits, "{kernel} waits for {gpus} GPUs, and {slot} has {}", node.free);
            }
        }
    }
}

impl Watch for Books {
    fn decided(&mut self, now_ms: u64, input: &Input, effects: &[Effect], scheduler: &Scheduler) {
        self.input(now_ms, input);
        for effect in effects {
            self.effect(now_ms, effect);
        }
        self.check(scheduler);
        if self.keeps_log {
            self.log.push(format!("{now_ms} {input:?} {effects:?}"));
        }
    }
}

fn run(kind: Kind, trace: &Trace, seed: u64, keeps_log: bool) -> (Vec<String>, String) {
    let cluster = Cluster::default();
    let windows = [Window { from_ms: 0, to_ms: trace.horizon_ms }];
    let setting = Setting {
        trace,
        cluster: &cluster,
        seed,
        windows: &windows,
        nodes: 0,
        sample_every_ms: 3_600_000,
    };
    let mut books = Books::new(kind, keeps_log);
    let metrics = compare::run(kind, &setting, &mut books).unwrap();
    let summary = metrics[0].summary(cluster.prices, cluster.node.gpus);
    if kind == Kind::Callboard {
        // Only what came just before the end may still wait.
        let bound_ms = BOUND_MS + BOOT_MAX_MS;
        for (kernel, (since_ms, _)) in &books.waiting {
            assert!(since_ms + bound_ms >= trace.horizon_ms, "{kernel} waited to the end");
        }
    }
    (books.log, format!("{summary:?}"))
}

/// A few sessions with up to forty tasks each over six hours, pauses short and long.
fn traces() -> impl Strategy<Value = Trace> {
    let gpus = prop_oneof![Just(1_u32), Just(2), Just(4), Just(8)];
    let step = (prop_oneof![0_u64..3, 0_u64..60], prop_oneof![0_u64..5, 0_u64..90]);
    let session = (gpus, 0_u64..300, prop::collection::vec(step, 1..40));
    prop::collection::vec(session, 1..25).prop_map(|sessions| {
        let sessions = sessions.into_iter().enumerate().map(|(number, (gpus, first, steps))| {
            let mut at = first;
            let tasks = steps.into_iter().map(|(pause, duration)| {
                let task =
                    Task { submit_ms: at * MINUTE_MS, duration_ms: duration * MINUTE_MS, gpus };
                at += duration + pause;
                task
            });
            (number as u64, tasks.collect())
        });
        Trace::of(sessions.collect(), 360 * MINUTE_MS)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn no_scheduler_gives_a_gpu_twice_or_in_part_or_leaves_one_idle(
        trace in traces(),
        seed in any::<u64>(),
    ) {
        for kind in Kind::ALL {
            run(kind, &trace, seed, false);
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_decisions(trace in traces(), seed in any::<u64>()) {
        for kind in [Kind::Notebookos, Kind::Callboard] {
            prop_assert_eq!(run(kind, &trace, seed, true), run(kind, &trace, seed, true));
        }
    }
}
