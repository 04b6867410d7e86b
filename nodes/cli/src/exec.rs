//! `callboard kernel exec`: runs a cell and prints its outputs as they come.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    path::Path,
    time::Duration,
};

use callboard_client::{ExecuteEvent, ExecuteOptions, Execution};
use callboard_protocol::{
    jupyter::JupyterMessage,
    kernel::{CellEnd, CellOutcome, Level},
};
use serde_json::{Value, json};

use crate::{
    args::{ExecArgs, LevelArg},
    context::Context,
    exit::{Exit, Failure, Outcome},
    output::{Printer, say},
};

/// Runs the cell.
///
/// # Errors
/// A [`Failure`] if the cell could not be run or nothing is known of it.
pub async fn run(context: &Context, args: ExecArgs) -> Outcome {
    let code = code(&args)?;
    let (client, spec) = context.find(&args.kernel).await?;
    let level = match args.level {
        LevelArg::Received => Level::Received,
        LevelArg::Durable => Level::Durable,
    };
    let timeout = args.timeout.map(Duration::from_secs_f64);
    let options = ExecuteOptions { level, msg_id: args.msg_id, timeout, ..Default::default() };
    let execution = client.kernel(spec.kernel).execute(&code, options);
    follow(context.printer, execution, spec.settings.kernelspec.is_none()).await
}

fn code(args: &ExecArgs) -> Result<String, Failure> {
    match (&args.code, &args.file) {
        (Some(code), _) => Ok(code.clone()),
        (None, Some(file)) if file == Path::new("-") => {
            let mut code = String::new();
            io::stdin().read_to_string(&mut code).map_err(|error| {
                Failure::usage(format!("cannot read the code from stdin: {error}"))
            })?;
            Ok(code)
        }
        (None, Some(file)) => fs::read_to_string(file).map_err(|error| {
            Failure::usage(format!("cannot read the code from {}: {error}", file.display()))
        }),
        (None, None) => Err(Failure::usage("give the code, or --file FILE")),
    }
}

async fn follow(printer: Printer, mut execution: Execution, keeps_state: bool) -> Outcome {
    let mut cell = Cell { printer, keeps_state, status: None, outputs: Vec::new() };
    let msg_id = execution.msg_id().to_owned();
    while let Some(event) = execution.next().await {
        match event? {
            ExecuteEvent::Accepted(_) => {}
            ExecuteEvent::Notice(text) => say(&text),
            ExecuteEvent::Output(message, place) => {
                cell.show(&message, place.cursor.to_string())?;
            }
            ExecuteEvent::Ended(end) => return cell.end(&end),
        }
    }
    Err(Failure::new(Exit::Internal, format!("cell {msg_id} has no end; this is a defect")))
}

struct Cell {
    printer: Printer,
    keeps_state: bool,
    status: Option<String>,
    outputs: Vec<Value>,
}

impl Cell {
    fn show(&mut self, message: &JupyterMessage, cursor: String) -> Result<(), Failure> {
        let (Ok(header), Ok(content)) = (message.parse_header(), message.parse_content::<Value>())
        else {
            say("an output of the cell is not a valid Jupyter message and is left out");
            return Ok(());
        };
        if header.msg_type == "execute_reply" {
            self.status = content["status"].as_str().map(str::to_owned);
        }
        if self.printer.is_json() {
            self.outputs
                .push(json!({ "cursor": cursor, "msg_type": header.msg_type, "content": content }));
            return Ok(());
        }
        show_output(self.printer, &header.msg_type, &content)
    }

    fn end(self, end: &CellEnd) -> Outcome {
        let exit = match (&end.outcome, self.status.as_deref()) {
            (CellOutcome::Interrupted { cause }, _) => {
                let state = match self.keeps_state {
                    true => "the kernel's state is as before this cell",
                    false => "the variables of its process are gone",
                };
                say(&format!(
                    "cell {} was interrupted: {cause}; {state}, effects outside it may have happened",
                    end.seq
                ));
                Exit::MaybeExecuted
            }
            (CellOutcome::Completed, Some("ok")) => Exit::Ok,
            (CellOutcome::Completed, None) => {
                say(
                    "the cell completed, but its reply is no longer kept: whether it raised is not known",
                );
                Exit::Ok
            }
            (CellOutcome::Completed, Some(_)) => Exit::Failed,
        };
        if self.printer.is_json() {
            let status = &self.status;
            let whole = json!({ "end": end, "status": status, "outputs": self.outputs });
            self.printer.data(&whole, |_| String::new())?;
        }
        Ok(exit)
    }
}

/// Prints one output as a terminal shows it; messages that are not outputs print nothing.
///
/// # Errors
/// A [`Failure`] if stdout cannot be written.
pub fn show_output(printer: Printer, msg_type: &str, content: &Value) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match msg_type {
        "stream" => {
            let text = content["text"].as_str().unwrap_or_default();
            if content["name"] == "stderr" {
                let _ = io::stderr().write_all(text.as_bytes());
            } else {
                out.write_all(text.as_bytes())?;
            }
        }
        "execute_result" | "display_data" | "update_display_data" => {
            if let Some(text) = content["data"]["text/plain"].as_str() {
                writeln!(out, "{text}")?;
            }
        }
        "error" => {
            let lines = content["traceback"].as_array().into_iter().flatten();
            let lines: Vec<&str> = lines.filter_map(Value::as_str).collect();
            let text = if lines.is_empty() {
                format!("{}: {}", text_of(&content["ename"]), text_of(&content["evalue"]))
            } else {
                lines.join("\n")
            };
            say(&printer.plain(&text));
        }
        _ => {}
    }
    out.flush()?;
    Ok(())
}

fn text_of(value: &Value) -> &str {
    value.as_str().unwrap_or("?")
}
