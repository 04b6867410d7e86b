//! Why a state cannot be kept or gone back to, in sentences.

use callboard_protocol::{Fault, FaultCode, Seq};

/// Why nothing was kept or gone back to. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UndoRefusal {
    /// The kernel went on since the wish was made.
    #[error(
        "the kernel has moved on since: look at it again with `callboard kernel log`, then decide"
    )]
    Moved,
    /// A cell waits or runs.
    #[error(
        "cell {first} is running or waiting: wait until it has ended, or interrupt it with \
         `callboard kernel interrupt`, then try again"
    )]
    Busy {
        /// The first of them.
        first: Seq,
    },
    /// It was kept once, or never.
    #[error("{what} is no longer kept: {kept}")]
    NotKept {
        /// What, as the start of a sentence.
        what: String,
        /// What is kept, as a clause.
        kept: String,
    },
    /// There is no such thing.
    #[error("{what}: {kept}")]
    Unknown {
        /// What is wrong.
        what: String,
        /// What is kept, as a clause.
        kept: String,
    },
    /// The name keeps another state.
    #[error(
        "the name '{name}' keeps the state after cell {cell} already: choose another name, or \
         remove that one with `callboard kernel checkpoint KERNEL {name} --drop`"
    )]
    NameTaken {
        /// The name.
        name: String,
        /// The cell that left that state.
        cell: Seq,
    },
    /// The name could be taken for a cell, or cannot be written down.
    #[error(
        "'{name}' cannot name a checkpoint: use 1 to 64 letters, digits, '-' or '_', and not \
         digits alone, which would mean a cell"
    )]
    BadName {
        /// The name.
        name: String,
    },
    /// As many states are kept by name as may be.
    #[error(
        "the kernel keeps as much under names as it may ({}): remove one with \
         `callboard kernel checkpoint KERNEL NAME --drop`",
        names.join(", ")
    )]
    TooManyCheckpoints {
        /// The names.
        names: Vec<String>,
    },
}

impl From<UndoRefusal> for Fault {
    fn from(refusal: UndoRefusal) -> Self {
        let code = match refusal {
            UndoRefusal::Moved | UndoRefusal::Busy { .. } | UndoRefusal::NameTaken { .. } => {
                FaultCode::Conflict
            }
            UndoRefusal::NotKept { .. } | UndoRefusal::Unknown { .. } => FaultCode::NotFound,
            UndoRefusal::BadName { .. } => FaultCode::BadRequest,
            UndoRefusal::TooManyCheckpoints { .. } => FaultCode::Exhausted,
        };
        Self::new(code, refusal.to_string())
    }
}
