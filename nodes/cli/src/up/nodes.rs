//! The node processes of `up`, each watched by a task of its own.

use std::{
    fs,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use callboard_agent::LAST_END_FILE;
use callboard_client::Client;
use callboard_policy::restart::{RestartDecision, RestartHistory, RestartPolicy};
use callboard_protocol::{ActorKind, Incarnation, Subject, node::NodeExited};
use callboard_transport::typed::announce;
use nix::sys::signal::Signal;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use super::{
    Story,
    cluster::Prepared,
    process::{End, NodeLaunch, Running},
    state::UpState,
};
use crate::exit::{Exit, Failure};

/// How long a node may take to end after SIGTERM: it passes on what it leads and syncs its log.
const STOP_PATIENCE: Duration = Duration::from_secs(10);
/// How often a node's end is told while the broker cannot be reached. Heartbeats tell it anyway.
const TELL_TRIES: u32 = 20;
/// Pause before a node that asked for it too often is started again. It is not given up: a disk that
/// is full has room again some time.
const PASSING_PAUSE_MS: u64 = 2_000;
/// Pause between those.
const TELL_PAUSE: Duration = Duration::from_millis(100);

/// The tasks that watch the nodes.
#[derive(Debug)]
pub(super) struct Nodes {
    tasks: JoinSet<()>,
    stop: watch::Sender<bool>,
    failures: mpsc::Receiver<Failure>,
    given_up: usize,
    count: usize,
}

/// What each watcher shares.
#[derive(Debug, Clone)]
struct Shared {
    client: Client,
    story: Story,
    begun: Instant,
    state: Arc<Mutex<UpState>>,
    data_dir: std::path::PathBuf,
    failures: mpsc::Sender<Failure>,
}

impl Nodes {
    /// Starts or adopts every node.
    ///
    /// # Errors
    /// A [`Failure`] if a process cannot be started or noted.
    pub(super) fn start(
        prepared: &Prepared,
        client: Client,
        story: Story,
    ) -> Result<Self, Failure> {
        let launches = prepared.launches();
        let (stop, stopping) = watch::channel(false);
        let (sender, failures) = mpsc::channel(launches.len().max(1));
        let shared = Shared {
            client,
            story,
            begun: Instant::now(),
            state: Arc::new(Mutex::new(prepared.state.clone())),
            data_dir: prepared.data_dir.clone(),
            failures: sender,
        };
        let mut tasks = JoinSet::new();
        let count = launches.len();
        for launch in launches {
            let adopted = shared.adopt(&launch);
            let running = match adopted {
                Some(running) => running,
                None => shared.start(&launch)?,
            };
            let watcher = Watcher { shared: shared.clone(), launch, stopping: stopping.clone() };
            tasks.spawn(watcher.run(running));
        }
        Ok(Self { tasks, stop, failures, given_up: 0, count })
    }

    /// Returns when no node is left that could be started again.
    pub(super) async fn failed(&mut self) -> Failure {
        while let Some(failure) = self.failures.recv().await {
            self.given_up += 1;
            if self.given_up == self.count {
                return failure;
            }
        }
        std::future::pending().await
    }

    /// Stops every node in order: SIGTERM to all, a wait, SIGKILL. Returns once they are gone.
    pub(super) async fn stop(mut self) {
        self.stop.send_replace(true);
        while self.tasks.join_next().await.is_some() {}
    }
}

impl Shared {
    fn adopt(&self, launch: &NodeLaunch) -> Option<Running> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let process = state.nodes.iter().find(|process| process.node == launch.node)?;
        let running = Running::adopt(process)?;
        self.story.tell(&format!("adopted {} (pid {})", launch.node, process.pid));
        Some(running)
    }

    fn start(&self, launch: &NodeLaunch) -> Result<Running, Failure> {
        let running = launch.start()?;
        self.story.tell(&format!("started {} (pid {})", launch.node, running.process().pid));
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.set(running.process().clone());
        state.save(&self.data_dir)?;
        Ok(running)
    }

    /// Tells the cluster that a node's process ended.
    async fn tell(&self, exited: &NodeExited) {
        let subject =
            Subject::event(self.client.cluster(), ActorKind::Node, &exited.node, "exited");
        for _try in 0..TELL_TRIES {
            let (bus, envelope) = (self.client.bus().as_ref(), self.client.envelope());
            if announce(bus, &subject, &envelope, exited).await.is_ok() {
                return;
            }
            sleep(TELL_PAUSE).await;
        }
    }
}

