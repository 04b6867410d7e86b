//! The file of a backup: written once, checked whole before it is used.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{self, BufReader, BufWriter, Read as _, Write as _},
    path::{Path, PathBuf},
};

use callboard_policy::terms::{Hash, StateGroup};
use callboard_protocol::{Seq, kernel::Refused};
use flate2::{Compression, read::GzDecoder, write::GzEncoder};
use serde::{Deserialize, Serialize};
use tar::{Archive, Builder, Header};

use super::{hex, listed, named, unwritable};
use crate::exit::{Exit, Failure};

/// What a file says it is.
const FORMAT: &str = "callboard-backup";
/// The version of the format; a reader refuses one it does not know.
const VERSION: u16 = 1;
const ABOUT: &str = "backup.json";
const GROUPS: &str = "groups";
const CHUNKS: &str = "chunks/";
/// Largest entry read into memory; a chunk is smaller.
const ENTRY_BYTES_MAX: u64 = 256 << 20;

/// What a backup is of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct About {
    format: String,
    version: u16,
    /// The kernel it was made of.
    #[serde(default)]
    pub(super) kernel: String,
    /// That kernel's name.
    #[serde(default)]
    pub(super) name: Option<String>,
    /// The cell that left the state.
    #[serde(default)]
    pub(super) cell: Seq,
    /// Names that are not part of the state, and why.
    #[serde(default)]
    pub(super) refused: Vec<Refused>,
    /// The number the next cell gets.
    #[serde(default)]
    pub(super) execution_count: u64,
    /// blake3 of the entry `groups`.
    #[serde(default)]
    groups_hash: String,
}

impl About {
    pub(super) fn new(cell: Seq, refused: Vec<Refused>, execution_count: u64) -> Self {
        Self {
            format: FORMAT.to_owned(),
            version: VERSION,
            kernel: String::new(),
            name: None,
            cell,
            refused,
            execution_count,
            groups_hash: String::new(),
        }
    }
}

/// Writes a backup.
pub(super) struct Writer {
    path: PathBuf,
    about: About,
    archive: Builder<GzEncoder<BufWriter<File>>>,
}

impl Writer {
    pub(super) fn create(
        path: &Path,
        mut about: About,
        groups: &[(String, StateGroup)],
    ) -> Result<Self, Failure> {
        let file = File::create(path).map_err(|error| unwritable(path, &error))?;
        let packed = GzEncoder::new(BufWriter::new(file), Compression::fast());
        let groups = rmp_serde::to_vec(groups).map_err(|error| unwritable(path, &error))?;
        about.groups_hash = blake3::hash(&groups).to_hex().to_string();
        let text = serde_json::to_vec_pretty(&about).map_err(|error| unwritable(path, &error))?;
        let archive = Builder::new(packed);
        let mut this = Self { path: path.to_owned(), about, archive };
        this.entry(ABOUT, &text)?;
        this.entry(GROUPS, &groups)?;
        Ok(this)
    }

    pub(super) fn chunk(&mut self, hash: Hash, bytes: &[u8]) -> Result<(), Failure> {
        self.entry(&format!("{CHUNKS}{}", hex(&hash)), bytes)
    }

    fn entry(&mut self, name: &str, bytes: &[u8]) -> Result<(), Failure> {
        let mut header = Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o600);
        let added = self.archive.append_data(&mut header, name, bytes);
        added.map_err(|error| unwritable(&self.path, &error))
    }

    /// Makes it durable.
    pub(super) fn finish(self) -> Result<About, Failure> {
        let Self { path, about, archive } = self;
        let done = || -> io::Result<()> {
            let mut buffered = archive.into_inner()?.finish()?;
            buffered.flush()?;
            buffered.get_ref().sync_all()
        };
        done().map_err(|error| unwritable(&path, &error))?;
        Ok(about)
    }
}

/// What a file holds, after it was read to its end and checked.
#[derive(Debug)]
pub(super) struct Checked {
    pub(super) about: About,
    pub(super) groups: Vec<(String, StateGroup)>,
}

