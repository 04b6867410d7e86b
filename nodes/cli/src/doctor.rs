//! `callboard doctor`: what this machine can and cannot do, each with a next step.

mod disk;

use std::{fs, path::Path, time::SystemTime};

use callboard_kernel::{
    Cgroups,
    python::{CGROUP_ROOT, isolation_problem},
};
use callboard_protocol::control::NodeHealth;
use callboard_transport::server::{find_server, server_version};
use serde::Serialize;
use serde_json::json;

use crate::{
    args::DoctorArgs,
    config::{ClusterConfig, Overrides, given},
    context::Context,
    exit::{Exit, Failure, Outcome},
    output::table,
    python::{find_python, probe},
    up,
};

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Verdict {
    /// Nothing to do.
    Ok,
    /// It works, but not as well as it could.
    Warn,
    /// Kernels cannot run like this.
    Fail,
}

/// A check and how it came out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    check: &'static str,
    verdict: Verdict,
    /// What was found, and what to do about it.
    found: String,
}

impl Finding {
    fn new(check: &'static str, verdict: Verdict, found: impl Into<String>) -> Self {
        Self { check, verdict, found: found.into() }
    }

    fn of(check: &'static str, result: Result<String, String>) -> Self {
        match result {
            Ok(found) => Self::new(check, Verdict::Ok, found),
            Err(problem) => Self::new(check, Verdict::Fail, problem),
        }
    }
}

/// Runs every check.
///
/// # Errors
/// A [`Failure`] if stdout cannot be written.
pub async fn run(context: &Context, args: DoctorArgs) -> Outcome {
    let flags = Overrides { python_program: args.python.clone(), ..Overrides::default() };
    let loaded = ClusterConfig::load(args.config.as_deref(), &flags);
    let mut findings = vec![configuration(&loaded)];
    let config = loaded.unwrap_or_default();
    findings.push(Finding::of("nats-server", broker(&config)));
    findings.push(Finding::of("python", python(&config)));
    findings.push(data_dir(&args.data));
    findings.push(disk::space(&args.data));
    findings.push(disk::sync_latency(&args.data));
    findings.push(isolation(&config, &args.data).await);
    findings.push(limits(&config));
    findings.push(clock(SystemTime::now()));
    findings.push(cluster(context).await);
    let failed = findings.iter().any(|finding| finding.verdict == Verdict::Fail);
    context.printer.data(&json!({ "ok": !failed, "checks": findings }), |_| {
        let rows = findings.iter().map(|finding| {
            let verdict = match finding.verdict {
                Verdict::Ok => "ok",
                Verdict::Warn => "warn",
                Verdict::Fail => "FAIL",
            };
            vec![verdict.to_owned(), finding.check.to_owned(), finding.found.clone()]
        });
        table(&["", "check", "found"], rows)
    })?;
    Ok(if failed { Exit::Environment } else { Exit::Ok })
}

fn configuration(loaded: &Result<ClusterConfig, Failure>) -> Finding {
    let result = match loaded {
        Ok(config) => Ok(format!("cluster '{}', {} nodes", config.cluster_id, config.nodes)),
        Err(failure) => Err(failure.message.clone()),
    };
    Finding::of("configuration", result)
}

fn broker(config: &ClusterConfig) -> Result<String, String> {
    let program = find_server(given(&config.broker_program)).map_err(|error| error.to_string())?;
    let (_, version) = server_version(&program).map_err(|error| error.to_string())?;
    Ok(format!("{version} ({})", program.display()))
}

fn python(config: &ClusterConfig) -> Result<String, String> {
    let program = find_python(&config.python_program).map_err(|failure| failure.message)?;
    let facts = probe(&program)
        .map_err(|why| format!("{why}; name a working one with --python, or run `make setup`"))?;
    match facts.problem(&program) {
        Some(problem) => Err(problem),
        None => Ok(format!(
            "{}, ipykernel {}, cloudpickle {} ({})",
            facts.version,
            facts.ipykernel.unwrap_or_default(),
            facts.cloudpickle.unwrap_or_default(),
            program.display()
        )),
    }
}

