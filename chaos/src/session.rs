//! The client of a trial: one kernel, one cell after the other, everything written down.

use std::{path::Path, time::Duration};

use callboard_client::{ExecuteEvent, ExecuteOptions, KernelClient};
use callboard_protocol::{
    Certainty, Fault, FaultCode, KernelId,
    jupyter::Channel,
    kernel::{CellOutcome, Level},
};
use serde_json::Value;
use tokio::{sync::oneshot, task::JoinHandle, time::Instant};
use uuid::Uuid;

use crate::{
    cluster::Cluster,
    error::ChaosError,
    history::{Entry, History, Outcome},
};

/// Size of a variable that every session has from the beginning, in bytes: enough for a chunk.
const BASE_BYTES: usize = 512 << 10;
/// How long the client resends before it gives a cell up as unanswered.
const CELL_PATIENCE: Duration = Duration::from_secs(60);

/// A cell that was sent.
#[derive(Debug, Clone)]
pub struct Sent {
    /// Its id.
    pub msg_id: String,
    /// What it ran.
    pub code: String,
    /// What it asked for.
    pub level: Level,
    /// How it ended.
    pub end: End,
}

/// The end of a cell as its client saw it.
#[derive(Debug, Clone)]
pub struct End {
    /// How.
    pub outcome: Outcome,
    /// When its result arrived.
    pub at: Instant,
    /// What it printed.
    pub text: String,
}

impl End {
    /// Whether it completed without an exception.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        matches!(&self.outcome, Outcome::Completed { status } if status.as_deref() == Some("ok"))
    }
}

/// A cell on its way.
#[derive(Debug)]
pub struct InFlight {
    /// Its id.
    pub msg_id: String,
    /// Fires once it has its place.
    pub accepted: oneshot::Receiver<()>,
    /// Fires at its first output.
    pub output: oneshot::Receiver<()>,
    task: JoinHandle<Result<Sent, ChaosError>>,
}

impl InFlight {
    /// Waits for its end.
    ///
    /// # Errors
    /// [`ChaosError`] if the history cannot be written.
    pub async fn end(self) -> Result<Sent, ChaosError> {
        self.task.await.map_err(|error| ChaosError::NoVerdict(error.to_string()))?
    }
}

/// A client with one kernel.
#[derive(Debug)]
pub struct Session {
    kernel: KernelClient,
    history: History,
    tokens: u32,
    sent: Vec<Sent>,
}

impl Session {
    /// A session with a kernel that exists.
    #[must_use]
    pub fn new(cluster: &Cluster, kernel: KernelId, history: History) -> Self {
        Self { kernel: cluster.client().kernel(kernel), history, tokens: 0, sent: Vec::new() }
    }

    /// The kernel.
    #[must_use]
    pub fn kernel(&self) -> &KernelClient {
        &self.kernel
    }

    /// Where everything is written down.
    #[must_use]
    pub fn history(&self) -> &History {
        &self.history
    }

    /// Prepares the session and returns the executor's Python process.
    ///
    /// # Errors
    /// [`ChaosError`] if the cell does not complete: no fault has struck yet.
    pub async fn prepare(&mut self, witness: &Path) -> Result<u32, ChaosError> {
        let path = Value::from(witness.to_string_lossy());
        let code = format!(
            "import hashlib, os, time\n\
             log, n, sums = [], 0, {{}}\n\
             base = os.urandom({BASE_BYTES})\n\
             sums['base'] = hashlib.blake2b(base).hexdigest()\n\
             def witness(token):\n    \
                 fd = os.open({path}, os.O_APPEND | os.O_CREAT | os.O_WRONLY, 0o666)\n    \
                 os.write(fd, (token + '\\n').encode())\n    \
                 os.close(fd)\n\
             print(os.getpid())"
        );
        let end = self.plain(code).await?;
        // One that was interrupted may have printed; what it prepared is gone.
        let python = end.text.trim().parse().ok().filter(|_| end.is_ok());
        python.ok_or_else(|| ChaosError::TooSlow {
            what: "the preparing cell",
            within_s: CELL_PATIENCE.as_secs(),
            detail: format!(": it ended {:?} and printed '{}'", end.outcome, end.text),
        })
    }

    /// Runs a cell that adds its token to witness and state, and waits for its end.
    ///
    /// # Errors
    /// [`ChaosError`] if the history cannot be written.
    pub async fn step(&mut self) -> Result<Sent, ChaosError> {
        let cell = self.begin("", "", Level::Durable)?;
        self.finish(cell).await
    }

    /// Sends a cell that writes its token to the witness, does `work`, and adds the token to the
    /// state; `before` runs first.
    ///
    /// # Errors
    /// As [`Self::step`].
    pub fn begin(
        &mut self,
        before: &str,
        work: &str,
        level: Level,
    ) -> Result<InFlight, ChaosError> {
        self.tokens += 1;
        let token = format!("t{}", self.tokens);
        let code = format!("{before}witness('{token}')\n{work}log.append('{token}')\nn += 1");
        self.send(Some(token), code, level)
    }

    /// Waits for the end of a cell that was begun.
    ///
    /// # Errors
    /// As [`Self::step`].
    pub async fn finish(&mut self, cell: InFlight) -> Result<Sent, ChaosError> {
        let sent = cell.end().await?;
        self.sent.push(sent.clone());
        Ok(sent)
    }

