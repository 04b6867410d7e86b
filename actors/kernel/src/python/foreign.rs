//! A kernel of another language: one process that is started as its kernelspec says, and whose state
//! is not captured. A request is over with its `idle` status.

use std::{collections::BTreeMap, io, path::Path};

use bytes::Bytes;
use callboard_protocol::{
    jupyter::{Channel, JupyterMessage},
    zmq::SigningKey,
};
use nix::sys::signal::{Signal, killpg};
use serde::Deserialize;
use serde_json::json;
use tokio::{
    process::{Child, Command},
    sync::mpsc,
};

use super::{
    Captured, Hello, PythonConfig, PythonEvent, Restored,
    child::KernelChild,
    directory::SessionConfig,
    isolation::SessionUser,
    launch::{SocketDirectory, probe, set_isolated, spawn_logged, write_connection},
    process::{Attended, LaunchError, Order, STATE_SOCKET_VARIABLE},
    sockets::{FromKernel, Sockets},
    supervised::{Supervised, prepare},
};
use crate::running_cell::{IopubKind, classify};

/// Runs the package's `foreign` and nothing of what is in the way: `-I` keeps the directory and the
/// variables of Python out of it, `-S` installed packages.
const BEGIN: [&str; 3] = [
    "-IS",
    "-c",
    "import sys; sys.path.insert(0, sys.argv[1]); from callboard_kernel.foreign import main; \
     main(sys.argv[2])",
];
/// Stands for the connection file in a kernelspec.
const CONNECTION_FILE: &str = "{connection_file}";

/// How this node starts the kernels of one kernelspec, as the environment's program found it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct KernelProgram {
    /// The command; `{connection_file}` in it stands for that.
    argv: Vec<String>,
    /// Variables that are set for it.
    env: BTreeMap<String, String>,
    /// How it is interrupted.
    interrupt_mode: InterruptMode,
}

/// Those of a node, by the name of the kernelspec.
pub type KernelPrograms = BTreeMap<String, KernelProgram>;

/// How a kernel is interrupted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum InterruptMode {
    /// By SIGINT to its process group.
    Signal,
    /// By an `interrupt_request`.
    Message,
}

/// What to start.
#[derive(Debug, Clone)]
pub struct ForeignKernel {
    /// The kernelspec's name.
    pub kernelspec: String,
    /// Its program here; none if this node does not have it (yet, or any more).
    pub program: Option<KernelProgram>,
    /// Whose process it becomes.
    pub session: SessionConfig,
}

/// One at work.
pub(super) struct Foreign {
    process: Supervised,
    sockets: Sockets,
    from_kernel: mpsc::UnboundedReceiver<FromKernel>,
    interrupt_mode: InterruptMode,
}

impl Foreign {
    /// Starts one; returns once it answers.
    pub(super) async fn start(
        config: &PythonConfig,
        run_dir: &Path,
        kernel: &ForeignKernel,
    ) -> Result<(Self, Hello), LaunchError> {
        let name = &kernel.kernelspec;
        let missing = || LaunchError::NoKernelspec { name: name.clone() };
        let program = kernel.program.as_ref().ok_or_else(missing)?;
        let root = &kernel.session.directory.root;
        let fail = |source: io::Error| LaunchError::Directory { path: root.clone(), source };
        let user = prepare(&kernel.session).await.map_err(fail)?;
        let mut directory = SocketDirectory::create(run_dir)?;
        if user.is_some() {
            // It makes its sockets itself, and may not enter the node's directories.
            directory.lend()?;
        }
        let key = SigningKey::generate();
        let connection = write_connection(&directory, &key)?;
        if let Some(user) = &user {
            directory.give_to(user)?;
        }
        let argv: Vec<String> = program
            .argv
            .iter()
            .map(|it| it.replace(CONNECTION_FILE, &connection.to_string_lossy()))
            .collect();
        let child = spawn(config, kernel, program, (argv, user), &directory)?;
        let mut process = Supervised::new(KernelChild::Started(child), directory).await?;
        process.confine(&kernel.session).map_err(fail)?;
        let prefix = process.sockets();
        let connecting = async {
            let (sender, mut from_kernel) = mpsc::unbounded_channel();
            let sockets = Sockets::connect(&prefix, &key, sender, None)
                .await
                .map_err(|error| LaunchError::Socket(error.to_string()))?;
            probe(&sockets, &mut from_kernel).await;
            Ok((sockets, from_kernel))
        };
        let (sockets, from_kernel) = process.until_ready(connecting).await?;
        let hello = Hello { protocol: 0, pid: process.pid.as_raw(), python: name.clone() };
        let interrupt_mode = program.interrupt_mode;
        Ok((Self { process, sockets, from_kernel, interrupt_mode }, hello))
    }

