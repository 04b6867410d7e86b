//! The version of the store's layout, noted in the file `.format`: no owner's id has a dot.

use std::{fs, io, path::Path};

use super::{
    error::ChunkError,
    files::{self, failed},
};

/// The layout this version reads and writes: one file per chunk, `<owner>/<hash>`.
pub(super) const FORMAT: u32 = 1;
const FILE: &str = ".format";
const PREFIX: &str = "callboard chunks ";

/// Checks that the store is of a version that can be read, and notes it. A directory without the
/// note is empty or from before there was one; its layout is that of version 1.
pub(super) fn check(directory: &Path) -> Result<(), ChunkError> {
    let path = directory.join(FILE);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let text = format!("{PREFIX}{FORMAT}\n");
            return files::write_small(&path, text.as_bytes());
        }
        Err(error) => return Err(failed("read", &path)(error)),
    };
    let found = text.trim().strip_prefix(PREFIX).and_then(|number| number.parse::<u32>().ok());
    match found {
        Some(FORMAT) => Ok(()),
        Some(found) => Err(ChunkError::Format { path: directory.to_owned(), found, known: FORMAT }),
        None => Err(ChunkError::FormatUnreadable { path }),
    }
}
