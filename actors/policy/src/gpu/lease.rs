//! Who holds the GPUs of one node: a book without I/O, which the node keeps in its lease file.
//!
//! A kernel first has devices *tentatively*, for a short time: that holds them and starts nothing.
//! When its cell is due the lease becomes *active*, and from then on time alone never ends it. After
//! the cell the devices are *being cleared* until no process is seen on them; only then are they free.
//! Several devices are given together or not at all.

use std::{collections::BTreeMap, fmt};

use callboard_protocol::{KernelId, Term};
use serde::{Deserialize, Serialize};

use super::topology::{self, FreeDevice};

/// How long a tentative lease lasts if nothing is heard of its kernel.
pub const TENTATIVE_MS: u64 = 5_000;

/// A device as its probe describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Its index on the node.
    pub index: u32,
    /// Its name for ever, such as `GPU-5f…`.
    pub uuid: String,
    /// Its memory.
    pub vram_mib: u32,
    /// Devices with the same number have fast links between them.
    pub island: u32,
}

/// What a device is to whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lease {
    /// Nobody's.
    Free,
    /// A kernel's whose cell is not due yet.
    Tentative {
        /// Whose.
        kernel: KernelId,
        /// Its executor term.
        term: Term,
        /// Until when, on the node's monotonic clock.
        until_ms: u64,
    },
    /// A kernel's whose cell runs.
    Active {
        /// Whose.
        kernel: KernelId,
        /// Its executor term.
        term: Term,
    },
    /// Nobody's any more; processes of the last holder may still be on it.
    Clearing {
        /// Whose it was.
        kernel: KernelId,
    },
}

impl Lease {
    /// Whose it is or was.
    #[must_use]
    pub fn kernel(&self) -> Option<KernelId> {
        match *self {
            Self::Free => None,
            Self::Tentative { kernel, .. }
            | Self::Active { kernel, .. }
            | Self::Clearing { kernel } => Some(kernel),
        }
    }
}

/// One device's line in the book.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The device.
    pub device: Device,
    /// Whose it is.
    pub lease: Lease,
    /// Why it is given to nobody new, if it is out of order.
    pub fault: Option<String>,
    /// Processes that were seen on it although nobody holds it.
    pub strangers: u32,
}

impl Entry {
    fn can_be_given(&self, vram_mib: u32) -> bool {
        self.lease == Lease::Free
            && self.fault.is_none()
            && self.strangers == 0
            && self.device.vram_mib >= vram_mib
    }
}

/// Why devices were not given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum LeaseError {
    /// Too few are free.
    #[error("{0}")]
    Shortage(Shortage),
    /// The tentative lease is not there: it ran out, or was another term's.
    #[error(
        "kernel {kernel} has no tentative lease in term {term}: it ran out or belongs to another \
         term; ask for the GPUs again"
    )]
    NotTentative {
        /// Which kernel.
        kernel: KernelId,
        /// Which term.
        term: Term,
    },
    /// The kernel has devices, and not those that it asks for.
    #[error(
        "kernel {kernel} holds {held} GPUs of this node already: release them before asking for \
         {wanted}"
    )]
    Holds {
        /// Which kernel.
        kernel: KernelId,
        /// How many it has.
        held: usize,
        /// How many it wants.
        wanted: usize,
    },
}

/// Too few devices are free.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shortage {
    /// How many were asked for.
    pub wanted: usize,
    /// How many could be given.
    pub free: usize,
    /// How many the node has in order.
    pub in_order: usize,
    /// Who has how many.
    pub holders: BTreeMap<KernelId, usize>,
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { wanted, free, in_order, holders } = self;
        if wanted > in_order {
            return write!(
                f,
                "this node has {in_order} GPUs in order that would do, not {wanted}: ask for fewer"
            );
        }
        write!(f, "{free} of {wanted} GPUs are free")?;
        let list = holders.iter().map(|(kernel, count)| format!("{kernel} ({count})"));
        let list: Vec<String> = list.collect();
        if list.is_empty() { Ok(()) } else { write!(f, "; held by {}", list.join(", ")) }
    }
}

