//! The NATS bus against a real nats-server.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::time::Duration;

use bytes::Bytes;
use callboard_protocol::{
    ActorKind, Certainty, Envelope, Epoch, Fault, FaultCode, GroupId, OwnerId, ReplicaId, Subject,
    SubjectPattern,
};
use callboard_transport::{
    BusError, BusHealth, ConnectError, NatsBus, NatsOptions, Role,
    typed::{answer, ask, decode},
};
use common::{PATIENCE, TestCluster, becomes, cluster_id, node, subject, verbs};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::time::timeout;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_is_told_of_a_subscription_reaches_it() {
    let cluster = TestCluster::start().await;
    let listener = cluster.connect(&node(1)).await;
    let asker = cluster.connect(&node(2)).await;
    for number in 0..200 {
        let id = format!("r{number}");
        let mut heard = listener.subscribe(&verbs(ActorKind::Replica, &id)).await.unwrap();
        let responder = listener.clone();
        let serving = tokio::spawn(async move {
            let message = heard.next().await.unwrap();
            let reply_to = message.reply_to.unwrap();
            let envelope = message.envelope.causing();
            responder.respond(&reply_to, &envelope, message.payload).await.unwrap();
        });
        let mut envelope = Envelope::new(OwnerId::new("ada").unwrap());
        envelope.epoch = Epoch(number);
        let to = subject(ActorKind::Replica, &id, "poke");
        let body = Bytes::from(id.clone());
        let reply = asker.request(&to, &envelope, body.clone(), PATIENCE).await.unwrap();
        assert_eq!(reply.payload, body);
        assert_eq!(reply.envelope.cause, Some(envelope.message_id));
        assert_eq!((reply.envelope.owner, reply.envelope.epoch), (envelope.owner, envelope.epoch));
        serving.await.unwrap();
    }
    cluster.broker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_listening_is_told_at_once_with_a_next_step() {
    let cluster = TestCluster::start().await;
    let bus = cluster.connect(&Role::Operator).await;
    let to = subject(ActorKind::Control, "main", "list_nodes");
    let error = bus.request(&to, &Envelope::default(), Bytes::new(), PATIENCE).await.unwrap_err();
    assert_eq!(error, BusError::NoResponders(to.to_string()));
    let fault: Fault =
        ask::<_, ()>(&*bus, &to, &Envelope::default(), &(), PATIENCE).await.unwrap_err();
    assert!(fault.message.contains("`callboard up`"), "{fault}");
    assert_eq!(fault.certainty, Certainty::NotExecuted);
    cluster.broker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn typed_requests_carry_values_faults_and_timeouts() {
    let cluster = TestCluster::start().await;
    let server = cluster.connect(&node(1)).await;
    let client = cluster.connect(&Role::Operator).await;
    let mut heard = server.subscribe(&verbs(ActorKind::Control, "main")).await.unwrap();
    let serving = tokio::spawn(async move {
        while let Some(message) = heard.next().await {
            let result = decode::<u64>(&message).and_then(|number| match number {
                0 => Err(Fault::new(FaultCode::NotFound, "there is no kernel 0")),
                number => Ok(number + 1),
            });
            if message.subject.last() != "ignore" {
                answer(&*server, &message, result).await.unwrap();
            }
        }
    });
    let to = |verb| subject(ActorKind::Control, "main", verb);
    let envelope = Envelope::default();
    let good: u64 = ask(&*client, &to("add"), &envelope, &41_u64, PATIENCE).await.unwrap();
    assert_eq!(good, 42);
    let refused =
        ask::<_, u64>(&*client, &to("add"), &envelope, &0_u64, PATIENCE).await.unwrap_err();
    assert_eq!(refused.code, FaultCode::NotFound);
    let bad = ask::<_, u64>(&*client, &to("add"), &envelope, "text", PATIENCE).await.unwrap_err();
    assert_eq!(bad.code, FaultCode::BadRequest);
    assert!(bad.message.contains("docs/protocol.md"), "{bad}");
    let short = Duration::from_millis(50);
    let late = ask::<_, u64>(&*client, &to("ignore"), &envelope, &1_u64, short).await.unwrap_err();
    assert_eq!((late.code, late.certainty), (FaultCode::TimedOut, Certainty::MaybeExecuted));
    serving.abort();
    cluster.broker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subscriptions_survive_the_death_of_the_broker() {
    let mut cluster = TestCluster::start().await;
    let mut events = cluster.broker.events().unwrap();
    let _started = events.recv().await.unwrap();
    let listener = cluster.connect(&node(1)).await;
    let sender = cluster.connect(&node(2)).await;
    let mut heard = listener.subscribe(&verbs(ActorKind::Node, "n1")).await.unwrap();
    let pid = cluster.broker.pid().unwrap();
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGKILL).unwrap();
    becomes(&sender, BusHealth::Disconnected).await;
    becomes(&listener, BusHealth::Disconnected).await;
    becomes(&sender, BusHealth::Connected).await;
    becomes(&listener, BusHealth::Connected).await;
    let to = subject(ActorKind::Node, "n1", "ping");
    // The listener's health may be back a moment before the broker has its subscription.
    let fresh = listener.subscribe(&verbs(ActorKind::Node, "other")).await.unwrap();
    drop(fresh);
    sender.publish(&to, &Envelope::default(), Bytes::from_static(b"after")).await.unwrap();
    let message = timeout(PATIENCE, heard.next()).await.unwrap().unwrap();
    assert_eq!((message.subject, message.payload), (to, Bytes::from_static(b"after")));
    let exited = timeout(PATIENCE, events.recv()).await.unwrap().unwrap();
    assert!(format!("{exited:?}").contains("killed by signal 9"), "{exited:?}");
    cluster.broker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_broker_messages_are_refused_at_once() {
    let cluster = TestCluster::start().await;
    let bus = cluster.connect(&node(1)).await;
    cluster.broker.stop().await;
    becomes(&bus, BusHealth::Disconnected).await;
    let to = subject(ActorKind::Node, "n1", "ping");
    let envelope = Envelope::default();
    let publish = bus.publish(&to, &envelope, Bytes::new()).await.unwrap_err();
    assert!(matches!(publish, BusError::Disconnected(_)), "{publish}");
    let request = bus.request(&to, &envelope, Bytes::new(), PATIENCE).await.unwrap_err();
    assert!(matches!(request, BusError::Disconnected(_)), "{request}");
    let subscribe = bus.subscribe(&verbs(ActorKind::Node, "n1")).await.unwrap_err();
    assert!(matches!(subscribe, BusError::Disconnected(_)), "{subscribe}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_cannot_leave_its_subjects() {
    let cluster = TestCluster::start().await;
    let frontend = cluster.connect(&Role::Frontend).await;
    let envelope = Envelope::default();
    let group = GroupId::new("g").unwrap();
    let raft = Subject::raft(&cluster_id(), &group, ReplicaId(1), "vote");
    let forbidden = [
        raft,
        subject(ActorKind::Node, "n1", "kill"),
        subject(ActorKind::Control, "main", "stop_kernel"),
    ];
    for to in forbidden {
        let error = frontend.request(&to, &envelope, Bytes::new(), PATIENCE).await.unwrap_err();
        assert_eq!(error, BusError::Forbidden(to.to_string()));
    }
    let to = subject(ActorKind::Kernel, "k", "shell");
    let error = frontend.request(&to, &envelope, Bytes::new(), PATIENCE).await.unwrap_err();
    assert_eq!(error, BusError::NoResponders(to.to_string()));
    let raft = SubjectPattern::RaftMember { cluster: cluster_id(), group, replica: ReplicaId(1) };
    let all = SubjectPattern::AllEvents { cluster: cluster_id() };
    for pattern in [raft, all, verbs(ActorKind::Kernel, "k")] {
        let error = frontend.subscribe(&pattern).await.unwrap_err();
        assert_eq!(error, BusError::Forbidden(pattern.to_string()));
    }
    let events = SubjectPattern::EventsOfKind { cluster: cluster_id(), kind: ActorKind::Kernel };
    frontend.subscribe(&events).await.unwrap();
    cluster.broker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_starts_kernels_and_reads_users_but_administers_nothing() {
    let cluster = TestCluster::start().await;
    let gateway = cluster.connect(&Role::Gateway).await;
    let envelope = Envelope::default();
    let control = |verb| subject(ActorKind::Control, "main", verb);
    let kernel = |verb| subject(ActorKind::Kernel, "k", verb);
    let group = GroupId::new("g").unwrap();
    let forbidden = [
        Subject::raft(&cluster_id(), &group, ReplicaId(1), "vote"),
        subject(ActorKind::Node, "n1", "kill"),
        subject(ActorKind::Node, "n1", "storage"),
        kernel("rewind"),
        kernel("put_chunk"),
        control("add_user"),
        control("remove_user"),
        control("add_token"),
        control("revoke_token"),
        control("recover_kernel"),
        control("register_node"),
    ];
    for to in forbidden {
        let error = gateway.request(&to, &envelope, Bytes::new(), PATIENCE).await.unwrap_err();
        assert_eq!(error, BusError::Forbidden(to.to_string()));
    }
    let kernel_verbs =
        ["shell", "control", "stdin", "outputs", "show", "log", "checkpoint", "seen"].map(kernel);
    let control_verbs = [
        "start_kernel",
        "stop_kernel",
        "find_kernel",
        "list_kernels",
        "list_nodes",
        "list_kernelspecs",
        "list_users",
    ]
    .map(control);
    for to in kernel_verbs.into_iter().chain(control_verbs) {
        let error = gateway.request(&to, &envelope, Bytes::new(), PATIENCE).await.unwrap_err();
        assert_eq!(error, BusError::NoResponders(to.to_string()));
    }
    let raft = SubjectPattern::RaftMember { cluster: cluster_id(), group, replica: ReplicaId(1) };
    for pattern in [raft, verbs(ActorKind::Kernel, "k"), verbs(ActorKind::Control, "main")] {
        let error = gateway.subscribe(&pattern).await.unwrap_err();
        assert_eq!(error, BusError::Forbidden(pattern.to_string()));
    }
    let all = SubjectPattern::AllEvents { cluster: cluster_id() };
    let mut heard = gateway.subscribe(&all).await.unwrap();
    let forged = Subject::event(&cluster_id(), ActorKind::Control, "main", "users_changed");
    let audited = Subject::event(&cluster_id(), ActorKind::Control, "main", "audited");
    for to in [&forged, &audited] {
        // A publication that is not permitted is dropped by the broker, or refused at once.
        let _ = gateway.publish(to, &envelope, Bytes::new()).await;
    }
    let first = timeout(PATIENCE, heard.next()).await.unwrap().unwrap();
    assert_eq!(first.subject, audited);
    cluster.broker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_reads_anothers_inbox() {
    let cluster = TestCluster::start().await;
    let mut stolen = cluster.credentials(&Role::Frontend);
    stolen.inbox_prefix = Role::Operator.inbox_prefix();
    let thief = NatsBus::connect(NatsOptions::new(&stolen, "thief")).await.unwrap();
    let events = SubjectPattern::EventsOfKind { cluster: cluster_id(), kind: ActorKind::Kernel };
    // It cannot even confirm a subscription: the inbox that it listens on is refused.
    let error = thief.subscribe(&events).await.unwrap_err();
    assert!(matches!(error, BusError::TimedOut { .. } | BusError::Forbidden(_)), "{error}");
    cluster.broker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_password_is_refused_in_a_sentence() {
    let cluster = TestCluster::start().await;
    let mut wrong = cluster.credentials(&Role::Operator);
    wrong.password = "guess".to_owned();
    let error = NatsBus::connect(NatsOptions::new(&wrong, "test")).await.unwrap_err();
    assert!(matches!(error, ConnectError::Refused { .. }), "{error}");
    assert!(error.to_string().contains("refuses user 'operator'"), "{error}");
    cluster.broker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_largest_message_passes_and_a_larger_one_is_refused() {
    let cluster = TestCluster::start().await;
    let bus = cluster.connect(&node(1)).await;
    let mut heard = bus.subscribe(&verbs(ActorKind::Node, "n1")).await.unwrap();
    let to = subject(ActorKind::Node, "n1", "take");
    let limit = bus.payload_max();
    let mut envelope = Envelope::new(OwnerId::new("o".repeat(64)).unwrap()).causing();
    envelope.traceparent = Some("t".repeat(128));
    bus.publish(&to, &envelope, Bytes::from(vec![0; limit])).await.unwrap();
    let message = timeout(PATIENCE, heard.next()).await.unwrap().unwrap();
    assert_eq!((message.payload.len(), message.envelope), (limit, envelope.clone()));
    let large = Bytes::from(vec![0; limit + 1]);
    let error = bus.publish(&to, &envelope, large.clone()).await.unwrap_err();
    assert_eq!(error, BusError::TooLarge { length: limit + 1, limit });
    let error = bus.request(&to, &envelope, large, PATIENCE).await.unwrap_err();
    assert_eq!(error, BusError::TooLarge { length: limit + 1, limit });
    cluster.broker.stop().await;
}

#[tokio::test]
async fn a_broker_that_is_down_is_named_with_a_next_step() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let options = NatsOptions {
        url: format!("nats://127.0.0.1:{free}"),
        user: "u".to_owned(),
        password: "p".to_owned(),
        inbox_prefix: "_INBOX.u".to_owned(),
        name: "test".to_owned(),
        connect_timeout: Duration::from_millis(200),
        ping_interval: Duration::from_secs(1),
    };
    let error = NatsBus::connect(options.clone()).await.unwrap_err().to_string();
    assert!(error.contains("is the cluster up? try `callboard up`"), "{error}");
    let bad = NatsOptions { inbox_prefix: "elsewhere".to_owned(), ..options };
    assert!(matches!(NatsBus::connect(bad).await, Err(ConnectError::BadOptions { .. })));
}
