//! A whole run: the cluster, the trials one after the other, the sum.

use std::{
    fmt::Write as _,
    fs,
    future::Future,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Serialize;
use tokio::time::{Instant, timeout};

use crate::{
    checker::{Checker, Verdict},
    cluster::{Cluster, ClusterOptions, NODES},
    disks,
    error::ChaosError,
    figures::Figures,
    network::{self, Network},
    plan::{Fault, Moment, Plan, Trial},
    trial::{Stage, TrialResult},
    trigger::{HIBERNATING, PARKED, knows_phase},
};

/// How long any one trial may take: its waits have limits of their own, this one is for hangs.
const TRIAL_WITHIN: Duration = Duration::from_secs(300);
/// Clusters given up after failed trials before the run is.
const CLUSTERS_MAX: u32 = 10;

/// How to run.
#[derive(Debug, Clone)]
pub struct RunOptions {
    /// The `callboard` program.
    pub program: PathBuf,
    /// The Python of kernels and checker.
    pub python: PathBuf,
    /// The trials.
    pub plan: Plan,
    /// Only these numbers of the plan; empty for all.
    pub only: Vec<u32>,
    /// Where the run's folder is made.
    pub parent: PathBuf,
    /// Whether the folder is kept although nothing failed.
    pub keep: bool,
    /// The command line that makes this run, without `--only`.
    pub command: String,
    /// Keys of the cluster's configuration besides those that every run has.
    pub config: toml::Table,
}

/// One trial of the report.
#[derive(Debug, Clone, Serialize)]
pub struct TrialReport {
    /// Its number in the plan, from 1.
    pub number: u32,
    /// What was tried.
    pub trial: Trial,
    /// What was done to what.
    pub struck: Option<String>,
    /// How the cell under test ended.
    pub cell: Option<String>,
    /// From the fault to the next durable result, in seconds.
    pub next_result_s: Option<f64>,
    /// From the heal to the whole kernel, in seconds.
    pub whole_s: Option<f64>,
    /// What the checker found; `None` if it could not judge.
    pub verdict: Option<Verdict>,
    /// Why the trial was not made to its end.
    pub problem: Option<String>,
}

impl TrialReport {
    /// A trial of which nothing is known yet.
    #[must_use]
    pub fn new(number: u32, trial: Trial) -> Self {
        Self {
            number,
            trial,
            struck: None,
            cell: None,
            next_result_s: None,
            whole_s: None,
            verdict: None,
            problem: None,
        }
    }

    /// Whether it went to its end and the checker found nothing.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        self.problem.is_none() && self.verdict.as_ref().is_some_and(|verdict| verdict.ok)
    }

    fn fill(&mut self, result: Result<TrialResult, ChaosError>) {
        match result {
            Ok(result) => {
                self.struck = Some(result.struck);
                self.cell = Some(result.cell);
                self.next_result_s = result.next_result_s;
                self.whole_s = Some(result.whole_s);
                self.verdict = Some(result.verdict);
            }
            Err(error) => self.problem = Some(error.to_string()),
        }
    }
}

/// What a run found.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// What order and timings were drawn from.
    pub seed: u64,
    /// The sum.
    pub figures: Figures,
    /// The trials that were made.
    pub trials: Vec<TrialReport>,
    /// Faults that this machine cannot carry out, with the reason.
    pub refused: Vec<(Fault, String)>,
    /// Trials whose moment cannot come in this build, with the reason.
    pub skipped: Vec<(u32, String)>,
    /// The run's folder, if it was kept.
    pub folder: Option<PathBuf>,
}

impl Report {
    /// Whether every trial of the plan was made and found in order.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        self.refused.is_empty() && self.trials.iter().all(TrialReport::is_ok)
    }
}

