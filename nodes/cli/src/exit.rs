//! How the command ends: every exit code, and the failure that carries one.

use std::{fmt, process};

use callboard_protocol::{Certainty, Fault, FaultCode};

/// The exit codes of `callboard`. docs/cli.md lists them too; a test keeps the two equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It was done.
    Ok = 0,
    /// The cell raised, or the operation failed for a reason of its own.
    Failed = 1,
    /// The command line, a configuration or a request is wrong.
    Usage = 2,
    /// The kernel, node or actor named does not exist.
    NotFound = 3,
    /// No cluster, or nobody in it who could answer.
    Unavailable = 4,
    /// The cell was interrupted, or may have run although no answer came.
    MaybeExecuted = 5,
    /// The same id or name is in use for something else.
    Conflict = 6,
    /// This machine lacks something: Python, nats-server, a free port, the data directory.
    Environment = 7,
    /// A defect of Callboard.
    Internal = 70,
    /// A node must be started again, as `up` does; what was acknowledged is safe.
    RestartNeeded = 75,
}

impl Exit {
    /// Every code with its meaning.
    #[cfg(test)]
    pub const ALL: [Self; 10] = [
        Self::Ok,
        Self::Failed,
        Self::Usage,
        Self::NotFound,
        Self::Unavailable,
        Self::MaybeExecuted,
        Self::Conflict,
        Self::Environment,
        Self::Internal,
        Self::RestartNeeded,
    ];
}

impl From<Exit> for process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// A failed command: what to say, and how to end.
#[derive(Debug)]
pub struct Failure {
    /// How to end.
    pub exit: Exit,
    /// What is wrong and what to do next, in a sentence.
    pub message: String,
}

impl Failure {
    /// A failure that ends the command with `exit`.
    pub fn new(exit: Exit, message: impl fmt::Display) -> Self {
        Self { exit, message: message.to_string() }
    }

    /// This machine lacks something.
    pub fn environment(message: impl fmt::Display) -> Self {
        Self::new(Exit::Environment, message)
    }

    /// The command line or a file the user wrote is wrong.
    pub fn usage(message: impl fmt::Display) -> Self {
        Self::new(Exit::Usage, message)
    }
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        let exit = match (fault.code, fault.certainty) {
            (FaultCode::NotFound, _) => Exit::NotFound,
            (FaultCode::BadRequest | FaultCode::TooLarge, _) => Exit::Usage,
            (FaultCode::Conflict, _) => Exit::Conflict,
            (FaultCode::TimedOut, Certainty::MaybeExecuted) => Exit::MaybeExecuted,
            (FaultCode::Unavailable | FaultCode::TimedOut | FaultCode::Stale, _) => {
                Exit::Unavailable
            }
            (FaultCode::Exhausted, _) => Exit::Failed,
            (FaultCode::Internal, _) => Exit::Internal,
        };
        Self::new(exit, fault.message)
    }
}

impl From<std::io::Error> for Failure {
    /// Writing the command's own output failed.
    fn from(error: std::io::Error) -> Self {
        let exit = match error.kind() {
            std::io::ErrorKind::BrokenPipe => Exit::Ok,
            _ => Exit::Failed,
        };
        Self::new(exit, format!("cannot write the output: {error}"))
    }
}

/// What a command returns.
pub type Outcome = Result<Exit, Failure>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agents_exit_codes_are_ours() {
        use callboard_agent::ExitReason;
        assert_eq!(ExitReason::CODE_STOPPED, Exit::Ok as u8);
        assert_eq!(ExitReason::CODE_RESTART_NEEDED, Exit::RestartNeeded as u8);
    }

    #[test]
    fn the_documentation_lists_every_exit_code() {
        let docs = include_str!("../../../docs/cli.md");
        for exit in Exit::ALL {
            let row = format!("| {} |", exit as u8);
            assert!(docs.contains(&row), "docs/cli.md lacks the exit code {}", exit as u8);
        }
    }
}
