//! One trial: a kernel, a fault at a moment, the heal, the return of the kernel, the judgement.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use callboard_protocol::{
    KernelId, NodeId, ReplicaId,
    control::{ReplicaSpec, Standing, StartKernel},
    kernel::{KernelStatus, Level, ReplicaRole},
};
use nix::sys::signal::Signal;
use tokio::time::{Instant, sleep, timeout};

use crate::{
    checker::{Checker, Verdict},
    cluster::Cluster,
    error::ChaosError,
    fault::{Struck, Target, signal},
    history::{Entry, History},
    plan::{Fault, Moment, Timings, Trial},
    session::{InFlight, Sent, Session},
    trigger::{
        ChunkWatch, HIBERNATING, MOMENT_WITHIN, PARKED, SnapshotWatch, idle_status, new_member,
        phase,
    },
};

/// How long a kernel and its nodes may take to be whole, at first and after a fault was healed.
pub const WHOLE_WITHIN: Duration = Duration::from_secs(60);
/// How long a kernel is left alone before an idle fault, so that it is idle and not just started.
const IDLE_PAUSE: Duration = Duration::from_secs(2);
/// How often a kernel is asked whether it is whole.
const WHOLE_POLL: Duration = Duration::from_millis(100);
/// How long one question to the control plane is tried.
const ASK_WITHIN: Duration = Duration::from_secs(2);
/// Cells sent after the fault at most until one has a result.
const CELLS_AFTER_MAX: usize = 10;
/// What a cell makes so that chunks are pushed, in bytes.
const CHUNK_BYTES: usize = 2 << 20;

/// What a trial came to.
#[derive(Debug, Clone)]
pub struct TrialResult {
    /// What was done to what.
    pub struck: String,
    /// How the cell under test ended.
    pub cell: String,
    /// From the fault to the next durable result, in seconds.
    pub next_result_s: Option<f64>,
    /// From the heal to the whole kernel, in seconds.
    pub whole_s: f64,
    /// What the checker found.
    pub verdict: Verdict,
}

/// What trials of a run share.
#[derive(Debug)]
pub struct Stage<'a> {
    /// The cluster.
    pub cluster: &'a Cluster,
    /// The judge.
    pub checker: &'a Checker,
    /// The trial's own folder.
    pub folder: PathBuf,
}

