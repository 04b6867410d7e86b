//! One proxy at work: messages of front-ends go to the kernel, and what it says to them.

use std::{collections::VecDeque, path::Path, time::Duration};

use bytes::Bytes;
use callboard_client::{Channels, Client, KernelClient, own, own::Own, said::Said};
use callboard_protocol::{
    Fault, FaultCode, KernelId,
    control::KernelSettings,
    jupyter::{Channel, JupyterMessage},
};
use serde::Deserialize;
use tokio::{task::JoinSet, time::sleep};
use uuid::Uuid;

use crate::{
    connection::{ConnectionFile, Note},
    error::ProxyError,
    kernel::{self, OnExit, Which},
    lifetime::{Lifetime, Outside},
    publisher::Behind,
    routes::Routes,
    sockets::{Received, Sockets},
};

/// How long the last messages have to leave the process. ipykernel waits as long.
const LINGER: Duration = Duration::from_millis(100);

/// What a proxy is to do.
#[derive(Debug, Clone)]
pub struct ProxyOptions {
    /// Which kernel it stands for.
    pub which: Which,
    /// What becomes of the kernel when the proxy is told to end.
    pub on_exit: OnExit,
    /// What a kernel that it starts is started with.
    pub settings: KernelSettings,
    /// Whether it ends when the process that started it does.
    pub follows_parent: bool,
}

/// A proxy whose sockets listen, so that front-ends can connect while the kernel is started.
pub struct Proxy {
    connection: ConnectionFile,
    sockets: Sockets,
    lifetime: Lifetime,
    options: ProxyOptions,
}

impl Proxy {
    /// Listens where a connection file says.
    ///
    /// # Errors
    /// [`ProxyError`] if the file cannot be used, or a socket not be had.
    pub async fn bind(connection: &Path, options: ProxyOptions) -> Result<Self, ProxyError> {
        let lifetime = Lifetime::new(options.follows_parent).map_err(ProxyError::Signals)?;
        let connection = ConnectionFile::load(connection)?;
        let sockets = Sockets::bind(&connection).await?;
        Ok(Self { connection, sockets, lifetime, options })
    }

    /// Serves until a front-end shuts the kernel down, the process is told to end, or the kernel is
    /// stopped by others.
    ///
    /// # Errors
    /// [`ProxyError`] if there is no such kernel, or the cluster is lost for good.
    pub async fn serve(mut self, client: Client) -> Result<(), ProxyError> {
        let ProxyOptions { which, settings, .. } = &self.options;
        let open = kernel::open(&client, which, settings, &mut self.connection);
        let opened = tokio::select! {
            opened = open => opened?,
            () = self.lifetime.end() => {
                // It may have been started already.
                if let (OnExit::Stop, Some(note)) = (self.options.on_exit, self.connection.note()) {
                    return stop(&client, note.kernel, &mut self.connection).await;
                }
                return Ok(());
            }
        };
        let channels = opened.channels(&Uuid::new_v4().to_string());
        let serving = Serving {
            client,
            kernel: opened,
            channels,
            connection: self.connection,
            sockets: self.sockets,
            on_exit: self.options.on_exit,
            routes: Routes::default(),
            held: VecDeque::new(),
            interrupts: JoinSet::new(),
            shutdown: None,
        };
        serving.run(self.lifetime).await
    }
}

/// A `shutdown_request` under way.
struct Shutdown {
    request: JupyterMessage,
    msg_id: String,
    restart: bool,
    /// What its reply says, once there is one.
    reply: Option<Reply>,
}

/// The content of a reply.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Reply {
    status: String,
    evalue: String,
}

/// What is to be done next.
enum Step {
    Take(Received),
    Deliver(JupyterMessage),
    Reply,
    Lost(Fault),
    Outside(Outside),
}

struct Serving {
    client: Client,
    kernel: KernelClient,
    channels: Channels,
    connection: ConnectionFile,
    sockets: Sockets,
    on_exit: OnExit,
    routes: Routes,
    /// Replies whose outputs are still on their way: programs take a cell for over a few seconds after
    /// its reply, whatever they have of it.
    held: VecDeque<Held>,
    interrupts: JoinSet<()>,
    shutdown: Option<Shutdown>,
}

/// A reply, and who has to take the outputs before it.
struct Held {
    behind: Behind,
    asker: Vec<Bytes>,
    message: JupyterMessage,
}

/// Waits until the first of them may go.
async fn ready(held: &mut VecDeque<Held>) {
    match held.front_mut() {
        Some(held) => held.behind.caught_up().await,
        None => std::future::pending().await,
    }
}

impl Serving {
    async fn run(mut self, mut lifetime: Lifetime) -> Result<(), ProxyError> {
        let ended = loop {
            let step = tokio::select! {
                Some(received) = self.sockets.recv() => Step::Take(received),
                delivery = self.channels.next() => match delivery {
                    Ok(delivery) => Step::Deliver(delivery.message),
                    Err(fault) => Step::Lost(fault),
                },
                () = ready(&mut self.held) => Step::Reply,
                outside = lifetime.next() => Step::Outside(outside),
            };
            let is_over = match step {
                Step::Take(received) => self.take(received).await,
                Step::Deliver(message) => self.deliver(message).await,
                Step::Reply => {
                    self.reply_first().await;
                    false
                }
                Step::Lost(fault) => break self.lost(fault).await,
                Step::Outside(Outside::Interrupt) => {
                    self.interrupt();
                    false
                }
                Step::Outside(Outside::End) => break self.told_to_end().await,
            };
            if is_over {
                break self.after_shutdown();
            }
        };
        while self.reply_first().await {}
        sleep(LINGER).await;
        ended
    }

