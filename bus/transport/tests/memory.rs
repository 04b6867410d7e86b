//! The in-memory bus on a paused clock: same semantics as NATS, faults by plan, and reproducible.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use callboard_protocol::{ActorKind, ClusterId, Envelope, Subject, SubjectPattern};
use callboard_transport::{
    Bus, BusError, BusHealth, FaultPlan, MemoryNet, SUBSCRIPTION_CAPACITY,
    memory::{Delivery, Fate},
};

fn subject(id: &str, verb: &str) -> Subject {
    Subject::actor(&ClusterId::new("c").unwrap(), ActorKind::Node, id, verb)
}

fn verbs(id: &str) -> SubjectPattern {
    let (cluster, id) = (ClusterId::new("c").unwrap(), id.to_owned());
    SubjectPattern::Verbs { cluster, kind: ActorKind::Node, id }
}

fn body(number: u64) -> Bytes {
    Bytes::copy_from_slice(&number.to_le_bytes())
}

fn number(bytes: &Bytes) -> u64 {
    u64::from_le_bytes(bytes[..].try_into().unwrap())
}

const SECOND: Duration = Duration::from_secs(1);

async fn serve(bus: Arc<dyn Bus>, id: &'static str) {
    let mut heard = bus.subscribe(&verbs(id)).await.unwrap();
    while let Some(message) = heard.next().await {
        if let Some(reply_to) = &message.reply_to {
            let envelope = message.envelope.causing();
            let _ = bus.respond(reply_to, &envelope, message.payload).await;
        }
    }
}

async fn run(seed: u64) -> Vec<Delivery> {
    let plan = FaultPlan {
        drop_probability: 0.1,
        duplicate_probability: 0.1,
        delay_min_ms: 1,
        delay_max_ms: 40,
        reorder: true,
        ..FaultPlan::default()
    };
    let net = MemoryNet::new(seed, plan);
    net.keep_log();
    let servers: Vec<_> =
        ["a", "b"].map(|id| tokio::spawn(serve(net.connect(id), id))).into_iter().collect();
    tokio::task::yield_now().await;
    let clients: Vec<_> = ["x", "y"]
        .map(|name| {
            let bus = net.connect(name);
            tokio::spawn(async move {
                for n in 0..50 {
                    let to = subject(if n % 2 == 0 { "a" } else { "b" }, "echo");
                    let _ = bus.request(&to, &Envelope::default(), body(n), SECOND).await;
                }
            })
        })
        .into_iter()
        .collect();
    for client in clients {
        client.await.unwrap();
    }
    servers.iter().for_each(tokio::task::JoinHandle::abort);
    net.log()
}

#[test]
fn the_same_seed_gives_the_same_deliveries() {
    let once = |seed| {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_time().start_paused(true).build().unwrap().block_on(run(seed))
    };
    for seed in 0..5 {
        let (first, second) = (once(seed), once(seed));
        assert!(first.len() > 150, "seed {seed}: {}", first.len());
        assert_eq!(first, second, "seed {seed}");
    }
    assert_ne!(once(0), once(1));
    assert!(once(0).iter().any(|delivery| delivery.fate == Fate::Dropped));
}

#[tokio::test(start_paused = true)]
async fn delays_without_reordering_keep_each_senders_order() {
    let plan = FaultPlan { delay_max_ms: 50, ..FaultPlan::default() };
    let net = MemoryNet::new(7, plan.clone());
    let (sender, receiver) = (net.connect("s"), net.connect("r"));
    let mut heard = receiver.subscribe(&verbs("r")).await.unwrap();
    let send = async |n| {
        sender.publish(&subject("r", "take"), &Envelope::default(), body(n)).await.unwrap();
    };
    for n in 0..100 {
        send(n).await;
    }
    for n in 0..100 {
        assert_eq!(number(&heard.next().await.unwrap().payload), n);
    }
    net.set_plan(FaultPlan { reorder: true, ..plan });
    let mut seen = Vec::new();
    for n in 0..100 {
        send(n).await;
    }
    for _ in 0..100 {
        seen.push(number(&heard.next().await.unwrap().payload));
    }
    assert!(!seen.is_sorted(), "seed 7: {seen:?}");
}

