//! The programs that run notebooks, and the kernels that they are given: plain ipykernel, Callboard's
//! kernelspec, Callboard's gateway.

use std::{
    fs,
    fs::File,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use serde_json::{Value, json};
use tokio::{
    process::Command,
    time::{Instant, timeout},
};

use super::executed::Executed;
use crate::{
    bench::{
        local_cluster::LocalCluster,
        notebooks::{environment::Environment, library::Notebook},
        websocket::http,
    },
    exit::{Exit, Failure},
};

/// Runs a notebook with a program.
const RUN: &str = include_str!("run.py");
/// The kernel manager with which programs go through a gateway.
const GATEWAY_MANAGER: &str = "jupyter_server.gateway.managers.GatewayKernelManager";
/// What of the user's environment would choose another kernel, or another cluster.
const NOT_PASSED_ON: [&str; 6] = [
    "CALLBOARD_CONTEXT",
    "CALLBOARD_KERNEL",
    "KERNEL_ID",
    "JUPYTER_GATEWAY_URL",
    "JUPYTER_GATEWAY_AUTH_TOKEN",
    "JUPYTER_GATEWAY_WS_URL",
];

/// A program that runs notebooks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Program {
    Nbconvert,
    Nbclient,
    Papermill,
}

impl Program {
    pub(super) const ALL: [Self; 3] = [Self::Nbconvert, Self::Nbclient, Self::Papermill];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Nbconvert => "nbconvert",
            Self::Nbclient => "nbclient",
            Self::Papermill => "papermill",
        }
    }
}

/// Whose kernel a program uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Side {
    /// Plain ipykernel.
    Plain,
    /// Callboard's, by its kernelspec.
    Proxy,
    /// Callboard's, through its gateway, with a token.
    Gateway,
}

impl Side {
    pub(super) const ALL: [Self; 3] = [Self::Plain, Self::Proxy, Self::Gateway];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Proxy => "proxy",
            Self::Gateway => "gateway",
        }
    }

    /// Kernelspec, kernel manager and transport. A plain kernel without a network is reached by files.
    fn kernel(self) -> [&'static str; 3] {
        match self {
            Self::Plain => ["python3", "", "ipc"],
            Self::Proxy => ["callboard", "", "tcp"],
            Self::Gateway => ["python3", GATEWAY_MANAGER, ""],
        }
    }
}

