//! What strikes and when: the names in plans, reports and documents.

use std::fmt;

use serde::{Deserialize, Serialize};

/// When a fault strikes, relative to the cell under test. Everything is seen from outside: no
/// process has hooks for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Moment {
    /// The client got the cell's `Accepted`.
    AfterAccept,
    /// The client got the cell's first output; the cell has written its token and sleeps.
    WhileRunning,
    /// A chunk of what the cell made appeared on the disk of a node that is not the executor's.
    AfterChunks,
    /// The client got the cell's `status: idle`: its code is over; capture, `Complete` and its
    /// application are under way, and the reply of a durable cell is still held back.
    AfterCompleteBeforeReply,
    /// The control plane just put a new member into the kernel's entry, because a standby's node
    /// was silent for long enough.
    DuringMembershipChange,
    /// No cell runs. One is sent at the moment the fault strikes.
    Idle,
    /// A replica just wrote a snapshot of the kernel's log, or is about to rename it into place.
    DuringSnapshot,
    /// The kernel's group sleeps. A cell is sent at the moment the fault strikes.
    Hibernating,
    /// The kernel has no Python process. A cell is sent at the moment the fault strikes.
    Parked,
}

impl Moment {
    /// Those of the basic profile.
    pub const BASIC: [Self; 6] = [
        Self::AfterAccept,
        Self::WhileRunning,
        Self::AfterChunks,
        Self::AfterCompleteBeforeReply,
        Self::DuringMembershipChange,
        Self::Idle,
    ];

    /// Every one.
    pub const ALL: [Self; 9] = [
        Self::AfterAccept,
        Self::WhileRunning,
        Self::AfterChunks,
        Self::AfterCompleteBeforeReply,
        Self::DuringMembershipChange,
        Self::Idle,
        Self::DuringSnapshot,
        Self::Hibernating,
        Self::Parked,
    ];

    /// Whether the kernel has no Python process, or may have none: there is none to kill.
    #[must_use]
    pub fn is_asleep(self) -> bool {
        matches!(self, Self::Hibernating | Self::Parked)
    }

    /// Whether no cell is on its way when the fault strikes.
    #[must_use]
    pub fn is_quiet(self) -> bool {
        matches!(self, Self::Idle | Self::Hibernating | Self::Parked)
    }
}

/// What is done to the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// SIGKILL of the executor's Python process.
    KillPython,
    /// The executor's replica actor is killed where it stands; its Python ends with it.
    KillReplica,
    /// SIGKILL of the executor's node.
    KillNode,
    /// SIGKILL of the node of the Raft leader of the kernel's group.
    KillLeaderNode,
    /// SIGKILL of the broker.
    KillBroker,
    /// SIGSTOP of the executor's node process, SIGCONT after [`crate::plan::HOLD`]. Its Python runs on.
    #[serde(rename = "stop_10s")]
    Stop10s,
    /// The network namespace of the executor's node is cut off for [`crate::plan::HOLD`].
    Partition,
    /// The file system of the executor's node is filled to the last block for [`crate::plan::FULL`].
    FullDisk,
    /// The same on two nodes at once: on the majority of the kernel's replicas.
    FullDiskMajority,
    /// The next sync of the executor's node ends with an error.
    FailedFsync,
    /// Of the next write to the log of the executor's node only a part is written, then it is
    /// killed.
    TornWrite,
    /// The executor's node is stopped, bits of its log, snapshots or chunks are flipped, and it is
    /// killed.
    FlipBits,
    /// The executor's node is stopped, the end of its log is cut off, and it is killed.
    TruncateTail,
    /// The executor's node is stopped, everything in its data directory is removed, and it is
    /// killed.
    LoseDisk,
}

impl Fault {
    /// Those of the basic profile.
    pub const BASIC: [Self; 6] = [
        Self::KillPython,
        Self::KillNode,
        Self::KillLeaderNode,
        Self::KillBroker,
        Self::Stop10s,
        Self::Partition,
    ];

    /// Every one.
    pub const ALL: [Self; 14] = [
        Self::KillPython,
        Self::KillReplica,
        Self::KillNode,
        Self::KillLeaderNode,
        Self::KillBroker,
        Self::Stop10s,
        Self::Partition,
        Self::FullDisk,
        Self::FullDiskMajority,
        Self::FailedFsync,
        Self::TornWrite,
        Self::FlipBits,
        Self::TruncateTail,
        Self::LoseDisk,
    ];

    /// Whether it is one of the kills whose idle failover has a bar.
    #[must_use]
    pub fn is_kill(self) -> bool {
        Self::BASIC.contains(&self) && !self.is_hold()
    }

    /// Whether it holds a process up whose idle failover has a bar.
    #[must_use]
    pub fn is_hold(self) -> bool {
        matches!(self, Self::Stop10s | Self::Partition)
    }

    /// Whether what a node has promised is gone from its disk for good. Two of those at once may be
    /// a majority.
    #[must_use]
    pub fn destroys(self) -> bool {
        matches!(self, Self::FlipBits | Self::TruncateTail | Self::LoseDisk)
    }

    /// Whether it can be the second of two: it strikes one node, one actor, the broker or Python.
    #[must_use]
    pub fn can_be_second(self) -> bool {
        self != Self::FullDiskMajority
    }

    /// Whether its node is told by a file on its disk.
    fn needs_order(self) -> bool {
        matches!(self, Self::FailedFsync | Self::TornWrite)
    }

    /// Whether the two leave a majority of the kernel's disks as they were, and room for an order.
    #[must_use]
    pub fn goes_with(self, second: Self) -> bool {
        let has_no_room = self == Self::FullDiskMajority && second.needs_order();
        second.can_be_second() && !has_no_room && !(self.destroys() && second.destroys())
    }
}

fn name<T: Serialize>(value: T, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let value = serde_json::to_value(value).map_err(|_| fmt::Error)?;
    f.write_str(value.as_str().ok_or(fmt::Error)?)
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        name(self, f)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        name(self, f)
    }
}
