//! Reading the log back: what is whole is replayed, a tail that was never promised is cut, and
//! damage to promised bytes is laid at the door of the groups it touches.
//!
//! What was promised is known from three places: every record says up to where the log was synced
//! when it was written, a new segment is made once the last is synced, and the [note](super::note)
//! knows of the very last sync.

use std::collections::{BTreeMap, BTreeSet};

use callboard_protocol::GroupId;

use super::{
    WalError, note,
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
    /// Whether the log says of all its damage already which groups it touches.
    pub(super) is_judged: bool,
}

/// Where appending goes on.
#[derive(Debug, Default)]
pub(super) struct Tail {
    /// Bases of the segments, oldest first.
    pub bases: Vec<Lsn>,
    /// Position after the last record.
    pub end: Lsn,
    /// The last bytes before it, of which it is not known that they were synced.
    pub doubtful: Vec<u8>,
    /// Whether bytes are missing before `end`: then a new segment begins there.
    pub has_gap: bool,
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
    fn segment(&mut self, base: Lsn, bytes: &[u8], path: &str) -> Result<(), WalError> {
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
                Parsed::Newer(version) => return Err(newer(path, version)),
                Parsed::Bad => {
                    self.items.push((lsn, Item::Damage { group: None, torn: true }));
                    at = next_record(bytes, base, at + 1);
                }
            }
        }
        self.end = base + bytes.len() as u64;
        Ok(())
    }
}

fn newer(path: &str, version: u8) -> WalError {
    WalError::Newer { path: path.to_owned(), version }
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
    let noted = note::read(disk).map_err(io_error("read", note::PATH))?.unwrap_or(0);
    let mut scan = Scan { synced: noted, ..Scan::default() };
    let mut last_bytes = Vec::new();
    for (position, base) in bases.clone().into_iter().enumerate() {
        let path = format!("{DIRECTORY}/{}", record::segment_name(base));
        let bytes = disk.read(&path).map_err(io_error("read", &path))?;
        if position > 0 && scan.end != base {
            scan.items.push((scan.end.min(base), Item::Damage { group: None, torn: false }));
        }
        if let Some(version) = record::newer_segment(&bytes) {
            return Err(newer(&path, version));
        }
        // Every earlier segment was synced before this one was made.
        scan.synced = scan.synced.max(base);
        if bytes.get(..SEGMENT_HEADER_LENGTH) != Some(&record::segment_header(base)[..]) {
            let torn = bytes.len() <= SEGMENT_HEADER_LENGTH;
            scan.items.push((base, Item::Damage { group: None, torn }));
        }
        scan.segment(base, bytes.get(SEGMENT_HEADER_LENGTH..).unwrap_or_default(), &path)?;
        last_bytes = bytes;
    }
    let last_base = bases.last().copied().unwrap_or(0);
    let cut = scan
        .items
        .iter()
        .filter(|(lsn, item)| matches!(item, Item::Damage { torn: true, .. }) && *lsn >= last_base)
        .map(|(lsn, _)| *lsn)
        .find(|lsn| *lsn >= scan.synced);
    let mut end = cut.unwrap_or(scan.end);
    let mut recovered = Recovered { cut_bytes: scan.end - end, ..Recovered::default() };
    let has_gap = end < noted;
    if has_gap {
        scan.items.push((end, Item::Damage { group: None, torn: false }));
        end = noted;
    }
    replay(scan.items, end, &mut recovered);
    let doubtful = match has_gap {
        true => Vec::new(),
        false => between(&last_bytes, last_base, scan.synced.max(last_base), end),
    };
    Ok((recovered, Tail { bases, end, doubtful, has_gap }))
}

/// The bytes of records from one position to another in the segment that begins at `base`.
fn between(segment: &[u8], base: Lsn, from: Lsn, to: Lsn) -> Vec<u8> {
    let at = |lsn: Lsn| {
        usize::try_from(lsn.saturating_sub(base)).unwrap_or(usize::MAX) + SEGMENT_HEADER_LENGTH
    };
    segment.get(at(from)..at(to)).map(<[u8]>::to_vec).unwrap_or_default()
}

fn replay(items: Vec<(Lsn, Item)>, end: Lsn, recovered: &mut Recovered) {
    let mut is_judged = true;
    // After damage that no group can be named for, a group's first record may not have been its
    // first.
    let mut hides_groups = false;
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
            Item::Good { record: Record::Judged, .. } => (is_judged, hides_groups) = (true, false),
            Item::Good { group, record, end } => {
                if hides_groups && !recovered.groups.contains_key(&group) {
                    recovered.corrupt_groups.insert(group.clone());
                }
                recovered.groups.entry(group).or_default().apply(record, lsn, end);
            }
            Item::Damage { group, .. } => {
                is_judged = false;
                match group {
                    Some(group) => drop(recovered.corrupt_groups.insert(group)),
                    None => {
                        hides_groups = true;
                        recovered.corrupt_groups.extend(recovered.groups.keys().cloned());
                    }
                }
            }
        }
    }
    recovered.is_judged = is_judged;
    let damaged = recovered.groups.iter().filter(|(_, log)| log.damaged.is_some());
    let damaged: Vec<GroupId> = damaged.map(|(group, _)| group.clone()).collect();
    recovered.corrupt_groups.extend(damaged);
    let holed = recovered.groups.iter().filter(|(_, log)| !log.is_contiguous());
    let holed: Vec<GroupId> = holed.map(|(group, _)| group.clone()).collect();
    recovered.corrupt_groups.extend(holed);
}
