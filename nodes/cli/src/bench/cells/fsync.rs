//! What durability costs at least on this disk, in this minute.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write as _},
    path::Path,
    time::Instant,
};

/// Bytes appended before each sync: about what a small cell adds to the log.
const RECORD_BYTES: usize = 256;

/// Appends to a file and syncs it, as the log does.
#[derive(Debug)]
pub(super) struct FsyncFloor {
    file: File,
}

impl FsyncFloor {
    /// A fresh file in `directory`, on the disk that is measured.
    pub(super) fn new(directory: &Path) -> io::Result<Self> {
        let path = directory.join("fsync-floor");
        Ok(Self { file: OpenOptions::new().create(true).append(true).open(path)? })
    }

    /// One append with its sync, in milliseconds.
    pub(super) fn sample_ms(&mut self) -> io::Result<f64> {
        let start = Instant::now();
        self.file.write_all(&[0x2e; RECORD_BYTES])?;
        self.file.sync_data()?;
        Ok(start.elapsed().as_secs_f64() * 1000.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sample_appends_one_record_and_takes_time() {
        let directory = tempfile::tempdir().unwrap();
        let mut floor = FsyncFloor::new(directory.path()).unwrap();
        assert!(floor.sample_ms().unwrap() > 0.0);
        assert!(floor.sample_ms().unwrap() > 0.0);
        let length = std::fs::metadata(directory.path().join("fsync-floor")).unwrap().len();
        assert_eq!(length, 2 * RECORD_BYTES as u64);
    }
}