fn data_dir(data: &Path) -> Finding {
    let check = "data directory";
    let shown = data.display();
    if !data.exists() {
        return Finding::new(
            check,
            Verdict::Ok,
            format!("{shown} is new; `callboard up` makes it"),
        );
    }
    if fs::metadata(data).is_ok_and(|data| data.permissions().readonly()) {
        let text = format!("{shown} cannot be written: change its mode, or choose another --data");
        return Finding::new(check, Verdict::Fail, text);
    }
    match (up::state::running(data), up::state::UpState::load(data)) {
        (Some(pid), _) => {
            Finding::new(check, Verdict::Ok, format!("{shown}; `callboard up` runs (pid {pid})"))
        }
        (None, Err(failure)) => Finding::new(check, Verdict::Fail, failure.message),
        (None, Ok(Some(state))) => Finding::new(
            check,
            Verdict::Ok,
            format!(
                "{shown} holds cluster '{}' of {} nodes; `callboard up` brings it back",
                state.cluster,
                state.founders.len()
            ),
        ),
        (None, Ok(None)) => {
            Finding::new(check, Verdict::Ok, format!("{shown} holds no cluster yet"))
        }
    }
}

/// Whether the limits of kernels can be enforced on this machine.
fn limits(config: &ClusterConfig) -> Finding {
    let groups = Cgroups::prepare(Path::new(CGROUP_ROOT), "doctor");
    groups.discard();
    let missing = groups.unenforced_at_all();
    if missing.is_empty() {
        let text = "memory, processor share and processes of kernels can be limited here";
        return Finding::new("limits", Verdict::Ok, text);
    }
    let is_configured = !groups.unenforced(&config.limits()).is_empty();
    let verdict = if is_configured { Verdict::Fail } else { Verdict::Warn };
    Finding::new("limits", verdict, missing.join("; "))
}

/// Whether kernels get uids of their own on this machine.
async fn isolation(config: &ClusterConfig, data: &Path) -> Finding {
    let check = "isolation";
    let base = config.kernel_uid_base;
    if base == 0 {
        let text = "not isolated: kernel_uid_base is 0, so kernels run as the node's user and may read its files; run only code you trust";
        return Finding::new(check, Verdict::Warn, text);
    }
    let program = match find_python(&config.python_program) {
        Ok(program) => program,
        Err(failure) => return Finding::new(check, Verdict::Warn, failure.message),
    };
    let root = given(&config.session_directory).unwrap_or(data);
    match isolation_problem(&program, base, None, root, &config.shared_directories).await {
        None => {
            let text = format!("each kernel runs under a uid of its own, from {base} on");
            Finding::new(check, Verdict::Ok, text)
        }
        Some(problem) => Finding::new(check, Verdict::Warn, problem),
    }
}

/// Only dates in messages come from this clock; a wrong one confuses people and certificates.
fn clock(now: SystemTime) -> Finding {
    let date = callboard_protocol::date::iso8601(now);
    if date.as_str() < "2025" {
        let text = format!("the clock says {date}: set it, for example with timedatectl");
        return Finding::new("clock", Verdict::Warn, text);
    }
    Finding::new("clock", Verdict::Ok, date)
}

async fn cluster(context: &Context) -> Finding {
    let check = "cluster";
    if !context.file().exists() {
        let text = format!(
            "none known: there is no {}; start one with `callboard up`",
            context.file().display()
        );
        return Finding::new(check, Verdict::Warn, text);
    }
    let client = match context.connect().await {
        Ok(client) => client,
        Err(failure) => return Finding::new(check, Verdict::Fail, failure.message),
    };
    let list = match client.control().list_nodes().await {
        Ok(list) => list,
        Err(fault) => return Finding::new(check, Verdict::Fail, fault.message),
    };
    let up = list.nodes.iter().filter(|node| node.health == NodeHealth::Up).count();
    let mut text = format!("{up} of {} nodes up, led by {}", list.nodes.len(), list.leader);
    let problems = list.nodes.iter().filter_map(|node| {
        let problem = node.python_problem.as_ref()?;
        Some(format!("; {} cannot run kernels: {problem}", node.node))
    });
    text.extend(problems.chain(list.outage.iter().map(|why| format!("; no repair: {why}"))));
    let whole = up == list.nodes.len() && !text.contains(';');
    Finding::new(check, if whole { Verdict::Ok } else { Verdict::Warn }, text)
}