/// Makes a run. `say` is told what happens, a line at a time; the run stops when `stop` ends.
///
/// # Errors
/// [`ChaosError`] if there can be no run at all, or it was stopped. The cluster and its network
/// are gone either way.
pub async fn run(
    options: &RunOptions,
    say: &(dyn Fn(&str) + Sync),
    stop: impl Future<Output = ()>,
) -> Result<Report, ChaosError> {
    let seed = options.plan.seed;
    let folder = options.parent.join(format!("callboard-chaos-{seed}-{}", std::process::id()));
    fs::create_dir_all(&folder).map_err(ChaosError::io("make the folder", &folder))?;
    let folder = fs::canonicalize(&folder).map_err(ChaosError::io("open", &folder))?;
    // A copy of its own: a rebuild during the run would leave nodes that cannot be started again.
    let program = folder.join("callboard");
    fs::copy(&options.program, &program).map_err(ChaosError::io("copy", &options.program))?;
    let mut run = Run {
        options,
        program,
        say,
        checker: Checker::install(&folder.join("checker"), &options.python).await?,
        network_problem: network::problem(),
        disks_problem: disks::problem(),
        folder,
        cluster: None,
        clusters: 0,
        reports: Vec::new(),
        refused: Vec::new(),
        skipped: Vec::new(),
    };
    say(&format!("seed {seed}, {} trials, in {}", options.plan.trials.len(), run.folder.display()));
    let ended = tokio::select! {
        ended = run.trials() => ended,
        () = stop => Err(ChaosError::Stopped),
    };
    if let Some(cluster) = run.cluster.take() {
        cluster.stop().await;
    }
    if ended.is_err() {
        say(&format!("what was done until then is in {}", run.folder.display()));
    }
    ended?;
    let refused_faults: Vec<Fault> = run.refused.iter().map(|(fault, _)| *fault).collect();
    let mut report = Report {
        seed,
        figures: Figures::of(&run.reports, &refused_faults),
        trials: run.reports,
        refused: run.refused,
        skipped: run.skipped,
        folder: Some(run.folder.clone()),
    };
    let failed = report.trials.iter().any(|trial| !trial.is_ok());
    if !failed && !options.keep && fs::remove_dir_all(&run.folder).is_ok() {
        report.folder = None;
    }
    Ok(report)
}

struct Run<'a> {
    options: &'a RunOptions,
    program: PathBuf,
    say: &'a (dyn Fn(&str) + Sync),
    checker: Checker,
    network_problem: Option<String>,
    disks_problem: Option<String>,
    folder: PathBuf,
    cluster: Option<Cluster>,
    clusters: u32,
    reports: Vec<TrialReport>,
    refused: Vec<(Fault, String)>,
    skipped: Vec<(u32, String)>,
}

