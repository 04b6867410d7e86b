//! Chunks: stored by content, never served damaged, moved in pieces.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::{
    collections::HashSet,
    io,
    sync::{
        Arc, Mutex,
        atomic::Ordering::{Relaxed, SeqCst},
    },
    time::Duration,
};

use bytes::Bytes;
use callboard_protocol::{ClusterId, NodeId, OwnerId};
use callboard_replicated::{
    ChunkError, ChunkExchange, ChunkFaults, ChunkId, ChunkRoom, ChunkStep, ChunkStore,
    ChunkStoreOptions, ExchangeError, GRACE_MIN,
};
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

#[tokio::test(start_paused = true)]
async fn what_a_former_life_left_goes_as_soon_as_is_safe_unless_somebody_put_it_again() {
    let (directory, store) = store();
    let dead = store.put(&owner(), pattern(10)).await.unwrap();
    let again = store.put(&owner(), pattern(20)).await.unwrap();
    let (none, hour) = (HashSet::new(), Duration::from_secs(3600));
    drop(store);
    let store = ChunkStore::open(directory.path()).unwrap();
    tokio::time::advance(GRACE_MIN - Duration::from_secs(1)).await;
    assert_eq!(
        store.collect(&owner(), &none, hour).await.unwrap().chunks,
        0,
        "a receipt may count"
    );
    store.put(&owner(), pattern(20)).await.unwrap();
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(store.collect(&owner(), &none, hour).await.unwrap().chunks, 1);
    assert!(store.has(&owner(), again) && !store.has(&owner(), dead));
}

