use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};

use super::{Address, AskError, Mail, Presence, TellError};
use crate::{
    ChildSpec, Restart, SupervisorHandle, SupervisorSettings, spawn_supervisor, universe::Universe,
};

const LIMIT: usize = 3;
const SOON: Duration = Duration::from_secs(10);

enum Msg {
    Add(u64),
    Sum(RpcReplyPort<u64>),
    Sleep(Duration),
    Die,
}

/// Adds numbers; a restart loses the sum.
struct Adder;

#[ractor::async_trait]
impl Actor for Adder {
    type Msg = Mail<Msg>;
    type State = u64;
    type Arguments = ();

    async fn pre_start(&self, _: ActorRef<Self::Msg>, (): ()) -> Result<u64, ActorProcessingErr> {
        Ok(0)
    }

    async fn handle(
        &self,
        _: ActorRef<Self::Msg>,
        mail: Self::Msg,
        sum: &mut u64,
    ) -> Result<(), ActorProcessingErr> {
        let Mail { message, permit: _permit } = mail;
        match message {
            Msg::Add(number) => *sum += number,
            Msg::Sum(reply) => drop(reply.send(*sum)),
            Msg::Sleep(time) => tokio::time::sleep(time).await,
            Msg::Die => return Err("asked to die".into()),
        }
        Ok(())
    }
}

async fn adder(restart: Restart) -> (SupervisorHandle, Address<Msg>) {
    let (spec, address) = ChildSpec::addressed("adder", restart, LIMIT, || (Adder, ()));
    let settings = SupervisorSettings::default();
    (spawn_supervisor("root", settings, vec![spec]).await.unwrap(), address)
}

#[test]
fn the_address_reaches_the_next_life() {
    Universe::run(1, |_| async {
        let (root, address) = adder(Restart::Permanent).await;
        address.tell(Msg::Add(2)).unwrap();
        assert_eq!(address.ask(SOON, Msg::Sum).await, Ok(2));
        let mut presence = address.presence();
        presence.mark_unchanged();
        address.tell(Msg::Die).unwrap();
        presence.wait_for(|it| *it == Presence::Restarting).await.unwrap();
        let refused = address.tell(Msg::Add(1));
        assert_eq!(refused, Err(TellError::Restarting { name: "adder".to_owned() }));
        presence.wait_for(|it| matches!(it, Presence::Running(_))).await.unwrap();
        assert_eq!(address.ask(SOON, Msg::Sum).await, Ok(0));
        root.stop().await;
        assert!(matches!(address.tell(Msg::Add(1)), Err(TellError::Stopped { .. })));
    });
}

#[test]
fn no_more_messages_wait_than_the_limit() {
    Universe::run(2, |universe| async move {
        let (root, address) = adder(Restart::Permanent).await;
        address.tell(Msg::Sleep(Duration::from_secs(1))).unwrap();
        for _ in 1..LIMIT {
            address.tell(Msg::Add(1)).unwrap();
        }
        let full = TellError::Full { name: "adder".to_owned(), limit: LIMIT };
        assert_eq!(address.tell(Msg::Add(1)), Err(full));
        universe.advance(Duration::from_secs(2)).await;
        assert_eq!(address.ask(SOON, Msg::Sum).await, Ok(LIMIT as u64 - 1));
        root.stop().await;
    });
}

#[test]
fn messages_lost_in_a_restart_free_their_places() {
    Universe::run(3, |_| async {
        let (root, address) = adder(Restart::Permanent).await;
        let mut presence = address.presence();
        address.tell(Msg::Die).unwrap();
        let lost = address.ask(SOON, Msg::Sum).await;
        assert_eq!(lost, Err(AskError::Lost { name: "adder".to_owned() }));
        presence.wait_for(|it| *it == Presence::Restarting).await.unwrap();
        presence.wait_for(|it| matches!(it, Presence::Running(_))).await.unwrap();
        for _ in 0..LIMIT {
            address.tell(Msg::Add(1)).unwrap();
        }
        root.stop().await;
    });
}

#[test]
fn an_ask_ends_at_its_deadline() {
    Universe::run(4, |_| async {
        let (root, address) = adder(Restart::Permanent).await;
        address.tell(Msg::Sleep(Duration::from_secs(5))).unwrap();
        let late = address.ask(Duration::from_millis(100), Msg::Sum).await;
        assert_eq!(late, Err(AskError::TimedOut { name: "adder".to_owned(), waited_ms: 100 }));
        root.stop().await;
    });
}
