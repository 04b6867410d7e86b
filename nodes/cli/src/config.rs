//! The cluster's configuration: defaults < file < `CALLBOARD_<KEY>` < flags.

mod validate;

use std::{
    env,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use callboard_kernel::{FileOptions, PipPolicy};
use callboard_policy::environment::EnvironmentMatch;
use callboard_protocol::{
    ClusterId, NodeId,
    control::{KernelLimits, Standby},
};
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::exit::Failure;

/// A cluster on one machine. configs/cluster.toml explains every key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClusterConfig {
    /// Name of the cluster; the third token of every subject.
    pub cluster_id: String,
    /// How many node processes.
    pub nodes: u16,
    /// The address the broker listens on, and nodes reach it at.
    pub broker_host: String,
    /// The broker's port; 0 takes that of the last run, or a free one.
    pub broker_port: u16,
    /// Where the gateway for Jupyter front-ends listens, as `ADDRESS:PORT`; port 0 takes that of the
    /// last run, or a free one. Empty: no gateway.
    pub gateway_listen: String,
    /// The nats-server program; empty searches.
    pub broker_program: PathBuf,
    /// Words before each node's command line; `{node}` stands for its id. Empty: none.
    pub node_launcher: String,
    /// The Python that kernels run on; empty searches.
    pub python_program: PathBuf,
    /// How often a Raft leader says that it leads.
    pub heartbeat_interval_ms: u64,
    /// Shortest silence of a leader before an election.
    pub election_timeout_min_ms: u64,
    /// Longest silence of a leader before an election.
    pub election_timeout_max_ms: u64,
    /// Silence after which a node is suspected.
    pub suspect_after_ms: u64,
    /// Silence after which a node's replicas are replaced.
    pub gone_after_ms: u64,
    /// How long the capture of a kernel's state may take.
    pub capture_budget_s: u64,
    /// Most that a kernel's state may hold.
    pub state_mib_max: u64,
    /// Holds one directory per kernel, whose files travel; empty: `work` in the node's folder.
    pub session_directory: PathBuf,
    /// Directories that every node sees under the same path; files there are not carried.
    pub shared_directories: Vec<PathBuf>,
    /// Largest file that is carried.
    pub carry_file_max_mib: u64,
    /// Most that the carried files of one kernel may have together.
    pub carry_files_total_max_mib: u64,
    /// Most files that are carried for one kernel.
    pub carry_files_max: u64,
    /// How alike the Python environments of a kernel's nodes have to be.
    pub environment_match: EnvironmentMatch,
    /// What `pip` does in a session.
    pub pip_policy: PipPolicy,
    /// Most memory of a kernel's processes together; 0 is no limit.
    pub kernel_memory_max_mib: u64,
    /// Most processor time of a kernel's processes, in percent of one processor; 0 is no limit.
    pub kernel_cpu_max_percent: u32,
    /// Most processes and threads of a kernel; 0 is no limit.
    pub kernel_processes_max: u64,
    /// How long a cell may run; 0 is no limit.
    pub cell_wall_time_max_s: u64,
    /// The first of the uids that kernels run under, where the node is root; 0: the node's own.
    pub kernel_uid_base: u32,
    /// Libraries that kernels find imported already, separated by spaces.
    pub zygote_preload: String,
    /// Started Python processes that each node keeps at hand at least.
    pub pool_min: u16,
    /// The same, at most.
    pub pool_max: u16,
    /// Whether standbys of kernels that do not say have a warm Python process.
    pub standby_python: Standby,
    /// Seconds without a cell after which a kernel is parked; 0 parks none.
    pub park_after_s: u64,
    /// Whether kernels are parked that hold what only a live process can hold.
    pub park_with_refused: bool,
    /// Seconds without a request after which a kernel's members sleep; 0: never.
    pub hibernate_after_s: u64,
    /// Where traces go over OTLP; empty sends none.
    pub otlp_endpoint: String,
    /// Most MiB of chunks per owner on one node; 0 for no limit.
    pub owner_quota_mib: u64,
    /// How long a chunk that nothing names is kept.
    pub chunk_grace_s: u64,
    /// How full a node's disk may be before it takes no new cells.
    pub disk_high_water_percent: u8,
    /// Room set aside for a full disk.
    pub disk_reserve_mib: u64,
    /// How fast chunks are read to find damage; 0 reads none.
    pub scrub_mib_per_s: u64,
    /// Where a copy of the chunks is kept; empty for none.
    pub object_store_url: String,
    /// Log entries after which a replica writes a snapshot.
    pub snapshot_every_entries: u64,
    /// Whether a node's disk fails when a file in its folder says so.
    pub disk_faults: bool,
    /// Size of a file of a node's log, in MiB.
    pub log_segment_mb: u64,
}

