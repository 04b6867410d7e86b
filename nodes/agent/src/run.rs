//! `callboard node`: from a data directory and credentials to a node at work, and back.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use callboard_kernel::{
    Cgroups, Confinement, Cursors, FileOptions, KernelPrograms, NodeContext, NodeStats,
    PythonConfig, PythonPool, UpkeepConfig,
    python::{CGROUP_ROOT, Isolation, Zygote, is_root, unpack_package},
};
use callboard_policy::{
    environment::EnvironmentMatch, failure::FailureConfig, hibernation::HibernationConfig,
    prewarm::PoolBounds, repair::RepairLimits,
};
use callboard_protocol::{NodeId, control::KernelLimits, environment::Environment};
use callboard_replicated::{
    ChunkArchive, ChunkExchange, ChunkRoom, ChunkStore, ChunkStoreOptions, Disk, FaultyDisk,
    KillProcess, RealDisk, ReplicatorOptions,
};
use callboard_transport::{ConnectError, Credentials, Lanes, NatsBus, NatsOptions};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
    time::Instant,
};

use crate::{
    data_dir::{DataDir, MachineId, host_name},
    error::NodeError,
    kernel_replicas::KernelReplicas,
    memory,
    node::{NodeParts, NodeServices, RunningNode},
    node_actor::Crash,
    python::{Installed, check_python},
    replicas::ReplicaFactory,
    storage::{ObjectArchive, Reserve, ReservedDisk, Storage, StorageOptions, wait_for_room},
    sweep::sweep,
};

/// File in the data directory that tells a node run with [`NodeOptions::disk_faults`] how to fail.
pub const DISK_FAULTS_FILE: &str = "disk-faults";
/// Pause between two attempts to reach the broker.
const CONNECT_EVERY: Duration = Duration::from_secs(1);
/// Pause before a Python that lacked something is looked at again.
const PYTHON_CHECK_EVERY: Duration = Duration::from_secs(30);
/// Pause between two looks at whether packages were installed.
const PACKAGES_LOOK_EVERY: Duration = Duration::from_secs(5);
/// Time for the answer to a kill to leave before the process ends.
const LAST_WORDS: Duration = Duration::from_millis(50);

/// How a node is run.
#[derive(Debug, Clone)]
pub struct NodeOptions {
    /// Its data directory.
    pub data_dir: PathBuf,
    /// Its id.
    pub node: NodeId,
    /// Its credentials for the bus.
    pub credentials: Credentials,
    /// The nodes that shall found the cluster if there is none; the same list on each of them.
    pub bootstrap: Vec<NodeId>,
    /// Whether to take over a data directory that was made on another machine.
    pub adopt_directory: bool,
    /// The Python that kernels run on.
    pub python: PathBuf,
    /// Libraries that kernels find imported already.
    pub zygote_preload: String,
    /// How many started Python processes are kept at hand.
    pub pool: PoolBounds,
    /// How kernels are kept that have nothing to do.
    pub upkeep: UpkeepConfig,
    /// When its idle kernels sleep.
    pub hibernation: HibernationConfig,
    /// Longest time one capture of a session's state may take, in milliseconds.
    pub capture_budget_ms: u64,
    /// Most bytes that a kernel's state may have.
    pub state_bytes_max: u64,
    /// Where the files of sessions are, and what of them travels.
    pub files: FileOptions,
    /// How long to wait for a broker that is down when the node starts.
    pub broker_wait: Duration,
    /// When the other nodes are suspected and given up.
    pub failure: FailureConfig,
    /// How fast repair may go.
    pub repair: RepairLimits,
    /// How alike the Python environments of a kernel's nodes have to be.
    pub environment_match: EnvironmentMatch,
    /// The most that kernels' processes may have.
    pub limits_max: KernelLimits,
    /// The first of the uids that kernels run under, where the node is root; `None`: the node's own.
    pub kernel_uid_base: Option<u32>,
    /// How it replicates.
    pub replicator: ReplicatorOptions,
    /// How its disk is used.
    pub storage: StorageOptions,
    /// Whether its disk fails when a file in its data directory says so. For chaos runs.
    pub disk_faults: bool,
}

