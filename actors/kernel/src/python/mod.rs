//! The Python process of one replica: a stock ipykernel with Callboard's state package. Or that of a
//! kernel of another language ([`ForeignKernel`]), which says and is told the same, and has no state.
//!
//! [`PythonPool`] is where processes come from: out of a stock of started ones, forked by the
//! [`Zygote`], or started the long way. [`PythonProcess`] owns the child, its sockets and its directory. It decides nothing: what
//! happens arrives as [`PythonEvent`]s, what is wanted is sent through it.

mod cgroup;
mod child;
mod directory;
mod foreign;
mod isolation;
mod launch;
pub mod memory;
mod orphans;
mod package;
mod plain;
mod pool;
mod process;
mod sockets;
mod state_socket;
mod supervised;
mod zygote;

pub use cgroup::{CGROUP_ROOT, Cgroups};
pub use directory::{FileOptions, PipPolicy, SessionConfig, SessionDirectory, SessionPackages};
pub use foreign::{ForeignKernel, KernelProgram, KernelPrograms};
pub use isolation::{Isolation, UIDS_PER_NODE, is_root, isolation_problem};
pub use package::{PackageError, unpack_package};
pub use plain::PlainKernel;
pub use pool::{PythonPool, Taken};
pub use process::{LaunchError, PythonConfig, PythonProcess};
pub use sockets::FromKernel;
pub use state_socket::{
    Captured, CapturedGroup, CapturedPart, Hello, PartPatch, RestoreGroup, Restored,
};
pub use zygote::{Zygote, ZygoteStatus};

/// A program that prints the environment of the interpreter that runs it, as JSON.
pub const ENVIRONMENT_PROGRAM: &str = include_str!("../../python/callboard_kernel/environment.py");

/// What a Python process tells.
#[derive(Debug)]
pub enum PythonEvent {
    /// It is ready to be given state or cells.
    Ready(Hello),
    /// It could not be brought up; it is gone.
    NotReady(LaunchError),
    /// A message for the front-ends: output, status, reply or question for input.
    Jupyter(FromKernel),
    /// A request that may have run user code is over and its state was captured.
    Captured(Captured),
    /// Capturing takes long.
    Saving {
        /// The request whose state is being captured.
        msg_id: String,
    },
    /// The state it was given is in place.
    Restored(Restored),
    /// It ended.
    Exited {
        /// How, for people: `killed by signal 9`.
        how: String,
    },
}
