//! One nats-server process: started here or found running, ready, alive, ended.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::Deserialize;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    net::TcpStream,
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};

use super::{
    BrokerError, BrokerOptions, config,
    state::{State, io_error},
};
use crate::permissions::write_private;

/// How many threads a Go program runs on.
const GO_THREADS: &str = "GOMAXPROCS";
/// How long a broker may take until it answers.
const READY_TIMEOUT: Duration = Duration::from_secs(10);
/// How often it is asked meanwhile.
const READY_POLL: Duration = Duration::from_millis(10);
/// How long a broker may take to end after SIGTERM before it is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// How often an adopted process, of which no exit is reported to us, is looked for.
const ALIVE_POLL: Duration = Duration::from_millis(100);

/// Everything needed to start the same broker again.
#[derive(Debug)]
pub(super) struct Launch {
    program: PathBuf,
    options: BrokerOptions,
    pub(super) state: State,
}

/// A broker's process.
#[derive(Debug)]
pub(super) enum Running {
    /// Our child.
    Started { child: Child, pid: u32 },
    /// The child of an earlier run.
    Adopted { pid: u32 },
}

/// The start of what a broker says first to every client.
#[derive(Deserialize)]
struct Info {
    server_name: String,
}

pub(super) async fn launch_or_adopt(
    program: PathBuf,
    mut options: BrokerOptions,
) -> Result<(Launch, Running), BrokerError> {
    let data_dir = &options.data_dir;
    options.data_dir = fs::canonicalize(data_dir).map_err(io_error("open", data_dir))?;
    let last = State::load(&options.data_dir);
    if let Some((state, pid)) = last.clone().and_then(|last| last.pid.map(|pid| (last, pid)))
        && is_ours(pid, &config_path(&options.data_dir))
    {
        let same_port = options.port.is_none_or(|port| port == state.port);
        let mut running = Running::Adopted { pid };
        if same_port && wait_ready(&options.host, &state, &mut running).await.is_ok() {
            let launch = Launch { program, options, state };
            launch.reload(pid)?;
            return Ok((launch, running));
        }
        running.stop(&config_path(&options.data_dir)).await;
    }
    let state = State::for_start(&options, last)?;
    let mut launch = Launch { program, options, state };
    let running = launch.start().await?;
    Ok((launch, running))
}

fn config_path(data_dir: &Path) -> PathBuf {
    data_dir.join("broker.conf")
}

impl Launch {
    pub(super) fn host(&self) -> &str {
        &self.options.host
    }

    pub(super) fn log_path(&self) -> PathBuf {
        self.options.data_dir.join("broker.log")
    }

    fn stderr_path(&self) -> PathBuf {
        self.options.data_dir.join("broker.stderr")
    }

    pub(super) fn config_path(&self) -> PathBuf {
        config_path(&self.options.data_dir)
    }

    fn config_text(&self) -> String {
        format!("{:#}\n", config::render(&self.options, &self.state))
    }

    /// Gives an adopted broker the users and limits of now, if they differ.
    fn reload(&self, pid: u32) -> Result<(), BrokerError> {
        let (path, text) = (self.config_path(), self.config_text());
        if fs::read_to_string(&path).is_ok_and(|old| old == text) {
            return Ok(());
        }
        write_private(&path, text.as_bytes()).map_err(io_error("write", &path))?;
        signal(pid, Signal::SIGHUP)
            .map_err(|errno| io_error("reload the broker with", &path)(errno.into()))
    }

    /// Starts a process and waits until it answers.
    pub(super) async fn start(&mut self) -> Result<Running, BrokerError> {
        let config = self.config_path();
        write_private(&config, self.config_text().as_bytes())
            .map_err(io_error("write", &config))?;
        let stderr_path = self.stderr_path();
        let stderr = fs::File::create(&stderr_path).map_err(io_error("write", &stderr_path))?;
        let mut command = Command::new(&self.program);
        if std::env::var_os(GO_THREADS).is_none() {
            // Half of the cores, like a node, for the same reason: with more, each message wakes threads
            // that look for others.
            let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
            command.env(GO_THREADS, cores.div_ceil(2).to_string());
        }
        let child = command
            .arg("--config")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr)
            .process_group(0)
            .spawn()
            .map_err(|error| BrokerError::NotRunnable {
                program: self.program.clone(),
                why: error.to_string(),
            })?;
        let pid = child.id().ok_or_else(|| self.not_ready("it ended at once".to_owned()))?;
        let mut running = Running::Started { child, pid };
        self.state.pid = Some(pid);
        let ready = match self.state.save(&self.options.data_dir) {
            Ok(()) => wait_ready(&self.options.host, &self.state, &mut running)
                .await
                .map_err(|why| self.not_ready(why)),
            Err(error) => Err(error),
        };
        match ready {
            Ok(()) => Ok(running),
            Err(error) => {
                running.stop(&config).await;
                Err(error)
            }
        }
    }

    fn not_ready(&self, why: String) -> BrokerError {
        let last_line = |path: &Path| {
            let text = fs::read_to_string(path).ok()?;
            text.lines().rev().find(|line| !line.trim().is_empty()).map(str::to_owned)
        };
        let said = last_line(&self.stderr_path()).or_else(|| last_line(&self.log_path()));
        let why = match said {
            Some(said) => format!("{why}; it said: {said}"),
            None => why,
        };
        BrokerError::NotReady { why, log: self.log_path() }
    }
}

