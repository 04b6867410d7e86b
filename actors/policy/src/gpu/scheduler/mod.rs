//! The scheduler of GPUs as a machine without I/O: what happens goes in, what is to be done comes
//! out. The live control actor and the simulator feed the same machine; given the same inputs in the
//! same order it decides the same.

mod cells;
mod growth;
mod nodes;
mod session;

use std::collections::{BTreeMap, BTreeSet};

use callboard_protocol::KernelId;
use serde::{Deserialize, Serialize};

use super::{
    autoscaling::Autoscaling,
    costs::Start,
    decision::Reasons,
    executor::ExecutorChoice,
    fleet::{Fleet, NodeShape, Slot},
    history::Durations,
    migration::MigrationChoice,
    placement::MemberPlacement,
    queueing::{Queueing, Waiting},
};

use session::Submitted;

pub use session::{Phase, Session};

/// For how long a session keeps what it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Binding {
    /// GPUs are held while a cell runs.
    Cell,
    /// From its first cell to its end, or until it was idle for so long.
    Session {
        /// If ever.
        reclaim_after_ms: Option<u64>,
    },
}

/// The policies that make one scheduler.
pub struct Policies {
    /// What it is called.
    pub name: String,
    /// Members of each kernel; none if its state is in shared storage.
    pub replicas: usize,
    /// For how long GPUs are held.
    pub binding: Binding,
    /// Where members go.
    pub placement: Box<dyn MemberPlacement + Send>,
    /// Which of them runs a cell.
    pub executor: Box<dyn ExecutorChoice + Send>,
    /// Where the session goes if none can; none if cells wait for one that can.
    pub migration: Option<Migration>,
    /// Who comes first.
    pub queueing: Box<dyn Queueing + Send>,
    /// How many nodes there should be.
    pub scaling: Box<dyn Autoscaling + Send>,
}

/// How sessions move to GPUs.
pub struct Migration {
    /// Who moves, and where.
    pub choice: Box<dyn MigrationChoice + Send>,
    /// How its cell starts there.
    pub start: Start,
    /// Bring the bytes of sessions that will likely move ahead of their cells.
    pub is_proactive: bool,
    /// Waits between attempts to find a target; a scheduler without looks whenever GPUs are free.
    pub backoff: Option<Backoff>,
}

/// Growing waits between attempts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Backoff {
    /// The first.
    pub first_ms: f64,
    /// Each is so many times the one before.
    pub factor: f64,
    /// None is longer.
    pub max_ms: f64,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Input {
    /// A node that was asked for, or was added by hand, is up.
    NodeUp {
        /// Its number: that of the request, or one that was never used.
        slot: Slot,
        /// What it is made of.
        shape: NodeShape,
    },
    /// A node is gone with all that ran on it.
    NodeLost {
        /// Which.
        slot: Slot,
    },
    /// A kernel exists.
    SessionOpened {
        /// Which.
        kernel: KernelId,
        /// Whose, as a number.
        owner: u64,
        /// What its cells use.
        gpus: u32,
        /// The least memory of each.
        vram_mib: u32,
        /// What it takes along when it moves.
        state_mib: u64,
    },
    /// It is gone.
    SessionClosed {
        /// Which.
        kernel: KernelId,
    },
    /// A cell wants GPUs. A kernel has one at a time.
    CellSubmitted {
        /// Of which kernel.
        kernel: KernelId,
        /// What it uses.
        gpus: u32,
        /// The higher, the earlier.
        priority: i8,
        /// When it should have begun.
        deadline_ms: Option<u64>,
    },
    /// It has ended; its GPUs are being cleared.
    CellEnded {
        /// Of which kernel.
        kernel: KernelId,
    },
    /// Its GPUs are clear.
    Released {
        /// Of which kernel.
        kernel: KernelId,
    },
    /// A member that was moved is on its new node.
    MemberMoved {
        /// Of which kernel.
        kernel: KernelId,
        /// Where it was.
        from: Slot,
        /// Where it is.
        to: Slot,
    },
    /// The bytes of a session were brought to a node ahead of its next cell.
    Prefetched {
        /// Of which kernel.
        kernel: KernelId,
        /// To which node.
        slot: Slot,
    },
    /// The regular look at the number of nodes.
    Look,
    /// A wait that was asked for is over.
    Woken,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// Bring a node up.
    Boot {
        /// Its number.
        slot: Slot,
    },
    /// A node is empty: give it back.
    GiveBack {
        /// Which.
        slot: Slot,
    },
    /// A cell may begin.
    Grant {
        /// Of which kernel.
        kernel: KernelId,
        /// On which node.
        slot: Slot,
        /// How many GPUs.
        gpus: u32,
        /// How the session comes to them.
        start: Start,
        /// Why there.
        reasons: Reasons,
    },
    /// A cell can never have what it wants: it is not in the queue.
    Refuse {
        /// Of which kernel.
        kernel: KernelId,
        /// Why, and what to do, as a sentence.
        why: String,
    },
    /// A member leaves a node that is given back.
    MoveMember {
        /// Of which kernel.
        kernel: KernelId,
        /// From where.
        from: Slot,
        /// To where.
        to: Slot,
    },
    /// Bring the bytes of a session to a node: its next cell will likely run there as a guest. Say
    /// [`Input::Prefetched`] when they are there.
    Prefetch {
        /// Of which kernel.
        kernel: KernelId,
        /// To which node.
        slot: Slot,
    },
    /// A session that was idle for too long lost what it held.
    Reclaimed {
        /// Which.
        kernel: KernelId,
    },
    /// A cell's node is lost: it ended with an error.
    CellLost {
        /// Of which kernel.
        kernel: KernelId,
    },
    /// Say [`Input::Woken`] at this time.
    WakeAt {
        /// When.
        at_ms: u64,
    },
}

