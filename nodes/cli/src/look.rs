//! `callboard nodes`, `outputs` and `events`: what is, and what happens.

use std::time::{Duration, UNIX_EPOCH};

use callboard_protocol::{
    audit::{AUDITED, Audit},
    control::{NodeHealth, NodeStatus},
    date::iso8601,
    jupyter::JupyterMessage,
    kernel::{Output, OutputCursor, OutputPlace},
};
use callboard_transport::typed::bus_fault;
use serde::Deserialize as _;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};

use crate::{
    args::{EventsArgs, OutputsArgs},
    context::Context,
    exec::show_output,
    exit::{Exit, Failure, Outcome},
    output::{Printer, say, stdout_line, table},
};

/// What `events` shows without `--follow`.
const EVENTS_SAMPLE: Duration = Duration::from_secs(2);

/// `callboard nodes`.
///
/// # Errors
/// A [`Failure`] if no cluster answers.
pub async fn nodes(context: &Context) -> Outcome {
    let list = context.connect().await?.control().list_nodes().await?;
    context.printer.data(&list, |list| {
        let headings = [
            "node", "health", "heard", "pid", "host", "life", "replicas", "asleep", "cells",
            "stock", "disk", "python",
        ];
        table(&headings, list.nodes.iter().map(row))
    })?;
    if let Some(outage) = &list.outage {
        say(&format!("no repair just now: {outage}"));
    }
    Ok(Exit::Ok)
}

fn row(node: &NodeStatus) -> Vec<String> {
    let health = match node.health {
        NodeHealth::Up => "up",
        NodeHealth::Suspected => "suspected",
        NodeHealth::Gone => "gone",
    };
    vec![
        node.node.to_string(),
        health.to_owned(),
        format!("{} ms ago", node.silent_ms),
        node.pid.to_string(),
        node.host.clone(),
        node.incarnation.to_string(),
        node.replicas.to_string(),
        node.asleep.to_string(),
        node.running_cells.to_string(),
        format!("{}/{}", node.python_stock.ready, node.python_stock.target),
        node.disk_level.as_ref().map_or_else(
            || "-".to_owned(),
            |disk| {
                let mark = if disk.is_high { " full" } else { "" };
                format!("{} %{mark}", disk.used_percent)
            },
        ),
        node.python_problem.clone().unwrap_or_else(|| "ok".to_owned()),
    ]
}

/// `callboard outputs`.
///
/// # Errors
/// A [`Failure`] if the kernel does not answer.
pub async fn outputs(context: &Context, args: OutputsArgs) -> Outcome {
    let (client, spec) = context.find(&args.kernel).await?;
    let kernel = client.kernel(spec.kernel);
    // Subscribed first, so that nothing falls between the log and what follows.
    let mut events = match args.follow {
        true => Some(kernel.events().await.map_err(|error| {
            let pattern = format!("the events of kernel {}", spec.kernel);
            Failure::new(Exit::Unavailable, format!("cannot follow {pattern}: {error}"))
        })?),
        false => None,
    };
    let mut shown = Shown { printer: context.printer, mark: args.since, all: Vec::new() };
    loop {
        let page = kernel.outputs(shown.mark).await?;
        if page.gap {
            say("earlier outputs are no longer kept by the kernel");
        }
        for output in &page.outputs {
            shown.show(output, args.follow)?;
        }
        if !page.more || page.outputs.is_empty() {
            break;
        }
    }
    if let Some(events) = &mut events {
        while let Some(message) = events.next().await {
            let Some(place) = message.envelope.cursor.filter(|_| is_emitted(&message)) else {
                continue;
            };
            if !follows(shown.mark, place) {
                for output in kernel.outputs(shown.mark).await?.outputs {
                    shown.show(&output, true)?;
                }
            }
            shown.show(&Output { place, message: message.payload }, true)?;
        }
        return Err(Failure::from(bus_fault(
            &callboard_protocol::Subject::actor(
                client.cluster(),
                callboard_protocol::ActorKind::Kernel,
                spec.kernel,
                "outputs",
            ),
            &callboard_transport::BusError::Disconnected("the subscription ended".to_owned()),
        )));
    }
    shown.finish()
}

fn is_emitted(message: &callboard_transport::Message) -> bool {
    message.subject.last() == "emitted"
}

/// Whether nothing can be missing between `mark` and `place`.
fn follows(mark: OutputCursor, place: OutputPlace) -> bool {
    let OutputCursor { term, number } = place.cursor;
    place.cursor <= mark || (term == mark.term && number == mark.number + 1)
}

