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

/// A subscriber to everything that takes nothing by itself.
async fn stalled(endpoint: &Endpoint, publisher: &Publisher) -> UnixStream {
    let Endpoint::Ipc(path) = endpoint else { panic!("bound to a path") };
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
    stalled
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
    let _stalled = stalled(&endpoint, &publisher).await;
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
async fn a_subscriber_is_behind_until_it_has_taken_nearly_all() {
    let folder = tempfile::tempdir().unwrap();
    let endpoint = endpoint_in(&folder);
    let publisher = bind(&endpoint).await;
    let mut slow = stalled(&endpoint, &publisher).await;
    assert!(publisher.behind().is_nobody());
    let payload = Bytes::from(vec![0; 10_000]);
    for _ in 0..1_000 {
        publisher.publish(std::slice::from_ref(&payload)).await;
    }
    let mut behind = publisher.behind();
    assert!(!behind.is_nobody());
    let mut read = 0;
    let mut taken = vec![0; 100_000];
    let take = async {
        loop {
            read += slow.read(&mut taken).await.unwrap();
        }
    };
    tokio::select! { () = behind.caught_up() => {}, () = take => {} }
    assert!(read > 8_000_000, "only {read} bytes were taken");
}

#[tokio::test]
async fn a_subscriber_that_takes_nothing_is_not_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let endpoint = endpoint_in(&folder);
    let publisher = bind(&endpoint).await;
    let _stalled = stalled(&endpoint, &publisher).await;
    for _ in 0..1_000 {
        publisher.publish(&[Bytes::from(vec![0; 10_000])]).await;
    }
    let mut behind = publisher.behind();
    timeout(STALL_MAX * 5, behind.caught_up()).await.unwrap();
    assert!(behind.is_nobody());
    // Nor again, before it takes something.
    assert!(publisher.behind().is_nobody());
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
