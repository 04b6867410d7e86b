//! Debian's own Python with its scikit-learn, and beside it the kernel of both sides and the programs
//! that run notebooks, in an environment of the benches of notebooks.
//!
//! Notebooks run without a network: one that wants data from elsewhere fails at once.

use std::{
    env, fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Stdio,
};

use nix::unistd::geteuid;
use sha2::{Digest as _, Sha256};
use tokio::process::Command;

use crate::{exit::Failure, output::say};

/// The Python that Debian's packages are for.
const DEBIAN_PYTHON: &str = "/usr/bin/python3";
/// What the notebooks are in, and what they import.
const PACKAGES: [&str; 7] = [
    "python-sklearn-doc",
    "python3-venv",
    "python3-sklearn",
    "python3-matplotlib",
    "python3-pandas",
    "python3-seaborn",
    "python3-skimage",
];
/// What is installed from PyPI, pinned and hashed.
const LOCK: &str = include_str!("../../../../../python/requirements-notebooks.lock");
/// Holds the digest of the lock that is installed.
const STAMP: &str = "callboard-lock.sha256";
/// Fills matplotlib's font cache, so that no notebook says that it does.
const WARM_UP: &str = "import matplotlib.font_manager";

/// The environment of a default run.
fn directory_default() -> PathBuf {
    let cache = env::var_os("XDG_CACHE_HOME").filter(|dir| !dir.is_empty()).map(PathBuf::from);
    let home = || env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    cache.or_else(home).unwrap_or_else(env::temp_dir).join("callboard/notebooks")
}

/// Where notebooks, and the programs that run them, find Python.
#[derive(Debug, Clone)]
pub(in crate::bench) struct Environment {
    /// What kernels run on: without a network where that can be.
    pub(in crate::bench) kernels: PathBuf,
    /// What front-ends run on, with the network that leads them to the cluster.
    pub(in crate::bench) programs: PathBuf,
}

impl Environment {
    /// A Python that somebody named, for everything. Programs and kernels start in other directories.
    fn of(python: &Path) -> Self {
        let is_path = python.components().count() > 1;
        let whole = std::path::absolute(python).ok().filter(|_| is_path);
        let python = whole.unwrap_or_else(|| python.to_owned());
        Self { kernels: python.clone(), programs: python }
    }

    fn made_in(directory: &Path, launcher: PathBuf) -> Self {
        Self { kernels: launcher, programs: directory.join("venv/bin/python") }
    }
}

/// The environment of a bench: `named` as it is, or one in `directory`, made if it is not there yet.
///
/// # Errors
/// A [`Failure`] that says what is missing and how to install it.
pub(in crate::bench) async fn prepare(
    named: Option<&Path>,
    directory: Option<&Path>,
) -> Result<Environment, Failure> {
    if let Some(python) = named {
        return Ok(Environment::of(python));
    }
    let directory = directory.map_or_else(directory_default, Path::to_owned);
    make(&directory).await
}

/// Makes the environment in `directory`, or finds it made.
async fn make(directory: &Path) -> Result<Environment, Failure> {
    debian_packages().await?;
    fs::create_dir_all(directory).map_err(|error| {
        let shown = directory.display();
        Failure::environment(format!("cannot make {shown}: {error}; name another with --env"))
    })?;
    let directory = fs::canonicalize(directory).map_err(Failure::environment)?;
    let digest = hex::encode(Sha256::digest(LOCK));
    let stamp = directory.join(STAMP);
    if fs::read_to_string(&stamp).is_ok_and(|installed| installed == digest) {
        return Ok(Environment::made_in(&directory, launcher(&directory).await?));
    }
    let _ = fs::remove_file(&stamp);
    install(&directory).await?;
    let program = launcher(&directory).await?;
    run(Command::new(&program).args(["-c", WARM_UP]), "fill matplotlib's font cache").await?;
    fs::write(stamp, digest).map_err(Failure::environment)?;
    Ok(Environment::made_in(&directory, program))
}

