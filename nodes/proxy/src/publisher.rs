//! iopub: an XPUB socket that welcomes each subscriber (JEP 65) and lets none hold up the others.
//!
//! Written by hand, since that of the `zeromq` crate waits for the slowest subscriber, and its PUB
//! socket does not say who subscribes. A subscriber that takes nothing for a while is let go; its
//! ZeroMQ connects again when it wakes.

use std::{
    collections::HashMap,
    io,
    os::fd::AsFd,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use rustix::net::sockopt::set_socket_send_buffer_size;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, split},
    net::{TcpListener, UnixListener},
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, sleep, timeout, timeout_at},
};

use crate::{
    connection::Endpoint,
    zmtp::{self, GREETING_BYTES, Said, ZmtpError},
};

/// Messages that wait for one subscriber: ten times what ZeroMQ keeps.
const WAITING_MAX: usize = 10_000;
/// How long all wait for a subscriber with so many messages, before it is let go.
const STALL_MAX: Duration = Duration::from_secs(2);
/// How long a reply is held at most.
const HELD_MAX: Duration = Duration::from_secs(60);
/// Messages that a subscriber may have to take yet while it hears that their cell is over: programs
/// wait a few seconds for the rest, in which they take thousands.
const BEHIND_MAX: u64 = 100;
/// What the operating system keeps for one subscriber; by itself it takes megabytes of small messages,
/// and nobody knows how far the subscriber is.
const SEND_BUFFER_BYTES: usize = 64 << 10;
/// How long a handshake may take.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
/// Pause after a connection that could not be accepted, as when file descriptors are short.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Most subscribers at a time; each is a program that looks at this kernel.
const SUBSCRIBERS_MAX: usize = 256;
/// Most topics of one subscriber. Front-ends have one, the empty one.
const TOPICS_MAX: usize = 64;

/// Makes the welcome, as it goes over the wire, of who subscribed to a topic.
pub(crate) type Welcome = Arc<dyn Fn(&Bytes) -> Vec<Bytes> + Send + Sync>;

#[derive(Debug)]
struct Subscriber {
    topics: Vec<Bytes>,
    queue: mpsc::Sender<Bytes>,
    /// Messages that it was given ever, and how many of them it took.
    given: u64,
    taken: watch::Receiver<u64>,
    /// How many it had taken when it was last waited for in vain.
    stalled: Arc<AtomicU64>,
}

/// Subscribers that have yet to take what they were given.
#[derive(Debug)]
pub(crate) struct Behind {
    waited_for: Vec<Awaited>,
    /// When somebody was waited for first.
    began: Option<Instant>,
}

#[derive(Debug)]
struct Awaited {
    given: u64,
    taken: watch::Receiver<u64>,
    stalled: Arc<AtomicU64>,
    /// When it took something last.
    moved: Option<Instant>,
}

impl Behind {
    pub(crate) fn is_nobody(&self) -> bool {
        self.waited_for.is_empty()
    }

    /// Waits until they have taken nearly all of it. One that takes nothing for a while is not waited
    /// for, and nobody for long. Safe to cancel.
    pub(crate) async fn caught_up(&mut self) {
        let end = *self.began.get_or_insert_with(Instant::now) + HELD_MAX;
        while let Some(Awaited { given, taken, stalled, moved }) = self.waited_for.last_mut() {
            let has = *taken.borrow_and_update();
            if has + BEHIND_MAX < *given {
                let until = *moved.get_or_insert_with(Instant::now) + STALL_MAX;
                match timeout_at(until.min(end), taken.changed()).await {
                    Ok(Ok(())) => {
                        *moved = None;
                        continue;
                    }
                    Ok(Err(_)) => {}
                    Err(_) => stalled.store(has, Ordering::Relaxed),
                }
            }
            self.waited_for.pop();
        }
    }
}

type Subscribers = Arc<Mutex<HashMap<u64, Subscriber>>>;

/// The publishing end. Dropping it ends every connection.
#[derive(Debug)]
pub(crate) struct Publisher {
    subscribers: Subscribers,
    _accepting: JoinSet<()>,
}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Publisher {
    pub(crate) async fn bind(endpoint: &Endpoint, welcome: Welcome) -> io::Result<Self> {
        let listener = match endpoint {
            Endpoint::Tcp(host, port) => {
                Listener::Tcp(TcpListener::bind((host.as_str(), *port)).await?)
            }
            Endpoint::Ipc(path) => Listener::Unix(UnixListener::bind(path)?),
        };
        let subscribers = Subscribers::default();
        let mut accepting = JoinSet::new();
        accepting.spawn(accept(listener, subscribers.clone(), welcome));
        Ok(Self { subscribers, _accepting: accepting })
    }

    /// Sends a message, whose first frame is its topic, to whoever subscribed to that.
    pub(crate) async fn publish(&self, frames: &[Bytes]) {
        let Some(topic) = frames.first() else { return };
        let queues: Vec<(u64, mpsc::Sender<Bytes>)> = locked(&self.subscribers)
            .iter_mut()
            .filter(|(_, it)| it.topics.iter().any(|prefix| topic.starts_with(prefix)))
            .map(|(number, it)| {
                it.given += 1;
                (*number, it.queue.clone())
            })
            .collect();
        if queues.is_empty() {
            return;
        }
        let wire = zmtp::message(frames);
        for (number, queue) in queues {
            if timeout(STALL_MAX, queue.send(wire.clone())).await.is_err() {
                tracing::warn!("a front-end that takes no outputs is disconnected");
                locked(&self.subscribers).remove(&number);
            }
        }
    }

    /// Who is far behind what was published until now.
    pub(crate) fn behind(&self) -> Behind {
        let subscribers = locked(&self.subscribers);
        let is_behind = |it: &&Subscriber| {
            let taken = *it.taken.borrow();
            taken + BEHIND_MAX < it.given && taken != it.stalled.load(Ordering::Relaxed)
        };
        let waited_for = subscribers.values().filter(is_behind).map(|it| {
            let (taken, stalled) = (it.taken.clone(), it.stalled.clone());
            Awaited { given: it.given, taken, stalled, moved: None }
        });
        Behind { waited_for: waited_for.collect(), began: None }
    }
}