/// How a node's run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExitReason {
    /// It was told to stop, and everything is on disk.
    Stopped,
    /// It must be started again, for this reason; what was acknowledged is safe.
    RestartNeeded(String),
}

impl ExitReason {
    /// Exit code of a node that was stopped.
    pub const CODE_STOPPED: u8 = 0;
    /// Exit code of a node that must be started again: that of `EX_TEMPFAIL` in sysexits.h.
    pub const CODE_RESTART_NEEDED: u8 = 75;

    /// The exit code of the process.
    #[must_use]
    pub fn code(&self) -> u8 {
        match self {
            Self::Stopped => Self::CODE_STOPPED,
            Self::RestartNeeded(_) => Self::CODE_RESTART_NEEDED,
        }
    }
}

/// Runs a node until it is told to stop by SIGTERM or SIGINT, or must be started again.
///
/// # Errors
/// [`NodeError`] if it cannot start.
pub async fn run_node(options: NodeOptions) -> Result<ExitReason, NodeError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(NodeError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(NodeError::Signals)?;
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        }
    };
    tokio::pin!(stop);
    let (python, python_problem) =
        watch::channel(Some("its Python is still being checked".to_owned()));
    let (installed, environment) = watch::channel(None);
    let (found, programs) = watch::channel(KernelPrograms::default());
    let checking = tokio::spawn(watch_python(options.python.clone(), python, (installed, found)));
    let running = tokio::select! {
        started = start(&options, python_problem, (environment, programs)) => started,
        cause = &mut stop => {
            tracing::info!(cause, "stopped while starting");
            checking.abort();
            return Ok(ExitReason::Stopped);
        }
    };
    let reason = match running {
        Ok(running) => {
            tracing::info!(node = %options.node, "the node is at work");
            let trimming = tokio::spawn(memory::give_back());
            let reason = tokio::select! {
                cause = &mut stop => {
                    tracing::info!(cause, "stopping");
                    running.stop().await;
                    Ok(ExitReason::Stopped)
                }
                why = running.failed() => {
                    tracing::error!(%why, "this node must be started again");
                    running.crash().await;
                    Ok(ExitReason::RestartNeeded(why))
                }
            };
            trimming.abort();
            reason
        }
        Err(error) => Err(error),
    };
    checking.abort();
    reason
}

/// What is installed in the node's Python environment, and how kernels of other languages are started.
type Found = (watch::Receiver<Option<Environment>>, watch::Receiver<KernelPrograms>);

