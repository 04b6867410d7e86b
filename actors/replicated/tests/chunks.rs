//! Chunks: stored by content, never served damaged, moved in pieces.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::{collections::HashSet, time::Duration};

use bytes::Bytes;
use callboard_protocol::{ClusterId, NodeId, OwnerId};
use callboard_replicated::{ChunkError, ChunkExchange, ChunkId, ChunkStore, ExchangeError};
use callboard_transport::{FaultPlan, MemoryNet};

fn owner() -> OwnerId {
    OwnerId::default()
}

fn node(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

fn store() -> (tempfile::TempDir, ChunkStore) {
    let directory = tempfile::tempdir().unwrap();
    let store = ChunkStore::open(directory.path()).unwrap();
    (directory, store)
}

fn pattern(length: usize) -> Bytes {
    (0..length).map(|i| (i * 31 % 251) as u8).collect::<Vec<_>>().into()
}

fn damage(directory: &tempfile::TempDir, id: ChunkId) {
    let path = directory.path().join(owner().as_str()).join(id.to_string());
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[0] ^= 1;
    std::fs::write(&path, bytes).unwrap();
}

async fn exchange(net: &MemoryNet, name: &str, store: &ChunkStore) -> ChunkExchange {
    let cluster = ClusterId::new("test").unwrap();
    ChunkExchange::serve(net.connect(name), cluster, node(name), store.clone()).await.unwrap()
}

#[tokio::test]
async fn a_chunk_is_read_back_by_its_hash_and_not_by_another_owner() {
    let (_directory, store) = store();
    let id = store.put(&owner(), pattern(1000)).await.unwrap();
    assert_eq!(id, ChunkId::of(&pattern(1000)));
    store.sync(&owner(), &[id]).await.unwrap();
    assert_eq!(store.get(&owner(), id).await.unwrap().unwrap(), pattern(1000));
    let other = OwnerId::new("other").unwrap();
    assert!(store.get(&other, id).await.unwrap().is_none());
    assert_eq!(store.missing(&other, &[id]), [id]);
}

#[tokio::test]
async fn a_damaged_chunk_is_reported_once_set_aside_and_can_be_put_again() {
    let (directory, store) = store();
    let id = store.put(&owner(), pattern(1000)).await.unwrap();
    damage(&directory, id);
    assert!(
        matches!(store.get(&owner(), id).await, Err(ChunkError::Corrupt(found)) if found == id)
    );
    assert!(!store.has(&owner(), id));
    assert!(store.get(&owner(), id).await.unwrap().is_none());
    store.put(&owner(), pattern(1000)).await.unwrap();
    assert_eq!(store.get(&owner(), id).await.unwrap().unwrap(), pattern(1000));
}

#[tokio::test]
async fn putting_a_chunk_that_rotted_unnoticed_repairs_it() {
    let (directory, store) = store();
    let id = store.put(&owner(), pattern(10)).await.unwrap();
    damage(&directory, id);
    store.put(&owner(), pattern(10)).await.unwrap();
    assert_eq!(store.get(&owner(), id).await.unwrap().unwrap(), pattern(10));
}

#[tokio::test]
async fn only_old_chunks_that_nothing_names_are_collected() {
    let (_directory, store) = store();
    let live = store.put(&owner(), pattern(10)).await.unwrap();
    let dead = store.put(&owner(), pattern(20)).await.unwrap();
    let named = HashSet::from([live]);
    let none = store.collect(&owner(), &named, Duration::from_secs(3600)).await.unwrap();
    assert_eq!(none.chunks, 0, "all chunks are within the grace period");
    let collected = store.collect(&owner(), &named, Duration::ZERO).await.unwrap();
    assert_eq!((collected.chunks, collected.bytes), (1, 20));
    assert!(store.has(&owner(), live) && !store.has(&owner(), dead));
}

#[tokio::test]
async fn what_a_crash_left_half_written_is_swept_on_open() {
    let (directory, store) = store();
    let id = store.put(&owner(), pattern(10)).await.unwrap();
    let half = directory.path().join(owner().as_str()).join("tmp-0-half");
    std::fs::write(&half, b"half").unwrap();
    let store = ChunkStore::open(directory.path()).unwrap();
    assert!(!half.exists() && store.has(&owner(), id));
}

#[tokio::test]
async fn a_chunk_over_the_limit_is_refused() {
    let (_directory, store) = store();
    let huge = Bytes::from(vec![0; callboard_replicated::CHUNK_LENGTH_MAX + 1]);
    assert!(matches!(store.put(&owner(), huge).await, Err(ChunkError::TooLarge { .. })));
}

#[tokio::test]
async fn chunks_are_pushed_and_pulled_in_pieces_even_if_pieces_arrive_twice() {
    let plan = FaultPlan { duplicate_probability: 0.3, ..FaultPlan::default() };
    let net = MemoryNet::new(3, plan);
    let ((_a, from), (_b, to), (_c, third)) = (store(), store(), store());
    let sender = exchange(&net, "from", &from).await;
    let _receiver = exchange(&net, "to", &to).await;
    let puller = exchange(&net, "third", &third).await;
    let big = from.put(&owner(), pattern(2_000_000)).await.unwrap();
    let empty = from.put(&owner(), Bytes::new()).await.unwrap();
    sender.push(&node("to"), &owner(), &[big, empty]).await.unwrap();
    assert_eq!(to.get(&owner(), big).await.unwrap().unwrap(), pattern(2_000_000));
    assert!(to.has(&owner(), empty));
    puller.pull(&[node("nobody"), node("to")], &owner(), &[big, empty]).await.unwrap();
    assert_eq!(third.get(&owner(), big).await.unwrap().unwrap(), pattern(2_000_000));
}

#[tokio::test]
async fn a_damaged_chunk_is_not_served_and_is_repaired_from_a_peer_that_has_it() {
    let net = MemoryNet::new(4, FaultPlan::default());
    let ((a, first), (_b, second), (_c, third)) = (store(), store(), store());
    let _first = exchange(&net, "first", &first).await;
    let _second = exchange(&net, "second", &second).await;
    let puller = exchange(&net, "third", &third).await;
    let id = first.put(&owner(), pattern(5000)).await.unwrap();
    damage(&a, id);
    let nowhere = puller.pull(&[node("first"), node("second")], &owner(), &[id]).await;
    assert!(matches!(nowhere, Err(ExchangeError::Nowhere { asked: 2, .. })));
    second.put(&owner(), pattern(5000)).await.unwrap();
    puller.pull(&[node("first"), node("second")], &owner(), &[id]).await.unwrap();
    assert_eq!(third.get(&owner(), id).await.unwrap().unwrap(), pattern(5000));
}

#[tokio::test]
async fn a_push_repairs_what_is_damaged_at_the_receiver() {
    let net = MemoryNet::new(5, FaultPlan::default());
    let ((_a, from), (b, to)) = (store(), store());
    let sender = exchange(&net, "from", &from).await;
    let _receiver = exchange(&net, "to", &to).await;
    let id = from.put(&owner(), pattern(5000)).await.unwrap();
    to.put(&owner(), pattern(5000)).await.unwrap();
    damage(&b, id);
    sender.push(&node("to"), &owner(), &[id]).await.unwrap();
    assert_eq!(to.get(&owner(), id).await.unwrap().unwrap(), pattern(5000));
}

#[test]
fn a_chunk_id_round_trips_as_text() {
    let id = ChunkId::of(b"x");
    assert_eq!(id.to_string().parse::<ChunkId>().unwrap(), id);
    assert!("zz".parse::<ChunkId>().is_err());
}
