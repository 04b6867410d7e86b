//! The run's own cluster: `callboard up` as a child on a folder of its own, and its processes.
//!
//! Owns the `up` process and the network, if there is one. Ends the cluster in order when it is
//! stopped, and asks it to end when it is dropped.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use callboard_client::Client;
use callboard_protocol::{KernelId, NodeId, control::NodeHealth};
use callboard_transport::Credentials;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};

use crate::{
    disks::{self, Disks},
    error::ChaosError,
    network::Network,
    plan::Profile,
};

/// Four nodes under kernels of three replicas: one is left to take a lost replica's place.
pub const NODES: u16 = 4;
/// Silence after which replicas are replaced. Short, so that membership changes are part of a run;
/// longer than a killed node needs to come back.
pub const GONE_AFTER: Duration = Duration::from_secs(4);
/// Log entries between two snapshots in the endurance profile: a few cells' worth.
const SNAPSHOT_EVERY: u64 = 25;
/// How long the cluster may take to form.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// How long it may take to stop.
const STOP_WITHIN: Duration = Duration::from_secs(40);
/// How long a control question is tried.
const ASK_WITHIN: Duration = Duration::from_secs(20);
/// How many parents of a Python process are looked at for its node.
const ANCESTORS_MAX: usize = 4;

/// How to run the cluster.
#[derive(Debug, Clone)]
pub struct ClusterOptions {
    /// The `callboard` program.
    pub program: PathBuf,
    /// The Python that kernels run on.
    pub python: PathBuf,
    /// Where everything goes.
    pub folder: PathBuf,
    /// How it is set up.
    pub profile: Profile,
    /// Keys of the configuration besides those that every run has.
    pub config: toml::Table,
}

/// The configuration given to `up`; the other keys keep their defaults.
#[derive(Debug, Serialize)]
struct Config {
    nodes: u16,
    gone_after_ms: u128,
    #[serde(skip_serializing_if = "Option::is_none")]
    broker_host: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_launcher: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    snapshot_every_entries: Option<u64>,
    disk_faults: bool,
    #[serde(flatten)]
    more: toml::Table,
}

/// A running cluster.
#[derive(Debug)]
pub struct Cluster {
    up: Child,
    client: Client,
    folder: PathBuf,
    network: Option<Network>,
    /// Dropped last: the nodes' file systems.
    disks: Option<Disks>,
}

impl Cluster {
    /// Starts it and waits until every node is up.
    ///
    /// # Errors
    /// [`ChaosError::NoCluster`] with the reason that `up` gave.
    pub async fn start(
        options: &ClusterOptions,
        network: Option<Network>,
    ) -> Result<Self, ChaosError> {
        let endures = options.profile == Profile::Endurance;
        let config = Config {
            nodes: NODES,
            gone_after_ms: GONE_AFTER.as_millis(),
            broker_host: network.as_ref().map(Network::broker_host),
            node_launcher: network.as_ref().map(Network::launcher),
            snapshot_every_entries: endures.then_some(SNAPSHOT_EVERY),
            disk_faults: endures,
            more: options.config.clone(),
        };
        let config_file = options.folder.join("chaos.toml");
        let text = toml::to_string(&config).map_err(|e| ChaosError::BadPlan(e.to_string()))?;
        fs::write(&config_file, text).map_err(ChaosError::io("write", &config_file))?;
        let (data, log) = (options.folder.join("cluster"), options.folder.join("up.log"));
        let folders: Vec<PathBuf> = nodes().map(|node| node_folder(&data, &node)).collect();
        let disks = match endures && disks::problem().is_none() {
            true => Some(Disks::create(&folders, &options.folder.join("disks"))?),
            false => None,
        };
        let stderr = fs::File::create(&log).map_err(ChaosError::io("make", &log))?;
        let no_cluster = |why: String| ChaosError::NoCluster { why, log: log.clone() };
        // A group of its own: Ctrl-C at the terminal reaches the run alone, which stops in order.
        let mut up = Command::new(&options.program)
            .args(["--output", "json", "up", "--data"])
            .arg(&data)
            .arg("--config")
            .arg(&config_file)
            .arg("--python")
            .arg(&options.python)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .process_group(0)
            .spawn()
            .map_err(ChaosError::io("run", &options.program))?;
        let ready = timeout(READY_WITHIN, first_line(&mut up)).await;
        let is_ready = matches!(&ready, Ok(Some(line)) if line.contains("\"ready\""));
        if !is_ready {
            terminate(&up);
            let _ = timeout(STOP_WITHIN, up.wait()).await;
            return Err(no_cluster(last_line(&log)));
        }
        let credentials = Credentials::load(&data.join("credentials/operator.json"))
            .map_err(|error| no_cluster(error.to_string()))?;
        let client =
            Client::connect(&credentials).await.map_err(|error| no_cluster(error.to_string()))?;
        Ok(Self { up, client, folder: data, network, disks })
    }

    /// An operator's connection.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The network, if nodes have namespaces.
    #[must_use]
    pub fn network(&self) -> Option<&Network> {
        self.network.as_ref()
    }

    /// The credentials of somebody who runs cells and may do nothing else.
    #[must_use]
    pub fn frontend_credentials(&self) -> PathBuf {
        self.folder.join("credentials/frontend.json")
    }

