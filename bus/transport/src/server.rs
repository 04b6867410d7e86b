//! The supervised nats-server child.
//!
//! Owns the broker's folder: its configuration, state file, log, and the process itself, started
//! here or adopted from an earlier run. A broker that dies is started again on the same ports; one
//! that keeps dying is given up with an event. Ends only processes whose command line names this
//! folder's configuration. A restart of the broker loses messages under way and nothing else.

mod config;
mod find;
mod process;
mod state;
mod supervise;

use std::{io, path::PathBuf};

use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};

pub use find::{find_server, server_version};

use self::{process::Running, supervise::Restarts};

/// Smallest version that has what the bus uses.
pub const VERSION_MIN: (u64, u64) = (2, 10);
/// Payload limit unless told otherwise, in bytes: NATS's own default.
pub const PAYLOAD_MAX_DEFAULT: usize = 1024 * 1024;
/// Events that may wait for whoever follows them; a broker that is given up has had far fewer.
const EVENTS_CAPACITY: usize = 64;

/// A user of the broker.
#[derive(Clone, PartialEq, Eq)]
pub struct BrokerUser {
    /// Its name.
    pub name: String,
    /// Its password.
    pub password: String,
    /// Subjects it may publish to, in NATS's wildcard syntax.
    pub publish: Vec<String>,
    /// Subjects it may subscribe to.
    pub subscribe: Vec<String>,
}

impl std::fmt::Debug for BrokerUser {
    /// Everything but the password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BrokerUser").field("name", &self.name).finish_non_exhaustive()
    }
}

/// How to run the broker.
#[derive(Debug, Clone)]
pub struct BrokerOptions {
    /// The nats-server program; `None` searches, see [`find_server`].
    pub program: Option<PathBuf>,
    /// The broker's own folder; made if it is missing.
    pub data_dir: PathBuf,
    /// The address to listen on.
    pub host: String,
    /// The port; `None` takes the one of the last run, or a free one.
    pub port: Option<u16>,
    /// Largest message with its headers, in bytes.
    pub max_payload: usize,
    /// Everyone who may connect.
    pub users: Vec<BrokerUser>,
    /// Whether JetStream is on, with its store in the data folder.
    pub jetstream: bool,
}

impl BrokerOptions {
    /// A loopback broker in `data_dir` on a free port.
    #[must_use]
    pub fn new(data_dir: impl Into<PathBuf>, users: Vec<BrokerUser>) -> Self {
        Self {
            program: None,
            data_dir: data_dir.into(),
            host: "127.0.0.1".to_owned(),
            port: None,
            max_payload: PAYLOAD_MAX_DEFAULT,
            users,
            jetstream: false,
        }
    }
}

/// Why there is no broker.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// No program.
    #[error(
        "no nats-server found ({searched}): run `make setup` to install one in the project, or set CALLBOARD_NATS_SERVER to its path"
    )]
    NotFound {
        /// Where was looked.
        searched: String,
    },
    /// The program is too old.
    #[error(
        "{} is nats-server {found}, but {}.{} or newer is needed: run `make setup`, or set CALLBOARD_NATS_SERVER to a newer one",
        program.display(), VERSION_MIN.0, VERSION_MIN.1
    )]
    TooOld {
        /// Which.
        program: PathBuf,
        /// Its version.
        found: String,
    },
    /// The program does not run or is something else.
    #[error(
        "{} cannot be run as nats-server: {why}; run `make setup`, or set CALLBOARD_NATS_SERVER to a working one",
        program.display()
    )]
    NotRunnable {
        /// Which.
        program: PathBuf,
        /// Why.
        why: String,
    },
    /// Somebody else listens on the port.
    #[error(
        "port {port} on {host} is in use by another program: stop it, or choose another port or none"
    )]
    PortInUse {
        /// The address.
        host: String,
        /// The port.
        port: u16,
    },
    /// The port or address cannot be listened on.
    #[error("cannot listen on {host}:{port}: {source}; choose another address or port")]
    CannotListen {
        /// The address.
        host: String,
        /// The port.
        port: u16,
        /// Why.
        source: io::Error,
    },
    /// Another process supervises this broker.
    #[error(
        "the broker in {} is already supervised by another process: stop that `callboard up` first, or use another data directory",
        data_dir.display()
    )]
    InUse {
        /// Its folder.
        data_dir: PathBuf,
    },
    /// The folder cannot be used.
    #[error(
        "cannot {what} {}: {source}; the data directory must be writable and have free space",
        path.display()
    )]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// It was started and ended or did not answer.
    #[error("nats-server did not start: {why}; see {}", log.display())]
    NotReady {
        /// How it ended, or what was waited for.
        why: String,
        /// Its log.
        log: PathBuf,
    },
}

