//! The supervised nats-server child, with real processes.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::{fs, net::TcpListener, os::unix::fs::PermissionsExt as _};

use callboard_protocol::Envelope;
use callboard_transport::{
    Broker, BrokerError, BrokerEvent, BrokerOptions, BusHealth, Credentials, Role,
};
use common::{PATIENCE, TestCluster, becomes, node};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::time::timeout;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_broker_returns_on_the_same_port() {
    let mut cluster = TestCluster::start().await;
    let mut events = cluster.broker.events().unwrap();
    let BrokerEvent::Started { pid, port, adopted: false } = events.recv().await.unwrap() else {
        panic!("the first event is not Started");
    };
    for restarts in 1..=2 {
        let pid = cluster.broker.pid().unwrap();
        kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGKILL).unwrap();
        let mut next = async || timeout(PATIENCE, events.recv()).await.unwrap().unwrap();
        assert_eq!(next().await, BrokerEvent::Exited { how: "killed by signal 9".to_owned() });
        let BrokerEvent::Started { pid: again, port: same, .. } = next().await else {
            panic!("it was not started again");
        };
        assert_ne!(again, pid);
        assert_eq!(same, port);
        assert_eq!(next().await, BrokerEvent::Restarted { restarts });
        assert_eq!(cluster.broker.pid(), Some(again));
    }
    assert_ne!(pid, 0);
    cluster.broker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_broker_is_adopted_with_its_clients_and_todays_users() {
    let mut cluster = TestCluster::start().await;
    let bus = cluster.connect(&node(1)).await;
    let pid = cluster.broker.pid().unwrap();
    let mut options = cluster.options.clone();
    let role = Role::Node(callboard_protocol::NodeId::new("n3").unwrap());
    let mut added = Credentials::generate(&role, &cluster.cluster, cluster.broker.url());
    options.users.push(role.broker_user(&cluster.cluster, added.password.clone()));
    cluster.broker.leave_running().await;
    let mut broker = Broker::start(options).await.unwrap();
    let started = broker.events().unwrap().recv().await.unwrap();
    assert_eq!(started, BrokerEvent::Started { pid, port: broker.port(), adopted: true });
    assert_eq!(broker.pid(), Some(pid));
    becomes(&bus, BusHealth::Connected).await;
    let to = common::subject(callboard_protocol::ActorKind::Node, "n1", "ping");
    bus.publish(&to, &Envelope::default(), bytes::Bytes::new()).await.unwrap();
    // The reload that brings the new user is not confirmed; who is refused meanwhile asks again.
    added.url = broker.url().to_owned();
    let joining = async {
        let options = callboard_transport::NatsOptions::new(&added, "late");
        while callboard_transport::NatsBus::connect(options.clone()).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, joining).await.unwrap();
    // An adopted broker that dies is started again, now as a child.
    let mut events = {
        cluster.broker = broker;
        cluster.broker.pid().unwrap()
    };
    kill(Pid::from_raw(i32::try_from(events).unwrap()), Signal::SIGKILL).unwrap();
    while events == pid {
        tokio::task::yield_now().await;
        events = cluster.broker.pid().unwrap_or(pid);
    }
    becomes(&bus, BusHealth::Connected).await;
    cluster.broker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_folder_has_one_supervisor_and_its_port_is_remembered() {
    let cluster = TestCluster::start().await;
    let port = cluster.broker.port();
    let error = Broker::start(cluster.options.clone()).await.unwrap_err();
    assert!(matches!(error, BrokerError::InUse { .. }), "{error}");
    cluster.broker.stop().await;
    let again = Broker::start(cluster.options.clone()).await.unwrap();
    assert_eq!(again.port(), port);
    again.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_in_use_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let folder = tempfile::tempdir().unwrap();
    let mut options = BrokerOptions::new(folder.path(), Vec::new());
    options.port = Some(port);
    let error = Broker::start(options).await.unwrap_err();
    assert!(matches!(error, BrokerError::PortInUse { .. }), "{error}");
    assert!(error.to_string().contains(&format!("port {port} ")), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_that_cannot_be_made_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let error =
        Broker::start(BrokerOptions::new(file.join("broker"), Vec::new())).await.unwrap_err();
    assert!(error.to_string().contains("must be writable"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_are_readable_by_their_owner_only() {
    let cluster = TestCluster::start().await;
    let path = cluster.folder.path().join("operator.json");
    let written = cluster.credentials(&Role::Operator);
    written.save(&path).unwrap();
    assert_eq!(Credentials::load(&path).unwrap(), written);
    for path in [path, cluster.options.data_dir.join("broker.conf")] {
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600, "{path:?}");
    }
    assert!(!format!("{written:?}").contains(&written.password));
    let missing = Credentials::load(&cluster.folder.path().join("none")).unwrap_err().to_string();
    assert!(missing.contains("`callboard up`"), "{missing}");
    cluster.broker.stop().await;
}
