//! Whether kernels can run under other uids here: who may read the interpreter and its packages.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tokio::process::Command;

use super::is_root;

/// Importing ipykernel from a cold disk takes seconds.
const PROBE_WITHIN: Duration = Duration::from_secs(30);
/// Longest part of Python's own words that is shown.
const DETAIL_LENGTH_MAX: usize = 200;
const PROBE: &str = "import os, sys, ipykernel.kernelapp, cloudpickle\n\
    if len(sys.argv) > 1:\n    import callboard_kernel.kernel, callboard_kernel.environment\n\
    print('ok')";

/// Why kernels that `program` runs cannot have uids from `uid` on, as a sentence; `None` if they
/// can. `package_dir` is what [`super::super::unpack_package`] returned, if that is there; `root`
/// holds the directories of sessions, or will; `shared` are the directories that every node sees.
pub async fn isolation_problem(
    program: &Path,
    uid: u32,
    package_dir: Option<&Path>,
    root: &Path,
    shared: &[PathBuf],
) -> Option<String> {
    if !is_root() {
        return Some(
            "not isolated: kernels run as the node's user, and may read its files; run the node as \
             root to give each a uid of its own"
                .to_owned(),
        );
    }
    if let Some(shared) = shared.first() {
        return Some(format!(
            "not isolated: kernels keep files in {} (shared_directories), which would be another \
             user's wherever they move, as each node gives uids of its own; set kernel_uid_base = 0 \
             if that is meant, or remove shared_directories",
            shared.display()
        ));
    }
    if let Some((_, closed)) = closed_to_others(root) {
        return Some(format!(
            "not isolated: {} cannot be entered by other users, so that kernels would not reach \
             their directories; choose another --data or session_directory, or `chmod o+x` it",
            closed.display()
        ));
    }
    let python_is = "install Python where everybody can read it, such as /usr/bin/python3";
    if let Some((path, closed)) = closed_to_others(program) {
        return Some(format!(
            "not isolated: {} cannot be read by other users, as {} is closed to them; {python_is}",
            path.display(),
            closed.display()
        ));
    }
    let why = run_as(program, uid, package_dir).await.err()?;
    Some(format!(
        "not isolated: {} does not run under another uid ({why}); {python_is}",
        program.display()
    ))
}

/// The path, or the one that it links to, on whose way is a directory that others may not enter, and
/// the first such directory.
fn closed_to_others(path: &Path) -> Option<(PathBuf, PathBuf)> {
    let mut path = std::path::absolute(path).ok()?;
    // A link of a link, as those of virtual environments are, has a way at each step.
    for _ in 0..40 {
        let mut way: Vec<&Path> = path.ancestors().skip(1).collect();
        way.reverse();
        let is_closed = |folder: &&&Path| {
            fs::metadata(folder).is_ok_and(|facts| facts.permissions().mode() & 0o001 == 0)
        };
        if let Some(closed) = way.iter().find(is_closed) {
            return Some((path.clone(), closed.to_path_buf()));
        }
        let Ok(target) = fs::read_link(&path) else { break };
        path = path.parent().unwrap_or(Path::new("/")).join(target);
    }
    None
}

async fn run_as(program: &Path, uid: u32, package_dir: Option<&Path>) -> Result<(), String> {
    let mut command = Command::new(program);
    command.args(["-c", PROBE]).args(package_dir.map(|_| "package"));
    if let Some(package_dir) = package_dir {
        command.env("PYTHONPATH", package_dir);
    }
    // Setting the uid drops the supplementary groups, too.
    command.uid(uid).gid(uid).current_dir("/").env("HOME", "/nonexistent");
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = match tokio::time::timeout(PROBE_WITHIN, command.output()).await {
        Err(_) => return Err(format!("no answer within {} s", PROBE_WITHIN.as_secs())),
        Ok(output) => output.map_err(|error| error.to_string())?,
    };
    if output.status.success() && output.stdout.ends_with(b"ok\n") {
        return Ok(());
    }
    let error = String::from_utf8_lossy(&output.stderr);
    let last = error.trim().lines().last().unwrap_or("it printed nothing");
    Err(last.chars().take(DETAIL_LENGTH_MAX).collect())
}
