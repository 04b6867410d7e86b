//! `callboard kernel …`, but for `exec`.

use std::time::Duration;

use callboard_client::Client;
use callboard_protocol::{
    KernelId, NodeId, ReplicaId,
    control::{KernelLimits, KernelOptions, KernelSettings, KernelSpec, Standby, StartKernel},
    kernel::{KernelPhase, KernelStatus, ReplicaRole},
};
use serde::Serialize;
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::{
    args::{KernelVerb, StartArgs},
    backup, branch,
    context::{Context, confirm},
    exec,
    exit::{Exit, Failure, Outcome},
    output::{say, table},
    recover, storage, undo,
};

/// How long `kernel start --wait` waits: placing, forming the group and starting Python.
const READY_PATIENCE: Duration = Duration::from_secs(60);
/// Pause between looks at a kernel that is not ready.
const READY_POLL: Duration = Duration::from_millis(100);
/// Names of variables shown in a table; `--output json` has all.
const NAMES_SHOWN: usize = 40;

/// Runs a verb.
///
/// # Errors
/// A [`Failure`] that says what to do.
pub async fn run(context: &Context, verb: KernelVerb) -> Outcome {
    match verb {
        KernelVerb::Start(args) => start(context, args).await,
        KernelVerb::List => list(context).await,
        KernelVerb::Show { kernel } => show(context, &kernel).await,
        KernelVerb::Exec(args) => exec::run(context, args).await,
        KernelVerb::Interrupt { kernel } => interrupt(context, &kernel).await,
        KernelVerb::Stop { kernel, purge, yes } => stop(context, &kernel, purge, yes).await,
        KernelVerb::Log { kernel } => undo::log(context, &kernel).await,
        KernelVerb::Checkpoint { kernel, name, drop } => {
            undo::checkpoint(context, &kernel, name, drop).await
        }
        KernelVerb::Rewind { kernel, to, yes } => undo::rewind(context, &kernel, to, yes).await,
        KernelVerb::Branch { kernel, at, name } => branch::run(context, &kernel, at, name).await,
        KernelVerb::Backup { kernel, file, at } => {
            backup::backup(context, &kernel, &file, at).await
        }
        KernelVerb::Restore { file, name, replicas } => {
            backup::restore(context, &file, name, replicas).await
        }
        KernelVerb::Recover { kernel, from, yes } => {
            recover::run(context, &kernel, from, yes).await
        }
    }
}

async fn start(context: &Context, args: StartArgs) -> Outcome {
    let client = context.connect().await?;
    let kernel = KernelId::generate();
    let standby = args.standby.map(Standby::from);
    let options = KernelOptions { standby, parked: args.parked };
    let limits = KernelLimits {
        memory_max_mib: args.memory_max_mib,
        cpu_max_percent: args.cpu_max_percent,
        cell_wall_time_max_s: args.cell_wall_time_max_s,
        processes_max: args.processes_max,
    };
    let settings =
        KernelSettings { directory: args.directory, limits, kernelspec: args.kernelspec };
    let (name, replicas) = (args.name, args.replicas);
    let request = StartKernel { kernel, name, replicas, options, origin: None, settings };
    let spec = client.control().start_kernel(&request).await?;
    if !limits.is_default() {
        say_what_is_not_enforced(&client, &spec).await?;
    }
    if let Some(warning) = spec.settings.not_replicated() {
        say(&warning);
        let placed = spec.replicas.len();
        if placed < usize::from(spec.replicas_wanted) {
            say(&format!(
                "only {placed} of {} replicas have a place: `callboard kernel show {kernel}` says which \
                 nodes lack the kernelspec",
                spec.replicas_wanted
            ));
        }
    }
    if args.wait {
        wait_ready(&client, kernel).await?;
    }
    context.printer.data(&spec, |spec| spec.kernel.to_string())?;
    Ok(Exit::Ok)
}

/// Names the limits that nodes of the kernel do not enforce.
async fn say_what_is_not_enforced(client: &Client, spec: &KernelSpec) -> Result<(), Failure> {
    let nodes = client.control().list_nodes().await?.nodes;
    let holds = |node: &NodeId| spec.replicas.values().any(|replica| replica.node == *node);
    for node in nodes.iter().filter(|node| holds(&node.node)) {
        for sentence in &node.unenforced {
            say(&format!("{}: {sentence}", node.node));
        }
    }
    Ok(())
}

