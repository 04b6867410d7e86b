//! The notebook session of the demo: its cells, and what came of them.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use callboard_client::{ExecuteEvent, ExecuteOptions, Execution, KernelClient};
use callboard_protocol::{
    jupyter::JupyterMessage,
    kernel::{CellOutcome, OutputPlace},
};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use super::record::CellRecord;
use crate::exit::{Exit, Failure};

const SOURCE: &str = include_str!("session.py");
/// Begins a cell in the percent format.
const MARK: &str = "# %% ";
/// Longest that a cell of the demo may take, lost machines included.
const CELL_PATIENCE: Duration = Duration::from_secs(90);

/// The code of the cell `name`.
///
/// # Errors
/// A [`Failure`] if there is none.
pub(super) fn code(name: &str) -> Result<&'static str, Failure> {
    let cells = SOURCE.split(MARK).filter_map(|cell| cell.split_once('\n'));
    cells
        .into_iter()
        .find_map(|(title, code)| (title == name).then_some(code.trim_end()))
        .ok_or_else(|| Failure::new(Exit::Internal, format!("the demo has no cell '{name}'")))
}

/// A cell on its way, and what it said so far.
#[derive(Debug)]
pub(super) struct RunningCell {
    execution: Execution,
    ran: Ran,
    sent: Instant,
}

/// A cell that ended.
#[derive(Debug, Clone)]
pub(super) struct Ran {
    /// What the independent check needs.
    pub(super) record: CellRecord,
    /// What it printed.
    pub(super) text: String,
    /// The picture it drew, if it drew one.
    pub(super) png: Option<Vec<u8>>,
    /// What became of its executor, if that was lost.
    pub(super) interrupted: Option<String>,
    /// From the request to the end.
    pub(super) took: Duration,
    raised: Option<String>,
}

impl RunningCell {
    /// Sends nothing yet.
    pub(super) fn new(kernel: &KernelClient, name: &str) -> Result<Self, Failure> {
        let options = ExecuteOptions { timeout: Some(CELL_PATIENCE), ..Default::default() };
        let execution = kernel.execute(code(name)?, options);
        let record = CellRecord {
            name: name.to_owned(),
            msg_id: execution.msg_id().to_owned(),
            completed: false,
            outputs: Vec::new(),
        };
        let ran = Ran {
            record,
            text: String::new(),
            png: None,
            interrupted: None,
            took: Duration::ZERO,
            raised: None,
        };
        Ok(Self { execution, ran, sent: Instant::now() })
    }

    /// Waits until the cell printed something.
    ///
    /// # Errors
    /// A [`Failure`] if it ends or fails before.
    pub(super) async fn first_line(&mut self) -> Result<(), Failure> {
        while self.ran.text.is_empty() {
            if self.step().await? {
                let name = &self.ran.record.name;
                let text = format!("the cell '{name}' ended before anything could be broken");
                return Err(Failure::new(Exit::Failed, text));
            }
        }
        Ok(())
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// A [`Failure`] if the cell raised or nothing is known of its end.
    pub(super) async fn finish(mut self) -> Result<Ran, Failure> {
        while !self.step().await? {}
        self.ran.took = self.sent.elapsed();
        match &self.ran.raised {
            Some(error) => {
                let name = &self.ran.record.name;
                Err(Failure::new(Exit::Failed, format!("the cell '{name}' raised {error}")))
            }
            None => Ok(self.ran),
        }
    }

    /// Takes in the next thing that happens; true at the end.
    async fn step(&mut self) -> Result<bool, Failure> {
        let Some(event) = self.execution.next().await else {
            return Err(Failure::new(Exit::Internal, "a cell has no end; this is a defect"));
        };
        match event? {
            ExecuteEvent::Accepted(_) | ExecuteEvent::Notice(_) => {}
            ExecuteEvent::Output(message, place) => self.ran.take(&message, place),
            ExecuteEvent::Ended(end) => {
                match end.outcome {
                    CellOutcome::Completed => self.ran.record.completed = true,
                    CellOutcome::Interrupted { cause } => self.ran.interrupted = Some(cause),
                }
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl Ran {
    /// The last line it printed.
    pub(super) fn last_line(&self) -> &str {
        self.text.trim_end().lines().next_back().unwrap_or_default()
    }

    /// How often it printed a line.
    pub(super) fn line_count(&self) -> usize {
        self.text.lines().count()
    }

    fn take(&mut self, message: &JupyterMessage, place: OutputPlace) {
        let digest = hex::encode(Sha256::digest(message.encode()));
        self.record.outputs.push((place.cursor.to_string(), digest));
        let (Ok(header), Ok(content)) = (message.parse_header(), message.parse_content::<Value>())
        else {
            return;
        };
        match header.msg_type.as_str() {
            "stream" => self.text.push_str(content["text"].as_str().unwrap_or_default()),
            "display_data" => {
                let png = content["data"]["image/png"].as_str().unwrap_or_default();
                let png: String = png.split_whitespace().collect();
                self.png = STANDARD.decode(png).ok().filter(|png| !png.is_empty());
            }
            "error" => {
                let text = |key: &str| content[key].as_str().unwrap_or("?").to_owned();
                self.raised = Some(format!("{}: {}", text("ename"), text("evalue")));
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cell_of_the_session_has_code_of_its_own() {
        assert!(code("data").unwrap().starts_with("digits ="));
        assert_eq!(code("fingerprint").unwrap(), "print(fingerprint())");
        assert!(code("nothing").is_err());
    }
}
