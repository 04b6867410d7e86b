//! The scheduler on fleets of a fixed size, where what is scarce stays scarce.

use super::*;
use crate::gpu::{
    autoscaling::{Autoscaling, Lacking, ScalePlan, ScaleView},
    presets::{self, BOUND_MS},
};

const SHAPE: NodeShape = NodeShape { gpus: 8, vram_mib: 16_384 };
const MINUTE_MS: u64 = 60_000;

/// Never another node.
struct Fixed;

impl Autoscaling for Fixed {
    fn interval_ms(&self) -> u64 {
        MINUTE_MS
    }

    fn plan(&mut self, _view: &ScaleView<'_>) -> ScalePlan {
        ScalePlan::default()
    }

    fn on_waiting(&mut self, _lacking: &Lacking<'_>) -> u32 {
        0
    }
}

/// A fleet of so many nodes, and sessions with one member each.
fn scheduler(nodes: u32, is_fixed: bool) -> Scheduler {
    let ours = presets::callboard(Default::default());
    let scaling = if is_fixed { Box::new(Fixed) } else { ours.scaling };
    let policies = Policies { replicas: 1, scaling, ..ours };
    let mut scheduler = Scheduler::new(policies, SHAPE, 15_000);
    for slot in (0..nodes).map(Slot) {
        scheduler.handle(0, &Input::NodeUp { slot, shape: SHAPE });
    }
    scheduler
}

fn kernel(number: u64) -> KernelId {
    KernelId::from_number(u128::from(number))
}

impl Scheduler {
    fn open_session(&mut self, number: u64, gpus: u32) -> Vec<Effect> {
        let opened = Input::SessionOpened {
            kernel: kernel(number),
            owner: number,
            gpus,
            vram_mib: 0,
            state_mib: 100,
        };
        self.handle(0, &opened)
    }

    fn submit(&mut self, now_ms: u64, number: u64, gpus: u32) -> Vec<Effect> {
        let cell =
            Input::CellSubmitted { kernel: kernel(number), gpus, priority: 0, deadline_ms: None };
        self.handle(now_ms, &cell)
    }

    fn end(&mut self, now_ms: u64, number: u64) -> Vec<Effect> {
        let mut effects = self.handle(now_ms, &Input::CellEnded { kernel: kernel(number) });
        effects.extend(self.handle(now_ms, &Input::Released { kernel: kernel(number) }));
        effects
    }
}

/// Who was granted what, in order.
fn grants(effects: &[Effect]) -> Vec<(KernelId, Slot, u32)> {
    let grant = |effect: &Effect| match effect {
        Effect::Grant { kernel, slot, gpus, .. } => Some((*kernel, *slot, *gpus)),
        _ => None,
    };
    effects.iter().filter_map(grant).collect()
}

#[test]
fn a_wide_cell_is_not_passed_by_narrow_ones_for_ever() {
    let mut scheduler = scheduler(1, true);
    // Sixteen sessions of one GPU, eight of which always run, and one of eight GPUs.
    (1..=16).for_each(|number| {
        scheduler.open_session(number, 1);
    });
    scheduler.open_session(100, 8);
    (1..=8).for_each(|number| assert_eq!(grants(&scheduler.submit(0, number, 1)).len(), 1));
    assert!(grants(&scheduler.submit(0, 100, 8)).is_empty());
    (9..=16).for_each(|number| assert!(grants(&scheduler.submit(1, number, 1)).is_empty()));
    // Every ten seconds one ends and comes back.
    let mut running: std::collections::VecDeque<u64> = (1..=8).collect();
    let mut begun_at_ms = None;
    for step in 1..100 {
        let now_ms = step * 10_000;
        let mut effects = Vec::new();
        if let Some(number) = running.pop_front() {
            effects.extend(scheduler.end(now_ms, number));
            effects.extend(scheduler.submit(now_ms, number, 1));
        }
        effects.extend(scheduler.handle(now_ms, &Input::Woken));
        for (granted, _, gpus) in grants(&effects) {
            if granted == kernel(100) {
                begun_at_ms = Some(now_ms);
            } else {
                assert_eq!(gpus, 1);
                running.push_back((1..=16).find(|it| kernel(*it) == granted).unwrap());
            }
        }
        if begun_at_ms.is_some() {
            break;
        }
    }
    // Past its bound nothing new begins, and the eight that run end one by one.
    let begun_at_ms = begun_at_ms.expect("the wide cell never began");
    assert!(begun_at_ms <= BOUND_MS + 8 * 10_000, "it began after {begun_at_ms} ms");
}

