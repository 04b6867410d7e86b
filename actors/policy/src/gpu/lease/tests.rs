//! The book of leases, step by step and under random steps.

use proptest::prelude::*;

use super::*;

fn devices(count: u32) -> Vec<Device> {
    let device =
        |index| Device { index, uuid: format!("GPU-{index}"), vram_mib: 16_384, island: index / 4 };
    (0..count).map(device).collect()
}

fn kernel(number: u128) -> KernelId {
    KernelId::from_number(number)
}

const T1: Term = Term(1);
const T2: Term = Term(2);

#[test]
fn a_cell_has_gpus_tentatively_then_actively_and_they_are_cleared_before_they_are_free() {
    let mut book = Leases::new("b", devices(8));
    assert_eq!(book.ask(kernel(1), T1, 2, 0, 0).unwrap(), [0, 1]);
    assert_eq!(book.activate(kernel(1), T1, 10).unwrap(), [0, 1]);
    assert_eq!(book.release(kernel(1)), [0, 1]);
    assert!(book.of(kernel(1)).is_empty());
    book.observe(0, 1);
    book.observe(1, 0);
    let free = |book: &Leases| book.entries().iter().filter(|it| it.lease == Lease::Free).count();
    assert_eq!(free(&book), 7, "a process is still on device 0");
    assert!(book.ask(kernel(2), T1, 8, 0, 20).is_err());
    book.observe(0, 0);
    assert_eq!(book.ask(kernel(2), T1, 8, 0, 20).unwrap().len(), 8);
}

#[test]
fn only_a_tentative_lease_ends_by_time() {
    let mut book = Leases::new("b", devices(2));
    book.ask(kernel(1), T1, 1, 0, 0).unwrap();
    book.ask(kernel(2), T1, 1, 0, 0).unwrap();
    book.activate(kernel(1), T1, 0).unwrap();
    book.expire(u64::MAX);
    assert_eq!(book.of(kernel(1)), [0]);
    assert!(book.of(kernel(2)).is_empty());
    let error = book.activate(kernel(2), T1, TENTATIVE_MS).unwrap_err();
    assert!(error.to_string().contains("ask for the GPUs again"), "{error}");
}

#[test]
fn several_are_given_together_or_not_at_all_and_the_answer_says_who_has_them() {
    let mut book = Leases::new("b", devices(4));
    book.ask(kernel(1), T1, 3, 0, 0).unwrap();
    let error = book.ask(kernel(2), T1, 2, 0, 0).unwrap_err().to_string();
    assert_eq!(error, format!("1 of 2 GPUs are free; held by {} (3)", kernel(1)));
    assert!(book.of(kernel(2)).is_empty());
    let error = book.ask(kernel(2), T1, 5, 0, 0).unwrap_err().to_string();
    assert!(error.contains("has 4 GPUs in order that would do, not 5: ask for fewer"), "{error}");
    let error = book.ask(kernel(2), T1, 1, 40_000, 0).unwrap_err().to_string();
    assert!(error.contains("has 0 GPUs in order"), "{error}");
}

#[test]
fn asking_again_gives_the_same_and_another_term_is_refused() {
    let mut book = Leases::new("b", devices(4));
    let first = book.ask(kernel(1), T1, 2, 0, 0).unwrap();
    assert_eq!(book.ask(kernel(1), T1, 2, 0, 4_000).unwrap(), first);
    // And it lasts from there.
    assert_eq!(book.activate(kernel(1), T1, 8_000).unwrap(), first);
    assert_eq!(book.activate(kernel(1), T1, 8_000).unwrap(), first);
    assert!(book.activate(kernel(1), T2, 8_000).is_err());
    assert!(matches!(book.ask(kernel(1), T2, 2, 0, 9_000), Err(LeaseError::Holds { held: 2, .. })));
}

#[test]
fn what_is_out_of_order_or_in_a_strangers_use_is_not_given() {
    let mut book = Leases::new("b", devices(3));
    book.set_fault(0, Some("XID 79: it has fallen off the bus".to_owned()));
    book.observe(1, 1);
    assert_eq!(book.ask(kernel(1), T1, 1, 0, 0).unwrap(), [2]);
    book.observe(1, 0);
    book.set_fault(0, None);
    assert_eq!(book.ask(kernel(2), T1, 2, 0, 0).unwrap(), [0, 1]);
    // A fault under a cell takes nothing from it.
    book.activate(kernel(2), T1, 0).unwrap();
    book.set_fault(0, Some("too hot".to_owned()));
    assert_eq!(book.of(kernel(2)), [0, 1]);
}

