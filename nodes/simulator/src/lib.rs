//! A cluster's GPUs on a virtual clock: traces replayed through the very policies that live clusters
//! use, and through those of their peers. A simulation: no GPU, no node and no cell is real.

mod chance;
pub mod compare;
pub mod costs;
pub mod decisions;
pub mod engine;
pub mod floor;
pub mod metrics;
pub mod plots;
pub mod synthetic;
pub mod trace;
