//! What a node does with what lies on its disk.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod common;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use callboard_protocol::{
    ActorKind, Envelope, Fault, GroupId, KernelId, OwnerId, Subject,
    storage::{Named, NamedAmong, NodeStorage, Purge, Purged},
};
use callboard_replicated::{ChunkId, ChunkStore};
use callboard_runtime::universe::Universe;
use callboard_transport::typed;
use serde::{Serialize, de::DeserializeOwned};
use uuid::Uuid;

use self::common::{TestCluster, cluster, node};

async fn ask<Req: Serialize + Sync, Rep: DeserializeOwned>(
    of: &TestCluster,
    verb: &str,
    request: &Req,
) -> Result<Rep, Fault> {
    let subject = Subject::actor(&cluster(), ActorKind::Node, node(1), verb);
    let within = Duration::from_secs(30);
    typed::ask(&*of.operator, &subject, &Envelope::default(), request, within).await
}

fn group(kernel: KernelId) -> GroupId {
    GroupId::of_kernel(kernel, 0)
}

async fn storage(of: &TestCluster) -> NodeStorage {
    ask(of, "storage", &()).await.unwrap()
}

fn content(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

/// Three nodes, the first of which finds chunks on its disk.
async fn with_chunks(universe: &Universe, texts: &[&'static str]) -> TestCluster {
    let mut cluster = TestCluster::founded(universe, 3).await;
    cluster.crash(1).await;
    let store = ChunkStore::open(&cluster.directory(1).join("chunks")).unwrap();
    for text in texts {
        store.put(&OwnerId::default(), content(text)).await.unwrap();
    }
    cluster.start(&[1]).await;
    cluster
}

#[test]
fn chunks_that_no_kernel_names_go_after_the_grace_period_and_not_before() {
    Universe::run(31, |universe| async move {
        let cluster = with_chunks(&universe, &["a", "bb"]).await;
        let before = storage(&cluster).await;
        assert_eq!((before.owners[0].chunks, before.owners[0].bytes), (2, 3));
        assert!(before.disk_free_bytes > 0 && !before.disk_is_high);
        // They are of a former life, whose last receipts may count.
        tokio::time::sleep(Duration::from_secs(50)).await;
        assert_eq!(storage(&cluster).await.owners[0].chunks, 2);
        tokio::time::sleep(Duration::from_secs(30)).await;
        let after = storage(&cluster).await;
        assert!(after.owners.is_empty(), "{after:?}");
        assert_eq!((after.moved.collected_chunks, after.moved.collected_bytes), (2, 3));
        cluster.stop().await;
    });
}

#[test]
fn a_member_that_has_not_said_what_it_names_keeps_everything_and_is_told_of() {
    Universe::run(32, |universe| async move {
        let cluster = with_chunks(&universe, &["a"]).await;
        let kernel = KernelId(Uuid::from_u128(7));
        // The members of these tests never say what they name.
        cluster.start_kernel(kernel).await;
        let pins = cluster.running(1).pins();
        pins.expect((group(kernel), callboard_protocol::ReplicaId(1)));
        tokio::time::sleep(Duration::from_secs(200)).await;
        let held = storage(&cluster).await;
        assert_eq!(held.owners[0].chunks, 1);
        let why = held.collector_waits.unwrap();
        assert!(why.contains(&kernel.to_string()), "{why}");
        let chunks = vec![ChunkId::of(b"a").to_string()];
        let among = NamedAmong { owner: OwnerId::default(), chunks };
        let fault = ask::<_, Named>(&cluster, "named", &among).await.unwrap_err();
        assert!(fault.message.contains("waiting for"), "{fault}");
        let fault = ask::<_, Purged>(&cluster, "purge", &Purge { kernel }).await.unwrap_err();
        assert!(fault.message.contains("still runs here"), "{fault}");
        cluster.stop().await;
    });
}

#[test]
fn what_only_a_purged_kernel_named_goes_at_once() {
    Universe::run(33, |universe| async move {
        let cluster = with_chunks(&universe, &["a", "shared"]).await;
        let pins = cluster.running(1).pins();
        let (kernel, other) = (KernelId(Uuid::from_u128(7)), KernelId(Uuid::from_u128(8)));
        let shared = ChunkId::of(b"shared");
        for (kernel, names) in [(kernel, vec![ChunkId::of(b"a"), shared]), (other, vec![shared])] {
            let holder = (group(kernel), callboard_protocol::ReplicaId(1));
            let names: std::collections::BTreeSet<_> = names.into_iter().collect();
            let witnessed = names.clone();
            let look = move || Some(witnessed.clone());
            let _number = pins.register(holder.clone(), OwnerId::default(), Arc::new(look));
            pins.publish(&holder, names.clone(), names);
        }
        // Whatever was promised a moment ago may be another kernel's.
        tokio::time::sleep(Duration::from_secs(45)).await;
        pins.forget(&(group(kernel), callboard_protocol::ReplicaId(1)));
        let purged: Purged = ask(&cluster, "purge", &Purge { kernel }).await.unwrap();
        assert_eq!(purged, Purged { chunks: 1, bytes: 1, left: 0 });
        assert_eq!(storage(&cluster).await.owners[0].bytes, 6, "the shared one stays");
        let chunks = vec![ChunkId::of(b"a").to_string(), shared.to_string()];
        let among = NamedAmong { owner: OwnerId::default(), chunks };
        let named: Named = ask(&cluster, "named", &among).await.unwrap();
        assert_eq!(named.positions, [1]);
        cluster.stop().await;
    });
}

#[test]
fn the_scrub_finds_damage_and_says_whose_it_is() {
    Universe::run(34, |universe| async move {
        let cluster = with_chunks(&universe, &["a chunk"]).await;
        let (kernel, id) = (KernelId(Uuid::from_u128(7)), ChunkId::of(b"a chunk"));
        let holder = (group(kernel), callboard_protocol::ReplicaId(1));
        let pins = cluster.running(1).pins();
        let names = std::collections::BTreeSet::from([id]);
        let _number = pins.register(holder.clone(), OwnerId::default(), Arc::new(|| None));
        pins.publish(&holder, names.clone(), names);
        let owner = OwnerId::default();
        let path = cluster.directory(1).join("chunks").join(owner.as_str()).join(id.to_string());
        std::fs::write(&path, b"a chink").unwrap();
        tokio::time::sleep(Duration::from_secs(30)).await;
        let found = storage(&cluster).await;
        assert_eq!((found.moved.damaged_chunks, found.damaged.len()), (1, 1));
        let damaged = &found.damaged[0];
        assert_eq!(
            (&damaged.chunk, &damaged.kernels),
            (&id.to_string(), &vec![kernel.to_string()])
        );
        assert!(!damaged.is_repaired);
        cluster.stop().await;
    });
}
