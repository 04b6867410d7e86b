//! Snapshots of one group as files: versioned, checksummed, replaced as a whole.

use std::{io, sync::Arc};

use callboard_protocol::GroupId;

use super::types::{SnapshotMeta, decode, encode};
use crate::disk::Disk;

const MAGIC: [u8; 8] = *b"CBSNAP\0\x01";
/// Where the version is in the magic.
const VERSION_AT: usize = 7;
const HEADER_LENGTH: usize = 20;

/// A snapshot as read from disk.
#[derive(Debug, Clone)]
pub(crate) struct StoredSnapshot {
    pub meta: SnapshotMeta,
    pub bytes: Vec<u8>,
}

/// The snapshot files of one group.
#[derive(Debug, Clone)]
pub(crate) struct SnapshotFiles {
    disk: Arc<dyn Disk>,
    directory: String,
}

/// What reading found.
#[derive(Debug)]
pub(crate) enum Newest {
    /// No snapshot was ever written.
    None,
    /// The newest one is whole.
    Whole(Box<StoredSnapshot>),
    /// The newest one is damaged.
    Damaged(String),
}

fn file_bytes(meta: &SnapshotMeta, data: &[u8]) -> io::Result<Vec<u8>> {
    let meta = encode(meta).map_err(io::Error::other)?;
    let mut bytes = Vec::with_capacity(HEADER_LENGTH + meta.len() + data.len());
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&(meta.len() as u64).to_le_bytes());
    bytes.extend_from_slice(&meta);
    bytes.extend_from_slice(data);
    let crc = crc32c::crc32c(&bytes[12..]);
    bytes[8..12].copy_from_slice(&crc.to_le_bytes());
    Ok(bytes)
}

/// The version of a whole snapshot that a later version of the program wrote.
fn newer(bytes: &[u8]) -> Option<u8> {
    let crc = u32::from_le_bytes(bytes.get(8..12)?.try_into().ok()?);
    let version = bytes[VERSION_AT];
    let is_ours = bytes[..VERSION_AT] == MAGIC[..VERSION_AT];
    let is_whole = crc32c::crc32c(&bytes[12..]) == crc;
    // The checksum does not cover the version. One flipped bit turns 1 into 0, 3, 5, 9 and so on,
    // which are damage and are no versions to come; 2 is the next.
    let is_version = (version ^ MAGIC[VERSION_AT]).count_ones() > 1;
    (is_ours && is_whole && is_version).then_some(version)
}

fn parse(bytes: &[u8]) -> Option<StoredSnapshot> {
    if bytes.get(..8)? != MAGIC {
        return None;
    }
    let crc = u32::from_le_bytes(bytes.get(8..12)?.try_into().ok()?);
    if crc32c::crc32c(bytes.get(12..)?) != crc {
        return None;
    }
    let length = u64::from_le_bytes(bytes.get(12..HEADER_LENGTH)?.try_into().ok()?);
    let (meta, data) =
        bytes.get(HEADER_LENGTH..)?.split_at_checked(usize::try_from(length).ok()?)?;
    Some(StoredSnapshot { meta: decode(meta).ok()?, bytes: data.to_vec() })
}

impl SnapshotFiles {
    pub(crate) fn new(disk: Arc<dyn Disk>, group: &GroupId) -> Self {
        Self { disk, directory: format!("groups/{group}") }
    }

    fn names(&self) -> io::Result<Vec<String>> {
        let mut names = self.disk.list(&self.directory)?;
        names.retain(|name| name.starts_with("snap-") && name.ends_with(".bin"));
        Ok(names)
    }

    /// The newest snapshot. Blocks.
    pub(crate) fn newest(&self) -> io::Result<Newest> {
        let Some(name) = self.names()?.pop() else { return Ok(Newest::None) };
        let path = format!("{}/{name}", self.directory);
        let bytes = self.disk.read(&path)?;
        if let Some(version) = newer(&bytes) {
            return Err(io::Error::other(format!(
                "{path} has format {version}, which a newer callboard wrote: start this node with \
                 that version; nothing was changed"
            )));
        }
        Ok(match parse(&bytes) {
            Some(snapshot) => Newest::Whole(Box::new(snapshot)),
            None => Newest::Damaged(path),
        })
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        if self.disk.virtual_sync_time().is_some() {
            return work(self);
        }
        let files = self.clone();
        tokio::task::spawn_blocking(move || work(&files)).await.map_err(io::Error::other)?
    }

    pub(crate) async fn read_newest(&self) -> io::Result<Newest> {
        self.run(Self::newest).await
    }

    /// Writes a snapshot durably, then removes the older ones.
    pub(crate) async fn write(&self, meta: SnapshotMeta, data: Vec<u8>) -> io::Result<()> {
        self.run(move |files| {
            let index = meta.last_log_id.map_or(0, |id| id.index);
            let name = format!("snap-{index:020}.bin");
            let bytes = file_bytes(&meta, &data)?;
            files.disk.write_atomically(&format!("{}/{name}", files.directory), &bytes)?;
            for old in files.names()?.into_iter().filter(|other| *other < name) {
                files.disk.remove(&format!("{}/{old}", files.directory))?;
            }
            Ok(())
        })
        .await
    }

    /// Removes everything of the group, its directory last.
    pub(crate) async fn erase(&self) -> io::Result<()> {
        self.run(|files| {
            for name in files.disk.list(&files.directory)? {
                files.disk.remove(&format!("{}/{name}", files.directory))?;
            }
            files.disk.remove_directory(&files.directory)
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::sim_disk::SimDisk;

    fn files(version: u8) -> (SimDisk, SnapshotFiles) {
        let disk = SimDisk::new(Duration::ZERO);
        let mut bytes = file_bytes(&SnapshotMeta::default(), b"data").unwrap();
        bytes[VERSION_AT] = version;
        disk.write_atomically("groups/g/snap-00000000000000000001.bin", &bytes).unwrap();
        let group = GroupId::new("g").unwrap();
        (disk.clone(), SnapshotFiles::new(Arc::new(disk), &group))
    }

    #[test]
    fn a_snapshot_of_a_newer_version_is_refused_and_one_flipped_bit_is_damage() {
        assert!(matches!(files(1).1.newest().unwrap(), Newest::Whole(_)));
        let error = files(2).1.newest().unwrap_err().to_string();
        assert!(error.contains("format 2, which a newer callboard wrote"), "{error}");
        for bit in 0..8 {
            let (disk, files) = files(1);
            let before = disk.files();
            disk.flip_bit("groups/g/snap-00000000000000000001.bin", VERSION_AT, bit);
            assert!(matches!(files.newest().unwrap(), Newest::Damaged(_)), "bit {bit}");
            assert_ne!(before, disk.files());
        }
    }

    #[tokio::test]
    async fn an_erased_group_leaves_nothing_behind() {
        let root = tempfile::tempdir().unwrap();
        let disk = Arc::new(crate::RealDisk::new(root.path()));
        let files = SnapshotFiles::new(disk, &GroupId::new("g").unwrap());
        files.write(SnapshotMeta::default(), b"data".to_vec()).await.unwrap();
        files.erase().await.unwrap();
        files.erase().await.unwrap();
        assert_eq!(std::fs::read_dir(root.path().join("groups")).unwrap().count(), 0);
    }
}
