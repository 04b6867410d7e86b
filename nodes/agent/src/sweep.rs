//! Ends what a former life of this node left behind: kernel processes and sockets.
//!
//! A process is ended only if its pid file is ours and its environment or command line names our
//! run directory: a pid that was given to someone else since is left alone.

use std::{
    fs, io,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};

/// What was swept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Swept {
    /// Processes ended, by id.
    pub processes: Vec<i32>,
    /// Files and directories removed.
    pub files: usize,
}

/// Sweeps a run directory. The caller holds the data directory's lock, so that no living node uses
/// it.
///
/// # Errors
/// If the directory cannot be read or emptied.
pub fn sweep(run_dir: &Path) -> io::Result<Swept> {
    let run_dir = fs::canonicalize(run_dir)?;
    let mut swept = Swept::default();
    for path in entries(&run_dir)? {
        if path.extension().is_some_and(|it| it == "pid")
            && let Some(pid) = left_over(&path, &run_dir)
            && killpg(Pid::from_raw(pid), Signal::SIGKILL).is_ok()
        {
            swept.processes.push(pid);
        }
    }
    for path in entries(&run_dir)? {
        let is_dir = fs::symlink_metadata(&path)?.is_dir();
        if is_dir {
            fs::remove_dir_all(&path)?
        } else {
            fs::remove_file(&path)?
        }
        swept.files += 1;
    }
    Ok(swept)
}

fn entries(directory: &Path) -> io::Result<Vec<PathBuf>> {
    fs::read_dir(directory)?.map(|entry| Ok(entry?.path())).collect()
}

/// The process a pid file names, if it runs and is one of ours.
fn left_over(pid_file: &Path, run_dir: &Path) -> Option<i32> {
    let pid: i32 = fs::read_to_string(pid_file).ok()?.split_whitespace().next()?.parse().ok()?;
    if pid <= 1 {
        return None;
    }
    let names_us = |file: &str| {
        let content = fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        let wanted = run_dir.as_os_str().as_bytes();
        content.windows(wanted.len()).any(|window| window == wanted)
    };
    (names_us("environ") || names_us("cmdline")).then_some(pid)
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::process::{CommandExt as _, ExitStatusExt as _},
        process::{Child, Command},
    };

    use super::*;

    /// A process that can be read: `spawn` returns as soon as `exec` has left the parent's memory,
    /// and a moment later the kernel says where the new environment lies; until then it is empty.
    fn sleeper(mark: &Path) -> Child {
        let sleeper = Command::new("sleep")
            .arg("600")
            .env("CALLBOARD_RUN", mark)
            .process_group(0)
            .spawn()
            .unwrap();
        while fs::read(format!("/proc/{}/environ", sleeper.id())).unwrap().is_empty() {
            std::thread::yield_now();
        }
        sleeper
    }

    #[test]
    fn only_our_own_left_over_processes_are_ended_and_the_directory_is_empty_after() {
        let directory = tempfile::tempdir().unwrap();
        let run = fs::canonicalize(directory.path()).unwrap();
        let mut ours = sleeper(&run.join("kernel-1"));
        let mut stranger = sleeper(Path::new("/elsewhere"));
        fs::write(run.join("a.pid"), ours.id().to_string()).unwrap();
        fs::write(run.join("b.pid"), stranger.id().to_string()).unwrap();
        fs::write(run.join("c.pid"), "junk").unwrap();
        fs::create_dir(run.join("sockets")).unwrap();
        fs::write(run.join("sockets/s"), "").unwrap();
        let swept = sweep(&run).unwrap();
        assert_eq!(swept.processes, [i32::try_from(ours.id()).unwrap()]);
        assert_eq!(swept.files, 4);
        assert_eq!(ours.wait().unwrap().signal(), Some(9));
        assert_eq!(stranger.try_wait().unwrap(), None, "the stranger lives");
        assert_eq!(fs::read_dir(&run).unwrap().count(), 0);
        stranger.kill().unwrap();
        stranger.wait().unwrap();
    }
}
