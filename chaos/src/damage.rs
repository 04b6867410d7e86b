//! What is done to the files of a node that does not run: bits flipped, ends cut off, all removed.
//!
//! Everything follows from the seed and from what is there.

use std::{
    fs::{self, File, OpenOptions},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};

use crate::error::ChaosError;

/// Most bits flipped at once.
const BITS_MAX: u32 = 8;
/// Most bytes cut off the log.
const CUT_MAX: u64 = 4096;
/// The part of a log in which damage is most likely to matter: its end, in bytes.
const END_BYTES: u64 = 64 << 10;

/// The kinds of files a node keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Log,
    Snapshot,
    Chunk,
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let list = fs::read_dir(folder).into_iter().flatten();
    let mut paths: Vec<PathBuf> = list.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    paths
}

fn named(paths: Vec<PathBuf>, is: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let keep = |path: &PathBuf| path.file_name().and_then(|it| it.to_str()).is_some_and(&is);
    paths.into_iter().filter(keep).collect()
}

fn files(node: &Path, kind: Kind) -> Vec<PathBuf> {
    let below = |folder: &str| -> Vec<PathBuf> {
        entries(&node.join(folder)).iter().flat_map(|path| entries(path)).collect()
    };
    match kind {
        Kind::Log => named(entries(&node.join("wal")), |name| name.ends_with(".log")),
        Kind::Snapshot => named(below("groups"), |name| name.ends_with(".bin")),
        Kind::Chunk => named(below("chunks"), |name| name.len() == 64),
    }
}

fn length(path: &Path) -> Result<u64, ChaosError> {
    Ok(fs::metadata(path).map_err(ChaosError::io("look at", path))?.len())
}

/// Flips bits of one file: the log in one half of all cases, else a snapshot or a chunk.
///
/// # Errors
/// [`ChaosError::Io`], or [`ChaosError::Command`] if the node has no log.
pub fn flip_bits(node: &Path, seed: u64) -> Result<String, ChaosError> {
    let mut rng = StdRng::seed_from_u64(seed);
    let kind =
        *[Kind::Log, Kind::Log, Kind::Snapshot, Kind::Chunk].choose(&mut rng).unwrap_or(&Kind::Log);
    let of_kind = files(node, kind);
    let path = match of_kind.choose(&mut rng) {
        Some(path) => path.clone(),
        None => last_segment(node)?,
    };
    let length = length(&path)?;
    let from = match rng.random_bool(0.5) {
        true => length.saturating_sub(END_BYTES),
        false => 0,
    };
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .map_err(ChaosError::io("open", &path))?;
    let count = rng.random_range(1..=BITS_MAX);
    for _ in 0..count {
        let at = rng.random_range(from..length.max(from + 1));
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).map_err(ChaosError::io("read", &path))?;
        byte[0] ^= 1 << rng.random_range(0..8);
        file.write_all_at(&byte, at).map_err(ChaosError::io("write", &path))?;
    }
    Ok(format!("{count} bits flipped in {}", shown(node, &path)))
}

/// Cuts the end off the log.
///
/// # Errors
/// As [`flip_bits`].
pub fn truncate_tail(node: &Path, seed: u64) -> Result<String, ChaosError> {
    let mut rng = StdRng::seed_from_u64(seed);
    let path = last_segment(node)?;
    let length = length(&path)?;
    let cut = rng.random_range(1..=CUT_MAX.min(length.max(1)));
    let file = OpenOptions::new().write(true).open(&path);
    let cut_off = |file: File| file.set_len(length.saturating_sub(cut));
    file.and_then(cut_off).map_err(ChaosError::io("shorten", &path))?;
    Ok(format!("{cut} bytes cut off {}", shown(node, &path)))
}

/// Removes everything a node keeps.
///
/// # Errors
/// [`ChaosError::Io`].
pub fn lose_disk(node: &Path) -> Result<String, ChaosError> {
    for path in entries(node) {
        let removed =
            if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.map_err(ChaosError::io("remove", &path))?;
    }
    Ok("its data directory emptied".to_owned())
}

fn last_segment(node: &Path) -> Result<PathBuf, ChaosError> {
    files(node, Kind::Log).pop().ok_or_else(|| ChaosError::Command {
        command: format!("damage the log of {}", node.display()),
        why: "it has none".to_owned(),
    })
}

fn shown(node: &Path, path: &Path) -> String {
    path.strip_prefix(node).unwrap_or(path).display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (path, length) in [
            ("wal/wal-0000000000000000.log", 9000),
            ("wal/wal-0000000000001000.log", 5000),
            ("wal/synced", 20),
            ("groups/k/snap-00000000000000000009.bin", 300),
        ] {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, vec![0; length]).unwrap();
        }
        folder
    }

    fn ones(path: &Path) -> u32 {
        fs::read(path).unwrap().iter().map(|byte| byte.count_ones()).sum()
    }

    #[test]
    fn bits_are_flipped_in_one_file_and_the_seed_says_which() {
        for seed in 0..40 {
            let (a, b) = (node(), node());
            let said = flip_bits(a.path(), seed).unwrap();
            assert_eq!(flip_bits(b.path(), seed).unwrap(), said);
            let path = a.path().join(said.split(" in ").nth(1).unwrap());
            assert!((1..=BITS_MAX).contains(&ones(&path)) || ones(&path) == 0, "{said}");
            assert!(!said.contains("synced"), "{said}");
        }
    }

    #[test]
    fn the_last_segment_is_shortened() {
        let node = node();
        truncate_tail(node.path(), 3).unwrap();
        assert_eq!(length(&node.path().join("wal/wal-0000000000000000.log")).unwrap(), 9000);
        assert!(length(&node.path().join("wal/wal-0000000000001000.log")).unwrap() < 5000);
    }

    #[test]
    fn nothing_is_left_of_a_lost_disk() {
        let node = node();
        lose_disk(node.path()).unwrap();
        assert_eq!(fs::read_dir(node.path()).unwrap().count(), 0);
    }
}
