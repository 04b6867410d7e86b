//! What a cluster needs before its first process runs: folder, configuration, credentials, broker.

use std::{
    fs,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use callboard_client::Client;
use callboard_kernel::python::is_root;
use callboard_protocol::{ClusterId, NodeId};
use callboard_transport::{
    Broker, BrokerError, BrokerOptions, Credentials, Role, permissions::cluster_roles,
};

use super::{
    process::NodeLaunch,
    state::{self, UpLock, UpState, cannot},
};
use crate::{
    config::{ClusterConfig, Overrides, given},
    exit::{Exit, Failure},
    output::say,
    python::{find_python, probe},
};

/// Stands in a credentials file until the broker has a port.
const URL_UNKNOWN: &str = "nats://127.0.0.1:0";

/// A locked folder and everything known about its cluster.
#[derive(Debug)]
pub(super) struct Prepared {
    /// The nodes to run.
    pub(super) nodes: Vec<NodeId>,
    /// What was remembered and will be.
    pub(super) state: UpState,
    /// The folder, absolute.
    pub(super) data_dir: PathBuf,
    pub(super) config: ClusterConfig,
    cluster: ClusterId,
    python: PathBuf,
    credentials: Vec<(Role, Credentials)>,
    _lock: UpLock,
}

impl Prepared {
    /// Checks everything that can be checked before a process runs, and locks the folder.
    ///
    /// # Errors
    /// A [`Failure`] that says what is wrong and what to do.
    pub(super) fn new(
        data: &Path,
        config: Option<&Path>,
        flags: &Overrides,
    ) -> Result<Self, Failure> {
        let config = ClusterConfig::load(config, flags)?;
        let python = usable_python(&config)?;
        let lock = state::lock(data)?;
        let data_dir = fs::canonicalize(data).map_err(|error| cannot("open", data, &error))?;
        // Kernels with uids of their own pass to their directories there, and list nothing.
        let is_passed = config.kernel_uid_base > 0 && is_root();
        folder_with_mode(&data_dir.join("nodes"), if is_passed { 0o711 } else { 0o700 })?;
        for folder in ["broker", "credentials", "logs"] {
            folder_with_mode(&data_dir.join(folder), 0o700)?;
        }
        let cluster = config.cluster()?;
        let wanted = (1..=config.nodes).map(node_id).collect::<Result<Vec<_>, _>>()?;
        let remembered = UpState::load(&data_dir)?;
        let state = remembered.unwrap_or_else(|| UpState {
            cluster: cluster.to_string(),
            founders: wanted.clone(),
            nodes: Vec::new(),
        });
        if state.cluster != cluster.as_str() {
            return Err(Failure::usage(format!(
                "{} belongs to the cluster '{}', not '{cluster}': change cluster_id back, or choose another folder with --data",
                data_dir.display(),
                state.cluster
            )));
        }
        let nodes = with_founders(wanted, &state.founders);
        let config_file = data_dir.join("cluster.toml");
        let text = toml::to_string(&config).map_err(|error| {
            Failure::new(Exit::Internal, format!("cannot write the configuration: {error}"))
        })?;
        // A URL in it may hold a password.
        fs::write(&config_file, text)
            .and_then(|()| fs::set_permissions(&config_file, fs::Permissions::from_mode(0o600)))
            .map_err(|error| cannot("write", &config_file, &error))?;
        let roles = cluster_roles(&nodes);
        let mut prepared = Self {
            nodes,
            state,
            data_dir,
            config,
            cluster,
            python,
            credentials: Vec::new(),
            _lock: lock,
        };
        prepared.credentials = roles.into_iter().map(|role| prepared.known_or_new(role)).collect();
        Ok(prepared)
    }

    /// Starts or adopts the broker, and writes the credentials files with its address.
    ///
    /// # Errors
    /// A [`Failure`] if there is no nats-server or no port for it.
    pub(super) async fn start_broker(&mut self) -> Result<Broker, Failure> {
        let users = self
            .credentials
            .iter()
            .map(|(role, has)| role.broker_user(&self.cluster, has.password.clone()))
            .collect();
        let mut options = BrokerOptions::new(self.data_dir.join("broker"), users);
        options.program = given(&self.config.broker_program).map(Path::to_owned);
        options.host.clone_from(&self.config.broker_host);
        options.port = (self.config.broker_port != 0).then_some(self.config.broker_port);
        let broker = Broker::start(options).await.map_err(broker_failure)?;
        for (role, credentials) in &mut self.credentials {
            broker.url().clone_into(&mut credentials.url);
            let file = credentials_file(&self.data_dir, role);
            if Credentials::load(&file).ok().as_ref() != Some(credentials) {
                credentials.save(&file).map_err(Failure::environment)?;
            }
        }
        Ok(broker)
    }

    /// A connection in one of the cluster's roles.
    ///
    /// # Errors
    /// A [`Failure`] if the broker does not accept it.
    pub(super) async fn client(&self, role: &Role) -> Result<Client, Failure> {
        let credentials = self.credentials.iter().find(|(known, _)| known == role);
        let Some((_, credentials)) = credentials else {
            return Err(Failure::new(Exit::Internal, format!("there is no role {role:?}")));
        };
        Client::connect(credentials).await.map_err(|error| Failure::new(Exit::Unavailable, error))
    }

    /// How to start each node.
    #[must_use]
    pub(super) fn launches(&self) -> Vec<NodeLaunch> {
        let launch = |node: &NodeId| NodeLaunch {
            node: node.clone(),
            data_dir: self.data_dir.join("nodes").join(node.as_str()),
            credentials: credentials_file(&self.data_dir, &Role::Node(node.clone())),
            config: self.data_dir.join("cluster.toml"),
            python: self.python.clone(),
            founders: self.state.founders.clone(),
            launcher: self.launcher(node),
            log: self.data_dir.join("logs").join(format!("{node}.log")),
        };
        self.nodes.iter().map(launch).collect()
    }

    /// The words before a node's command line.
    fn launcher(&self, node: &NodeId) -> Vec<String> {
        let words = self.config.node_launcher.split_whitespace();
        words.map(|word| word.replace("{node}", node.as_str())).collect()
    }

    /// The credentials of an earlier run keep their password: running nodes use it.
    fn known_or_new(&self, role: Role) -> (Role, Credentials) {
        let known = Credentials::load(&credentials_file(&self.data_dir, &role)).ok();
        let fits = |has: &Credentials| has.cluster == self.cluster && has.user == role.user();
        let credentials = known
            .filter(fits)
            .unwrap_or_else(|| Credentials::generate(&role, &self.cluster, URL_UNKNOWN));
        (role, credentials)
    }
}

/// Where the credentials of a role are.
fn credentials_file(data_dir: &Path, role: &Role) -> PathBuf {
    let name = match role {
        Role::Node(node) => node.to_string(),
        Role::Operator => "operator".to_owned(),
        Role::Frontend => "frontend".to_owned(),
        Role::Gateway => "gateway".to_owned(),
        Role::Supervisor => "supervisor".to_owned(),
    };
    data_dir.join("credentials").join(format!("{name}.json"))
}

fn node_id(number: u16) -> Result<NodeId, Failure> {
    NodeId::new(format!("node-{number}")).map_err(Failure::usage)
}

/// Founders are always run: they hold the cluster's memory.
fn with_founders(mut wanted: Vec<NodeId>, founders: &[NodeId]) -> Vec<NodeId> {
    for founder in founders {
        if !wanted.contains(founder) {
            say(&format!("{founder} is run too: it founded this cluster and holds its memory"));
            wanted.push(founder.clone());
        }
    }
    wanted
}

fn usable_python(config: &ClusterConfig) -> Result<PathBuf, Failure> {
    let program = find_python(&config.python_program)?;
    let facts = probe(&program).map_err(|why| {
        Failure::environment(format!(
            "{why}; name a working one with --python, or run `make setup`"
        ))
    })?;
    match facts.problem(&program) {
        Some(problem) => Err(Failure::environment(problem)),
        None => Ok(program),
    }
}

/// Makes a folder, or changes the mode of the one that is there.
fn folder_with_mode(path: &Path, mode: u32) -> Result<(), Failure> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(mode)))
        .map_err(|error| cannot("make the folder", path, &error))
}

fn broker_failure(error: BrokerError) -> Failure {
    let hint = match &error {
        BrokerError::PortInUse { .. } | BrokerError::CannotListen { .. } => {
            "; --port chooses another, --port 0 any free one"
        }
        _ => "",
    };
    Failure::environment(format!("{error}{hint}"))
}