/// What happened to the broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BrokerEvent {
    /// It answers. The first event, and again after each restart.
    Started {
        /// Its process.
        pid: u32,
        /// Its port.
        port: u16,
        /// Whether it ran already.
        adopted: bool,
    },
    /// Its process ended.
    Exited {
        /// How, such as `killed by signal 9`.
        how: String,
    },
    /// It was started again and answers.
    Restarted {
        /// How many restarts there were in this life of the supervisor.
        restarts: u64,
    },
    /// It died too often; nothing more is tried.
    GaveUp {
        /// What happened, and what to do.
        why: String,
    },
}

/// A running, supervised broker. Dropping it without [`Broker::stop`] or
/// [`Broker::leave_running`] asks the process to end, without waiting.
#[derive(Debug)]
pub struct Broker {
    url: String,
    port: u16,
    monitor_url: String,
    log: PathBuf,
    current: watch::Receiver<Option<u32>>,
    events: Option<mpsc::Receiver<BrokerEvent>>,
    command: Option<tokio::sync::oneshot::Sender<supervise::Command>>,
    task: Option<JoinHandle<()>>,
}

impl Broker {
    /// Starts the broker, or adopts the one that runs in the same folder, and supervises it.
    /// Returns once it answers.
    ///
    /// # Errors
    /// Any [`BrokerError`].
    pub async fn start(options: BrokerOptions) -> Result<Self, BrokerError> {
        let lock = state::lock(&options.data_dir)?;
        let program = find_server(options.program.as_deref())?;
        let (launch, running) = process::launch_or_adopt(program, options).await?;
        let (events_sender, events) = mpsc::channel(EVENTS_CAPACITY);
        let (current_sender, current) = watch::channel(Some(running.pid()));
        let (command, commands) = tokio::sync::oneshot::channel();
        let adopted = matches!(running, Running::Adopted { .. });
        let started = BrokerEvent::Started { pid: running.pid(), port: launch.state.port, adopted };
        let _ = events_sender.try_send(started);
        let broker = Self {
            url: format!("nats://{}:{}", launch.host(), launch.state.port),
            port: launch.state.port,
            monitor_url: format!("http://127.0.0.1:{}", launch.state.monitor_port),
            log: launch.log_path(),
            current,
            events: Some(events),
            command: Some(command),
            task: None,
        };
        let supervisor = supervise::Supervisor {
            launch,
            running: Some(running),
            restarts: Restarts::default(),
            events: events_sender,
            current: current_sender,
            _lock: lock,
        };
        Ok(Self { task: Some(tokio::spawn(supervisor.run(commands))), ..broker })
    }

    /// Where clients connect.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The port clients connect to.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The HTTP address of the broker's own monitoring, on loopback.
    #[must_use]
    pub fn monitor_url(&self) -> &str {
        &self.monitor_url
    }

    /// The broker's log file.
    #[must_use]
    pub fn log_path(&self) -> &std::path::Path {
        &self.log
    }

    /// The broker's process, if it runs just now.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        *self.current.borrow()
    }

    /// What happens to the broker. The second call finds nothing.
    pub fn events(&mut self) -> Option<mpsc::Receiver<BrokerEvent>> {
        self.events.take()
    }

    /// Ends the broker: SIGTERM, and SIGKILL if it does not obey. Returns once it is gone.
    pub async fn stop(self) {
        self.finish(supervise::Command::Stop).await;
    }

    /// Ends the supervision and leaves the broker running, for the next start to adopt.
    pub async fn leave_running(self) {
        self.finish(supervise::Command::Leave).await;
    }

    async fn finish(mut self, command: supervise::Command) {
        if let Some(sender) = self.command.take() {
            let _ = sender.send(command);
        }
        if let Some(task) = self.task.take() {
            let _ = task.await;
        }
    }
}
