//! The acts of the demo, in order.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use callboard_client::KernelClient;
use callboard_protocol::{
    KernelId,
    control::StartKernel,
    kernel::{KernelStatus, ReplicaRole},
};
use tokio::time::{Instant, sleep};

use super::{
    check::{self, Look},
    cluster::{DemoCluster, Part},
    record::Record,
    session::{Ran, RunningCell},
    story::Story,
};
use crate::{
    exit::{Exit, Failure},
    up::state::cannot,
};

/// How many replicas the kernel has: any one of them may be lost.
const REPLICAS: u8 = 3;
/// How long the kernel may take to be whole.
const WHOLE_PATIENCE: Duration = Duration::from_secs(60);
/// Pause between looks at it.
const WHOLE_POLL: Duration = Duration::from_millis(50);

/// The demo while it plays.
#[derive(Debug)]
pub(super) struct Demo {
    story: Story,
    folder: PathBuf,
    /// The folder as the user named it.
    shown: PathBuf,
    python: PathBuf,
    cluster: DemoCluster,
    record: Record,
}

/// A kernel as the demo uses it, through one connection.
struct Session {
    kernel: KernelClient,
}

impl Demo {
    /// Empties the folder.
    ///
    /// # Errors
    /// A [`Failure`] if it is in use.
    pub(super) fn new(
        story: Story,
        folder: PathBuf,
        shown: PathBuf,
        python: PathBuf,
    ) -> Result<Self, Failure> {
        let cluster = DemoCluster::new(&folder)?;
        let record = Record {
            credentials: cluster.credentials().display().to_string(),
            kernel: String::new(),
            cells: Vec::new(),
            never_bound: "doomed",
            fingerprint: String::new(),
            seconds: Vec::new(),
        };
        Ok(Self { story, folder, shown, python, cluster, record })
    }

    /// Stops the cluster.
    pub(super) async fn stop(&mut self) {
        self.cluster.stop().await;
    }

    /// Plays every act; returns the last line.
    ///
    /// # Errors
    /// A [`Failure`] with what was lost or did not work.
    pub(super) async fn play(&mut self) -> Result<String, Failure> {
        let outcome = self.acts().await;
        // The record helps to see what went wrong, so it is written either way.
        let saved = self.save();
        let summary = outcome.map_err(|failure| {
            let hint = format!(
                "{}\nThe cluster's words are in {}, its nodes' in {}.",
                failure.message,
                self.cluster.log().display(),
                self.folder.join("data/logs").display()
            );
            Failure::new(failure.exit, hint)
        })?;
        saved?;
        Ok(summary)
    }

    async fn acts(&mut self) -> Result<String, Failure> {
        let session = self.open().await?;
        self.work(&session).await?;
        self.idle_loss(&session).await?;
        self.loss_in_a_cell(&session).await?;
        self.broker_loss(&session).await?;
        self.total_loss(session).await?;
        self.verdict().await
    }

    async fn open(&mut self) -> Result<Session, Failure> {
        let shown = self.shown.display();
        self.story
            .line(&format!("A notebook session loses its machines. Everything is in {shown}/."));
        self.story.act("A cluster on this machine");
        let client = self.cluster.up().await?;
        let nodes = client.control().list_nodes().await?.nodes;
        let nodes: Vec<String> =
            nodes.iter().map(|node| format!("{} (pid {})", node.node, node.pid)).collect();
        self.story.tell(&format!("a broker and three nodes: {}", nodes.join(", ")));
        let kernel = KernelId::generate();
        let request = StartKernel {
            kernel,
            name: Some("demo".to_owned()),
            replicas: REPLICAS,
            origin: None,
            options: Default::default(),
            settings: Default::default(),
        };
        client.control().start_kernel(&request).await?;
        self.record.kernel = kernel.to_string();
        let session = Session { kernel: client.kernel(kernel) };
        session.whole().await?;
        self.story.tell("a kernel with three replicas, one on each node");
        Ok(session)
    }

    async fn work(&mut self, session: &Session) -> Result<(), Failure> {
        self.story.act("The session: a network learns to read digits");
        self.time("first_cell_after_start", self.story.elapsed());
        for name in ["imports", "data", "model", "train-1", "train-2", "train-3"] {
            self.cell(session, name).await?;
        }
        let plot = self.run(session, "plot").await?;
        let path = self.folder.join("plot.png");
        let Some(png) = &plot.png else {
            return Err(Failure::new(Exit::Failed, "the cell 'plot' drew no picture"));
        };
        fs::write(&path, png).map_err(|error| cannot("write", &path, &error))?;
        let shown = self.shown.join("plot.png");
        let text = format!("learning curve and confusion matrix: {}", shown.display());
        self.story.cell("plot", &text, plot.took);
        Ok(())
    }

