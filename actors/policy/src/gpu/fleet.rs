//! The nodes and their GPUs, indexed so that one decision costs a logarithm of their number.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use callboard_protocol::KernelId;
use serde::{Deserialize, Serialize};

/// A node's number in a fleet; never given twice.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Slot(pub u32);

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node {}", self.0)
    }
}

/// What a node is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NodeShape {
    /// Its GPUs.
    pub gpus: u32,
    /// Memory of each of them.
    pub vram_mib: u32,
}

/// Whether a node takes new cells and members.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeState {
    /// It does.
    Open,
    /// It does not; it goes once nothing is left on it.
    Draining,
    /// It takes nothing but the next cell of this kernel, which has waited too long.
    Kept(KernelId),
}

/// One node as the policies see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FleetNode {
    /// What it is made of.
    pub shape: NodeShape,
    /// Whether it takes anything new.
    pub state: NodeState,
    /// GPUs that no cell holds and that are in order.
    pub free: u32,
    /// GPUs held by cells. `free + held` is less than the shape's where devices are out of order.
    pub held: u32,
    /// The sum of what the kernels with a member here use when they run.
    pub subscribed: u32,
    /// Members placed here.
    pub members: u32,
    /// Since when it is up.
    pub since_ms: u64,
    /// Thousandths of GPUs that idle sessions whose processes are here will want soon, as far as
    /// their histories tell.
    #[serde(default)]
    pub claimed_milli: u32,
}

impl FleetNode {
    fn key(&self, slot: Slot) -> Key {
        let per_mille = u64::from(self.subscribed) * 1_000 / u64::from(self.shape.gpus.max(1));
        let pending = self.subscribed.saturating_sub(self.held);
        (u32::try_from(per_mille).unwrap_or(u32::MAX), Reverse(pending), slot)
    }

    fn bucket(&self) -> (u32, u32) {
        (self.shape.vram_mib, self.free)
    }

    /// GPUs in order, held or not.
    #[must_use]
    pub fn usable(&self) -> u32 {
        self.free + self.held
    }
}

/// Subscription in thousandths, pending GPUs, number: NotebookOS's order of hosts with equally many
/// idle GPUs (`Host.Compare`).
type Key = (u32, Reverse<u32>, Slot);

/// All nodes.
#[derive(Debug, Clone, Default)]
pub struct Fleet {
    nodes: BTreeMap<Slot, FleetNode>,
    /// Open nodes by memory of a GPU and free GPUs.
    open: BTreeMap<(u32, u32), BTreeSet<Key>>,
    /// Open nodes by subscription.
    subscription: BTreeSet<Key>,
    held: u64,
    usable: u64,
    version: u64,
}

impl Fleet {
    /// One node.
    #[must_use]
    pub fn get(&self, slot: Slot) -> Option<&FleetNode> {
        self.nodes.get(&slot)
    }

