//! What can keep a chaos run from being made. What a run finds is no error but a report.

use std::{io, path::PathBuf};

use callboard_protocol::Fault;

/// Why a run, or one of its trials, could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ChaosError {
    /// A file of the run.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The cluster did not come up.
    #[error("the cluster did not start: {why}; its story is in {}", log.display())]
    NoCluster {
        /// What was missing.
        why: String,
        /// What `callboard up` said.
        log: PathBuf,
    },
    /// The cluster refused something that no fault explains.
    #[error("{doing}: {fault}")]
    Refused {
        /// What was tried.
        doing: &'static str,
        /// What it said.
        fault: Fault,
    },
    /// Something did not happen in time.
    #[error("{what} did not happen within {within_s} s{detail}")]
    TooSlow {
        /// What was waited for.
        what: &'static str,
        /// How long, in seconds.
        within_s: u64,
        /// What was seen instead; empty, or begins with a colon.
        detail: String,
    },
    /// A process that is to be struck does not belong to the run's cluster.
    #[error("process {pid} does not belong to this run's cluster ({why}); nothing was done to it")]
    NotOurs {
        /// Which.
        pid: u32,
        /// Why.
        why: String,
    },
    /// A helper program failed.
    #[error("`{command}` failed: {why}")]
    Command {
        /// What was run.
        command: String,
        /// What it said.
        why: String,
    },
    /// The checker did not give a verdict.
    #[error("the independent checker gave no verdict: {0}")]
    NoVerdict(String),
    /// A plan's file is wrong.
    #[error("the plan is not valid: {0}")]
    BadPlan(String),
    /// The run was stopped by its user.
    #[error("stopped by a signal")]
    Stopped,
}

impl ChaosError {
    pub(crate) fn io(
        what: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { what, path, source }
    }

    pub(crate) fn refused(doing: &'static str) -> impl FnOnce(Fault) -> Self {
        move |fault| Self::Refused { doing, fault }
    }
}
