//! The node's data directory: who may use it, whose it is, and which life this is.
//!
//! Owns: `lock`, `identity.toml`, `incarnation`, `membership.toml`, `members/`. The write-ahead
//! log, the groups' snapshots and the chunks are below it too, but belong to others.

mod error;
mod identity;
mod members;
#[cfg(test)]
mod tests;

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use callboard_protocol::{DiskId, Incarnation, NodeId};
use nix::fcntl::{Flock, FlockArg};

pub use error::DataDirError;
use identity::Identity;
pub use identity::MachineId;
pub(crate) use identity::host_name;
pub use members::{Founder, Membership, NotedMembers};

/// File in a node's folder in which its supervisor notes how it ended.
pub const LAST_END_FILE: &str = "last_end";
/// A data directory in use by this process. Dropping it lets another use it.
#[derive(Debug)]
pub struct DataDir {
    root: PathBuf,
    identity: Identity,
    _lock: Flock<File>,
}

impl DataDir {
    /// Takes the directory into use, and creates it if it does not exist. With `adopt`, one that
    /// was made on another machine is taken over for good.
    ///
    /// # Errors
    /// [`DataDirError`], each a sentence with a next step.
    pub fn open(
        root: &Path,
        node: &NodeId,
        machine: &MachineId,
        adopt: bool,
    ) -> Result<Self, DataDirError> {
        let fail = |source| DataDirError::io("create", root, source);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(root).map_err(fail)?;
        let lock = take_lock(&root.join("lock"), root)?;
        let path = root.join("identity.toml");
        let identity = match read_if_there(&path)? {
            None => refuse_if_used(root).map(|()| Identity::fresh(node, machine))?,
            Some(text) => Identity::parse(&path, &text)?,
        };
        let this = Self { root: root.to_owned(), identity, _lock: lock };
        this.check(node, machine, adopt)
    }

    fn check(
        mut self,
        node: &NodeId,
        machine: &MachineId,
        adopt: bool,
    ) -> Result<Self, DataDirError> {
        let Identity { node: owner, machine: home, .. } = &self.identity;
        if owner != node {
            let (owner, asked) = (owner.clone(), node.clone());
            return Err(DataDirError::OtherNode { root: self.root, owner, asked });
        }
        if home != machine {
            if !adopt {
                return Err(DataDirError::OtherMachine { root: self.root });
            }
            self.identity.machine = machine.clone();
        }
        let path = self.root.join("identity.toml");
        write_durably(&path, self.identity.to_toml().as_bytes())?;
        for name in ["run", "groups", "chunks", "wal", "members", "work"] {
            let path = self.root.join(name);
            let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&path);
            made.map_err(|source| DataDirError::io("create", &path, source))?;
        }
        Ok(self)
    }

    /// Where it is.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Its identity.
    #[must_use]
    pub fn disk(&self) -> DiskId {
        self.identity.disk
    }

    /// Where sockets and pid files of this life go.
    #[must_use]
    pub fn run_dir(&self) -> PathBuf {
        self.root.join("run")
    }

    /// How the life before this one ended, if whoever watched it noted it. Given once.
    #[must_use]
    pub fn take_last_end(&self) -> Option<String> {
        let path = self.root().join(LAST_END_FILE);
        let how = std::fs::read_to_string(&path).ok()?;
        let _ = std::fs::remove_file(&path);
        Some(how).filter(|how| !how.is_empty())
    }

    /// The number of this life of the node, durably higher than that of every earlier one.
    ///
    /// # Errors
    /// [`DataDirError`] if the counter cannot be read or written.
    pub fn begin_life(&self) -> Result<Incarnation, DataDirError> {
        let path = self.root.join("incarnation");
        let last = match read_if_there(&path)? {
            None => 0,
            Some(text) => text.trim().parse::<u64>().map_err(|error| DataDirError::Content {
                path: path.clone(),
                why: format!("it should hold a number ({error})"),
            })?,
        };
        let now = Incarnation(last + 1);
        write_durably(&path, format!("{now}\n").as_bytes())?;
        Ok(now)
    }
}

fn take_lock(path: &Path, root: &Path) -> Result<Flock<File>, DataDirError> {
    let fail = |source| DataDirError::io("open", path, source);
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .mode(0o600)
        .open(path)
        .map_err(fail)?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(mut lock) => {
            lock.set_len(0).map_err(fail)?;
            writeln!(*lock, "{}", std::process::id()).map_err(fail)?;
            Ok(lock)
        }
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => {
            let holder = fs::read_to_string(path).unwrap_or_default();
            let holder = match holder.trim() {
                "" => "another process".to_owned(),
                pid => format!("process {pid}"),
            };
            Err(DataDirError::InUse { root: root.to_owned(), holder })
        }
        Err((_, errno)) => Err(fail(errno.into())),
    }
}

/// A directory without an identity must hold nothing of a node, or its identity was lost.
fn refuse_if_used(root: &Path) -> Result<(), DataDirError> {
    let wal = root.join("wal");
    let is_used = fs::read_dir(&wal).is_ok_and(|mut entries| entries.next().is_some());
    if is_used {
        let path = root.join("identity.toml");
        let why = "it is missing, though there is a log beside it".to_owned();
        return Err(DataDirError::Content { path, why });
    }
    Ok(())
}

fn read_if_there(path: &Path) -> Result<Option<String>, DataDirError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(DataDirError::io("read", path, source)),
    }
}

/// Replaces a small file: afterwards it holds `bytes`, whatever happens to the power.
fn write_durably(path: &Path, bytes: &[u8]) -> Result<(), DataDirError> {
    let write = || {
        let beside = path.with_extension("new");
        let mut file =
            OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&beside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&beside, path)?;
        sync_parent(path)
    };
    write().map_err(|source| DataDirError::io("write", path, source))
}

fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}