#[test]
fn a_cell_has_all_of_its_gpus_on_one_node_or_none() {
    let mut scheduler = scheduler(2, true);
    for number in 1..=3 {
        scheduler.open_session(number, 8);
    }
    assert_eq!(grants(&scheduler.submit(0, 1, 5)).len(), 1);
    assert_eq!(grants(&scheduler.submit(0, 2, 5)).len(), 1);
    // Six GPUs are free, three on each node.
    assert!(grants(&scheduler.submit(0, 3, 4)).is_empty());
    assert_eq!(scheduler.fleet().held(), 10);
    let granted = grants(&scheduler.end(1_000, 1));
    assert_eq!(granted.len(), 1);
    assert_eq!((granted[0].0, granted[0].2), (kernel(3), 4));
}

#[test]
fn gpus_are_not_given_on_until_they_are_clear() {
    let mut scheduler = scheduler(1, true);
    scheduler.open_session(1, 8);
    scheduler.open_session(2, 8);
    scheduler.submit(0, 1, 8);
    scheduler.submit(0, 2, 8);
    assert!(grants(&scheduler.handle(10, &Input::CellEnded { kernel: kernel(1) })).is_empty());
    let granted = grants(&scheduler.handle(20, &Input::Released { kernel: kernel(1) }));
    assert_eq!(granted, [(kernel(2), Slot(0), 8)]);
}

#[test]
fn a_lost_node_ends_its_cells_and_frees_what_waits_elsewhere_alone() {
    let mut scheduler = scheduler(2, true);
    for number in 1..=3 {
        scheduler.open_session(number, 8);
    }
    let first = grants(&scheduler.submit(0, 1, 8));
    let second = grants(&scheduler.submit(0, 2, 8));
    scheduler.submit(0, 3, 8);
    assert_ne!(first[0].1, second[0].1);
    let effects = scheduler.handle(10, &Input::NodeLost { slot: first[0].1 });
    assert!(effects.contains(&Effect::CellLost { kernel: kernel(1) }));
    assert!(grants(&effects).is_empty(), "the other node is full");
    assert_eq!(scheduler.fleet().held(), 8);
    // The session is there still, and comes next after the one that waits.
    scheduler.submit(20, 1, 8);
    assert_eq!(grants(&scheduler.end(30, 2)), [(kernel(3), second[0].1, 8)]);
    assert_eq!(grants(&scheduler.end(40, 3)), [(kernel(1), second[0].1, 8)]);
}

#[test]
fn a_closed_session_gives_back_what_it_held_and_leaves_the_queue() {
    let mut scheduler = scheduler(1, true);
    for number in 1..=3 {
        scheduler.open_session(number, 8);
    }
    scheduler.submit(0, 1, 8);
    scheduler.submit(0, 2, 8);
    scheduler.submit(1, 3, 8);
    scheduler.handle(2, &Input::SessionClosed { kernel: kernel(2) });
    assert_eq!(scheduler.waiting_len(), 1);
    let granted = grants(&scheduler.handle(3, &Input::SessionClosed { kernel: kernel(1) }));
    assert_eq!(granted, [(kernel(3), Slot(0), 8)]);
}

#[test]
fn inputs_of_kernels_that_are_not_known_change_nothing() {
    let mut scheduler = scheduler(1, true);
    for input in [
        Input::CellEnded { kernel: kernel(9) },
        Input::Released { kernel: kernel(9) },
        Input::SessionClosed { kernel: kernel(9) },
        Input::MemberMoved { kernel: kernel(9), from: Slot(0), to: Slot(7) },
        Input::NodeLost { slot: Slot(44) },
    ] {
        assert!(scheduler.handle(1, &input).is_empty(), "{input:?}");
    }
    assert_eq!(scheduler.fleet().len(), 1);
}

#[test]
fn a_node_is_asked_for_only_after_patience_and_once() {
    let mut scheduler = scheduler(1, false);
    scheduler.open_session(1, 8);
    scheduler.open_session(2, 8);
    scheduler.submit(0, 1, 8);
    let waits = scheduler.submit(0, 2, 8);
    let boots =
        |effects: &[Effect]| effects.iter().filter(|it| matches!(it, Effect::Boot { .. })).count();
    assert_eq!(boots(&waits), 0);
    assert!(waits.contains(&Effect::WakeAt { at_ms: 1_000 }), "{waits:?}");
    assert_eq!(boots(&scheduler.handle(1_000, &Input::Woken)), 1);
    assert_eq!(boots(&scheduler.handle(1_500, &Input::Woken)), 0);
    let up = Input::NodeUp { slot: Slot(1), shape: SHAPE };
    assert_eq!(grants(&scheduler.handle(15_000, &up)), [(kernel(2), Slot(1), 8)]);
}