    async fn idle_loss(&mut self, session: &Session) -> Result<(), Failure> {
        self.story.act("1. The machine that holds the session dies while nobody looks");
        let (node, killed) = self.kill_executor(session).await?;
        let used = self.run(session, "use").await?;
        self.story.cell("use", used.last_line(), used.took);
        let took = killed.elapsed();
        self.time("idle_failover_to_result", took);
        let by = session.executor().await?;
        self.story.tell("(that is a fresh Python, which had to import scikit-learn again)");
        self.story.good(&format!(
            "{} after the kill {by} has answered, with the network that {node} trained",
            seconds(took)
        ));
        self.whole_again(session, killed).await
    }

    async fn loss_in_a_cell(&mut self, session: &Session) -> Result<(), Failure> {
        self.story.act("2. It dies in the middle of a cell");
        let before = self.fingerprint(session).await?;
        let mut cell = RunningCell::new(&session.kernel, "doomed")?;
        cell.first_line().await?;
        self.story.tell("a long cell is running");
        let (_, killed) = self.kill_executor(session).await?;
        let ran = cell.finish().await?;
        let (took, lines) = (killed.elapsed(), ran.line_count());
        self.time("error_after_kill_in_a_cell", took);
        let Some(cause) = ran.interrupted.clone() else {
            let text = "the cell whose executor was killed did not end with an error";
            return Err(Failure::new(Exit::Failed, text));
        };
        self.record.cells.push(ran.record);
        self.story.tell(&format!(
            "{} after the kill the cell ends, with {lines} of its lines kept:",
            seconds(took)
        ));
        self.story.blow(&format!("interrupted: {cause}; the state is as before this cell"));
        let after = self.fingerprint(session).await?;
        if before != after {
            let text = "the network after the interrupted cell is not the one from before it";
            return Err(Failure::new(Exit::Failed, text));
        }
        self.story.good("the next cell finds every weight as it was before that cell");
        self.whole_again(session, killed).await
    }

    async fn broker_loss(&mut self, session: &Session) -> Result<(), Failure> {
        self.story.act("3. The broker dies while a cell runs");
        let mut cell = RunningCell::new(&session.kernel, "long")?;
        cell.first_line().await?;
        let pid = self.cluster.kill(&Part::Broker).await?;
        let killed = Instant::now();
        self.story.blow(&format!("kill -9 {pid}: the broker; no message gets through"));
        let ran = cell.finish().await?;
        self.completed(&ran)?;
        self.story.cell("long", ran.last_line(), ran.took);
        self.time("cell_end_after_broker_kill", killed.elapsed());
        self.story.good(&format!(
            "the broker is back, the cell ran to its end, once, and all {} of its lines are here",
            ran.line_count()
        ));
        self.record.cells.push(ran.record);
        session.whole().await
    }

    async fn total_loss(&mut self, session: Session) -> Result<(), Failure> {
        self.story.act("4. Everything dies at once");
        self.record.fingerprint = self.fingerprint(&session).await?;
        self.save()?;
        let noted = check::run(&self.python, &self.record_path(), Look::Before).await?;
        self.story.tell(&format!("an independent program looks first: {noted}"));
        let kernel = session.kernel.id();
        drop(session);
        let count = self.cluster.kill_everything().await?;
        let killed = Instant::now();
        self.story.blow(&format!("kill -9 to all {count} processes: up, broker, three nodes"));
        let client = self.cluster.up().await?;
        self.story
            .tell(&format!("`callboard up` again: ready after {}", seconds(killed.elapsed())));
        let session = Session { kernel: client.kernel(kernel) };
        let fingerprint = self.fingerprint(&session).await?;
        if fingerprint != self.record.fingerprint {
            let text = "the network after the cold start is not the one from before it";
            return Err(Failure::new(Exit::Failed, text));
        }
        self.time("cold_start_to_result", killed.elapsed());
        self.cell(&session, "use").await?;
        self.story.good("the network is back, every weight and every score");
        self.whole_again(&session, killed).await
    }

