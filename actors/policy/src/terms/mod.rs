//! Executor terms: who runs a kernel's cells, and never twice.
//!
//! [`KernelLog`] is the replicated machine every replica applies the kernel's log to.
//! [`Executor`] is one replica's local machine: what it proposes and does, given what it saw.
//! No clock takes part in safety; time only decides when something is tried.

mod entry;
mod executor;
mod history;
pub mod invariants;
mod log;

pub use entry::{Applied, Entry, Hash, LoggedOutput, Part, StateDelta, StateGroup};
pub use executor::{Action, Executor, Identity, Input, PythonPhase, Request, Upkeep};
pub use history::{
    CHECKPOINTS_MAX, HISTORY_CHUNK_BYTES_MAX, HISTORY_INLINE_BYTES_MAX, HISTORY_STEPS_MAX, Moment,
    RewindTo, UndoRefusal,
};
pub use log::{
    DEDUPE_CELLS_MAX, KernelLog, OUTPUT_BYTES_MAX, OpenTerm, PendingCell, QUEUE_DEPTH_MAX,
};
