//! A soak: users at work for a long time, a fault every so often, and what the cluster uses
//! meanwhile.
//!
//! Owns a cluster of its own, as a chaos run does. One node, the spared one, is never ended by a
//! fault: what leaks slowly would else be gone with every restart.

mod chart;
pub mod growth;
pub mod sampler;
mod striking;
mod worker;

use std::{
    collections::BTreeMap,
    fs,
    future::Future,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use callboard_protocol::{KernelId, NodeId};
use tokio::{
    task::spawn_blocking,
    time::{Instant, sleep},
};

use self::{
    growth::{Point, growth_percent},
    sampler::{Sample, Sampler},
    striking::{Blow, strike_on},
    worker::{Work, work},
};
use crate::{
    checker::{Checker, Verdict},
    cluster::{Cluster, ClusterOptions, NODES, nodes},
    disks,
    error::ChaosError,
    network::{self, Network},
    plan::{Fault, Profile},
};

/// How many samples a run has.
const SAMPLES: u32 = 360;
/// Samples are not closer than this: looking costs, too.
const SAMPLE_EVERY_MIN: Duration = Duration::from_secs(1);

/// How to soak.
#[derive(Debug, Clone)]
pub struct SoakOptions {
    /// The `callboard` program.
    pub program: PathBuf,
    /// The Python of kernels and checker.
    pub python: PathBuf,
    /// How long.
    pub length: Duration,
    /// Users at a time.
    pub users: usize,
    /// Pause from one fault to the next.
    pub fault_every: Duration,
    /// What everything is drawn from.
    pub seed: u64,
    /// Where the run's folder is made.
    pub parent: PathBuf,
    /// Keys of the cluster's configuration besides those that every run has.
    pub config: toml::Table,
}

/// What a soak found.
#[derive(Debug, Clone, Default)]
pub struct SoakReport {
    /// Cells acknowledged at `durable` that are gone; `None` if a kernel could not be judged.
    pub lost: Option<u64>,
    /// Cells that ran twice.
    pub run_twice: Option<u64>,
    /// Cells without an end.
    pub unanswered: Option<u64>,
    /// Other contradictions that the checker found.
    pub inconsistent: Vec<String>,
    /// Why kernels could not be used or judged.
    pub problems: Vec<String>,
    /// Cells sent.
    pub cells: u64,
    /// Kernels judged.
    pub kernels: u64,
    /// Faults that struck.
    pub faults: u64,
    /// Growth of the memory of all nodes, of the spared one, and of Python, in percent.
    pub memory_growth: [Option<f64>; 3],
    /// Growth of all data directories and of the spared node's, in percent.
    pub disk_growth: [Option<f64>; 2],
    /// The last sample.
    pub last: Sample,
    /// Where samples, pictures and the histories of what failed are.
    pub folder: PathBuf,
}

/// What users, faults and samples share.
struct Shared<'a> {
    cluster: &'a Cluster,
    checker: &'a Checker,
    say: &'a (dyn Fn(&str) + Sync),
    folder: &'a Path,
    seed: u64,
    begun: Instant,
    until: Instant,
    spared: NodeId,
    faults: Vec<Fault>,
    at_work: Mutex<BTreeMap<usize, (KernelId, u32)>>,
}

