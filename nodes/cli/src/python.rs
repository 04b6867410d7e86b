//! Which Python kernels run on, and whether it can.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use serde::Deserialize;

use crate::{config::given, exit::Failure};

/// Oldest Python that kernels run on.
const VERSION_MIN: (u32, u32) = (3, 10);

/// Prints what kernels need, as JSON.
const PROBE: &str = r"
import json, sys
from importlib.metadata import version, PackageNotFoundError
def v(name):
    try: return version(name)
    except PackageNotFoundError: return None
print(json.dumps({'major': sys.version_info[0], 'minor': sys.version_info[1],
    'version': sys.version.split()[0], 'ipykernel': v('ipykernel'), 'cloudpickle': v('cloudpickle')}))
";

/// What a Python environment has.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct PythonFacts {
    major: u32,
    minor: u32,
    /// Its version, in full.
    pub version: String,
    /// The version of ipykernel, if it is installed.
    pub ipykernel: Option<String>,
    /// The version of cloudpickle, if it is installed.
    pub cloudpickle: Option<String>,
}

impl PythonFacts {
    /// What it lacks to run kernels, with a next step.
    #[must_use]
    pub fn problem(&self, program: &Path) -> Option<String> {
        let program = program.display();
        if (self.major, self.minor) < VERSION_MIN {
            return Some(format!(
                "{program} is Python {}, but {}.{} or newer is needed: name another with --python",
                self.version, VERSION_MIN.0, VERSION_MIN.1
            ));
        }
        let wanted = [("ipykernel", &self.ipykernel), ("cloudpickle", &self.cloudpickle)];
        let missing: Vec<&str> =
            wanted.iter().filter(|(_, has)| has.is_none()).map(|(name, _)| *name).collect();
        (!missing.is_empty()).then(|| {
            format!(
                "{program} lacks {}: run `make setup`, or `{program} -m pip install {}`",
                missing.join(" and "),
                missing.join(" ")
            )
        })
    }
}

/// The Python to use: the one configured, else `.venv/bin/python` in or above the current and the
/// executable's folder, else `python3` on the `PATH`.
///
/// # Errors
/// A [`Failure`] if there is none.
pub fn find_python(configured: &Path) -> Result<PathBuf, Failure> {
    if let Some(program) = given(configured) {
        if program.is_file() {
            return std::path::absolute(program).map_err(Failure::environment);
        }
        return Err(Failure::environment(format!(
            "there is no Python at {}: check --python, CALLBOARD_PYTHON_PROGRAM and python_program",
            program.display()
        )));
    }
    let starts = [env::current_dir().ok(), env::current_exe().ok()];
    let above = starts.iter().flatten().flat_map(|start| start.ancestors());
    let mut candidates: Vec<PathBuf> =
        above.map(|folder| folder.join(".venv/bin/python")).collect();
    if let Some(path) = env::var_os("PATH") {
        candidates.extend(env::split_paths(&path).map(|folder| folder.join("python3")));
    }
    candidates.into_iter().find(|path| path.is_file()).ok_or_else(|| {
        Failure::environment(
            "found no Python (looked for .venv/bin/python here and above, and python3 on PATH): run `make setup`, or name one with --python",
        )
    })
}

/// Asks a Python what it has.
///
/// # Errors
/// A sentence if it cannot be run.
pub fn probe(program: &Path) -> Result<PythonFacts, String> {
    let fail = |why: String| format!("{} cannot be run as Python: {why}", program.display());
    let output = Command::new(program)
        .args(["-c", PROBE])
        .output()
        .map_err(|error| fail(error.to_string()))?;
    serde_json::from_slice(&output.stdout).map_err(|_| {
        let said = String::from_utf8_lossy(&output.stderr);
        fail(said.lines().last().unwrap_or("it printed nothing").to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_python_lacks_is_named_with_a_command_to_install_it() {
        let facts = |minor, ipykernel: Option<&str>| PythonFacts {
            major: 3,
            minor,
            version: format!("3.{minor}.1"),
            ipykernel: ipykernel.map(str::to_owned),
            cloudpickle: Some("3.1".to_owned()),
        };
        let program = Path::new("/p/python");
        assert_eq!(facts(10, Some("7")).problem(program), None);
        assert!(facts(9, Some("7")).problem(program).unwrap().contains("3.10 or newer"));
        let lacking = facts(12, None).problem(program).unwrap();
        assert!(lacking.contains("/p/python -m pip install ipykernel"), "{lacking}");
    }
}
