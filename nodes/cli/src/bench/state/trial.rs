//! One snippet: run, failed over, checked on another replica.

use std::{path::Path, time::Duration};

use callboard_client::{ExecuteEvent, ExecuteOptions, KernelClient};
use callboard_protocol::{
    Fault,
    control::{KernelOptions, Standby},
    kernel::CellOutcome,
};
use serde_json::Value;

use super::snippet::Snippet;
use crate::bench::{
    failover::{Loss, fail_over, nodes_whole, show, wait_for_executor},
    local_cluster::LocalCluster,
};

/// How long a cell may take: some snippets import large libraries.
const CELL_WITHIN: Duration = Duration::from_secs(60);
/// Runs a snippet on a kernel of its own, which is stopped afterwards.
///
/// # Errors
/// What did not hold, with the output of the cell that shows it.
pub(super) async fn run(
    cluster: &LocalCluster,
    snippet: &Snippet,
    loss: Loss,
    scratch: &Path,
) -> Result<(), String> {
    std::fs::create_dir_all(scratch).map_err(|error| format!("no scratch directory: {error}"))?;
    let hot = KernelOptions { standby: Some(Standby::Hot), ..KernelOptions::default() };
    let kernel = cluster.kernel_with(3, hot).await.map_err(|failure| failure.message)?;
    let result = on_kernel(cluster, &kernel, snippet, loss, scratch).await;
    let stopped = cluster.client().control().stop_kernel(kernel.id()).await;
    result.and(stopped.map(drop).map_err(|fault| format!("the kernel did not stop: {fault}")))
}

async fn on_kernel(
    cluster: &LocalCluster,
    kernel: &KernelClient,
    snippet: &Snippet,
    loss: Loss,
    scratch: &Path,
) -> Result<(), String> {
    let fill = |code: &str| code.replace("{dir}", &scratch.display().to_string());
    for (number, code) in snippet.cells.iter().enumerate() {
        let ran = execute(kernel, &fill(code), CELL_WITHIN).await?;
        if ran.raised == snippet.raises.contains(&number) {
            continue;
        }
        let what = if ran.raised { "raised" } else { "did not raise" };
        return Err(format!("cell {number} {what}:\n{}", ran.text));
    }
    let status = show(kernel).await?;
    let missing: Vec<&String> = snippet
        .refuses
        .iter()
        .filter(|name| !status.refused.iter().any(|refused| refused.name == **name))
        .collect();
    if !missing.is_empty() {
        return Err(format!("not refused by name: {missing:?}; refused: {:?}", status.refused));
    }
    let first = wait_for_executor(kernel, |_| true).await?;
    let second = fail_over(cluster, kernel, &first, loss, true).await?;
    let ran = execute(kernel, &fill(&snippet.check), CELL_WITHIN).await?;
    let after = wait_for_executor(kernel, |_| true).await?;
    nodes_whole(cluster).await?;
    if ran.raised {
        let (from, to) = (&first.node, &second.node);
        return Err(format!("the check raised after the way from {from} to {to}:\n{}", ran.text));
    }
    if after.replica == first.replica {
        return Err(format!("the check ran on replica {} again", first.replica));
    }
    Ok(())
}

/// What a cell did.
pub(super) struct Ran {
    /// Whether it raised.
    pub(super) raised: bool,
    /// What it printed.
    pub(super) text: String,
}

/// Runs a cell durably; whether it raised, and what it printed.
pub(super) async fn execute(
    kernel: &KernelClient,
    code: &str,
    within: Duration,
) -> Result<Ran, String> {
    let timeout = Some(within);
    let mut cell = kernel.execute(code, ExecuteOptions { timeout, ..Default::default() });
    let mut ran = Ran { raised: false, text: String::new() };
    while let Some(event) = cell.next().await {
        match event.map_err(|fault: Fault| fault.to_string())? {
            ExecuteEvent::Output(message, _) => {
                let Ok(content) = message.parse_content::<Value>() else { continue };
                ran.raised |= content["status"] == "error";
                for part in [&content["text"], &content["data"]["text/plain"]] {
                    ran.text.push_str(part.as_str().unwrap_or_default());
                }
                if let Some(lines) = content["traceback"].as_array()
                    && content["status"].is_null()
                {
                    lines.iter().filter_map(Value::as_str).for_each(|line| {
                        ran.text.push_str(line);
                        ran.text.push('\n');
                    });
                }
            }
            ExecuteEvent::Ended(end) if end.outcome == CellOutcome::Completed => return Ok(ran),
            ExecuteEvent::Ended(end) => return Err(format!("a cell ended as {:?}", end.outcome)),
            ExecuteEvent::Accepted(_) | ExecuteEvent::Notice(_) => {}
        }
    }
    Err("a cell has no end".to_owned())
}