/// Reads a backup whole and checks every hash in it; gives each chunk to `take`.
pub(super) fn read(
    path: &Path,
    mut take: impl FnMut(Hash, Vec<u8>) -> Result<(), Failure>,
) -> Result<Checked, Failure> {
    let open = File::open(path)
        .map_err(|error| Failure::usage(format!("cannot read {}: {error}", path.display())))?;
    let foreign = |_: &dyn std::fmt::Display| {
        Failure::usage(format!(
            "{} is not a backup of a kernel: take a file that `callboard kernel backup` wrote",
            path.display()
        ))
    };
    let damaged = |what: &str| {
        let text = format!(
            "{} is damaged ({what}): nothing was started; take another copy of it",
            path.display()
        );
        Failure::new(Exit::Failed, text)
    };
    let mut archive = Archive::new(GzDecoder::new(BufReader::new(open)));
    let mut entries = archive.entries().map_err(|error| foreign(&error))?;
    let (name, bytes) = next(&mut entries)
        .map_err(|error| foreign(&error))?
        .ok_or_else(|| foreign(&"it is empty"))?;
    let about: About = serde_json::from_slice(&bytes).map_err(|error| foreign(&error))?;
    if name != ABOUT || about.format != FORMAT {
        return Err(foreign(&name));
    }
    if about.version != VERSION {
        return Err(Failure::usage(format!(
            "{} is a backup of format {}, and this version of Callboard reads format {VERSION}: \
             restore it with a newer one",
            path.display(),
            about.version
        )));
    }
    let (name, bytes) = next(&mut entries)
        .map_err(|error| damaged(&error.to_string()))?
        .ok_or_else(|| damaged("it ends early"))?;
    if name != GROUPS || blake3::hash(&bytes).to_hex().as_str() != about.groups_hash {
        return Err(damaged("the list of its groups"));
    }
    let groups: Vec<(String, StateGroup)> =
        rmp_serde::from_slice(&bytes).map_err(|error| damaged(&error.to_string()))?;
    let (mut present, mut wanted) = (BTreeSet::new(), BTreeSet::new());
    let mut indexes: BTreeSet<Hash> = BTreeSet::new();
    for (hash, is_index) in named(&groups) {
        wanted.insert(hash);
        if is_index {
            indexes.insert(hash);
        }
    }
    while let Some((name, bytes)) =
        next(&mut entries).map_err(|error| damaged(&error.to_string()))?
    {
        let hash = *blake3::hash(&bytes).as_bytes();
        if name.strip_prefix(CHUNKS) != Some(hex(&hash).as_str()) {
            return Err(damaged(&name));
        }
        if indexes.contains(&hash) {
            wanted.extend(listed(hash, &bytes)?);
        }
        present.insert(hash);
        take(hash, bytes)?;
    }
    // The end of the archive, where the checksum over all of it stands.
    let rest = io::copy(&mut archive.into_inner(), &mut io::sink());
    rest.map_err(|error| damaged(&error.to_string()))?;
    match wanted.difference(&present).next() {
        Some(missing) => Err(damaged(&format!("chunk {} is missing", hex(missing)))),
        None => Ok(Checked { about, groups }),
    }
}

fn next<R: io::Read>(entries: &mut tar::Entries<'_, R>) -> io::Result<Option<(String, Vec<u8>)>> {
    let Some(entry) = entries.next() else { return Ok(None) };
    let entry = entry?;
    let name = entry.path()?.to_string_lossy().into_owned();
    if entry.size() > ENTRY_BYTES_MAX {
        return Err(io::Error::other(format!("{name} is too large to be part of a backup")));
    }
    let size = entry.size();
    let mut bytes = Vec::new();
    entry.take(ENTRY_BYTES_MAX).read_to_end(&mut bytes)?;
    if bytes.len() as u64 == size {
        Ok(Some((name, bytes)))
    } else {
        Err(io::Error::from(io::ErrorKind::UnexpectedEof))
    }
}

#[cfg(test)]
mod tests;
