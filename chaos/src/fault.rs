//! Carries faults out, and undoes those that last.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use callboard_protocol::{
    KernelId, NodeId, ReplicaId,
    kernel::{KernelStatus, ReplicaRole, ReplicaStatus},
    node::Kill,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::time::{Instant, sleep, sleep_until};

use crate::{
    cluster::Cluster,
    damage, disks,
    error::ChaosError,
    plan::{FULL, Fault, HOLD},
};

/// The file by which a node's disk is told to fail, in its data directory.
const ORDER: &str = "disk-faults";
/// How long an order is left for the node to find: until its next write; or tried to be given.
const ORDER_WITHIN: Duration = Duration::from_secs(5);
/// How long a node may take to answer an order.
const ASK_WITHIN: Duration = Duration::from_secs(2);
/// How long a killed node may take to be started again.
const RESTART_WITHIN: Duration = Duration::from_secs(30);
/// How long a stopped process may take to stop.
const STOP_WITHIN: Duration = Duration::from_secs(2);
/// Pause between looks.
const POLL: Duration = Duration::from_millis(20);

/// What a fault needs to know about its victim, looked up before the moment comes.
#[derive(Debug, Clone)]
pub struct Target {
    /// The fault.
    pub fault: Fault,
    /// The node it strikes, if it strikes one.
    pub node: Option<NodeId>,
    /// A second node, if it strikes two.
    pub also: Option<NodeId>,
    /// The replica it strikes, or on whose node it does.
    pub replica: (KernelId, ReplicaId),
    /// The process it strikes.
    pub pid: u32,
    /// Where and how much a disk is damaged.
    pub seed: u64,
}

/// A fault that was carried out.
#[derive(Debug)]
pub struct Struck {
    /// When.
    pub at: Instant,
    /// What was done to what.
    pub what: String,
    undo: Vec<Undo>,
}

#[derive(Debug, Clone)]
enum Undo {
    /// Let a stopped process go on.
    Continue(u32),
    /// Plug a cable in.
    Connect(u16),
    /// Give a disk its room back.
    Free(PathBuf),
    /// Take back an order that nobody has found.
    Withdraw(PathBuf),
    /// Wait until a node has another process than this one.
    Restarted(NodeId, u32),
}

impl Target {
    /// Finds the victim of `fault` in `kernel`'s present state: the executor or its node, the
    /// leader's, the broker; another one than `not` if it is the second of two. `python` is the
    /// executor's Python process.
    ///
    /// # Errors
    /// [`ChaosError`] if it cannot be found or is not ours.
    pub async fn find(
        cluster: &Cluster,
        fault: Fault,
        (kernel, status): (KernelId, &KernelStatus),
        python: u32,
        not: Option<&NodeId>,
    ) -> Result<Self, ChaosError> {
        let missing = || ChaosError::TooSlow {
            what: "an executor and a leader to strike",
            within_s: 0,
            detail: format!(": {status:?}"),
        };
        let victim = victim(fault, status, not).ok_or_else(missing)?;
        let (node, replica) = (victim.node.clone(), (kernel, victim.replica));
        let also = match fault {
            Fault::FullDiskMajority => {
                let other = status.replicas.iter().find(|it| it.node != node);
                Some(other.ok_or_else(missing)?.node.clone())
            }
            _ => None,
        };
        let (node, pid) = match fault {
            Fault::KillBroker => (None, cluster.broker_pid()?),
            Fault::KillPython => {
                cluster.check_python(python)?;
                (Some(node), python)
            }
            _ => {
                let pid = cluster.node_pid(&node).await?;
                (Some(node), pid)
            }
        };
        Ok(Self { fault, node, also, replica, pid, seed: 0 })
    }

    /// With another seed of damage.
    #[must_use]
    pub fn seeded(self, seed: u64) -> Self {
        Self { seed, ..self }
    }

    /// Strikes.
    ///
    /// # Errors
    /// [`ChaosError`] if the process was gone already or the link cannot be cut.
    pub async fn strike(&self, cluster: &Cluster) -> Result<Struck, ChaosError> {
        let (what, undo) = match &self.node {
            None => {
                signal(self.pid, Signal::SIGKILL)?;
                (format!("SIGKILL to the broker (pid {})", self.pid), Vec::new())
            }
            Some(node) => self.strike_node(cluster, node).await?,
        };
        Ok(Struck { at: Instant::now(), what, undo })
    }

