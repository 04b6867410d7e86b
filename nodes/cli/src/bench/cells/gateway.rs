//! The peer: Jupyter Kernel Gateway as it ships, with default settings, asked over its websocket.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use bytes::Bytes;
use callboard_protocol::jupyter::{Channel, JupyterMessage};
use futures::{SinkExt as _, StreamExt as _};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{Message, client::IntoClientRequest, http::HeaderValue},
};

use crate::{
    exit::{Exit, Failure},
    output::say,
};

/// How long the gateway, and then its kernel, may take to come up.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// Pause between questions to a gateway that comes up.
const READY_POLL: Duration = Duration::from_millis(100);
/// How long a cell may take before the gateway counts as stuck.
const CELL_WITHIN: Duration = Duration::from_secs(30);
/// The framing that the bus uses too; the gateway offers it, and it is the faster of its two.
const SUBPROTOCOL: &str = "v1.kernel.websocket.jupyter.org";

/// A gateway with one kernel, and a websocket to it. Dropping it kills both.
#[derive(Debug)]
pub(super) struct Gateway {
    process: Process,
    socket: WebSocketStream<TcpStream>,
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

impl Gateway {
    /// Starts a gateway on a free port, a kernel on it, and connects.
    ///
    /// # Errors
    /// A [`Failure`] if any of that does not work.
    pub(super) async fn start(python: &Path, directory: &Path) -> Result<Self, Failure> {
        let log = directory.join("kernel-gateway.log");
        let fail = |why: String| {
            let log = std::fs::read_to_string(&log).unwrap_or_default();
            let last = log.lines().last().unwrap_or("it logged nothing");
            Failure::new(
                Exit::Failed,
                format!("Jupyter Kernel Gateway: {why}; its log ends: {last}"),
            )
        };
        let address = free_address().await.map_err(|error| fail(error.to_string()))?;
        let process = Process::spawn(python, address.port(), &log)
            .map_err(|error| fail(error.to_string()))?;
        let until = Instant::now() + READY_WITHIN;
        while http(address, "GET", "/api").await.is_err() {
            if Instant::now() >= until {
                return Err(fail(format!("not up within {} s", READY_WITHIN.as_secs())));
            }
            sleep(READY_POLL).await;
        }
        let kernel = http(address, "POST", "/api/kernels").await.map_err(&fail)?;
        let id = kernel["id"].as_str().ok_or_else(|| fail(format!("it answered {kernel}")))?;
        let socket = connect(address, id).await.map_err(&fail)?;
        Ok(Self { process, socket })
    }

    /// Sends a request and waits until its reply and the `idle` status have both arrived; returns
    /// the reply.
    ///
    /// # Errors
    /// A sentence if the gateway closes the socket or takes too long.
    pub(super) async fn round_trip(
        &mut self,
        request: &JupyterMessage,
        msg_id: &str,
    ) -> Result<JupyterMessage, String> {
        let sent = self.socket.send(Message::Binary(request.encode()));
        sent.await.map_err(|error| error.to_string())?;
        let answered = timeout(CELL_WITHIN, self.answer(msg_id)).await;
        answered.map_err(|_| format!("no answer within {} s", CELL_WITHIN.as_secs()))?
    }

    async fn answer(&mut self, msg_id: &str) -> Result<JupyterMessage, String> {
        let (mut reply, mut is_idle) = (None, false);
        loop {
            let frame: Bytes = match self.socket.next().await {
                Some(Ok(Message::Binary(frame))) => frame,
                Some(Ok(Message::Close(_))) | None => return Err("it closed the socket".into()),
                Some(Ok(_)) => continue,
                Some(Err(error)) => return Err(error.to_string()),
            };
            let message = JupyterMessage::decode(&frame).map_err(|error| error.to_string())?;
            if message.parent_msg_id().as_deref() != Some(msg_id) {
                continue;
            }
            match message.channel {
                Channel::Shell => reply = Some(message),
                Channel::Iopub => is_idle |= says_idle(&message),
                Channel::Control | Channel::Stdin => {}
            }
            if is_idle && let Some(reply) = reply.take() {
                return Ok(reply);
            }
        }
    }

    /// Ends the gateway and its kernel.
    pub(super) async fn stop(mut self) {
        self.process.signal(Signal::SIGTERM);
        if timeout(Duration::from_secs(10), self.process.child.wait()).await.is_err() {
            self.process.signal(Signal::SIGKILL);
        }
    }
}

fn says_idle(message: &JupyterMessage) -> bool {
    message.parse_header().is_ok_and(|header| header.msg_type == "status")
        && message
            .parse_content::<Value>()
            .is_ok_and(|content| content["execution_state"] == "idle")
}

async fn free_address() -> std::io::Result<SocketAddrV4> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    Ok(SocketAddrV4::new(Ipv4Addr::LOCALHOST, listener.local_addr()?.port()))
}

async fn connect(
    address: SocketAddrV4,
    kernel: &str,
) -> Result<WebSocketStream<TcpStream>, String> {
    let url = format!("ws://{address}/api/kernels/{kernel}/channels?session_id=bench");
    let mut request = url.into_client_request().map_err(|error| error.to_string())?;
    let subprotocol = HeaderValue::from_static(SUBPROTOCOL);
    request.headers_mut().insert("Sec-WebSocket-Protocol", subprotocol);
    let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
    stream.set_nodelay(true).map_err(|error| error.to_string())?;
    let connecting = timeout(READY_WITHIN, client_async(request, stream)).await;
    let connected = connecting.map_err(|_| "its websocket did not open in time".to_owned())?;
    connected.map(|(socket, _)| socket).map_err(|error| error.to_string())
}

/// One request on a connection of its own; the answer's JSON body.
async fn http(address: SocketAddrV4, method: &str, path: &str) -> Result<Value, String> {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    let answer = timeout(READY_WITHIN, exchange).await.map_err(|_| "no answer".to_owned())?;
    let answer = answer.map_err(|error| error.to_string())?;
    let text = String::from_utf8_lossy(&answer);
    let (head, body) = text.split_once("\r\n\r\n").ok_or("its answer is not HTTP")?;
    let status = head.lines().next().unwrap_or_default();
    if !status.contains(" 20") {
        return Err(format!("{method} {path} was answered with {status}"));
    }
    serde_json::from_str(body).map_err(|error| error.to_string())
}

/// The gateway's process, in a group of its own with its kernel.
#[derive(Debug)]
struct Process {
    child: Child,
    group: Option<Pid>,
}

impl Process {
    fn spawn(python: &Path, port: u16, log: &Path) -> std::io::Result<Self> {
        let log = std::fs::File::create(log)?;
        let child = Command::new(python)
            .args(["-m", "kernel_gateway", "--KernelGatewayApp.ip=127.0.0.1"])
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
