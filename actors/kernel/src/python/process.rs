//! Starts, feeds and ends one Python process.

use std::path::{Path, PathBuf};

use callboard_protocol::{jupyter::JupyterMessage, zmq::SigningKey};
use nix::sys::signal::{Signal, kill, killpg};
use tokio::{
    io::BufReader,
    net::{UnixListener, unix::OwnedWriteHalf},
    sync::mpsc,
};

use super::{
    ForeignKernel, PythonEvent,
    child::KernelChild,
    directory::SessionConfig,
    foreign::Foreign,
    launch::{SocketDirectory, probe, set_isolated, spawn, write_connection},
    sockets::{FromKernel, OUTPUTS_MAX, Sockets},
    state_socket::{self, FromPython, Hello, PROTOCOL_VERSION, RestoreGroup},
    supervised::{READY_WITHIN, Supervised, prepare},
    zygote::{ForkRequest, Zygote},
};

/// Names the socket a kernel hands its state over.
pub(super) const STATE_SOCKET_VARIABLE: &str = "CALLBOARD_STATE_SOCKET";

/// How to run Python on this node.
#[derive(Debug, Clone)]
pub struct PythonConfig {
    /// The interpreter.
    pub program: PathBuf,
    /// What [`super::unpack_package`] returned.
    pub package_dir: PathBuf,
    /// Longest time one capture of the session's state may take, in milliseconds.
    pub capture_budget_ms: u64,
    /// Most bytes that a session's state may have; what is over it is refused by name.
    pub state_bytes_max: u64,
    /// Whether each process gets a uid of its own when it becomes a kernel's; then it has to be
    /// given one with [`PythonProcess::configure`] before it runs anything.
    pub isolated: bool,
}

/// Why a Python process did not come up.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// Its directory could not be made.
    #[error("cannot create the kernel's directory {path}: {source}")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The interpreter could not be started.
    #[error(
        "cannot start {program}: {source}; name a Python >= 3.10 that has ipykernel and cloudpickle with --python"
    )]
    Spawn {
        /// The interpreter.
        program: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It ended before it was ready.
    #[error("it ended before it was ready ({how}): {log}")]
    Ended {
        /// How it ended.
        how: String,
        /// The end of what it wrote.
        log: String,
    },
    /// It did not get ready in time.
    #[error("it was not ready within {limit} s: {log}", limit = READY_WITHIN.as_secs())]
    TooSlow {
        /// The end of what it wrote.
        log: String,
    },
    /// Its sockets failed.
    #[error("cannot talk to the kernel: {0}")]
    Socket(String),
    /// Its kernelspec is not there.
    #[error("there is no kernelspec '{name}' here: install it for Jupyter on this node")]
    NoKernelspec {
        /// Its name.
        name: String,
    },
}

/// What a process is to do.
#[derive(Debug)]
pub(super) enum Order {
    Send(JupyterMessage),
    Restore { groups: Vec<RestoreGroup>, execution_count: u64 },
    Configure(Box<SessionConfig>),
    End(String),
    Interrupt,
    Kill,
}

/// One Python process. Dropping it kills the process.
#[derive(Debug)]
pub struct PythonProcess {
    orders: mpsc::UnboundedSender<Order>,
}

impl PythonProcess {
    /// Starts a process whose sockets and log live in a fresh directory below `run_dir`. Its
    /// first event is `Ready` or `NotReady`, its last one `Exited` or `NotReady`.
    #[must_use]
    pub fn launch(
        config: PythonConfig,
        run_dir: &Path,
    ) -> (Self, mpsc::UnboundedReceiver<PythonEvent>) {
        Self::launch_from(config, run_dir, None, 0)
    }

    /// The same, forked by `zygote` if that can be, and then with so much added to its niceness.
    pub(super) fn launch_from(
        config: PythonConfig,
        run_dir: &Path,
        zygote: Option<Zygote>,
        nice: i32,
    ) -> (Self, mpsc::UnboundedReceiver<PythonEvent>) {
        let run_dir = run_dir.to_owned();
        Self::attend(async move { Running::start(&config, &run_dir, zygote, nice).await })
    }

    /// Starts the process of a kernel of another language, which is not to be configured. Its first and
    /// last events are those of [`Self::launch`].
    pub(super) fn launch_foreign(
        config: PythonConfig,
        run_dir: &Path,
        kernel: ForeignKernel,
    ) -> (Self, mpsc::UnboundedReceiver<PythonEvent>) {
        let run_dir = run_dir.to_owned();
        Self::attend(async move { Foreign::start(&config, &run_dir, &kernel).await })
    }