    async fn strike_node(
        &self,
        cluster: &Cluster,
        node: &NodeId,
    ) -> Result<(String, Vec<Undo>), ChaosError> {
        let pid = self.pid;
        let folder = cluster.node_folder(node);
        Ok(match self.fault {
            Fault::Partition => {
                let number = number(node.as_str())?;
                let network = cluster.network().ok_or_else(|| ChaosError::Command {
                    command: format!("cut off {node}"),
                    why: "the nodes have no network namespaces".to_owned(),
                })?;
                network.cut(number)?;
                (format!("cut off {node}"), vec![Undo::Connect(number)])
            }
            Fault::Stop10s => {
                signal(pid, Signal::SIGSTOP)?;
                (format!("SIGSTOP to {node} (pid {pid})"), vec![Undo::Continue(pid)])
            }
            Fault::KillPython => {
                signal(pid, Signal::SIGKILL)?;
                (format!("SIGKILL to Python on {node} (pid {pid})"), Vec::new())
            }
            Fault::KillReplica => {
                let (kernel, replica) = self.replica;
                let control = cluster.client().control().with_patience(ASK_WITHIN);
                let until = Instant::now() + ORDER_WITHIN;
                // The order goes over the broker, which may be what was struck first.
                while let Err(fault) = control.kill(node, Kill::Replica { kernel, replica }).await {
                    if Instant::now() > until {
                        return Err(ChaosError::refused("kill a replica")(fault));
                    }
                    sleep(POLL * 5).await;
                }
                (format!("the actor of replica {replica} on {node} killed"), Vec::new())
            }
            Fault::KillNode | Fault::KillLeaderNode | Fault::KillBroker => {
                signal(pid, Signal::SIGKILL)?;
                (format!("SIGKILL to {node} (pid {pid})"), Vec::new())
            }
            Fault::FullDisk | Fault::FullDiskMajority => {
                let nodes: Vec<&NodeId> =
                    [Some(node), self.also.as_ref()].into_iter().flatten().collect();
                for full in &nodes {
                    disks::fill(&cluster.node_folder(full))?;
                }
                let names: Vec<&str> = nodes.iter().map(|it| it.as_str()).collect();
                let undo = nodes.iter().map(|it| Undo::Free(cluster.node_folder(it))).collect();
                (format!("no room left on the disk of {}", names.join(" and ")), undo)
            }
            Fault::FailedFsync => {
                order(&folder, "fail_syncs 1 wal/")?;
                let undo = vec![Undo::Withdraw(folder.join(ORDER))];
                (format!("the next sync of {node} fails"), undo)
            }
            Fault::TornWrite => {
                let bytes = self.seed % 200;
                order(&folder, &format!("tear {bytes} wal/"))?;
                let undo = vec![Undo::Withdraw(folder.join(ORDER))];
                (format!("the next write of {node} is torn after {bytes} bytes"), undo)
            }
            Fault::FlipBits | Fault::TruncateTail | Fault::LoseDisk => {
                let what = self.damage(node, &folder).await?;
                (what, vec![Undo::Restarted(node.clone(), pid)])
            }
        })
    }

    /// Damages the disk of a node that stands still, and kills it: so it cannot read or write
    /// between the two, and whoever starts it again cannot be faster.
    async fn damage(&self, node: &NodeId, folder: &Path) -> Result<String, ChaosError> {
        signal(self.pid, Signal::SIGSTOP)?;
        let stopped = stands_still(self.pid).await;
        let damaged = match self.fault {
            _ if stopped.is_err() => Ok(String::new()),
            Fault::FlipBits => damage::flip_bits(folder, self.seed),
            Fault::TruncateTail => damage::truncate_tail(folder, self.seed),
            _ => damage::lose_disk(folder),
        };
        signal(self.pid, Signal::SIGKILL)?;
        stopped?;
        Ok(format!("SIGKILL to {node} (pid {}), {}", self.pid, damaged?))
    }
}

/// Which replica it strikes, or that of which node.
fn victim<'a>(
    fault: Fault,
    status: &'a KernelStatus,
    not: Option<&NodeId>,
) -> Option<&'a ReplicaStatus> {
    let executor = status.replicas.iter().find(|it| it.role == ReplicaRole::Executor);
    let leader = status.replicas.iter().find(|it| Some(it.replica) == status.raft_leader);
    let usual = if fault == Fault::KillLeaderNode { leader } else { executor }?;
    // Python and the broker can always be struck, too.
    let is_free =
        not != Some(&usual.node) || matches!(fault, Fault::KillPython | Fault::KillBroker);
    if is_free {
        return Some(usual);
    }
    status.replicas.iter().find(|it| Some(&it.node) != not)
}

