//! The peer: Jupyter Kernel Gateway with default settings, asked over its websocket; as it ships, or with
//! TCP_NODELAY on what it accepts.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tokio::{
    net::TcpListener,
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};

use super::websocket::{KernelSocket, http};
use crate::{
    exit::{Exit, Failure},
    output::say,
};

/// How long the gateway, and then its kernel, may take to come up.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// Pause between questions to a gateway that comes up.
const READY_POLL: Duration = Duration::from_millis(100);
/// Runs the gateway with TCP_NODELAY on every connection that it accepts.
const WITH_NODELAY: &str = "
import socket
accept = socket.socket.accept
def accept_with_nodelay(self):
    connection, address = accept(self)
    if connection.family in (socket.AF_INET, socket.AF_INET6):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection, address
socket.socket.accept = accept_with_nodelay
# Tornado turns it off again after each answer.
from tornado.iostream import IOStream
set_nodelay = IOStream.set_nodelay
IOStream.set_nodelay = lambda self, value: set_nodelay(self, True)
from kernel_gateway import launch_instance
launch_instance()
";

/// A gateway with one kernel, and a websocket to it. Dropping it kills both.
#[derive(Debug)]
pub(super) struct KernelGateway {
    process: Process,
    /// A websocket to its kernel.
    pub(super) socket: KernelSocket,
}

/// Installs the gateway into the project's Python environment if it is missing.
///
/// # Errors
/// A [`Failure`] if it cannot be installed.
pub(super) async fn ensure_installed(python: &Path) -> Result<(), Failure> {
    if has_gateway(python).await {
        return Ok(());
    }
    let Some(script) = setup_script(python) else {
        return Err(Failure::environment(format!(
            "{} lacks the benchmark peer: run `{} -m pip install jupyter-kernel-gateway`, or use the environment that `make setup` makes",
            python.display(),
            python.display()
        )));
    };
    say(&format!(
        "the benchmark peer, Jupyter Kernel Gateway, is missing: {} --bench installs it",
        script.display()
    ));
    let status = Command::new(&script).arg("--bench").stdout(Stdio::null()).status().await;
    if !status.is_ok_and(|status| status.success()) || !has_gateway(python).await {
        return Err(Failure::environment(format!(
            "the benchmark peer could not be installed: see above, then run `{} --bench`",
            script.display()
        )));
    }
    Ok(())
}

async fn has_gateway(python: &Path) -> bool {
    let found = Command::new(python)
        .args([
            "-c",
            "import importlib.util as u; raise SystemExit(u.find_spec('kernel_gateway') is None)",
        ])
        .stderr(Stdio::null())
        .status();
    found.await.is_ok_and(|status| status.success())
}

/// `scripts/setup` of the checkout whose `.venv` the Python is.
fn setup_script(python: &Path) -> Option<PathBuf> {
    let script = python.parent()?.parent()?.parent()?.join("scripts/setup");
    script.is_file().then_some(script)
}

impl KernelGateway {
    /// Starts a gateway on a free port, a kernel on it, and connects.
    ///
    /// # Errors
    /// A [`Failure`] if any of that does not work.
    pub(super) async fn start(
        python: &Path,
        directory: &Path,
        nodelay: bool,
    ) -> Result<Self, Failure> {
        let log = directory.join(if nodelay {
            "kernel-gateway-nodelay.log"
        } else {
            "kernel-gateway.log"
        });
        let fail = |why: String| {
            let log = std::fs::read_to_string(&log).unwrap_or_default();
            let last = log.lines().last().unwrap_or("it logged nothing");
            Failure::new(
                Exit::Failed,
                format!("Jupyter Kernel Gateway: {why}; its log ends: {last}"),
            )
        };
        let address = free_address().await.map_err(|error| fail(error.to_string()))?;
        let process = Process::spawn(python, address.port(), &log, nodelay)
            .map_err(|error| fail(error.to_string()))?;
        let until = Instant::now() + READY_WITHIN;
        while http(address, None, "GET", "/api").await.is_err() {
            if Instant::now() >= until {
                return Err(fail(format!("not up within {} s", READY_WITHIN.as_secs())));
            }
            sleep(READY_POLL).await;
        }
        let kernel = http(address, None, "POST", "/api/kernels").await.map_err(&fail)?;
        let id = kernel["id"].as_str().ok_or_else(|| fail(format!("it answered {kernel}")))?;
        let socket = KernelSocket::connect(address, None, id).await.map_err(&fail)?;
        Ok(Self { process, socket })
    }

    /// Ends the gateway and its kernel.
    pub(super) async fn stop(mut self) {
        self.process.signal(Signal::SIGTERM);
        if timeout(Duration::from_secs(10), self.process.child.wait()).await.is_err() {
            self.process.signal(Signal::SIGKILL);
        }
    }
}

async fn free_address() -> std::io::Result<SocketAddrV4> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    Ok(SocketAddrV4::new(Ipv4Addr::LOCALHOST, listener.local_addr()?.port()))
}

/// The gateway's process, in a group of its own with its kernel.
#[derive(Debug)]
struct Process {
    child: Child,
    group: Option<Pid>,
}

impl Process {
    fn spawn(python: &Path, port: u16, log: &Path, nodelay: bool) -> std::io::Result<Self> {
        let log = std::fs::File::create(log)?;
        let child = Command::new(python)
            .args(if nodelay { ["-c", WITH_NODELAY] } else { ["-m", "kernel_gateway"] })
            .arg("--KernelGatewayApp.ip=127.0.0.1")
            .arg(format!("--KernelGatewayApp.port={port}"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let group = child.id().and_then(|pid| i32::try_from(pid).ok()).map(Pid::from_raw);
        Ok(Self { child, group })
    }

    fn signal(&self, signal: Signal) {
        // Once the child was waited for, its number may belong to somebody else.
        if let (Some(_), Some(group)) = (self.child.id(), self.group) {
            let _ = killpg(group, signal);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.signal(Signal::SIGKILL);
    }
}
