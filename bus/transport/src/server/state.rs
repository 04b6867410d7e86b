//! What the broker's folder remembers between runs: name, ports and process.

use std::{
    fs, io,
    net::TcpListener,
    path::{Path, PathBuf},
};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{BrokerError, BrokerOptions};
use crate::permissions::write_private;

/// The content of `broker.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct State {
    /// The name the broker gives itself; proves that it is ours.
    pub(super) server_name: String,
    pub(super) port: u16,
    pub(super) monitor_port: u16,
    /// The process last started.
    pub(super) pid: Option<u32>,
}

pub(super) fn io_error<'a>(
    what: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> BrokerError + 'a {
    move |source| BrokerError::Io { what, path: path.to_owned(), source }
}

/// Makes the folder and locks it. The lock ends with the process and is not inherited.
pub(super) fn lock(data_dir: &Path) -> Result<Flock<fs::File>, BrokerError> {
    fs::create_dir_all(data_dir).map_err(io_error("make the folder", data_dir))?;
    let path = data_dir.join("broker.lock");
    let file = fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(io_error("write", &path))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        nix::errno::Errno::EWOULDBLOCK => BrokerError::InUse { data_dir: data_dir.to_owned() },
        errno => BrokerError::Io { what: "lock", path, source: errno.into() },
    })
}

fn path(data_dir: &Path) -> PathBuf {
    data_dir.join("broker.json")
}

impl State {
    /// The state of the last run, if it can be read. An unreadable one costs only the port.
    pub(super) fn load(data_dir: &Path) -> Option<Self> {
        let bytes = fs::read(path(data_dir)).ok()?;
        serde_json::from_slice(&bytes)
            .inspect_err(|error| tracing::warn!(%error, "the broker's state file is unreadable"))
            .ok()
    }

    pub(super) fn save(&self, data_dir: &Path) -> Result<(), BrokerError> {
        let path = path(data_dir);
        let fail = io_error("write", &path);
        match serde_json::to_vec_pretty(self) {
            Ok(bytes) => write_private(&path, &bytes).map_err(fail),
            Err(error) => Err(fail(error.into())),
        }
    }

    /// The state to start with when no broker of ours runs: last run's ports where they are free.
    pub(super) fn for_start(
        options: &BrokerOptions,
        last: Option<Self>,
    ) -> Result<Self, BrokerError> {
        let port = match options.port {
            Some(port) => {
                check_free(&options.host, port)?;
                port
            }
            None => match last.as_ref().map(|last| last.port) {
                Some(port) if check_free(&options.host, port).is_ok() => port,
                _ => free_port(&options.host)?,
            },
        };
        let monitor_port = match last.as_ref().map(|last| last.monitor_port) {
            Some(free) if free != port && check_free("127.0.0.1", free).is_ok() => free,
            _ => free_port("127.0.0.1")?,
        };
        let server_name = last.map_or_else(
            || format!("callboard-{}", Uuid::new_v4().simple()),
            |last| last.server_name,
        );
        Ok(Self { server_name, port, monitor_port, pid: None })
    }
}

fn check_free(host: &str, port: u16) -> Result<(), BrokerError> {
    match TcpListener::bind((host, port)) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            Err(BrokerError::PortInUse { host: host.to_owned(), port })
        }
        Err(source) => Err(BrokerError::CannotListen { host: host.to_owned(), port, source }),
    }
}

fn free_port(host: &str) -> Result<u16, BrokerError> {
    TcpListener::bind((host, 0))
        .and_then(|listener| listener.local_addr())
        .map(|address| address.port())
        .map_err(|source| BrokerError::CannotListen { host: host.to_owned(), port: 0, source })
}
