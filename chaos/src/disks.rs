//! A small file system of its own under each node's data directory, so that a disk can be full.
//!
//! Owns the images and their mounts; dropping it unmounts them. The images stay: what a failed
//! trial left is in them, and `mount -o loop` shows it.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::Command,
};

use nix::{
    fcntl::{FallocateFlags, fallocate},
    sys::statvfs::statvfs,
    unistd::Uid,
};

use crate::error::ChaosError;

/// Size of each, in bytes. Sparse: it takes what is written.
const IMAGE_BYTES: u64 = 1 << 30;
/// What fills it.
const BALLAST: &str = "ballast";
/// Written one after the other until even the smallest does not fit.
const CRUMBS: [usize; 3] = [64 << 10, 4 << 10, 1];

/// Why this machine cannot have them; `None` if it can.
#[must_use]
pub fn problem() -> Option<String> {
    if !Uid::effective().is_root() {
        return Some("small file systems for the nodes need root (loop devices)".to_owned());
    }
    let missing = ["mkfs.ext4", "mount", "umount"].into_iter().find(|program| {
        let probe = Command::new(program).arg("-V").output();
        probe.is_err()
    });
    if let Some(program) = missing {
        return Some(format!("there is no {program}: install util-linux and e2fsprogs"));
    }
    (!Path::new("/dev/loop-control").exists()).then(|| "this system has no loop devices".to_owned())
}

/// The file systems of a cluster.
#[derive(Debug)]
pub struct Disks {
    mounts: Vec<PathBuf>,
}

impl Disks {
    /// Makes one below each of `folders`, with its image in `images`.
    ///
    /// # Errors
    /// [`ChaosError::Command`] with what the system said.
    pub fn create(folders: &[PathBuf], images: &Path) -> Result<Self, ChaosError> {
        fs::create_dir_all(images).map_err(ChaosError::io("make", images))?;
        let mut this = Self { mounts: Vec::new() };
        for (number, folder) in (1..).zip(folders) {
            let image = images.join(format!("node-{number}.img"));
            let file = File::create(&image).map_err(ChaosError::io("make", &image))?;
            file.set_len(IMAGE_BYTES).map_err(ChaosError::io("enlarge", &image))?;
            fs::create_dir_all(folder).map_err(ChaosError::io("make", folder))?;
            // No blocks kept back for root, as which the nodes run.
            let make = ["-q", "-F", "-m", "0"].map(Path::new);
            run("mkfs.ext4", &[&make[..], &[&image]].concat())?;
            let mount = ["-o", "loop"].map(Path::new);
            run("mount", &[&mount[..], &[&image, folder]].concat())?;
            this.mounts.push(folder.clone());
        }
        Ok(this)
    }
}

impl Drop for Disks {
    fn drop(&mut self) {
        for mount in &self.mounts {
            // A process that still ends may hold it: then it goes with the process.
            let _ = run("umount", &[Path::new("-l"), mount]);
        }
    }
}

/// Fills the file system that `folder` is the root of, to its last byte.
///
/// # Errors
/// [`ChaosError::Io`].
pub fn fill(folder: &Path) -> Result<(), ChaosError> {
    let path = folder.join(BALLAST);
    let fail = |source| ChaosError::io("fill the disk with", &path)(source);
    let mut file = OpenOptions::new().create(true).append(true).open(&path).map_err(fail)?;
    let free = statvfs(folder).map_err(|errno| fail(errno.into()))?;
    let bytes = free.blocks_available().saturating_mul(free.fragment_size());
    // Some of it goes into the file system's own books; the crumbs below find what is left.
    let bulk = i64::try_from(bytes).unwrap_or(i64::MAX) / 64 * 63;
    if bulk > 0 {
        fallocate(&file, FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, bulk)
            .map_err(|errno| fail(errno.into()))?;
        file.set_len(bulk.unsigned_abs()).map_err(fail)?;
    }
    for crumb in CRUMBS {
        let crumb = vec![0; crumb];
        loop {
            match file.write_all(&crumb) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::StorageFull => break,
                Err(error) => return Err(fail(error)),
            }
        }
    }
    Ok(())
}

/// Removes what [`fill`] made.
///
/// # Errors
/// [`ChaosError::Io`].
pub fn free(folder: &Path) -> Result<(), ChaosError> {
    let path = folder.join(BALLAST);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(ChaosError::io("remove", &path)(error))
        }
        _ => Ok(()),
    }
}

fn run(program: &str, arguments: &[&Path]) -> Result<(), ChaosError> {
    let words: Vec<_> = arguments.iter().map(|word| word.display().to_string()).collect();
    let fail = |why: String| ChaosError::Command {
        command: format!("{program} {}", words.join(" ")),
        why,
    };
    let output =
        Command::new(program).args(arguments).output().map_err(|error| fail(error.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    Err(fail(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}
