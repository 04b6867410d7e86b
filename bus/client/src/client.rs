//! One connection to a cluster, and what is made from it.

use std::sync::Arc;

use bytes::Bytes;
use callboard_protocol::{
    ActorKind, ClusterId, Envelope, Fault, KernelId, OwnerId, Subject, SubjectPattern,
};
use callboard_transport::{
    Bus, ConnectError, Credentials, NatsBus, NatsOptions, Subscription, typed::bus_fault,
};
use futures::{
    FutureExt as _,
    future::{select_all, try_join_all},
};

use crate::{control::ControlClient, kernel::KernelClient};

/// A connection to a cluster on behalf of one owner. Clones share the connection.
#[derive(Debug, Clone)]
pub struct Client {
    bus: Arc<dyn Bus>,
    cluster: ClusterId,
    owner: OwnerId,
}

impl Client {
    /// Connects over NATS.
    ///
    /// # Errors
    /// [`ConnectError`] if the broker is unreachable or refuses the credentials.
    pub async fn connect(credentials: &Credentials) -> Result<Self, ConnectError> {
        let bus = NatsBus::connect(NatsOptions::new(credentials, "client")).await?;
        Ok(Self::new(bus, credentials.cluster.clone()))
    }

    /// A client on a connection that exists already.
    #[must_use]
    pub fn new(bus: Arc<dyn Bus>, cluster: ClusterId) -> Self {
        Self { bus, cluster, owner: OwnerId::default() }
    }

    /// The same connection on behalf of `owner`.
    #[must_use]
    pub fn for_owner(self, owner: OwnerId) -> Self {
        Self { owner, ..self }
    }

    /// The connection.
    #[must_use]
    pub fn bus(&self) -> &Arc<dyn Bus> {
        &self.bus
    }

    /// The cluster.
    #[must_use]
    pub fn cluster(&self) -> &ClusterId {
        &self.cluster
    }

    /// A fresh envelope in the owner's name.
    #[must_use]
    pub fn envelope(&self) -> Envelope {
        Envelope::new(self.owner.clone())
    }

    /// Verbs of the control plane.
    #[must_use]
    pub fn control(&self) -> ControlClient {
        ControlClient::new(self.clone())
    }

    /// Verbs of one kernel.
    #[must_use]
    pub fn kernel(&self, kernel: KernelId) -> KernelClient {
        KernelClient::new(self.clone(), kernel)
    }

    /// Follows every event of the cluster, the outputs of all kernels included.
    ///
    /// # Errors
    /// A [`Fault`] if the broker is unreachable or does not permit it.
    pub async fn events(&self) -> Result<EventStream, Fault> {
        self.follow([SubjectPattern::AllEvents { cluster: self.cluster.clone() }]).await
    }

    /// Follows the events of these names of every actor of a kind. Two that have different names may
    /// come in the other order.
    ///
    /// # Errors
    /// As [`Self::events`].
    pub async fn events_named(
        &self,
        kind: ActorKind,
        names: &[&str],
    ) -> Result<EventStream, Fault> {
        let cluster = || self.cluster.clone();
        self.follow(names.iter().map(|name| SubjectPattern::EventOfKind {
            cluster: cluster(),
            kind,
            event: (*name).to_owned(),
        }))
        .await
    }

    async fn follow(
        &self,
        patterns: impl IntoIterator<Item = SubjectPattern>,
    ) -> Result<EventStream, Fault> {
        let about = Subject::actor(&self.cluster, ActorKind::Control, "main", "events");
        let subscribing =
            patterns.into_iter().map(|pattern| async move { self.bus.subscribe(&pattern).await });
        let subscriptions = try_join_all(subscribing).await;
        let subscriptions = subscriptions.map_err(|error| bus_fault(&about, &error))?;
        Ok(EventStream { subscriptions })
    }
}

/// Something that happened to an actor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterEvent {
    /// To what kind of actor.
    pub kind: ActorKind,
    /// To which.
    pub id: String,
    /// What, in the past tense.
    pub event: String,
    /// What the event says about itself.
    pub envelope: Envelope,
    /// Its body; JSON but for `emitted`.
    pub payload: Bytes,
}

/// A stream of events. Dropping it ends the subscriptions.
#[derive(Debug)]
pub struct EventStream {
    subscriptions: Vec<Subscription>,
}

impl EventStream {
    /// The next event; `None` once the connection is closed for good.
    pub async fn next(&mut self) -> Option<ClusterEvent> {
        loop {
            let nexts = self.subscriptions.iter_mut().map(|it| it.next().boxed());
            let (message, ..) = select_all(nexts).await;
            let message = message?;
            if let Subject::Event { kind, id, event, .. } = message.subject {
                let (envelope, payload) = (message.envelope, message.payload);
                return Some(ClusterEvent { kind, id, event, envelope, payload });
            }
        }
    }
}
