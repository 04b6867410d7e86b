//! Sees a trial's moment come, from outside the cluster's processes.

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use callboard_client::KernelClient;
use callboard_protocol::{
    KernelId, NodeId, control::Standing, jupyter::JupyterMessage, kernel::KernelStatus,
};
use callboard_transport::Subscription;
use serde::Deserialize;
use tokio::{task::spawn_blocking, time::sleep};

use crate::{cluster::Cluster, error::ChaosError};

/// The phase of a kernel whose group sleeps, in its status.
pub const HIBERNATING: &str = "hibernating";
/// The phase of a kernel without a Python process.
pub const PARKED: &str = "parked";
/// How long a moment is waited for.
pub const MOMENT_WITHIN: Duration = Duration::from_secs(30);
/// How often the disks are looked at for a new file.
const FILE_POLL: Duration = Duration::from_millis(1);
/// How often a kernel is asked whether it sleeps.
const PHASE_POLL: Duration = Duration::from_millis(200);
/// How often the kernel's entry is looked at for a new member.
const MEMBER_POLL: Duration = Duration::from_millis(10);

/// Chunks by node other than the executor's, before the cell under test.
#[derive(Debug)]
pub struct ChunkWatch {
    folders: Vec<PathBuf>,
    known: HashSet<PathBuf>,
}

impl ChunkWatch {
    /// Remembers the chunks there are on every node but `executor`.
    #[must_use]
    pub fn begin(cluster: &Cluster, executor: Option<&NodeId>) -> Self {
        let folders: Vec<PathBuf> = cluster
            .chunk_folders()
            .into_iter()
            .filter(|(node, _)| Some(node) != executor)
            .map(|(_, folder)| folder)
            .collect();
        let known = folders.iter().flat_map(|folder| chunks(folder)).collect();
        Self { folders, known }
    }

    /// Waits for one more.
    ///
    /// # Errors
    /// [`ChaosError::TooSlow`].
    pub async fn wait(self) -> Result<(), ChaosError> {
        let look = move || self.folders.iter().flat_map(|folder| chunks(folder)).collect();
        appears("the arrival of a chunk on another node", look, self.known).await
    }
}

/// The whole chunks in a node's folder, which has one folder per owner.
fn chunks(folder: &Path) -> Vec<PathBuf> {
    let is_whole =
        |path: &PathBuf| path.file_name().is_some_and(|name| !name.to_string_lossy().contains('-'));
    list(folder).iter().flat_map(|owner| list(owner)).filter(is_whole).collect()
}

/// The snapshots of a kernel's group on every node, before the cells under test.
#[derive(Debug)]
pub struct SnapshotWatch {
    folders: Vec<PathBuf>,
    known: HashSet<PathBuf>,
}

impl SnapshotWatch {
    /// Remembers the snapshots there are.
    #[must_use]
    pub fn begin(cluster: &Cluster, kernel: KernelId) -> Self {
        let folders = cluster.snapshot_folders(kernel);
        let known = folders.iter().flat_map(|folder| list(folder)).collect();
        Self { folders, known }
    }

    /// Waits for one more, or for one that is being written.
    ///
    /// # Errors
    /// [`ChaosError::TooSlow`].
    pub async fn wait(self) -> Result<(), ChaosError> {
        appears(
            "a snapshot",
            move || self.folders.iter().flat_map(|it| list(it)).collect(),
            self.known,
        )
        .await
    }
}

/// Waits until `look` finds a path that is not `known`.
async fn appears(
    what: &'static str,
    look: impl Fn() -> Vec<PathBuf> + Send + 'static,
    known: HashSet<PathBuf>,
) -> Result<(), ChaosError> {
    let until = Instant::now() + MOMENT_WITHIN;
    let seen = spawn_blocking(move || {
        while Instant::now() < until {
            if look().iter().any(|path| !known.contains(path)) {
                return true;
            }
            std::thread::sleep(FILE_POLL);
        }
        false
    });
    let within_s = MOMENT_WITHIN.as_secs();
    match seen.await {
        Ok(true) => Ok(()),
        Ok(false) => Err(ChaosError::TooSlow { what, within_s, detail: String::new() }),
        Err(error) => Err(ChaosError::TooSlow { what, within_s, detail: format!(": {error}") }),
    }
}

