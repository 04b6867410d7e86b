//! The gateway: Jupyter's REST and websocket interface in front of the bus.
//!
//! It is a pure client of the bus and holds nothing that another gateway does not have or find: any
//! number of them may serve the same kernels, and any may end at any moment. How far each front-end
//! has seen a kernel's outputs is noted with the kernel's replicas.
//!
//! Source of the interface: Jupyter Server's REST API, Jupyter messaging specification 5.5.

mod activity;
mod auth;
mod document;
mod errors;
mod found;
pub mod frames;
mod kernels;
mod large;
mod metrics;
mod options;
mod paths;
mod server;
mod sessions;
mod specs;
mod state;
mod status;
mod websocket;

pub use options::GatewayOptions;
pub use server::{Gateway, GatewayError};