/// The book of one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leases {
    /// The boot of the machine in which it was written.
    boot: String,
    entries: Vec<Entry>,
}

impl Leases {
    /// Everything is free.
    #[must_use]
    pub fn new(boot: impl Into<String>, devices: Vec<Device>) -> Self {
        let entry = |device| Entry { device, lease: Lease::Free, fault: None, strangers: 0 };
        Self { boot: boot.into(), entries: devices.into_iter().map(entry).collect() }
    }

    /// The book as it was found in a lease file, and what had to be changed in it, a sentence each.
    ///
    /// After a boot of the machine nothing is held: its processes are gone. Otherwise an active lease
    /// stands while its kernel's process lives, and is being cleared if it does not; a tentative one
    /// is dropped, its kernel asks again.
    #[must_use]
    pub fn restored(
        self,
        boot: &str,
        devices: Vec<Device>,
        is_alive: &dyn Fn(KernelId) -> bool,
    ) -> (Self, Vec<String>) {
        let mut notes = Vec::new();
        let is_same_boot = self.boot == boot;
        if !is_same_boot {
            notes.push("the lease file is of an earlier boot: no GPU is held".to_owned());
        }
        let mut old: BTreeMap<String, Entry> =
            self.entries.into_iter().map(|it| (it.device.uuid.clone(), it)).collect();
        let mut book = Self::new(boot, devices);
        for entry in &mut book.entries {
            let Some(before) = old.remove(&entry.device.uuid) else { continue };
            if !is_same_boot {
                continue;
            }
            entry.lease = match before.lease {
                Lease::Free | Lease::Tentative { .. } => Lease::Free,
                Lease::Active { kernel, .. } if !is_alive(kernel) => {
                    notes.push(format!(
                        "GPU {} was held by kernel {kernel}, which is gone: it is being cleared",
                        entry.device.index
                    ));
                    Lease::Clearing { kernel }
                }
                lease => lease,
            };
        }
        for gone in old.into_values().filter(|_| is_same_boot) {
            let holder = gone.lease.kernel().map_or_else(
                || "nobody held it".to_owned(),
                |kernel| format!("kernel {kernel} held it"),
            );
            notes.push(format!(
                "GPU {} ({}) is not there any more; {holder}",
                gone.device.index, gone.device.uuid
            ));
        }
        (book, notes)
    }

    /// Every device.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The devices that a kernel has, tentatively or actively, in order of index.
    #[must_use]
    pub fn of(&self, kernel: KernelId) -> Vec<u32> {
        let is_held = |it: &&Entry| {
            it.lease.kernel() == Some(kernel) && !matches!(it.lease, Lease::Clearing { .. })
        };
        self.entries.iter().filter(is_held).map(|it| it.device.index).collect()
    }

    /// Gives a kernel devices tentatively; asking again in the same term gives the same ones.
    ///
    /// # Errors
    /// [`LeaseError::Shortage`] if too few are free, [`LeaseError::Holds`] if it has others. Nothing
    /// is changed then.
    pub fn ask(
        &mut self,
        kernel: KernelId,
        term: Term,
        gpus: usize,
        vram_mib: u32,
        now_ms: u64,
    ) -> Result<Vec<u32>, LeaseError> {
        self.expire(now_ms);
        let until_ms = now_ms + TENTATIVE_MS;
        let held = self.of(kernel);
        if !held.is_empty() {
            let is_same = held.len() == gpus
                && self
                    .each(kernel)
                    .all(|it| matches!(it.lease, Lease::Tentative { term: of, .. } if of == term));
            if !is_same {
                return Err(LeaseError::Holds { kernel, held: held.len(), wanted: gpus });
            }
            self.set(&held, Lease::Tentative { kernel, term, until_ms });
            return Ok(held);
        }
        let can_be_given = |it: &&Entry| it.can_be_given(vram_mib);
        let free: Vec<FreeDevice> = self
            .entries
            .iter()
            .filter(can_be_given)
            .map(|it| FreeDevice { index: it.device.index, island: it.device.island })
            .collect();
        let Some(chosen) = topology::choose(&free, gpus) else {
            return Err(LeaseError::Shortage(self.shortage(gpus, free.len(), vram_mib)));
        };
        self.set(&chosen, Lease::Tentative { kernel, term, until_ms });
        Ok(chosen)
    }