impl Run<'_> {
    /// The fault of a trial that this machine cannot carry out, and why.
    fn refusal(&self, trial: &Trial) -> Option<(Fault, String)> {
        trial.faults().find_map(|fault| {
            let problem = match fault {
                Fault::Partition => &self.network_problem,
                Fault::FullDisk | Fault::FullDiskMajority => &self.disks_problem,
                _ => &None,
            };
            Some((fault, problem.clone()?))
        })
    }

    async fn trials(&mut self) -> Result<(), ChaosError> {
        let count = self.options.plan.trials.len();
        for (number, trial) in (1_u32..).zip(&self.options.plan.trials) {
            if !self.options.only.is_empty() && !self.options.only.contains(&number) {
                continue;
            }
            if let Some((fault, why)) = self.refusal(trial) {
                (self.say)(&format!("{number:>3}/{count} {trial}: REFUSED: {why}"));
                if self.refused.iter().all(|(known, _)| *known != fault) {
                    self.refused.push((fault, why));
                }
                continue;
            }
            if let Some(why) = unseen(trial.moment) {
                (self.say)(&format!("{number:>3}/{count} {trial}: SKIPPED: {why}"));
                self.skipped.push((number, why));
                continue;
            }
            let report = self.trial(number, trial).await?;
            (self.say)(&format!("{number:>3}/{count} {}", line(&report)));
            let failed = !report.is_ok();
            self.reports.push(report);
            if failed {
                self.keep_failed(number).await;
            }
        }
        Ok(())
    }

    async fn trial(&mut self, number: u32, trial: &Trial) -> Result<TrialReport, ChaosError> {
        let cluster = match self.cluster.take() {
            Some(cluster) => cluster,
            None => self.start_cluster().await?,
        };
        let folder = self.folder.join(format!("trial-{number}"));
        let cluster = self.cluster.insert(cluster);
        let stage = Stage { cluster, checker: &self.checker, folder };
        let mut report = TrialReport::new(number, *trial);
        let made = timeout(TRIAL_WITHIN, stage.run(number, trial)).await;
        report.fill(made.unwrap_or_else(|_| {
            let within_s = TRIAL_WITHIN.as_secs();
            Err(ChaosError::TooSlow {
                what: "the end of the trial",
                within_s,
                detail: String::new(),
            })
        }));
        Ok(report)
    }

    async fn start_cluster(&mut self) -> Result<Cluster, ChaosError> {
        self.clusters += 1;
        if self.clusters > CLUSTERS_MAX {
            return Err(ChaosError::NoVerdict(format!(
                "{CLUSTERS_MAX} trials failed; the run is given up, its folder is {}",
                self.folder.display()
            )));
        }
        let folder = self.folder.join(format!("c{}", self.clusters));
        fs::create_dir_all(&folder).map_err(ChaosError::io("make the folder", &folder))?;
        let network = match &self.network_problem {
            None => Some(Network::create(self.options.plan.seed, NODES)?),
            Some(why) => {
                (self.say)(&format!("no network namespaces: {why}"));
                None
            }
        };
        let options = ClusterOptions {
            program: self.program.clone(),
            python: self.options.python.clone(),
            folder,
            profile: self.options.plan.profile,
            config: self.options.config.clone(),
        };
        let begun = Instant::now();
        let cluster = Cluster::start(&options, network).await?;
        let seconds = begun.elapsed().as_secs_f64();
        (self.say)(&format!(
            "cluster {} of {NODES} nodes is up after {seconds:.1} s",
            self.clusters
        ));
        Ok(cluster)
    }

    /// What a failed trial left behind stays as it is: the next one gets a cluster of its own.
    async fn keep_failed(&mut self, number: u32) {
        if let Some(cluster) = self.cluster.take() {
            cluster.stop().await;
        }
        let trial = self.folder.join(format!("trial-{number}"));
        (self.say)(&format!(
            "    seed {}, trial {number}; reproduce: {} --only {number}\n    kept: {} and {}",
            self.options.plan.seed,
            self.options.command,
            trial.display(),
            self.folder.join(format!("c{}", self.clusters)).display()
        ));
    }
}

/// Why a moment cannot be seen in this build.
fn unseen(moment: Moment) -> Option<String> {
    let phase = match moment {
        Moment::Hibernating => HIBERNATING,
        Moment::Parked => PARKED,
        _ => return None,
    };
    (!knows_phase(phase)).then(|| format!("kernels of this build are never {phase}"))
}

/// A trial in a line.
fn line(report: &TrialReport) -> String {
    let mut line = report.trial.to_string();
    let mut add = |text: &str| {
        // A String takes everything.
        let _ = write!(line, ": {text}");
    };
    if let Some(struck) = &report.struck {
        add(struck);
    }
    if let Some(cell) = &report.cell {
        add(&format!("cell {cell}"));
    }
    if let Some(seconds) = report.next_result_s {
        add(&format!("next result after {seconds:.2} s"));
    }
    if let Some(seconds) = report.whole_s {
        add(&format!("whole {seconds:.1} s after the heal"));
    }
    if let Some(problem) = &report.problem {
        add(&format!("FAILED: {problem}"));
    }
    match &report.verdict {
        Some(verdict) if verdict.ok => add(&format!("ok, {} cells", verdict.cells)),
        Some(verdict) => add(&format!("FAILED: {}", findings(verdict))),
        None => {}
    }
    line
}

fn findings(verdict: &Verdict) -> String {
    let Verdict { lost, run_twice, unanswered, inconsistent, .. } = verdict;
    let all: Vec<&str> = [lost, run_twice, unanswered, inconsistent]
        .into_iter()
        .flatten()
        .map(String::as_str)
        .collect();
    all.join("; ")
}

/// Where a run's folder is made unless told otherwise: short, because sockets are made below it.
#[must_use]
pub fn parent_default() -> PathBuf {
    Path::new("/tmp").canonicalize().unwrap_or_else(|_| std::env::temp_dir())
}
