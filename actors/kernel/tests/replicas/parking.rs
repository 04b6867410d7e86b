//! Who has a Python process, and when.

use std::time::Duration;

use callboard_kernel::UpkeepConfig;
use callboard_protocol::{
    control::{KernelOptions, Standby},
    kernel::KernelPhase,
};

use super::cluster::{Cluster, phase_becomes, value};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_executor_has_a_python_process_unless_standbys_are_hot() {
    let cluster = Cluster::start().await;
    assert_eq!(value(&cluster.client(), "1 + 1").await, "2");
    cluster.pythons_become(1).await;
    let hot = KernelOptions { standby: Some(Standby::Hot), parked: false };
    let cluster = Cluster::kept(UpkeepConfig::default(), hot).await;
    cluster.pythons_become(3).await;
    assert_eq!(value(&cluster.client(), "1 + 1").await, "2");
    cluster.pythons_become(3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_kernel_is_parked_and_its_next_cell_finds_its_variables() {
    let upkeep = UpkeepConfig { park_after_ms: Some(300), ..UpkeepConfig::default() };
    let cluster = Cluster::kept(upkeep, KernelOptions::default()).await;
    let client = cluster.client();
    value(&client, "import numpy as np; x = np.arange(100_000); y = [1]").await;
    for round in 2..4 {
        phase_becomes(&client, KernelPhase::Parked).await;
        cluster.pythons_become(0).await;
        assert_eq!(
            value(&client, "y.append(0); int(x[-1]), len(y)").await,
            format!("(99999, {round})")
        );
    }
    assert_eq!(client.show().await.unwrap().last_loss, None, "parking is no loss");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kernel_that_holds_a_socket_is_not_parked() {
    let upkeep = UpkeepConfig { park_after_ms: Some(200), ..UpkeepConfig::default() };
    let cluster = Cluster::kept(upkeep, KernelOptions::default()).await;
    let client = cluster.client();
    value(&client, "import socket; s = socket.socket()").await;
    tokio::time::sleep(Duration::from_millis(800)).await;
    assert_eq!(client.show().await.unwrap().phase, KernelPhase::Idle);
    value(&client, "s.close(); del s").await;
    phase_becomes(&client, KernelPhase::Parked).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kernel_that_starts_parked_has_no_python_before_its_first_cell() {
    let options = KernelOptions { standby: Some(Standby::Hot), parked: true };
    let cluster = Cluster::kept(UpkeepConfig::default(), options).await;
    let client = cluster.client();
    phase_becomes(&client, KernelPhase::Parked).await;
    assert_eq!(cluster.pythons(), 0);
    assert_eq!(value(&client, "1 + 1").await, "2");
}
