//! Faults against a live cluster, and an independent check of what it kept.
//!
//! A run starts a cluster of its own through the `callboard` program, walks named moments × faults
//! ([`plan`]), writes down what its client saw ([`history`]) and hands that, with the witness file
//! the cells wrote to, to a checker in another language (`checker/check.py`). Each trial has a
//! safety phase (the fault), a heal, and a liveness phase (the kernel is whole again).
//!
//! Invariant: a fault strikes only processes and links of the run's own cluster.

pub mod checker;
pub mod cluster;
pub mod damage;
pub mod disks;
pub mod error;
pub mod fault;
pub mod figures;
pub mod history;
pub mod kinds;
pub mod network;
pub mod plan;
pub mod run;
pub mod session;
pub mod soak;
pub mod trial;
pub mod trigger;

pub use error::ChaosError;
pub use plan::{Fault, Moment, Plan, Profile, Trial};
pub use run::{Report, RunOptions, run};
