//! The end of the log: what was promised there is never cut in silence, whatever became of it.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;

use super::{
    Record, SEGMENT_HEADER_LENGTH, Wal, WalError, WalOptions, record,
    tests::{content, disk, entry, group, on_virtual_time, open, segment},
};
use crate::{Disk, disk::RealDisk, sim_disk::SimDisk};

/// Three synced batches of two groups; the last is of `b`. The process still runs.
async fn three_batches() -> (SimDisk, Wal) {
    let disk = disk();
    let (wal, _) = open(&disk, WalOptions::default());
    wal.append(&group("a"), [entry(0, 1)]).synced().await.unwrap();
    wal.append(&group("b"), [entry(0, 2)]).synced().await.unwrap();
    wal.append(&group("b"), [entry(1, 3)]).synced().await.unwrap();
    (disk, wal)
}

/// Where the last of the three begins.
fn last_record(bytes: &[u8]) -> usize {
    SEGMENT_HEADER_LENGTH + (bytes.len() - SEGMENT_HEADER_LENGTH) / 3 * 2
}

async fn rot_is_reported(stop: impl Fn(&SimDisk) -> SimDisk, rest: Duration) {
    let length = segment(&three_batches().await.0).1.len();
    for at in last_record(&vec![0; length])..length {
        let (disk, _wal) = three_batches().await;
        tokio::time::sleep(rest).await;
        let (path, _) = segment(&disk);
        let disk = stop(&disk);
        disk.flip_bit(&path, at, (at % 8) as u8);
        let (_, recovered) = open(&disk, WalOptions::default());
        assert!(recovered.corrupt_groups.contains(&group("b")), "byte {at}");
        assert_eq!(recovered.cut_bytes, 0, "byte {at}");
    }
}

#[test]
fn rot_in_the_last_batch_that_was_synced_is_no_torn_tail_after_a_kill() {
    on_virtual_time(rot_is_reported(SimDisk::kill, Duration::ZERO));
}

#[test]
fn rot_in_the_last_batch_that_was_synced_is_no_torn_tail_after_a_power_cut_in_a_pause() {
    on_virtual_time(rot_is_reported(|disk| disk.crash(0), Duration::from_secs(3)));
}

#[test]
fn a_tail_that_was_never_synced_is_still_cut_after_a_kill() {
    on_virtual_time(async {
        let (disk, wal) = three_batches().await;
        let whole = segment(&disk).1.len();
        let _never = wal.append(&group("a"), [entry(1, 1)]);
        // The writer has written and waits for the disk.
        tokio::time::sleep(Duration::from_millis(1)).await;
        let disk = disk.kill();
        let (path, bytes) = segment(&disk);
        assert!(bytes.len() > whole, "nothing was written");
        disk.cut_tail(&path, 5);
        let (_, recovered) = open(&disk, WalOptions::default());
        assert!(recovered.corrupt_groups.is_empty());
        assert_eq!(recovered.cut_bytes as usize, bytes.len() - 5 - whole);
    });
}

#[test]
fn a_shortened_log_blames_every_group_until_it_is_erased() {
    on_virtual_time(async {
        for cut in 1..=last_record(&segment(&three_batches().await.0).1) {
            let (disk, wal) = three_batches().await;
            let synced = wal.synced();
            let disk = disk.kill();
            disk.cut_tail(&segment(&disk).0, cut);
            let (wal, recovered) = open(&disk, WalOptions::default());
            for (name, log) in &recovered.groups {
                assert!(recovered.corrupt_groups.contains(name), "cut {cut}: {name} has {log:?}");
            }
            assert!(wal.synced() >= synced, "cut {cut}: a position was given out twice");
            // A group that begins after the damage has nothing to do with it.
            wal.append(&group("fresh"), [entry(0, 9)]).synced().await.unwrap();
            let disk = disk.crash(0);
            let (wal, again) = open(&disk, WalOptions::default());
            assert_eq!(again.corrupt_groups, recovered.corrupt_groups, "cut {cut}");
            for name in &again.corrupt_groups {
                wal.append(name, [Record::Erase]).synced().await.unwrap();
            }
            let (_, clean) = open(&disk.crash(0), WalOptions::default());
            assert!(clean.corrupt_groups.is_empty(), "cut {cut}");
            assert_eq!(clean.groups[&group("fresh")].entries.len(), 1);
        }
    });
}

#[test]
fn a_log_whose_segments_are_all_gone_goes_on_behind_them() {
    on_virtual_time(async {
        let (disk, wal) = three_batches().await;
        let synced = wal.synced();
        let disk = disk.kill();
        disk.remove(&segment(&disk).0).unwrap();
        let (wal, recovered) = open(&disk, WalOptions::default());
        assert!(recovered.groups.is_empty());
        assert!(wal.synced() >= synced);
        wal.append(&group("fresh"), [entry(0, 9)]).synced().await.unwrap();
        let (_, again) = open(&disk.crash(0), WalOptions::default());
        assert!(again.corrupt_groups.is_empty());
    });
}

