//! The note beside the log that says up to where it is synced.
//!
//! A tail that was torn before its sync and bits that rot in one that was synced look the same. The
//! first may be cut, the second was answered for: a replica that forgets it would vote as if it had
//! never had it. So the writer notes the position after every sync and before it tells anyone. The
//! note itself is synced only in pauses, for the log says the same with its next record: a process
//! that is killed leaves it exact, a power cut may leave it a few records behind.
//!
//! ```text
//! magic and version, 8 bytes | position u64 | crc32c of both u32
//! ```

use std::{io, time::Duration};

use tokio::time::Instant;

use super::record::Lsn;
use crate::disk::{Disk, DiskNote};

/// Where it is.
pub(super) const PATH: &str = "wal/synced";
/// How long the log must rest until the note is synced.
const SYNC_AFTER: Duration = Duration::from_secs(1);

const MAGIC: [u8; 8] = *b"CBSYNCD\x01";
const LENGTH: usize = 20;

fn encode(position: Lsn) -> [u8; LENGTH] {
    let mut bytes = [0; LENGTH];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..16].copy_from_slice(&position.to_le_bytes());
    let crc = crc32c::crc32c(&bytes[..16]);
    bytes[16..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

fn decode(bytes: &[u8]) -> Option<Lsn> {
    let (head, crc) = bytes.split_at_checked(16)?;
    if head[..8] != MAGIC || crc32c::crc32c(head).to_le_bytes() != *crc {
        return None;
    }
    Some(Lsn::from_le_bytes(head[8..].try_into().ok()?))
}

/// The noted position; `None` without a note, or with a damaged one.
pub(super) fn read(disk: &dyn Disk) -> io::Result<Option<Lsn>> {
    match disk.read(PATH) {
        Ok(bytes) => Ok(decode(&bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The note, as its writer holds it.
pub(super) struct Note {
    file: Box<dyn DiskNote>,
    unsynced_since: Option<Instant>,
}

impl Note {
    /// Opens it and says durably where the log begins to be written.
    pub(super) fn open(disk: &dyn Disk, position: Lsn) -> io::Result<Self> {
        let mut note = Self { file: disk.open_note(PATH)?, unsynced_since: None };
        note.write(position)?;
        note.sync()?;
        Ok(note)
    }

    pub(super) fn write(&mut self, position: Lsn) -> io::Result<()> {
        self.file.write(&encode(position))?;
        self.unsynced_since = Some(Instant::now());
        Ok(())
    }

    pub(super) fn sync(&mut self) -> io::Result<()> {
        self.unsynced_since = None;
        self.file.sync()
    }

    /// How long the log must still rest until a sync is due; `None` if none is.
    pub(super) fn sync_in(&self) -> Option<Duration> {
        self.unsynced_since.map(|since| SYNC_AFTER.saturating_sub(since.elapsed()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_of_a_note_stay_as_they_are() {
        let bytes = encode(0x0102);
        assert_eq!(&bytes[..16], b"CBSYNCD\x01\x02\x01\0\0\0\0\0\0");
        assert_eq!(decode(&bytes), Some(0x0102));
    }

    #[test]
    fn a_damaged_or_short_note_says_nothing() {
        let bytes = encode(77);
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode(&damaged), None, "bit {bit}");
        }
        assert_eq!(decode(&bytes[..19]), None);
        assert_eq!(decode(&[]), None);
    }
}