#[tokio::test]
async fn chunks_leave_alone_what_is_kept_for_others() {
    let directory = tempfile::tempdir().unwrap();
    let room = ChunkRoom::new(|bytes| bytes <= 100);
    let options = ChunkStoreOptions { room, ..Default::default() };
    let store = ChunkStore::open_with(directory.path(), options).unwrap();
    store.put(&owner(), pattern(100)).await.unwrap();
    let error = store.put(&owner(), pattern(101)).await.unwrap_err();
    assert!(matches!(error, ChunkError::Full { .. }), "{error}");
    let files = std::fs::read_dir(directory.path().join(owner().as_str())).unwrap().count();
    assert_eq!(files, 1, "nothing is left of it");
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

/// Many different chunks of some length.
fn many(count: usize, length: usize) -> Vec<(ChunkId, Bytes)> {
    let chunk = |number: usize| {
        let mut bytes = pattern(length).to_vec();
        bytes[..8].copy_from_slice(&(number as u64).to_le_bytes());
        let bytes = Bytes::from(bytes);
        (ChunkId::of(&bytes), bytes)
    };
    (0..count).map(chunk).collect()
}

fn ids(chunks: &[(ChunkId, Bytes)]) -> Vec<ChunkId> {
    chunks.iter().map(|(id, _)| *id).collect()
}

/// A store whose steps fail as the test says.
fn faulty(
    fails: impl Fn(ChunkStep) -> io::Result<()> + Send + Sync + 'static,
) -> (tempfile::TempDir, ChunkStore) {
    let directory = tempfile::tempdir().unwrap();
    let options = ChunkStoreOptions { faults: ChunkFaults::new(fails), ..Default::default() };
    let store = ChunkStore::open_with(directory.path(), options).unwrap();
    (directory, store)
}

fn files(directory: &tempfile::TempDir) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(directory.path().join(owner().as_str())) else {
        return Vec::new();
    };
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[tokio::test]
async fn a_large_batch_is_durable_with_a_few_syncs_and_chunks_that_are_there_are_not_written() {
    let steps: Arc<Mutex<Vec<ChunkStep>>> = Arc::default();
    let seen = steps.clone();
    let (_directory, store) = faulty(move |step| {
        seen.lock().unwrap().push(step);
        Ok(())
    });
    let chunks = many(500, 100);
    store.put_many(&owner(), chunks.clone()).await.unwrap();
    let count = |step| steps.lock().unwrap().iter().filter(|it| **it == step).count();
    assert_eq!((count(ChunkStep::Write), count(ChunkStep::Sync)), (500, 1));
    assert_eq!(store.counters().stored_bytes.load(Relaxed), 500 * 100);
    let more = many(501, 100);
    store.put_many(&owner(), [more.clone(), more].concat()).await.unwrap();
    assert_eq!(count(ChunkStep::Write), 501, "500 were there, and one was named twice");
    assert!(store.missing(&owner(), &ids(&chunks)).is_empty());
    let usage = store.usage();
    assert_eq!((usage[0].chunks, usage[0].bytes, usage[0].damaged), (501, 50_100, 0));
}

#[tokio::test]
async fn a_full_disk_at_any_step_is_a_sentence_leaves_what_was_there_and_passes() {
    for step in [ChunkStep::Write, ChunkStep::Rename] {
        let full = Arc::new(Mutex::new(None::<usize>));
        let after = full.clone();
        let (directory, store) = faulty(move |now| match &mut *after.lock().unwrap() {
            Some(0) if now == step => Err(io::ErrorKind::StorageFull.into()),
            Some(left) if now == step => {
                *left -= 1;
                Ok(())
            }
            _ => Ok(()),
        });
        let before = store.put(&owner(), pattern(50)).await.unwrap();
        *full.lock().unwrap() = Some(3);
        let error = store.put_many(&owner(), many(10, 100)).await.unwrap_err();
        assert!(error.is_no_room() && error.to_string().contains("free space"), "{error}");
        assert!(store.get(&owner(), before).await.unwrap().is_some());
        assert!(files(&directory).iter().all(|name| !name.starts_with("tmp-")), "{step:?}");
        assert_eq!(*store.failed().borrow(), None, "a full disk is not final");
        *full.lock().unwrap() = None;
        store.put_many(&owner(), many(10, 100)).await.unwrap();
        assert!(store.missing(&owner(), &ids(&many(10, 100))).is_empty());
    }
}

#[tokio::test]
async fn a_failed_sync_is_final_and_nothing_is_promised_after_it() {
    for step in [ChunkStep::Sync, ChunkStep::SyncDirectory] {
        let broken = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let is_broken = broken.clone();
        let (directory, store) = faulty(move |now| {
            if now == step && is_broken.load(SeqCst) {
                Err(io::Error::other("gone"))
            } else {
                Ok(())
            }
        });
        let before = store.put(&owner(), pattern(50)).await.unwrap();
        broken.store(true, SeqCst);
        store.put_many(&owner(), many(3, 100)).await.unwrap_err();
        assert!(store.failed().borrow().as_ref().is_some_and(|why| why.contains("gone")));
        assert_eq!(store.missing(&owner(), &ids(&many(3, 100))).len(), 3);
        broken.store(false, SeqCst);
        let error = store.put(&owner(), pattern(70)).await.unwrap_err();
        assert!(error.to_string().contains("started again"), "{error}");
        assert!(store.get(&owner(), before).await.unwrap().is_some(), "reading goes on");
        drop(store);
        let store = ChunkStore::open(directory.path()).unwrap();
        assert!(store.has(&owner(), before));
        store.put_many(&owner(), many(3, 100)).await.unwrap();
    }
}

#[tokio::test]
async fn a_store_of_another_version_is_refused_with_both_versions_and_a_next_step() {
    let (directory, store) = store();
    drop(store);
    std::fs::write(directory.path().join(".format"), "callboard chunks 7\n").unwrap();
    let error = ChunkStore::open(directory.path()).unwrap_err().to_string();
    for part in ["format 7", "format 1", "start the version", "move the folder away"] {
        assert!(error.contains(part), "{part} is missing in: {error}");
    }
    std::fs::write(directory.path().join(".format"), "?").unwrap();
    let error = ChunkStore::open(directory.path()).unwrap_err();
    assert!(matches!(error, ChunkError::FormatUnreadable { .. }), "{error}");
}

#[tokio::test]
async fn a_store_from_before_there_were_formats_is_read() {
    let (directory, store) = store();
    let id = store.put(&owner(), pattern(10)).await.unwrap();
    drop(store);
    std::fs::remove_file(directory.path().join(".format")).unwrap();
    let store = ChunkStore::open(directory.path()).unwrap();
    assert_eq!(store.get(&owner(), id).await.unwrap().unwrap(), pattern(10));
    let note = std::fs::read_to_string(directory.path().join(".format")).unwrap();
    assert_eq!(note, "callboard chunks 1\n");
}

#[tokio::test]
async fn a_quota_refuses_what_is_new_and_not_what_is_there_or_comes_from_others() {
    let directory = tempfile::tempdir().unwrap();
    let options = ChunkStoreOptions { owner_quota_bytes: 1000, ..Default::default() };
    let limited = ChunkStore::open_with(directory.path(), options).unwrap();
    limited.put_many(&owner(), many(9, 100)).await.unwrap();
    let error = limited.put_many(&owner(), many(11, 100)).await.unwrap_err();
    assert!(matches!(error, ChunkError::OverQuota { used_bytes: 900, wanted_bytes: 200, .. }));
    limited.put_many(&owner(), many(10, 100)).await.unwrap();
    limited.put(&OwnerId::new("other").unwrap(), pattern(800)).await.unwrap();
    let net = MemoryNet::new(6, FaultPlan::default());
    let (_b, from) = store();
    let _to = exchange(&net, "to", &limited).await;
    let sender = exchange(&net, "from", &from).await;
    let id = from.put(&owner(), pattern(5000)).await.unwrap();
    sender.push(&node("to"), &owner(), &[id]).await.unwrap();
}

#[tokio::test]
async fn only_what_the_receiver_lacks_moves_and_it_moves_with_one_sync() {
    let net = MemoryNet::new(7, FaultPlan::default());
    let syncs = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = syncs.clone();
    let (_b, to) = faulty(move |step| {
        counted.fetch_add(usize::from(step == ChunkStep::Sync), SeqCst);
        Ok(())
    });
    let (_a, from) = store();
    let sender = exchange(&net, "from", &from).await;
    let _receiver = exchange(&net, "to", &to).await;
    let chunks = many(300, 20_000);
    from.put_many(&owner(), chunks.clone()).await.unwrap();
    to.put_many(&owner(), chunks[..200].to_vec()).await.unwrap();
    syncs.store(0, SeqCst);
    sender.push(&node("to"), &owner(), &ids(&chunks)).await.unwrap();
    assert!(to.missing(&owner(), &ids(&chunks)).is_empty());
    assert_eq!(syncs.load(SeqCst), 1);
    assert_eq!(from.counters().sent_bytes.load(Relaxed), 100 * 20_000);
    assert_eq!(from.counters().spared_bytes.load(Relaxed), 200 * 20_000);
    assert_eq!(to.counters().received_bytes.load(Relaxed), 100 * 20_000);
    sender.push(&node("to"), &owner(), &ids(&chunks)).await.unwrap();
    assert_eq!(from.counters().sent_bytes.load(Relaxed), 100 * 20_000, "it has them all");
}

#[tokio::test]
async fn chunks_come_from_several_peers_at_once_each_giving_what_it_has() {
    let plan = FaultPlan { duplicate_probability: 0.2, ..FaultPlan::default() };
    let net = MemoryNet::new(8, plan);
    let ((_a, first), (_b, second), (_c, third)) = (store(), store(), store());
    let _first = exchange(&net, "first", &first).await;
    let _second = exchange(&net, "second", &second).await;
    let puller = exchange(&net, "third", &third).await;
    let chunks = many(120, 30_000);
    first.put_many(&owner(), chunks[..80].to_vec()).await.unwrap();
    second.put_many(&owner(), chunks[40..].to_vec()).await.unwrap();
    let big = second.put(&owner(), pattern(5_000_000)).await.unwrap();
    let wanted = [ids(&chunks), vec![big]].concat();
    puller.pull(&[node("first"), node("gone"), node("second")], &owner(), &wanted).await.unwrap();
    for id in &wanted {
        assert!(third.get(&owner(), *id).await.unwrap().is_some());
    }
    let served = |store: &ChunkStore| store.counters().sent_bytes.load(Relaxed);
    assert!(served(&first) >= 40 * 30_000 && served(&second) >= 40 * 30_000 + 5_000_000);
}

#[tokio::test]
async fn what_a_sender_that_left_off_brought_is_not_fetched_again() {
    let net = MemoryNet::new(11, FaultPlan::default());
    let ((_a, from), (_b, to)) = (store(), store());
    let sender = exchange(&net, "from", &from).await;
    let receiver = exchange(&net, "to", &to).await;
    let chunks = many(200, 50_000);
    from.put_many(&owner(), chunks.clone()).await.unwrap();
    let pushing = {
        let (owner, wanted) = (owner(), ids(&chunks));
        tokio::spawn(async move { sender.push(&node("to"), &owner, &wanted).await })
    };
    while to.counters().received_bytes.load(Relaxed) < 150 * 50_000 {
        tokio::task::yield_now().await;
    }
    pushing.abort();
    receiver.pull(&[node("from")], &owner(), &ids(&chunks)).await.unwrap();
    assert!(to.missing(&owner(), &ids(&chunks)).is_empty());
    let received = to.counters().received_bytes.load(Relaxed);
    // The last 50 may come twice: they were on their way when they were asked for.
    assert!(received < 300 * 50_000, "of 200 chunks {} were sent", received / 50_000);
}

#[tokio::test]
async fn nodes_of_the_version_before_get_and_give_chunks() {
    let net = MemoryNet::new(9, FaultPlan::default());
    let ((_a, new), (_b, old), (_c, third)) = (store(), store(), store());
    let cluster = || ClusterId::new("test").unwrap();
    let new_one = exchange(&net, "new", &new).await;
    let puller = exchange(&net, "third", &third).await;
    let bus = net.connect("old");
    let _old = ChunkExchange::serve_like_version_0_1(bus, cluster(), node("old"), old.clone());
    let _old = _old.await.unwrap();
    let chunks =
        [many(5, 1000), vec![(ChunkId::of(&pattern(3_000_000)), pattern(3_000_000))]].concat();
    new.put_many(&owner(), chunks.clone()).await.unwrap();
    new_one.push(&node("old"), &owner(), &ids(&chunks)).await.unwrap();
    assert!(old.missing(&owner(), &ids(&chunks)).is_empty());
    puller.pull(&[node("old")], &owner(), &ids(&chunks)).await.unwrap();
    assert!(third.missing(&owner(), &ids(&chunks)).is_empty());
}

#[tokio::test]
async fn a_receiver_without_room_says_so_and_takes_them_when_there_is() {
    let net = MemoryNet::new(10, FaultPlan::default());
    let full = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let is_full = full.clone();
    let (_b, to) = faulty(move |step| {
        if step == ChunkStep::Write && is_full.load(SeqCst) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    });
    let (_a, from) = store();
    let sender = exchange(&net, "from", &from).await;
    let _receiver = exchange(&net, "to", &to).await;
    from.put_many(&owner(), many(10, 1000)).await.unwrap();
    let wanted = ids(&many(10, 1000));
    let error = sender.push(&node("to"), &owner(), &wanted).await.unwrap_err();
    assert!(matches!(error, ExchangeError::NoRoom { .. }), "{error}");
    full.store(false, SeqCst);
    sender.push(&node("to"), &owner(), &wanted).await.unwrap();
}

#[tokio::test]
async fn a_held_chunk_is_not_collected_and_counts_as_touched_after() {
    let (_directory, store) = store();
    let id = store.put(&owner(), pattern(10)).await.unwrap();
    let hold = store.hold(&owner(), &[id]);
    let none = HashSet::new();
    assert_eq!(store.collect(&owner(), &none, Duration::ZERO).await.unwrap().chunks, 0);
    drop(hold);
    assert_eq!(store.collect(&owner(), &none, Duration::from_secs(60)).await.unwrap().chunks, 0);
    assert_eq!(store.collect(&owner(), &none, Duration::ZERO).await.unwrap().chunks, 1);
}
