//! One node process: started here or adopted, watched, signalled.

use std::{
    ffi::OsStr,
    fs,
    os::{fd::OwnedFd, unix::process::ExitStatusExt as _},
    path::PathBuf,
    process::Stdio,
};

use callboard_agent::ExitReason;
use callboard_protocol::NodeId;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rustix::process::{PidfdFlags, pidfd_open};
use tokio::{
    io::{Interest, unix::AsyncFd},
    process::{Child, Command},
};

use super::state::{NodeProcess, cannot};
use crate::exit::Failure;

/// How to start a node.
#[derive(Debug, Clone)]
pub(super) struct NodeLaunch {
    /// Which.
    pub(super) node: NodeId,
    /// Its data directory.
    pub(super) data_dir: PathBuf,
    /// Its credentials file.
    pub(super) credentials: PathBuf,
    /// The configuration of the cluster.
    pub(super) config: PathBuf,
    /// The Python that kernels run on.
    pub(super) python: PathBuf,
    /// The founders of the system group.
    pub(super) founders: Vec<NodeId>,
    /// Words before its command line; what they start must become the node, not be its parent.
    pub(super) launcher: Vec<String>,
    /// Where its stdout and stderr go.
    pub(super) log: PathBuf,
}

/// A node's process.
#[derive(Debug)]
pub(super) enum Running {
    /// Our child.
    Started(Child, NodeProcess),
    /// Started by an earlier `up`.
    Adopted(AsyncFd<OwnedFd>, NodeProcess),
}

/// How a node's process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct End {
    /// In words.
    pub(super) how: String,
    /// Whether it ended in order to be started again: what keeps it from working will pass, such
    /// as a full disk.
    pub(super) asks_for_restart: bool,
}

impl End {
    fn new(how: String) -> Self {
        Self { how, asks_for_restart: false }
    }
}

impl NodeLaunch {
    /// Starts the process in a group of its own, so that what ends us does not end it.
    ///
    /// # Errors
    /// A [`Failure`] if it cannot be started.
    pub(super) fn start(&self) -> Result<Running, Failure> {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)
            .map_err(|error| cannot("write", &self.log, &error))?;
        let errors = log.try_clone().map_err(|error| cannot("write", &self.log, &error))?;
        let program = std::env::current_exe()
            .map_err(|error| Failure::environment(format!("cannot find myself: {error}")))?;
        let founders: Vec<&str> = self.founders.iter().map(NodeId::as_str).collect();
        let mut words = self.launcher.iter().map(OsStr::new).chain([program.as_os_str()]);
        let child = Command::new(words.next().unwrap_or(program.as_os_str()))
            .args(words)
            .arg("node")
            .arg("--data")
            .arg(&self.data_dir)
            .args(["--id", self.node.as_str()])
            .arg("--credentials")
            .arg(&self.credentials)
            .args(["--bootstrap", &founders.join(",")])
            .arg("--config")
            .arg(&self.config)
            .arg("--python")
            .arg(&self.python)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .process_group(0)
            .spawn()
            .map_err(|error| {
                Failure::environment(format!("cannot start {}: {error}", program.display()))
            })?;
        let pid = child.id().unwrap_or_default();
        let start_ticks = start_ticks(pid).unwrap_or_default();
        let process = NodeProcess { node: self.node.clone(), pid, start_ticks };
        Ok(Running::Started(child, process))
    }
}

impl Running {
    /// Takes over a process that an earlier run started, if it still runs.
    #[must_use]
    pub(super) fn adopt(process: &NodeProcess) -> Option<Self> {
        let pid = rustix::process::Pid::from_raw(i32::try_from(process.pid).ok()?)?;
        let handle = pidfd_open(pid, PidfdFlags::NONBLOCK).ok()?;
        // Looked at after the handle was taken: it belongs to that process and to no later one.
        if process.start_ticks == 0 || start_ticks(process.pid) != Some(process.start_ticks) {
            return None;
        }
        Some(Self::Adopted(watched(handle)?, process.clone()))
    }

    /// Which process.
    #[must_use]
    pub(super) fn process(&self) -> &NodeProcess {
        match self {
            Self::Started(_, process) | Self::Adopted(_, process) => process,
        }
    }

    /// Waits for the process to end and says how it did. Safe to cancel.
    pub(super) async fn exited(&mut self) -> End {
        let unseen = |error| End::new(format!("its exit could not be observed: {error}"));
        match self {
            Self::Started(child, _) => match child.wait().await {
                Ok(status) => match (status.signal(), status.code()) {
                    (Some(signal), _) => End::new(format!("killed by signal {signal}")),
                    (None, Some(code)) => End {
                        how: format!("exited with code {code}"),
                        asks_for_restart: code == i32::from(ExitReason::CODE_RESTART_NEEDED),
                    },
                    (None, None) => End::new("ended".to_owned()),
                },
                Err(error) => unseen(error),
            },
            Self::Adopted(handle, _) => match handle.readable().await {
                Ok(_) => End::new("how is not known, since an earlier `up` started it".to_owned()),
                Err(error) => unseen(error),
            },
        }
    }

    /// Sends a signal to the process, if it still is the one we mean.
    pub(super) fn signal(&mut self, signal: Signal) {
        match self {
            // Until it is waited for, a child's id belongs to it.
            Self::Started(child, _) => {
                if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
                    let _ = kill(Pid::from_raw(pid), signal);
                }
            }
            Self::Adopted(handle, _) => {
                let signal = match signal {
                    Signal::SIGKILL => rustix::process::Signal::KILL,
                    _ => rustix::process::Signal::TERM,
                };
                let _ = rustix::process::pidfd_send_signal(handle.get_ref(), signal);
            }
        }
    }
}

/// A process handle that becomes readable when the process ends.
#[expect(unsafe_code, reason = "tokio asks for a promise about the file descriptor")]
fn watched(handle: OwnedFd) -> Option<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` keeps its descriptor open, and the same one, until it is dropped, and
    // the `AsyncFd` owns it from here on.
    unsafe { AsyncFd::register_with_interest(handle, Interest::READABLE) }.ok()
}

/// When a live process began, field 22 of `/proc/<pid>/stat`; `None` if it is gone or unburied.
fn start_ticks(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper() -> (std::process::Child, NodeProcess) {
        let child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = child.id();
        let node = NodeId::new("node-1").unwrap();
        (child, NodeProcess { node, pid, start_ticks: start_ticks(pid).unwrap() })
    }

    #[tokio::test]
    async fn an_adopted_process_is_seen_to_end() {
        let (mut child, process) = sleeper();
        let mut adopted = Running::adopt(&process).unwrap();
        adopted.signal(Signal::SIGKILL);
        assert!(adopted.exited().await.how.contains("not known"));
        child.wait().unwrap();
        assert!(Running::adopt(&process).is_none());
    }

    #[tokio::test]
    async fn another_process_with_the_same_id_is_not_adopted() {
        let (mut child, process) = sleeper();
        let other = NodeProcess { start_ticks: process.start_ticks + 1, ..process };
        assert!(Running::adopt(&other).is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