struct Shown {
    printer: Printer,
    mark: OutputCursor,
    all: Vec<Value>,
}

impl Shown {
    fn show(&mut self, output: &Output, at_once: bool) -> Result<(), Failure> {
        if output.place.cursor <= self.mark {
            return Ok(());
        }
        self.mark = output.place.cursor;
        let Ok(message) = JupyterMessage::decode(&output.message) else { return Ok(()) };
        let (Ok(header), Ok(content)) = (message.parse_header(), message.parse_content::<Value>())
        else {
            return Ok(());
        };
        if !self.printer.is_json() {
            return show_output(self.printer, &header.msg_type, &content);
        }
        let value = json!({
            "cursor": output.place.cursor.to_string(),
            "cell": output.place.cell,
            "msg_type": header.msg_type,
            "content": content,
        });
        if at_once {
            return stdout_line(&value.to_string());
        }
        self.all.push(value);
        Ok(())
    }

    fn finish(self) -> Outcome {
        if self.printer.is_json() {
            let next = self.mark.to_string();
            let whole = json!({ "outputs": self.all, "next": next });
            self.printer.data(&whole, |_| String::new())?;
        } else {
            say(&format!("up to {}; later ones: --since {}", self.mark, self.mark));
        }
        Ok(Exit::Ok)
    }
}

/// `callboard events`.
///
/// # Errors
/// A [`Failure`] if no cluster answers.
pub async fn events(context: &Context, args: EventsArgs) -> Outcome {
    let mut events = context.connect().await?.events().await?;
    let until = Instant::now() + EVENTS_SAMPLE;
    loop {
        let event = if args.follow {
            events.next().await
        } else {
            match timeout_at(until, events.next()).await {
                Ok(event) => event,
                Err(_) => return Ok(Exit::Ok),
            }
        };
        let Some(event) = event else {
            return Err(Failure::new(Exit::Unavailable, "the connection to the broker was closed"));
        };
        if event.event == "beat" && !args.beats {
            continue;
        }
        let body = body(&event.payload);
        let audit = (event.event == AUDITED).then(|| Audit::deserialize(&body));
        if context.printer.is_json() {
            let (kind, id) = (event.kind.to_string(), &event.id);
            let line = json!({ "kind": kind, "id": id, "event": event.event, "body": body });
            stdout_line(&line.to_string())?;
        } else if let Some(Ok(audit)) = audit {
            stdout_line(&audit_line(&audit))?;
        } else {
            stdout_line(&format!("{} {} {} {body}", event.kind, event.id, event.event))?;
        }
    }
}

/// An audit for reading, such as `audit 2026-11-26T20:41:01.000000Z ada kernel_started plots: …`. A
/// gateway may repeat in it what a stranger typed, so nothing but printable characters is printed.
fn audit_line(audit: &Audit) -> String {
    let at = iso8601(UNIX_EPOCH + Duration::from_millis(audit.at_ms));
    let Audit { by, action, subject, detail, .. } = audit;
    let detail = if detail.is_empty() { String::new() } else { format!(": {detail}") };
    let line = format!("audit {at} {by} {action} {subject}{detail}");
    line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// A body as JSON: itself, or for an output its type and length.
fn body(payload: &bytes::Bytes) -> Value {
    if let Ok(value) = serde_json::from_slice(payload) {
        return value;
    }
    let header = JupyterMessage::decode(payload).and_then(|message| message.parse_header());
    match header {
        Ok(header) => json!({ "msg_type": header.msg_type, "bytes": payload.len() }),
        Err(_) => json!({ "bytes": payload.len() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_audit_is_one_readable_line_whatever_is_in_it() {
        let audit = |by: &str, detail: &str| Audit {
            at_ms: 1_709_164_799_000,
            by: by.to_owned(),
            action: "user_added".to_owned(),
            subject: "bob".to_owned(),
            detail: detail.to_owned(),
        };
        let line = audit_line(&audit("ada", "as viewer"));
        assert_eq!(line, "audit 2024-02-28T23:59:59.000000Z ada user_added bob: as viewer");
        assert!(audit_line(&audit("ada", "")).ends_with("bob"));
        let line = audit_line(&audit("\u{1b}[2Jx\ny", "\r\n"));
        assert!(!line.contains(char::is_control) && line.contains("[2Jx y"), "{line:?}");
        audit_line(&Audit { at_ms: u64::MAX, ..audit("", "") });
    }
}
