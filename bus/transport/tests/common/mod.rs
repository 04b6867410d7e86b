//! A real broker with the users of a small cluster, for tests.
#![allow(dead_code, unreachable_pub, reason = "each test file uses a part of it")]

use std::{sync::Arc, time::Duration};

use callboard_protocol::{ActorKind, ClusterId, NodeId, Subject, SubjectPattern};
use callboard_transport::{
    Broker, BrokerOptions, Bus, BusHealth, Credentials, NatsBus, NatsOptions, Role,
    permissions::cluster_roles,
};
use tempfile::TempDir;

/// How long a test waits for an event before it fails; never for a fixed time.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub struct TestCluster {
    pub cluster: ClusterId,
    pub broker: Broker,
    pub options: BrokerOptions,
    credentials: Vec<(Role, Credentials)>,
    pub folder: TempDir,
}

pub fn cluster_id() -> ClusterId {
    ClusterId::new("test").unwrap()
}

pub fn node(number: u32) -> Role {
    Role::Node(NodeId::new(format!("n{number}")).unwrap())
}

impl TestCluster {
    pub async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let cluster = cluster_id();
        let nodes = [1, 2].map(|n| NodeId::new(format!("n{n}")).unwrap());
        let mut credentials: Vec<(Role, Credentials)> = cluster_roles(&nodes)
            .into_iter()
            .map(|role| (role.clone(), Credentials::generate(&role, &cluster, "")))
            .collect();
        let users =
            credentials.iter().map(|(r, c)| r.broker_user(&cluster, c.password.clone())).collect();
        let options = BrokerOptions::new(folder.path().join("broker"), users);
        let broker = Broker::start(options.clone()).await.unwrap();
        for (_, credentials) in &mut credentials {
            credentials.url = broker.url().to_owned();
        }
        Self { cluster, broker, options, credentials, folder }
    }

    pub fn credentials(&self, role: &Role) -> Credentials {
        self.credentials.iter().find(|(r, _)| r == role).unwrap().1.clone()
    }

    pub async fn connect(&self, role: &Role) -> Arc<dyn Bus> {
        NatsBus::connect(NatsOptions::new(&self.credentials(role), "test")).await.unwrap()
    }
}

pub fn subject(kind: ActorKind, id: &str, verb: &str) -> Subject {
    Subject::actor(&cluster_id(), kind, id, verb)
}

pub fn verbs(kind: ActorKind, id: &str) -> SubjectPattern {
    SubjectPattern::Verbs { cluster: cluster_id(), kind, id: id.to_owned() }
}

pub async fn becomes(bus: &Arc<dyn Bus>, wanted: BusHealth) {
    let mut health = bus.health();
    tokio::time::timeout(PATIENCE, health.wait_for(|health| *health == wanted))
        .await
        .unwrap_or_else(|_| panic!("the bus never became {wanted:?}"))
        .unwrap();
}
