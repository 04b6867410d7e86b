//! `callboard up`: a whole cluster on one machine.
//!
//! Owns the broker's and the nodes' processes, which live in process groups of their own: the end
//! of `up` by SIGKILL leaves them running, and the next `up` on the folder adopts them. A node that
//! ends is told to the cluster at once and started again, within limits. SIGINT and SIGTERM stop
//! everything in order.

mod cluster;
mod gateway;
mod nodes;
mod process;
pub mod state;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use callboard_client::Client;
use callboard_gateway::Gateway;
use callboard_protocol::{
    NodeId,
    control::{NodeHealth, NodeList},
};
use callboard_transport::{Broker, BrokerEvent, Role};
use clap::Args;
use serde_json::json;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
    time::{Instant, sleep},
};

use self::{cluster::Prepared, gateway::JupyterAccess, nodes::Nodes};
use crate::{
    config::Overrides,
    context::{CONTEXT_DEFAULT, Context},
    exit::{Exit, Failure, Outcome},
    output::{Printer, say},
};

/// How long `up` waits for the cluster before it says what is missing. It goes on waiting.
const READY_PATIENCE: Duration = Duration::from_secs(30);
/// How long one question to the forming cluster may take.
const READY_TRY: Duration = Duration::from_millis(500);
/// Pause between questions to the forming cluster.
const READY_POLL: Duration = Duration::from_millis(50);

/// Arguments of `up`.
#[derive(Debug, Args)]
pub struct UpArgs {
    /// Where the cluster keeps everything.
    #[arg(long, default_value = ".callboard", value_name = "DIR")]
    pub data: PathBuf,
    /// How many nodes.
    #[arg(long, value_name = "N")]
    pub nodes: Option<u16>,
    /// The broker's port on 127.0.0.1.
    #[arg(long, value_name = "PORT")]
    pub port: Option<u16>,
    /// A configuration file, such as configs/cluster.toml.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The Python that kernels run on.
    #[arg(long, value_name = "PROGRAM")]
    pub python: Option<PathBuf>,
}

/// Says what is done, with the seconds since the start.
#[derive(Debug, Clone, Copy)]
struct Story(Instant);

impl Story {
    fn tell(self, text: &str) {
        say(&format!("[{:6.2} s] {text}", self.0.elapsed().as_secs_f32()));
    }
}

/// Runs the cluster until it is told to stop.
///
/// # Errors
/// A [`Failure`] if it cannot be started.
pub async fn run(context: &Context, args: UpArgs) -> Outcome {
    let story = Story(Instant::now());
    let mut stop = stop_signals()?;
    let flags = Overrides {
        nodes: args.nodes,
        broker_port: args.port,
        python_program: args.python.clone(),
    };
    let mut prepared = Prepared::new(&args.data, args.config.as_deref(), &flags)?;
    let mut broker = prepared.start_broker().await?;
    if let Some(BrokerEvent::Started { pid, port, adopted }) = first_event(&mut broker, story) {
        let verb = if adopted { "adopted" } else { "started" };
        story.tell(&format!("{verb} the broker on port {port} (pid {pid})"));
    }
    let client = prepared.client(&Role::Supervisor).await?;
    let mut nodes = Nodes::start(&prepared, client, story)?;
    let operator = prepared.client(&Role::Operator).await?;
    let ready = async {
        let list = wait_ready(&operator, &prepared.nodes, &args, story).await;
        let gateway = open_gateway(&prepared, &operator).await?;
        announce_ready(context.printer, &prepared, &list, &args, (story, &gateway))?;
        Ok(gateway)
    };
    let gateway = tokio::select! {
        ready = ready => ready,
        () = stopped(&mut stop) => Ok(None),
        failure = nodes.failed() => Err(failure),
    };
    let ended = match gateway {
        Err(failure) => Err(failure),
        Ok(_) if *stop.borrow() => Ok(()),
        Ok(gateway) => tokio::select! {
            () = stopped(&mut stop) => Ok(()),
            failure = nodes.failed() => Err(failure),
            served = serve(gateway) => served,
        },
    };
    stop_all(nodes, broker, story).await;
    ended.map(|()| Exit::Ok)
}

async fn open_gateway(
    prepared: &Prepared,
    operator: &Client,
) -> Result<Option<(Gateway, JupyterAccess)>, Failure> {
    let Some(listen) = prepared.config.gateway()? else { return Ok(None) };
    let client = prepared.client(&Role::Gateway).await?;
    gateway::open(&prepared.data_dir, listen, operator, client).await.map(Some)
}

/// Serves the gateway; it is closed when this is dropped.
async fn serve(gateway: Option<(Gateway, JupyterAccess)>) -> Result<(), Failure> {
    match gateway {
        Some((gateway, _)) => Ok(gateway.serve(std::future::pending()).await?),
        None => std::future::pending().await,
    }
}

