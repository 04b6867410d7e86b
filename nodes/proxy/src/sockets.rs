//! The sockets that the connection file names: shell, control, stdin, iopub and the heartbeat.

use std::{fs, os::unix::fs::FileTypeExt as _, sync::Arc, time::SystemTime};

use bytes::Bytes;
use callboard_protocol::{
    jupyter::{Channel, JupyterMessage, OwnHeader},
    zmq::SigningKey,
};
use serde_json::json;
use tokio::{sync::mpsc, task::JoinSet};
use uuid::Uuid;
use zeromq::{
    RouterRecvHalf, RouterSendHalf, RouterSocket, Socket, SocketRecv, SocketSend, ZmqMessage,
};

use crate::{
    connection::{ConnectionFile, Endpoint},
    error::ProxyError,
    publisher::{Behind, Publisher, Welcome},
};

/// Messages of front-ends that wait for the proxy; more wait in the sockets.
const RECEIVED_MAX: usize = 1_000;

/// A message of a front-end, and who sent it.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) asker: Vec<Bytes>,
    pub(crate) message: JupyterMessage,
}

/// The sockets. Dropping them closes them.
pub(crate) struct Sockets {
    key: SigningKey,
    shell: RouterSendHalf,
    control: RouterSendHalf,
    stdin: RouterSendHalf,
    iopub: Publisher,
    received: mpsc::Receiver<Received>,
    _tasks: JoinSet<()>,
}

impl Sockets {
    pub(crate) async fn bind(connection: &ConnectionFile) -> Result<Self, ProxyError> {
        let (endpoints, key) = (connection.endpoints(), connection.key());
        make_room(&endpoints.iopub);
        let iopub = Publisher::bind(&endpoints.iopub, welcome(key.clone()))
            .await
            .map_err(|error| cannot_listen(&endpoints.iopub, &error))?;
        let mut tasks = JoinSet::new();
        let (heartbeat_out, heartbeat_in) = router(&endpoints.heartbeat).await?;
        tasks.spawn(echo(heartbeat_out, heartbeat_in));
        let (sender, received) = mpsc::channel(RECEIVED_MAX);
        let mut listen = async |channel, endpoint: &Endpoint| {
            let (sending, receiving) = router(endpoint).await?;
            tasks.spawn(receive(receiving, channel, key.clone(), sender.clone()));
            Ok::<_, ProxyError>(sending)
        };
        let shell = listen(Channel::Shell, &endpoints.shell).await?;
        let control = listen(Channel::Control, &endpoints.control).await?;
        let stdin = listen(Channel::Stdin, &endpoints.stdin).await?;
        Ok(Self { key, shell, control, stdin, iopub, received, _tasks: tasks })
    }

    /// The next message of a front-end. Safe to cancel.
    pub(crate) async fn recv(&mut self) -> Option<Received> {
        self.received.recv().await
    }

    /// Sends to whoever asked.
    pub(crate) async fn reply(&mut self, asker: &[Bytes], message: &JupyterMessage) {
        let socket = match message.channel {
            Channel::Shell => &mut self.shell,
            Channel::Control => &mut self.control,
            Channel::Stdin => &mut self.stdin,
            Channel::Iopub => return,
        };
        let frames = self.key.encode(asker.iter().cloned(), message);
        let Ok(frames) = ZmqMessage::try_from(frames) else { return };
        if let Err(error) = socket.send(frames).await {
            tracing::debug!(%error, "whoever asked is gone");
        }
    }

    /// Who is far behind what was sent to all until now.
    pub(crate) fn behind(&self) -> Behind {
        self.iopub.behind()
    }

    /// Sends to all who listen.
    pub(crate) async fn publish(&self, topic: String, message: &JupyterMessage) {
        self.iopub.publish(&self.key.encode([Bytes::from(topic)], message)).await;
    }
}

async fn router(endpoint: &Endpoint) -> Result<(RouterSendHalf, RouterRecvHalf), ProxyError> {
    make_room(endpoint);
    let mut socket = RouterSocket::new();
    socket.bind(&endpoint.to_string()).await.map_err(|error| cannot_listen(endpoint, &error))?;
    Ok(socket.split())
}

/// Removes what a process that was killed left of its socket.
fn make_room(endpoint: &Endpoint) {
    if let Endpoint::Ipc(path) = endpoint
        && fs::symlink_metadata(path).is_ok_and(|it| it.file_type().is_socket())
    {
        // If it stays, listening fails, and says so.
        let _ = fs::remove_file(path);
    }
}

fn cannot_listen(endpoint: &Endpoint, error: &impl ToString) -> ProxyError {
    ProxyError::Listen { endpoint: endpoint.to_string(), why: error.to_string() }
}

/// The heartbeat: says back whatever comes, as ipykernel does.
async fn echo(mut out: RouterSendHalf, mut incoming: RouterRecvHalf) {
    while let Ok(beat) = incoming.recv().await {
        if let Err(error) = out.send(beat).await {
            tracing::debug!(%error, "whoever listened for the heartbeat is gone");
        }
    }
}

async fn receive(
    mut socket: RouterRecvHalf,
    channel: Channel,
    key: SigningKey,
    received: mpsc::Sender<Received>,
) {
    while let Ok(frames) = socket.recv().await {
        match key.decode(channel, frames.into_vec()) {
            Ok((asker, message)) => {
                if received.send(Received { asker, message }).await.is_err() {
                    break;
                }
            }
            Err(error) => tracing::warn!(%error, ?channel, "a message is dropped"),
        }
    }
}

/// What each new subscriber hears first. Source: JEP 65.
fn welcome(key: SigningKey) -> Welcome {
    let session = Uuid::new_v4().to_string();
    Arc::new(move |topic| {
        let header = OwnHeader {
            msg_id: &Uuid::new_v4().to_string(),
            msg_type: "iopub_welcome",
            session: &session,
            at: SystemTime::now(),
        };
        let content = json!({ "subscription": String::from_utf8_lossy(topic) });
        let message = JupyterMessage::own(Channel::Iopub, header, &content);
        key.encode([topic.clone()], &message)
    })
}
