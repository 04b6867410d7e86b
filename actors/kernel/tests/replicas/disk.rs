//! Quotas, full disks, marks.

use std::{
    io::ErrorKind,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use callboard_client::{ExecuteEvent, ExecuteOptions, KernelClient};
use callboard_replicated::{ChunkFaults, ChunkStep, ChunkStoreOptions};

use super::cluster::{Cluster, DEADLINE, executor, value};

/// The names that are not kept, with the reasons.
async fn refused(client: &KernelClient) -> Vec<(String, String)> {
    let refused = client.show().await.unwrap().refused;
    refused.into_iter().map(|it| (it.name, it.reason)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_variable_over_the_quota_is_refused_by_name_until_it_goes_and_the_rest_is_kept() {
    let options = ChunkStoreOptions { owner_quota_bytes: 2_000_000, ..Default::default() };
    let mut cluster = Cluster::on_disk(options).await;
    let client = cluster.client();
    value(&client, "import os; fits = os.urandom(500_000); big = fits; print(len(fits))").await;
    assert_eq!(refused(&client).await, []);
    value(&client, "big = os.urandom(4_000_000); small = 1").await;
    let found = refused(&client).await;
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].0, "big");
    for part in ["quota of 2000000 bytes", "delete variables", "assign it again"] {
        assert!(found[0].1.contains(part), "{part} is missing in: {}", found[0].1);
    }
    assert_eq!(value(&client, "other = 2; len(big)").await, "4000000");
    assert_eq!(refused(&client).await.len(), 1, "it is not kept yet");
    let first = executor(&client).await;
    cluster.kill_node(first).await;
    let names = "small, other, len(fits), 'big' in globals()";
    assert_eq!(value(&client, names).await, "(1, 2, 500000, False)");
}

/// Writes fail while `full` is this node, or 0 for all.
fn options_while_full(full: &Arc<AtomicU64>, node: u64) -> ChunkStoreOptions {
    let full = full.clone();
    let faults = ChunkFaults::new(move |step| {
        let is_full = [0, node].contains(&full.load(Ordering::SeqCst));
        let fails = step == ChunkStep::Write && is_full;
        if fails { Err(ErrorKind::StorageFull.into()) } else { Ok(()) }
    });
    ChunkStoreOptions { faults, ..Default::default() }
}

const NONE: u64 = u64::MAX;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_only_the_executors_disk_is_full_the_others_keep_its_variables() {
    let full = Arc::new(AtomicU64::new(NONE));
    let looked_at = full.clone();
    let mut cluster = Cluster::on_disks(move |node| options_while_full(&looked_at, node)).await;
    let client = cluster.client();
    value(&client, "import os; kept = os.urandom(300_000)").await;
    let first = executor(&client).await;
    full.store(first, Ordering::SeqCst);
    value(&client, "big = os.urandom(300_000); small = 1").await;
    assert_eq!(refused(&client).await, []);
    cluster.kill_node(first).await;
    assert_eq!(value(&client, "small, len(kept), len(big)").await, "(1, 300000, 300000)");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_full_disks_a_cell_ends_without_its_large_variables_and_they_are_kept_once_there_is_room()
 {
    let full = Arc::new(AtomicU64::new(NONE));
    let looked_at = full.clone();
    let mut cluster = Cluster::on_disks(move |node| options_while_full(&looked_at, node)).await;
    let client = cluster.client();
    value(&client, "import os; kept = os.urandom(300_000)").await;
    full.store(0, Ordering::SeqCst);
    value(&client, "big = os.urandom(300_000); small = 1").await;
    let found = refused(&client).await;
    assert!(found.len() == 1 && found[0].0 == "big", "{found:?}");
    assert!(found[0].1.contains("the disk is full"), "{}", found[0].1);
    full.store(NONE, Ordering::SeqCst);
    value(&client, "big = os.urandom(300_000)").await;
    assert_eq!(refused(&client).await, []);
    let first = executor(&client).await;
    cluster.kill_node(first).await;
    assert_eq!(value(&client, "small, len(kept), len(big)").await, "(1, 300000, 300000)");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_disk_is_above_its_mark_turns_new_cells_away_with_a_sentence() {
    let cluster = Cluster::start().await;
    let client = cluster.client();
    value(&client, "x = 1").await;
    cluster.disk.send_replace(Some("the disk of node-1 is 96 % full: free space".to_owned()));
    let options = ExecuteOptions { timeout: Some(DEADLINE), ..ExecuteOptions::default() };
    let mut execution = client.execute("x = 2", options);
    let error = loop {
        match execution.next().await {
            Some(Ok(ExecuteEvent::Notice(notice))) => eprintln!("notice: {notice}"),
            Some(Ok(event)) => panic!("the cell was taken: {event:?}"),
            Some(Err(error)) => break error.to_string(),
            None => panic!("the execution ended without an end"),
        }
    };
    assert!(error.contains("free space"), "{error}");
    cluster.disk.send_replace(None);
    assert_eq!(value(&client, "x").await, "1");
}
