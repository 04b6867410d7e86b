//! The proxy: a process that Jupyter programs start, feed and end as they would ipykernel, and
//! that speaks to a kernel of the cluster.
//!
//! It holds nothing that the kernel does not have. Which kernel it stands for is noted in the
//! connection file, so that the process a front-end starts in its place finds the same one.
//!
//! Source of the interface: Jupyter messaging specification 5.5, "The wire protocol"; JEP 65 for
//! `iopub_welcome`.

mod connection;
mod error;
mod kernel;
mod lifetime;
mod publisher;
mod routes;
mod serve;
mod sockets;
pub mod spec;
mod zmtp;

pub use error::ProxyError;
pub use kernel::{OnExit, Which};
pub use serve::{Proxy, ProxyOptions};
