use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use callboard_policy::restart::{RestartPolicy, Strategy};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::broadcast::{Receiver, error::RecvError};

use super::{
    ChildState, OnExceeded, SupervisorError, SupervisorEvent, SupervisorHandle, SupervisorSettings,
    spawn_supervisor,
};
use crate::{Address, ChildSpec, Mail, Presence, Restart, TellError, universe::Universe};

#[derive(Clone, Copy, Debug)]
enum Msg {
    Fail,
    Panic,
    Finish,
    Hang,
    KilledAtRest,
    KilledAtWork,
}

/// What a set of workers did.
#[derive(Clone, Default)]
struct Diary(Arc<Mutex<Vec<String>>>);

impl Diary {
    fn note(&self, what: &str, name: &str) {
        self.0.lock().unwrap().push(format!("{what} {name}"));
    }

    fn read(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

/// Ends in every way an actor can; a restart loses nothing.
struct Worker;

#[ractor::async_trait]
impl Actor for Worker {
    type Msg = Mail<Msg>;
    type State = (String, Diary);
    type Arguments = (String, Diary);

    async fn pre_start(
        &self,
        _: ActorRef<Self::Msg>,
        args: Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        args.1.note("start", &args.0);
        if args.0.starts_with("stillborn") { Err("never lives".into()) } else { Ok(args) }
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        mail: Self::Msg,
        _: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match mail.message {
            Msg::Fail => Err("told to fail".into()),
            Msg::Panic => panic!("told to panic"),
            Msg::Finish => {
                myself.stop(None);
                Ok(())
            }
            Msg::Hang => std::future::pending().await,
            Msg::KilledAtRest => {
                myself.kill();
                Ok(())
            }
            Msg::KilledAtWork => {
                myself.kill();
                std::future::pending().await
            }
        }
    }

    async fn post_stop(
        &self,
        _: ActorRef<Self::Msg>,
        (name, diary): &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        diary.note("stop", name);
        Ok(())
    }
}

fn worker(name: &str, restart: Restart, diary: &Diary) -> (ChildSpec, Address<Msg>) {
    let args = (name.to_owned(), diary.clone());
    ChildSpec::addressed(name, restart, 8, move || (Worker, args.clone()))
}

fn workers(names: &[&str], diary: &Diary) -> (Vec<ChildSpec>, BTreeMap<String, Address<Msg>>) {
    let mut specs = Vec::new();
    let mut addresses = BTreeMap::new();
    for name in names {
        let (spec, address) = worker(name, Restart::Permanent, diary);
        specs.push(spec);
        addresses.insert((*name).to_owned(), address);
    }
    (specs, addresses)
}

fn settings(seed: u64, strategy: Strategy, intensity: u32) -> SupervisorSettings {
    let policy = RestartPolicy { intensity, ..RestartPolicy::default() };
    SupervisorSettings { strategy, policy, seed, ..SupervisorSettings::default() }
}

async fn until(
    events: &mut Receiver<SupervisorEvent>,
    wanted: impl Fn(&SupervisorEvent) -> bool,
) -> SupervisorEvent {
    loop {
        match events.recv().await {
            Ok(event) if wanted(&event) => return event,
            Ok(_) | Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => panic!("the supervisor is gone"),
        }
    }
}

fn started(name: &str) -> impl Fn(&SupervisorEvent) -> bool {
    move |event| matches!(event, SupervisorEvent::ChildStarted { name: it } if it == name)
}

async fn states(root: &SupervisorHandle) -> Vec<(String, ChildState)> {
    root.children().await.unwrap().into_iter().map(|it| (it.name, it.state)).collect()
}

#[test]
fn each_strategy_restarts_whom_it_should_in_order() {
    let cases = [
        (Strategy::OneForOne, vec!["start b"]),
        (Strategy::RestForOne, vec!["stop c", "start b", "start c"]),
        (Strategy::OneForAll, vec!["stop c", "stop a", "start a", "start b", "start c"]),
    ];
    for (strategy, expected) in cases {
        Universe::run(11, |universe| async move {
            let diary = Diary::default();
            let (specs, addresses) = workers(&["a", "b", "c"], &diary);
            let root = spawn_supervisor("root", settings(universe.seed(), strategy, 5), specs)
                .await
                .unwrap();
            assert_eq!(diary.read(), ["start a", "start b", "start c"]);
            let mut events = root.events();
            addresses["b"].tell(Msg::Fail).unwrap();
            let last = expected.last().unwrap().trim_start_matches("start ").to_owned();
            until(&mut events, started(&last)).await;
            assert_eq!(diary.read(), expected, "{strategy:?}");
            root.stop().await;
            assert_eq!(diary.read(), ["stop c", "stop b", "stop a"]);
        });
    }
}

#[test]
fn a_panic_counts_as_an_exit() {
    Universe::run(12, |universe| async move {
        universe.expect_panic("told to panic");
        let diary = Diary::default();
        let (specs, addresses) = workers(&["a"], &diary);
        let root = spawn_supervisor("root", SupervisorSettings::default(), specs).await.unwrap();
        let mut events = root.events();
        addresses["a"].tell(Msg::Panic).unwrap();
        let exit =
            until(&mut events, |event| matches!(event, SupervisorEvent::ChildExited { .. })).await;
        assert!(format!("{exit:?}").contains("told to panic"), "{exit:?}");
        until(&mut events, started("a")).await;
        root.stop().await;
    });
}

#[test]
fn transient_and_temporary_children_end_as_agreed() {
    Universe::run(13, |_| async {
        let diary = Diary::default();
        let (transient, finishes) = worker("transient", Restart::Transient, &diary);
        let (failing, fails) = worker("failing", Restart::Transient, &diary);
        let (temporary, dies) = worker("temporary", Restart::Temporary, &diary);
        let specs = vec![transient, failing, temporary];
        let root = spawn_supervisor("root", SupervisorSettings::default(), specs).await.unwrap();
        let mut events = root.events();
        finishes.tell(Msg::Finish).unwrap();
        dies.tell(Msg::Fail).unwrap();
        fails.tell(Msg::Fail).unwrap();
        until(&mut events, started("failing")).await;
        assert_eq!(states(&root).await, [("failing".to_owned(), ChildState::Running)]);
        assert!(matches!(dies.tell(Msg::Fail), Err(TellError::Stopped { reason, .. })
            if reason.contains("told to fail")));
        root.stop().await;
    });
}

#[test]
fn a_transient_child_that_is_killed_is_started_again() {
    Universe::run(20, |_| async {
        let diary = Diary::default();
        let (spec, address) = worker("a", Restart::Transient, &diary);
        let root =
            spawn_supervisor("root", SupervisorSettings::default(), vec![spec]).await.unwrap();
        let mut events = root.events();
        for death in [Msg::KilledAtRest, Msg::KilledAtWork] {
            address.tell(death).unwrap();
            until(&mut events, started("a")).await;
            assert_eq!(states(&root).await, [("a".to_owned(), ChildState::Running)]);
        }
        root.stop().await;
    });
}

#[test]
fn too_many_restarts_end_the_supervisor_and_its_other_children() {
    Universe::run(14, |universe| async move {
        let diary = Diary::default();
        let (specs, addresses) = workers(&["a", "b"], &diary);
        let settings = settings(universe.seed(), Strategy::OneForOne, 2);
        let root = spawn_supervisor("root", settings, specs).await.unwrap();
        let mut events = root.events();
        for _ in 0..2 {
            addresses["a"].tell(Msg::Fail).unwrap();
            until(&mut events, started("a")).await;
        }
        addresses["a"].tell(Msg::Fail).unwrap();
        let event =
            until(&mut events, |event| matches!(event, SupervisorEvent::Escalated { .. })).await;
        assert!(format!("{event:?}").contains("a ended again after 2 restarts"), "{event:?}");
        root.wait().await;
        assert_eq!(diary.read().last().unwrap(), "stop b");
        assert!(matches!(addresses["b"].tell(Msg::Fail), Err(TellError::Stopped { .. })));
    });
}

#[test]
fn an_escalation_restarts_the_subtree_and_addresses_follow() {
    Universe::run(15, |universe| async move {
        let diary = Diary::default();
        let (specs, addresses) = workers(&["a"], &diary);
        let inner = settings(universe.seed(), Strategy::OneForOne, 0);
        let (subtree, handle) = ChildSpec::supervisor("inner", Restart::Permanent, inner, specs);
        let root =
            spawn_supervisor("root", SupervisorSettings::default(), vec![subtree]).await.unwrap();
        let (extra, _) = worker("extra", Restart::Permanent, &diary);
        handle.start_child(extra).await.unwrap();
        let mut events = handle.events();
        addresses["a"].tell(Msg::Fail).unwrap();
        until(&mut events, |event| matches!(event, SupervisorEvent::Started { .. })).await;
        let mut presence = handle.presence();
        presence.wait_for(|it| matches!(it, Presence::Running(_))).await.unwrap();
        assert_eq!(states(&handle).await, [("a".to_owned(), ChildState::Running)]);
        addresses["a"].tell(Msg::Fail).unwrap();
        until(&mut events, |event| matches!(event, SupervisorEvent::Started { .. })).await;
        root.stop().await;
    });
}

#[test]
fn an_abandoned_child_leaves_its_siblings_alone() {
    Universe::run(16, |universe| async move {
        let diary = Diary::default();
        let (specs, addresses) = workers(&["bad", "good"], &diary);
        let settings = SupervisorSettings {
            on_exceeded: OnExceeded::Abandon,
            ..settings(universe.seed(), Strategy::OneForOne, 0)
        };
        let root = spawn_supervisor("root", settings, specs).await.unwrap();
        let mut events = root.events();
        addresses["bad"].tell(Msg::Fail).unwrap();
        until(&mut events, |it| matches!(it, SupervisorEvent::ChildAbandoned { .. })).await;
        let expected =
            [("bad".to_owned(), ChildState::Abandoned), ("good".to_owned(), ChildState::Running)];
        assert_eq!(states(&root).await, expected);
        assert!(matches!(addresses["bad"].tell(Msg::Fail), Err(TellError::Stopped { .. })));
        root.stop_child("bad").await.unwrap();
        let (again, _) = worker("bad", Restart::Permanent, &diary);
        root.start_child(again).await.unwrap();
        root.stop().await;
    });
}

#[test]
fn children_come_and_go_by_name() {
    Universe::run(17, |_| async {
        let diary = Diary::default();
        let root = spawn_supervisor("root", SupervisorSettings::default(), vec![]).await.unwrap();
        let (spec, address) = worker("a", Restart::Permanent, &diary);
        root.start_child(spec.clone()).await.unwrap();
        let taken = Err(SupervisorError::NameTaken("a".to_owned()));
        assert_eq!(root.start_child(spec.clone()).await, taken);
        root.stop_child("a").await.unwrap();
        root.stop_child("a").await.unwrap();
        assert_eq!(diary.read(), ["start a", "stop a"]);
        assert!(matches!(address.tell(Msg::Fail), Err(TellError::Stopped { .. })));
        root.start_child(spec).await.unwrap();
        let (stillborn, _) = worker("stillborn", Restart::Permanent, &diary);
        let refused = root.start_child(stillborn).await.unwrap_err().to_string();
        assert!(refused.contains("never lives"), "{refused}");
        root.stop().await;
    });
}

#[test]
fn a_child_that_does_not_stop_in_time_is_killed_and_others_are_served_meanwhile() {
    Universe::run(18, |_| async {
        let diary = Diary::default();
        let (spec, address) = worker("stubborn", Restart::Permanent, &diary);
        let spec = spec.stop_within(Duration::from_secs(7));
        let root =
            spawn_supervisor("root", SupervisorSettings::default(), vec![spec]).await.unwrap();
        address.tell(Msg::Hang).unwrap();
        let begun = tokio::time::Instant::now();
        let stopping = {
            let root = root.clone();
            async move { root.stop_child("stubborn").await }
        };
        let looking = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert_eq!(states(&root).await, [("stubborn".to_owned(), ChildState::Stopping)]);
        };
        let (stopped, ()) = tokio::join!(stopping, looking);
        stopped.unwrap();
        assert_eq!(begun.elapsed().as_secs(), 7);
        root.stop().await;
    });
}

#[test]
fn a_child_that_cannot_start_again_uses_up_its_restarts() {
    Universe::run(19, |universe| async move {
        let diary = Diary::default();
        let lives = Arc::new(Mutex::new(0));
        let args_diary = diary.clone();
        let (spec, address) = ChildSpec::addressed("a", Restart::Permanent, 8, move || {
            let mut lives = lives.lock().unwrap();
            *lives += 1;
            let name = if *lives == 1 { "a" } else { "stillborn" };
            (Worker, (name.to_owned(), args_diary.clone()))
        });
        let settings = settings(universe.seed(), Strategy::OneForAll, 3);
        let root = spawn_supervisor("root", settings, vec![spec]).await.unwrap();
        address.tell(Msg::Fail).unwrap();
        root.wait().await;
        assert_eq!(
            diary.read(),
            ["start a", "start stillborn", "start stillborn", "start stillborn"]
        );
    });
}

#[test]
fn same_seed_same_events() {
    let run = || {
        let log = Arc::new(Mutex::new(Vec::new()));
        let filled = Arc::clone(&log);
        Universe::run(20, |universe| async move {
            let diary = Diary::default();
            let (specs, addresses) = workers(&["a", "b"], &diary);
            let settings = settings(universe.seed(), Strategy::OneForOne, 5);
            let root = spawn_supervisor("root", settings, specs).await.unwrap();
            let mut events = root.events();
            for _ in 0..4 {
                let name = if universe.random() % 2 == 0 { "a" } else { "b" };
                addresses[name].tell(Msg::Fail).unwrap();
                until(&mut events, |event| {
                    filled.lock().unwrap().push(event.clone());
                    started(name)(event)
                })
                .await;
            }
            root.stop().await;
        });
        let log = log.lock().unwrap();
        log.clone()
    };
    assert_eq!(run(), run());
}