async fn stop_all(nodes: Nodes, broker: Broker, story: Story) {
    story.tell("stopping the nodes");
    nodes.stop().await;
    story.tell("stopping the broker");
    broker.stop().await;
    story.tell("stopped; `callboard up` brings every kernel back");
}

/// Takes the event of the start, and tells the later ones as they come.
fn first_event(broker: &mut Broker, story: Story) -> Option<BrokerEvent> {
    let mut events = broker.events()?;
    let first = events.try_recv().ok();
    tokio::spawn(tell_broker(events, story));
    first
}

/// Ends with the broker's supervision, which holds the other end.
async fn tell_broker(mut events: mpsc::Receiver<BrokerEvent>, story: Story) {
    while let Some(event) = events.recv().await {
        match event {
            BrokerEvent::Exited { how } => story.tell(&format!("the broker ended: {how}")),
            BrokerEvent::Started { pid, .. } => {
                story.tell(&format!("started the broker again (pid {pid})"));
            }
            BrokerEvent::Restarted { .. } => {}
            BrokerEvent::GaveUp { why } => story.tell(&format!("the broker is given up: {why}")),
        }
    }
}

/// True once SIGINT or SIGTERM came.
fn stop_signals() -> Result<watch::Receiver<bool>, Failure> {
    let fail = |error| Failure::environment(format!("cannot listen for signals: {error}"));
    let mut interrupt = signal(SignalKind::interrupt()).map_err(fail)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(fail)?;
    let (sender, receiver) = watch::channel(false);
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        sender.send_replace(true);
        // Kept, so that a second signal is taken in silence while everything is stopped in order.
        sender.closed().await;
    });
    Ok(receiver)
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error means that the listener is gone; then nothing will ever ask us to stop.
    if stop.wait_for(|stop| *stop).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Waits until every node is up and one of them leads.
async fn wait_ready(client: &Client, wanted: &[NodeId], args: &UpArgs, story: Story) -> NodeList {
    let control = client.control().with_patience(READY_TRY);
    let mut complained = false;
    loop {
        let why = match control.list_nodes().await {
            Ok(list) => match (missing(&list, wanted), unfit(&list)) {
                (Some(why), _) => why,
                (None, Some(why)) if !complained => why,
                (None, _) => return list,
            },
            Err(fault) => fault.message,
        };
        if !complained && story.0.elapsed() > READY_PATIENCE {
            complained = true;
            let logs = args.data.join("logs");
            story.tell(&format!("still waiting: {why}; the nodes' logs are in {}", logs.display()));
        }
        sleep(READY_POLL).await;
    }
}

/// Says that the cluster is ready, and what to do next.
fn announce_ready(
    printer: Printer,
    prepared: &Prepared,
    list: &NodeList,
    args: &UpArgs,
    (story, gateway): (Story, &Option<(Gateway, JupyterAccess)>),
) -> Result<(), Failure> {
    for node in &list.nodes {
        if let Some(problem) = &node.python_problem {
            story.tell(&format!("{} cannot run kernels: {problem}", node.node));
        }
    }
    let context = args.data.join("credentials/operator.json");
    let option = if context.as_path() == Path::new(CONTEXT_DEFAULT) {
        String::new()
    } else {
        format!(" --context {}", context.display())
    };
    let seconds = story.0.elapsed().as_secs_f32();
    let jupyter = gateway.as_ref().map(|(_, access)| access);
    let ready = json!({
        "ready": true, "nodes": prepared.nodes, "leader": list.leader, "seconds": seconds,
        "context": context,
        "gateway": jupyter.map(|it| &it.url), "token": jupyter.map(|it| &it.token),
    });
    printer.data(&ready, |_| {
        let lab = jupyter.map_or_else(String::new, |JupyterAccess { url, token, .. }| {
            format!(
                "\nor, for JupyterLab: jupyter lab --gateway-url={url} --GatewayClient.auth_token={token}"
            )
        });
        format!(
            "ready: {} nodes up after {seconds:.1} s; next, in another terminal: callboard kernel start --wait{option}{lab}",
            prepared.nodes.len()
        )
    })
}

/// Why kernels cannot run yet. Nodes check their Python after they are up; one that stays unfit does
/// not keep the rest from being used.
fn unfit(list: &NodeList) -> Option<String> {
    let problem =
        list.nodes.iter().find_map(|node| Some((&node.node, node.python_problem.as_ref()?)));
    problem.map(|(node, problem)| format!("{node} cannot run kernels: {problem}"))
}

/// What is missing until the cluster is whole.
fn missing(list: &NodeList, wanted: &[NodeId]) -> Option<String> {
    let up = |node: &&NodeId| {
        list.nodes.iter().any(|status| status.node == **node && status.health == NodeHealth::Up)
    };
    let absent: Vec<&str> = wanted.iter().filter(|node| !up(node)).map(NodeId::as_str).collect();
    (!absent.is_empty()).then(|| format!("{} not up yet", absent.join(", ")))
}