async fn start(
    options: &NodeOptions,
    python: watch::Receiver<Option<String>>,
    (environment, programs): Found,
) -> Result<RunningNode, NodeError> {
    wait_for_room(&options.data_dir, options.storage.disk_reserve_bytes).await;
    let machine = MachineId::of_this_machine();
    let dir = DataDir::open(&options.data_dir, &options.node, &machine, options.adopt_directory)?;
    let dir = Arc::new(dir);
    let reserve = Arc::new(Reserve::open(dir.root(), options.storage.disk_reserve_bytes));
    let incarnation = dir.begin_life()?;
    let previous_end = dir.take_last_end();
    tracing::info!(node = %options.node, disk = %dir.disk(), %incarnation, "starting");
    let run_dir = end_leftovers(dir.run_dir())?;
    let lanes = connect(options).await?;
    let (storage, exchange) = open_storage(options, dir.root(), &reserve, &lanes).await?;
    let (chunks, pins) = (storage.chunks.clone(), storage.pins.clone());
    let full_disk = storage.refusal();
    let package_dir = unpack_package(&dir.root().join("python"))?;
    let isolation = isolation(options, &dir, &package_dir).await;
    let python_pool = python_pool(options, package_dir, &run_dir, isolation.is_ok());
    let parts = NodeParts {
        cluster: options.credentials.cluster.clone(),
        node: options.node.clone(),
        bootstrap: options.bootstrap.clone(),
        dir: dir.clone(),
        incarnation,
        host: host_name(),
        lanes: lanes.clone(),
        disk: Arc::new(ReservedDisk::new(disk(options, dir.root()), reserve)),
        replicator: options.replicator.clone(),
        failure: options.failure,
        repair: options.repair,
        python,
        environment: environment.clone(),
        environment_match: options.environment_match,
        limits_max: options.limits_max,
        crash: crash_by_signal(),
        seed: dir.disk().0.as_u64_pair().1 ^ incarnation.0,
        storage,
    };
    let make_factory = |services: &NodeServices| {
        let context = NodeContext {
            cluster: options.credentials.cluster.clone(),
            node: options.node.clone(),
            incarnation,
            previous_end: previous_end.clone(),
            lanes,
            replicator: services.replicator.clone(),
            chunks,
            pins,
            disk: full_disk,
            exchange,
            python: python_pool,
            environment,
            programs,
            environment_match: options.environment_match,
            files: options.files.clone(),
            confinement: Confinement {
                cgroups: Cgroups::prepare(Path::new(CGROUP_ROOT), &dir.disk().to_string()),
                most: options.limits_max,
                isolation,
            },
            upkeep: options.upkeep,
            hibernation: options.hibernation,
            run_dir,
            nodes: services.nodes.clone(),
            stats: Arc::new(NodeStats::default()),
            cursors: Cursors::default(),
        };
        Ok(Arc::new(KernelReplicas::new(Arc::new(context))) as Arc<dyn ReplicaFactory>)
    };
    RunningNode::start(parts, make_factory).await
}

/// Ends what a former life of this node left behind in the directory, and gives it back.
fn end_leftovers(run_dir: PathBuf) -> Result<PathBuf, NodeError> {
    let fail = |source| NodeError::Sweep { path: run_dir.clone(), source };
    let swept = sweep(&run_dir).map_err(fail)?;
    if !swept.processes.is_empty() {
        tracing::warn!(processes = ?swept.processes, "ended what a former life left behind");
    }
    Ok(run_dir)
}

/// The chunks on this disk, and their way to and from other nodes.
async fn open_storage(
    options: &NodeOptions,
    root: &Path,
    reserve: &Arc<Reserve>,
    lanes: &Lanes,
) -> Result<(Storage, ChunkExchange), NodeError> {
    let owner_quota_bytes = options.storage.owner_quota_bytes;
    let room = chunk_room(root.to_owned(), Arc::clone(reserve));
    let chunk_options =
        ChunkStoreOptions { owner_quota_bytes, room, ..ChunkStoreOptions::default() };
    let chunks = ChunkStore::open_with(&root.join("chunks"), chunk_options)?;
    let (held, reserve) = (chunks.clone(), Arc::clone(reserve));
    let storage = Storage::new(held, root.to_owned(), reserve, options.storage.clone());
    let cluster = options.credentials.cluster.clone();
    let archive = ObjectArchive::open(&options.storage.object_store_url, &cluster)?;
    let storage = storage.with_archive(archive.clone());
    let exchange = ChunkExchange::serve_with(
        lanes.bulk.clone(),
        cluster,
        options.node.clone(),
        chunks,
        archive.map(|archive| archive as Arc<dyn ChunkArchive>),
    )
    .await?;
    Ok((storage, exchange))
}

/// Chunks leave alone what is set aside for the log.
fn chunk_room(root: PathBuf, reserve: Arc<Reserve>) -> ChunkRoom {
    ChunkRoom::new(move |bytes| reserve.has_room_for_chunks(&root, bytes))
}

/// The disk that log and snapshots are on.
fn disk(options: &NodeOptions, root: &Path) -> Arc<dyn Disk> {
    let real = Arc::new(RealDisk::new(root));
    if !options.disk_faults {
        return real;
    }
    tracing::warn!("this node's disk fails when it is told to: it must hold nothing of value");
    let kill_now: KillProcess = Arc::new(|| {
        if let Err(error) = kill(Pid::this(), Signal::SIGKILL) {
            tracing::error!(%error, "cannot kill this process");
        }
    });
    Arc::new(FaultyDisk::new(real, root.join(DISK_FAULTS_FILE), kill_now))
}