    /// Sends every cell again under its id, but those without an answer: one that never arrived
    /// would run now.
    ///
    /// # Errors
    /// As [`Self::step`].
    pub async fn ask_again(&self) -> Result<(), ChaosError> {
        for sent in self.sent.iter().filter(|sent| sent.end.outcome != Outcome::Unanswered) {
            let (kernel, code) = (self.kernel.clone(), sent.code.clone());
            let id = sent.msg_id.clone();
            let (_, end) = follow(&kernel, &code, &id, sent.level, None, |_| Ok(())).await?;
            self.history.record(&Entry::AskedAgain { msg_id: id, outcome: end.outcome })?;
        }
        Ok(())
    }

    /// Reads what the session holds.
    ///
    /// # Errors
    /// [`ChaosError`] if the kernel cannot tell after everything was healed.
    pub async fn read_final(&mut self) -> Result<(), ChaosError> {
        #[derive(serde::Deserialize)]
        struct Held {
            log: Vec<String>,
            n: u64,
        }
        let code = "import json as _json\nprint(_json.dumps({'log': log, 'n': n}))";
        let end = self.plain(code.to_owned()).await?;
        let held: Held = serde_json::from_str(&end.text).map_err(|_| ChaosError::TooSlow {
            what: "the final read",
            within_s: CELL_PATIENCE.as_secs(),
            detail: format!(": it ended {:?} and printed '{}'", end.outcome, end.text),
        })?;
        self.history.record(&Entry::Final { log: held.log, n: held.n })
    }

    /// Runs a cell without a token, which may raise, and waits for its end.
    ///
    /// # Errors
    /// As [`Self::step`].
    pub async fn run(&mut self, code: String) -> Result<End, ChaosError> {
        self.plain(code).await
    }

    async fn plain(&mut self, code: String) -> Result<End, ChaosError> {
        let cell = self.send(None, code, Level::Durable)?;
        Ok(self.finish(cell).await?.end)
    }

    fn send(
        &self,
        token: Option<String>,
        code: String,
        level: Level,
    ) -> Result<InFlight, ChaosError> {
        let msg_id = Uuid::now_v7().to_string();
        let invoke = Entry::Invoke { msg_id: msg_id.clone(), token, level, code: code.clone() };
        self.history.record(&invoke)?;
        let (accepted_sender, accepted) = oneshot::channel();
        let (output_sender, output) = oneshot::channel();
        let (kernel, history, id) = (self.kernel.clone(), self.history.clone(), msg_id.clone());
        let task = tokio::spawn(async move {
            let watch = Some((accepted_sender, output_sender));
            let record = |entry: &Entry| history.record(entry);
            let (msg_id, end) = follow(&kernel, &code, &id, level, watch, record).await?;
            history.record(&Entry::Ended { msg_id: id, outcome: end.outcome.clone() })?;
            Ok(Sent { msg_id, code, level, end })
        });
        Ok(InFlight { msg_id, accepted, output, task })
    }
}

type Watch = (oneshot::Sender<()>, oneshot::Sender<()>);

/// Follows a cell to its end.
async fn follow(
    kernel: &KernelClient,
    code: &str,
    msg_id: &str,
    level: Level,
    watch: Option<Watch>,
    record: impl Fn(&Entry) -> Result<(), ChaosError>,
) -> Result<(String, End), ChaosError> {
    let (mut accepted, mut output) = watch.unzip();
    let options = ExecuteOptions {
        level,
        msg_id: Some(msg_id.to_owned()),
        timeout: Some(CELL_PATIENCE),
        ..ExecuteOptions::default()
    };
    let mut execution = kernel.execute(code, options);
    let (mut text, mut status) = (String::new(), None);
    let outcome = loop {
        match execution.next().await {
            None => break Outcome::Unanswered,
            Some(Err(fault)) => break refusal(fault),
            Some(Ok(ExecuteEvent::Accepted(it))) => {
                record(&Entry::Accepted { msg_id: msg_id.to_owned(), seq: it.seq.0 })?;
                accepted.take().map(|sender| sender.send(()));
            }
            Some(Ok(ExecuteEvent::Output(message, _))) => {
                let content: Value = message.parse_content().unwrap_or_default();
                if message.channel == Channel::Shell {
                    status = content["status"].as_str().map(str::to_owned);
                }
                if content["name"] == "stdout" {
                    text += content["text"].as_str().unwrap_or_default();
                    output.take().map(|sender| sender.send(()));
                }
            }
            Some(Ok(ExecuteEvent::Notice(text))) => {
                record(&Entry::Notice { msg_id: msg_id.to_owned(), text })?;
            }
            Some(Ok(ExecuteEvent::Ended(end))) => {
                break match end.outcome {
                    CellOutcome::Completed => Outcome::Completed { status },
                    CellOutcome::Interrupted { cause } => Outcome::Interrupted { cause },
                };
            }
        }
    };
    Ok((msg_id.to_owned(), End { outcome, at: Instant::now(), text }))
}

/// What a fault means for the cell. The client's own patience running out is no answer.
fn refusal(fault: Fault) -> Outcome {
    if fault.code == FaultCode::TimedOut {
        return Outcome::Unanswered;
    }
    let code = serde_json::to_value(fault.code).unwrap_or_default();
    let certainty = match fault.certainty {
        Certainty::NotExecuted => "not_executed",
        Certainty::MaybeExecuted => "maybe_executed",
    };
    Outcome::Refused {
        code: code.as_str().unwrap_or_default().to_owned(),
        certainty: certainty.to_owned(),
        message: fault.message,
    }
}
