//! What one member of a group has on this disk, without the group.
//!
//! For a group whose majority is lost: the machine as its log here makes it. Every entry counts,
//! also those at the end that this member does not know to be committed, since any of them may have
//! been acknowledged by it and a member that is lost. Raft would decide the same if this member
//! could win an election.

use bytes::Bytes;
use callboard_protocol::GroupId;
use openraft::EntryPayload;

use crate::{
    machine::Machine,
    options::OpenError,
    raft::types::{Entry, decode},
    replicator::Replicator,
};

/// What one member has.
#[derive(Debug)]
pub struct Salvaged<M> {
    /// The machine after every entry of the log.
    pub machine: M,
    /// Index of the last entry, if there is one.
    pub last_log: Option<u64>,
}

impl Replicator {
    /// Reads what this disk has of a group. Nothing is changed; the group should not be open.
    ///
    /// # Errors
    /// [`OpenError::Corrupt`] if the log or its snapshot is damaged or missing.
    pub async fn salvage<M: Machine>(
        &self,
        group: &GroupId,
        initial: M,
    ) -> Result<Salvaged<M>, OpenError> {
        let corrupt = |what: String| OpenError::Corrupt { group: group.clone(), what };
        if self.corrupt_groups().contains(group) {
            return Err(corrupt("the write-ahead log".to_owned()));
        }
        if !self.known_groups().contains(group) {
            return Err(corrupt("it has no log here".to_owned()));
        }
        let (mut machine, meta) = self.restore(group, &self.snapshot_files(group), initial).await?;
        let covered = meta.and_then(|meta| meta.last_log_id).map(|id| id.index);
        let from = covered.map_or(0, |covered| covered + 1);
        let entries: Vec<Bytes> = self.wal().group(group, |log| {
            log.entries.range(from..).map(|(_, slot)| slot.bytes.clone()).collect()
        });
        let mut last_log = covered;
        for bytes in &entries {
            let entry: Entry = decode(bytes).map_err(|error| corrupt(error.to_string()))?;
            last_log = Some(entry.log_id.index);
            let EntryPayload::Normal(batch) = entry.payload else { continue };
            // A batch that was meant for another term has no effect anywhere.
            if batch.term != entry.log_id.leader_id.term {
                continue;
            }
            for command in &batch.commands {
                let command = decode(command).map_err(|error| corrupt(error.to_string()))?;
                let _told_before = machine.apply(entry.log_id.index, command);
            }
        }
        Ok(Salvaged { machine, last_log })
    }
}