impl Running {
    pub(super) fn pid(&self) -> u32 {
        match self {
            Self::Started { pid, .. } | Self::Adopted { pid } => *pid,
        }
    }

    /// Waits for the process to end and says how it did. Safe to cancel.
    pub(super) async fn exited(&mut self) -> String {
        match self {
            Self::Started { child, .. } => match child.wait().await {
                Ok(status) => how(status),
                Err(error) => format!("its exit could not be observed: {error}"),
            },
            Self::Adopted { pid } => {
                while is_alive(*pid) {
                    sleep(ALIVE_POLL).await;
                }
                "ended; it was started by an earlier run, so how is not known".to_owned()
            }
        }
    }

    /// SIGTERM, a wait, SIGKILL. An adopted process is signalled only while it is still ours.
    pub(super) async fn stop(&mut self, config: &Path) {
        for sent in [Signal::SIGTERM, Signal::SIGKILL] {
            if !self.is_signallable(config) {
                return;
            }
            if let Err(errno) = signal(self.pid(), sent) {
                tracing::debug!(pid = self.pid(), %errno, "the broker could not be signalled");
            }
            if timeout(STOP_TIMEOUT, self.exited()).await.is_ok() {
                return;
            }
        }
    }

    fn is_signallable(&mut self, config: &Path) -> bool {
        match self {
            // Until it is waited for, a child's id belongs to it.
            Self::Started { child, .. } => child.try_wait().is_ok_and(|status| status.is_none()),
            Self::Adopted { pid } => is_ours(*pid, config),
        }
    }

    /// Asks the process to end, without waiting.
    pub(super) fn terminate(&mut self, config: &Path) {
        if self.is_signallable(config) {
            let _ = signal(self.pid(), Signal::SIGTERM);
        }
    }
}

fn how(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt as _;
    match (status.signal(), status.code()) {
        (Some(signal), _) => format!("killed by signal {signal}"),
        (None, Some(code)) => format!("exited with code {code}"),
        (None, None) => "ended".to_owned(),
    }
}

fn signal(pid: u32, signal: Signal) -> Result<(), Errno> {
    // A pid of 0 or below would mean a whole group.
    match i32::try_from(pid) {
        Ok(pid) if pid > 0 => kill(Pid::from_raw(pid), signal),
        _ => Err(Errno::ESRCH),
    }
}

/// Whether the process exists and is not merely unburied.
fn is_alive(pid: u32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    !matches!(state, Some('Z' | 'X') | None)
}

/// Whether the process is a broker with this configuration.
fn is_ours(pid: u32, config: &Path) -> bool {
    use std::os::unix::ffi::OsStrExt as _;
    let wanted = config.as_os_str().as_bytes();
    is_alive(pid)
        && fs::read(format!("/proc/{pid}/cmdline"))
            .is_ok_and(|line| line.split(|byte| *byte == 0).any(|argument| argument == wanted))
}

/// Waits until the broker on our port says that it is ours.
async fn wait_ready(host: &str, state: &State, running: &mut Running) -> Result<(), String> {
    let until = Instant::now() + READY_TIMEOUT;
    let mut last = String::new();
    while Instant::now() < until {
        match timeout(until - Instant::now(), server_name(host, state.port)).await {
            Ok(Ok(name)) if name == state.server_name => return Ok(()),
            Ok(Ok(name)) => {
                return Err(format!("another broker, '{name}', has port {}", state.port));
            }
            Ok(Err(error)) => last = error.to_string(),
            Err(_) => last = "it does not greet".to_owned(),
        }
        if let Ok(how) = timeout(READY_POLL, running.exited()).await {
            return Err(how);
        }
    }
    Err(format!("no answer on port {} within {} s: {last}", state.port, READY_TIMEOUT.as_secs()))
}

/// Reads the greeting `INFO {…}` and returns the broker's name.
async fn server_name(host: &str, port: u16) -> io::Result<String> {
    let mut line = String::new();
    BufReader::new(TcpStream::connect((host, port)).await?).read_line(&mut line).await?;
    let invalid = |error: serde_json::Error| io::Error::new(io::ErrorKind::InvalidData, error);
    let json = line.strip_prefix("INFO ").unwrap_or_default();
    Ok(serde_json::from_str::<Info>(json).map_err(invalid)?.server_name)
}
