//! Pure decisions and state machines without I/O: time and chance enter as arguments only.
//!
//! Invariant: no tokio, no ractor, no NATS, no openraft, no clock, no random source here.

mod chance;
pub mod disk;
pub mod environment;
pub mod failure;
pub mod gpu;
pub mod hibernation;
pub mod kernelspecs;
pub mod limits;
pub mod placement;
pub mod prewarm;
pub mod repair;
pub mod restart;
pub mod terms;
