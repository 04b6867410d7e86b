//! What it takes to bring a session to GPUs and away from them.

use serde::{Deserialize, Serialize};

/// Times and rates. The defaults are the constants that NotebookOS's code carries, measured by its
/// authors on machines with V100 GPUs, unless a field says otherwise.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Costs {
    /// To open a CUDA context.
    pub cuda_init_ms: u64,
    /// From a host's memory to its GPU.
    pub host_to_device_mib_per_s: u64,
    /// And back.
    pub device_to_host_mib_per_s: u64,
    /// Out of shared storage (NotebookOS's simulated S3).
    pub storage_read_mib_per_s: u64,
    /// Into it.
    pub storage_write_mib_per_s: u64,
    /// A container from nothing: its dependencies are installed.
    pub container_cold_ms: u64,
    /// Between two nodes. Assumed: half of a 25 Gbit/s network card.
    pub peer_mib_per_s: u64,
    /// From bytes to Python objects. Assumed: a copy of large arrays.
    pub restore_mib_per_s: u64,
    /// A started Python process out of a node's stock, told whose it is. Assumed.
    pub process_from_stock_ms: u64,
    /// Until a holder's processes are gone from a GPU. Assumed.
    pub device_clear_ms: u64,
}

impl Default for Costs {
    fn default() -> Self {
        Self {
            cuda_init_ms: 174,
            host_to_device_mib_per_s: 10_592,
            device_to_host_mib_per_s: 11_907,
            storage_read_mib_per_s: 286,
            storage_write_mib_per_s: 72,
            container_cold_ms: 5_000,
            peer_mib_per_s: 1_490,
            restore_mib_per_s: 2_000,
            process_from_stock_ms: 100,
            device_clear_ms: 100,
        }
    }
}

/// How a session comes to the GPUs of its next cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Start {
    /// It holds them still, with its data on them.
    Resident,
    /// Its process is on their node.
    Warm,
    /// Its bytes are on their node, and no process of it.
    Standby,
    /// Its bytes come from another node.
    FromPeer,
    /// Its bytes come from shared storage, into a container that was started before.
    FromStorage,
    /// And into one that was not.
    Cold,
}

impl Costs {
    /// From the grant to the first line of the cell.
    #[must_use]
    pub fn start_ms(&self, start: Start, state_mib: u64) -> u64 {
        let load = self.cuda_init_ms + ms(state_mib, self.host_to_device_mib_per_s);
        let restore = self.process_from_stock_ms + ms(state_mib, self.restore_mib_per_s);
        match start {
            Start::Resident => 0,
            Start::Warm => load,
            Start::Standby => load + restore,
            Start::FromPeer => load + restore + ms(state_mib, self.peer_mib_per_s),
            Start::FromStorage => load + ms(state_mib, self.storage_read_mib_per_s),
            Start::Cold => {
                load + ms(state_mib, self.storage_read_mib_per_s) + self.container_cold_ms
            }
        }
    }

    /// From the end of the cell until its GPUs are free.
    #[must_use]
    pub fn release_ms(&self, state_mib: u64) -> u64 {
        ms(state_mib, self.device_to_host_mib_per_s) + self.device_clear_ms
    }

    /// To write a state to shared storage.
    #[must_use]
    pub fn store_ms(&self, state_mib: u64) -> u64 {
        ms(state_mib, self.storage_write_mib_per_s)
    }

    /// To bring a state to another node.
    #[must_use]
    pub fn copy_ms(&self, state_mib: u64) -> u64 {
        ms(state_mib, self.peer_mib_per_s)
    }
}

fn ms(mib: u64, mib_per_s: u64) -> u64 {
    mib * 1_000 / mib_per_s.max(1)
}