fn limits_shown(limits: &KernelLimits) -> Vec<String> {
    let all = [
        limits.memory_max_mib.map(|it| format!("memory {it} MiB")),
        limits.cpu_max_percent.map(|it| format!("processor {it} %")),
        limits.processes_max.map(|it| format!("{it} processes")),
        limits.cell_wall_time_max_s.map(|it| format!("cells {it} s")),
    ];
    all.into_iter().flatten().collect()
}

/// Returns once every replica is there and the kernel answers.
///
/// # Errors
/// A [`Failure`] if that takes too long.
pub async fn wait_ready(client: &Client, kernel: KernelId) -> Result<(), Failure> {
    let until = Instant::now() + READY_PATIENCE;
    loop {
        let why = match client.kernel(kernel).show().await {
            Ok(status)
                if status.replicas.iter().all(is_whole)
                    && (status.term.is_some() || status.phase != KernelPhase::Starting) =>
            {
                return Ok(());
            }
            Ok(status) if status.replicas.iter().all(is_whole) => {
                "its process is starting".to_owned()
            }
            Ok(status) => {
                let whole = status.replicas.iter().filter(|replica| is_whole(replica)).count();
                format!("{whole} of {} replicas are ready", status.replicas.len())
            }
            Err(fault) => fault.message,
        };
        if Instant::now() >= until {
            return Err(Failure::new(
                Exit::Unavailable,
                format!(
                    "kernel {kernel} exists but is not ready after {} s: {why}; see `callboard nodes` and `callboard kernel show {kernel}`",
                    READY_PATIENCE.as_secs()
                ),
            ));
        }
        sleep(READY_POLL).await;
    }
}

fn is_whole(replica: &callboard_protocol::kernel::ReplicaStatus) -> bool {
    matches!(replica.role, ReplicaRole::Executor | ReplicaRole::Standby)
}

async fn list(context: &Context) -> Outcome {
    let kernels = context.connect().await?.control().list_kernels().await?;
    context.printer.data(&kernels, |list| {
        let rows = list.kernels.iter().map(|spec| {
            vec![
                spec.kernel.to_string(),
                spec.name.clone().unwrap_or_else(|| "-".to_owned()),
                spec.replicas_wanted.to_string(),
                placed(spec),
            ]
        });
        table(&["kernel", "name", "replicas", "nodes"], rows)
    })?;
    Ok(Exit::Ok)
}

fn placed(spec: &KernelSpec) -> String {
    spec.replicas.values().map(|replica| replica.node.as_str()).collect::<Vec<_>>().join(" ")
}

#[derive(Serialize)]
struct Shown {
    spec: KernelSpec,
    status: KernelStatus,
    /// Why a repair that it needs does not begin.
    #[serde(skip_serializing_if = "Option::is_none")]
    repair_waits: Option<String>,
}

async fn show(context: &Context, kernel: &str) -> Outcome {
    let (client, spec) = context.find(kernel).await?;
    let status = client.kernel(spec.kernel).show().await?;
    // Only the control plane knows; without its answer, the rest is worth showing.
    let list = client.control().list_nodes().await.ok();
    let held = list.and_then(|list| list.held.into_iter().find(|it| it.kernel == spec.kernel));
    let repair_waits = held.map(|held| held.reason);
    context.printer.data(&Shown { spec, status, repair_waits }, describe)?;
    Ok(Exit::Ok)
}