    fn attend<A: Attended>(
        starting: impl Future<Output = Result<(A, Hello), LaunchError>> + Send + 'static,
    ) -> (Self, mpsc::UnboundedReceiver<PythonEvent>) {
        let (orders, order_queue) = mpsc::unbounded_channel();
        let (events, event_queue) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            let last = match starting.await {
                Ok((running, hello)) => {
                    let _ = events.send(PythonEvent::Ready(hello));
                    running.serve(order_queue, &events).await
                }
                Err(error) => PythonEvent::NotReady(error),
            };
            let _ = events.send(last);
        });
        (Self { orders }, event_queue)
    }

    /// Sends a message to the kernel on its channel.
    pub fn send(&self, message: JupyterMessage) {
        let _ = self.orders.send(Order::Send(message));
    }

    /// Gives the process the whole state of a session.
    pub fn restore(&self, groups: Vec<RestoreGroup>, execution_count: u64) {
        let _ = self.orders.send(Order::Restore { groups, execution_count });
    }

    /// Makes the process that of a kernel: its directories, and what may be done in it. To be called
    /// before the first [`Self::restore`].
    pub fn configure(&self, session: SessionConfig) {
        let _ = self.orders.send(Order::Configure(Box::new(session)));
    }

    /// Interrupts what runs, as Ctrl-C would.
    pub fn interrupt(&self) {
        let _ = self.orders.send(Order::Interrupt);
    }

    /// Kills the process and what it started, for a reason that is told in place of the signal.
    pub fn end(&self, cause: String) {
        let _ = self.orders.send(Order::End(cause));
    }

    /// Kills the process and what it started.
    pub fn kill(&self) {
        let _ = self.orders.send(Order::Kill);
    }
}

/// A process that is ready.
pub(super) trait Attended: Send + 'static {
    /// Carries orders and messages until the process ends; returns how it did.
    fn serve(
        self,
        orders: mpsc::UnboundedReceiver<Order>,
        events: &mpsc::UnboundedSender<PythonEvent>,
    ) -> impl Future<Output = PythonEvent> + Send;
}

struct Running {
    process: Supervised,
    sockets: Sockets,
    from_kernel: mpsc::UnboundedReceiver<FromKernel>,
    from_python: mpsc::UnboundedReceiver<FromPython>,
    to_python: OwnedWriteHalf,
}

impl Running {
    async fn start(
        config: &PythonConfig,
        run_dir: &Path,
        zygote: Option<Zygote>,
        nice: i32,
    ) -> Result<(Self, Hello), LaunchError> {
        let directory = SocketDirectory::create(run_dir)?;
        let key = SigningKey::generate();
        let socket_error = |error: std::io::Error| LaunchError::Socket(error.to_string());
        let listener = UnixListener::bind(directory.state_socket()).map_err(socket_error)?;
        let child = begin(config, &directory, &key, zygote, nice).await?;
        let mut process = Supervised::new(child, directory).await?;
        let prefix = process.sockets();
        let connecting = async {
            let (stream, _) = listener.accept().await.map_err(socket_error)?;
            let (reader, mut to_python) = stream.into_split();
            state_socket::write_configure(
                &mut to_python,
                config.capture_budget_ms,
                config.state_bytes_max,
            )
            .await
            .map_err(socket_error)?;
            let mut from_python = read_states(BufReader::new(reader));
            let (sender, mut from_kernel) = mpsc::unbounded_channel();
            let sockets = Sockets::connect(&prefix, &key, sender, Some(OUTPUTS_MAX))
                .await
                .map_err(|error| LaunchError::Socket(error.to_string()))?;
            let hello = match from_python.recv().await {
                Some(FromPython::Hello(hello)) if hello.protocol == PROTOCOL_VERSION => hello,
                Some(FromPython::Hello(hello)) => {
                    return Err(LaunchError::Socket(format!(
                        "its package speaks protocol {}, this node speaks {PROTOCOL_VERSION}",
                        hello.protocol
                    )));
                }
                Some(FromPython::Error { message }) => return Err(LaunchError::Socket(message)),
                _ => return Err(LaunchError::Socket("no greeting from Python".to_owned())),
            };
            probe(&sockets, &mut from_kernel).await;
            Ok((sockets, from_kernel, from_python, to_python, hello))
        };
        let ready = process.until_ready(connecting).await?;
        let (sockets, from_kernel, from_python, to_python, hello) = ready;
        Ok((Self { process, sockets, from_kernel, from_python, to_python }, hello))
    }