impl Default for ClusterConfig {
    fn default() -> Self {
        Self {
            cluster_id: "local".to_owned(),
            nodes: 3,
            broker_host: "127.0.0.1".to_owned(),
            broker_port: 0,
            gateway_listen: "127.0.0.1:0".to_owned(),
            broker_program: PathBuf::new(),
            node_launcher: String::new(),
            python_program: PathBuf::new(),
            heartbeat_interval_ms: 75,
            election_timeout_min_ms: 250,
            election_timeout_max_ms: 450,
            suspect_after_ms: 1500,
            gone_after_ms: 60_000,
            capture_budget_s: 60,
            state_mib_max: 16_384,
            session_directory: PathBuf::new(),
            shared_directories: Vec::new(),
            carry_file_max_mib: 16,
            carry_files_total_max_mib: 256,
            carry_files_max: 10_000,
            environment_match: EnvironmentMatch::default(),
            pip_policy: PipPolicy::default(),
            kernel_memory_max_mib: 0,
            kernel_cpu_max_percent: 0,
            kernel_processes_max: 0,
            cell_wall_time_max_s: 0,
            kernel_uid_base: 2_000_000_000,
            zygote_preload: "numpy pandas matplotlib".to_owned(),
            pool_min: 4,
            pool_max: 16,
            standby_python: Standby::Thin,
            park_after_s: 1800,
            park_with_refused: false,
            hibernate_after_s: 60,
            otlp_endpoint: String::new(),
            owner_quota_mib: 0,
            chunk_grace_s: 120,
            disk_high_water_percent: 95,
            disk_reserve_mib: 64,
            scrub_mib_per_s: 4,
            object_store_url: String::new(),
            snapshot_every_entries: 2000,
            disk_faults: false,
            log_segment_mb: 16,
        }
    }
}

/// What flags of the command line set.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// `--nodes`.
    pub nodes: Option<u16>,
    /// `--port`.
    pub broker_port: Option<u16>,
    /// `--python`.
    pub python_program: Option<PathBuf>,
}

impl ClusterConfig {
    /// The configuration that file, environment and flags give together.
    ///
    /// # Errors
    /// A [`Failure`] that names every problem at once.
    pub fn load(file: Option<&Path>, flags: &Overrides) -> Result<Self, Failure> {
        let table = file.map(read).transpose()?.unwrap_or_default();
        let origin = file.map_or("the configuration".to_owned(), |path| path.display().to_string());
        Self::build(table, |key| env::var(key).ok(), flags)
            .map_err(|problems| Failure::usage(sentence(&origin, &problems)))
    }

    fn build(
        mut table: Table,
        environment: impl Fn(&str) -> Option<String>,
        flags: &Overrides,
    ) -> Result<Self, Vec<String>> {
        let known = keys();
        let mut problems: Vec<String> = table
            .keys()
            .filter(|key| !known.contains_key(key.as_str()))
            .map(|key| format!("unknown key '{key}' (known: {})", listed(&known)))
            .collect();
        for key in known.keys() {
            let variable = format!("CALLBOARD_{}", key.to_uppercase());
            if let Some(text) = environment(&variable) {
                table.insert(key.clone(), from_text(&text, &known[key]));
            }
        }
        let mut config = Self::default();
        for (key, value) in table.into_iter().filter(|(key, _)| known.contains_key(key)) {
            // One key at a time, so that each wrong one is reported.
            match with(&config, &key, value) {
                Ok(changed) => config = changed,
                Err(why) => problems.push(format!("{key}: {why}")),
            }
        }
        config.nodes = flags.nodes.unwrap_or(config.nodes);
        config.broker_port = flags.broker_port.unwrap_or(config.broker_port);
        if let Some(program) = &flags.python_program {
            config.python_program.clone_from(program);
        }
        problems.extend(config.validate());
        if problems.is_empty() { Ok(config) } else { Err(problems) }
    }

