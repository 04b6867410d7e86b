//! The bus: one trait, NATS behind it, and an in-memory twin with seeded faults; the supervised
//! nats-server child; telemetry.

pub mod bus;
pub mod memory;
pub mod nats;
pub mod permissions;
pub mod server;
pub mod telemetry;
pub mod typed;

pub use bus::{
    Bus, BusError, BusHealth, Lanes, Message, ReplyTo, SUBSCRIPTION_CAPACITY, Subscription,
};
pub use memory::{FaultPlan, MemoryNet};
pub use nats::{ConnectError, NatsBus, NatsOptions};
pub use permissions::{Credentials, Role};
pub use server::{Broker, BrokerError, BrokerEvent, BrokerOptions, BrokerUser};