/// Installs the Debian packages that are missing, if this is root; else says which.
async fn debian_packages() -> Result<(), Failure> {
    let mut missing = Vec::new();
    for package in PACKAGES {
        let asked = Command::new("dpkg-query")
            .args(["-W", "-f", "${db:Status-Abbrev}", package])
            .stderr(Stdio::null())
            .output()
            .await;
        let status = asked.map_err(|error| {
            let why = format!("dpkg-query does not run here ({error})");
            Failure::environment(format!("{why}: this bench needs Debian's own packages"))
        })?;
        if !status.stdout.starts_with(b"ii") {
            missing.push(package);
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if !geteuid().is_root() {
        return Err(Failure::environment(format!(
            "Debian packages are missing: run `sudo apt-get install --no-install-recommends {list}`, then this again"
        )));
    }
    say(&format!("installing Debian packages, once: {list}"));
    run(Command::new("apt-get").args(["-q", "update"]), "update the list of packages").await?;
    let mut install = Command::new("apt-get");
    install.args(["-q", "install", "-y", "--no-install-recommends"]).args(&missing);
    install.env("DEBIAN_FRONTEND", "noninteractive");
    run(&mut install, "install the packages").await
}

/// Makes the virtual environment and installs what the lock names.
async fn install(directory: &Path) -> Result<(), Failure> {
    let names: Vec<&str> = LOCK
        .lines()
        .filter(|line| !line.starts_with([' ', '#']))
        .filter_map(|line| Some(line.split_once("==")?.0))
        .collect();
    let shown = directory.display();
    say(&format!("installing into {shown}, from PyPI, once: {}", names.join(" ")));
    let lock = directory.join("requirements.lock");
    fs::write(&lock, LOCK).map_err(Failure::environment)?;
    let venv = directory.join("venv");
    let mut make = Command::new(DEBIAN_PYTHON);
    make.args(["-m", "venv", "--clear", "--system-site-packages"]).arg(&venv);
    run(&mut make, "make a virtual environment").await?;
    let mut pip = Command::new(venv.join("bin/python"));
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]);
    pip.args(["--require-hashes", "--only-binary", ":all:", "-r"]).arg(&lock);
    run(&mut pip, "install the kernel and the front-ends").await
}

/// Writes the program that notebooks run on: the environment's Python, one thread for libraries, no
/// network, no data of the user.
async fn launcher(directory: &Path) -> Result<PathBuf, Failure> {
    let mut isolation = "";
    for candidate in ["unshare -n --", "unshare -rn --"] {
        let mut words = candidate.split(' ');
        let mut probe = Command::new(words.next().unwrap_or_default());
        let works = probe.args(words).arg("true").stderr(Stdio::null()).status().await;
        if works.is_ok_and(|status| status.success()) {
            isolation = candidate;
            break;
        }
    }
    let text = launcher_text(directory, isolation)?;
    let program = directory.join("python");
    fs::write(&program, text).map_err(Failure::environment)?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))
        .map_err(Failure::environment)?;
    Ok(program)
}

fn launcher_text(directory: &Path, isolation: &str) -> Result<String, Failure> {
    let shown = directory.display().to_string();
    if shown.contains('\'') {
        let text = format!("{shown} has a quote in its name; name another with --env");
        return Err(Failure::usage(text));
    }
    // Where a namespace without a network is not allowed, a proxy that nobody is does for libraries.
    Ok(format!(
        "#!/bin/sh
# Written by `callboard bench` at each run.
export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
export MPLCONFIGDIR='{shown}/matplotlib' SCIKIT_LEARN_DATA='{shown}/scikit-learn-data'
export http_proxy=http://127.0.0.1:9 https_proxy=http://127.0.0.1:9 no_proxy=
exec {isolation} '{shown}/venv/bin/python' \"$@\"
"
    ))
}

/// Runs a command whose output goes to stderr. It is not killed with the bench: half an installation
/// is worse than a late end.
async fn run(command: &mut Command, what: &str) -> Result<(), Failure> {
    let output = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let fail = |why: &str| Failure::environment(format!("could not {what}: {why}"));
    let output = output.output().await.map_err(|error| fail(&error.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(fail(said.lines().last().unwrap_or("it said nothing; check network and disk space")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_launcher_names_the_environment_and_cuts_the_network() {
        let text = launcher_text(Path::new("/e"), "unshare -n --").unwrap();
        assert!(text.contains("exec unshare -n -- '/e/venv/bin/python' \"$@\""), "{text}");
        let refused = launcher_text(Path::new("/it's"), "").unwrap_err();
        assert!(refused.message.contains("--env"), "{}", refused.message);
    }

    #[test]
    fn a_python_that_is_named_by_a_path_is_found_from_everywhere() {
        assert!(Environment::of(Path::new("venv/bin/python")).programs.is_absolute());
        assert_eq!(Environment::of(Path::new("python3")).kernels, Path::new("python3"));
    }

    #[test]
    fn both_locks_pin_the_same_kernel() {
        let own = include_str!("../../../../../python/requirements.lock");
        for package in ["ipykernel==", "cloudpickle=="] {
            let pins = |lock: &'static str| -> Vec<&str> {
                lock.lines().filter(|line| line.starts_with(package)).collect()
            };
            assert!(!pins(LOCK).is_empty());
            assert_eq!(pins(LOCK), pins(own));
        }
    }
}
