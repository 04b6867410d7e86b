//! Sees a trial's moment come, from outside the cluster's processes.

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use callboard_protocol::{KernelId, NodeId, control::Standing, jupyter::JupyterMessage};
use callboard_transport::Subscription;
use serde::Deserialize;
use tokio::{task::spawn_blocking, time::sleep};

use crate::{cluster::Cluster, error::ChaosError};

/// How long a moment is waited for.
pub const MOMENT_WITHIN: Duration = Duration::from_secs(30);
/// How often the disks are looked at for a new chunk.
const CHUNK_POLL: Duration = Duration::from_millis(1);
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
        let within_s = MOMENT_WITHIN.as_secs();
        let too_slow = |detail| ChaosError::TooSlow {
            what: "the arrival of a chunk on another node",
            within_s,
            detail,
        };
        let until = Instant::now() + MOMENT_WITHIN;
        let seen = spawn_blocking(move || {
            while Instant::now() < until {
                let mut all = self.folders.iter().flat_map(|folder| chunks(folder));
                if all.any(|chunk| !self.known.contains(&chunk)) {
                    return true;
                }
                std::thread::sleep(CHUNK_POLL);
            }
            false
        });
        match seen.await {
            Ok(true) => Ok(()),
            Ok(false) => Err(too_slow(String::new())),
            Err(error) => Err(too_slow(format!(": {error}"))),
        }
    }
}

/// The whole chunks in a node's folder, which has one folder per owner.
fn chunks(folder: &Path) -> Vec<PathBuf> {
    let list = |path: &Path| -> Vec<PathBuf> {
        let entries = fs::read_dir(path).into_iter().flatten();
        entries.filter_map(|entry| entry.ok().map(|entry| entry.path())).collect()
    };
    let is_whole =
        |path: &PathBuf| path.file_name().is_some_and(|name| !name.to_string_lossy().contains('-'));
    list(folder).iter().flat_map(|owner| list(owner)).filter(is_whole).collect()
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
