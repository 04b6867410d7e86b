//! Where the files of sessions are on this node, and what of them travels.
//!
//! Makes and removes a kernel's directory. What is in it is the Python side's business.

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use callboard_protocol::{
    KernelId,
    control::{KernelLimits, KernelSpec},
};
use serde::{Deserialize, Serialize};

use super::{
    cgroup::Cgroups,
    isolation::{CACHES, Isolation},
};

/// What the Python side adds to a root's name for what it moved out of the way.
const ASIDE_SUFFIX: &str = ".before";

/// Holds one directory per kernel, for the packages that its session installs.
const PACKAGES: &str = ".packages";

/// What `pip` does in a session.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PipPolicy {
    /// It refuses to install.
    Refuse,
    /// It installs into a directory of the kernel's own, and again wherever the kernel moves.
    #[default]
    Replay,
    /// It changes the environment of this one node.
    Allow,
}

/// How this node keeps the files of sessions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileOptions {
    /// Holds one directory per kernel.
    pub root: PathBuf,
    /// Directories that every node sees under the same path; files there are not carried.
    pub shared: Vec<PathBuf>,
    /// Largest file that is carried, in bytes.
    pub file_bytes_max: u64,
    /// Most bytes of files that are carried for one kernel.
    pub total_bytes_max: u64,
    /// Most files that are carried for one kernel.
    pub files_max: u64,
    /// What `pip` does.
    pub pip: PipPolicy,
}

impl FileOptions {
    /// Files below `root`, with the limits that configs/cluster.toml names.
    #[must_use]
    pub fn new(root: PathBuf) -> Self {
        Self {
            root,
            shared: Vec::new(),
            file_bytes_max: 16 << 20,
            total_bytes_max: 256 << 20,
            files_max: 10_000,
            pip: PipPolicy::default(),
        }
    }

    /// The directory of one kernel's session.
    #[must_use]
    pub fn of(&self, spec: &KernelSpec) -> SessionDirectory {
        SessionDirectory {
            root: self.root_of(spec.kernel),
            start: spec.settings.directory.as_ref().map(PathBuf::from),
            shared: self.shared.clone(),
            file_bytes_max: self.file_bytes_max,
            total_bytes_max: self.total_bytes_max,
            files_max: self.files_max,
        }
    }

    /// The packages of one kernel's session.
    #[must_use]
    pub fn packages_of(&self, spec: &KernelSpec) -> SessionPackages {
        let overlay = self.root.join(PACKAGES).join(spec.kernel.to_string());
        SessionPackages { policy: self.pip, overlay }
    }

    /// Removes the directories of a kernel that no longer has a member here. One that other nodes see
    /// too is removed with the kernel itself only.
    ///
    /// # Errors
    /// If something of it cannot be removed.
    pub fn forget(&self, kernel: KernelId, is_stopped: bool) -> io::Result<()> {
        let root = self.root_of(kernel);
        if !is_stopped && self.shared.iter().any(|shared| root.starts_with(shared)) {
            return Ok(());
        }
        remove(&aside(&root))?;
        for holder in [PACKAGES, CACHES] {
            remove(&self.root.join(holder).join(kernel.to_string()))?;
        }
        // Last, as its owner says whose uid is taken.
        remove(&root)
    }

    fn root_of(&self, kernel: KernelId) -> PathBuf {
        self.root.join(kernel.to_string())
    }
}

/// What makes a Python process that of a kernel, as the Python side is told of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SessionConfig {
    /// What its messages call the session: the same in every process of the kernel.
    pub session: KernelId,
    /// Its directory.
    pub directory: SessionDirectory,
    /// Its packages.
    pub packages: SessionPackages,
    /// Its limits, and how they are enforced.
    #[serde(skip)]
    pub limits: (KernelLimits, Cgroups),
    /// What gives its process a uid of its own; `None` leaves it the node's.
    #[serde(skip)]
    pub isolation: Option<Isolation>,
}

impl SessionConfig {
    /// That of one kernel on this node.
    #[must_use]
    pub fn of(files: &FileOptions, spec: &KernelSpec, limits: (KernelLimits, Cgroups)) -> Self {
        Self {
            session: spec.kernel,
            directory: files.of(spec),
            packages: files.packages_of(spec),
            limits,
            isolation: None,
        }
    }

    /// The same, with a uid of its own if there is something to give it.
    #[must_use]
    pub fn isolated(self, isolation: Option<Isolation>) -> Self {
        Self { isolation, ..self }
    }

    /// Makes its directories.
    ///
    /// # Errors
    /// If that fails.
    pub fn create(&self) -> io::Result<()> {
        self.directory.create()?;
        self.packages.create()
    }
}

/// The directory of one session, as the Python side is told of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SessionDirectory {
    /// The session's own directory on this node, whose files travel.
    pub root: PathBuf,
    /// Where it starts, if its user named another directory.
    pub start: Option<PathBuf>,
    /// See [`FileOptions::shared`].
    pub shared: Vec<PathBuf>,
    /// See [`FileOptions::file_bytes_max`].
    pub file_bytes_max: u64,
    /// See [`FileOptions::total_bytes_max`].
    pub total_bytes_max: u64,
    /// See [`FileOptions::files_max`].
    pub files_max: u64,
}

impl SessionDirectory {
    /// Makes it, readable by its user only.
    ///
    /// # Errors
    /// If that fails.
    pub fn create(&self) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.root)
    }

    /// Where the Python side moves what is in its way.
    pub(super) fn aside(&self) -> PathBuf {
        aside(&self.root)
    }
}

/// Where the packages of one session go, as the Python side is told of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SessionPackages {
    /// What `pip` does.
    pub policy: PipPolicy,
    /// The directory of the kernel's own.
    pub overlay: PathBuf,
}

impl SessionPackages {
    /// Makes the directory, readable by its user only, if the policy needs it.
    ///
    /// # Errors
    /// If that fails.
    pub fn create(&self) -> io::Result<()> {
        match self.policy {
            PipPolicy::Replay => {
                fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.overlay)
            }
            PipPolicy::Refuse | PipPolicy::Allow => Ok(()),
        }
    }
}

fn aside(root: &Path) -> PathBuf {
    let mut name = root.as_os_str().to_owned();
    name.push(ASIDE_SUFFIX);
    PathBuf::from(name)
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_goes_with_its_member_but_a_shared_one_with_its_kernel_only() {
        let directory = tempfile::tempdir().unwrap();
        let kernel = KernelId::generate();
        let mut options = FileOptions::new(directory.path().join("work"));
        let root = options.root_of(kernel);
        let make = || {
            fs::create_dir_all(root.join("sub")).unwrap();
            fs::create_dir_all(aside(&root)).unwrap();
        };
        make();
        options.forget(kernel, false).unwrap();
        assert!(!root.exists() && !aside(&root).exists());
        options.forget(kernel, true).unwrap();
        options.shared = vec![directory.path().to_owned()];
        make();
        options.forget(kernel, false).unwrap();
        assert!(root.exists());
        options.forget(kernel, true).unwrap();
        assert!(!root.exists());
    }
}
