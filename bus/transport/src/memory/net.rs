//! The network behind in-memory buses: who listens, what is under way, what goes wrong.
//!
//! Every choice is made when a message is sent, in the order of sending, from one random stream.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap},
    time::Duration,
};

use callboard_protocol::SubjectPattern;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::AbortHandle,
    time::Instant,
};

use super::FaultPlan;
use crate::bus::{BusHealth, Losses, Message};

/// What became of one copy of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It reached its reader's queue.
    Delivered,
    /// The plan's chance lost it.
    Dropped,
    /// A partition, isolation or outage lost it.
    CutOff,
    /// Its reader's queue was full.
    Overflowed,
    /// Its reader was gone.
    Unread,
}

/// One line of the delivery log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// Milliseconds since the network was made.
    pub at_ms: u64,
    /// Number of the message, in order of sending.
    pub number: u64,
    /// Who sent it.
    pub from: String,
    /// For whom this copy was.
    pub to: String,
    /// Its subject, or that of the request it answers.
    pub subject: String,
    /// Its payload's length in bytes.
    pub length: usize,
    /// What became of it.
    pub fate: Fate,
}

#[derive(Debug)]
pub(super) struct Connection {
    pub(super) name: String,
    pub(super) health: watch::Sender<BusHealth>,
    closed: bool,
}

#[derive(Debug)]
struct Listener {
    connection: u64,
    pattern: SubjectPattern,
    sender: mpsc::Sender<Message>,
    losses: Losses,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Target {
    Listener(u64),
    Inbox(u64),
}

#[derive(Debug)]
struct UnderWay {
    number: u64,
    from: String,
    target: Target,
    message: Message,
}

#[derive(Debug)]
pub(super) struct Net {
    pub(super) plan: FaultPlan,
    pub(super) log: Option<Vec<Delivery>>,
    pub(super) pump: Option<AbortHandle>,
    rng: StdRng,
    started: Instant,
    connections: BTreeMap<u64, Connection>,
    listeners: BTreeMap<u64, Listener>,
    inboxes: BTreeMap<u64, (u64, oneshot::Sender<Message>)>,
    isolated: BTreeSet<String>,
    due: BinaryHeap<Reverse<(Instant, u64)>>,
    under_way: BTreeMap<u64, UnderWay>,
    last_due: BTreeMap<(String, Target), Instant>,
    id_next: u64,
}

impl Net {
    pub(super) fn new(seed: u64, plan: FaultPlan) -> Self {
        Self {
            plan,
            log: None,
            pump: None,
            rng: StdRng::seed_from_u64(seed),
            started: Instant::now(),
            connections: BTreeMap::new(),
            listeners: BTreeMap::new(),
            inboxes: BTreeMap::new(),
            isolated: BTreeSet::new(),
            due: BinaryHeap::new(),
            under_way: BTreeMap::new(),
            last_due: BTreeMap::new(),
            id_next: 0,
        }
    }

    fn id(&mut self) -> u64 {
        self.id_next += 1;
        self.id_next
    }

    pub(super) fn connect(&mut self, name: &str) -> (u64, watch::Receiver<BusHealth>) {
        let id = self.id();
        let (health, receiver) = watch::channel(BusHealth::Connected);
        self.connections.insert(id, Connection { name: name.to_owned(), health, closed: false });
        self.refresh_health();
        (id, receiver)
    }

    pub(super) fn drop_connection(&mut self, id: u64) {
        self.connections.remove(&id);
    }

    pub(super) fn has_listeners(&self, connection: u64) -> bool {
        self.listeners.values().any(|l| l.connection == connection && !l.sender.is_closed())
    }

    /// Why the connection cannot be used just now, if so.
    pub(super) fn trouble(&self, connection: u64) -> Option<&'static str> {
        let Some(connection) = self.connections.get(&connection) else {
            return Some("this connection was ended");
        };
        if connection.closed {
            Some("this connection was ended")
        } else if self.plan.broker_outage {
            Some("the broker is down")
        } else if self.isolated.contains(&connection.name) {
            Some("the network to the broker is cut")
        } else {
            None
        }
    }

    fn refresh_health(&mut self) {
        for id in self.connections.keys().copied().collect::<Vec<_>>() {
            let health = match self.trouble(id) {
                None => BusHealth::Connected,
                Some(_) => BusHealth::Disconnected,
            };
            if let Some(connection) = self.connections.get(&id) {
                connection.health.send_if_modified(|old| std::mem::replace(old, health) != health);
            }
        }
    }

    pub(super) fn partition(&mut self, a: &str, b: &str) {
        self.plan.partitions.push((a.to_owned(), b.to_owned()));
    }

    pub(super) fn heal(&mut self, a: &str, b: &str) {
        self.plan.partitions.retain(|(x, y)| !((x == a && y == b) || (x == b && y == a)));
    }

    pub(super) fn isolate(&mut self, name: &str) {
        self.isolated.insert(name.to_owned());
        self.refresh_health();
    }

    pub(super) fn rejoin(&mut self, name: &str) {
        self.isolated.remove(name);
        self.refresh_health();
    }

    pub(super) fn disconnect(&mut self, name: &str) {
        for connection in self.connections.values_mut().filter(|c| c.name == name) {
            connection.closed = true;
        }
        let closed = |id: &u64| self.connections.get(id).is_some_and(|c| c.closed);
        self.listeners.retain(|_, listener| !closed(&listener.connection));
        self.inboxes.retain(|_, (connection, _)| !closed(connection));
        self.refresh_health();
    }

    pub(super) fn set_outage(&mut self, down: bool) {
        self.plan.broker_outage = down;
        if down {
            self.due.clear();
            for (_, lost) in std::mem::take(&mut self.under_way) {
                let to = self.name_of(lost.target);
                self.note(&lost, &to, Fate::CutOff);
            }
        }
        self.refresh_health();
    }

