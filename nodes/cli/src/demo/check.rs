//! The independent check: a Python program with its own client, which asks the cluster itself.

use std::{fs, path::Path, process::Stdio, time::Duration};

use tokio::{process::Command, time::timeout};

use crate::{
    exit::{Exit, Failure},
    up::state::cannot,
};

const PROGRAM: &str = include_str!("../../../../scripts/demo_check.py");
/// How long one run of the check may take: it fetches every output and runs one cell.
const PATIENCE: Duration = Duration::from_secs(60);

/// When the check looks.
#[derive(Debug, Clone, Copy)]
pub(super) enum Look {
    /// Before everything is killed: takes its own digests of the variables and notes them.
    Before,
    /// At the end: compares.
    After,
}

/// Runs the check on `record` with `python`, and returns what it found in a sentence.
///
/// # Errors
/// A [`Failure`] with what it found to be missing.
pub(super) async fn run(python: &Path, record: &Path, look: Look) -> Result<String, Failure> {
    let program = record.with_file_name("demo_check.py");
    fs::write(&program, PROGRAM).map_err(|error| cannot("write", &program, &error))?;
    let look = match look {
        Look::Before => "before",
        Look::After => "after",
    };
    let output = Command::new(python)
        .arg(&program)
        .args([look.as_ref(), record.as_os_str()])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let failed = |why: String| Failure::new(Exit::Failed, format!("the independent check {why}"));
    let output = timeout(PATIENCE, output)
        .await
        .map_err(|_| failed(format!("did not end within {} s", PATIENCE.as_secs())))?
        .map_err(|error| failed(format!("could not be run: {error}")))?;
    let last = |bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes);
        text.trim_end().lines().next_back().unwrap_or("it said nothing").to_owned()
    };
    if output.status.success() {
        Ok(last(&output.stdout))
    } else {
        Err(failed(format!("does not agree: {}", last(&output.stderr))))
    }
}
