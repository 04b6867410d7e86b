//! The kernels of the bench: started at a pace that two cores can follow, then left alone.

use std::time::Duration;

use callboard_client::{ExecuteEvent, ExecuteOptions};
use callboard_protocol::{
    KernelId,
    control::{KernelOptions, Standby, StartKernel},
    kernel::CellOutcome,
};
use tokio::time::{Instant, sleep, timeout};

use super::REPLICAS;
use crate::bench::process;
use crate::{
    bench::local_cluster::LocalCluster,
    exit::{Exit, Failure},
    kernel::wait_ready,
    output::say,
};

/// How the cluster is set up: idle kernels sleep and are parked within seconds, as they would
/// within minutes.
pub(super) const SETTINGS: [(&str, &str); 2] =
    [("CALLBOARD_HIBERNATE_AFTER_S", "1"), ("CALLBOARD_PARK_AFTER_S", "3")];
/// Kernels that are started and do not sleep yet. Founding one takes elections and a dozen syncs
/// on three nodes; more at once only make each other late.
const AWAKE_MAX: usize = 16;
/// How long all kernels may take to fall asleep after the last one was started or used.
const ASLEEP_WITHIN: Duration = Duration::from_secs(120);
/// Pause between looks at the nodes.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// After this a kernel counts as one that does not answer.
const CELL_WITHIN: Duration = Duration::from_secs(30);

/// Kernels on a cluster of their own.
#[derive(Debug)]
pub(super) struct Fleet {
    pub(super) cluster: LocalCluster,
    pub(super) kernels: Vec<KernelId>,
}

impl Fleet {
    pub(super) fn new(cluster: LocalCluster) -> Self {
        Self { cluster, kernels: Vec::new() }
    }

    /// Starts kernels until there are `count`, and waits until all of them sleep.
    pub(super) async fn grow(&mut self, count: usize) -> Result<(), Failure> {
        let began = Instant::now();
        say(&format!("starting kernels up to {count}"));
        while self.kernels.len() < count {
            self.all_asleep(AWAKE_MAX - 1).await?;
            let more = AWAKE_MAX.min(count - self.kernels.len());
            for _ in 0..more.div_ceil(2) {
                let kernel = self.ask_for(KernelOptions { parked: true, standby: None }).await?;
                self.kernels.push(kernel);
            }
        }
        self.all_asleep(0).await?;
        say(&format!("{count} kernels sleep, {:.0} s later", began.elapsed().as_secs_f64()));
        Ok(())
    }

    async fn ask_for(&self, options: KernelOptions) -> Result<KernelId, Failure> {
        let kernel = KernelId::generate();
        let request = StartKernel {
            kernel,
            name: None,
            replicas: REPLICAS,
            options,
            origin: None,
            settings: Default::default(),
        };
        self.cluster.client().control().start_kernel(&request).await?;
        Ok(kernel)
    }

    /// Starts a kernel that is not one of the fleet; returns once it can run cells.
    pub(super) async fn start(&self, standby: Standby) -> Result<KernelId, Failure> {
        let options = KernelOptions { parked: false, standby: Some(standby) };
        let kernel = self.ask_for(options).await?;
        wait_ready(self.cluster.client(), kernel).await?;
        Ok(kernel)
    }

    /// Waits until all but `awake_max` kernels sleep, as the nodes' heartbeats tell.
    pub(super) async fn all_asleep(&self, awake_max: usize) -> Result<(), Failure> {
        let wanted = self.kernels.len().saturating_sub(awake_max) * usize::from(REPLICAS);
        let until = Instant::now() + ASLEEP_WITHIN;
        loop {
            let nodes = self.cluster.client().control().list_nodes().await?.nodes;
            let asleep: usize = nodes.iter().map(|node| node.asleep as usize).sum();
            if asleep >= wanted {
                return Ok(());
            }
            if Instant::now() >= until {
                let text = format!(
                    "only {asleep} of {wanted} replicas sleep after {} s; see the nodes' logs in {}",
                    ASLEEP_WITHIN.as_secs(),
                    self.cluster.path().display()
                );
                return Err(Failure::new(Exit::Failed, text));
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// Memory of the node processes together.
    pub(super) async fn memory_mib(&self) -> Result<f64, Failure> {
        let nodes = self.cluster.client().control().list_nodes().await?.nodes;
        let memory = nodes.iter().filter_map(|node| process::memory(node.pid));
        Ok(memory.map(|it| it.proportional_mib).sum())
    }

    /// Seconds until a cell of a kernel is over; `None` if it does not complete.
    pub(super) async fn cell(&self, kernel: KernelId) -> Option<f64> {
        let began = Instant::now();
        let client = self.cluster.client().kernel(kernel);
        let mut cell = client.execute("1 + 1", ExecuteOptions::default());
        let end = async {
            while let Some(event) = cell.next().await {
                if let Ok(ExecuteEvent::Ended(end)) = event {
                    return Some(end.outcome);
                }
            }
            None
        };
        let outcome = timeout(CELL_WITHIN, end).await.ok().flatten()?;
        (outcome == CellOutcome::Completed).then(|| began.elapsed().as_secs_f64())
    }
}
