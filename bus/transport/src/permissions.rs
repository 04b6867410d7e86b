//! Who may say and hear what: the broker's users, one per role, and their credentials files.
//!
//! Nodes answer requests, so they may publish to every inbox (`_INBOX.>`); they run everything
//! anyway, and per-reply grants would cost the broker an entry per Raft message. Nobody reads
//! another's inbox.

use std::{
    fs, io,
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use callboard_protocol::{ClusterId, NodeId};
use rand::Rng as _;
use serde::{Deserialize, Serialize};

use crate::{bus::INBOX_ROOT, server::BrokerUser};

/// Bytes of a generated password.
const PASSWORD_BYTES: usize = 32;

/// Where the broker tells a user what it may do; answered by the broker itself, about the asker.
pub(crate) const USER_INFO: &str = "$SYS.REQ.USER.INFO";

/// What a user of the broker is for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// A node process: runs and hosts everything.
    Node(NodeId),
    /// A person at the command line.
    Operator,
    /// A notebook front-end: runs cells, changes nothing else.
    Frontend,
    /// A gateway for many front-ends: checks their users' tokens, and starts and stops their kernels.
    Gateway,
    /// The process that starts nodes and sees them end.
    Supervisor,
}

impl Role {
    /// The user name.
    #[must_use]
    pub fn user(&self) -> String {
        match self {
            Self::Node(node) => format!("node-{node}"),
            Self::Operator => "operator".to_owned(),
            Self::Frontend => "frontend".to_owned(),
            Self::Gateway => "gateway".to_owned(),
            Self::Supervisor => "supervisor".to_owned(),
        }
    }

    /// Where answers to this user arrive.
    #[must_use]
    pub fn inbox_prefix(&self) -> String {
        format!("{INBOX_ROOT}.{}", self.user())
    }

    /// The user with its permissions in `cluster`.
    #[must_use]
    pub fn broker_user(&self, cluster: &ClusterId, password: String) -> BrokerUser {
        let inbox = format!("{}.>", self.inbox_prefix());
        let (publish, subscribe) = self.subjects(&format!("cb.v1.{cluster}"));
        BrokerUser {
            name: self.user(),
            password,
            publish: publish.into_iter().chain([inbox.clone(), USER_INFO.to_owned()]).collect(),
            subscribe: subscribe.into_iter().chain([inbox]).collect(),
        }
    }

    /// What it may publish and subscribe to below `root`, its own inbox aside.
    fn subjects(&self, root: &str) -> (Vec<String>, Vec<String>) {
        let below = |tails: &[&str]| -> Vec<String> {
            tails.iter().map(|tail| format!("{root}.{tail}")).collect()
        };
        const OPERATOR: [&str; 3] = ["control.*.*", "kernel.*.*", "node.*.*"];
        const FRONTEND: [&str; 9] = [
            "kernel.*.shell",
            "kernel.*.control",
            "kernel.*.stdin",
            "kernel.*.outputs",
            "kernel.*.show",
            "kernel.*.seen",
            "kernel.*.fate",
            "control.*.find_kernel",
            "control.*.list_kernels",
        ];
        const GATEWAY: [&str; 10] = [
            "kernel.*.log",
            "kernel.*.checkpoint",
            "kernel.*.restart",
            "control.*.start_kernel",
            "control.*.stop_kernel",
            "control.*.list_nodes",
            "control.*.list_kernelspecs",
            "control.*.list_users",
            "control.*.label_kernel",
            "evt.control.main.audited",
        ];
        match self {
            Self::Node(_) => {
                let all = below(&[">"]);
                ([all.clone(), vec![format!("{INBOX_ROOT}.>")]].concat(), all)
            }
            Self::Operator => (below(&OPERATOR), below(&["evt.>"])),
            Self::Supervisor => {
                let exited = below(&["evt.node.*.exited"]);
                ([below(&OPERATOR), exited].concat(), below(&["evt.>"]))
            }
            Self::Frontend => (below(&FRONTEND), below(&["evt.kernel.>"])),
            Self::Gateway => ([below(&FRONTEND), below(&GATEWAY)].concat(), below(&["evt.>"])),
        }
    }
}

/// Every role of a cluster with these nodes.
#[must_use]
pub fn cluster_roles(nodes: &[NodeId]) -> Vec<Role> {
    let mut roles: Vec<Role> = nodes.iter().cloned().map(Role::Node).collect();
    roles.extend([Role::Operator, Role::Frontend, Role::Gateway, Role::Supervisor]);
    roles
}

/// A fresh password of 256 random bits, in hexadecimal.
#[must_use]
pub fn random_password() -> String {
    let mut bytes = [0_u8; PASSWORD_BYTES];
    rand::rng().fill(&mut bytes);
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What one user needs to join the bus: the content of a credentials file.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Credentials {
    /// Such as `nats://127.0.0.1:4222`.
    pub url: String,
    /// The cluster.
    pub cluster: ClusterId,
    /// The user name.
    pub user: String,
    /// Its password.
    pub password: String,
    /// Where answers to this user arrive.
    pub inbox_prefix: String,
}

impl std::fmt::Debug for Credentials {
    /// Everything but the password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { url, cluster, user, inbox_prefix, password: _ } = self;
        f.debug_struct("Credentials")
            .field("url", url)
            .field("cluster", cluster)
            .field("user", user)
            .field("inbox_prefix", inbox_prefix)
            .finish_non_exhaustive()
    }
}

/// Why a credentials file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// It cannot be read or written.
    #[error(
        "cannot {what} the credentials file {}: {source}; `callboard up` writes one for each role",
        path.display()
    )]
    Io {
        /// `read` or `write`.
        what: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It holds something else.
    #[error(
        "{} is not a credentials file: {source}; take one that `callboard up` wrote", path.display()
    )]
    Content {
        /// Which.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
}

impl Credentials {
    /// Credentials of `role`, with a fresh password.
    #[must_use]
    pub fn generate(role: &Role, cluster: &ClusterId, url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            cluster: cluster.clone(),
            user: role.user(),
            password: random_password(),
            inbox_prefix: role.inbox_prefix(),
        }
    }

    /// Reads a credentials file.
    ///
    /// # Errors
    /// [`CredentialsError`] if it is missing, unreadable or something else.
    pub fn load(path: &Path) -> Result<Self, CredentialsError> {
        let path_buf = || path.to_owned();
        let text = fs::read(path).map_err(|source| CredentialsError::Io {
            what: "read",
            path: path_buf(),
            source,
        })?;
        serde_json::from_slice(&text)
            .map_err(|source| CredentialsError::Content { path: path_buf(), source })
    }

    /// Writes a credentials file that only its owner can read, in one step.
    ///
    /// # Errors
    /// [`CredentialsError::Io`].
    pub fn save(&self, path: &Path) -> Result<(), CredentialsError> {
        let fail = |source| CredentialsError::Io { what: "write", path: path.to_owned(), source };
        let text = serde_json::to_vec_pretty(self).map_err(|error| fail(error.into()))?;
        write_private(path, &text).map_err(fail)
    }
}

/// Writes a file with mode 0600 beside its place, then renames it there.
pub(crate) fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&beside, path)
}