    async fn carry_out(&mut self, order: Order) {
        match order {
            Order::Send(message) => self.sockets.send(message),
            Order::Restore { groups, execution_count } => {
                let written =
                    state_socket::write_restore(&mut self.to_python, &groups, execution_count);
                if let Err(error) = written.await {
                    tracing::warn!(%error, "cannot hand the state to Python");
                    let _ = killpg(self.process.pid, Signal::SIGKILL);
                }
            }
            Order::Configure(session) => {
                if let Err(error) = self.configure(&session).await {
                    self.process.end_because(format!(
                        "ended, as its directories could not be made ({error}): see to {}",
                        session.directory.root.display()
                    ));
                }
            }
            Order::End(cause) => self.process.end_because(cause),
            Order::Interrupt => {
                let _ = kill(self.process.pid, Signal::SIGINT);
            }
            Order::Kill => self.process.kill().await,
        }
    }

    async fn configure(&mut self, session: &SessionConfig) -> std::io::Result<()> {
        self.process.confine(session)?;
        let user = prepare(session).await?;
        state_socket::write_session(&mut self.to_python, session, user.as_ref()).await
    }
}

impl Attended for Running {
    async fn serve(
        mut self,
        mut orders: mpsc::UnboundedReceiver<Order>,
        events: &mpsc::UnboundedSender<PythonEvent>,
    ) -> PythonEvent {
        loop {
            let event = tokio::select! {
                biased;
                status = self.process.child.wait() => {
                    break PythonEvent::Exited { how: self.process.exited(status.ok()).await };
                }
                order = orders.recv() => {
                    self.carry_out(order.unwrap_or(Order::Kill)).await;
                    continue;
                }
                Some(heard) = self.from_kernel.recv() => PythonEvent::Jupyter(heard),
                Some(message) = self.from_python.recv() => match message {
                    FromPython::Captured(captured) => PythonEvent::Captured(captured),
                    FromPython::Saving { msg_id } => PythonEvent::Saving { msg_id },
                    FromPython::Restored(restored) => PythonEvent::Restored(restored),
                    FromPython::Hello(_) => continue,
                    FromPython::Error { message } => {
                        tracing::warn!(%message, "the Python side reports a problem");
                        continue;
                    }
                },
            };
            if events.send(event).is_err() {
                self.carry_out(Order::Kill).await;
            }
        }
    }
}

/// Has the process forked, or starts it the long way.
async fn begin(
    config: &PythonConfig,
    directory: &SocketDirectory,
    key: &SigningKey,
    zygote: Option<Zygote>,
    nice: i32,
) -> Result<KernelChild, LaunchError> {
    let state_socket = directory.state_socket();
    if let Some(zygote) = zygote {
        let request = ForkRequest {
            connection: write_connection(directory, key)?,
            log: directory.log(),
            cwd: std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/")),
            env: [(STATE_SOCKET_VARIABLE, state_socket.clone())].into(),
            nice,
        };
        if let Some(forked) = zygote.fork(request).await {
            let child = KernelChild::Forked(forked);
            if let Some(pid) = child.pid() {
                directory.note_pid(pid.as_raw().unsigned_abs())?;
            }
            return Ok(child);
        }
    }
    let child = spawn(&config.program, "callboard_kernel", directory, key, |command| {
        set_isolated(command, config.isolated)
            .env("PYTHONPATH", &config.package_dir)
            .env(STATE_SOCKET_VARIABLE, &state_socket)
    })?;
    Ok(KernelChild::Started(child))
}

fn read_states(
    mut reader: BufReader<tokio::net::unix::OwnedReadHalf>,
) -> mpsc::UnboundedReceiver<FromPython> {
    let (sender, receiver) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        loop {
            match state_socket::read(&mut reader).await {
                Ok(message) => {
                    if sender.send(message).is_err() {
                        break;
                    }
                }
                Err(error) => {
                    if error.kind() == std::io::ErrorKind::InvalidData {
                        tracing::error!(%error, "the Python side broke its protocol");
                    }
                    break;
                }
            }
        }
    });
    receiver
}