struct Watcher {
    shared: Shared,
    launch: NodeLaunch,
    stopping: watch::Receiver<bool>,
}

impl Watcher {
    async fn run(self, mut running: Running) {
        let mut stopping = self.stopping.clone();
        let mut history = RestartHistory::new(RestartPolicy::default(), seed());
        loop {
            let end = tokio::select! {
                biased;
                () = asked(&mut stopping) => return self.stop(running).await,
                end = running.exited() => end,
            };
            let End { how, asks_for_restart } = end;
            let node = &self.launch.node;
            self.shared.story.tell(&format!("{node} ended: {how}{}", self.last_words(&how)));
            let incarnation = incarnation(&self.launch.data_dir);
            // The node's next life tells the cells that this one interrupted.
            let _ = std::fs::write(self.launch.data_dir.join(LAST_END_FILE), &how);
            let exited = NodeExited { node: node.clone(), incarnation, how };
            let now_ms = u64::try_from(self.shared.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
            let decision = match history.on_exit(now_ms) {
                RestartDecision::Escalate { .. } if asks_for_restart => {
                    RestartDecision::Restart { after_ms: PASSING_PAUSE_MS }
                }
                decision => decision,
            };
            let shared = self.shared.clone();
            let restarted = tokio::select! {
                biased;
                () = asked(&mut stopping) => return,
                restarted = again(&shared, &self.launch, &exited, decision) => restarted,
            };
            match restarted {
                Ok(next) => running = next,
                Err(failure) => {
                    self.shared.story.tell(&failure.message);
                    let _ = self.shared.failures.try_send(failure);
                    return;
                }
            }
        }
    }

    async fn stop(&self, mut running: Running) {
        for signal in [Signal::SIGTERM, Signal::SIGKILL] {
            running.signal(signal);
            if let Ok(end) = timeout(STOP_PATIENCE, running.exited()).await {
                self.shared.story.tell(&format!("{} ended: {}", self.launch.node, end.how));
                return;
            }
        }
    }

    /// The last line of the node's log, if it ended by itself: usually the reason.
    fn last_words(&self, how: &str) -> String {
        let text = fs::read_to_string(&self.launch.log).unwrap_or_default();
        match text.lines().rev().find(|line| !line.trim().is_empty()) {
            Some(line) if how.starts_with("exited") => format!("; it said: {line}"),
            _ => String::new(),
        }
    }
}

/// Returns once the nodes shall stop.
async fn asked(stop: &mut watch::Receiver<bool>) {
    // An error means that nobody holds the nodes any more, which is the same to them.
    let _ = stop.wait_for(|stop| *stop).await;
}

async fn again(
    shared: &Shared,
    launch: &NodeLaunch,
    exited: &NodeExited,
    decision: RestartDecision,
) -> Result<Running, Failure> {
    match decision {
        RestartDecision::Restart { after_ms } => {
            // Told while the pause passes: the others take over at once.
            tokio::join!(shared.tell(exited), sleep(Duration::from_millis(after_ms)));
            shared.start(launch)
        }
        RestartDecision::Escalate { reason } => {
            shared.tell(exited).await;
            Err(Failure::new(
                Exit::Environment,
                format!(
                    "{} is given up: it {reason}; see {}, then `callboard up` again",
                    launch.node,
                    launch.log.display()
                ),
            ))
        }
    }
}

/// Which life of the node ended, from its data directory.
fn incarnation(data_dir: &Path) -> Option<Incarnation> {
    let text = fs::read_to_string(data_dir.join("incarnation")).ok()?;
    text.trim().parse().ok().map(Incarnation)
}

/// Restart delays of different runs should differ; nothing else depends on this.
fn seed() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_secs() ^ u64::from(since.subsec_nanos()).rotate_left(32)
}
