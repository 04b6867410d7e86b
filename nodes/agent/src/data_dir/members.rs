//! Which members of Raft groups this directory has held: of the system group, and of kernels.

use std::{collections::BTreeMap, fs, path::PathBuf};

use callboard_protocol::{DiskId, GroupId, KernelId, NodeId, ReplicaId};
use serde::{Deserialize, Serialize};

use super::{DataDir, DataDirError, read_if_there, sync_parent, write_durably};

/// Kernels' members on a disk, each with the group it is of: a kernel that was recovered from a lost
/// majority has another group than before.
pub type NotedMembers = BTreeMap<(KernelId, ReplicaId), GroupId>;

/// This node's member of the system group: the content of `membership.toml`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Membership {
    /// Its id.
    pub member: ReplicaId,
    /// Whether its log was opened once. From then on a missing log is a lost one.
    pub opened: bool,
    /// Who founded the group, if this member is one of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub founders: Vec<Founder>,
}

/// A founder of the system group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Founder {
    /// Its member id.
    pub member: ReplicaId,
    /// The node.
    pub node: NodeId,
    /// The disk it founded with.
    pub disk: DiskId,
}

impl DataDir {
    /// The node's member of the system group, if it has been given one on this disk.
    ///
    /// # Errors
    /// [`DataDirError`] if the file is there and cannot be read.
    pub fn membership(&self) -> Result<Option<Membership>, DataDirError> {
        let path = self.root.join("membership.toml");
        let Some(text) = read_if_there(&path)? else { return Ok(None) };
        toml::from_str(&text)
            .map(Some)
            .map_err(|error| DataDirError::Content { path, why: error.message().to_owned() })
    }

    /// Remembers the node's member of the system group, durably.
    ///
    /// # Errors
    /// [`DataDirError`] if it cannot be written.
    pub fn save_membership(&self, membership: &Membership) -> Result<(), DataDirError> {
        let path = self.root.join("membership.toml");
        let text = toml::to_string(membership).map_err(|error| DataDirError::Content {
            path: path.clone(),
            why: error.to_string(),
        })?;
        write_durably(&path, text.as_bytes())
    }

    /// The kernels' members that have run on this disk and were not removed, each with the group
    /// it is of.
    ///
    /// # Errors
    /// [`DataDirError`] if the directory cannot be read.
    pub fn noted_members(&self) -> Result<NotedMembers, DataDirError> {
        let path = self.root.join("members");
        let fail = |source| DataDirError::io("read", &path, source);
        let mut members = NotedMembers::new();
        for entry in fs::read_dir(&path).map_err(fail)? {
            let name = entry.map_err(fail)?.file_name();
            members.extend(name.to_str().and_then(parse_member));
        }
        Ok(members)
    }

    /// Remembers that a member of a kernel's group runs on this disk, durably.
    ///
    /// # Errors
    /// [`DataDirError`] if that cannot be written.
    pub fn note_member(&self, group: &GroupId, replica: ReplicaId) -> Result<(), DataDirError> {
        let path = self.member_path(group, replica);
        if path.exists() { Ok(()) } else { write_durably(&path, b"") }
    }

    /// Forgets a member of a kernel's group.
    ///
    /// # Errors
    /// [`DataDirError`] if that cannot be written.
    pub fn forget_member(&self, group: &GroupId, replica: ReplicaId) -> Result<(), DataDirError> {
        let path = self.member_path(group, replica);
        match fs::remove_file(&path).and_then(|()| sync_parent(&path)) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                Err(DataDirError::io("remove", &path, source))
            }
            _ => Ok(()),
        }
    }

    fn member_path(&self, group: &GroupId, replica: ReplicaId) -> PathBuf {
        self.root.join("members").join(format!("{group}-{replica}"))
    }
}

fn parse_member(name: &str) -> Option<((KernelId, ReplicaId), GroupId)> {
    let (group, replica) = name.rsplit_once('-')?;
    let group: GroupId = group.parse().ok()?;
    let (kernel, _) = group.kernel()?;
    Some(((kernel, ReplicaId(replica.parse().ok()?)), group))
}
