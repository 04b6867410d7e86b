//! The log against its model: prefix after a crash, damage never served, garbage freed.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use callboard_protocol::GroupId;
use proptest::prelude::*;

use super::{GroupLog, Record, Recovered, SEGMENT_HEADER_LENGTH, Wal, WalOptions};
use crate::{disk::RealDisk, sim_disk::SimDisk};

pub(super) fn group(name: &str) -> GroupId {
    GroupId::new(name).unwrap()
}

pub(super) fn entry(index: u64, fill: u8) -> Record {
    Record::Entry { index, bytes: Bytes::from(vec![fill; 20]) }
}

/// What a group's log says, without positions.
pub(super) fn content(log: &GroupLog) -> (Option<Bytes>, Option<u64>, BTreeMap<u64, Bytes>) {
    let entries = log.entries.iter().map(|(index, slot)| (*index, slot.bytes.clone()));
    (
        log.vote.as_ref().map(|slot| slot.bytes.clone()),
        log.purged.as_ref().map(|(upto, _)| *upto),
        entries.collect(),
    )
}

pub(super) fn on_virtual_time(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap()
        .block_on(test);
}

pub(super) fn disk() -> SimDisk {
    SimDisk::new(Duration::from_millis(2))
}

pub(super) fn open(disk: &SimDisk, options: WalOptions) -> (Wal, Recovered) {
    Wal::open(Arc::new(disk.clone()), options).unwrap()
}

pub(super) fn segment(disk: &SimDisk) -> (String, Vec<u8>) {
    disk.files().into_iter().next().unwrap()
}

/// Two groups' records, each batch synced, closed in order.
async fn small_log() -> SimDisk {
    let disk = disk();
    let (wal, _) = open(&disk, WalOptions::default());
    for index in 0..3 {
        wal.append(&group("a"), [entry(index, 1)]).synced().await.unwrap();
        wal.append(&group("b"), [entry(index, 2)]).synced().await.unwrap();
    }
    wal.append(&group("a"), [Record::Vote(Bytes::from_static(b"vote"))]).synced().await.unwrap();
    wal.close().await;
    disk
}

#[test]
fn unsynced_records_are_gone_after_a_crash_and_synced_ones_are_not() {
    on_virtual_time(async {
        let disk = disk();
        let (wal, _) = open(&disk, WalOptions::default());
        wal.append(&group("a"), [entry(0, 1)]).synced().await.unwrap();
        let never = wal.append(&group("a"), [entry(1, 1)]);
        let after = disk.crash(0);
        assert!(never.synced().await.is_err(), "a crashed disk cannot have synced");
        let (_, recovered) = open(&after, WalOptions::default());
        assert_eq!(recovered.groups[&group("a")].entries.len(), 1);
        assert!(recovered.corrupt_groups.is_empty());
    });
}

#[test]
fn appends_that_wait_together_share_one_sync() {
    on_virtual_time(async {
        let disk = disk();
        let (wal, _) = open(&disk, WalOptions::default());
        let tickets: Vec<_> = (0..100).map(|i| wal.append(&group("a"), [entry(i, 1)])).collect();
        for ticket in tickets {
            ticket.synced().await.unwrap();
        }
        assert_eq!(disk.sync_count(), 1);
    });
}

#[test]
fn a_tail_torn_at_any_byte_is_cut_and_nothing_else_is_lost() {
    on_virtual_time(async {
        let disk = disk();
        let (wal, _) = open(&disk, WalOptions::default());
        wal.append(&group("a"), [entry(0, 1)]).synced().await.unwrap();
        wal.append(&group("a"), [entry(1, 2)]).synced().await.unwrap();
        let whole = segment(&disk);
        drop(wal);
        let second = (whole.1.len() - SEGMENT_HEADER_LENGTH) / 2 + SEGMENT_HEADER_LENGTH;
        for length in second..whole.1.len() {
            let torn = SimDisk::new(Duration::ZERO);
            crate::Disk::write_atomically(&torn, &whole.0, &whole.1[..length]).unwrap();
            let (wal, recovered) = open(&torn, WalOptions::default());
            assert!(recovered.corrupt_groups.is_empty(), "at {length}");
            assert_eq!(recovered.groups[&group("a")].entries.len(), 1, "at {length}");
            assert_eq!(recovered.cut_bytes, (length - second) as u64);
            wal.append(&group("a"), [entry(1, 3)]).synced().await.unwrap();
            let (_, again) = open(&torn.crash(0), WalOptions::default());
            assert_eq!(again.groups[&group("a")].entries[&1].bytes[0], 3);
        }
    });
}