#[tokio::test(start_paused = true)]
async fn requests_meet_absence_silence_and_answers_as_on_nats() {
    let net = MemoryNet::new(1, FaultPlan::default());
    let (client, server) = (net.connect("x"), net.connect("a"));
    let to = subject("a", "echo");
    let envelope = Envelope::default();
    let ask = async || client.request(&to, &envelope, body(3), SECOND).await;
    assert_eq!(ask().await.unwrap_err(), BusError::NoResponders(to.to_string()));
    let silent = server.subscribe(&verbs("a")).await.unwrap();
    let timed_out = BusError::TimedOut { subject: to.to_string(), waited_ms: 1000 };
    assert_eq!(ask().await.unwrap_err(), timed_out);
    drop(silent);
    assert_eq!(ask().await.unwrap_err(), BusError::NoResponders(to.to_string()));
    let serving = tokio::spawn(serve(server, "a"));
    tokio::task::yield_now().await;
    let reply = ask().await.unwrap();
    assert_eq!((number(&reply.payload), reply.envelope.cause), (3, Some(envelope.message_id)));
    let large = Bytes::from(vec![0; client.payload_max() + 1]);
    let error = client.publish(&to, &envelope, large).await.unwrap_err();
    assert!(matches!(error, BusError::TooLarge { .. }), "{error}");
    serving.abort();
}

#[tokio::test(start_paused = true)]
async fn partitions_outages_and_deaths_cut_what_they_say() {
    let net = MemoryNet::new(1, FaultPlan::default());
    let (x, y, server) = (net.connect("x"), net.connect("y"), net.connect("a"));
    let mut heard = server.subscribe(&verbs("a")).await.unwrap();
    let to = subject("a", "take");
    let envelope = Envelope::default();
    net.partition("a", "x");
    x.publish(&to, &envelope, body(1)).await.unwrap();
    y.publish(&to, &envelope, body(2)).await.unwrap();
    assert_eq!(number(&heard.next().await.unwrap().payload), 2);
    net.heal("x", "a");
    x.publish(&to, &envelope, body(3)).await.unwrap();
    assert_eq!(number(&heard.next().await.unwrap().payload), 3);

    net.set_broker_outage(true);
    assert_eq!(*x.health().borrow(), BusHealth::Disconnected);
    assert!(matches!(x.publish(&to, &envelope, body(4)).await, Err(BusError::Disconnected(_))));
    net.heal_all();
    assert_eq!(*x.health().borrow(), BusHealth::Connected);
    net.isolate("a");
    assert_eq!(*server.health().borrow(), BusHealth::Disconnected);
    x.publish(&to, &envelope, body(5)).await.unwrap();
    net.rejoin("a");
    x.publish(&to, &envelope, body(6)).await.unwrap();
    assert_eq!(number(&heard.next().await.unwrap().payload), 6);

    net.disconnect("a");
    assert!(heard.next().await.is_none());
    assert!(matches!(
        server.publish(&to, &envelope, body(7)).await,
        Err(BusError::Disconnected(_))
    ));
    let error = x.request(&to, &envelope, body(8), SECOND).await.unwrap_err();
    assert_eq!(error, BusError::NoResponders(to.to_string()));
    assert!(net.connect("a").subscribe(&verbs("a")).await.is_ok());
}

#[test]
fn a_plan_is_read_from_toml_and_checked_whole() {
    let plan: FaultPlan =
        toml::from_str("drop_probability = 0.05\ndelay_max_ms = 20\npartitions = [[\"a\", \"b\"]]")
            .unwrap();
    assert_eq!(plan.partitions, [("a".to_owned(), "b".to_owned())]);
    plan.validate().unwrap();
    assert!(toml::from_str::<FaultPlan>("drop_rate = 1").is_err());
    let bad = FaultPlan { drop_probability: 2.0, delay_min_ms: 5, payload_max: 0, ..plan };
    let bad = FaultPlan { delay_max_ms: 1, ..bad };
    assert_eq!(bad.validate().unwrap_err().0.len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_is_too_slow_is_told_once_that_it_lost_messages() {
    let net = MemoryNet::new(1, FaultPlan::default());
    let (slow, sender) = (net.connect("slow"), net.connect("sender"));
    let mut heard = slow.subscribe(&verbs("a")).await.unwrap();
    for n in 0..=SUBSCRIPTION_CAPACITY as u64 {
        sender.publish(&subject("a", "b"), &Envelope::default(), body(n)).await.unwrap();
    }
    tokio::time::sleep(SECOND).await;
    assert_eq!(number(&heard.next().await.unwrap().payload), 0);
    assert!(heard.has_lost());
    for n in 1..SUBSCRIPTION_CAPACITY as u64 {
        assert_eq!(number(&heard.next().await.unwrap().payload), n);
        assert!(!heard.has_lost());
    }
}