    /// The kernel's cell is due: what it has tentatively becomes its own.
    ///
    /// # Errors
    /// [`LeaseError::NotTentative`] if it has nothing tentatively in this term.
    pub fn activate(
        &mut self,
        kernel: KernelId,
        term: Term,
        now_ms: u64,
    ) -> Result<Vec<u32>, LeaseError> {
        self.expire(now_ms);
        let held = self.of(kernel);
        let is_ready = self.each(kernel).all(|it| {
            matches!(it.lease, Lease::Tentative { term: of, .. } | Lease::Active { term: of, .. } if of == term)
        });
        if held.is_empty() || !is_ready {
            return Err(LeaseError::NotTentative { kernel, term });
        }
        self.set(&held, Lease::Active { kernel, term });
        Ok(held)
    }

    /// The kernel's cell is over, or its process is gone. What it had tentatively is free, what was
    /// its own is being cleared; the indexes of that.
    pub fn release(&mut self, kernel: KernelId) -> Vec<u32> {
        let mut clearing = Vec::new();
        for entry in &mut self.entries {
            match entry.lease {
                Lease::Tentative { kernel: of, .. } if of == kernel => entry.lease = Lease::Free,
                Lease::Active { kernel: of, .. } if of == kernel => {
                    entry.lease = Lease::Clearing { kernel };
                    clearing.push(entry.device.index);
                }
                _ => {}
            }
        }
        clearing
    }

    /// How many processes the probe sees on a device. One that is being cleared and has none is free;
    /// one that is nobody's and has some is not given.
    pub fn observe(&mut self, index: u32, processes: u32) {
        let Some(entry) = self.entries.iter_mut().find(|it| it.device.index == index) else {
            return;
        };
        match entry.lease {
            Lease::Clearing { .. } if processes == 0 => entry.lease = Lease::Free,
            Lease::Free => entry.strangers = processes,
            _ => {}
        }
    }

    /// A device is out of order, or in order again. Whoever holds it keeps it.
    pub fn set_fault(&mut self, index: u32, fault: Option<String>) {
        if let Some(entry) = self.entries.iter_mut().find(|it| it.device.index == index) {
            entry.fault = fault;
        }
    }

    /// Ends tentative leases that have run out. Nothing else ends by time.
    pub fn expire(&mut self, now_ms: u64) {
        for entry in &mut self.entries {
            if matches!(entry.lease, Lease::Tentative { until_ms, .. } if until_ms <= now_ms) {
                entry.lease = Lease::Free;
            }
        }
    }

    fn each(&self, kernel: KernelId) -> impl Iterator<Item = &Entry> {
        let is_held = move |it: &&Entry| {
            it.lease.kernel() == Some(kernel) && !matches!(it.lease, Lease::Clearing { .. })
        };
        self.entries.iter().filter(is_held)
    }

    fn set(&mut self, indexes: &[u32], lease: Lease) {
        for entry in self.entries.iter_mut().filter(|it| indexes.contains(&it.device.index)) {
            entry.lease = lease;
        }
    }

    fn shortage(&self, wanted: usize, free: usize, vram_mib: u32) -> Shortage {
        let would_do = |it: &&Entry| it.fault.is_none() && it.device.vram_mib >= vram_mib;
        let mut holders = BTreeMap::new();
        for kernel in self.entries.iter().filter_map(|it| it.lease.kernel()) {
            *holders.entry(kernel).or_default() += 1;
        }
        Shortage { wanted, free, in_order: self.entries.iter().filter(would_do).count(), holders }
    }
}

#[cfg(test)]
mod tests;