fn describe(shown: &Shown) -> String {
    let Shown { spec, status, repair_waits } = shown;
    let whole = status.replicas.iter().filter(|replica| is_whole(replica)).count();
    let mut lines = vec![
        format!("kernel     {}", spec.kernel),
        format!("name       {}", spec.name.as_deref().unwrap_or("-")),
        format!(
            "replicas   {whole}/{} ready; {} more may be lost",
            spec.replicas_wanted, status.losses_survivable
        ),
        format!(
            "cells      {} accepted, {} ended, {} waiting or running",
            status.accepted, status.ended, status.queue_depth
        ),
        format!("phase      {}", phase(status.phase)),
    ];
    lines.push(match spec.settings.not_replicated() {
        Some(warning) => format!("state      {warning}"),
        None => format!("state      {} bytes, {} names", status.state_bytes, status.names.len()),
    });
    if let Some(why) = repair_waits {
        lines.push(format!("repair     waits: {why}"));
    }
    if !status.limits.is_default() {
        lines.push(format!("limits     {}", limits_shown(&status.limits).join(", ")));
    }
    lines.extend(status.unenforced.iter().map(|it| format!("limits     {it}")));
    if let Some(needs) = &spec.needs {
        let versions =
            needs.distributions.iter().map(|(name, version)| format!("{name} {version}"));
        let all: Vec<String> = versions.collect();
        lines.push(format!("imports    Python {}, {}", needs.python, listed(&all)));
    }
    if let Some(directory) = &spec.settings.directory {
        lines.push(format!("directory  {directory}"));
    }
    for (label, names) in [("names", &status.names), ("files", &status.files)] {
        if !names.is_empty() {
            lines.push(format!("{label}      {}", listed(names)));
        }
    }
    for refused in &status.refused {
        lines.push(format!("not kept   {}: {}", refused.name, refused.reason));
    }
    if let Some(waits) = &status.waits_for {
        lines.push(format!("not begun  {waits}"));
    }
    if let Some(loss) = &status.last_loss {
        lines.push(format!("last loss  {loss}"));
    }
    let rows = status.replicas.iter().map(|replica| {
        let lag = replica.lag_entries.map_or("-".to_owned(), |lag| lag.to_string());
        vec![actor(spec.kernel, replica.replica), replica.node.to_string(), role(replica.role), lag]
    });
    lines.push(String::new());
    lines.push(table(&["replica", "node", "role", "lag"], rows));
    lines.join("\n")
}

fn listed(names: &[String]) -> String {
    let shown = names.iter().take(NAMES_SHOWN).map(|name| name.escape_debug().to_string());
    let text = shown.collect::<Vec<_>>().join(" ");
    match names.len().saturating_sub(NAMES_SHOWN) {
        0 => text,
        more => format!("{text} … and {more} more"),
    }
}

/// A replica as `callboard kill` takes it.
fn actor(kernel: KernelId, replica: ReplicaId) -> String {
    format!("{kernel}/{replica}")
}

fn phase(phase: KernelPhase) -> &'static str {
    match phase {
        KernelPhase::Running => "running",
        KernelPhase::Idle => "idle",
        KernelPhase::Parked => "parked: no Python process until the next request",
        KernelPhase::Starting => "starting",
        KernelPhase::Hibernating => "hibernating: the next request wakes it",
    }
}

fn role(role: ReplicaRole) -> String {
    match role {
        ReplicaRole::Executor => "executor",
        ReplicaRole::Standby => "standby",
        ReplicaRole::Learner => "learner",
        ReplicaRole::Unreachable => "unreachable",
    }
    .to_owned()
}

async fn interrupt(context: &Context, kernel: &str) -> Outcome {
    let (client, spec) = context.find(kernel).await?;
    client.kernel(spec.kernel).interrupt().await?;
    say(&format!("interrupt sent to kernel {}", spec.kernel));
    if context.printer.is_json() {
        context
            .printer
            .data(&json!({ "kernel": spec.kernel, "interrupted": true }), |_| String::new())?;
    }
    Ok(Exit::Ok)
}

async fn stop(context: &Context, kernel: &str, purge: bool, yes: bool) -> Outcome {
    let (client, spec) = context.find(kernel).await?;
    let plan = format!(
        "This ends kernel {}{} for good and deletes its variables and outputs from {}.",
        spec.kernel,
        spec.name.as_deref().map(|name| format!(" ({name})")).unwrap_or_default(),
        placed(&spec)
    );
    confirm(&plan, yes)?;
    let spec = client.control().stop_kernel(spec.kernel).await?;
    if purge {
        storage::purge(&client, &spec).await;
    }
    context.printer.data(&spec, |spec| spec.kernel.to_string())?;
    Ok(Exit::Ok)
}