    /// All nodes in order of number.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (Slot, &FleetNode)> {
        self.nodes.iter().map(|(slot, node)| (*slot, node))
    }

    /// How many nodes there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// How many nodes take anything new.
    #[must_use]
    pub fn open_len(&self) -> usize {
        self.subscription.len()
    }

    /// GPUs held by cells.
    #[must_use]
    pub fn held(&self) -> u64 {
        self.held
    }

    /// GPUs in order.
    #[must_use]
    pub fn usable(&self) -> u64 {
        self.usable
    }

    /// Grows with every change; a decision names the one it was made on.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// A node is up, with nothing on it.
    pub fn add(&mut self, slot: Slot, shape: NodeShape, since_ms: u64) {
        let node = FleetNode {
            shape,
            state: NodeState::Open,
            free: shape.gpus,
            held: 0,
            subscribed: 0,
            members: 0,
            since_ms,
            claimed_milli: 0,
        };
        self.remove(slot);
        self.usable += u64::from(node.usable());
        self.insert(slot, node);
    }

    /// A node is gone, with all that was on it.
    pub fn remove(&mut self, slot: Slot) -> Option<FleetNode> {
        let node = self.take(slot)?;
        self.held -= u64::from(node.held);
        self.usable -= u64::from(node.usable());
        Some(node)
    }

    /// Opens a node or closes it.
    pub fn set_state(&mut self, slot: Slot, state: NodeState) {
        self.change(slot, |node| node.state = state);
    }

    /// A cell takes GPUs: all of them or, if there are too few, none.
    #[must_use]
    pub fn hold(&mut self, slot: Slot, gpus: u32) -> bool {
        let fits = self.nodes.get(&slot).is_some_and(|node| node.free >= gpus);
        if fits {
            self.change(slot, |node| {
                node.free -= gpus;
                node.held += gpus;
            });
            self.held += u64::from(gpus);
        }
        fits
    }

    /// A cell gives its GPUs back.
    pub fn release(&mut self, slot: Slot, gpus: u32) {
        let held = self.nodes.get(&slot).map_or(0, |node| node.held.min(gpus));
        self.change(slot, |node| {
            node.held -= held;
            node.free += held;
        });
        self.held -= u64::from(held);
    }

    /// A device that nobody holds is out of order, or in order again.
    pub fn set_in_order(&mut self, slot: Slot, in_order: bool) {
        let Some(node) = self.nodes.get(&slot) else { return };
        if in_order && node.usable() < node.shape.gpus {
            self.change(slot, |node| node.free += 1);
            self.usable += 1;
        } else if !in_order && node.free > 0 {
            self.change(slot, |node| node.free -= 1);
            self.usable -= 1;
        }
    }

    /// A kernel that uses so many GPUs when it runs gets a member here.
    pub fn subscribe(&mut self, slot: Slot, gpus: u32) {
        self.change(slot, |node| {
            node.subscribed += gpus;
            node.members += 1;
        });
    }

    /// It has none here any more.
    pub fn unsubscribe(&mut self, slot: Slot, gpus: u32) {
        self.change(slot, |node| {
            node.subscribed = node.subscribed.saturating_sub(gpus);
            node.members = node.members.saturating_sub(1);
        });
    }

    /// What idle sessions will want soon; replaces what was said before of all nodes.
    pub fn claim(&mut self, claims: &BTreeMap<Slot, f64>) {
        for (slot, node) in &mut self.nodes {
            node.claimed_milli = claims.get(slot).map_or(0, |gpus| (gpus * 1_000.0) as u32);
        }
    }

    /// Open nodes that have so many GPUs free, those with the fewest first: what is left over on
    /// them is the least.
    pub fn tightest(&self, gpus: u32, vram_mib: u32) -> impl Iterator<Item = Slot> {
        let mut fitting: Vec<_> = self.fitting(gpus, vram_mib).collect();
        fitting.sort_by_key(|((_, free), _)| *free);
        fitting.into_iter().flat_map(|(_, keys)| keys.iter().map(|(_, _, slot)| *slot))
    }

    /// Open nodes with that much memory per GPU, a set for each number of free ones, those with the
    /// most free first; in a set the least subscribed first.
    pub fn least_loaded(&self, vram_mib: u32) -> Vec<impl Iterator<Item = Slot>> {
        let mut fitting: Vec<_> = self.fitting(0, vram_mib).collect();
        fitting.sort_by_key(|((_, free), _)| Reverse(*free));
        fitting.into_iter().map(|(_, keys)| keys.iter().map(|(_, _, slot)| *slot)).collect()
    }

    /// Open nodes, the least subscribed first.
    pub fn least_subscribed(&self) -> impl Iterator<Item = Slot> {
        self.subscription.iter().map(|(_, _, slot)| *slot)
    }

    /// How many open nodes have so many GPUs free.
    #[must_use]
    pub fn count_fitting(&self, gpus: u32, vram_mib: u32) -> usize {
        self.fitting(gpus, vram_mib).map(|(_, keys)| keys.len()).sum()
    }

    /// How many open nodes have GPUs of so much memory, however many are free.
    #[must_use]
    pub fn count_open(&self, vram_mib: u32) -> usize {
        self.count_fitting(0, vram_mib)
    }

    /// The most GPUs that any node could give to one cell.
    #[must_use]
    pub fn widest(&self) -> u32 {
        self.nodes.values().map(FleetNode::usable).max().unwrap_or(0)
    }

    fn fitting(
        &self,
        gpus: u32,
        vram_mib: u32,
    ) -> impl Iterator<Item = ((u32, u32), &BTreeSet<Key>)> {
        self.open
            .range((vram_mib, 0)..)
            .filter(move |((_, free), _)| *free >= gpus)
            .map(|(bucket, keys)| (*bucket, keys))
    }

    fn change(&mut self, slot: Slot, change: impl FnOnce(&mut FleetNode)) {
        if let Some(mut node) = self.take(slot) {
            change(&mut node);
            self.insert(slot, node);
        }
    }

    fn take(&mut self, slot: Slot) -> Option<FleetNode> {
        let node = self.nodes.remove(&slot)?;
        let key = node.key(slot);
        if self.subscription.remove(&key)
            && let Some(keys) = self.open.get_mut(&node.bucket())
        {
            keys.remove(&key);
            if keys.is_empty() {
                self.open.remove(&node.bucket());
            }
        }
        self.version += 1;
        Some(node)
    }

    fn insert(&mut self, slot: Slot, node: FleetNode) {
        if node.state == NodeState::Open {
            let key = node.key(slot);
            self.subscription.insert(key);
            self.open.entry(node.bucket()).or_default().insert(key);
        }
        self.nodes.insert(slot, node);
        self.version += 1;
    }
}