    async fn carry_out(&mut self, order: Order) {
        match order {
            Order::Send(message) => self.sockets.send(message),
            Order::Interrupt => match self.interrupt_mode {
                InterruptMode::Signal => {
                    let _ = killpg(self.process.pid, Signal::SIGINT);
                }
                InterruptMode::Message => self.sockets.send(interrupt_request()),
            },
            Order::End(cause) => self.process.end_because(cause),
            Order::Kill => self.process.kill().await,
            // It was configured before it was started.
            Order::Restore { .. } | Order::Configure(_) => {}
        }
    }
}

impl Attended for Foreign {
    async fn serve(
        mut self,
        mut orders: mpsc::UnboundedReceiver<Order>,
        events: &mpsc::UnboundedSender<PythonEvent>,
    ) -> PythonEvent {
        loop {
            tokio::select! {
                biased;
                status = self.process.child.wait() => {
                    break PythonEvent::Exited { how: self.process.exited(status.ok()).await };
                }
                order = orders.recv() => match order.unwrap_or(Order::Kill) {
                    // There is no state: what it began with is all there is.
                    Order::Restore { .. } => {
                        let _ = events.send(PythonEvent::Restored(Restored::default()));
                    }
                    order => self.carry_out(order).await,
                },
                Some(heard) = self.from_kernel.recv() => {
                    let over = request_that_is_over(&heard.message);
                    let is_heard = events.send(PythonEvent::Jupyter(heard)).is_ok();
                    if let Some(msg_id) = over {
                        let nothing = Captured { msg_id, ..Captured::default() };
                        let _ = events.send(PythonEvent::Captured(nothing));
                    }
                    if !is_heard {
                        self.process.kill().await;
                    }
                }
            }
        }
    }
}

fn spawn(
    config: &PythonConfig,
    kernel: &ForeignKernel,
    program: &KernelProgram,
    (argv, user): (Vec<String>, Option<SessionUser>),
    directory: &SocketDirectory,
) -> Result<Child, LaunchError> {
    let place = &kernel.session.directory;
    let start = place.start.as_ref().unwrap_or(&place.root);
    let job = json!({ "argv": argv, "directory": start, "user": user });
    let mut command = Command::new(&config.program);
    command.args(BEGIN).arg(&config.package_dir).arg(job.to_string());
    spawn_logged(command, directory, |command| {
        set_isolated(command, config.isolated)
            .envs(&program.env)
            // Where it finds its own log; there is no such socket.
            .env(STATE_SOCKET_VARIABLE, directory.state_socket())
    })
}

/// The request that a message is the end of.
fn request_that_is_over(message: &JupyterMessage) -> Option<String> {
    let is_over = message.channel == Channel::Iopub && classify(message) == IopubKind::Idle;
    message.parent_msg_id().filter(|_| is_over)
}

fn interrupt_request() -> JupyterMessage {
    let header = json!({
        "msg_id": uuid::Uuid::new_v4(), "msg_type": "interrupt_request", "session": "callboard",
        "username": "callboard", "version": "5.4", "date": "1970-01-01T00:00:00.000000Z",
    });
    let empty = Bytes::from_static(b"{}");
    JupyterMessage {
        channel: Channel::Control,
        header: Bytes::from(header.to_string()),
        parent_header: empty.clone(),
        metadata: empty.clone(),
        content: empty,
        buffers: Vec::new(),
    }
}
