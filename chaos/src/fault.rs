//! Carries faults out, and undoes those that last.

use callboard_protocol::{NodeId, kernel::KernelStatus, kernel::ReplicaRole};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::time::{Instant, sleep_until};

use crate::{
    cluster::Cluster,
    error::ChaosError,
    plan::{Fault, HOLD},
};

/// What a fault needs to know about its victim, looked up before the moment comes.
#[derive(Debug, Clone)]
pub struct Target {
    /// The fault.
    pub fault: Fault,
    /// The node it strikes, if it strikes one.
    pub node: Option<NodeId>,
    /// The process it strikes.
    pub pid: u32,
}

/// A fault that was carried out.
#[derive(Debug)]
pub struct Struck {
    /// When.
    pub at: Instant,
    /// What was done to what.
    pub what: String,
    undo: Option<Undo>,
}

#[derive(Debug)]
enum Undo {
    Continue(u32),
    Connect(u16),
}

impl Target {
    /// Finds the victim of `fault` in the kernel's present state. `python` is the executor's
    /// Python process.
    ///
    /// # Errors
    /// [`ChaosError`] if it cannot be found or is not ours.
    pub async fn find(
        cluster: &Cluster,
        fault: Fault,
        status: &KernelStatus,
        python: u32,
    ) -> Result<Self, ChaosError> {
        let executor = status.replicas.iter().find(|it| it.role == ReplicaRole::Executor);
        let leader = status.replicas.iter().find(|it| Some(it.replica) == status.raft_leader);
        let member = if fault == Fault::KillLeaderNode { leader } else { executor };
        let missing = || ChaosError::TooSlow {
            what: "an executor and a leader to strike",
            within_s: 0,
            detail: format!(": {status:?}"),
        };
        let node = &member.ok_or_else(missing)?.node;
        let (node, pid) = match fault {
            Fault::KillBroker => (None, cluster.broker_pid()?),
            Fault::KillPython => {
                cluster.check_python(python)?;
                (Some(node.clone()), python)
            }
            _ => (Some(node.clone()), cluster.node_pid(node).await?),
        };
        Ok(Self { fault, node, pid })
    }

    /// Strikes.
    ///
    /// # Errors
    /// [`ChaosError`] if the process was gone already or the link cannot be cut.
    pub fn strike(&self, cluster: &Cluster) -> Result<Struck, ChaosError> {
        let name = self.node.as_ref().map_or("the broker", NodeId::as_str);
        let (what, undo) = match self.fault {
            Fault::Partition => {
                let number = number(name)?;
                let network = cluster.network().ok_or_else(|| ChaosError::Command {
                    command: format!("cut off {name}"),
                    why: "the nodes have no network namespaces".to_owned(),
                })?;
                network.cut(number)?;
                (format!("cut off {name}"), Some(Undo::Connect(number)))
            }
            Fault::Stop10s => {
                signal(self.pid, Signal::SIGSTOP)?;
                (format!("SIGSTOP to {name} (pid {})", self.pid), Some(Undo::Continue(self.pid)))
            }
            Fault::KillPython => {
                signal(self.pid, Signal::SIGKILL)?;
                (format!("SIGKILL to Python on {name} (pid {})", self.pid), None)
            }
            Fault::KillNode | Fault::KillLeaderNode | Fault::KillBroker => {
                signal(self.pid, Signal::SIGKILL)?;
                (format!("SIGKILL to {name} (pid {})", self.pid), None)
            }
        };
        Ok(Struck { at: Instant::now(), what, undo })
    }
}

impl Struck {
    /// Waits until the fault is over and undoes it.
    ///
    /// # Errors
    /// [`ChaosError`] if that fails: the network is then not whole.
    pub async fn heal(mut self, cluster: &Cluster) -> Result<(), ChaosError> {
        if self.undo.is_some() {
            sleep_until(self.at + HOLD).await;
        }
        self.undo(cluster)
    }

    /// Undoes the fault now.
    ///
    /// # Errors
    /// As [`Self::heal`].
    pub fn undo(&mut self, cluster: &Cluster) -> Result<(), ChaosError> {
        match self.undo.take() {
            None => Ok(()),
            Some(Undo::Continue(pid)) => signal(pid, Signal::SIGCONT),
            Some(Undo::Connect(node)) => cluster.network().map_or(Ok(()), |it| it.heal(node)),
        }
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