    /// Whether there is such a key.
    #[must_use]
    pub fn knows(key: &str) -> bool {
        keys().contains_key(key)
    }

    /// The most that kernels' processes may have.
    #[must_use]
    pub fn limits(&self) -> KernelLimits {
        KernelLimits {
            memory_max_mib: Some(self.kernel_memory_max_mib).filter(|it| *it > 0),
            cpu_max_percent: Some(self.kernel_cpu_max_percent).filter(|it| *it > 0),
            cell_wall_time_max_s: Some(self.cell_wall_time_max_s).filter(|it| *it > 0),
            processes_max: Some(self.kernel_processes_max).filter(|it| *it > 0),
        }
    }

    /// Where `node`, whose folder is `data`, keeps the files of sessions.
    #[must_use]
    pub fn files(&self, node: &NodeId, data: &Path) -> FileOptions {
        let root = match given(&self.session_directory) {
            None => data.join("work"),
            Some(root) if self.shared_directories.iter().any(|it| root.starts_with(it)) => {
                root.to_owned()
            }
            // Nodes of one machine must not write into each other's.
            Some(root) => root.join(node.as_str()),
        };
        FileOptions {
            shared: self.shared_directories.clone(),
            file_bytes_max: self.carry_file_max_mib.saturating_mul(1 << 20),
            total_bytes_max: self.carry_files_total_max_mib.saturating_mul(1 << 20),
            files_max: self.carry_files_max,
            pip: self.pip_policy,
            ..FileOptions::new(std::path::absolute(&root).unwrap_or(root))
        }
    }

    /// The cluster's id. [`Self::validate`] has checked it.
    ///
    /// # Errors
    /// A [`Failure`] if it is not one.
    pub fn cluster(&self) -> Result<ClusterId, Failure> {
        ClusterId::new(self.cluster_id.as_str()).map_err(Failure::usage)
    }

    /// Where the gateway listens, if there is to be one. [`Self::validate`] has checked it.
    ///
    /// # Errors
    /// A [`Failure`] if it is no address.
    pub fn gateway(&self) -> Result<Option<SocketAddr>, Failure> {
        let listen = self.gateway_listen.as_str();
        (!listen.is_empty()).then(|| listen.parse().map_err(Failure::usage)).transpose()
    }
}

/// A path that was given, or `None` for the empty one that means "search".
#[must_use]
pub fn given(path: &Path) -> Option<&Path> {
    (!path.as_os_str().is_empty()).then_some(path)
}

fn given_path(path: &PathBuf) -> Option<&PathBuf> {
    (!path.as_os_str().is_empty()).then_some(path)
}

fn read(path: &Path) -> Result<Table, Failure> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        Failure::usage(format!(
            "cannot read the configuration {}: {error}; see configs/cluster.toml for one that works",
            path.display()
        ))
    })?;
    text.parse()
        .map_err(|error| Failure::usage(format!("{} is not valid TOML: {error}", path.display())))
}

/// Every key with its default.
fn keys() -> Table {
    Table::try_from(ClusterConfig::default()).unwrap_or_default()
}

fn listed(known: &Table) -> String {
    known.keys().map(String::as_str).collect::<Vec<_>>().join(", ")
}

/// A variable's text as a value of the same type as `like`, if it reads as one.
fn from_text(text: &str, like: &Value) -> Value {
    match (like, text.parse::<i64>()) {
        (Value::Integer(_), Ok(number)) => Value::Integer(number),
        (Value::Array(_), _) => env::split_paths(text)
            .map(|path| Value::String(path.to_string_lossy().into_owned()))
            .collect::<Vec<_>>()
            .into(),
        (Value::Boolean(_), _) if matches!(text, "true" | "false") => {
            Value::Boolean(text == "true")
        }
        _ => Value::String(text.to_owned()),
    }
}

fn with(config: &ClusterConfig, key: &str, value: Value) -> Result<ClusterConfig, String> {
    let mut table = Table::try_from(config).map_err(|error| error.to_string())?;
    table.insert(key.to_owned(), value);
    table.try_into().map_err(|error: toml::de::Error| error.message().to_owned())
}

fn sentence(origin: &str, problems: &[String]) -> String {
    format!("{origin} is not valid:\n  - {}", problems.join("\n  - "))
}

#[cfg(test)]
mod tests {
    use callboard_policy::{
        failure::FailureConfig, hibernation::HibernationConfig, prewarm::PoolBounds,
    };
    use callboard_replicated::RaftTiming;

