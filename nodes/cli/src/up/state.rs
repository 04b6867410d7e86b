//! What `up` remembers between runs: its lock, its nodes and their processes.

use std::{
    fs, io,
    io::{Read as _, Seek as _, Write as _},
    path::{Path, PathBuf},
};

use callboard_protocol::NodeId;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use crate::exit::{Exit, Failure};

/// The content of `up.json`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpState {
    /// The cluster of this folder.
    pub cluster: String,
    /// The nodes that founded the system group, in order. They never change.
    pub founders: Vec<NodeId>,
    /// The node processes last started.
    pub nodes: Vec<NodeProcess>,
}

/// A node's process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeProcess {
    /// Whose.
    pub node: NodeId,
    /// Its id.
    pub pid: u32,
    /// When it began, in clock ticks since boot: tells it from a later process with the same id.
    pub start_ticks: u64,
}

fn path(data_dir: &Path) -> PathBuf {
    data_dir.join("up.json")
}

impl UpState {
    /// The state of the last run, if there was one.
    ///
    /// # Errors
    /// A [`Failure`] if it cannot be read: without it, running nodes would be started twice.
    pub fn load(data_dir: &Path) -> Result<Option<Self>, Failure> {
        let path = path(data_dir);
        match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(cannot("read", &path, &error)),
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|error| {
                Failure::environment(format!(
                    "{} is damaged: {error}. Stop the `callboard node` processes of this folder, delete that file, and start again; kernels are kept elsewhere",
                    path.display()
                ))
            }),
        }
    }

    /// Writes the state in one step.
    ///
    /// # Errors
    /// A [`Failure`] if the folder cannot be written.
    pub fn save(&self, data_dir: &Path) -> Result<(), Failure> {
        let path = path(data_dir);
        let beside = data_dir.join("up.json.new");
        let write = || {
            let mut file = fs::File::create(&beside)?;
            file.write_all(&serde_json::to_vec_pretty(self)?)?;
            file.sync_all()?;
            fs::rename(&beside, &path)
        };
        write().map_err(|error: io::Error| cannot("write", &path, &error))
    }

    /// Notes a node's process.
    pub fn set(&mut self, process: NodeProcess) {
        self.nodes.retain(|known| known.node != process.node);
        self.nodes.push(process);
        self.nodes.sort_by(|a, b| a.node.cmp(&b.node));
    }
}

/// What went wrong with a file of the data directory.
pub fn cannot(what: &str, path: &Path, error: &io::Error) -> Failure {
    Failure::environment(format!(
        "cannot {what} {}: {error}; the data directory must be writable and have free space",
        path.display()
    ))
}

/// The lock that makes this process the one `up` of a folder.
#[derive(Debug)]
pub struct UpLock(#[expect(dead_code, reason = "held, not read")] Flock<fs::File>);

/// Locks the folder, making it if it is missing.
///
/// # Errors
/// A [`Failure`] with the process that holds it.
pub fn lock(data_dir: &Path) -> Result<UpLock, Failure> {
    fs::create_dir_all(data_dir).map_err(|error| cannot("make the folder", data_dir, &error))?;
    let path = data_dir.join("up.lock");
    let file = open(&path).map_err(|error| cannot("write", &path, &error))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(mut file) => {
            let mut write = || {
                file.set_len(0)?;
                file.rewind()?;
                write!(file, "{}", std::process::id())
            };
            write().map_err(|error: io::Error| cannot("write", &path, &error))?;
            Ok(UpLock(file))
        }
        Err((mut file, nix::errno::Errno::EWOULDBLOCK)) => {
            let mut pid = String::new();
            let _ = file.read_to_string(&mut pid);
            Err(Failure::new(
                Exit::Environment,
                format!(
                    "`callboard up` already runs on {} (pid {}): stop it first, or choose another folder with --data",
                    data_dir.display(),
                    pid.trim()
                ),
            ))
        }
        Err((_, errno)) => Err(cannot("lock", &path, &errno.into())),
    }
}

fn open(path: &Path) -> io::Result<fs::File> {
    fs::OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path)
}

/// The process of the `up` that runs on the folder now, if one does.
#[must_use]
pub fn running(data_dir: &Path) -> Option<u32> {
    let file = fs::OpenOptions::new().read(true).open(data_dir.join("up.lock")).ok()?;
    match Flock::lock(file, FlockArg::LockSharedNonblock) {
        Ok(_) => None,
        Err((mut file, _)) => {
            let mut pid = String::new();
            file.read_to_string(&mut pid).ok()?;
            pid.trim().parse().ok()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_up_on_a_folder_is_refused_with_the_pid_of_the_first() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(running(folder.path()), None);
        let held = lock(folder.path()).unwrap();
        let refusal = lock(folder.path()).unwrap_err();
        assert!(refusal.message.contains(&std::process::id().to_string()), "{refusal:?}");
        assert_eq!(running(folder.path()), Some(std::process::id()));
        drop(held);
        assert_eq!(running(folder.path()), None);
        assert!(lock(folder.path()).is_ok());
    }

    #[test]
    fn state_is_what_was_saved_and_damage_is_told() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(UpState::load(folder.path()).unwrap(), None);
        let mut state = UpState { cluster: "c".to_owned(), ..UpState::default() };
        let node = NodeId::new("node-1").unwrap();
        state.set(NodeProcess { node: node.clone(), pid: 1, start_ticks: 2 });
        state.set(NodeProcess { node, pid: 3, start_ticks: 4 });
        state.save(folder.path()).unwrap();
        let loaded = UpState::load(folder.path()).unwrap().unwrap();
        assert_eq!((loaded.nodes.len(), loaded.nodes[0].pid), (1, 3));
        fs::write(folder.path().join("up.json"), "{").unwrap();
        assert!(UpState::load(folder.path()).unwrap_err().message.contains("damaged"));
    }
}