/// Leaves an order where the node's disk finds it, whole.
fn order(folder: &Path, text: &str) -> Result<(), ChaosError> {
    let (beside, path) = (folder.join("disk-faults.new"), folder.join(ORDER));
    fs::write(&beside, text).map_err(ChaosError::io("write", &beside))?;
    fs::rename(&beside, &path).map_err(ChaosError::io("write", &path))
}

/// Waits until every thread of a process that got SIGSTOP has stopped.
async fn stands_still(pid: u32) -> Result<(), ChaosError> {
    let until = Instant::now() + STOP_WITHIN;
    loop {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten();
        let stands = |task: fs::DirEntry| {
            let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['T', 'Z', 'X']))
        };
        if tasks.flatten().all(stands) {
            return Ok(());
        }
        if Instant::now() > until {
            let why = "it does not stop".to_owned();
            return Err(ChaosError::NotOurs { pid, why });
        }
        sleep(Duration::from_millis(1)).await;
    }
}

impl Struck {
    /// Waits until the fault is over and undoes it.
    ///
    /// # Errors
    /// [`ChaosError`] if that fails: the cluster is then not whole.
    pub async fn heal(mut self, cluster: &Cluster) -> Result<(), ChaosError> {
        let mut healed = Ok(());
        for undo in std::mem::take(&mut self.undo) {
            match &undo {
                Undo::Continue(_) | Undo::Connect(_) => sleep_until(self.at + HOLD).await,
                Undo::Free(_) => sleep_until(self.at + FULL).await,
                Undo::Withdraw(path) => {
                    while path.exists() && self.at.elapsed() < ORDER_WITHIN {
                        sleep(POLL).await;
                    }
                }
                Undo::Restarted(node, pid) => {
                    healed = healed.and(restarted(cluster, node, *pid).await);
                }
            }
            healed = healed.and(undo.carry_out(cluster));
        }
        healed
    }
}

impl Undo {
    fn carry_out(&self, cluster: &Cluster) -> Result<(), ChaosError> {
        match self {
            Self::Continue(pid) => signal(*pid, Signal::SIGCONT),
            Self::Connect(node) => cluster.network().map_or(Ok(()), |it| it.heal(*node)),
            Self::Free(folder) => disks::free(folder),
            Self::Withdraw(path) => {
                // The node takes it away when it finds it.
                let _ = fs::remove_file(path);
                Ok(())
            }
            Self::Restarted(..) => Ok(()),
        }
    }
}

/// Waits until a node has another process than `old`.
async fn restarted(cluster: &Cluster, node: &NodeId, old: u32) -> Result<(), ChaosError> {
    let until = Instant::now() + RESTART_WITHIN;
    loop {
        let detail = match cluster.node_pid(node).await {
            Ok(pid) if pid != old => return Ok(()),
            Ok(pid) => format!(": its process is still {pid}"),
            Err(error) => format!(": {error}"),
        };
        if Instant::now() > until {
            let (what, within_s) = ("the restart of a killed node", RESTART_WITHIN.as_secs());
            return Err(ChaosError::TooSlow { what, within_s, detail });
        }
        sleep(POLL * 5).await;
    }
}

/// Sends a signal to a process that was checked to be ours.
///
/// # Errors
/// [`ChaosError::NotOurs`] if it is gone.
pub fn signal(pid: u32, signal: Signal) -> Result<(), ChaosError> {
    let fail = |why: String| ChaosError::NotOurs { pid, why };
    let raw = i32::try_from(pid).map_err(|error| fail(error.to_string()))?;
    if raw <= 1 {
        return Err(fail("that is no process of a cluster".to_owned()));
    }
    kill(Pid::from_raw(raw), signal).map_err(|errno| fail(errno.to_string()))
}

fn number(node: &str) -> Result<u16, ChaosError> {
    node.rsplit('-').next().and_then(|text| text.parse().ok()).ok_or_else(|| ChaosError::Command {
        command: format!("cut off {node}"),
        why: "its id has no number".to_owned(),
    })
}