impl Stage<'_> {
    /// Makes the trial.
    ///
    /// # Errors
    /// [`ChaosError`] if it could not be made to its end, the return of the kernel included.
    pub async fn run(&self, number: u32, trial: &Trial) -> Result<TrialResult, ChaosError> {
        fs::create_dir_all(&self.folder).map_err(ChaosError::io("make", &self.folder))?;
        self.cluster.all_up(WHOLE_WITHIN).await?;
        let kernel = KernelId::generate();
        let name = Some(format!("chaos-{number}"));
        let control = self.cluster.client().control();
        let request = StartKernel {
            kernel,
            name,
            replicas: 3,
            options: Default::default(),
            origin: None,
            settings: Default::default(),
        };
        control.start_kernel(&request).await.map_err(ChaosError::refused("start a kernel"))?;
        let history = History::create(&self.folder.join("history.jsonl"))?;
        history.record(&Entry::Trial {
            what: trial.to_string(),
            seed: trial.seed,
            kernel: kernel.to_string(),
        })?;
        let mut session = Session::new(self.cluster, kernel, history);
        until_whole(self.cluster, &session).await?;
        let witness = self.folder.join("witness.txt");
        let result = self.strike_and_heal(trial, &mut session, &witness).await?;
        control.stop_kernel(kernel).await.map_err(ChaosError::refused("stop the kernel"))?;
        Ok(result)
    }

    async fn strike_and_heal(
        &self,
        trial: &Trial,
        session: &mut Session,
        witness: &Path,
    ) -> Result<TrialResult, ChaosError> {
        let timings = trial.timings();
        let python = session.prepare(witness).await?;
        for _ in 0..timings.cells_before {
            session.step().await?;
        }
        if trial.moment == Moment::Idle {
            sleep(IDLE_PAUSE).await;
        }
        let status = self.status(session).await?;
        let found = (session.kernel().id(), &status);
        let target = Target::find(self.cluster, trial.fault, found, python, None).await?;
        let target = target.seeded(timings.damage_seed);
        let second = match trial.second {
            None => None,
            Some(fault) => {
                let not = target.node.as_ref();
                let second = Target::find(self.cluster, fault, found, python, not).await?;
                Some(second.seeded(timings.damage_seed.wrapping_add(1)))
            }
        };
        let (cell, struck) = self.strike(trial, &timings, session, &status, &target).await?;
        let at = struck.at;
        session.history().record(&Entry::Struck { what: struck.what.clone() })?;
        let history = session.history().clone();
        let healing = self.strike_again_and_heal(struck, second, &timings, &history);
        let after = async {
            let mut sent = vec![session.finish(cell).await?];
            // More than planned if need be: the time to the next result is always measured.
            let mut more = timings.cells_after;
            while more > 0 || (next_result(&sent, at).is_none() && sent.len() < CELLS_AFTER_MAX) {
                more = more.saturating_sub(1);
                sent.push(session.step().await?);
            }
            Ok::<_, ChaosError>(sent)
        };
        let (sent, healed) = tokio::join!(after, healing);
        let (sent, what) = (sent?, healed?);
        session.history().record(&Entry::Healed)?;
        let healed_at = Instant::now();
        until_whole(self.cluster, session).await?;
        self.cluster.all_up(WHOLE_WITHIN).await?;
        session.history().record(&Entry::Whole)?;
        let whole_s = healed_at.elapsed().as_secs_f64();
        session.ask_again().await?;
        session.read_final().await?;
        let verdict = self
            .checker
            .judge(
                session.history().path(),
                witness,
                &self.cluster.frontend_credentials(),
                session.kernel().id(),
            )
            .await?;
        let cell = serde_json::to_string(&sent[0].end.outcome).unwrap_or_default();
        let next_result_s = next_result(&sent, at);
        Ok(TrialResult { struck: what, cell, next_result_s, whole_s, verdict })
    }

    /// Strikes the second time, if there is one, and ends both faults; says what was done.
    async fn strike_again_and_heal(
        &self,
        first: Struck,
        second: Option<Target>,
        timings: &Timings,
        history: &History,
    ) -> Result<String, ChaosError> {
        let mut what = first.what.clone();
        let mut struck = vec![first];
        if let Some(second) = second {
            sleep(timings.second_delay).await;
            match second.strike(self.cluster).await {
                Ok(it) => {
                    what = format!(
                        "{what}; {} ms later {}",
                        timings.second_delay.as_millis(),
                        it.what
                    );
                    history.record(&Entry::Struck { what: it.what.clone() })?;
                    struck.push(it);
                }
                // The first fault may have taken it along: Python with its node.
                Err(ChaosError::NotOurs { pid, why }) => {
                    what = format!("{what}; then nothing: process {pid} was gone ({why})");
                }
                Err(error) => {
                    let _ = heal_all(self.cluster, struck).await;
                    return Err(error);
                }
            }
        }
        heal_all(self.cluster, struck).await?;
        Ok(what)
    }

    /// Sends the cell under test, waits for the moment, strikes.
    async fn strike(
        &self,
        trial: &Trial,
        timings: &Timings,
        session: &mut Session,
        status: &KernelStatus,
        target: &Target,
    ) -> Result<(InFlight, Struck), ChaosError> {
        let sleeping = format!("time.sleep({:.3})\n", timings.cell.as_secs_f64());
        let level = timings.level;
        let mut cell = match trial.moment {
            Moment::Idle => {
                let struck = target.strike(self.cluster).await?;
                return Ok((session.begin("", "", Level::Durable)?, struck));
            }
            Moment::Hibernating | Moment::Parked => {
                let name = if trial.moment == Moment::Parked { PARKED } else { HIBERNATING };
                phase(session.kernel(), name).await?;
                let struck = target.strike(self.cluster).await?;
                return Ok((session.begin("", "", Level::Durable)?, struck));
            }
            Moment::DuringSnapshot => self.until_snapshot(session, level).await?,
            Moment::AfterAccept => {
                let mut cell = session.begin("", &sleeping, level)?;
                seen(&mut cell.accepted, "the acceptance of a cell").await?;
                cell
            }
            Moment::WhileRunning => {
                let work = format!("print('running', flush=True)\n{sleeping}");
                let mut cell = session.begin("", &work, level)?;
                seen(&mut cell.output, "the first output of a cell").await?;
                cell
            }
            Moment::AfterChunks => {
                let watch = ChunkWatch::begin(self.cluster, executor(status));
                let make = format!(
                    "blob = os.urandom({CHUNK_BYTES})\n\
                     sums['blob'] = hashlib.blake2b(blob).hexdigest()\n"
                );
                let cell = session.begin(&make, "", level)?;
                watch.wait().await?;
                cell
            }
            Moment::AfterCompleteBeforeReply => {
                let events = session.kernel().events().await;
                let events = events.map_err(|error| ChaosError::Command {
                    command: "follow the kernel's events".to_owned(),
                    why: error.to_string(),
                })?;
                let cell = session.begin("", "", level)?;
                idle_status(events, &cell.msg_id).await?;
                cell
            }
            Moment::DuringMembershipChange => {
                self.change_members(trial.fault, session, status).await?;
                session.begin("", &sleeping, level)?
            }
        };
        sleep(timings.strike_delay).await;
        let struck = target.strike(self.cluster).await;
        cell.accepted.close();
        Ok((cell, struck?))
    }

    /// Sends cells until a replica writes a snapshot; returns the cell that is on its way then.
    async fn until_snapshot(
        &self,
        session: &mut Session,
        level: Level,
    ) -> Result<InFlight, ChaosError> {
        let watch = SnapshotWatch::begin(self.cluster, session.kernel().id());
        let mut seen = std::pin::pin!(watch.wait());
        loop {
            let mut cell = session.begin("", "", level)?;
            tokio::select! {
                appeared = &mut seen => {
                    appeared?;
                    return Ok(cell);
                }
                // It prints nothing: whoever would tell of output is gone when the cell has ended.
                _ = &mut cell.output => {}
            }
            session.finish(cell).await?;
        }
    }

    /// Stops a standby's node until the control plane replaces its replica, then lets it go on.
    async fn change_members(
        &self,
        fault: Fault,
        session: &Session,
        status: &KernelStatus,
    ) -> Result<(), ChaosError> {
        let strikes_leader = fault == Fault::KillLeaderNode;
        let standby = status.replicas.iter().find(|it| {
            it.role == ReplicaRole::Standby
                && (!strikes_leader || Some(it.replica) != status.raft_leader)
        });
        let Some(standby) = standby else {
            return Err(ChaosError::TooSlow {
                what: "a standby to replace",
                within_s: 0,
                detail: format!(": {status:?}"),
            });
        };
        let pid = self.cluster.node_pid(&standby.node).await?;
        signal(pid, Signal::SIGSTOP)?;
        let changed = new_member(self.cluster, session.kernel().id()).await;
        signal(pid, Signal::SIGCONT)?;
        changed
    }

    async fn status(&self, session: &Session) -> Result<KernelStatus, ChaosError> {
        let until = Instant::now() + WHOLE_WITHIN;
        loop {
            match session.kernel().show().await {
                Ok(status) if executor(&status).is_some() => return Ok(status),
                Err(fault) if Instant::now() > until => {
                    return Err(ChaosError::refused("look at the kernel")(fault));
                }
                Ok(status) if Instant::now() > until => {
                    let detail = format!(": {status:?}");
                    let within_s = WHOLE_WITHIN.as_secs();
                    let what = "the return of an executor";
                    return Err(ChaosError::TooSlow { what, within_s, detail });
                }
                Ok(_) | Err(_) => sleep(WHOLE_POLL).await,
            }
        }
    }
}