#[test]
fn a_group_whose_first_record_is_damaged_is_reported_although_it_was_not_known_before() {
    on_virtual_time(async {
        let disk = disk();
        let (wal, _) = open(&disk, WalOptions::default());
        let vote = Record::Vote(Bytes::from_static(b"vote"));
        wal.append(&group("a"), [vote]).synced().await.unwrap();
        wal.append(&group("a"), [entry(0, 1)]).synced().await.unwrap();
        wal.close().await;
        let (path, _) = segment(&disk);
        disk.flip_bit(&path, SEGMENT_HEADER_LENGTH + 20, 1);
        let (_, recovered) = open(&disk.crash(0), WalOptions::default());
        assert_eq!(recovered.groups[&group("a")].vote, None);
        assert!(recovered.corrupt_groups.contains(&group("a")), "its vote is forgotten");
    });
}

#[test]
fn damage_is_remembered_when_its_segment_is_freed() {
    on_virtual_time(async {
        let options = WalOptions { segment_bytes: 2000, garbage_bytes_min: 6000 };
        let disk = disk();
        let (wal, _) = open(&disk, options.clone());
        wal.append(&group("hurt"), [entry(0, 1)]).synced().await.unwrap();
        wal.append(&group("hurt"), [entry(1, 1)]).synced().await.unwrap();
        let disk = disk.kill();
        let (path, bytes) = segment(&disk);
        disk.flip_bit(&path, bytes.len() - 1, 1);
        let (wal, _) = open(&disk, options.clone());
        for index in 0..400 {
            let log_id = Bytes::from_static(b"id");
            let mut records = vec![entry(index, 5)];
            if index > 3 {
                records.push(Record::Purge { upto: index - 3, bytes: log_id });
            }
            wal.append(&group("busy"), records).synced().await.unwrap();
        }
        assert!(!disk.files().contains_key(&path), "the damaged segment is still there");
        let (_, recovered) = open(&disk.crash(0), options);
        assert!(recovered.corrupt_groups.contains(&group("hurt")));
        assert!(!recovered.corrupt_groups.contains(&group("busy")));
    });
}

fn refused(disk: &SimDisk) -> String {
    let before = disk.files();
    let error = Wal::open(Arc::new(disk.clone()), WalOptions::default()).unwrap_err();
    assert!(matches!(error, WalError::Newer { version: 2, .. }), "{error}");
    assert_eq!(disk.files(), before, "a refused log was changed");
    error.to_string()
}

#[test]
fn a_segment_of_a_newer_version_is_refused_and_left_as_it_is() {
    on_virtual_time(async {
        let mut bytes = record::segment_header(0).to_vec();
        bytes[7] = 2;
        let crc = crc32c::crc32c(&bytes[..20]);
        bytes[20..24].copy_from_slice(&crc.to_le_bytes());
        bytes.extend_from_slice(b"whatever a later version writes");
        let disk = SimDisk::new(Duration::ZERO);
        disk.write_atomically(&format!("wal/{}", record::segment_name(0)), &bytes).unwrap();
        assert!(refused(&disk).contains("start this node with that version"));
    });
}

#[test]
fn a_record_of_a_newer_version_is_refused_and_a_flipped_version_is_damage() {
    on_virtual_time(async {
        let (disk, wal) = three_batches().await;
        wal.close().await;
        let (path, whole) = segment(&disk);
        let at = last_record(&whole[..whole.len() - 40]);
        let mut bytes = whole.clone();
        bytes[at + 4] = 2;
        let copy = SimDisk::new(Duration::ZERO);
        copy.write_atomically(&path, &bytes).unwrap();
        let (_, recovered) = open(&copy, WalOptions::default());
        assert!(!recovered.corrupt_groups.is_empty(), "a flipped version is damage");
        let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[at..at + 32]), b"b");
        bytes[at + 32..at + 36].copy_from_slice(&crc.to_le_bytes());
        let copy = SimDisk::new(Duration::ZERO);
        copy.write_atomically(&path, &bytes).unwrap();
        refused(&copy);
    });
}

#[tokio::test]
async fn a_tail_of_which_no_sync_is_known_is_written_again_and_appended_to() {
    let directory = tempfile::tempdir().unwrap();
    let open = || {
        let disk = Arc::new(RealDisk::new(directory.path()));
        Wal::open(disk, WalOptions::default()).unwrap()
    };
    let (wal, _) = open();
    wal.append(&group("a"), [entry(0, 1), entry(1, 2)]).synced().await.unwrap();
    wal.crash();
    // As if the process had died between sync and note.
    std::fs::remove_file(directory.path().join("wal/synced")).unwrap();
    let (wal, first) = open();
    assert_eq!(first.groups[&group("a")].entries.len(), 2);
    wal.append(&group("a"), [entry(2, 3)]).synced().await.unwrap();
    wal.close().await;
    let (wal, again) = open();
    assert_eq!(again.groups[&group("a")].entries.len(), 3);
    assert_eq!(content(&again.groups[&group("a")]).2[&1][0], 2);
    assert!(again.corrupt_groups.is_empty());
    wal.close().await;
}