fn list(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    entries.filter_map(|entry| entry.ok().map(|entry| entry.path())).collect()
}

/// Waits for the `idle` status of the cell `msg_id` on the kernel's events.
///
/// # Errors
/// [`ChaosError::TooSlow`].
pub async fn idle_status(mut events: Subscription, msg_id: &str) -> Result<(), ChaosError> {
    #[derive(Deserialize)]
    struct Status {
        execution_state: String,
    }
    let seen = async {
        while let Some(event) = events.next().await {
            if event.subject.last() != "emitted" || event.envelope.cursor.is_some() {
                continue;
            }
            let Ok(message) = JupyterMessage::decode(&event.payload) else { continue };
            let is_idle =
                message.parse_content::<Status>().is_ok_and(|it| it.execution_state == "idle");
            if is_idle && message.parent_msg_id().as_deref() == Some(msg_id) {
                return;
            }
        }
        std::future::pending().await
    };
    tokio::time::timeout(MOMENT_WITHIN, seen).await.map_err(|_| ChaosError::TooSlow {
        what: "the end of the cell's code",
        within_s: MOMENT_WITHIN.as_secs(),
        detail: String::new(),
    })
}

/// Waits until the kernel's entry has a member that was added to it.
///
/// # Errors
/// [`ChaosError::TooSlow`] with the entry as last seen.
pub async fn new_member(cluster: &Cluster, kernel: KernelId) -> Result<(), ChaosError> {
    let control = cluster.client().control().with_patience(Duration::from_secs(2));
    let until = Instant::now() + MOMENT_WITHIN;
    let mut detail = String::new();
    while Instant::now() < until {
        match control.find_kernel(&kernel.to_string()).await {
            Ok(spec) if spec.replicas.values().any(|it| it.standing != Standing::Founder) => {
                return Ok(());
            }
            Ok(spec) => detail = format!(": its members are {:?}", spec.replicas),
            Err(fault) => detail = format!(": {fault}"),
        }
        sleep(MEMBER_POLL).await;
    }
    Err(ChaosError::TooSlow {
        what: "the replacement of a silent member",
        within_s: MOMENT_WITHIN.as_secs(),
        detail,
    })
}

/// Waits until the kernel's own status says that it is in `phase`.
///
/// # Errors
/// [`ChaosError::TooSlow`].
pub async fn phase(kernel: &KernelClient, phase: &'static str) -> Result<(), ChaosError> {
    let until = Instant::now() + MOMENT_WITHIN;
    let mut detail = String::new();
    while Instant::now() < until {
        match kernel.show().await {
            Ok(status) => match phase_of(&status) {
                Some(now) if now == phase => return Ok(()),
                now => detail = format!(": its phase is {now:?}"),
            },
            Err(fault) => detail = format!(": {fault}"),
        }
        sleep(PHASE_POLL).await;
    }
    let what = "the sleep of an idle kernel";
    Err(ChaosError::TooSlow { what, within_s: MOMENT_WITHIN.as_secs(), detail })
}

/// Whether kernels of this build know a phase: what they do not know cannot be waited for.
#[must_use]
pub fn knows_phase(phase: &str) -> bool {
    let status = serde_json::json!({
        "term": null, "accepted": 0, "ended": 0, "queue_depth": 0, "replicas": [],
        "raft_leader": null, "losses_survivable": 0, "names": [], "refused": [], "shared": [],
        "state_bytes": 0, "last_loss": null, "phase": phase,
    });
    let status = serde_json::from_value::<KernelStatus>(status);
    status.is_ok_and(|status| phase_of(&status).as_deref() == Some(phase))
}

/// What a kernel's status says of its phase; `None` in a build whose kernels have none.
#[must_use]
pub fn phase_of(status: &KernelStatus) -> Option<String> {
    let status = serde_json::to_value(status).ok()?;
    Some(status.get("phase")?.as_str()?.to_owned())
}
