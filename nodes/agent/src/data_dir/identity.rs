//! Whose directory it is, and on which machine it was made.

use std::{fs, path::Path};

use callboard_protocol::{DiskId, NodeId};
use serde::{Deserialize, Serialize};

use super::DataDirError;

/// Format of the data directory as a whole.
pub(super) const FORMAT_VERSION: u32 = 1;

/// Which machine this is; stays the same over restarts of the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MachineId(pub String);

impl MachineId {
    /// This machine's: from `/etc/machine-id`, or from its host name where there is none, as in
    /// some containers.
    #[must_use]
    pub fn of_this_machine() -> Self {
        let from_file = ["/etc/machine-id", "/var/lib/dbus/machine-id"]
            .into_iter()
            .filter_map(|path| fs::read_to_string(path).ok())
            .map(|text| text.trim().to_owned())
            .find(|text| !text.is_empty());
        Self(from_file.unwrap_or_else(|| format!("host:{}", host_name())))
    }
}

/// The host's name; `unknown` where it has none.
pub(crate) fn host_name() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    if name.is_empty() { "unknown".to_owned() } else { name.to_owned() }
}

/// The content of `identity.toml`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Identity {
    /// Of the data directory as a whole.
    pub(super) format: u32,
    /// Whose it is.
    pub(super) node: NodeId,
    /// The directory's own identity.
    pub(super) disk: DiskId,
    /// On which machine it is used.
    pub(super) machine: MachineId,
}

/// All that every version of the file has.
#[derive(Deserialize)]
struct AnyVersion {
    format: u32,
}

impl Identity {
    pub(super) fn fresh(node: &NodeId, machine: &MachineId) -> Self {
        Self {
            format: FORMAT_VERSION,
            node: node.clone(),
            disk: DiskId::generate(),
            machine: machine.clone(),
        }
    }

    pub(super) fn parse(path: &Path, text: &str) -> Result<Self, DataDirError> {
        let content = |error: toml::de::Error| DataDirError::Content {
            path: path.to_owned(),
            why: error.message().to_owned(),
        };
        let AnyVersion { format } = toml::from_str(text).map_err(content)?;
        if format != FORMAT_VERSION {
            let (path, known) = (path.to_owned(), FORMAT_VERSION);
            return Err(DataDirError::Format { path, found: format, known });
        }
        toml::from_str(text).map_err(content)
    }

    pub(super) fn to_toml(&self) -> String {
        // Strings and a small number always have a TOML form.
        toml::to_string(self).unwrap_or_default()
    }
}
