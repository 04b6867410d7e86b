//! Keeps the broker running, within limits.

use std::{collections::VecDeque, fs, time::Duration};

use nix::fcntl::Flock;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep},
};

use super::{
    BrokerEvent,
    process::{Launch, Running},
};

/// Restarts allowed within [`RESTART_PERIOD`]: a broker that dies more often will not get better.
const RESTARTS_MAX: usize = 10;
/// The period in which restarts are counted.
const RESTART_PERIOD: Duration = Duration::from_secs(60);
/// First pause before a restart, doubled with each one in the period.
const RESTART_DELAY_MIN: Duration = Duration::from_millis(20);
/// Longest pause before a restart.
const RESTART_DELAY_MAX: Duration = Duration::from_secs(2);

/// How the supervision ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Command {
    /// End the broker too.
    Stop,
    /// Leave the broker running.
    Leave,
}

/// When the broker was restarted lately.
#[derive(Debug, Default)]
pub(super) struct Restarts {
    recent: VecDeque<Instant>,
}

impl Restarts {
    /// The pause before the next restart, or `None` if there were too many.
    fn next(&mut self, now: Instant) -> Option<Duration> {
        while self.recent.front().is_some_and(|first| now - *first > RESTART_PERIOD) {
            self.recent.pop_front();
        }
        let count = self.recent.len();
        if count >= RESTARTS_MAX {
            return None;
        }
        self.recent.push_back(now);
        let doublings = u32::try_from(count).unwrap_or(u32::MAX).min(16);
        Some(RESTART_DELAY_MIN.saturating_mul(1 << doublings).min(RESTART_DELAY_MAX))
    }
}

#[derive(Debug)]
pub(super) struct Supervisor {
    pub(super) launch: Launch,
    pub(super) running: Option<Running>,
    pub(super) restarts: Restarts,
    pub(super) events: mpsc::Sender<BrokerEvent>,
    pub(super) current: watch::Sender<Option<u32>>,
    pub(super) _lock: Flock<fs::File>,
}

impl Supervisor {
    /// Supervises until told to end, or until the [`super::Broker`] is dropped.
    pub(super) async fn run(mut self, mut commands: oneshot::Receiver<Command>) {
        let command = tokio::select! {
            command = &mut commands => command.ok(),
            () = self.supervise() => commands.await.ok(),
        };
        let config = self.launch.config_path();
        // Interrupted while it waited for a new process: that one is found by its id.
        let begun = self.launch.state.pid.map(|pid| Running::Adopted { pid });
        self.running = self.running.take().or(begun);
        match (command, &mut self.running) {
            (Some(Command::Stop), Some(running)) => running.stop(&config).await,
            (None, Some(running)) => running.terminate(&config),
            (Some(Command::Leave), _) => self.running = None,
            (_, None) => {}
        }
        self.current.send_replace(None);
    }

    /// Returns when the broker is given up.
    async fn supervise(&mut self) {
        let mut restarts_total = 0;
        let mut last = String::new();
        loop {
            if let Some(running) = &mut self.running {
                last = running.exited().await;
                self.running = None;
                self.current.send_replace(None);
                tracing::warn!(how = last, "the broker ended; it is started again");
                self.tell(BrokerEvent::Exited { how: last.clone() });
            }
            let Some(pause) = self.restarts.next(Instant::now()) else {
                let why = format!(
                    "the broker ended {RESTARTS_MAX} times within {} s, last: {last}; see {}",
                    RESTART_PERIOD.as_secs(),
                    self.launch.log_path().display()
                );
                tracing::error!(why, "the broker is given up");
                return self.tell(BrokerEvent::GaveUp { why });
            };
            sleep(pause).await;
            match self.launch.start().await {
                Ok(running) => {
                    restarts_total += 1;
                    let (pid, port) = (running.pid(), self.launch.state.port);
                    self.current.send_replace(Some(pid));
                    self.running = Some(running);
                    self.tell(BrokerEvent::Started { pid, port, adopted: false });
                    self.tell(BrokerEvent::Restarted { restarts: restarts_total });
                }
                Err(error) => {
                    last = error.to_string();
                    tracing::warn!(%error, "the broker could not be started");
                }
            }
        }
    }

    fn tell(&self, event: BrokerEvent) {
        // Nobody has to listen; what happened is in the log too.
        let _ = self.events.try_send(event);
    }
}

impl Drop for Supervisor {
    /// The runtime ends under us: the broker must not stay behind unsupervised.
    fn drop(&mut self) {
        let config = self.launch.config_path();
        if let Some(running) = &mut self.running {
            running.terminate(&config);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_many_restarts_in_the_period_end_the_supervision() {
        let start = Instant::now();
        let mut restarts = Restarts::default();
        let pauses: Vec<_> = (0..RESTARTS_MAX).map(|_| restarts.next(start).unwrap()).collect();
        assert!(pauses.is_sorted() && pauses[9] == RESTART_DELAY_MAX, "{pauses:?}");
        assert_eq!(restarts.next(start + RESTART_PERIOD), None);
        let later = start + RESTART_PERIOD + Duration::from_millis(1);
        assert_eq!(restarts.next(later), Some(RESTART_DELAY_MIN));
    }
}