    async fn verdict(&mut self) -> Result<String, Failure> {
        self.story.act("What was lost?");
        self.save()?;
        let found = check::run(&self.python, &self.record_path(), Look::After).await?;
        self.story.good(&format!("the independent check: {found}"));
        let (all, took) = (self.record.cells.len(), self.story.elapsed());
        let kept = self.record.cells.iter().filter(|cell| cell.completed).count();
        Ok(format!(
            "Lost: nothing. {kept} of {all} cells were acknowledged and all are kept; {} was told to have been interrupted. {}.",
            all - kept,
            seconds(took)
        ))
    }

    /// Kills the node that executes the kernel; returns its name and when it died.
    async fn kill_executor(&mut self, session: &Session) -> Result<(String, Instant), Failure> {
        let node = session.executor().await?;
        let pid = self.cluster.kill(&Part::Node(node.clone())).await?;
        let killed = Instant::now();
        self.story.blow(&format!("kill -9 {pid}: {node}, which executes the session"));
        Ok((node, killed))
    }

    async fn whole_again(&mut self, session: &Session, since: Instant) -> Result<(), Failure> {
        session.whole().await?;
        let took = since.elapsed();
        self.time("whole_again", took);
        self.story
            .tell(&format!("the kernel is whole again: 3/3 replicas after {}", seconds(took)));
        Ok(())
    }

    /// Runs a cell and tells what it printed.
    async fn cell(&mut self, session: &Session, name: &str) -> Result<(), Failure> {
        let ran = self.run(session, name).await?;
        self.story.cell(name, &ran.text, ran.took);
        Ok(())
    }

    /// Runs a cell that must be acknowledged.
    async fn run(&mut self, session: &Session, name: &str) -> Result<Ran, Failure> {
        let ran = RunningCell::new(&session.kernel, name)?.finish().await?;
        self.completed(&ran)?;
        self.record.cells.push(ran.record.clone());
        Ok(ran)
    }

    async fn fingerprint(&mut self, session: &Session) -> Result<String, Failure> {
        let ran = self.run(session, "fingerprint").await?;
        Ok(ran.last_line().to_owned())
    }

    fn completed(&self, ran: &Ran) -> Result<(), Failure> {
        match &ran.interrupted {
            None => Ok(()),
            Some(cause) => {
                let name = &ran.record.name;
                Err(Failure::new(Exit::Failed, format!("the cell '{name}' was lost: {cause}")))
            }
        }
    }

    fn time(&mut self, what: &str, took: Duration) {
        self.record.seconds.push((what.to_owned(), took.as_secs_f32()));
    }

    fn record_path(&self) -> PathBuf {
        Path::join(&self.folder, "record.json")
    }

    fn save(&self) -> Result<(), Failure> {
        self.record.save(&self.record_path())
    }
}

impl Session {
    /// Waits until every replica takes part.
    async fn whole(&self) -> Result<(), Failure> {
        let is_whole = |status: &KernelStatus| {
            let ready = |role| matches!(role, ReplicaRole::Executor | ReplicaRole::Standby);
            status.replicas.iter().filter(|replica| ready(replica.role)).count()
                == usize::from(REPLICAS)
        };
        self.until("to have three replicas", |status| is_whole(status).then_some(())).await
    }

    /// The node that executes the kernel.
    async fn executor(&self) -> Result<String, Failure> {
        self.until("to have an executor", |status| {
            let executes = |role| role == ReplicaRole::Executor;
            status.replicas.iter().find(|it| executes(it.role)).map(|it| it.node.to_string())
        })
        .await
    }

    /// Looks at the kernel until `found` finds something.
    async fn until<T>(
        &self,
        what: &str,
        found: impl Fn(&KernelStatus) -> Option<T>,
    ) -> Result<T, Failure> {
        let until = Instant::now() + WHOLE_PATIENCE;
        loop {
            let seen = self.kernel.show().await;
            if let Some(found) = seen.as_ref().ok().and_then(&found) {
                return Ok(found);
            }
            if Instant::now() > until {
                let patience = WHOLE_PATIENCE.as_secs();
                let last = match seen {
                    Ok(status) => format!("{:?}", status.replicas),
                    Err(fault) => fault.message,
                };
                let text = format!("the kernel was to come {what} within {patience} s: {last}");
                return Err(Failure::new(Exit::Failed, text));
            }
            sleep(WHOLE_POLL).await;
        }
    }
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f32())
}
