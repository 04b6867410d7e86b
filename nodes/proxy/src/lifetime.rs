//! What ends or interrupts a proxy from outside: signals, and the end of the process that started it.

use std::{io, time::Duration};

use rustix::process::{Pid, getppid};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::interval,
};

/// How often the parent is looked for, as ipykernel does.
const PARENT_LOOK_EVERY: Duration = Duration::from_secs(1);

/// What happens to the process from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outside {
    /// SIGINT.
    Interrupt,
    /// SIGTERM, or the parent is gone.
    End,
}

/// Signals and the parent.
#[derive(Debug)]
pub(crate) struct Lifetime {
    interrupt: Signal,
    terminate: Signal,
    parent: Option<Pid>,
}

impl Lifetime {
    /// Listens from now on; for the end of the parent too if `follows_parent`.
    pub(crate) fn new(follows_parent: bool) -> io::Result<Self> {
        // A process that init started, or adopted, has no parent to follow.
        let parent = getppid().filter(|parent| follows_parent && !parent.is_init());
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            parent,
        })
    }

    /// What happens next. Safe to cancel.
    pub(crate) async fn next(&mut self) -> Outside {
        tokio::select! {
            _ = self.interrupt.recv() => Outside::Interrupt,
            _ = self.terminate.recv() => Outside::End,
            () = gone(self.parent) => Outside::End,
        }
    }

    /// Waits for the end; interrupts come to nothing.
    pub(crate) async fn end(&mut self) {
        while self.next().await != Outside::End {}
    }
}

/// Waits until the parent is another one.
async fn gone(parent: Option<Pid>) {
    if parent.is_none() {
        return std::future::pending().await;
    }
    let mut ticks = interval(PARENT_LOOK_EVERY);
    while getppid() == parent {
        ticks.tick().await;
    }
}