    pub(super) fn heal_all(&mut self) {
        self.plan.partitions.clear();
        self.plan.broker_outage = false;
        self.isolated.clear();
        self.refresh_health();
    }

    pub(super) fn listen(
        &mut self,
        connection: u64,
        pattern: SubjectPattern,
        sender: mpsc::Sender<Message>,
        losses: Losses,
    ) {
        self.listeners.retain(|_, listener| !listener.sender.is_closed());
        let id = self.id();
        self.listeners.insert(id, Listener { connection, pattern, sender, losses });
    }

    pub(super) fn open_inbox(&mut self, connection: u64) -> (u64, oneshot::Receiver<Message>) {
        let (sender, receiver) = oneshot::channel();
        self.inboxes.retain(|_, (_, sender)| !sender.is_closed());
        let id = self.id();
        self.inboxes.insert(id, (connection, sender));
        (id, receiver)
    }

    /// Sends to every listener. Returns how many there are, reachable or not.
    pub(super) fn publish(&mut self, connection: u64, message: &Message) -> usize {
        let targets: Vec<u64> = self
            .listeners
            .iter()
            .filter(|(_, l)| !l.sender.is_closed() && l.pattern.matches(&message.subject))
            .map(|(id, _)| *id)
            .collect();
        let number = self.id();
        for target in &targets {
            self.send(connection, number, Target::Listener(*target), message);
        }
        targets.len()
    }

    pub(super) fn respond(&mut self, connection: u64, inbox: u64, message: &Message) {
        let number = self.id();
        self.send(connection, number, Target::Inbox(inbox), message);
    }

    fn send(&mut self, connection: u64, number: u64, target: Target, message: &Message) {
        let Some(from) = self.connections.get(&connection).map(|c| c.name.clone()) else { return };
        let copies = 1 + u8::from(self.rng.random_bool(chance(self.plan.duplicate_probability)));
        for _copy in 0..copies {
            let lost = self.rng.random_bool(chance(self.plan.drop_probability));
            let (min, max) = (self.plan.delay_min_ms, self.plan.delay_max_ms);
            let delay = Duration::from_millis(self.rng.random_range(min..=max.max(min)));
            let copy = UnderWay { number, from: from.clone(), target, message: message.clone() };
            if lost {
                let to = self.name_of(target);
                self.note(&copy, &to, Fate::Dropped);
                continue;
            }
            let mut due = Instant::now() + delay;
            if !self.plan.reorder {
                let last = self.last_due.entry((from.clone(), target)).or_insert(due);
                due = due.max(*last);
                *last = due;
            }
            let id = self.id();
            self.due.push(Reverse((due, id)));
            self.under_way.insert(id, copy);
        }
    }

    /// Delivers what is due and says when the next is.
    pub(super) fn pump(&mut self) -> Option<Instant> {
        let now = Instant::now();
        while let Some(Reverse((due, id))) = self.due.peek().copied() {
            if due > now {
                return Some(due);
            }
            self.due.pop();
            if let Some(copy) = self.under_way.remove(&id) {
                self.deliver(copy);
            }
        }
        self.last_due.retain(|_, due| *due > now);
        None
    }

    fn deliver(&mut self, copy: UnderWay) {
        let to = self.name_of(copy.target);
        let cut = self.plan.broker_outage
            || self.isolated.contains(&to)
            || self
                .plan
                .partitions
                .iter()
                .any(|(a, b)| (*a == copy.from && *b == to) || (*b == copy.from && *a == to));
        let fate = if cut { Fate::CutOff } else { self.hand_over(&copy) };
        self.note(&copy, &to, fate);
    }

    fn hand_over(&mut self, copy: &UnderWay) -> Fate {
        match copy.target {
            Target::Inbox(id) => {
                let sent = self
                    .inboxes
                    .remove(&id)
                    .is_some_and(|(_, sender)| sender.send(copy.message.clone()).is_ok());
                if sent { Fate::Delivered } else { Fate::Unread }
            }
            Target::Listener(id) => {
                let Some(listener) = self.listeners.get_mut(&id) else { return Fate::Unread };
                match listener.sender.try_send(copy.message.clone()) {
                    Ok(()) => Fate::Delivered,
                    Err(mpsc::error::TrySendError::Closed(_)) => Fate::Unread,
                    Err(mpsc::error::TrySendError::Full(_)) => {
                        listener.losses.count(&listener.pattern);
                        Fate::Overflowed
                    }
                }
            }
        }
    }

    fn name_of(&self, target: Target) -> String {
        let connection = match target {
            Target::Listener(id) => self.listeners.get(&id).map(|l| l.connection),
            Target::Inbox(id) => self.inboxes.get(&id).map(|(connection, _)| *connection),
        };
        connection
            .and_then(|id| self.connections.get(&id))
            .map_or_else(|| "nobody".to_owned(), |connection| connection.name.clone())
    }

    fn note(&mut self, copy: &UnderWay, to: &str, fate: Fate) {
        let at_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        if let Some(log) = &mut self.log {
            log.push(Delivery {
                at_ms,
                number: copy.number,
                from: copy.from.clone(),
                to: to.to_owned(),
                subject: copy.message.subject.to_string(),
                length: copy.message.payload.len(),
                fate,
            });
        }
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        if let Some(pump) = &self.pump {
            pump.abort();
        }
    }
}

/// A probability as `random_bool` accepts it, whatever the plan says.
fn chance(probability: f64) -> f64 {
    if probability.is_nan() { 0.0 } else { probability.clamp(0.0, 1.0) }
}
