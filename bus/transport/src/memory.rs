//! The bus in memory, for tests and simulations: one process, tokio's clock, seeded faults.
//!
//! On a current-thread runtime with a paused clock the same seed and the same actors give the same
//! deliveries; [`MemoryNet::log`] shows them. Semantics are those of core NATS: at most once, in
//! order per sender and subscription unless the plan reorders.

mod endpoint;
mod net;
mod plan;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use net::{Delivery, Fate};
pub use plan::{FaultPlan, PlanError};

use self::{endpoint::MemoryBus, net::Net};
use crate::bus::Bus;

/// A network of in-memory buses. Clones share it.
#[derive(Debug, Clone)]
pub struct MemoryNet {
    net: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    net: Mutex<Net>,
    pump: tokio::sync::Notify,
}

impl Shared {
    /// The network's state. No panic can leave it half-changed in a way that matters to a test
    /// that already failed.
    fn lock(&self) -> MutexGuard<'_, Net> {
        self.net.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl MemoryNet {
    /// A network whose faults follow `plan`, with every choice drawn from `seed`.
    #[must_use]
    pub fn new(seed: u64, plan: FaultPlan) -> Self {
        let net = Mutex::new(Net::new(seed, plan));
        Self { net: Arc::new(Shared { net, pump: tokio::sync::Notify::new() }) }
    }

    /// A new connection of the endpoint `name`. An endpoint may have several.
    #[must_use]
    pub fn connect(&self, name: &str) -> Arc<dyn Bus> {
        Arc::new(MemoryBus::new(self.net.clone(), name))
    }

    /// Replaces the plan for what is sent from now on. The limit of payloads changes too.
    pub fn set_plan(&self, plan: FaultPlan) {
        self.net.lock().plan = plan;
    }

    /// From now on nothing passes between `a` and `b`, in either direction. Silent.
    pub fn partition(&self, a: &str, b: &str) {
        self.net.lock().partition(a, b);
    }

    /// Ends the partition between `a` and `b`.
    pub fn heal(&self, a: &str, b: &str) {
        self.net.lock().heal(a, b);
    }

    /// Cuts `name` off from the broker: it sees itself disconnected, nothing reaches it.
    pub fn isolate(&self, name: &str) {
        self.net.lock().isolate(name);
    }

    /// Lets `name` reach the broker again. Its subscriptions still stand.
    pub fn rejoin(&self, name: &str) {
        self.net.lock().rejoin(name);
    }

    /// Ends every connection of `name` for good, as the death of its process does. A later
    /// [`MemoryNet::connect`] makes new ones.
    pub fn disconnect(&self, name: &str) {
        self.net.lock().disconnect(name);
    }

    /// Takes the broker down or brings it back. Messages under way are lost.
    pub fn set_broker_outage(&self, down: bool) {
        self.net.lock().set_outage(down);
    }

    /// Ends every partition, isolation and outage.
    pub fn heal_all(&self) {
        self.net.lock().heal_all();
    }

    /// Starts to keep a log of deliveries.
    pub fn keep_log(&self) {
        self.net.lock().log = Some(Vec::new());
    }

    /// What was delivered and what was not, in order, since [`MemoryNet::keep_log`].
    #[must_use]
    pub fn log(&self) -> Vec<Delivery> {
        self.net.lock().log.clone().unwrap_or_default()
    }
}
