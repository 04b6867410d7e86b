//! A kernel's process with its directory and its limits: until it is ready, until it ends, and why.

use std::{
    os::unix::process::ExitStatusExt as _, path::PathBuf, process::ExitStatus, time::Duration,
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};

use super::{
    cgroup::Confined, child::KernelChild, directory::SessionConfig, isolation::SessionUser,
    launch::SocketDirectory, process::LaunchError,
};

/// A kernel that is not ready within this time is given up.
pub(super) const READY_WITHIN: Duration = Duration::from_secs(60);

/// A kernel's process.
pub(super) struct Supervised {
    pub(super) child: KernelChild,
    pub(super) pid: Pid,
    directory: SocketDirectory,
    /// Why it was killed, if it was killed on purpose.
    cause: Option<String>,
    /// Its group, and the limit of its memory in MiB.
    confined: Option<(Confined, u64)>,
}

impl Supervised {
    /// Takes charge of a process whose sockets and log are in `directory`.
    ///
    /// # Errors
    /// If it has ended already.
    pub(super) async fn new(
        mut child: KernelChild,
        directory: SocketDirectory,
    ) -> Result<Self, LaunchError> {
        match child.pid() {
            Some(pid) => Ok(Self { child, pid, directory, cause: None, confined: None }),
            None => Err(ended(&mut child, &directory).await),
        }
    }

    /// What the paths of its sockets begin with.
    pub(super) fn sockets(&self) -> PathBuf {
        self.directory.prefix()
    }

    /// Waits for `connecting`; a process that does not get ready is killed.
    ///
    /// # Errors
    /// Those of `connecting`, or that the process ended or took too long.
    pub(super) async fn until_ready<T>(
        &mut self,
        connecting: impl Future<Output = Result<T, LaunchError>>,
    ) -> Result<T, LaunchError> {
        let ready = tokio::select! {
            ready = connecting => ready,
            _ = self.child.wait() => Err(ended(&mut self.child, &self.directory).await),
            () = tokio::time::sleep(READY_WITHIN) => {
                Err(LaunchError::TooSlow { log: self.directory.log_tail().await })
            }
        };
        if ready.is_err() {
            self.kill().await;
        }
        ready
    }

    /// Puts it under the limits of its session.
    ///
    /// # Errors
    /// If they cannot be set.
    pub(super) fn confine(&mut self, session: &SessionConfig) -> std::io::Result<()> {
        let (limits, cgroups) = &session.limits;
        if !limits.is_default() {
            // A group per process, so that what is counted in it is this process's.
            let kernel = session.directory.root.file_name().unwrap_or_default().to_string_lossy();
            let confined = cgroups.confine(&format!("{kernel}-{}", self.pid), self.pid, limits)?;
            self.confined = Some((confined, limits.memory_max_mib.unwrap_or(0)));
        }
        Ok(())
    }

    /// Kills the process for a reason that is told in place of the signal.
    pub(super) fn end_because(&mut self, cause: String) {
        tracing::warn!(%cause, "a kernel's process is ended");
        self.cause = Some(cause);
        let _ = killpg(self.pid, Signal::SIGKILL);
    }

    /// Kills the process and what it started.
    pub(super) async fn kill(&mut self) {
        let _ = killpg(self.pid, Signal::SIGKILL);
        let _ = self.child.wait().await;
    }

    /// How it ended, for people. What it started goes with it.
    pub(super) async fn exited(&mut self, status: Option<ExitStatus>) -> String {
        let _ = killpg(self.pid, Signal::SIGKILL);
        let mut how = status.map_or_else(|| "ended".to_owned(), describe);
        let tail = self.directory.log_tail().await;
        if !tail.is_empty() {
            tracing::warn!(%how, %tail, "a kernel's process ended");
        }
        let memory = self.confined.as_ref().filter(|(confined, _)| confined.memory_kills() > 0);
        if let Some(cause) = self.cause.take() {
            how = cause;
        } else if let Some((_, limit_mib)) = memory
            && how.contains("signal 9")
        {
            how = format!("killed, as it used more than {limit_mib} MiB (limit of this kernel)");
        } else if how.contains("signal 9") {
            how.push_str(" (out of memory, or killed by hand)");
        }
        how
    }
}

/// Makes the directories of a session, and gives them to its user if it has one.
///
/// # Errors
/// If that fails.
pub(super) async fn prepare(session: &SessionConfig) -> std::io::Result<Option<SessionUser>> {
    session.create()?;
    let Some(isolation) = session.isolation.clone() else { return Ok(None) };
    let session = session.clone();
    let handed = tokio::task::spawn_blocking(move || isolation.hand_over(&session));
    Ok(Some(handed.await.map_err(std::io::Error::other)??))
}

pub(super) async fn ended(child: &mut KernelChild, directory: &SocketDirectory) -> LaunchError {
    let how = child.wait().await.map_or_else(|error| error.to_string(), describe);
    LaunchError::Ended { how, log: directory.log_tail().await }
}

fn describe(status: ExitStatus) -> String {
    match (status.signal(), status.code()) {
        (Some(signal), _) => format!("killed by signal {signal}"),
        (None, Some(code)) => format!("exited with code {code}"),
        (None, None) => "ended".to_owned(),
    }
}
