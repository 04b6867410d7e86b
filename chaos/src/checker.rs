//! Calls the independent checker, which is carried in the program and written in another language.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use callboard_protocol::KernelId;
use serde::{Deserialize, Serialize};
use tokio::{process::Command, time::timeout};

use crate::error::ChaosError;

/// How long a verdict may take: the checker reads the final state over the bus.
const VERDICT_WITHIN: Duration = Duration::from_secs(90);

/// What the checker found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verdict {
    /// Whether it found nothing.
    pub ok: bool,
    /// Cells sent.
    pub cells: u64,
    /// Of them, acknowledged at `durable`.
    pub acknowledged_durable: u64,
    /// Of them, ended as interrupted.
    pub interrupted: u64,
    /// Tokens the session holds at the end.
    pub tokens_held: u64,
    /// Durable cells that are gone.
    pub lost: Vec<String>,
    /// Cells that ran twice.
    pub run_twice: Vec<String>,
    /// Cells without an end.
    pub unanswered: Vec<String>,
    /// Other contradictions.
    pub inconsistent: Vec<String>,
}

/// The checker on disk, and the Python that runs it.
#[derive(Debug, Clone)]
pub struct Checker {
    script: PathBuf,
    python: PathBuf,
}

impl Checker {
    /// Writes the checker to `folder` and sees that it can run.
    ///
    /// # Errors
    /// [`ChaosError::NoVerdict`] if Python lacks nats-py.
    pub async fn install(folder: &Path, python: &Path) -> Result<Self, ChaosError> {
        fs::create_dir_all(folder).map_err(ChaosError::io("make the folder", folder))?;
        for (name, text) in [
            ("check.py", include_str!("../checker/check.py")),
            ("client.py", include_str!("../checker/client.py")),
        ] {
            let path = folder.join(name);
            fs::write(&path, text).map_err(ChaosError::io("write", &path))?;
        }
        let checker = Self { script: folder.join("check.py"), python: python.to_owned() };
        let probe = Command::new(python).args(["-c", "import nats"]).output().await;
        match probe {
            Ok(output) if output.status.success() => Ok(checker),
            _ => Err(ChaosError::NoVerdict(format!(
                "{} cannot import nats: run `make setup`, or name a Python that has nats-py with --python",
                python.display()
            ))),
        }
    }

    /// Judges a trial.
    ///
    /// # Errors
    /// [`ChaosError::NoVerdict`] with what the checker said.
    pub async fn judge(
        &self,
        history: &Path,
        witness: &Path,
        credentials: &Path,
        kernel: KernelId,
    ) -> Result<Verdict, ChaosError> {
        let mut command = Command::new(&self.python);
        command.arg(&self.script).arg("--history").arg(history).arg("--witness").arg(witness);
        command.arg("--credentials").arg(credentials).arg("--kernel").arg(kernel.to_string());
        let running = command.stdin(Stdio::null()).kill_on_drop(true).output();
        let output = timeout(VERDICT_WITHIN, running)
            .await
            .map_err(|_| ChaosError::NoVerdict("it took too long".to_owned()))?
            .map_err(ChaosError::io("run", &self.python))?;
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        if !output.status.success() {
            return Err(ChaosError::NoVerdict(said));
        }
        serde_json::from_slice(&output.stdout)
            .map_err(|error| ChaosError::NoVerdict(format!("{error}; {said}")))
    }
}
