//! The ZeroMQ sockets to one ipykernel: shell, control, stdin out and in, iopub in.

use std::{io, path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use callboard_protocol::{
    jupyter::{Channel, JupyterMessage},
    zmq::SigningKey,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::JoinSet,
};
use zeromq::{
    DealerSocket, Socket, SocketOptions, SocketRecv, SocketSend, SubSocket, ZmqError, ZmqMessage,
    util::PeerIdentity,
};

const CONNECT_POLL: Duration = Duration::from_millis(5);
/// Outputs that may be on their way through this node at a time, from a kernel whose others wait for
/// that: most sockets drop what nobody takes.
pub(super) const OUTPUTS_MAX: usize = 1_000;

/// A message of a kernel.
#[derive(Debug)]
pub struct FromKernel {
    /// The message.
    pub message: JupyterMessage,
    /// Makes room for another output once it is dropped.
    pub room: Option<OwnedSemaphorePermit>,
}

/// Numbers of the sockets in the connection file; with the `ipc` transport they end the path.
pub(super) const SHELL: u16 = 1;
pub(super) const IOPUB: u16 = 2;
pub(super) const STDIN: u16 = 3;
pub(super) const CONTROL: u16 = 4;
pub(super) const HEARTBEAT: u16 = 5;

/// The sending ends. Dropping it ends the tasks behind it.
#[derive(Debug)]
pub(super) struct Sockets {
    shell: mpsc::UnboundedSender<JupyterMessage>,
    control: mpsc::UnboundedSender<JupyterMessage>,
    stdin: mpsc::UnboundedSender<JupyterMessage>,
    /// Their end is that of the sockets, also of those that were still to be connected.
    _tasks: JoinSet<()>,
}

impl Sockets {
    /// Connects to a kernel that is starting; waits until its sockets exist. Takes no more than
    /// `outputs_max` outputs at a time, if there is such a limit.
    pub(super) async fn connect(
        prefix: &Path,
        key: &SigningKey,
        received: mpsc::UnboundedSender<FromKernel>,
        outputs_max: Option<usize>,
    ) -> Result<Self, ZmqError> {
        let identity = uuid::Uuid::new_v4().simple().to_string();
        let mut tasks = JoinSet::new();
        let mut iopub = SubSocket::new();
        connect(&mut iopub, prefix, IOPUB).await?;
        iopub.subscribe("").await?;
        let (key_in, to) = (key.clone(), received.clone());
        tasks.spawn(async move {
            let outputs = outputs_max.map(|max| Arc::new(Semaphore::new(max)));
            loop {
                let room = match &outputs {
                    Some(outputs) => outputs.clone().acquire_owned().await.ok(),
                    None => None,
                };
                let Ok(frames) = iopub.recv().await else { break };
                let decoded = key_in.decode(Channel::Iopub, frames.into_vec());
                let Ok((_, message)) = decoded else { continue };
                if to.send(FromKernel { message, room }).is_err() {
                    break;
                }
            }
        });
        let mut senders = Vec::new();
        for (number, channel) in
            [(SHELL, Channel::Shell), (CONTROL, Channel::Control), (STDIN, Channel::Stdin)]
        {
            // The kernel routes a question for input by the identity that sent the cell.
            let mut options = SocketOptions::default();
            let peer = PeerIdentity::try_from(Bytes::from(identity.clone()))?;
            options.peer_identity(peer);
            let mut socket = DealerSocket::with_options(options);
            connect(&mut socket, prefix, number).await?;
            senders.push(serve(&mut tasks, socket, channel, key.clone(), received.clone()));
        }
        match <[_; 3]>::try_from(senders) {
            Ok([shell, control, stdin]) => Ok(Self { shell, control, stdin, _tasks: tasks }),
            Err(_) => Err(ZmqError::NoMessage),
        }
    }

    /// Sends to the kernel; nothing happens if it is gone.
    pub(super) fn send(&self, message: JupyterMessage) {
        let sender = match message.channel {
            Channel::Shell => &self.shell,
            Channel::Control => &self.control,
            Channel::Stdin => &self.stdin,
            Channel::Iopub => return,
        };
        let _ = sender.send(message);
    }
}

async fn connect(socket: &mut impl Socket, prefix: &Path, number: u16) -> Result<(), ZmqError> {
    let path = format!("{}-{number}", prefix.display());
    // The caller bounds this loop; the kernel creates its sockets when it is ready to.
    while tokio::fs::symlink_metadata(&path).await.is_err() {
        tokio::time::sleep(CONNECT_POLL).await;
    }
    loop {
        match socket.connect(&format!("ipc://{path}")).await {
            Err(ZmqError::Network(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
                tokio::time::sleep(CONNECT_POLL).await;
            }
            result => return result,
        }
    }
}

fn serve(
    tasks: &mut JoinSet<()>,
    socket: DealerSocket,
    channel: Channel,
    key: SigningKey,
    received: mpsc::UnboundedSender<FromKernel>,
) -> mpsc::UnboundedSender<JupyterMessage> {
    let (mut sink, mut source) = socket.split();
    let (sender, mut outgoing) = mpsc::unbounded_channel::<JupyterMessage>();
    let signing = key.clone();
    tasks.spawn(async move {
        while let Some(message) = outgoing.recv().await {
            let Ok(frames) = ZmqMessage::try_from(signing.encode([], &message)) else { continue };
            if let Err(error) = sink.send(frames).await {
                tracing::debug!(%error, ?channel, "the kernel's socket is gone");
                break;
            }
        }
    });
    tasks.spawn(async move {
        while let Ok(frames) = source.recv().await {
            let Ok((_, message)) = key.decode(channel, frames.into_vec()) else { continue };
            if received.send(FromKernel { message, room: None }).is_err() {
                break;
            }
        }
    });
    sender
}
