//! A client of the bus, as front-ends and the command line use it: runs cells so that they survive
//! lost messages, brokers and nodes, asks the control plane, follows events.
//!
//! Invariant: nothing here runs without being polled; no task is spawned.

pub mod channels;
pub mod client;
pub mod control;
pub mod execute;
pub mod kernel;
pub mod ledger;
pub mod own;
pub mod request;
pub mod said;
pub mod stream;
mod users;

pub use channels::{Channels, Delivery};
pub use client::{Client, ClusterEvent, EventStream};
pub use control::ControlClient;
pub use execute::{ExecuteEvent, ExecuteOptions, Execution, Resend};
pub use kernel::KernelClient;
pub use request::{control_request, execute_request};