    use super::*;

    fn build(text: &str) -> Result<ClusterConfig, Vec<String>> {
        ClusterConfig::build(text.parse().unwrap(), |_| None, &Overrides::default())
    }

    #[test]
    fn the_shipped_configuration_holds_every_key_and_the_defaults() {
        let text = include_str!("../../../configs/cluster.toml");
        assert_eq!(build(text).unwrap(), ClusterConfig::default());
        let shipped: Table = text.parse().unwrap();
        assert!(keys().keys().eq(shipped.keys()), "{shipped:?}");
    }

    #[test]
    fn the_defaults_are_those_of_the_parts() {
        let (config, failure) = (ClusterConfig::default(), FailureConfig::default());
        let timing = RaftTiming::default();
        assert_eq!(config.heartbeat_interval_ms, timing.heartbeat_interval_ms);
        assert_eq!(config.election_timeout_min_ms, timing.election_timeout_min_ms);
        assert_eq!(config.election_timeout_max_ms, timing.election_timeout_max_ms);
        assert_eq!(config.suspect_after_ms, failure.suspect_after_ms);
        assert_eq!(config.gone_after_ms, failure.gone_after_ms);
        let hibernation = HibernationConfig::default();
        assert_eq!(config.hibernate_after_s * 1000, hibernation.after_ms);
        let pool = PoolBounds::default();
        assert_eq!(usize::from(config.pool_min), pool.processes_min);
        assert_eq!(usize::from(config.pool_max), pool.processes_max);
    }

    #[test]
    fn a_session_directory_is_one_per_node_unless_all_nodes_see_it() {
        let node = NodeId::new("node-2").unwrap();
        let root = |text: &str| build(text).unwrap().files(&node, Path::new("/d")).root;
        assert_eq!(root(""), Path::new("/d/work"));
        assert_eq!(root("session_directory = '/s'"), Path::new("/s/node-2"));
        let shared = "session_directory = '/nfs/s'\nshared_directories = ['/nfs']";
        assert_eq!(root(shared), Path::new("/nfs/s"));
        let problems =
            build("pip_policy = 'maybe'\nenvironment_match = 'no'").unwrap_err().join("\n");
        assert!(problems.contains("`refuse`, `replay`, `allow`"), "{problems}");
        assert!(problems.contains("`exact`, `imported`, `off`"), "{problems}");
        let problems = build("shared_directories = ['x']\ncarry_files_max = 1000000").unwrap_err();
        assert!(problems[0].contains("'x' is no absolute path"), "{problems:?}");
        assert!(problems[1].contains("carry_files_max is 1000000"), "{problems:?}");
        let environment =
            |key: &str| (key == "CALLBOARD_SHARED_DIRECTORIES").then(|| "/a:/b".to_owned());
        let config =
            ClusterConfig::build(Table::new(), environment, &Overrides::default()).unwrap();
        assert_eq!(config.shared_directories, [Path::new("/a"), Path::new("/b")]);
    }

    #[test]
    fn every_problem_is_reported_at_once() {
        let text = "pool_min = 9\npool_max = 1\nzygote_preload = '2b'\nnodes = 0\nnodez = 3\nbroker_port = 'x'\ncluster_id = 'a b'\ngone_after_ms = 1";
        let problems = build(text).unwrap_err().join("\n");
        for part in [
            "pool_max is 1",
            "'2b'",
            "nodes is 0",
            "'nodez'",
            "broker_port:",
            "cluster_id:",
            "gone_after_ms is 1",
        ] {
            assert!(problems.contains(part), "{part} is missing in\n{problems}");
        }
    }

    #[test]
    fn flags_win_over_the_environment_and_that_over_the_file() {
        let environment = |key: &str| match key {
            "CALLBOARD_NODES" => Some("5".to_owned()),
            "CALLBOARD_BROKER_PORT" => Some("4001".to_owned()),
            _ => None,
        };
        let flags = Overrides { nodes: Some(7), ..Overrides::default() };
        let file = "nodes = 3\nbroker_port = 4000\ncapture_budget_s = 9".parse().unwrap();
        let config = ClusterConfig::build(file, environment, &flags).unwrap();
        assert_eq!((config.nodes, config.broker_port, config.capture_budget_s), (7, 4001, 9));
    }
}
