//! The zygote: one process per node that has the libraries imported and forks kernels.
//!
//! [`Zygote`] is a handle to the task that keeps the process running. The process never sees a
//! kernel's key or state; what it is told are paths. While there is none, kernels are started the
//! long way. It is started again when it ends, and when another interpreter or other libraries are
//! installed.

use std::{
    collections::HashMap,
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    process::{Child, Command},
    sync::{mpsc, oneshot, watch},
    time::{MissedTickBehavior, interval, sleep, timeout},
};

use super::{
    PythonConfig,
    child::Forked,
    launch::{set_isolated, without_our_variables},
};

/// How long a fork may take; a machine that is out of memory may take long, and then fails.
const FORK_WITHIN: Duration = Duration::from_secs(5);
/// Shortest and longest pause before a zygote that ended is started again.
const PAUSE_MIN: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// A zygote that was ready and lived for so long did not end because of what it is.
const SOUND_AFTER: Duration = Duration::from_secs(60);
/// How often what is installed is looked at.
const WATCH_EVERY: Duration = Duration::from_secs(5);
/// Forks asked for and not answered; more wait for the long way.
const REQUESTS_MAX: usize = 64;

/// A kernel to fork.
#[derive(Debug, Clone, Serialize)]
pub(super) struct ForkRequest {
    pub(super) connection: PathBuf,
    pub(super) log: PathBuf,
    pub(super) cwd: PathBuf,
    pub(super) env: HashMap<&'static str, PathBuf>,
    /// Added to its niceness.
    pub(super) nice: i32,
}

#[derive(Serialize)]
struct Numbered<'a> {
    id: u64,
    parent: u32,
    #[serde(flatten)]
    request: &'a ForkRequest,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Said {
    Ready { loaded: Vec<String>, skipped: HashMap<String, String>, paths: Vec<PathBuf> },
    Forked { id: u64, pid: i32 },
    Failed { id: u64, reason: String },
}

/// How the zygote is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ZygoteStatus {
    /// Its process id once it can fork.
    pub pid: Option<u32>,
    /// The libraries it has imported.
    pub loaded: Vec<String>,
    /// Which of its lives this is; what was forked in an earlier one may be of another environment.
    pub life: u64,
}

type Asked = (ForkRequest, oneshot::Sender<Forked>);

/// A handle to the node's zygote. Dropping the last one ends it.
#[derive(Debug, Clone)]
pub struct Zygote {
    requests: mpsc::Sender<Asked>,
    status: watch::Receiver<ZygoteStatus>,
}

impl Zygote {
    /// Starts a zygote that imports `libraries`, and keeps it running. Its pid file and log are
    /// below `run_dir`. Makes this process the reaper of its descendants.
    ///
    /// # Errors
    /// If it cannot become that.
    pub fn start(config: PythonConfig, libraries: &str, run_dir: &Path) -> io::Result<Self> {
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
        let (requests, queue) = mpsc::channel(REQUESTS_MAX);
        let (seen, status) = watch::channel(ZygoteStatus::default());
        let keeper = Keeper {
            config,
            libraries: libraries.split_whitespace().collect::<Vec<_>>().join(" "),
            // Its command line names the directory, by which the sweep knows its forks as ours.
            run_dir: std::fs::canonicalize(run_dir)?,
            seen: Arc::new(seen),
        };
        tokio::spawn(keeper.keep(queue));
        Ok(Self { requests, status })
    }

    /// How it is, and how that changes.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<ZygoteStatus> {
        self.status.clone()
    }

    /// Forks a kernel; `None` if there is no zygote or it failed, and the kernel has to be started
    /// the long way.
    pub(super) async fn fork(&self, request: ForkRequest) -> Option<Forked> {
        self.status.borrow().pid?;
        let (answer, answered) = oneshot::channel();
        self.requests.try_send((request, answer)).ok()?;
        timeout(FORK_WITHIN, answered).await.ok()?.ok()
    }
}

struct Keeper {
    config: PythonConfig,
    libraries: String,
    run_dir: PathBuf,
    seen: Arc<watch::Sender<ZygoteStatus>>,
}

