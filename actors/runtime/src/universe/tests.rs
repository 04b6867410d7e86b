use std::{panic::catch_unwind, time::Duration};

use ractor::{Actor, ActorProcessingErr, ActorRef};

use super::Universe;
use crate::spawn;

/// Panics when it is sent anything.
struct Brittle;

#[ractor::async_trait]
impl Actor for Brittle {
    type Msg = ();
    type State = ();
    type Arguments = ();

    async fn pre_start(&self, _: ActorRef<()>, (): ()) -> Result<(), ActorProcessingErr> {
        Ok(())
    }

    async fn handle(&self, _: ActorRef<()>, (): (), (): &mut ()) -> Result<(), ActorProcessingErr> {
        panic!("brittle, as its name says")
    }
}

fn complaint(test: impl FnOnce() + std::panic::UnwindSafe) -> String {
    *catch_unwind(test).expect_err("the universe was content").downcast::<String>().unwrap()
}

#[test]
fn a_leaked_actor_fails_the_test() {
    let complaint = complaint(|| {
        Universe::run(5, |_| async {
            spawn(Some("forgotten".to_owned()), Brittle, ()).await.unwrap();
        });
    });
    assert!(complaint.contains("1 actors left running"), "{complaint}");
    assert!(complaint.contains("forgotten"), "{complaint}");
}

#[test]
fn a_panicked_actor_fails_the_test() {
    let complaint = complaint(|| {
        Universe::run(6, |_| async {
            let (actor, _) = spawn(None, Brittle, ()).await.unwrap();
            actor.send_message(()).unwrap();
            actor.wait(None).await.unwrap();
        });
    });
    assert!(complaint.contains("brittle, as its name says"), "{complaint}");
}

#[test]
fn an_expected_panic_is_fine_and_its_absence_is_not() {
    Universe::run(7, |universe| async move {
        universe.expect_panic("brittle");
        let (actor, _) = spawn(None, Brittle, ()).await.unwrap();
        actor.send_message(()).unwrap();
        actor.wait(None).await.unwrap();
    });
    let complaint = complaint(|| {
        Universe::run(8, |universe| async move { universe.expect_panic("brittle") });
    });
    assert!(complaint.contains("expected to panic, and did not"), "{complaint}");
}

#[test]
fn an_actor_told_to_stop_is_waited_for() {
    Universe::run(9, |universe| async move {
        let (actor, _) = spawn(None, Brittle, ()).await.unwrap();
        universe.advance(Duration::from_millis(1)).await;
        actor.stop(None);
        universe.advance(Duration::from_millis(1)).await;
    });
}

#[test]
fn same_seed_same_numbers() {
    let numbers = || {
        let mut drawn = Vec::new();
        Universe::run(10, |universe| {
            drawn.extend((0..5).map(|_| universe.random()));
            async {}
        });
        drawn
    };
    assert_eq!(numbers(), numbers());
}
