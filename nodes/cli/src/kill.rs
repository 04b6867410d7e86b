//! `callboard kill`: ends an actor by force, after saying what that means.

use std::fs;

use callboard_protocol::{NodeId, ReplicaId, node::Kill};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::Deserialize;
use serde_json::json;

use crate::{
    args::KillArgs,
    context::{Context, confirm},
    exit::{Exit, Failure, Outcome},
    output::say,
    up,
};

/// What the user named.
#[derive(Debug, PartialEq, Eq)]
enum Target<'a> {
    Broker,
    Node(NodeId),
    Replica { kernel: &'a str, replica: ReplicaId, python: bool },
}

/// Runs the verb.
///
/// # Errors
/// A [`Failure`] if there is no such actor or it cannot be ended.
pub async fn run(context: &Context, args: KillArgs) -> Outcome {
    match parse(&args.actor)? {
        Target::Broker => kill_broker(context, args.yes)?,
        Target::Node(node) => kill_node(context, &node, args.yes).await?,
        Target::Replica { kernel, replica, python } => {
            kill_replica(context, kernel, replica, python, args.yes).await?;
        }
    }
    say(&format!("{} is killed", args.actor));
    if context.printer.is_json() {
        context.printer.data(&json!({ "killed": args.actor }), |_| String::new())?;
    }
    Ok(Exit::Ok)
}

fn parse(text: &str) -> Result<Target<'_>, Failure> {
    let bad = || {
        Failure::usage(format!(
            "'{text}' names no actor: use a node such as node-2, KERNEL/REPLICA, KERNEL/REPLICA/python, or broker"
        ))
    };
    let number = |text: &str| text.parse().map(ReplicaId).map_err(|_| bad());
    match text.split('/').collect::<Vec<_>>().as_slice() {
        ["broker"] => Ok(Target::Broker),
        [node] => Ok(Target::Node(NodeId::new(*node).map_err(|_| bad())?)),
        [kernel, replica] => {
            Ok(Target::Replica { kernel, replica: number(replica)?, python: false })
        }
        [kernel, replica, "python"] => {
            Ok(Target::Replica { kernel, replica: number(replica)?, python: true })
        }
        _ => Err(bad()),
    }
}

async fn kill_node(context: &Context, node: &NodeId, yes: bool) -> Result<(), Failure> {
    let client = context.connect().await?;
    let list = client.control().list_nodes().await?;
    let Some(status) = list.nodes.iter().find(|status| status.node == *node) else {
        let known: Vec<&str> = list.nodes.iter().map(|status| status.node.as_str()).collect();
        let text = format!("there is no node '{node}'; there are {}", known.join(", "));
        return Err(Failure::new(Exit::NotFound, text));
    };
    let plan = format!(
        "This kills the process of {node} (pid {} on {}) with SIGKILL (replicas on it: {}, cells running: {}). Other nodes carry on; a supervisor starts it again.",
        status.pid, status.host, status.replicas, status.running_cells
    );
    confirm(&plan, yes)?;
    Ok(client.control().kill(node, Kill::Node).await?)
}

async fn kill_replica(
    context: &Context,
    kernel: &str,
    replica: ReplicaId,
    python: bool,
    yes: bool,
) -> Result<(), Failure> {
    let (client, spec) = context.find(kernel).await?;
    let Some(place) = spec.replicas.get(&replica) else {
        let known: Vec<String> = spec.replicas.keys().map(ToString::to_string).collect();
        let text =
            format!("kernel {} has no replica {replica}; it has {}", spec.kernel, known.join(", "));
        return Err(Failure::new(Exit::NotFound, text));
    };
    let kernel = spec.kernel;
    let (what, order) = if python {
        ("the Python process of", Kill::Python { kernel, replica })
    } else {
        ("the actor of", Kill::Replica { kernel, replica })
    };
    let plan = format!(
        "This kills {what} replica {replica} of kernel {kernel} on {}. If it executes, the cell that runs ends with an error and another replica takes over.",
        place.node
    );
    confirm(&plan, yes)?;
    Ok(client.control().kill(&place.node, order).await?)
}

/// The part of the broker's state file that is needed here.
#[derive(Deserialize)]
struct BrokerState {
    pid: Option<u32>,
}

fn kill_broker(context: &Context, yes: bool) -> Result<(), Failure> {
    let data_dir = context.data_dir().filter(|dir| up::state::running(dir).is_some());
    let Some(data_dir) = data_dir else {
        return Err(Failure::new(
            Exit::Unavailable,
            "the broker can be killed only where `callboard up` runs, and that is not so for this context: use the machine and folder of `up`, or --context DIR/credentials/operator.json",
        ));
    };
    let file = data_dir.join("broker/broker.json");
    let state =
        fs::read(&file).ok().and_then(|text| serde_json::from_slice::<BrokerState>(&text).ok());
    let pid = state.and_then(|state| state.pid).and_then(|pid| i32::try_from(pid).ok());
    let is_broker = |pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains("broker.conf")
    };
    let Some(pid) = pid.filter(|pid| *pid > 0).filter(is_broker) else {
        return Err(Failure::new(
            Exit::NotFound,
            format!("no broker runs just now according to {}", file.display()),
        ));
    };
    let plan = format!(
        "This kills the broker (pid {pid}) with SIGKILL. Messages under way are lost; `up` starts it again."
    );
    confirm(&plan, yes)?;
    kill(Pid::from_raw(pid), Signal::SIGKILL)
        .map_err(|errno| Failure::new(Exit::Failed, format!("cannot kill the broker: {errno}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn actors_are_named_as_shown_elsewhere() {
        let replica = |python| Target::Replica { kernel: "demo", replica: ReplicaId(2), python };
        assert_eq!(parse("broker").unwrap(), Target::Broker);
        assert_eq!(parse("node-2").unwrap(), Target::Node(NodeId::new("node-2").unwrap()));
        assert_eq!(parse("demo/2").unwrap(), replica(false));
        assert_eq!(parse("demo/2/python").unwrap(), replica(true));
        for bad in ["", "demo/x", "demo/2/ruby", "a b"] {
            assert_eq!(parse(bad).unwrap_err().exit, Exit::Usage, "{bad}");
        }
    }
}
