//! Whether the Python here can run kernels, and what to do if it cannot.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, SystemTime},
};

use callboard_kernel::{KernelPrograms, python::ENVIRONMENT_PROGRAM};
use callboard_protocol::environment::Environment;
use serde::Deserialize;
use tokio::process::Command;

/// How long the check may take: importing ipykernel from a cold disk takes seconds.
const CHECK_WITHIN: Duration = Duration::from_secs(30);
/// The oldest Python that kernels run on.
const VERSION_MIN: (u32, u32) = (3, 10);
/// Longest part of Python's own words that is shown.
const DETAIL_LENGTH_MAX: usize = 200;

/// Prints the version, then imports what a kernel needs.
const PROBE: &str = "import sys; print(*sys.version_info[:2], flush=True)\n\
    import ipykernel, cloudpickle; print('ok', flush=True)";

/// What the interpreter lacks to run kernels, as a sentence with a next step; `None` if it can.
pub async fn check_python(program: &Path) -> Option<String> {
    let shown = program.display();
    let run =
        Command::new(program).args(["-c", PROBE]).stdin(Stdio::null()).kill_on_drop(true).output();
    let output = match tokio::time::timeout(CHECK_WITHIN, run).await {
        Err(_) => {
            let limit_s = CHECK_WITHIN.as_secs();
            return Some(format!(
                "{shown} did not import ipykernel within {limit_s} s: try it by hand"
            ));
        }
        Ok(Err(error)) => {
            return Some(format!(
                "{shown} cannot be started ({error}): install Python 3.10 or newer, or give --python"
            ));
        }
        Ok(Ok(output)) => output,
    };
    let said = String::from_utf8_lossy(&output.stdout);
    let mut lines = said.lines();
    let version = lines.next().and_then(|line| {
        let (major, minor) = line.split_once(' ')?;
        Some((major.parse::<u32>().ok()?, minor.trim().parse::<u32>().ok()?))
    });
    match version {
        None => Some(format!("{shown} does not behave like Python: give --python")),
        Some(version) if version < VERSION_MIN => Some(format!(
            "{shown} is Python {}.{}, kernels need {}.{} or newer: install it, or give --python",
            version.0, version.1, VERSION_MIN.0, VERSION_MIN.1
        )),
        Some(_) if lines.next() == Some("ok") => None,
        Some(_) => {
            let error = String::from_utf8_lossy(&output.stderr);
            let detail: String =
                error.trim().lines().last().unwrap_or("").chars().take(DETAIL_LENGTH_MAX).collect();
            Some(format!(
                "{shown} lacks a package that kernels need ({detail}): \
                 run `{shown} -m pip install ipykernel cloudpickle`, or give --python"
            ))
        }
    }
}

/// A Python environment and what to look at to see that it changed.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Installed {
    pub(crate) environment: Environment,
    /// How kernels of other languages are started here.
    pub(crate) programs: KernelPrograms,
    /// Where packages are installed.
    directories: Vec<PathBuf>,
}

impl Installed {
    /// Asks the interpreter.
    ///
    /// # Errors
    /// A sentence if it cannot tell.
    pub(crate) async fn read(program: &Path) -> Result<Self, String> {
        let fail = |why: String| {
            let program = program.display();
            format!("{program} does not tell what is installed ({why}): try it by hand")
        };
        let run = Command::new(program)
            .args(["-c", ENVIRONMENT_PROGRAM])
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let output = tokio::time::timeout(CHECK_WITHIN, run)
            .await
            .map_err(|_| fail(format!("no answer within {} s", CHECK_WITHIN.as_secs())))?
            .map_err(|error| fail(error.to_string()))?;
        serde_json::from_slice(&output.stdout).map_err(|error| fail(error.to_string()))
    }

    /// The times of change of its directories.
    pub(crate) fn changed(&self) -> Vec<Option<SystemTime>> {
        let times = self.directories.iter();
        times.map(|path| path.metadata().and_then(|it| it.modified()).ok()).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _, path::PathBuf};

    use super::*;

    fn script(directory: &Path, name: &str, body: &str) -> PathBuf {
        let path = directory.join(name);
        fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[tokio::test]
    async fn an_environment_is_read_and_a_new_package_changes_it() {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path();
        let site = at.join("site");
        fs::create_dir_all(site.join("Some_Thing-1.2.dist-info")).unwrap();
        let body = format!("PYTHONPATH={} exec python3 \"$@\"", site.display());
        let program = script(at, "python", &body);
        let first = Installed::read(&program).await.unwrap();
        assert_eq!(first.environment.distributions.get("some-thing").unwrap(), "1.2");
        let before = first.changed();
        fs::create_dir(site.join("more-1.dist-info")).unwrap();
        assert_ne!(first.changed(), before);
        let second = Installed::read(&program).await.unwrap();
        assert_ne!(second.environment.id, first.environment.id);
        let silent = Installed::read(&script(at, "silent", "true")).await.unwrap_err();
        assert!(silent.contains("does not tell what is installed"), "{silent}");
    }

    #[tokio::test]
    async fn what_python_lacks_is_named_with_a_next_step() {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path();
        let missing = check_python(&at.join("nowhere")).await.unwrap();
        assert!(missing.contains("cannot be started") && missing.contains("--python"), "{missing}");
        let old = check_python(&script(at, "old", "echo 3 9; echo ok")).await.unwrap();
        assert!(old.contains("is Python 3.9, kernels need 3.10"), "{old}");
        let body =
            "echo 3 12; echo \"ModuleNotFoundError: No module named 'ipykernel'\" >&2; exit 1";
        let bare = check_python(&script(at, "bare", body)).await.unwrap();
        assert!(bare.contains("No module named 'ipykernel'"), "{bare}");
        assert!(bare.contains("-m pip install ipykernel cloudpickle"), "{bare}");
        let other = check_python(&script(at, "other", "echo hello")).await.unwrap();
        assert!(other.contains("does not behave like Python"), "{other}");
        assert_eq!(check_python(&script(at, "good", "echo 3 12; echo ok")).await, None);
    }
}