/// What programs need to find their kernels.
#[derive(Debug)]
pub(super) struct Programs {
    python: PathBuf,
    /// Jupyter's folders, of these programs alone.
    home: PathBuf,
    /// What leads to the gateway, as docs/guides/nbconvert-papermill.md says.
    gateway: [(&'static str, String); 3],
}

impl Programs {
    /// Writes the kernelspecs, of plain ipykernel and of Callboard, and finds the gateway.
    ///
    /// # Errors
    /// A [`Failure`] if that does not work, or the gateway does not ask for a token.
    pub(super) async fn prepare(
        cluster: &LocalCluster,
        environment: &Environment,
    ) -> Result<Self, Failure> {
        // Kernels start in the folder of their notebook.
        let home = std::path::absolute(cluster.path().join("jupyter"))?;
        plain_kernelspec(&home, &environment.kernels).map_err(Failure::environment)?;
        callboard_kernelspec(&home, cluster.path()).await?;
        let gateway = gateway(cluster.path()).await?;
        Ok(Self { python: environment.programs.clone(), home, gateway })
    }

    /// Runs a notebook of `library` in `folder`, which is made; returns what it shows and the seconds
    /// that it took, the program's own start included.
    ///
    /// # Errors
    /// A sentence if the program does not end in time, or not well.
    pub(super) async fn run(
        &self,
        (program, side): (Program, Side),
        (library, notebook): (&Path, &Notebook),
        folder: &Path,
        within: Duration,
    ) -> Result<(Executed, f64), String> {
        let log = folder.join("said.txt");
        let start = Instant::now();
        let ran = async {
            fs::create_dir_all(folder)?;
            let mut command = self.command(program, side);
            // The sockets of the transport `ipc` are in the directory that program and kernel have in common.
            command.arg(std::path::absolute(library)?.join(&notebook.path)).arg(folder);
            command.current_dir(folder);
            let said = File::create(&log)?;
            command.stdin(Stdio::null()).stdout(said.try_clone()?).stderr(said).status().await
        };
        let ended = timeout(within, ran).await;
        let ended = ended.map_err(|_| format!("no end within {} s", within.as_secs()))?;
        let status = ended.map_err(|error| format!("it does not start: {error}"))?;
        if !status.success() {
            return Err(last_words(&log));
        }
        let seconds = start.elapsed().as_secs_f64();
        Ok((Executed::read(&folder.join("done.ipynb"), notebook.cells.len())?, seconds))
    }

    fn command(&self, program: Program, side: Side) -> Command {
        let mut command = Command::new(&self.python);
        command.args(["-c", RUN, program.name()]).args(side.kernel()).kill_on_drop(true);
        for variable in NOT_PASSED_ON {
            command.env_remove(variable);
        }
        // Nothing of the user's: neither kernelspecs nor settings.
        command.env("JUPYTER_PATH", self.home.join("share/jupyter"));
        command.env("JUPYTER_DATA_DIR", self.home.join("data"));
        command.env("JUPYTER_CONFIG_DIR", self.home.join("config"));
        command.env("JUPYTER_RUNTIME_DIR", self.home.join("run"));
        command.env("IPYTHONDIR", self.home.join("ipython"));
        if side == Side::Gateway {
            command.envs(self.gateway.iter().map(|(name, value)| (*name, value)));
        }
        command
    }
}

fn plain_kernelspec(home: &Path, python: &Path) -> std::io::Result<()> {
    let folder = home.join("share/jupyter/kernels/python3");
    fs::create_dir_all(&folder)?;
    let python = python.to_string_lossy();
    let spec = json!({
        "argv": [python, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": "Python 3 (ipykernel)",
        "language": "python",
    });
    fs::write(folder.join("kernel.json"), spec.to_string())
}

/// As a user installs it.
async fn callboard_kernelspec(home: &Path, data: &Path) -> Result<(), Failure> {
    let program = std::env::current_exe().map_err(Failure::environment)?;
    let mut command = Command::new(program);
    command.arg("--context").arg(data.join("credentials/gateway.json"));
    command.args(["kernelspec", "install", "--prefix"]).arg(home);
    let installed = command.stdin(Stdio::null()).output().await.map_err(Failure::environment)?;
    if installed.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&installed.stderr);
    Err(Failure::new(Exit::Failed, format!("the kernelspec was not installed: {}", said.trim())))
}

async fn gateway(data: &Path) -> Result<[(&'static str, String); 3], Failure> {
    let fail = |why: String| Failure::new(Exit::Failed, format!("the gateway: {why}"));
    let text = fs::read(data.join("credentials/jupyter.json"));
    let text = text.map_err(|error| fail(error.to_string()))?;
    let access: Value = serde_json::from_slice(&text).map_err(|error| fail(error.to_string()))?;
    let field = |name: &str| access[name].as_str().unwrap_or_default().to_owned();
    let (address, token) = (field("address"), field("token"));
    let socket = address.parse().map_err(|_| fail("it has no address".to_owned()))?;
    if http(socket, None, "GET", "/api/kernels").await.is_ok() {
        return Err(fail("it answers without a token, which is to be shown with one".to_owned()));
    }
    Ok(variables(field("url"), token))
}

/// What docs/guides/nbconvert-papermill.md exports.
fn variables(url: String, token: String) -> [(&'static str, String); 3] {
    let websocket = format!("ws{}/t/{token}", url.strip_prefix("http").unwrap_or(&url));
    [
        ("JUPYTER_GATEWAY_URL", url),
        ("JUPYTER_GATEWAY_AUTH_TOKEN", token),
        ("JUPYTER_GATEWAY_WS_URL", websocket),
    ]
}

/// What a program that failed said last.
fn last_words(log: &Path) -> String {
    let said = fs::read(log).unwrap_or_default();
    let said = String::from_utf8_lossy(&said);
    let last = said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("nothing");
    format!("it failed, and said: {last}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gateway_is_found_as_the_guide_says() {
        let guide = include_str!("../../../../../docs/guides/nbconvert-papermill.md");
        let found = variables("http://h:1".to_owned(), "tok".to_owned());
        assert_eq!(found[2].1, "ws://h:1/t/tok");
        let names = found.iter().map(|(name, _)| *name);
        for name in names.chain([GATEWAY_MANAGER]) {
            assert!(guide.contains(name), "{name}");
        }
        assert!(NOT_PASSED_ON[3..].iter().eq(found.iter().map(|(name, _)| name)));
    }

    #[test]
    fn a_program_that_fails_says_why_in_its_last_line() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("said.txt");
        assert_eq!(last_words(&log), "it failed, and said: nothing");
        fs::write(&log, "Traceback\nKeyError: 'x'\n\n").unwrap();
        assert_eq!(last_words(&log), "it failed, and said: KeyError: 'x'");
    }
}