/// Members of the kernel that are on their way in or out, or on a disk that their node has no
/// more: a status may be from before a loss was noticed.
///
/// # Errors
/// What the control plane says.
pub async fn strangers(
    cluster: &Cluster,
    kernel: KernelId,
) -> Result<Vec<ReplicaId>, callboard_protocol::Fault> {
    let control = cluster.client().control().with_patience(ASK_WITHIN);
    let spec = control.find_kernel(&kernel.to_string()).await?;
    let nodes = control.list_nodes().await?.nodes;
    let is_at_home = |member: &ReplicaSpec| {
        let moves = matches!(member.standing, Standing::Joiner | Standing::Leaver);
        !moves && nodes.iter().any(|it| it.node == member.node && it.disk == member.disk)
    };
    let strangers = spec.replicas.iter().filter(|(_, member)| !is_at_home(member));
    Ok(strangers.map(|(replica, _)| *replica).collect())
}

/// Waits until the kernel has three replicas that all take part.
///
/// # Errors
/// [`ChaosError::TooSlow`] with what was missing.
pub async fn until_whole(cluster: &Cluster, session: &Session) -> Result<(), ChaosError> {
    let until = Instant::now() + WHOLE_WITHIN;
    loop {
        let detail = match session.kernel().show().await {
            Ok(status) if is_whole(&status) => {
                match strangers(cluster, session.kernel().id()).await {
                    Ok(strangers) if strangers.is_empty() => return Ok(()),
                    Ok(strangers) => format!(": members on disks that are gone: {strangers:?}"),
                    Err(fault) => format!(": {fault}"),
                }
            }
            Ok(status) => format!(": its replicas are {:?}", status.replicas),
            Err(fault) => format!(": {fault}"),
        };
        if Instant::now() > until {
            let what = "the return of all three replicas";
            return Err(ChaosError::TooSlow { what, within_s: WHOLE_WITHIN.as_secs(), detail });
        }
        sleep(WHOLE_POLL).await;
    }
}
/// Ends faults, each when its time is over: one that cannot be undone does not keep the others.
async fn heal_all(cluster: &Cluster, struck: Vec<Struck>) -> Result<(), ChaosError> {
    let healing = struck.into_iter().map(|it| it.heal(cluster));
    futures::future::join_all(healing).await.into_iter().collect()
}

