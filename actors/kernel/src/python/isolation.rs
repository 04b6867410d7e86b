//! A uid of its own for each kernel's process, where the node is root.
//!
//! Owns which uid is whose, and hands directories over. The process takes the uid itself, before it
//! runs any of the user's code. Uids are unique on the machine: each node takes a range for itself as
//! long as it lives, and keeps to it which uid is a kernel's by the owner of the kernel's directory.

mod chown;
mod probe;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{
        DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
    },
    path::{self, Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use nix::{
    fcntl::{Flock, FlockArg},
    sys::signal::{Signal, kill},
    unistd::{Pid, Uid},
};
use serde::Serialize;

use super::directory::{FileOptions, SessionConfig};
pub(super) use chown::give;
pub use probe::isolation_problem;

/// Uids of one node; the configured base is a multiple of it.
pub const UIDS_PER_NODE: u32 = 10_000;
/// Nodes of one machine that can have a range.
const RANGES: u32 = 64;
/// Where the ranges that are taken are noted; it is emptied when the machine starts.
const RANGES_DIRECTORY: &str = "/run/callboard";
/// Holds the caches of sessions, one directory per kernel; they do not travel.
pub(super) const CACHES: &str = ".caches";
/// Lets others reach what is below by name; they cannot list it.
const PASSAGE: u32 = 0o711;
const PACKAGE: u32 = 0o755;
/// What is left of a mode for everything else.
const OWNERS_ONLY: u32 = 0o700;
/// How often processes that a uid left behind are looked for, until none is found.
const END_ROUNDS: u32 = 200;
const END_PAUSE: Duration = Duration::from_millis(2);

/// Hands out uids. Clones are handles to the same; the range is the node's until the last one goes.
#[derive(Debug, Clone)]
pub struct Isolation(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    first: u32,
    /// One kernel at a time looks for a free uid and takes it.
    handing_over: Mutex<()>,
    _range: Flock<File>,
}

impl PartialEq for Isolation {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Isolation {}

/// What a process is told of the user that it is to become.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct SessionUser {
    pub(super) uid: u32,
    home: PathBuf,
    caches: PathBuf,
}

impl Isolation {
    /// Makes kernels of this node run under uids from `base` on, if that can be. `owner` tells this
    /// node from others on the machine, `node_dir` holds the sessions' directories or not.
    ///
    /// # Errors
    /// A sentence that says why it cannot be.
    pub async fn prepare(
        base: u32,
        owner: &str,
        program: &Path,
        package_dir: &Path,
        node_dir: &Path,
        files: &FileOptions,
    ) -> Result<Self, String> {
        let cannot = |error: io::Error| format!("not isolated: {error}; see to it and restart");
        let (first, range) =
            take_range(Path::new(RANGES_DIRECTORY), base, owner).map_err(cannot)?;
        open_passages(node_dir, package_dir, &files.root).map_err(cannot)?;
        match isolation_problem(program, first, Some(package_dir), &files.root, &files.shared).await
        {
            Some(problem) => Err(problem),
            None => {
                Ok(Self(Arc::new(Inner { first, handing_over: Mutex::new(()), _range: range })))
            }
        }
    }

    /// Gives a kernel's directories to its uid, and ends what a former process of the kernel, or of
    /// one that had the uid before it, left running. Takes longer than an actor may.
    ///
    /// # Errors
    /// If no uid is free, or something cannot be given or ended.
    pub(super) fn hand_over(&self, session: &SessionConfig) -> io::Result<SessionUser> {
        let _one = self.0.handing_over.lock().unwrap_or_else(PoisonError::into_inner);
        let root = &session.directory.root;
        let holder = root.parent().unwrap_or(root);
        let name = root.file_name().unwrap_or_default();
        let caches = holder.join(CACHES).join(name);
        let uid = self.uid_of(root, holder)?;
        end_all_of(uid)?;
        give(root, uid)?;
        for path in [session.directory.aside(), session.packages.overlay.clone(), caches.clone()] {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(&path)?;
            if let Some(parent) = path.parent() {
                fs::set_permissions(parent, fs::Permissions::from_mode(PASSAGE))?;
            }
            give(&path, uid)?;
        }
        Ok(SessionUser { uid, home: root.clone(), caches })
    }

    /// The uid that owns the directory, or the lowest one that owns no other.
    fn uid_of(&self, root: &Path, holder: &Path) -> io::Result<u32> {
        let range = self.0.first..self.0.first + UIDS_PER_NODE;
        let name = root.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut taken = BTreeSet::new();
        for entry in fs::read_dir(holder)? {
            let entry = entry?;
            if !entry.file_name().to_string_lossy().starts_with(&name) {
                match entry.metadata() {
                    Ok(facts) => taken.insert(facts.uid()),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    Err(error) => return Err(error),
                };
            }
        }
        let present = fs::symlink_metadata(root)?.uid();
        if range.contains(&present) && !taken.contains(&present) {
            return Ok(present);
        }
        range.clone().find(|uid| !taken.contains(uid)).ok_or_else(|| {
            io::Error::other(format!("all {UIDS_PER_NODE} uids from {} on are in use", range.start))
        })
    }
}

/// Takes a range of uids that no other living node of the machine has; the one this node had, if it
/// is free.
fn take_range(directory: &Path, base: u32, owner: &str) -> io::Result<(u32, Flock<File>)> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let path = |first: u32| directory.join(format!("uids-{first}"));
    let all: Vec<u32> = (0..RANGES).map(|n| base + n * UIDS_PER_NODE).collect();
    let holder = |first: u32| fs::read_to_string(path(first)).unwrap_or_default();
    let own = all.iter().filter(|first| holder(**first) == owner);
    let fresh = all.iter().filter(|first| holder(**first).is_empty());
    for &first in own.chain(fresh).chain(&all) {
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(path(first))?;
        if let Ok(mut file) = Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            file.set_len(0)?;
            file.write_all(owner.as_bytes())?;
            return Ok((first, file));
        }
    }
    Err(io::Error::other(format!("{RANGES} nodes of this machine have uids from {base} on")))
}

