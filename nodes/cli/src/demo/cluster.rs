//! The demo's own cluster: a `callboard up` below the demo's folder, whose processes the demo may
//! kill. It touches no other process: each is proved by its command line before a signal is sent.

use std::{
    fs,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use callboard_client::Client;
use callboard_protocol::NodeId;
use callboard_transport::Credentials;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};

use crate::{
    exit::{Exit, Failure},
    up::state::{cannot, running},
};

/// How long a cluster may take until it says that it is ready.
const READY_PATIENCE: Duration = Duration::from_secs(90);
/// How long `up` may take to stop everything in order.
const STOP_PATIENCE: Duration = Duration::from_secs(30);
/// How long a killed process may still be seen.
const DEATH_PATIENCE: Duration = Duration::from_secs(5);
/// Pause between looks at processes.
const POLL: Duration = Duration::from_millis(20);

/// What a process of the cluster is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Part {
    /// `callboard up`.
    Up,
    /// The broker.
    Broker,
    /// A node.
    Node(String),
}

/// A cluster and the `up` that runs it.
#[derive(Debug)]
pub(super) struct DemoCluster {
    data: PathBuf,
    log: PathBuf,
    up: Option<Child>,
}

impl DemoCluster {
    /// Takes `folder` into use: what an earlier demo left there is ended and deleted.
    ///
    /// # Errors
    /// A [`Failure`] if another demo runs there, or the folder cannot be written.
    pub(super) fn new(folder: &Path) -> Result<Self, Failure> {
        let data = folder.join("data");
        if let Some(pid) = running(&data) {
            return Err(Failure::environment(format!(
                "another demo runs in {} (`callboard up` with pid {pid}): let it end, or stop that process",
                folder.display()
            )));
        }
        fs::create_dir_all(&data).map_err(|error| cannot("make the folder", &data, &error))?;
        let data = fs::canonicalize(&data).map_err(|error| cannot("open", &data, &error))?;
        let this = Self { log: folder.join("up.log"), data, up: None };
        this.kill_all();
        fs::remove_dir_all(&this.data).map_err(|error| cannot("empty", &this.data, &error))?;
        match fs::remove_file(&this.log) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(cannot("delete", &this.log, &error))
            }
            _ => Ok(this),
        }
    }

    /// Where the operator's credentials are.
    pub(super) fn credentials(&self) -> PathBuf {
        self.data.join("credentials/operator.json")
    }

    /// Where `up` and the nodes say what they do.
    pub(super) fn log(&self) -> &Path {
        &self.log
    }

    /// Runs `up` and connects once it says that it is ready.
    ///
    /// # Errors
    /// A [`Failure`] with the last words of `up`.
    pub(super) async fn up(&mut self) -> Result<Client, Failure> {
        let log = fs::OpenOptions::new().create(true).append(true).open(&self.log);
        let log = log.map_err(|error| cannot("write", &self.log, &error))?;
        let program = std::env::current_exe()
            .map_err(|error| Failure::environment(format!("cannot find myself: {error}")))?;
        let mut child = Command::new(program)
            .args(["--output", "json", "up", "--data"])
            .arg(&self.data)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .process_group(0)
            .spawn()
            .map_err(|error| Failure::environment(format!("cannot start the cluster: {error}")))?;
        let stdout = child.stdout.take();
        self.up = Some(child);
        let ready = async {
            let mut line = String::new();
            if let Some(stdout) = stdout {
                // An error reads as no line: `up` has ended.
                let _ = BufReader::new(stdout).read_line(&mut line).await;
            }
            !line.is_empty()
        };
        if !timeout(READY_PATIENCE, ready).await.unwrap_or(false) {
            return Err(self.not_ready());
        }
        let credentials = Credentials::load(&self.credentials()).map_err(Failure::usage)?;
        Client::connect(&credentials).await.map_err(|error| Failure::new(Exit::Unavailable, error))
    }

    fn not_ready(&self) -> Failure {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let last = log.lines().next_back().unwrap_or("it said nothing");
        Failure::new(
            Exit::Environment,
            format!(
                "the demo's cluster did not start: {last} (more in {} and {})",
                self.log.display(),
                self.data.join("logs").display()
            ),
        )
    }

    /// Kills one process of the cluster with SIGKILL and returns its id, once it is gone.
    ///
    /// # Errors
    /// A [`Failure`] if no such process runs.
    pub(super) async fn kill(&self, part: &Part) -> Result<i32, Failure> {
        let found = self.processes().into_iter().find(|(_, is)| is == part);
        let Some((pid, _)) = found else {
            return Err(Failure::new(Exit::Failed, format!("found no process of {part:?}")));
        };
        kill(Pid::from_raw(pid), Signal::SIGKILL)
            .map_err(|errno| Failure::new(Exit::Failed, format!("cannot kill {pid}: {errno}")))?;
        self.await_death(&[pid]).await?;
        Ok(pid)
    }

    /// Kills `up`, the nodes and the broker at once; returns how many processes that were.
    ///
    /// # Errors
    /// A [`Failure`] if one does not go.
    pub(super) async fn kill_everything(&mut self) -> Result<usize, Failure> {
        let pids = self.kill_all();
        if let Some(mut up) = self.up.take() {
            // Nothing to know: it was killed.
            let _ = up.wait().await;
        }
        self.await_death(&pids).await?;
        Ok(pids.len())
    }

    /// Stops everything in order, and what remains by force.
    pub(super) async fn stop(&mut self) {
        if let Some(mut up) = self.up.take() {
            if let Some(pid) = up.id().and_then(|pid| i32::try_from(pid).ok()) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
            }
            let _ = timeout(STOP_PATIENCE, up.wait()).await;
        }
        self.kill_all();
    }

    fn kill_all(&self) -> Vec<i32> {
        // `up` first: it would start the others again.
        let mut found = self.processes();
        found.sort_by_key(|(_, part)| *part != Part::Up);
        let pids: Vec<i32> = found.into_iter().map(|(pid, _)| pid).collect();
        for pid in &pids {
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        pids
    }

    async fn await_death(&self, pids: &[i32]) -> Result<(), Failure> {
        let until = Instant::now() + DEATH_PATIENCE;
        while self.processes().iter().any(|(pid, _)| pids.contains(pid)) {
            if Instant::now() > until {
                let text = format!("of the processes {pids:?} some are still there after SIGKILL");
                return Err(Failure::new(Exit::Failed, text));
            }
            sleep(POLL).await;
        }
        Ok(())
    }

    /// The cluster's processes: those whose command line is that of `up`, a node or a broker on
    /// this folder.
    fn processes(&self) -> Vec<(i32, Part)> {
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            // Empty for processes that are gone and for those that nobody has waited for.
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
            if let Some(part) = self.part(&words) {
                found.push((pid, part));
            }
        }
        found
    }

    fn part(&self, words: &[&[u8]]) -> Option<Part> {
        let has = |path: &Path| words.contains(&path.as_os_str().as_bytes());
        let verb = |verb: &str| words.contains(&verb.as_bytes());
        let is_broker = words.first().is_some_and(|program| program.ends_with(b"nats-server"));
        if is_broker && has(&self.data.join("broker/broker.conf")) {
            return Some(Part::Broker);
        }
        if verb("up") && has(&self.data) {
            return Some(Part::Up);
        }
        let id = words.iter().position(|word| *word == b"--id").and_then(|at| words.get(at + 1))?;
        let node = NodeId::new(std::str::from_utf8(id).ok()?).ok()?;
        let folder = self.data.join("nodes").join(node.as_str());
        (verb("node") && has(&folder)).then(|| Part::Node(node.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_command_lines_on_its_own_folder_are_its_own() {
        let data = PathBuf::from("/d/data");
        let cluster = DemoCluster { data, log: PathBuf::new(), up: None };
        let part = |line: &str| {
            let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
            cluster.part(&words)
        };
        assert_eq!(part("callboard --output json up --data /d/data"), Some(Part::Up));
        assert_eq!(part("nats-server -c /d/data/broker/broker.conf"), Some(Part::Broker));
        let node = "callboard node --data /d/data/nodes/node-2 --id node-2";
        assert_eq!(part(node), Some(Part::Node("node-2".to_owned())));
        assert_eq!(part("callboard up --data /e/data"), None);
        assert_eq!(part("callboard node --data /e/data/nodes/node-2 --id node-2"), None);
        assert_eq!(part("vi /d/data/broker/broker.conf"), None);
        assert_eq!(part("tail -f /d/data/logs/node-2.log"), None);
    }
}
