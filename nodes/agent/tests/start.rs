//! What a node that cannot start says.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::{path::Path, time::Duration};

use callboard_agent::{DataDir, MachineId, NodeError, NodeOptions, StorageOptions, run_node};
use callboard_policy::{failure::FailureConfig, repair::RepairLimits};
use callboard_protocol::{ClusterId, NodeId};
use callboard_replicated::ReplicatorOptions;
use callboard_transport::{Credentials, Role};

fn options(data_dir: &Path) -> NodeOptions {
    let node = NodeId::new("node-1").unwrap();
    let cluster = ClusterId::new("test").unwrap();
    // Nothing listens on the discard port of the loopback address.
    let credentials =
        Credentials::generate(&Role::Node(node.clone()), &cluster, "nats://127.0.0.1:9");
    NodeOptions {
        environment_match: Default::default(),
        limits_max: Default::default(),
        kernel_uid_base: None,
        files: callboard_kernel::FileOptions::new("/nonexistent".into()),
        data_dir: data_dir.to_owned(),
        bootstrap: vec![node.clone()],
        node,
        credentials,
        adopt_directory: false,
        python: "python3".into(),
        zygote_preload: String::new(),
        pool: Default::default(),
        upkeep: callboard_agent::UpkeepConfig::default(),
        hibernation: Default::default(),
        disk_faults: false,
        capture_budget_ms: 1_000,
        state_bytes_max: 1 << 30,
        broker_wait: Duration::ZERO,
        failure: FailureConfig::default(),
        repair: RepairLimits::default(),
        replicator: ReplicatorOptions::default(),
        storage: StorageOptions { disk_reserve_bytes: 0, ..StorageOptions::default() },
    }
}

#[tokio::test]
async fn a_broker_that_stays_down_is_named_with_a_next_step() {
    let root = tempfile::tempdir().unwrap();
    let error = run_node(options(root.path())).await.unwrap_err();
    assert!(matches!(error, NodeError::NoBroker { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("no broker answers at nats://127.0.0.1:9"), "{text}");
    assert!(text.contains("callboard up"), "{text}");
}

#[tokio::test]
async fn a_directory_in_use_stops_a_node_before_it_touches_anything() {
    let root = tempfile::tempdir().unwrap();
    let here = MachineId::of_this_machine();
    let node = NodeId::new("node-1").unwrap();
    let _holder = DataDir::open(root.path(), &node, &here, false).unwrap();
    let error = run_node(options(root.path())).await.unwrap_err();
    assert!(error.to_string().contains("is in use by process"), "{error}");
    assert!(!root.path().join("incarnation").exists());
}