impl Shared<'_> {
    fn note(&self, user: usize, kernel: KernelId, python: u32) {
        self.lock().insert(user, (kernel, python));
    }

    fn forget(&self, user: usize) {
        self.lock().remove(&user);
    }

    /// The kernels at work, each with the Python process it began with.
    fn kernels(&self) -> Vec<(KernelId, u32)> {
        self.lock().values().copied().collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<usize, (KernelId, u32)>> {
        self.at_work.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Soaks. `say` is told what happens; the run stops when `stop` ends.
///
/// # Errors
/// [`ChaosError`] if there can be no run at all, or it was stopped.
pub async fn soak(
    options: &SoakOptions,
    say: &(dyn Fn(&str) + Sync),
    stop: impl Future<Output = ()>,
) -> Result<SoakReport, ChaosError> {
    let name = format!("callboard-soak-{}-{}", options.seed, std::process::id());
    let folder = options.parent.join(name);
    fs::create_dir_all(&folder).map_err(ChaosError::io("make the folder", &folder))?;
    let folder = fs::canonicalize(&folder).map_err(ChaosError::io("open", &folder))?;
    let program = folder.join("callboard");
    fs::copy(&options.program, &program).map_err(ChaosError::io("copy", &options.program))?;
    let checker = Checker::install(&folder.join("checker"), &options.python).await?;
    let network = match network::problem() {
        None => Some(Network::create(options.seed, NODES)?),
        Some(_) => None,
    };
    let cluster_options = ClusterOptions {
        program,
        python: options.python.clone(),
        folder: folder.clone(),
        profile: Profile::Endurance,
        config: options.config.clone(),
    };
    let cluster = Cluster::start(&cluster_options, network).await?;
    say(&format!("{NODES} nodes are up in {}", folder.display()));
    let run = Soak { options, cluster: &cluster, checker: &checker, say, folder: &folder };
    let ended = tokio::select! {
        report = run.run() => report,
        () = stop => Err(ChaosError::Stopped),
    };
    cluster.stop().await;
    ended
}

struct Soak<'a> {
    options: &'a SoakOptions,
    cluster: &'a Cluster,
    checker: &'a Checker,
    say: &'a (dyn Fn(&str) + Sync),
    folder: &'a Path,
}

impl Soak<'_> {
    async fn run(&self) -> Result<SoakReport, ChaosError> {
        let begun = Instant::now();
        let length = self.options.length;
        let spared = nodes().next().ok_or_else(|| ChaosError::BadPlan("no nodes".to_owned()))?;
        let shared = Shared {
            cluster: self.cluster,
            checker: self.checker,
            say: self.say,
            folder: self.folder,
            seed: self.options.seed,
            begun,
            until: begun + length,
            spared: spared.clone(),
            faults: self.faults(),
            at_work: Mutex::default(),
        };
        let sampler = Sampler {
            folders: nodes().map(|node| (node.clone(), self.cluster.node_folder(&node))).collect(),
            spared,
        };
        let users = (0..self.options.users).map(|user| work(&shared, user));
        let (works, blows, samples) = tokio::join!(
            futures::future::join_all(users),
            strike_on(&shared, self.options.fault_every),
            sample_on(&sampler, begun, length),
        );
        let struck: Vec<f64> = blows.iter().map(|blow| blow.at_s).collect();
        chart::write(self.folder, &samples, &struck)?;
        let text: String =
            blows.iter().map(|blow| format!("{:.1}\t{}\n", blow.at_s, blow.what)).collect();
        let path = self.folder.join("faults.tsv");
        fs::write(&path, text).map_err(ChaosError::io("write", &path))?;
        Ok(self.report(works, &blows, &samples))
    }

    /// Every fault that this machine can carry out and that leaves a majority to all kernels.
    fn faults(&self) -> Vec<Fault> {
        let can = |fault: &Fault| match fault {
            Fault::FullDiskMajority => false,
            Fault::Partition => self.cluster.network().is_some(),
            Fault::FullDisk => disks::problem().is_none(),
            _ => true,
        };
        Fault::ALL.into_iter().filter(can).collect()
    }

    fn report(&self, works: Vec<Work>, blows: &[Blow], samples: &[Sample]) -> SoakReport {
        let verdicts: Vec<&Verdict> = works.iter().flat_map(|it| &it.verdicts).collect();
        let problems: Vec<String> = works.iter().flat_map(|it| it.problems.clone()).collect();
        let count = |findings: fn(&Verdict) -> usize| {
            let sum: usize = verdicts.iter().map(|verdict| findings(verdict)).sum();
            (problems.is_empty() && !verdicts.is_empty()).then_some(sum as u64)
        };
        let growth = |value: fn(&Sample) -> u64| {
            let points = samples.iter().map(|it| (it.at_s, value(it) as f64));
            // While the spared node's process is not seen there is nothing to compare.
            let points: Vec<Point> = points.filter(|(_, value)| *value > 0.0).collect();
            growth_percent(&points, self.options.length.as_secs_f64())
        };
        SoakReport {
            lost: count(|it| it.lost.len()),
            run_twice: count(|it| it.run_twice.len()),
            unanswered: count(|it| it.unanswered.len()),
            inconsistent: verdicts.iter().flat_map(|it| it.inconsistent.clone()).collect(),
            cells: verdicts.iter().map(|it| it.cells).sum(),
            kernels: verdicts.len() as u64,
            faults: blows.len() as u64,
            memory_growth: [
                growth(|it| it.nodes_kib),
                growth(|it| it.spared_kib),
                growth(|it| it.python_kib),
            ],
            disk_growth: [growth(|it| it.disk_bytes), growth(|it| it.spared_disk_bytes)],
            last: samples.last().cloned().unwrap_or_default(),
            problems,
            folder: self.folder.to_owned(),
        }
    }
}

async fn sample_on(sampler: &Sampler, begun: Instant, length: Duration) -> Vec<Sample> {
    let every = (length / SAMPLES).max(SAMPLE_EVERY_MIN);
    let mut samples = Vec::new();
    while begun.elapsed() < length {
        let (sampler, at_s) = (sampler.clone(), begun.elapsed().as_secs_f64());
        // Only a panic of the sampler ends it without a sample.
        samples.extend(spawn_blocking(move || sampler.sample(at_s)).await.ok());
        sleep(every).await;
    }
    samples
}
