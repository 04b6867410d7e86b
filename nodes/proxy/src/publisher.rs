//! iopub: an XPUB socket that welcomes each subscriber (JEP 65) and lets none hold up the others.
//!
//! Written by hand, since that of the `zeromq` crate waits for the slowest subscriber, and its PUB
//! socket does not say who subscribes. A subscriber that takes nothing for a while is let go; its
//! ZeroMQ connects again when it wakes.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, split},
    net::{TcpListener, UnixListener},
    sync::mpsc,
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::{
    connection::Endpoint,
    zmtp::{self, GREETING_BYTES, Said, ZmtpError},
};

/// Messages that wait for one subscriber: ten times what ZeroMQ keeps.
const WAITING_MAX: usize = 10_000;
/// How long all wait for a subscriber with so many messages, before it is let go.
const STALL_MAX: Duration = Duration::from_secs(2);
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
            .iter()
            .filter(|(_, it)| it.topics.iter().any(|prefix| topic.starts_with(prefix)))
            .map(|(number, it)| (*number, it.queue.clone()))
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
                    connections.spawn(connection(stream, number, subscribers, welcome));
                }
            }),
            Listener::Unix(listener) => listener.accept().await.map(|(stream, _)| {
                if connections.len() < SUBSCRIBERS_MAX {
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
    locked(subscribers).insert(number, Subscriber { topics: Vec::new(), queue });
    let write = async {
        // Ends once the subscriber is let go: nothing else holds the sending end.
        while let Some(message) = waiting.recv().await {
            writer.write_all(&message).await?;
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
                    let _ = subscriber.queue.try_send(zmtp::message(&welcome(&topic)));
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
mod tests {
    use tokio::net::UnixStream;
    use zeromq::{Socket as _, SocketRecv as _, SubSocket};

    use super::*;

    fn texts(frames: &[&'static str]) -> Vec<Bytes> {
        frames.iter().map(|text| Bytes::from_static(text.as_bytes())).collect()
    }

    fn endpoint_in(folder: &tempfile::TempDir) -> Endpoint {
        Endpoint::Ipc(folder.path().join("iopub"))
    }

    async fn bind(endpoint: &Endpoint) -> Publisher {
        let welcome = |topic: &Bytes| vec![topic.clone(), Bytes::from_static(b"welcome")];
        Publisher::bind(endpoint, Arc::new(welcome)).await.unwrap()
    }

    async fn subscriber(endpoint: &Endpoint, topic: &'static str) -> SubSocket {
        let mut socket = SubSocket::new();
        socket.connect(&endpoint.to_string()).await.unwrap();
        socket.subscribe(topic).await.unwrap();
        assert_eq!(heard(&mut socket).await, texts(&[topic, "welcome"]));
        socket
    }

    async fn heard(socket: &mut SubSocket) -> Vec<Bytes> {
        let next = timeout(Duration::from_secs(30), socket.recv()).await;
        next.unwrap().unwrap().into_vec()
    }

    #[tokio::test]
    async fn each_subscriber_is_welcomed_and_hears_its_topics() {
        let folder = tempfile::tempdir().unwrap();
        let endpoint = endpoint_in(&folder);
        let publisher = bind(&endpoint).await;
        let mut all = subscriber(&endpoint, "").await;
        let mut some = subscriber(&endpoint, "b").await;
        publisher.publish(&texts(&["a", "1", ""])).await;
        publisher.publish(&texts(&["b", "2"])).await;
        assert_eq!(heard(&mut all).await, texts(&["a", "1", ""]));
        assert_eq!(heard(&mut all).await, texts(&["b", "2"]));
        assert_eq!(heard(&mut some).await, texts(&["b", "2"]));
    }

    #[tokio::test]
    async fn a_subscriber_that_takes_nothing_does_not_hold_up_another() {
        let folder = tempfile::tempdir().unwrap();
        let endpoint = endpoint_in(&folder);
        let publisher = bind(&endpoint).await;
        let Endpoint::Ipc(path) = &endpoint else { panic!("bound to a path") };
        let mut stalled = UnixStream::connect(path).await.unwrap();
        // A greeting, READY with Socket-Type SUB, and a subscription to everything.
        stalled.write_all(&zmtp::greeting()).await.unwrap();
        stalled
            .write_all(b"\x04\x19\x05READY\x0bSocket-Type\x00\x00\x00\x03SUB\x00\x01\x01")
            .await
            .unwrap();
        while locked(&publisher.subscribers).values().all(|it| it.topics.is_empty()) {
            sleep(Duration::from_millis(1)).await;
        }
        let mut other = subscriber(&endpoint, "").await;
        let count = WAITING_MAX + 5_000;
        let payload = Bytes::from(vec![0; 1_000]);
        let publish = async {
            for _ in 0..count {
                publisher.publish(std::slice::from_ref(&payload)).await;
            }
        };
        let hear = async {
            for _ in 0..count {
                assert_eq!(heard(&mut other).await, std::slice::from_ref(&payload));
            }
        };
        tokio::join!(publish, hear);
        assert_eq!(locked(&publisher.subscribers).len(), 1);
    }

    #[tokio::test]
    async fn whoever_is_no_subscriber_is_turned_away() {
        let folder = tempfile::tempdir().unwrap();
        let endpoint = endpoint_in(&folder);
        let publisher = bind(&endpoint).await;
        let Endpoint::Ipc(path) = &endpoint else { panic!("bound to a path") };
        let mut stranger = UnixStream::connect(path).await.unwrap();
        stranger.write_all(&[b'x'; 100]).await.unwrap();
        let mut said = Vec::new();
        // However the connection ends, it does.
        let _ = stranger.read_to_end(&mut said).await;
        assert!(said.len() >= GREETING_BYTES || said.is_empty());
        assert!(locked(&publisher.subscribers).is_empty());
    }
}
