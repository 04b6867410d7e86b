//! The bytes of one record and of a segment's header; no I/O.
//!
//! A record is a header with its own checksum (so that a damaged payload can still be attributed
//! and stepped over), the group's name and the payload. The header repeats the record's own
//! position, so that the next record can be found after damage, and says up to where the log was
//! known to be synced when the record was written, so that recovery can tell a tail that was
//! never promised to anyone from damage to promised bytes.
//!
//! ```text
//! magic u32 | version u8 | kind u8 | group length u8 | 0 | payload length u32 |
//! payload crc32c u32 | position u64 | synced u64 | header crc32c u32 | group | payload
//! ```
//! A segment's header carries the version of all that stands in it; a record's says it once more. A
//! newer program begins a new segment. What is newer than this program is never judged by it.
//!
//! Integers are little endian; the header's checksum covers the 32 bytes before it and the group.

use bytes::Bytes;
use callboard_protocol::GroupId;

/// A position in the log: bytes of records since the log was begun.
pub type Lsn = u64;

/// Version of the record format.
const VERSION: u8 = 1;
const MAGIC: u32 = 0x4c57_4243;
const FIXED_LENGTH: usize = 36;
/// Length of a segment's header in bytes.
pub const SEGMENT_HEADER_LENGTH: usize = 24;
const SEGMENT_MAGIC: [u8; 7] = *b"CBWALSG";
/// Largest payload in bytes; a length beyond it is damage.
pub const PAYLOAD_LENGTH_MAX: usize = 64 << 20;

/// What a record changes in its group's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// The vote is now this.
    Vote(Bytes),
    /// The last known committed log id is now this.
    Committed(Bytes),
    /// The log ends with this entry; whatever stood at its index or after is gone.
    Entry {
        /// Its index.
        index: u64,
        /// Its encoded form.
        bytes: Bytes,
    },
    /// Entries from this index on are gone.
    Truncate {
        /// The first that is gone.
        from: u64,
    },
    /// Entries up to this index are gone.
    Purge {
        /// The last that is gone.
        upto: u64,
        /// Its encoded log id.
        bytes: Bytes,
    },
    /// Nothing of the group is left.
    Erase,
    /// An entry that stood earlier in the log, moved so that its segment can go.
    Copy {
        /// Its index.
        index: u64,
        /// Its encoded form.
        bytes: Bytes,
    },
    /// Changes nothing; carries the synced position.
    Mark,
    /// The group lost records; until it is erased nothing here may be trusted.
    Damaged,
    /// Changes nothing. Whatever is damaged before this was judged: each group that may have lost
    /// something has a [`Record::Damaged`] before this.
    Judged,
}

impl Record {
    /// Whether an answer to anyone may depend on the record being durable.
    pub(crate) fn is_promise(&self) -> bool {
        !matches!(self, Self::Committed(_) | Self::Purge { .. } | Self::Mark | Self::Judged)
    }

    fn kind(&self) -> u8 {
        match self {
            Self::Vote(_) => 1,
            Self::Committed(_) => 2,
            Self::Entry { .. } => 3,
            Self::Truncate { .. } => 4,
            Self::Purge { .. } => 5,
            Self::Erase => 6,
            Self::Copy { .. } => 7,
            Self::Mark => 8,
            Self::Damaged => 9,
            Self::Judged => 10,
        }
    }

    fn number(&self) -> Option<u64> {
        match self {
            Self::Entry { index, .. } | Self::Copy { index, .. } => Some(*index),
            Self::Truncate { from } => Some(*from),
            Self::Purge { upto, .. } => Some(*upto),
            Self::Vote(_)
            | Self::Committed(_)
            | Self::Erase
            | Self::Mark
            | Self::Damaged
            | Self::Judged => None,
        }
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::Vote(bytes)
            | Self::Committed(bytes)
            | Self::Entry { bytes, .. }
            | Self::Copy { bytes, .. }
            | Self::Purge { bytes, .. } => bytes,
            Self::Truncate { .. } | Self::Erase | Self::Mark | Self::Damaged | Self::Judged => &[],
        }
    }

    fn decode(kind: u8, payload: &[u8]) -> Option<Self> {
        let numbered = || {
            let (number, rest) = payload.split_at_checked(8)?;
            Some((u64::from_le_bytes(number.try_into().ok()?), Bytes::copy_from_slice(rest)))
        };
        Some(match kind {
            1 => Self::Vote(Bytes::copy_from_slice(payload)),
            2 => Self::Committed(Bytes::copy_from_slice(payload)),
            3 => numbered().map(|(index, bytes)| Self::Entry { index, bytes })?,
            4 => numbered().map(|(from, _)| Self::Truncate { from })?,
            5 => numbered().map(|(upto, bytes)| Self::Purge { upto, bytes })?,
            6 => Self::Erase,
            7 => numbered().map(|(index, bytes)| Self::Copy { index, bytes })?,
            8 => Self::Mark,
            9 => Self::Damaged,
            10 => Self::Judged,
            _ => return None,
        })
    }
}

