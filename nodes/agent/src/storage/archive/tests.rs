use callboard_replicated::{ChunkExchange, ChunkStore, ExchangeError};
use callboard_transport::{FaultPlan, MemoryNet};

use super::*;
use crate::storage::keeper::Tally;

fn cluster() -> ClusterId {
    ClusterId::new("test").unwrap()
}

fn owner() -> OwnerId {
    OwnerId::default()
}

/// Copies chunks to `url`, loses every disk, and fetches them from there.
async fn a_copy_survives_every_disk(url: &str) {
    let archive = ObjectArchive::open(url, &cluster()).unwrap().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let store = ChunkStore::open(directory.path()).unwrap();
    let bytes = Bytes::from(format!("a chunk {url} {:?}", std::time::SystemTime::now()));
    let id = store.put(&owner(), bytes.clone()).await.unwrap();
    let tally = Arc::new(Tally::default());
    let uploading = tokio::spawn(archive.clone().upload(store.clone(), tally.clone()));
    archive.offer(&owner(), &[id]);
    while !archive.has(&owner(), id).await.unwrap() {
        tokio::task::yield_now().await;
    }
    uploading.abort();
    drop((store, directory));

    let directory = tempfile::tempdir().unwrap();
    let store = ChunkStore::open(directory.path()).unwrap();
    let net = MemoryNet::new(1, FaultPlan::default());
    let node = callboard_protocol::NodeId::new("node-1").unwrap();
    let exchange = ChunkExchange::serve_with(
        net.connect("node-1"),
        cluster(),
        node,
        store.clone(),
        Some(archive.clone()),
    )
    .await
    .unwrap();
    exchange.pull(&[], &owner(), &[id]).await.unwrap();
    assert_eq!(store.get(&owner(), id).await.unwrap().unwrap(), bytes);
    let unknown = ChunkId::of(b"never stored");
    let nowhere = exchange.pull(&[], &owner(), &[unknown]).await;
    assert!(matches!(nowhere, Err(ExchangeError::Nowhere { .. })));
    assert!(archive.owners().await.unwrap().contains(&owner()));
    assert!(archive.list(&owner()).await.unwrap().iter().any(|it| it.id == id));
    archive.remove(&owner(), id).await.unwrap();
    archive.remove(&owner(), id).await.unwrap();
    assert!(!archive.has(&owner(), id).await.unwrap());
}

#[tokio::test]
async fn a_copy_in_a_directory_survives_every_disk() {
    let directory = tempfile::tempdir().unwrap();
    a_copy_survives_every_disk(&format!("file://{}", directory.path().display())).await;
}

#[tokio::test]
#[ignore = "needs an S3 server: scripts/with-s3 starts one and sets CALLBOARD_TEST_S3_URL"]
async fn a_copy_in_s3_survives_every_disk() {
    let url = std::env::var("CALLBOARD_TEST_S3_URL").expect("run by scripts/with-s3");
    a_copy_survives_every_disk(&url).await;
}

#[tokio::test]
async fn damaged_bytes_in_the_object_store_are_not_taken() {
    let directory = tempfile::tempdir().unwrap();
    let url = format!("file://{}", directory.path().display());
    let archive = ObjectArchive::open(&url, &cluster()).unwrap().unwrap();
    let id = ChunkId::of(b"right");
    archive.write(&owner(), id, Bytes::from_static(b"wrong")).await.unwrap();
    let here = tempfile::tempdir().unwrap();
    let store = ChunkStore::open(here.path()).unwrap();
    let net = MemoryNet::new(2, FaultPlan::default());
    let node = callboard_protocol::NodeId::new("node-1").unwrap();
    let bus = net.connect("node-1");
    let exchange =
        ChunkExchange::serve_with(bus, cluster(), node, store.clone(), Some(archive)).await;
    assert!(exchange.unwrap().pull(&[], &owner(), &[id]).await.is_err());
    assert!(!store.has(&owner(), id));
}

#[test]
fn a_url_that_makes_no_sense_is_refused_with_a_next_step() {
    for (url, part) in [("ftp://x", "use file:///"), ("file://relative/x", "absolute directory")] {
        let error = ObjectArchive::open(url, &cluster()).unwrap_err().to_string();
        assert!(error.contains(part) && error.contains(url), "{error}");
    }
    assert!(ObjectArchive::open("", &cluster()).unwrap().is_none());
}