fn locked(subscribers: &Subscribers) -> std::sync::MutexGuard<'_, HashMap<u64, Subscriber>> {
    subscribers.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn accept(listener: Listener, subscribers: Subscribers, welcome: Welcome) {
    let mut connections = JoinSet::new();
    for number in 0.. {
        while connections.try_join_next().is_some() {}
        let (subscribers, welcome) = (subscribers.clone(), welcome.clone());
        let accepted = match &listener {
            Listener::Tcp(listener) => listener.accept().await.map(|(stream, _)| {
                if connections.len() < SUBSCRIBERS_MAX {
                    // A kernel's messages are small and awaited.
                    let _ = stream.set_nodelay(true);
                    bound_buffer(&stream);
                    connections.spawn(connection(stream, number, subscribers, welcome));
                }
            }),
            Listener::Unix(listener) => listener.accept().await.map(|(stream, _)| {
                if connections.len() < SUBSCRIBERS_MAX {
                    bound_buffer(&stream);
                    connections.spawn(connection(stream, number, subscribers, welcome));
                }
            }),
        };
        if let Err(error) = accepted {
            tracing::debug!(%error, "a subscriber could not be accepted");
            sleep(ACCEPT_PAUSE).await;
        }
    }
}

fn bound_buffer(stream: &impl AsFd) {
    // With a larger one, all works but on a busy machine.
    let _ = set_socket_send_buffer_size(stream, SEND_BUFFER_BYTES);
}

async fn connection(
    stream: impl AsyncRead + AsyncWrite + Send,
    number: u64,
    subscribers: Subscribers,
    welcome: Welcome,
) {
    let result = serve(stream, number, &subscribers, &welcome).await;
    locked(&subscribers).remove(&number);
    if let Err(error) = result {
        tracing::debug!(%error, "a subscriber is gone");
    }
}

async fn serve(
    stream: impl AsyncRead + AsyncWrite + Send,
    number: u64,
    subscribers: &Subscribers,
    welcome: &Welcome,
) -> io::Result<()> {
    let (mut reader, mut writer) = split(stream);
    let mut buffer = BytesMut::new();
    timeout(HANDSHAKE_WITHIN, async {
        writer.write_all(&zmtp::greeting()).await?;
        let mut greeting = [0; GREETING_BYTES];
        reader.read_exact(&mut greeting).await?;
        zmtp::check_greeting(&greeting).map_err(invalid)?;
        writer.write_all(&zmtp::ready()).await?;
        match heard(&mut reader, &mut buffer).await? {
            Said::Ready(kind) if kind == "SUB" || kind == "XSUB" => Ok(()),
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, "it is no subscriber")),
        }
    })
    .await??;
    let (queue, mut waiting) = mpsc::channel::<Bytes>(WAITING_MAX);
    let (took, taken) = watch::channel(0);
    let stalled = Arc::new(AtomicU64::new(u64::MAX));
    let subscriber = Subscriber { topics: Vec::new(), queue, given: 0, taken, stalled };
    locked(subscribers).insert(number, subscriber);
    let write = async {
        // Ends once the subscriber is let go: nothing else holds the sending end.
        while let Some(message) = waiting.recv().await {
            writer.write_all(&message).await?;
            took.send_modify(|count| *count += 1);
        }
        Ok(())
    };
    let read = async {
        loop {
            let said = heard(&mut reader, &mut buffer).await?;
            let mut all = locked(subscribers);
            let Some(subscriber) = all.get_mut(&number) else { return Ok(()) };
            match said {
                Said::Subscribe(topic) if subscriber.topics.len() < TOPICS_MAX => {
                    // There is room, unless it takes nothing.
                    let said = subscriber.queue.try_send(zmtp::message(&welcome(&topic)));
                    subscriber.given += u64::from(said.is_ok());
                    subscriber.topics.push(topic);
                }
                Said::Unsubscribe(topic) => {
                    if let Some(at) = subscriber.topics.iter().position(|it| *it == topic) {
                        subscriber.topics.remove(at);
                    }
                }
                Said::Subscribe(_) | Said::Ready(_) | Said::Other => {}
            }
        }
    };
    tokio::select! { result = write => result, result = read => result }
}

async fn heard(reader: &mut (impl AsyncRead + Unpin), buffer: &mut BytesMut) -> io::Result<Said> {
    loop {
        if let Some(said) = zmtp::take(buffer).map_err(invalid)? {
            return Ok(said);
        }
        if reader.read_buf(buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

fn invalid(error: ZmtpError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests;
