//! The kernel's log as the machine of its Raft group.

use callboard_policy::terms::{Applied, Entry, KernelLog};
use callboard_protocol::ReplicaId;
use callboard_replicated::Machine;

/// Format of the snapshot; a reader refuses one it does not know.
const SNAPSHOT_VERSION: u16 = 1;

/// [`KernelLog`], replicated.
#[derive(Debug, Clone, Default)]
pub struct KernelMachine(KernelLog);

impl KernelMachine {
    /// The log as applied.
    #[must_use]
    pub fn log(&self) -> &KernelLog {
        &self.0
    }
}

impl Machine for KernelMachine {
    type Command = Entry;
    type Output = Applied;

    fn apply(&mut self, _index: u64, entry: Entry) -> Applied {
        self.0.apply(entry)
    }

    fn snapshot(&self) -> Vec<u8> {
        // Writing plain data to memory cannot fail.
        rmp_serde::to_vec(&(SNAPSHOT_VERSION, &self.0)).unwrap_or_default()
    }

    fn restore(bytes: &[u8]) -> Result<Self, String> {
        let (version, log): (u16, KernelLog) =
            rmp_serde::from_slice(bytes).map_err(|error| error.to_string())?;
        if version == SNAPSHOT_VERSION {
            Ok(Self(log))
        } else {
            Err(format!("snapshot format {version} is not known to this version"))
        }
    }

    /// The executor runs the cells that are accepted.
    fn is_awaited(&self, member: ReplicaId) -> bool {
        self.0.open_term().is_none_or(|open| open.replica == member)
    }
}