#[test]
fn a_flipped_bit_anywhere_is_reported_for_its_group_and_never_served() {
    on_virtual_time(async {
        let disk = small_log().await;
        let (path, bytes) = segment(&disk);
        let (_, clean) = open(&disk.crash(0), WalOptions::default());
        let mark = bytes.len() - 40;
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << (at % 8);
            let copy = SimDisk::new(Duration::ZERO);
            crate::Disk::write_atomically(&copy, &path, &damaged).unwrap();
            let (_, recovered) = open(&copy, WalOptions::default());
            for name in ["a", "b"] {
                let name = group(name);
                let intact = recovered.groups.get(&name).map(content)
                    == clean.groups.get(&name).map(content);
                let reported = recovered.corrupt_groups.contains(&name);
                assert!(intact || reported, "byte {at}: group {name} lost records in silence");
            }
            if at >= SEGMENT_HEADER_LENGTH && at < mark {
                assert!(!recovered.corrupt_groups.is_empty(), "byte {at} of promised records");
            }
        }
    });
}

#[test]
fn damage_in_a_payload_is_laid_at_the_door_of_its_group_only() {
    on_virtual_time(async {
        let disk = small_log().await;
        let (path, bytes) = segment(&disk);
        let last_of_first = SEGMENT_HEADER_LENGTH + 36 + 1 + 8 + 19;
        assert_eq!(bytes[last_of_first], 1);
        disk.flip_bit(&path, last_of_first, 3);
        let (wal, recovered) = open(&disk.crash(0), WalOptions::default());
        assert_eq!(recovered.corrupt_groups.into_iter().collect::<Vec<_>>(), [group("a")]);
        assert_eq!(recovered.groups[&group("b")].entries.len(), 3);
        wal.append(&group("a"), [Record::Erase]).synced().await.unwrap();
        let (_, again) = open(&disk.crash(0).crash(0), WalOptions::default());
        assert!(again.corrupt_groups.is_empty(), "erasing the group forgets its damage");
    });
}

#[test]
fn a_failed_sync_is_final() {
    on_virtual_time(async {
        let disk = disk();
        let (wal, _) = open(&disk, WalOptions::default());
        disk.fail_sync_after(1);
        wal.append(&group("a"), [entry(0, 1)]).synced().await.unwrap();
        assert!(wal.append(&group("a"), [entry(1, 1)]).synced().await.is_err());
        assert!(wal.append(&group("a"), [entry(2, 1)]).synced().await.is_err());
        assert_eq!(disk.sync_count(), 2, "a failed sync was tried again");
        assert!(wal.progress().borrow().failed.is_some());
    });
}

#[test]
fn a_full_disk_fails_the_append_and_the_short_write_is_cut_on_restart() {
    on_virtual_time(async {
        let disk = disk();
        let (wal, _) = open(&disk, WalOptions::default());
        wal.append(&group("a"), [entry(0, 1)]).synced().await.unwrap();
        disk.full_after(11);
        assert!(wal.append(&group("a"), [entry(1, 1)]).synced().await.is_err());
        let (_, recovered) = open(&disk.crash(100), WalOptions::default());
        assert_eq!(recovered.cut_bytes, 11);
        assert_eq!(recovered.groups[&group("a")].entries.len(), 1);
        assert!(recovered.corrupt_groups.is_empty());
    });
}

#[test]
fn old_segments_are_freed_and_what_lives_in_them_survives() {
    on_virtual_time(async {
        let options = WalOptions { segment_bytes: 2000, garbage_bytes_min: 6000 };
        let disk = disk();
        let (wal, _) = open(&disk, options.clone());
        let vote = Record::Vote(Bytes::from_static(b"keep"));
        wal.append(&group("quiet"), [vote, entry(0, 9)]).synced().await.unwrap();
        for index in 0..400 {
            let log_id = Bytes::from_static(b"id");
            let mut records = vec![entry(index, 5)];
            if index > 3 {
                records.push(Record::Purge { upto: index - 3, bytes: log_id });
            }
            wal.append(&group("busy"), records).synced().await.unwrap();
        }
        let bytes: usize = disk.files().values().map(Vec::len).sum();
        assert!(bytes < 12_000, "{bytes} bytes are left");
        let (_, recovered) = open(&disk.crash(0), options);
        assert!(recovered.corrupt_groups.is_empty());
        let quiet = &recovered.groups[&group("quiet")];
        assert_eq!(quiet.vote.as_ref().unwrap().bytes, "keep");
        assert_eq!(quiet.entries[&0].bytes[0], 9);
        assert_eq!(recovered.groups[&group("busy")].entries.len(), 3);
    });
}

