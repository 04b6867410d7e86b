//! The loss of an executor in a bench: killed on purpose, awaited until another replica executes.

use std::time::Duration;

use callboard_client::KernelClient;
use callboard_protocol::{
    NodeId, ReplicaId,
    control::NodeHealth,
    kernel::{KernelStatus, ReplicaRole},
    node::Kill,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::time::{Instant, sleep};

use super::local_cluster::LocalCluster;

/// How long another replica may take to become the executor, and nodes to be whole again.
const FAILOVER_WITHIN: Duration = Duration::from_secs(60);
/// Pause between looks at a kernel or at the nodes.
const POLL: Duration = Duration::from_millis(50);
/// The replica that was lost may be the first that is ready again, from its node's stock of processes or
/// after a restart of its node, which takes less time than an election. After so many times its node is
/// held until another one executes.
const KILLS_MAX: u32 = 2;

/// What is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Loss {
    /// The executor's Python process.
    Python,
    /// The executor's node.
    Node,
}

/// The executor of a kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Executor {
    /// The replica.
    pub(crate) replica: ReplicaId,
    /// Its node.
    pub(crate) node: NodeId,
}

/// Kills the executor; with `moves`, until another replica executes: the one that is lost often takes
/// over again, on a fresh Python process. See [`nodes_whole`] for a node that was killed.
pub(crate) async fn fail_over(
    cluster: &LocalCluster,
    kernel: &KernelClient,
    first: &Executor,
    loss: Loss,
    moves: bool,
) -> Result<Executor, String> {
    let order = match loss {
        Loss::Python => Kill::Python { kernel: kernel.id(), replica: first.replica },
        Loss::Node => Kill::Node,
    };
    for _ in 0..KILLS_MAX {
        let term = show(kernel).await?.term;
        let killed = cluster.client().control().kill(&first.node, order).await;
        killed.map_err(|fault| format!("the kill was refused: {fault}"))?;
        let next = wait_for_executor(kernel, |status| status.term > term).await?;
        if next.replica != first.replica || !moves {
            return Ok(next);
        }
    }
    nodes_whole(cluster).await?;
    let nodes = cluster.client().control().list_nodes().await.map_err(|fault| fault.to_string())?;
    let held = nodes.nodes.iter().find(|node| node.node == first.node);
    let pid = held.and_then(|node| i32::try_from(node.pid).ok()).filter(|pid| *pid > 1);
    let pid = Pid::from_raw(pid.ok_or_else(|| format!("{} has no process", first.node))?);
    let send = |signal| kill(pid, signal).map_err(|errno| format!("{}: {errno}", first.node));
    send(Signal::SIGSTOP)?;
    let next = wait_for_executor(kernel, |status| {
        let replicas = &status.replicas;
        replicas.iter().any(|r| r.role == ReplicaRole::Executor && r.replica != first.replica)
    })
    .await;
    send(Signal::SIGKILL)?;
    next
}

/// The executor, as soon as there is one and the status is `fit`.
pub(crate) async fn wait_for_executor(
    kernel: &KernelClient,
    fit: impl Fn(&KernelStatus) -> bool,
) -> Result<Executor, String> {
    let until = Instant::now() + FAILOVER_WITHIN;
    loop {
        let status = kernel.show().await;
        let executor = status.as_ref().ok().filter(|status| fit(status)).and_then(|status| {
            let executor = status.replicas.iter().find(|r| r.role == ReplicaRole::Executor)?;
            Some(Executor { replica: executor.replica, node: executor.node.clone() })
        });
        match executor {
            Some(executor) => return Ok(executor),
            None if Instant::now() >= until => {
                let within = FAILOVER_WITHIN.as_secs();
                return Err(format!("no replica executes within {within} s: {status:?}"));
            }
            None => sleep(POLL).await,
        }
    }
}

/// The kernel's status, as soon as it answers.
pub(crate) async fn show(kernel: &KernelClient) -> Result<KernelStatus, String> {
    let until = Instant::now() + FAILOVER_WITHIN;
    loop {
        match kernel.show().await {
            Ok(status) => return Ok(status),
            Err(fault) if Instant::now() >= until => return Err(fault.to_string()),
            Err(_) => sleep(POLL).await,
        }
    }
}

/// Waits until every node is up again, so that the next kernel finds three.
pub(crate) async fn nodes_whole(cluster: &LocalCluster) -> Result<(), String> {
    let until = Instant::now() + FAILOVER_WITHIN;
    loop {
        let list = cluster.client().control().list_nodes().await;
        if list.is_ok_and(|list| list.nodes.iter().all(|node| node.health == NodeHealth::Up)) {
            return Ok(());
        }
        if Instant::now() >= until {
            return Err("the killed node did not come back".to_owned());
        }
        sleep(POLL).await;
    }
}
