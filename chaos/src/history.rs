//! What the client saw, one JSON object a line: all that the checker gets to know of a trial,
//! besides the witness file.

use std::{
    fs::File,
    io::Write as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use callboard_protocol::kernel::Level;
use serde::{Deserialize, Serialize};

use crate::error::ChaosError;

/// How a cell ended, as its client was told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Outcome {
    /// Completed; `status` is that of its reply, if the reply came: `ok` or `error`.
    Completed {
        /// Of the `execute_reply`.
        status: Option<String>,
    },
    /// Its executor was lost.
    Interrupted {
        /// What the kernel said.
        cause: String,
    },
    /// Refused, or given up by the kernel.
    Refused {
        /// The fault's code.
        code: String,
        /// `not_executed` or `maybe_executed`.
        certainty: String,
        /// In words.
        message: String,
    },
    /// No end was learnt within the client's patience.
    Unanswered,
}

/// One line of a history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "event")]
pub enum Entry {
    /// What was tried; the first line.
    Trial {
        /// In words.
        what: String,
        /// Its seed.
        seed: u64,
        /// The kernel.
        kernel: String,
    },
    /// A cell is about to be sent.
    Invoke {
        /// Its id.
        msg_id: String,
        /// What it adds to witness and state; `None` for cells that change neither.
        token: Option<String>,
        /// What it asks for.
        level: Level,
        /// What it runs.
        code: String,
    },
    /// The kernel gave it a place.
    Accepted {
        /// Its id.
        msg_id: String,
        /// The place.
        seq: u64,
    },
    /// It ended.
    Ended {
        /// Its id.
        msg_id: String,
        /// How.
        outcome: Outcome,
    },
    /// It was sent again under its id after the fault was healed.
    AskedAgain {
        /// Its id.
        msg_id: String,
        /// How the kernel says it ended.
        outcome: Outcome,
    },
    /// The client was told something while it waited.
    Notice {
        /// Its id.
        msg_id: String,
        /// What.
        text: String,
    },
    /// The fault struck.
    Struck {
        /// What was done to what.
        what: String,
    },
    /// The fault is over.
    Healed,
    /// The kernel has all its replicas again.
    Whole,
    /// What the session holds, read by this client.
    Final {
        /// The tokens, in order.
        log: Vec<String>,
        /// How many cells counted.
        n: u64,
    },
}

#[derive(Serialize)]
struct Line<'a> {
    /// Since the history began.
    at_ms: f64,
    /// Since 1970, for people.
    wall_ms: u64,
    #[serde(flatten)]
    entry: &'a Entry,
}

/// A history being written. Clones write to the same file.
#[derive(Debug, Clone)]
pub struct History {
    file: Arc<Mutex<File>>,
    begun: Instant,
    path: PathBuf,
}

impl History {
    /// Makes the file.
    ///
    /// # Errors
    /// [`ChaosError::Io`].
    pub fn create(path: &Path) -> Result<Self, ChaosError> {
        let file = File::create(path).map_err(ChaosError::io("make", path))?;
        Ok(Self { file: Arc::new(Mutex::new(file)), begun: Instant::now(), path: path.to_owned() })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Adds a line.
    ///
    /// # Errors
    /// [`ChaosError::Io`]: an incomplete history would acquit the cluster of what it did.
    pub fn record(&self, entry: &Entry) -> Result<(), ChaosError> {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let line = Line {
            at_ms: self.begun.elapsed().as_secs_f64() * 1e3,
            wall_ms: u64::try_from(wall.as_millis()).unwrap_or(u64::MAX),
            entry,
        };
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let mut write = || {
            let mut text = serde_json::to_vec(&line)?;
            text.push(b'\n');
            file.write_all(&text)
        };
        write().map_err(ChaosError::io("write", &self.path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_an_object_that_reads_back() {
        let folder = tempfile::tempdir().unwrap();
        let history = History::create(&folder.path().join("h.jsonl")).unwrap();
        let outcome = Outcome::Interrupted { cause: "killed by signal 9".to_owned() };
        let entries =
            [Entry::Healed, Entry::Ended { msg_id: "m".to_owned(), outcome }, Entry::Whole];
        for entry in &entries {
            history.record(entry).unwrap();
        }
        let text = std::fs::read_to_string(history.path()).unwrap();
        let read: Vec<Entry> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(read, entries);
    }
}
