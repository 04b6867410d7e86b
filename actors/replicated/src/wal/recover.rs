//! Reading the log back: what is whole is replayed, a tail that was never promised is cut, and
//! damage to promised bytes is laid at the door of the groups it touches.

use std::collections::{BTreeMap, BTreeSet};

use callboard_protocol::GroupId;

use super::{
    WalError,
    record::{self, Lsn, Parsed, Record, SEGMENT_HEADER_LENGTH},
    state::GroupLog,
};
use crate::disk::Disk;

/// Directory of the segments.
pub(super) const DIRECTORY: &str = "wal";

/// What a log held when it was opened.
#[derive(Debug, Default)]
pub struct Recovered {
    /// Groups with records.
    pub groups: BTreeMap<GroupId, GroupLog>,
    /// Groups that lost records they may have answered for. They must not vote: erase and replace.
    pub corrupt_groups: BTreeSet<GroupId>,
    /// Bytes of a torn tail that were cut off.
    pub cut_bytes: u64,
}

/// Where appending goes on.
#[derive(Debug, Default)]
pub(super) struct Tail {
    /// Bases of the segments, oldest first.
    pub bases: Vec<Lsn>,
    /// Position after the last record.
    pub end: Lsn,
}

enum Item {
    Good {
        group: GroupId,
        record: Record,
        end: Lsn,
    },
    /// `torn` if a write that was never synced can look like this.
    Damage {
        group: Option<GroupId>,
        torn: bool,
    },
}

#[derive(Default)]
struct Scan {
    items: Vec<(Lsn, Item)>,
    synced: Lsn,
    end: Lsn,
}

impl Scan {
    fn segment(&mut self, base: Lsn, bytes: &[u8]) {
        let mut at = 0;
        while at < bytes.len() {
            let lsn = base + at as u64;
            match record::parse(&bytes[at..], lsn) {
                Parsed::Good { group, record, length, synced } => {
                    self.synced = self.synced.max(synced);
                    at += length;
                    let item = Item::Good { group, record, end: base + at as u64 };
                    self.items.push((lsn, item));
                }
                Parsed::BadPayload { group, length, synced } => {
                    self.synced = self.synced.max(synced);
                    self.items.push((lsn, Item::Damage { group: Some(group), torn: true }));
                    at = (at + length).min(bytes.len());
                }
                Parsed::Bad => {
                    self.items.push((lsn, Item::Damage { group: None, torn: true }));
                    at = next_record(bytes, base, at + 1);
                }
            }
        }
        self.end = base + bytes.len() as u64;
    }
}

/// The next offset from `from` on where a record's header stands; the end if there is none.
fn next_record(bytes: &[u8], base: Lsn, from: usize) -> usize {
    (from..bytes.len())
        .find(|at| !matches!(record::parse(&bytes[*at..], base + *at as u64), Parsed::Bad))
        .unwrap_or(bytes.len())
}

fn io_error(what: &'static str, path: &str) -> impl FnOnce(std::io::Error) -> WalError {
    let path = path.to_owned();
    move |source| WalError::Io { what, path, source }
}

/// Reads the log, cuts its torn tail and says where appending goes on.
pub(super) fn recover(disk: &dyn Disk) -> Result<(Recovered, Tail), WalError> {
    let mut bases: Vec<Lsn> = disk
        .list(DIRECTORY)
        .map_err(io_error("list", DIRECTORY))?
        .iter()
        .filter_map(|name| record::parse_segment_name(name))
        .collect();
    bases.sort_unstable();
    let mut scan = Scan::default();
    for (position, base) in bases.clone().into_iter().enumerate() {
        let path = format!("{DIRECTORY}/{}", record::segment_name(base));
        let bytes = disk.read(&path).map_err(io_error("read", &path))?;
        if position > 0 && scan.end != base {
            scan.items.push((scan.end.min(base), Item::Damage { group: None, torn: false }));
        }
        // Every earlier segment was synced before this one was made.
        scan.synced = scan.synced.max(base);
        if bytes.get(..SEGMENT_HEADER_LENGTH) != Some(&record::segment_header(base)[..]) {
            let torn = bytes.len() <= SEGMENT_HEADER_LENGTH;
            scan.items.push((base, Item::Damage { group: None, torn }));
        }
        scan.segment(base, bytes.get(SEGMENT_HEADER_LENGTH..).unwrap_or_default());
    }
    let last_base = bases.last().copied().unwrap_or(0);
    let cut = scan
        .items
        .iter()
        .filter(|(lsn, item)| matches!(item, Item::Damage { torn: true, .. }) && *lsn >= last_base)
        .map(|(lsn, _)| *lsn)
        .find(|lsn| *lsn >= scan.synced);
    let end = cut.unwrap_or(scan.end);
    let mut recovered = Recovered { cut_bytes: scan.end - end, ..Recovered::default() };
    replay(scan.items, end, &mut recovered);
    Ok((recovered, Tail { bases, end }))
}

fn replay(items: Vec<(Lsn, Item)>, end: Lsn, recovered: &mut Recovered) {
    for (lsn, item) in items {
        if lsn >= end {
            break;
        }
        match item {
            Item::Good { group, record: Record::Erase, .. } => {
                recovered.groups.remove(&group);
                recovered.corrupt_groups.remove(&group);
            }
            Item::Good { record: Record::Mark, .. } => {}
            Item::Good { group, record, end } => {
                recovered.groups.entry(group).or_default().apply(record, lsn, end);
            }
            Item::Damage { group: Some(group), .. } => drop(recovered.corrupt_groups.insert(group)),
            Item::Damage { group: None, .. } => {
                recovered.corrupt_groups.extend(recovered.groups.keys().cloned());
            }
        }
    }
    let holed = recovered.groups.iter().filter(|(_, log)| !log.is_contiguous());
    let holed: Vec<GroupId> = holed.map(|(group, _)| group.clone()).collect();
    recovered.corrupt_groups.extend(holed);
}
