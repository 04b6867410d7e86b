//! Gives a directory and what is in it to another user, past whatever its former one does meanwhile.

use std::{
    fs::{self, OpenOptions},
    io,
    os::{
        fd::AsRawFd as _,
        unix::fs::{MetadataExt as _, OpenOptionsExt as _, fchown, lchown},
    },
    path::{Path, PathBuf},
};

use nix::fcntl::OFlag;

/// Gives a directory to `uid`, which becomes its group, too. One that is its already is left alone.
/// What is in it and belongs to a third user stays that one's: a link to a file of somebody else's
/// must not give that away.
pub(in crate::python) fn give(path: &Path, uid: u32) -> io::Result<()> {
    let facts = fs::symlink_metadata(path)?;
    if facts.uid() == uid && facts.gid() == uid {
        return Ok(());
    }
    give_from(path, facts.uid(), uid)
}

/// The directory itself comes last, so that one that was not finished is begun again.
fn give_from(path: &Path, from: u32, uid: u32) -> io::Result<()> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
    let directory = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path)?;
    // By its descriptor, a directory cannot be exchanged for a link to another one.
    let here = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()));
    for entry in fs::read_dir(&here)? {
        let path = here.join(entry?.file_name());
        let facts = match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            facts => facts?,
        };
        if facts.uid() != from {
            continue;
        }
        if facts.is_dir() {
            give_from(&path, from, uid)?;
        } else {
            lchown(&path, Some(uid), Some(uid))?;
        }
    }
    fchown(&directory, Some(uid), Some(uid))
}