impl Keeper {
    /// Runs one zygote after the other until nobody has a handle any more.
    async fn keep(self, mut queue: mpsc::Receiver<Asked>) {
        let mut pause = PAUSE_MIN;
        loop {
            let began = Instant::now();
            let ended = self.run(&mut queue).await;
            self.seen.send_modify(|status| {
                status.pid = None;
                status.life += 1;
            });
            match ended {
                Ok(Ended::NotNeeded) => return,
                Ok(Ended::Outdated) => {
                    tracing::info!("other libraries are installed: a new zygote is started");
                    continue;
                }
                Err(error) => {
                    let log = std::fs::read_to_string(self.log()).unwrap_or_default();
                    let tail = log.lines().last().unwrap_or_default();
                    tracing::warn!(%error, %tail, "no zygote: kernels are started the long way");
                }
            }
            if began.elapsed() >= SOUND_AFTER {
                pause = PAUSE_MIN;
            }
            tokio::select! {
                () = sleep(pause) => {}
                () = refuse(&mut queue) => return,
            }
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    fn log(&self) -> PathBuf {
        self.run_dir.join("zygote.log")
    }

    fn start(&self) -> io::Result<(Child, UnixStream)> {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let log = std::fs::File::create(self.log())?;
        let mut command = Command::new(&self.config.program);
        without_our_variables(&mut command);
        set_isolated(&mut command, self.config.isolated);
        let child = command
            .args(["-m", "callboard_kernel.zygote"])
            .arg(&self.run_dir)
            .arg(&self.libraries)
            .env("PYTHONPATH", &self.config.package_dir)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        if let Some(pid) = child.id() {
            std::fs::write(self.run_dir.join("zygote.pid"), pid.to_string())?;
        }
        Ok((child, UnixStream::from_std(ours)?))
    }

    async fn run(&self, queue: &mut mpsc::Receiver<Asked>) -> io::Result<Ended> {
        let before = modified(&self.config.program);
        let (mut child, socket) = self.start()?;
        let (reader, to_zygote) = socket.into_split();
        let mut talk = Talk { to_zygote, waiting: HashMap::new(), last: 0 };
        let mut lines = BufReader::new(reader).lines();
        let paths = tokio::select! {
            ready = self.ready(&mut lines, child.id()) => ready?,
            ended = child.wait() => return Err(io::Error::other(format!("it ended: {}", ended?))),
            () = refuse(queue) => return Ok(Ended::NotNeeded),
        };
        let installed = stamps(&paths);
        let mut looks = interval(WATCH_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                asked = queue.recv() => match asked {
                    Some(asked) => talk.ask(asked).await?,
                    None => return Ok(Ended::NotNeeded),
                },
                line = lines.next_line() => match line? {
                    Some(line) => talk.heard(&line)?,
                    None => return Err(io::Error::other(format!("it ended: {}", child.wait().await?))),
                },
                _ = looks.tick() => {
                    if talk.is_stuck() {
                        return Err(io::Error::other("it does not answer any more"));
                    }
                    if modified(&self.config.program) != before || stamps(&paths) != installed {
                        return Ok(Ended::Outdated);
                    }
                }
            }
        }
    }

    /// Waits until it says that it can fork; returns the directories to watch.
    async fn ready(
        &self,
        lines: &mut Lines<BufReader<OwnedReadHalf>>,
        pid: Option<u32>,
    ) -> io::Result<Vec<PathBuf>> {
        let Some(line) = lines.next_line().await? else {
            return Err(io::Error::other("it ended before it was ready"));
        };
        let Said::Ready { loaded, skipped, paths } = serde_json::from_str(&line)? else {
            return Err(io::Error::other("it said something else than that it is ready"));
        };
        for (library, reason) in &skipped {
            tracing::info!(%library, %reason, "not preloaded");
        }
        tracing::info!(loaded = %loaded.join(" "), "the zygote is ready");
        self.seen.send_modify(|status| {
            status.pid = pid;
            status.loaded = loaded;
        });
        Ok(paths)
    }
}

/// How a zygote's life ended, other than by its own fault.
enum Ended {
    NotNeeded,
    Outdated,
}

/// Sends nobody away waiting; returns once nobody can ask any more.
async fn refuse(queue: &mut mpsc::Receiver<Asked>) {
    while queue.recv().await.is_some() {}
}

struct Talk {
    to_zygote: OwnedWriteHalf,
    waiting: HashMap<u64, (Instant, oneshot::Sender<Forked>)>,
    last: u64,
}

impl Talk {
    async fn ask(&mut self, (request, answer): Asked) -> io::Result<()> {
        self.last += 1;
        let numbered = Numbered { id: self.last, parent: std::process::id(), request: &request };
        let mut line = serde_json::to_vec(&numbered)?;
        line.push(b'\n');
        self.waiting.insert(self.last, (Instant::now(), answer));
        self.to_zygote.write_all(&line).await
    }

    /// Whether a request is older than anybody waits for.
    fn is_stuck(&self) -> bool {
        self.waiting.values().any(|(asked, _)| asked.elapsed() > FORK_WITHIN)
    }

    fn heard(&mut self, line: &str) -> io::Result<()> {
        match serde_json::from_str(line)? {
            Said::Forked { id, pid } => {
                // One that nobody waits for any more is killed by being dropped.
                let forked = Forked::adopt(pid)?;
                if let Some((_, answer)) = self.waiting.remove(&id) {
                    let _ = answer.send(forked);
                }
            }
            Said::Failed { id, reason } => {
                tracing::warn!(%reason, "a kernel could not be forked");
                self.waiting.remove(&id);
            }
            Said::Ready { .. } => {}
        }
        Ok(())
    }
}

fn modified(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path).and_then(|facts| facts.modified()).ok()
}

fn stamps(paths: &[PathBuf]) -> Vec<Option<SystemTime>> {
    paths.iter().map(|path| modified(path)).collect()
}
