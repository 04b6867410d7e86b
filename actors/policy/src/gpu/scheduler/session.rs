//! What the scheduler knows of one kernel.

use crate::gpu::{executor::CellWant, fleet::Slot, history::Durations};

/// What a kernel does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Nothing.
    Idle,
    /// Its cell waits for GPUs.
    Waiting,
    /// Its cell has GPUs on this node.
    Running(Slot),
    /// Its cell has ended; the GPUs are being cleared.
    Clearing(Slot),
}

/// Bytes on a node that has no member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copy {
    /// On which.
    pub slot: Slot,
    /// Whether they have arrived.
    pub is_there: bool,
}

/// One kernel.
#[derive(Debug, Clone)]
pub struct Session {
    /// Whose.
    pub owner: u64,
    /// What its cells use unless they say otherwise: what it counts for where it has members.
    pub gpus: u32,
    /// The least memory of each.
    pub vram_mib: u32,
    /// What it takes along when it moves.
    pub state_mib: u64,
    /// Where its members are.
    pub members: Vec<Slot>,
    /// Members that are on their way: from where, to where. They count on both nodes.
    pub moving: Vec<(Slot, Slot)>,
    /// Where its process is.
    pub executor: Option<Slot>,
    /// A node that has its present bytes, or will have them soon, though no member is there.
    pub copy: Option<Copy>,
    /// What it does.
    pub phase: Phase,
    /// Where it holds GPUs between cells.
    pub bound: Option<Slot>,
    pub(super) since_ms: u64,
    pub(super) pauses: Durations,
    pub(super) cells: Durations,
    pub(super) has_run: bool,
    /// What its cell uses, or the one before used.
    pub(super) cell_gpus: u32,
    /// GPUs it holds.
    pub(super) held: u32,
    /// A cell came while the GPUs of the one before were being cleared.
    pub(super) next: Option<Submitted>,
}

/// A cell that wants GPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Submitted {
    pub(super) gpus: u32,
    pub(super) priority: i8,
    pub(super) deadline_ms: Option<u64>,
    pub(super) at_ms: u64,
}

impl Session {
    pub(super) fn new(owner: u64, gpus: u32, vram_mib: u32, state_mib: u64, now_ms: u64) -> Self {
        Self {
            owner,
            gpus,
            vram_mib,
            state_mib,
            members: Vec::new(),
            moving: Vec::new(),
            executor: None,
            copy: None,
            phase: Phase::Idle,
            bound: None,
            since_ms: now_ms,
            pauses: Durations::default(),
            cells: Durations::default(),
            has_run: false,
            cell_gpus: gpus,
            held: 0,
            next: None,
        }
    }

    /// Nodes that have a member, or will have one.
    pub(super) fn present(&self) -> Vec<Slot> {
        self.members.iter().copied().chain(self.moving.iter().map(|it| it.1)).collect()
    }

    /// Nodes from whose disks it can start.
    fn with_bytes(&self) -> Vec<Slot> {
        let copy = self.copy.as_ref().filter(|it| it.is_there && !self.members.contains(&it.slot));
        self.members.iter().copied().chain(copy.map(|it| it.slot)).collect()
    }

    pub(super) fn want(&self) -> CellWant {
        CellWant {
            gpus: self.cell_gpus,
            vram_mib: self.vram_mib,
            executor: self.executor,
            members: self.with_bytes(),
            state_mib: self.state_mib,
        }
    }
}