/// Opens the way to what kernels need below the node's directory, for others to pass and not to list,
/// and closes everything else there.
fn open_passages(node_dir: &Path, package_dir: &Path, root: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(PASSAGE).create(root)?;
    let (node_dir, package_dir) = (path::absolute(node_dir)?, path::absolute(package_dir)?);
    for entry in fs::read_dir(&node_dir)? {
        let path = entry?.path();
        let facts = match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            facts => facts?,
        };
        if !facts.is_symlink() && path != package_dir && !root.starts_with(&path) {
            let mode = facts.permissions().mode() & OWNERS_ONLY;
            fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
        }
    }
    // Python lists the directories that it imports from.
    for (path, mode) in [(&*node_dir, PASSAGE), (root, PASSAGE), (&*package_dir, PACKAGE)] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    }
    Ok(())
}

/// Ends every process of a uid; a process that forks as fast as it is killed is met again.
fn end_all_of(uid: u32) -> io::Result<()> {
    for round in 0..END_ROUNDS {
        let mut found = false;
        for entry in fs::read_dir("/proc")? {
            let name = entry?.file_name();
            let Some(pid) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else {
                continue;
            };
            if runs_as(pid, uid) {
                found = true;
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
        if !found {
            return Ok(());
        }
        if round > 0 {
            std::thread::sleep(END_PAUSE);
        }
    }
    Err(io::Error::other(format!("processes of uid {uid} do not end")))
}

/// Whether a process that has not ended has a uid among its own. Who owns its directory in /proc
/// would not tell: that of one whose memory may not be dumped is root's.
fn runs_as(pid: i32, uid: u32) -> bool {
    let Ok(text) = fs::read_to_string(format!("/proc/{pid}/status")) else { return false };
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
    let has_ended = field("State:").is_some_and(|state| state.trim_start().starts_with(['Z', 'X']));
    let wanted = uid.to_string();
    !has_ended && field("Uid:").is_some_and(|uids| uids.split_whitespace().any(|it| it == wanted))
}

/// Whether this process may give others a uid.
#[must_use]
pub fn is_root() -> bool {
    Uid::effective().is_root()
}