fn is_whole(status: &KernelStatus) -> bool {
    let takes_part = |role| matches!(role, ReplicaRole::Executor | ReplicaRole::Standby);
    status.replicas.len() == 3 && status.replicas.iter().all(|it| takes_part(it.role))
}

fn executor(status: &KernelStatus) -> Option<&NodeId> {
    let executor = status.replicas.iter().find(|it| it.role == ReplicaRole::Executor);
    executor.map(|it| &it.node)
}

async fn seen(
    moment: &mut tokio::sync::oneshot::Receiver<()>,
    what: &'static str,
) -> Result<(), ChaosError> {
    let within_s = MOMENT_WITHIN.as_secs();
    match timeout(MOMENT_WITHIN, moment).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(ChaosError::TooSlow {
            what,
            within_s,
            detail: ": the cell ended before".to_owned(),
        }),
        Err(_) => Err(ChaosError::TooSlow { what, within_s, detail: String::new() }),
    }
}

/// From the fault to the first durable result after it.
fn next_result(sent: &[Sent], struck_at: Instant) -> Option<f64> {
    sent.iter()
        .filter(|it| it.level == Level::Durable && it.end.is_ok() && it.end.at > struck_at)
        .map(|it| (it.end.at - struck_at).as_secs_f64())
        .min_by(f64::total_cmp)
}
