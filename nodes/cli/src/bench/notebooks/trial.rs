//! A notebook on Callboard: cell by cell at `durable`, with the loss of its executor between cells.

use std::{path::Path, time::Duration};

use callboard_client::{ExecuteEvent, ExecuteOptions, KernelClient};
use callboard_protocol::{
    Fault,
    control::{KernelOptions, Standby},
    kernel::CellOutcome,
};
use tokio::time::Instant;

use super::{
    CLOSING,
    kills::Plan,
    library::Notebook,
    outputs::{CellOutputs, Transcript},
};
use crate::bench::{
    failover::{Loss, fail_over, nodes_whole, show, wait_for_executor},
    local_cluster::LocalCluster,
};

/// How long a cell may take beyond what the whole notebook may take in plain ipykernel.
const CELL_PATIENCE: Duration = Duration::from_secs(60);

/// What a notebook showed on Callboard.
#[derive(Debug)]
pub(super) struct Ran {
    /// What it showed.
    pub(super) transcript: Transcript,
    /// How long its cells took, without the losses, in seconds.
    pub(super) seconds: f64,
    /// Names that were left behind, each with the reason.
    pub(super) refused: Vec<String>,
}

/// Runs a notebook on a kernel of its own, which is stopped afterwards.
///
/// # Errors
/// What went wrong beside outputs: a cell without an end, a kernel without an executor.
pub(super) async fn run(
    cluster: &LocalCluster,
    notebook: &Notebook,
    plan: &Plan,
    scratch: &Path,
    within: Duration,
) -> Result<Ran, String> {
    std::fs::create_dir_all(scratch).map_err(|error| format!("no scratch directory: {error}"))?;
    let options = KernelOptions { standby: Some(plan.standby), ..KernelOptions::default() };
    let kernel = cluster.kernel_with(3, options).await.map_err(|failure| failure.message)?;
    let result = on_kernel(cluster, &kernel, notebook, plan, scratch, within).await;
    let stopped = cluster.client().control().stop_kernel(kernel.id()).await;
    stopped.map_err(|fault| format!("the kernel did not stop: {fault}"))?;
    result
}

async fn on_kernel(
    cluster: &LocalCluster,
    kernel: &KernelClient,
    notebook: &Notebook,
    plan: &Plan,
    scratch: &Path,
    within: Duration,
) -> Result<Ran, String> {
    let within = within + CELL_PATIENCE;
    let mut ran = Ran { transcript: Transcript::default(), seconds: 0.0, refused: Vec::new() };
    execute(kernel, &super::enter(scratch), within).await?;
    // The closing cell runs before the last loss and after it.
    let codes = notebook.cells.iter().map(String::as_str).chain([CLOSING, CLOSING]);
    for (place, code) in codes.enumerate() {
        for kill in plan.kills.iter().filter(|kill| kill.before == place) {
            let lost = lose(cluster, kernel, kill.loss, plan.standby).await;
            lost.map_err(|why| format!("after the loss before cell {}: {why}", place + 1))?;
        }
        let start = Instant::now();
        let outputs = execute(kernel, code, within).await;
        let outputs = outputs.map_err(|why| format!("cell {}: {why}", place + 1))?;
        if place < notebook.cells.len() {
            ran.seconds += start.elapsed().as_secs_f64();
            ran.transcript.cells.push(outputs);
            let status = show(kernel).await?;
            ran.refused =
                status.refused.iter().map(|it| format!("{} ({})", it.name, it.reason)).collect();
        } else if place == notebook.cells.len() {
            ran.transcript.closing = outputs;
        } else {
            ran.transcript.closing_again = outputs;
        }
    }
    Ok(ran)
}

/// Returns once there is an executor again and every node is up.
async fn lose(
    cluster: &LocalCluster,
    kernel: &KernelClient,
    loss: Loss,
    standby: Standby,
) -> Result<(), String> {
    let first = wait_for_executor(kernel, |_| true).await?;
    fail_over(cluster, kernel, &first, loss, standby == Standby::Hot).await?;
    nodes_whole(cluster).await
}

async fn execute(
    kernel: &KernelClient,
    code: &str,
    within: Duration,
) -> Result<CellOutputs, String> {
    let timeout = Some(within);
    let mut cell = kernel.execute(code, ExecuteOptions { timeout, ..Default::default() });
    let mut outputs = CellOutputs::default();
    while let Some(event) = cell.next().await {
        match event.map_err(|fault: Fault| fault.to_string())? {
            ExecuteEvent::Output(message, _) => outputs.take(&message),
            ExecuteEvent::Ended(end) if end.outcome == CellOutcome::Completed => {
                return Ok(outputs.finish());
            }
            ExecuteEvent::Ended(end) => return Err(format!("it ended as {:?}", end.outcome)),
            ExecuteEvent::Accepted(_) | ExecuteEvent::Notice(_) => {}
        }
    }
    Err("it has no end".to_owned())
}
