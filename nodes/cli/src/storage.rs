//! `callboard storage`, and `kernel stop --purge`: what lies on the nodes' disks.

use callboard_client::Client;
use callboard_protocol::{
    control::{KernelSpec, NodeHealth},
    storage::{NodeStorage, Purged},
};
use serde::Serialize;

use crate::{
    context::Context,
    exit::{Exit, Outcome},
    output::{say, table},
};

const MIB: u64 = 1 << 20;

#[derive(Serialize)]
struct Listed {
    nodes: Vec<NodeStorage>,
}

/// `callboard storage`.
///
/// # Errors
/// A [`Failure`](crate::exit::Failure) if no cluster answers.
pub async fn show(context: &Context) -> Outcome {
    let client = context.connect().await?;
    let control = client.control();
    let mut listed = Listed { nodes: Vec::new() };
    for node in control.list_nodes().await?.nodes {
        if node.health == NodeHealth::Gone {
            continue;
        }
        match control.storage(&node.node).await {
            Ok(storage) => listed.nodes.push(storage),
            Err(fault) => say(&format!("{}: {}", node.node, fault.message)),
        }
    }
    context.printer.data(&listed, describe)?;
    Ok(Exit::Ok)
}

fn describe(listed: &Listed) -> String {
    let headings = [
        "node",
        "disk",
        "free",
        "reserve",
        "owner",
        "chunks",
        "chunk MiB",
        "stored",
        "sent",
        "received",
        "spared",
        "collected",
    ];
    let rows = listed.nodes.iter().flat_map(|node| {
        let owners = node.owners.iter().map(Some).chain(node.owners.is_empty().then_some(None));
        owners.map(|owner| row(node, owner)).collect::<Vec<_>>()
    });
    let mut lines = vec![table(&headings, rows)];
    lines.push("MiB; stored to collected: since the node started".to_owned());
    for node in &listed.nodes {
        if let Some(why) = &node.collector_waits {
            lines.push(format!("{}: nothing is collected just now: {why}", node.node));
        }
        if node.disk_is_high {
            let mark = node.disk_high_water_percent;
            lines.push(format!(
                "{}: its disk is above the mark of {mark} %: it takes no new cells",
                node.node
            ));
        }
        for damaged in &node.damaged {
            let state = if damaged.is_repaired { "repaired" } else { "not repaired yet" };
            let kernels = match damaged.kernels.as_slice() {
                [] => "no kernel here".to_owned(),
                kernels => kernels.join(" "),
            };
            let chunk = damaged.chunk.get(..12).unwrap_or(&damaged.chunk);
            lines.push(format!("{}: chunk {chunk}… of {kernels} was damaged; {state}", node.node));
        }
    }
    lines.join("\n")
}

fn row(
    node: &NodeStorage,
    owner: Option<&callboard_protocol::storage::OwnerStorage>,
) -> Vec<String> {
    let mib = |bytes: u64| format!("{}.{}", bytes / MIB, bytes % MIB * 10 / MIB);
    let total = node.disk_used_bytes.saturating_add(node.disk_free_bytes).max(1);
    let percent = u128::from(node.disk_used_bytes) * 100 / u128::from(total);
    vec![
        node.node.to_string(),
        format!("{percent} %"),
        mib(node.disk_free_bytes),
        mib(node.reserve_bytes),
        owner.map_or_else(|| "-".to_owned(), |it| it.owner.to_string()),
        owner.map_or(0, |it| it.chunks).to_string(),
        mib(owner.map_or(0, |it| it.bytes)),
        mib(node.moved.stored_bytes),
        mib(node.moved.sent_bytes),
        mib(node.moved.received_bytes),
        mib(node.moved.spared_bytes),
        mib(node.moved.collected_bytes),
    ]
}

/// Has the nodes of a kernel that was stopped remove its chunks at once; says what came of it.
pub async fn purge(client: &Client, spec: &KernelSpec) {
    let nodes: std::collections::BTreeSet<_> =
        spec.replicas.values().map(|replica| replica.node.clone()).collect();
    for node in nodes {
        match client.control().purge(&node, spec.kernel).await {
            Ok(Purged { chunks, bytes, left: 0 }) => {
                say(&format!("{node}: {chunks} chunks, {bytes} bytes are gone"));
            }
            Ok(Purged { chunks, bytes, left }) => say(&format!(
                "{node}: {chunks} chunks, {bytes} bytes are gone; {left} that another kernel may \
                 just have been promised go within the grace period unless it names them"
            )),
            Err(fault) => say(&format!(
                "{node}: {}; its chunks of this kernel go within the grace period",
                fault.message
            )),
        }
    }
}