/// Adds the record's bytes to `out`; returns their number.
pub(super) fn encode(
    out: &mut Vec<u8>,
    group: &GroupId,
    record: &Record,
    lsn: Lsn,
    synced: Lsn,
) -> usize {
    let start = out.len();
    let name = group.as_str().as_bytes();
    let number = record.number().map(u64::to_le_bytes);
    let number: &[u8] = number.as_ref().map_or(&[], |bytes| bytes);
    let payload_crc = crc32c::crc32c_append(crc32c::crc32c(number), record.bytes());
    let payload_length = number.len() + record.bytes().len();
    out.extend_from_slice(&MAGIC.to_le_bytes());
    let name_length = u8::try_from(name.len()).unwrap_or(u8::MAX);
    out.extend_from_slice(&[VERSION, record.kind(), name_length, 0]);
    out.extend_from_slice(&u32::try_from(payload_length).unwrap_or(u32::MAX).to_le_bytes());
    out.extend_from_slice(&payload_crc.to_le_bytes());
    out.extend_from_slice(&lsn.to_le_bytes());
    out.extend_from_slice(&synced.to_le_bytes());
    let header_crc = crc32c::crc32c_append(crc32c::crc32c(&out[start..]), name);
    out.extend_from_slice(&header_crc.to_le_bytes());
    out.extend_from_slice(name);
    out.extend_from_slice(number);
    out.extend_from_slice(record.bytes());
    out.len() - start
}

/// What stands at a position of a segment.
#[derive(Debug)]
pub(super) enum Parsed {
    /// A whole record.
    Good {
        /// Whose.
        group: GroupId,
        /// What.
        record: Record,
        /// Bytes it takes.
        length: usize,
        /// Up to where the log was synced when it was written.
        synced: Lsn,
    },
    /// A good header with a damaged, unknown or incomplete payload.
    BadPayload {
        /// Whose.
        group: GroupId,
        /// Bytes it takes, or would take.
        length: usize,
        /// Up to where the log was synced when it was written.
        synced: Lsn,
    },
    /// A good header of this later version.
    Newer(u8),
    /// No header.
    Bad,
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

fn header(bytes: &[u8], lsn: Lsn) -> Option<(GroupId, usize, Lsn)> {
    if u32_at(bytes, 0)? != MAGIC || u64_at(bytes, 16)? != lsn {
        return None;
    }
    let name_length = usize::from(*bytes.get(6)?);
    let name = bytes.get(FIXED_LENGTH..FIXED_LENGTH + name_length)?;
    let crc = crc32c::crc32c_append(crc32c::crc32c(bytes.get(..32)?), name);
    if u32_at(bytes, 32)? != crc {
        return None;
    }
    let payload_length = usize::try_from(u32_at(bytes, 8)?).ok()?;
    if payload_length > PAYLOAD_LENGTH_MAX {
        return None;
    }
    let group = GroupId::new(std::str::from_utf8(name).ok()?).ok()?;
    Some((group, payload_length, u64_at(bytes, 24)?))
}

/// Reads what stands at the start of `bytes`, which is position `lsn` of the log.
pub(super) fn parse(bytes: &[u8], lsn: Lsn) -> Parsed {
    let Some((group, payload_length, synced)) = header(bytes, lsn) else {
        return Parsed::Bad;
    };
    if let Some(version) = bytes.get(4).filter(|version| **version > VERSION) {
        return Parsed::Newer(*version);
    }
    let start = FIXED_LENGTH + group.as_str().len();
    let length = start + payload_length;
    let record = bytes
        .get(start..length)
        .filter(|payload| u32_at(bytes, 12) == Some(crc32c::crc32c(payload)))
        .filter(|_| bytes.get(4) == Some(&VERSION))
        .and_then(|payload| Record::decode(bytes[5], payload));
    match record {
        Some(record) => Parsed::Good { group, record, length, synced },
        None => Parsed::BadPayload { group, length, synced },
    }
}

/// The header of the segment that begins at `base`.
pub(super) fn segment_header(base: Lsn) -> [u8; SEGMENT_HEADER_LENGTH] {
    let mut header = [0; SEGMENT_HEADER_LENGTH];
    header[..7].copy_from_slice(&SEGMENT_MAGIC);
    header[7] = VERSION;
    header[8..16].copy_from_slice(&base.to_le_bytes());
    let crc = crc32c::crc32c(&header[..20]);
    header[20..].copy_from_slice(&crc.to_le_bytes());
    header
}

/// The version in a whole header of a segment that a later version wrote.
pub(super) fn newer_segment(bytes: &[u8]) -> Option<u8> {
    let is_whole = u32_at(bytes, 20)? == crc32c::crc32c(bytes.get(..20)?);
    let version = *bytes.get(7)?;
    (is_whole && bytes[..7] == SEGMENT_MAGIC && version > VERSION).then_some(version)
}

/// The name of the segment that begins at `base`.
pub(super) fn segment_name(base: Lsn) -> String {
    format!("wal-{base:016x}.log")
}

/// The base in a segment's name.
pub(super) fn parse_segment_name(name: &str) -> Option<Lsn> {
    Lsn::from_str_radix(name.strip_prefix("wal-")?.strip_suffix(".log")?, 16).ok()
}
