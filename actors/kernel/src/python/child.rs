//! A kernel's process: started here, or forked by the zygote and adopted by this node.
//!
//! A forked one is a child, too: the node is the reaper of its descendants, and the process between
//! has ended. Its end is seen through a pidfd, since tokio reaps only what it started.

use std::{
    io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::process::ExitStatusExt as _,
    },
    process::ExitStatus,
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use rustix::process::{PidfdFlags, WaitId, WaitIdOptions, pidfd_open, waitid};
use tokio::{
    io::{Interest, unix::AsyncFd},
    process::Child,
};

/// A kernel's process, the leader of its group.
#[derive(Debug)]
pub(super) enum KernelChild {
    /// Started by this process.
    Started(Child),
    /// Forked by the zygote.
    Forked(Forked),
}

impl KernelChild {
    /// Its process id, unless its end was seen already.
    pub(super) fn pid(&self) -> Option<Pid> {
        match self {
            Self::Started(child) => child.id().and_then(|pid| i32::try_from(pid).ok()),
            Self::Forked(forked) => Some(forked.pid),
        }
        .map(Pid::from_raw)
    }

    /// Waits for its end.
    pub(super) async fn wait(&mut self) -> io::Result<ExitStatus> {
        match self {
            Self::Started(child) => child.wait().await,
            Self::Forked(forked) => forked.wait().await,
        }
    }
}

/// A process that became our child when its parent ended. Dropping it kills it.
#[derive(Debug)]
pub(super) struct Forked {
    pid: i32,
    handle: AsyncFd<OwnedFd>,
    status: Option<ExitStatus>,
}

impl Forked {
    /// Takes charge of a child of this process.
    pub(super) fn adopt(pid: i32) -> io::Result<Self> {
        let raw = rustix::process::Pid::from_raw(pid)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "0 is no process id"))?;
        let handle = pidfd_open(raw, PidfdFlags::NONBLOCK)?;
        Ok(Self { pid, handle: watched(handle)?, status: None })
    }

    async fn wait(&mut self) -> io::Result<ExitStatus> {
        loop {
            if let Some(status) = self.status {
                return Ok(status);
            }
            let mut ready = self.handle.readable().await?;
            match reap(&self.handle) {
                Ok(Some(status)) => self.status = Some(status),
                Ok(None) => ready.clear_ready(),
                Err(error) => return Err(error),
            }
        }
    }
}

impl Drop for Forked {
    fn drop(&mut self) {
        if self.status.is_some() {
            return;
        }
        let _ = killpg(Pid::from_raw(self.pid), Signal::SIGKILL);
        // It takes a moment to end, and what is not reaped stays in the process table.
        if let Ok(handle) = self.handle.get_ref().try_clone() {
            std::thread::spawn(move || {
                waitid(WaitId::PidFd(handle.as_fd()), WaitIdOptions::EXITED)
            });
        }
    }
}

/// A process handle that becomes readable when the process ends.
#[expect(unsafe_code, reason = "tokio asks for a promise about the file descriptor")]
fn watched(handle: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` keeps its descriptor open, and the same one, until it is dropped, and
    // the `AsyncFd` owns it from here on.
    let watched = unsafe { AsyncFd::register_with_interest(handle, Interest::READABLE) };
    Ok(watched?)
}

fn reap(handle: &AsyncFd<OwnedFd>) -> io::Result<Option<ExitStatus>> {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
    let Some(seen) = waitid(WaitId::PidFd(handle.get_ref().as_fd()), options)? else {
        return Ok(None);
    };
    let raw = match (seen.terminating_signal(), seen.exit_status()) {
        (Some(signal), _) => signal,
        (None, Some(code)) => code << 8,
        (None, None) => 0,
    };
    Ok(Some(ExitStatus::from_raw(raw)))
}