#[test]
fn a_file_of_this_boot_is_believed_as_far_as_processes_live() {
    let mut book = Leases::new("b", devices(4));
    for number in 1..=3 {
        book.ask(kernel(number), T1, 1, 0, 0).unwrap();
    }
    book.activate(kernel(1), T1, 0).unwrap();
    book.activate(kernel(2), T1, 0).unwrap();
    let alive = |it: KernelId| it == kernel(1);
    let (book, notes) = book.restored("b", devices(4), &alive);
    let leases: Vec<Lease> = book.entries().iter().map(|it| it.lease).collect();
    assert_eq!(
        leases,
        [
            Lease::Active { kernel: kernel(1), term: T1 },
            Lease::Clearing { kernel: kernel(2) },
            Lease::Free,
            Lease::Free
        ]
    );
    assert_eq!(notes.len(), 1, "{notes:?}");
}

#[test]
fn a_file_of_another_boot_holds_nothing_and_a_device_that_is_gone_is_named() {
    let mut book = Leases::new("b", devices(2));
    book.ask(kernel(1), T1, 2, 0, 0).unwrap();
    book.activate(kernel(1), T1, 0).unwrap();
    let (after_boot, notes) = book.clone().restored("c", devices(2), &|_| true);
    assert!(after_boot.entries().iter().all(|it| it.lease == Lease::Free));
    assert!(notes[0].contains("earlier boot"), "{notes:?}");
    let (smaller, notes) = book.restored("b", devices(1), &|_| true);
    assert_eq!(smaller.entries().len(), 1);
    assert!(notes[0].contains("GPU 1 (GPU-1) is not there any more"), "{notes:?}");
}

#[derive(Debug, Clone)]
enum Step {
    Ask(u128, u64, usize),
    Activate(u128, u64),
    Release(u128),
    Observe(u32, u32),
    Fault(u32, bool),
    Wait(u64),
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0_u128..4, 0_u64..3, 1_usize..6).prop_map(|it| Step::Ask(it.0, it.1, it.2)),
        4 => (0_u128..4, 0_u64..3).prop_map(|it| Step::Activate(it.0, it.1)),
        3 => (0_u128..4).prop_map(Step::Release),
        4 => (0_u32..8, 0_u32..2).prop_map(|it| Step::Observe(it.0, it.1)),
        1 => (0_u32..8, any::<bool>()).prop_map(|it| Step::Fault(it.0, it.1)),
        2 => (0_u64..6_000).prop_map(Step::Wait),
        1 => Just(Step::Restart),
    ];
    prop::collection::vec(step, 0..120)
}

proptest! {
    #[test]
    fn no_order_of_steps_gives_a_part_or_takes_from_a_running_cell(steps in steps()) {
        let mut book = Leases::new("b", devices(8));
        let mut now_ms = 0;
        for step in steps {
            let before = book.clone();
            match step.clone() {
                Step::Ask(of, term, gpus) => {
                    match book.ask(kernel(of), Term(term), gpus, 0, now_ms) {
                        Ok(given) => prop_assert_eq!(given.len(), gpus),
                        Err(_) => {
                            let mut expired = before.clone();
                            expired.expire(now_ms);
                            prop_assert_eq!(&book, &expired, "a refusal changed something");
                        }
                    }
                }
                Step::Activate(of, term) => {
                    let had = before.of(kernel(of)).len();
                    if let Ok(given) = book.activate(kernel(of), Term(term), now_ms) {
                        prop_assert_eq!(given.len(), had, "a part of what was asked for");
                    }
                }
                Step::Release(of) => {
                    book.release(kernel(of));
                    prop_assert!(book.of(kernel(of)).is_empty());
                }
                Step::Observe(index, processes) => book.observe(index, processes),
                Step::Fault(index, is_out) => {
                    book.set_fault(index, is_out.then(|| "simulated".to_owned()));
                }
                Step::Wait(ms) => now_ms += ms,
                Step::Restart => book = book.restored("b", devices(8), &|_| true).0,
            }
            for (old, new) in before.entries().iter().zip(book.entries()) {
                match (old.lease, new.lease) {
                    // What runs is ended by its release alone.
                    (Lease::Active { kernel, .. }, after) if old.lease != after => {
                        prop_assert_eq!(after, Lease::Clearing { kernel });
                        prop_assert!(matches!(step, Step::Release(_)));
                    }
                    // What is being cleared is free only when nothing is seen on it.
                    (Lease::Clearing { .. }, Lease::Free) => {
                        prop_assert!(matches!(step, Step::Observe(_, 0)));
                    }
                    (Lease::Clearing { .. }, after) => prop_assert_eq!(old.lease, after),
                    // Nothing becomes active that was not tentative.
                    (Lease::Free, Lease::Active { .. }) => prop_assert!(false, "{:?}", step),
                    _ => {}
                }
            }
        }
    }
}