#[test]
fn the_empty_node_that_goes_is_the_one_that_nobody_will_come_back_to() {
    let mut fleet = Fleet::default();
    (0..3).for_each(|slot| fleet.add(Slot(slot), SHAPE, 0));
    fleet.claim(&BTreeMap::from([(Slot(1), 4.0), (Slot(2), 0.5)]));
    let mut scaling = presets::callboard(Default::default()).scaling;
    let plan = |scaling: &mut Box<dyn Autoscaling + Send>, now_ms, fleet: &Fleet| {
        let view = ScaleView {
            now_ms,
            fleet,
            booting: 0,
            boot_ms: 15_000,
            shape: SHAPE,
            waiting: &[],
            growth: &|_| Default::default(),
        };
        scaling.plan(&view).give_back
    };
    fleet.add(Slot(3), SHAPE, 0);
    fleet.claim(&BTreeMap::from([(Slot(1), 4.0), (Slot(2), 0.5), (Slot(3), 1.0), (Slot(0), 2.0)]));
    // Three nodes are the least; of four one may go.
    assert_eq!(plan(&mut scaling, 0, &fleet), [Slot(2)]);
}

#[test]
fn a_device_out_of_order_is_not_given() {
    let mut fleet = Fleet::default();
    fleet.add(Slot(0), SHAPE, 0);
    fleet.set_in_order(Slot(0), false);
    assert_eq!((fleet.widest(), fleet.usable()), (7, 7));
    assert!(!fleet.hold(Slot(0), 8));
    assert!(fleet.hold(Slot(0), 7));
    // Nothing is free that could go out of order, and nothing more than there is comes back.
    fleet.set_in_order(Slot(0), false);
    assert_eq!(fleet.usable(), 7);
    fleet.set_in_order(Slot(0), true);
    fleet.set_in_order(Slot(0), true);
    assert_eq!(fleet.usable(), 8);
    fleet.release(Slot(0), 7);
    assert!(fleet.hold(Slot(0), 8));
}

#[test]
fn more_gpus_than_any_node_could_have_are_refused_with_a_next_step() {
    let mut scheduler = scheduler(1, true);
    scheduler.open_session(1, 8);
    let effects = scheduler.submit(0, 1, 16);
    let [Effect::Refuse { why, .. }] = effects.as_slice() else { panic!("{effects:?}") };
    assert!(why.contains("the largest has 8; ask for fewer"), "{why}");
    assert_eq!(scheduler.waiting_len(), 0);
    assert_eq!(grants(&scheduler.submit(1, 1, 8)).len(), 1);
}

#[test]
fn a_wake_that_was_overtaken_does_not_ask_for_another() {
    let mut scheduler = scheduler(1, true);
    for number in 1..=3 {
        scheduler.open_session(number, 8);
    }
    scheduler.submit(0, 1, 8);
    let asked = |effects: &[Effect]| {
        effects.iter().filter(|it| matches!(it, Effect::WakeAt { .. })).count()
    };
    assert_eq!(asked(&scheduler.submit(50_000, 2, 8)), 1);
    assert_eq!(asked(&scheduler.submit(60_000, 3, 8)), 0, "the one before comes first");
    // Said too early, it changes nothing; at its time, the next is asked for.
    assert_eq!(asked(&scheduler.handle(70_000, &Input::Woken)), 0);
    assert_eq!(asked(&scheduler.handle(50_000 + BOUND_MS, &Input::Woken)), 1);
}

#[test]
fn a_session_that_will_be_back_and_find_no_room_has_its_bytes_brought_to_where_there_is_some() {
    let mut scheduler = scheduler(2, true);
    scheduler.open_session(1, 8);
    // Twenty cells of ten seconds, a minute apart: it will be back.
    for step in 0..20 {
        let now_ms = step * 70_000;
        assert_eq!(grants(&scheduler.submit(now_ms, 1, 8)).len(), 1);
        scheduler.end(now_ms + 10_000, 1);
    }
    let home = scheduler.session(kernel(1)).unwrap().executor.unwrap();
    let now_ms = 19 * 70_000 + 10_000;
    // Where it was, there is room: nothing is brought anywhere.
    let prefetched = |effects: &[Effect]| {
        effects.iter().find_map(|it| match it {
            Effect::Prefetch { slot, .. } => Some(*slot),
            _ => None,
        })
    };
    let look = |scheduler: &mut Scheduler, at_ms| scheduler.handle(at_ms, &Input::Look);
    assert_eq!(prefetched(&look(&mut scheduler, now_ms + 10_000)), None);
    // Others fill its node.
    for number in 2..=9 {
        scheduler.open_session(number, 1);
        scheduler.submit(now_ms + 11_000, number, 1);
    }
    assert_eq!(scheduler.fleet().get(home).unwrap().free, 0, "they were meant to fill it");
    let to = prefetched(&look(&mut scheduler, now_ms + 20_000)).unwrap();
    assert_ne!(to, home);
    // Once, and until the bytes are there the start is one from a peer.
    assert_eq!(prefetched(&look(&mut scheduler, now_ms + 30_000)), None);
    scheduler.handle(now_ms + 31_000, &Input::Prefetched { kernel: kernel(1), slot: to });
    let effects = scheduler.submit(now_ms + 60_000, 1, 8);
    assert!(
        effects.iter().any(|it| matches!(
            it,
            Effect::Grant { slot, start: Start::Standby, .. } if *slot == to
        )),
        "{effects:?}"
    );
}