    /// Where the chunks of each node are, with the node.
    #[must_use]
    pub fn chunk_folders(&self) -> Vec<(NodeId, PathBuf)> {
        nodes().map(|node| (node.clone(), self.node_folder(&node).join("chunks"))).collect()
    }

    /// Where the snapshots of a kernel's group are on each node.
    #[must_use]
    pub fn snapshot_folders(&self, kernel: KernelId) -> Vec<PathBuf> {
        let below = |node| self.node_folder(&node).join("groups").join(kernel.to_string());
        nodes().map(below).collect()
    }

    /// The data directory of a node.
    #[must_use]
    pub fn node_folder(&self, node: &NodeId) -> PathBuf {
        node_folder(&self.folder, node)
    }

    /// Whether each node's data is on a file system of its own.
    #[must_use]
    pub fn has_disks(&self) -> bool {
        self.disks.is_some()
    }

    /// The process of a node.
    ///
    /// # Errors
    /// [`ChaosError`] if the cluster does not answer, or names a process that is not the node's.
    pub async fn node_pid(&self, node: &NodeId) -> Result<u32, ChaosError> {
        let control = self.client.control().with_patience(ASK_WITHIN);
        let list = control.list_nodes().await.map_err(ChaosError::refused("list the nodes"))?;
        let pid = list.nodes.iter().find(|status| status.node == *node).map_or(0, |it| it.pid);
        self.check_ours(pid)?;
        Ok(pid)
    }

    /// The process of the broker.
    ///
    /// # Errors
    /// [`ChaosError`] if the broker's note of itself cannot be read or is out of date.
    pub fn broker_pid(&self) -> Result<u32, ChaosError> {
        #[derive(Deserialize)]
        struct State {
            pid: Option<u32>,
        }
        let path = self.folder.join("broker/broker.json");
        let bytes = fs::read(&path).map_err(ChaosError::io("read", &path))?;
        let state: State = serde_json::from_slice(&bytes)
            .map_err(|error| ChaosError::io("read", &path)(error.into()))?;
        let pid = state.pid.unwrap_or_default();
        self.check_ours(pid)?;
        Ok(pid)
    }

    /// Refuses a process whose command line does not name the run's folder.
    fn check_ours(&self, pid: u32) -> Result<(), ChaosError> {
        let fail = |why: String| Err(ChaosError::NotOurs { pid, why });
        let Ok(command) = fs::read(format!("/proc/{pid}/cmdline")) else {
            return fail("it is gone".to_owned());
        };
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        if pid <= 1 || !command.contains(&*self.folder.to_string_lossy()) {
            return fail(format!("its command line is '{command}'"));
        }
        Ok(())
    }

    /// Refuses a Python process that no node of this cluster has started.
    ///
    /// # Errors
    /// [`ChaosError::NotOurs`].
    pub fn check_python(&self, pid: u32) -> Result<(), ChaosError> {
        let mut ancestor = pid;
        for _generation in 0..ANCESTORS_MAX {
            ancestor = parent(ancestor).unwrap_or_default();
            if self.check_ours(ancestor).is_ok() {
                return Ok(());
            }
        }
        Err(ChaosError::NotOurs { pid, why: "no node of the cluster started it".to_owned() })
    }

    /// Waits until every node is up.
    ///
    /// # Errors
    /// [`ChaosError::TooSlow`] with what was missing.
    pub async fn all_up(&self, within: Duration) -> Result<(), ChaosError> {
        let until = Instant::now() + within;
        let control = self.client.control().with_patience(Duration::from_secs(1));
        loop {
            let detail = match control.list_nodes().await {
                Ok(list) => {
                    let up = |it: &&_| matches!(it, &&NodeHealth::Up);
                    let count = list.nodes.iter().map(|it| &it.health).filter(up).count();
                    if count >= usize::from(NODES) && list.outage.is_none() {
                        return Ok(());
                    }
                    format!(": {count} of {NODES} nodes are up, outage: {:?}", list.outage)
                }
                Err(fault) => format!(": {fault}"),
            };
            if Instant::now() >= until {
                let what = "the return of every node";
                return Err(ChaosError::TooSlow { what, within_s: within.as_secs(), detail });
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Stops it in order.
    pub async fn stop(mut self) {
        terminate(&self.up);
        if timeout(STOP_WITHIN, self.up.wait()).await.is_err() {
            let _ = self.up.kill().await;
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        terminate(&self.up);
    }
}

/// The nodes of a cluster.
pub fn nodes() -> impl Iterator<Item = NodeId> {
    (1..=NODES).filter_map(|number| NodeId::new(format!("node-{number}")).ok())
}

fn node_folder(data: &Path, node: &NodeId) -> PathBuf {
    data.join("nodes").join(node.as_str())
}

/// Asks a child to end, if it still runs. Until it is waited for, the id belongs to it.
fn terminate(child: &Child) {
    if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
    }
}

async fn first_line(child: &mut Child) -> Option<String> {
    let stdout = child.stdout.take()?;
    BufReader::new(stdout).lines().next_line().await.ok().flatten()
}

fn last_line(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let line = text.lines().rev().find(|line| !line.trim().is_empty());
    line.unwrap_or("it said nothing").to_owned()
}

/// The parent of a process, field 4 of `/proc/<pid>/stat`.
fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
}