    /// Sends the first reply that was held. False if there is none.
    async fn reply_first(&mut self) -> bool {
        let Some(Held { asker, message, .. }) = self.held.pop_front() else { return false };
        self.sockets.reply(&asker, &message).await;
        true
    }

    /// Takes a message of a front-end. True if the proxy is done.
    async fn take(&mut self, received: Received) -> bool {
        let Received { asker, message } = received;
        let header = match message.parse_header() {
            Ok(header) => header,
            Err(error) => {
                tracing::warn!(%error, "a message is dropped");
                return false;
            }
        };
        if message.channel != Channel::Stdin {
            self.routes.note(&header.msg_id, asker);
        }
        if let Some(Own::Shutdown { restart }) = Own::of(&message, &header) {
            let request = message.clone();
            self.shutdown = Some(Shutdown { request, msg_id: header.msg_id, restart, reply: None });
            if restart {
                self.note(true);
            } else if self.on_exit == OnExit::Keep {
                self.say_shut_down().await;
                return true;
            }
        }
        if let Err(error) = self.channels.send(message) {
            tracing::warn!(%error, "a message is dropped");
        }
        false
    }

    /// Hands a message to whom it is for. True if the proxy is done.
    async fn deliver(&mut self, message: JupyterMessage) -> bool {
        let parent = message.parent_msg_id();
        let ends = self.shutdown.as_mut().filter(|it| parent.as_ref() == Some(&it.msg_id));
        if message.channel == Channel::Iopub {
            let header = message.parse_header();
            let msg_type = header.as_ref().map_or("unknown", |header| header.msg_type.as_str());
            let is_over = ends.is_some_and(|shutdown| shutdown.reply.is_some());
            let topic = format!("kernel.{}.{msg_type}", self.kernel.id());
            self.sockets.publish(topic, &message).await;
            // What is said after the reply is `idle`.
            return is_over;
        }
        if let Some(shutdown) = ends {
            shutdown.reply = Some(message.parse_content().unwrap_or_default());
        }
        if let Some(asker) = parent.and_then(|parent| self.routes.asker(&parent)) {
            let behind = self.sockets.behind();
            let is_held = !self.held.is_empty() || !behind.is_nobody();
            if message.channel == Channel::Shell && is_held {
                self.held.push_back(Held { behind, asker: asker.to_vec(), message });
            } else {
                self.sockets.reply(asker, &message).await;
            }
        }
        false
    }

    fn interrupt(&mut self) {
        while self.interrupts.try_join_next().is_some() {}
        let kernel = self.kernel.clone();
        self.interrupts.spawn(async move {
            if let Err(fault) = own::interrupt(&kernel).await {
                tracing::warn!(%fault, "the kernel could not be interrupted");
            }
        });
    }

    /// The process is told to end, perhaps while it restarts the kernel.
    async fn told_to_end(&mut self) -> Result<(), ProxyError> {
        let restarts = self.shutdown.as_ref().is_some_and(|it| it.restart);
        match self.on_exit {
            OnExit::Stop if !restarts => {
                stop(&self.client, self.kernel.id(), &mut self.connection).await
            }
            OnExit::Stop | OnExit::Keep => Ok(()),
        }
    }

    /// The kernel was stopped, perhaps by us, or the cluster is gone.
    async fn lost(&mut self, fault: Fault) -> Result<(), ProxyError> {
        let is_ours = self.shutdown.as_ref().is_some_and(|it| !it.restart);
        if fault.code != FaultCode::NotFound {
            return Err(fault.into());
        }
        self.connection.set_note(None)?;
        if is_ours {
            self.say_shut_down().await;
            return Ok(());
        }
        Err(fault.into())
    }

    fn after_shutdown(&mut self) -> Result<(), ProxyError> {
        let Some(Shutdown { restart, reply, .. }) = self.shutdown.take() else { return Ok(()) };
        match reply {
            Some(reply) if reply.status != "ok" => {
                let text = format!("the kernel could not be shut down: {}", reply.evalue);
                Err(Fault::new(FaultCode::Unavailable, text).into())
            }
            _ if restart => {
                self.note(false);
                Ok(())
            }
            _ if self.on_exit == OnExit::Stop => self.connection.set_note(None),
            _ => Ok(()),
        }
    }

    /// Notes whether the kernel is about to begin anew.
    fn note(&mut self, restart: bool) {
        let note = Note { kernel: self.kernel.id(), restart };
        if let Err(error) = self.connection.set_note(Some(note)) {
            tracing::warn!(%error, "the next process may not find this kernel");
        }
    }

    /// Says what a kernel says that shuts down.
    async fn say_shut_down(&mut self) {
        let Some(Shutdown { request, .. }) = &self.shutdown else { return };
        let (channel, parent) = (request.channel, request.header.clone());
        let said = Said { kernel: self.kernel.id(), parent: &parent };
        let content = serde_json::json!({ "status": "ok", "restart": false });
        let reply = said.reply(channel, "shutdown_request", &content);
        for message in [said.status("busy"), reply, said.status("idle")] {
            self.deliver(message).await;
        }
    }
}

/// Stops a kernel for good and forgets it.
async fn stop(
    client: &Client,
    kernel: KernelId,
    connection: &mut ConnectionFile,
) -> Result<(), ProxyError> {
    match client.control().stop_kernel(kernel).await {
        Err(fault) if fault.code != FaultCode::NotFound => return Err(fault.into()),
        _ => {}
    }
    connection.set_note(None)
}
