//! Requests of front-ends that need no Python process: interrupt, shutdown, and what Callboard's own
//! front-end extension asks.

use std::time::Duration;

use callboard_protocol::{
    Fault, FaultCode,
    jupyter::{Channel, Header, JupyterMessage},
    kernel::{KernelPhase, KernelStatus, ReplicaRole, TookOver},
};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::{kernel::KernelClient, said::Said};

/// What asks for a cell's outputs.
pub(crate) const OUTPUTS_REQUEST: &str = "callboard_outputs_request";
/// How long an interrupt is tried, and the pause between tries.
const INTERRUPT_WITHIN: Duration = Duration::from_secs(10);
const INTERRUPT_PAUSE: Duration = Duration::from_millis(100);

/// A request that is answered without the kernel's process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Own {
    /// `interrupt_request`.
    Interrupt,
    /// `shutdown_request`: the kernel ends, or begins anew.
    Shutdown {
        /// Whether it begins anew.
        restart: bool,
    },
    /// `callboard_status_request`: how the kernel and its replicas are.
    Status,
    /// `callboard_outputs_request`: what a cell has shown, and goes on to show.
    Outputs {
        /// The cell's request.
        msg_id: String,
    },
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Content {
    restart: bool,
    msg_id: String,
}

impl Own {
    /// The request in `message`, if it is one of these.
    #[must_use]
    pub fn of(message: &JupyterMessage, header: &Header) -> Option<Self> {
        let content = || message.parse_content::<Content>().unwrap_or_default();
        match (message.channel, header.msg_type.as_str()) {
            (Channel::Control, "interrupt_request") => Some(Self::Interrupt),
            (Channel::Control | Channel::Shell, "shutdown_request") => {
                Some(Self::Shutdown { restart: content().restart })
            }
            (Channel::Shell, "callboard_status_request") => Some(Self::Status),
            (Channel::Shell, OUTPUTS_REQUEST) => Some(Self::Outputs { msg_id: content().msg_id }),
            _ => None,
        }
    }
}

/// Interrupts what runs. A kernel without a process runs nothing.
///
/// # Errors
/// The kernel's refusal, or a [`Fault`] if no replica answers for ten seconds.
pub async fn interrupt(kernel: &KernelClient) -> Result<(), Fault> {
    let until = Instant::now() + INTERRUPT_WITHIN;
    loop {
        let fault = match kernel.interrupt().await {
            Ok(_) => return Ok(()),
            Err(fault) => fault,
        };
        let passing = matches!(fault.code, FaultCode::Unavailable | FaultCode::TimedOut);
        if !passing || Instant::now() > until {
            return Err(fault);
        }
        let phase = kernel.show().await.map(|status| status.phase);
        if matches!(phase, Ok(KernelPhase::Parked | KernelPhase::Hibernating)) {
            return Ok(());
        }
        sleep(INTERRUPT_PAUSE).await;
    }
}

/// Carries a request out and says what a kernel would. [`Own::Outputs`] is a matter of
/// [`crate::Channels`].
pub(crate) async fn answer(
    kernel: KernelClient,
    request: JupyterMessage,
    header: Header,
    own: Own,
    took_over: Option<TookOver>,
) -> Vec<JupyterMessage> {
    let result = match &own {
        Own::Interrupt => interrupt(&kernel).await.map(|()| json!({ "status": "ok" })),
        Own::Shutdown { restart: true } => {
            kernel.restart().await.map(|()| json!({ "status": "ok", "restart": true }))
        }
        Own::Shutdown { restart: false } => {
            let stopped = kernel.client().control().stop_kernel(kernel.id()).await;
            stopped.map(|_| json!({ "status": "ok", "restart": false }))
        }
        Own::Status => kernel.show().await.map(|status| shown(&kernel, &status, took_over)),
        Own::Outputs { .. } => Ok(json!({ "status": "ok", "cell": "unknown" })),
    };
    let said = Said { kernel: kernel.id(), parent: &request.header };
    let reply = match result {
        Ok(content) => said.reply(request.channel, &header.msg_type, &content),
        Err(fault) => said.failed(request.channel, &header.msg_type, &fault.message),
    };
    if own == Own::Status {
        // Asked now and then, by nobody who waits for the kernel.
        return vec![reply];
    }
    vec![said.status("busy"), reply, said.status("idle")]
}

fn shown(kernel: &KernelClient, status: &KernelStatus, took_over: Option<TookOver>) -> Value {
    let replicas: Vec<Value> = status
        .replicas
        .iter()
        .map(|it| json!({ "replica": it.replica, "node": it.node, "role": it.role }))
        .collect();
    let executor = status.replicas.iter().find(|it| it.role == ReplicaRole::Executor);
    let last_failover = status
        .last_loss
        .as_ref()
        .map(|cause| json!({ "to": took_over.as_ref().map(|it| &it.node), "cause": cause }));
    json!({
        "status": "ok",
        "kernel": kernel.id(),
        "phase": status.phase,
        "losses_survivable": status.losses_survivable,
        "state_replicated": !status.not_replicated,
        "replicas": replicas,
        "executor": executor.map(|it| &it.node),
        "gpus": { "held": [], "waiting": null },
        "last_failover": last_failover,
    })
}