/// What gives kernels uids of their own; or why nothing does, if it was wished for.
async fn isolation(
    options: &NodeOptions,
    dir: &DataDir,
    package_dir: &Path,
) -> Result<Isolation, Option<String>> {
    let base = options.kernel_uid_base.filter(|_| is_root()).ok_or(None)?;
    let (owner, files) = (dir.disk().to_string(), &options.files);
    let prepared =
        Isolation::prepare(base, &owner, &options.python, package_dir, dir.root(), files);
    prepared.await.map_err(|why| {
        tracing::warn!(%why, "kernels run as root, like the node");
        Some(why)
    })
}

/// The source of Python processes; without a zygote if there can be none.
fn python_pool(
    options: &NodeOptions,
    package_dir: PathBuf,
    run_dir: &Path,
    isolated: bool,
) -> PythonPool {
    let config = PythonConfig {
        program: options.python.clone(),
        package_dir,
        capture_budget_ms: options.capture_budget_ms,
        state_bytes_max: options.state_bytes_max,
        isolated,
    };
    match Zygote::start(config.clone(), &options.zygote_preload, run_dir) {
        Ok(zygote) => PythonPool::start(config, run_dir, zygote, options.pool),
        Err(error) => {
            tracing::warn!(%error, "no zygote: kernels are started the long way");
            PythonPool::bare(config, run_dir)
        }
    }
}

/// Three connections of the node's user; waits for a broker that is down.
async fn connect(options: &NodeOptions) -> Result<Lanes, NodeError> {
    let nats = NatsOptions::new(&options.credentials, options.node.to_string());
    let began = Instant::now();
    loop {
        match NatsBus::connect_lanes(&nats).await {
            Ok(lanes) => return Ok(lanes),
            Err(last @ ConnectError::Unreachable { .. }) => {
                let waited = began.elapsed();
                if waited >= options.broker_wait {
                    return Err(NodeError::NoBroker { last, waited_s: waited.as_secs() });
                }
                let left_s = (options.broker_wait - waited).as_secs();
                tracing::warn!(%last, left_s, "waiting for the broker");
            }
            Err(error) => return Err(NodeError::Connect(error)),
        }
        tokio::time::sleep(CONNECT_EVERY).await;
    }
}

/// Looks at Python now, and again for as long as it lacks something; then follows what is
/// installed.
async fn watch_python(
    program: PathBuf,
    problem: watch::Sender<Option<String>>,
    (installed, programs): (watch::Sender<Option<Environment>>, watch::Sender<KernelPrograms>),
) {
    loop {
        let found = check_python(&program).await;
        if let Some(found) = &found {
            tracing::warn!(problem = %found, "this node gets no replicas");
        }
        let is_well = found.is_none();
        problem.send_replace(found);
        if is_well {
            break;
        }
        tokio::time::sleep(PYTHON_CHECK_EVERY).await;
    }
    loop {
        match Installed::read(&program).await {
            Ok(found) => {
                let seen = found.changed();
                tracing::info!(environment = %found.environment.id, "Python environment");
                // What is told to be there can be started.
                programs.send_replace(found.programs.clone());
                installed.send_replace(Some(found.environment.clone()));
                while found.changed() == seen {
                    tokio::time::sleep(PACKAGES_LOOK_EVERY).await;
                }
            }
            Err(why) => {
                tracing::warn!(%why, "kernels are placed without a look at this node's packages");
                tokio::time::sleep(PYTHON_CHECK_EVERY).await;
            }
        }
    }
}

/// Kills this very process, once the answer to whoever asked for it had time to leave.
fn crash_by_signal() -> Crash {
    Arc::new(|| {
        tokio::spawn(async {
            tokio::time::sleep(LAST_WORDS).await;
            if let Err(error) = kill(Pid::this(), Signal::SIGKILL) {
                tracing::error!(%error, "cannot kill this process");
            }
        });
    })
}