#[tokio::test]
async fn a_log_on_a_real_disk_is_read_back() {
    let directory = tempfile::tempdir().unwrap();
    let open = || {
        let disk = Arc::new(RealDisk::new(directory.path()));
        Wal::open(disk, WalOptions::default()).unwrap()
    };
    let (wal, _) = open();
    wal.append(&group("a"), [entry(0, 1), entry(1, 2)]).synced().await.unwrap();
    wal.close().await;
    assert!(wal.append(&group("a"), [entry(2, 2)]).synced().await.is_err());
    let (wal, recovered) = open();
    assert_eq!(recovered.groups[&group("a")].entries.len(), 2);
    wal.close().await;
}

#[derive(Debug, Clone)]
enum Step {
    Append(u8, u8),
    Truncate(u8, u8),
    Purge(u8, u8),
    Vote(u8, u8),
    Erase(u8),
    Sync,
    Crash(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..3u8, any::<u8>()).prop_map(|(g, f)| Step::Append(g, f)),
        2 => (0..3u8, 0..8u8).prop_map(|(g, n)| Step::Truncate(g, n)),
        2 => (0..3u8, 0..8u8).prop_map(|(g, n)| Step::Purge(g, n)),
        2 => (0..3u8, any::<u8>()).prop_map(|(g, v)| Step::Vote(g, v)),
        1 => (0..3u8).prop_map(Step::Erase),
        4 => Just(Step::Sync),
        1 => any::<u8>().prop_map(Step::Crash),
    ]
}

type Model = BTreeMap<GroupId, GroupLog>;

fn contents(model: &Model) -> Vec<(GroupId, impl PartialEq + std::fmt::Debug + use<>)> {
    let used = model.iter().filter(|(_, log)| !log.is_empty());
    used.map(|(group, log)| (group.clone(), content(log))).collect()
}

fn record_of(step: &Step, model: &Model) -> Option<(GroupId, Record)> {
    let log = |g: &u8| {
        let name = group(&format!("g{g}"));
        let log = model.get(&name).cloned().unwrap_or_default();
        let first = log.purged.as_ref().map_or(0, |(upto, _)| upto + 1);
        (name, first, first + log.entries.len() as u64)
    };
    Some(match step {
        Step::Append(g, fill) => {
            let (name, _, next) = log(g);
            (name, entry(next, *fill))
        }
        Step::Truncate(g, back) => {
            let (name, first, next) = log(g);
            (name, Record::Truncate { from: next.saturating_sub(u64::from(*back)).max(first) })
        }
        Step::Purge(g, back) => {
            let (name, first, next) = log(g);
            let upto = next.checked_sub(1 + u64::from(*back)).filter(|upto| *upto >= first)?;
            (name, Record::Purge { upto, bytes: Bytes::from_static(b"p") })
        }
        Step::Vote(g, vote) => (log(g).0, Record::Vote(Bytes::from(vec![*vote]))),
        Step::Erase(g) => (log(g).0, Record::Erase),
        Step::Sync | Step::Crash(_) => return None,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]
    #[test]
    fn after_any_crash_the_log_is_a_prefix_that_holds_all_that_was_synced(
        steps in proptest::collection::vec(step(), 1..150)
    ) {
        on_virtual_time(async move {
            let options = WalOptions { segment_bytes: 500, garbage_bytes_min: 1500 };
            let mut disk = disk();
            let (mut wal, _) = open(&disk, options.clone());
            // Every state since the last sync; recovery must find one of them.
            let mut states: Vec<Model> = vec![Model::new()];
            for step in &steps {
                let mut model = states.last().cloned().unwrap_or_default();
                if let Some((name, record)) = record_of(step, &model) {
                    let _unsynced = wal.append(&name, [record.clone()]);
                    model.entry(name).or_default().apply(record, 0, 0);
                    states.push(model);
                } else if let Step::Crash(torn) = step {
                    tokio::time::sleep(Duration::from_micros(u64::from(*torn) * 20)).await;
                    let synced = wal.synced();
                    wal.crash();
                    disk = disk.crash(usize::from(*torn));
                    let (reopened, recovered) = open(&disk, options.clone());
                    assert!(recovered.corrupt_groups.is_empty());
                    assert!(reopened.synced() >= synced);
                    let found = contents(&recovered.groups);
                    let found = states.iter().rfind(|state| contents(state) == found).cloned();
                    states = vec![found.expect("a prefix of what was appended")];
                    wal = reopened;
                } else {
                    let upto = wal.shared.lock().next_lsn;
                    wal.synced_to(upto).await.unwrap();
                    states = vec![model];
                }
            }
        });
    }
}