/// A cell in the queue.
#[derive(Debug, Clone, PartialEq)]
struct Queued {
    cell: Waiting,
    /// Not looked at before.
    not_before_ms: u64,
    attempts: u32,
    /// The autoscaler was told.
    is_heard: bool,
}

/// Decides who has which GPUs.
pub struct Scheduler {
    policies: Policies,
    shape: NodeShape,
    boot_ms: u64,
    fleet: Fleet,
    sessions: BTreeMap<KernelId, Session>,
    queue: Vec<Queued>,
    booting: BTreeSet<Slot>,
    next_slot: u32,
    members_on: BTreeMap<Slot, BTreeSet<KernelId>>,
    held_by: BTreeMap<u64, u64>,
    kept: BTreeMap<KernelId, Slot>,
    subscribed: u64,
    pauses: Durations,
    cells: Durations,
    /// When it will next be woken; 0 if it asked for nothing.
    woken_at_ms: u64,
}

impl Scheduler {
    /// Nothing is up. New nodes are of `shape` and take about `boot_ms`.
    #[must_use]
    pub fn new(policies: Policies, shape: NodeShape, boot_ms: u64) -> Self {
        Self {
            policies,
            shape,
            boot_ms,
            fleet: Fleet::default(),
            sessions: BTreeMap::new(),
            queue: Vec::new(),
            booting: BTreeSet::new(),
            next_slot: 0,
            members_on: BTreeMap::new(),
            held_by: BTreeMap::new(),
            kept: BTreeMap::new(),
            subscribed: 0,
            pauses: Durations::default(),
            cells: Durations::default(),
            woken_at_ms: 0,
        }
    }

    /// The nodes.
    #[must_use]
    pub fn fleet(&self) -> &Fleet {
        &self.fleet
    }

    /// A kernel that exists.
    #[must_use]
    pub fn session(&self, kernel: KernelId) -> Option<&Session> {
        self.sessions.get(&kernel)
    }

    /// How many cells wait.
    #[must_use]
    pub fn waiting_len(&self) -> usize {
        self.queue.len()
    }

    /// GPUs that all kernels would use at once.
    #[must_use]
    pub fn subscribed(&self) -> u64 {
        self.subscribed
    }

    /// How often it wants [`Input::Look`].
    #[must_use]
    pub fn interval_ms(&self) -> u64 {
        self.policies.scaling.interval_ms()
    }

    /// Takes in what happened and says what is to be done, in this order.
    pub fn handle(&mut self, now_ms: u64, input: &Input) -> Vec<Effect> {
        let mut effects = Vec::new();
        match *input {
            Input::NodeUp { slot, shape } => self.node_up(now_ms, slot, shape),
            Input::NodeLost { slot } => self.node_lost(slot, &mut effects),
            Input::SessionOpened { kernel, owner, gpus, vram_mib, state_mib } => {
                let session = Session::new(owner, gpus, vram_mib, state_mib, now_ms);
                self.open(kernel, session, &mut effects);
            }
            Input::SessionClosed { kernel } => self.close(kernel),
            Input::CellSubmitted { kernel, gpus, priority, deadline_ms } => {
                let cell = Submitted { gpus, priority, deadline_ms, at_ms: now_ms };
                self.submitted(kernel, cell, &mut effects);
            }
            Input::CellEnded { kernel } => self.ended(now_ms, kernel),
            Input::Released { kernel } => self.released(kernel),
            Input::MemberMoved { kernel, from, to } => self.member_moved(kernel, from, to),
            Input::Prefetched { kernel, slot } => self.prefetched(kernel, slot),
            Input::Look => self.look(now_ms, &mut effects),
            // One that was overtaken by an earlier one says nothing of the next.
            Input::Woken if self.woken_at_ms <= now_ms => self.woken_at_ms = 0,
            Input::Woken => {}
        }
        self.dispatch(now_ms, &mut effects);
        self.give_back_empty(&mut effects);
        effects
    }
}

#[cfg(test)]
mod tests;
