//! Three replicas of one kernel in one process: in-memory bus, real disks, real Python.
//!
//! Reproduce: `make setup && cargo test -p callboard-kernel --test replicas`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod cluster;
mod disk;
mod failover;
mod hibernation;
mod parking;
mod undo;
