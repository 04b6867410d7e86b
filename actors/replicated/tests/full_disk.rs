//! A disk that is really full: a small file system in memory. Needs root to mount it.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::{path::Path, process::Command};

use bytes::Bytes;
use callboard_protocol::{GroupId, OwnerId};
use callboard_replicated::{ChunkId, ChunkStore, Disk, RealDisk, Wal, WalOptions, wal::Record};
use std::sync::Arc;

struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mounted(mib: u32) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let size = format!("size={mib}m");
        let mount = ["-t", "tmpfs", "-o", &size, "callboard-test"];
        let mounted = Command::new("mount").args(mount).arg(directory.path()).status().unwrap();
        assert!(mounted.success(), "mount a tmpfs: this test needs root");
        Self(directory)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Fills it up but for `left` bytes.
    fn fill(&self, left: usize) {
        let path = self.path().join("filler");
        let mut bytes = 64 << 20;
        while bytes >= 4096 {
            let old = std::fs::metadata(&path).map_or(0, |metadata| metadata.len());
            let file = std::fs::OpenOptions::new().create(true).append(true).open(&path).unwrap();
            let grown = std::io::Write::write_all(&mut &file, &vec![0; bytes]);
            if grown.is_err() {
                file.set_len(old).unwrap();
                bytes /= 2;
            }
        }
        let length = std::fs::metadata(&path).unwrap().len();
        std::fs::File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(length.saturating_sub(left as u64))
            .unwrap();
    }

    fn free(&self) {
        std::fs::remove_file(self.path().join("filler")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

fn chunks(count: usize) -> Vec<(ChunkId, Bytes)> {
    let chunk = |number: usize| Bytes::from(vec![number as u8; 100_000]);
    (1..=count).map(chunk).map(|bytes| (ChunkId::of(&bytes), bytes)).collect()
}

#[tokio::test]
#[ignore = "needs root: mounts a tmpfs"]
async fn chunks_on_a_full_disk_are_refused_and_stored_once_there_is_room() {
    let disk = SmallDisk::mounted(8);
    let store = ChunkStore::open(&disk.path().join("chunks")).unwrap();
    let owner = OwnerId::default();
    store.put_many(&owner, chunks(2)).await.unwrap();
    disk.fill(250_000);
    let error = store.put_many(&owner, chunks(10)).await.unwrap_err();
    assert!(error.is_no_room() && error.to_string().contains("free space on it"), "{error}");
    for (id, bytes) in chunks(2) {
        assert_eq!(store.get(&owner, id).await.unwrap().unwrap(), bytes);
    }
    assert_eq!(*store.failed().borrow(), None);
    disk.free();
    store.put_many(&owner, chunks(10)).await.unwrap();
    drop(store);
    let store = ChunkStore::open(&disk.path().join("chunks")).unwrap();
    assert_eq!(store.usage()[0].chunks, 10);
}

#[test]
#[ignore = "needs root: mounts a tmpfs"]
fn an_append_that_finds_no_room_leaves_nothing_and_may_be_tried_again() {
    let small = SmallDisk::mounted(4);
    let disk = RealDisk::new(small.path());
    let mut file = disk.create("log", b"head").unwrap();
    file.append(b"one").unwrap();
    small.fill(8192);
    let error = file.append(&vec![7; 100_000]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
    assert_eq!(disk.read("log").unwrap(), b"headone");
    small.free();
    file.append(b"two").unwrap();
    file.sync().unwrap();
    assert_eq!(disk.read("log").unwrap(), b"headonetwo");
    let mut file = disk.open_cut("log", 7, b"").unwrap();
    file.append(b"three").unwrap();
    assert_eq!(disk.read("log").unwrap(), b"headonethree");
}

#[tokio::test]
#[ignore = "needs root: mounts a tmpfs"]
async fn a_log_on_a_full_disk_fails_for_good_keeps_what_was_synced_and_opens_with_room() {
    let small = SmallDisk::mounted(4);
    let group = GroupId::new("kernel-1").unwrap();
    let disk: Arc<dyn Disk> = Arc::new(RealDisk::new(small.path()));
    let (wal, _) = Wal::open(disk.clone(), WalOptions::default()).unwrap();
    let record = |bytes: usize| Record::Entry { index: 0, bytes: vec![1; bytes].into() };
    wal.append(&group, [record(10)]).synced().await.unwrap();
    small.fill(4096);
    wal.append(&group, [record(200_000)]).synced().await.unwrap_err();
    let why = wal.progress().borrow().failed.clone().unwrap().to_string();
    assert!(why.contains("write failed"), "{why}");
    drop(wal);
    small.free();
    let (wal, recovered) = Wal::open(disk, WalOptions::default()).unwrap();
    assert!(recovered.corrupt_groups.is_empty());
    assert_eq!(wal.group_ids(), [group]);
}
