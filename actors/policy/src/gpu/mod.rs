//! Who has which GPUs, where kernels' members go, and how many nodes there should be.
//!
//! A *session* (a kernel) lives for days and runs short *cells*; GPUs are bound to a cell. Policies
//! are traits with one file for each implementation: NotebookOS's, read in its released code, those
//! of its peers, and ours. [`scheduler::Scheduler`] joins one of each to a machine without I/O.

pub mod autoscaling;
pub mod costs;
pub mod decision;
pub mod executor;
pub mod fleet;
pub mod history;
pub mod lease;
pub mod migration;
pub mod placement;
pub mod presets;
pub mod queueing;
pub mod scheduler;
pub mod topology;
