//! A cluster of its own for one bench: `callboard up` in a fresh folder, with kernels on it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use callboard_client::{Client, KernelClient};
use callboard_protocol::{
    KernelId,
    control::{KernelOptions, StartKernel},
};
use callboard_transport::Credentials;
use nix::{
    sys::{
        signal::{Signal, kill},
        statfs::{TMPFS_MAGIC, statfs},
    },
    unistd::Pid,
};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    time::timeout,
};

use super::options::Options;
use crate::{
    exit::{Exit, Failure},
    kernel::wait_ready,
    output::say,
};

/// How long a cluster may take until it is ready.
const READY_WITHIN: Duration = Duration::from_secs(90);
/// How long it may take to stop in order before it is killed.
const STOP_WITHIN: Duration = Duration::from_secs(30);
/// Pause between looks at a process that ends.
const STOP_POLL: Duration = Duration::from_millis(50);
/// Lines of the log shown when the cluster does not come up.
const LOG_TAIL_LINES: usize = 8;

/// A running cluster. Dropping it stops the cluster and removes its folder.
#[derive(Debug)]
pub struct LocalCluster {
    client: Client,
    up: Up,
    directory: TempDir,
}

impl LocalCluster {
    /// Starts a cluster of `nodes` nodes; returns once all of them are up.
    ///
    /// # Errors
    /// A [`Failure`] with the end of its log if it does not come up.
    pub async fn start(nodes: u16, options: &Options) -> Result<Self, Failure> {
        Self::start_with(nodes, options, &[]).await
    }

    /// The same with settings in its environment, such as `CALLBOARD_PARK_AFTER_S`.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn start_with(
        nodes: u16,
        options: &Options,
        settings: &[(&str, &str)],
    ) -> Result<Self, Failure> {
        let directory = folder(options)?;
        say(&format!("starting {nodes} nodes in {}", directory.path().display()));
        let log = directory.path().join("up.log");
        let up = Up::spawn(directory.path(), &log, nodes, options, settings);
        let mut up = up.map_err(|error| {
            Failure::environment(format!("cannot start `callboard up`: {error}"))
        })?;
        if let Err(why) = up.ready().await {
            let text = fs::read_to_string(&log).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            let tail = lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n");
            let text = format!("the cluster of the bench did not come up ({why}):\n{tail}");
            return Err(Failure::new(Exit::Unavailable, text));
        }
        let credentials = Credentials::load(&directory.path().join("credentials/operator.json"))
            .map_err(Failure::environment)?;
        let client = Client::connect(&credentials)
            .await
            .map_err(|error| Failure::new(Exit::Unavailable, error))?;
        Ok(Self { client, up, directory })
    }

    /// A connection as its operator.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The process of `callboard up`, which started everything else.
    #[must_use]
    pub fn up_pid(&self) -> u32 {
        self.up.child.id()
    }

    /// Its folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Starts a kernel and waits until all its replicas are there.
    ///
    /// # Errors
    /// A [`Failure`] if it is not ready in time.
    pub async fn kernel(&self, replicas: u8) -> Result<KernelClient, Failure> {
        self.kernel_with(replicas, KernelOptions::default()).await
    }

    /// As [`Self::kernel`], kept as `options` say.
    ///
    /// # Errors
    /// A [`Failure`] if it is not ready in time.
    pub async fn kernel_with(
        &self,
        replicas: u8,
        options: KernelOptions,
    ) -> Result<KernelClient, Failure> {
        let kernel = KernelId::generate();
        let settings = Default::default();
        let request = StartKernel { kernel, name: None, replicas, options, origin: None, settings };
        self.client.control().start_kernel(&request).await?;
        wait_ready(&self.client, kernel).await?;
        Ok(self.client.kernel(kernel))
    }

    /// Stops everything in order. Takes seconds.
    pub async fn stop(self) {
        // The end of a process is waited for, which must not hold up other tasks.
        let _ended = tokio::task::spawn_blocking(move || drop(self)).await;
    }
}

/// The process of `callboard up`.
#[derive(Debug)]
struct Up {
    child: Child,
}

impl Up {
    fn spawn(
        data: &Path,
        log: &Path,
        nodes: u16,
        options: &Options,
        settings: &[(&str, &str)],
    ) -> Result<Self, std::io::Error> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["--output", "json", "up", "--port", "0", "--data"]).arg(data);
        command.args(["--nodes", &nodes.to_string()]);
        if let Some(python) = &options.python {
            command.arg("--python").arg(python);
        }
        let child = command
            .envs(settings.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(fs::File::create(log)?)
            .spawn()?;
        Ok(Self { child })
    }

    /// Waits for the line that says that it is ready.
    async fn ready(&mut self) -> Result<(), String> {
        let stdout = self.child.stdout.take().ok_or("it has no output")?;
        let stdout =
            tokio::process::ChildStdout::from_std(stdout).map_err(|error| error.to_string())?;
        let mut lines = BufReader::new(stdout).lines();
        let line = timeout(READY_WITHIN, lines.next_line())
            .await
            .map_err(|_| format!("not within {} s", READY_WITHIN.as_secs()))?
            .map_err(|error| error.to_string())?
            .ok_or("it ended")?;
        let said: Value = serde_json::from_str(&line).map_err(|error| error.to_string())?;
        if said["ready"] == true { Ok(()) } else { Err(format!("it said {line}")) }
    }

    fn signal(&self, signal: Signal) {
        if let Ok(pid) = i32::try_from(self.child.id()) {
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }
}

impl Drop for Up {
    /// `up` takes its nodes and its broker with it only if it is asked to stop.
    fn drop(&mut self) {
        self.signal(Signal::SIGTERM);
        let until = Instant::now() + STOP_WITHIN;
        while let Ok(None) = self.child.try_wait() {
            if Instant::now() >= until {
                say("the cluster of the bench does not stop; it is killed");
                self.signal(Signal::SIGKILL);
                let _ = self.child.wait();
                return;
            }
            std::thread::sleep(STOP_POLL);
        }
    }
}

/// A fresh folder on a real disk, so that durability costs what it costs.
fn folder(options: &Options) -> Result<TempDir, Failure> {
    let parent = match &options.dir {
        Some(dir) => dir.clone(),
        None => {
            let usual = std::env::temp_dir();
            let in_memory =
                statfs(&usual).is_ok_and(|facts| facts.filesystem_type() == TMPFS_MAGIC);
            if in_memory { PathBuf::from(".") } else { usual }
        }
    };
    let made = tempfile::Builder::new().prefix("callboard-bench-").tempdir_in(&parent);
    made.map_err(|error| {
        let parent = parent.display();
        Failure::environment(format!(
            "cannot make a folder in {parent}: {error}; name another with --dir"
        ))
    })
}
