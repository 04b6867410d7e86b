//! What the cluster uses, from outside: memory of its processes, bytes and files on its disks.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use callboard_protocol::NodeId;
use serde::Serialize;

/// File that a full disk is full of; it is ours.
const BALLAST: &str = "ballast";
/// What `st_blocks` counts, in bytes.
const BLOCK_BYTES: u64 = 512;

/// What is used at one time. Memory is proportional set size: shared pages are counted once.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Sample {
    /// Since the run began, in seconds.
    pub at_s: f64,
    /// All node processes, in KiB.
    pub nodes_kib: u64,
    /// The one node that no fault ends, in KiB; 0 while it does not run.
    pub spared_kib: u64,
    /// All Python processes, in KiB.
    pub python_kib: u64,
    /// How many Python processes.
    pub pythons: u64,
    /// Open files of all node processes.
    pub files_open: u64,
    /// All data directories, in bytes on disk.
    pub disk_bytes: u64,
    /// That of the node that no fault ends.
    pub spared_disk_bytes: u64,
    /// Of all, the write-ahead logs.
    pub log_bytes: u64,
    /// Chunks in all stores.
    pub chunks: u64,
}

/// Where to look.
#[derive(Debug, Clone)]
pub struct Sampler {
    /// Data directories by node.
    pub folders: Vec<(NodeId, PathBuf)>,
    /// The node that no fault ends.
    pub spared: NodeId,
}

#[derive(Default)]
struct Usage {
    bytes: u64,
    log_bytes: u64,
    chunks: u64,
}

impl Sampler {
    /// Looks. Blocks for some milliseconds.
    #[must_use]
    pub fn sample(&self, at_s: f64) -> Sample {
        let mut sample = Sample { at_s, ..Sample::default() };
        let parents = parents();
        let mut nodes = BTreeMap::new();
        for pid in parents.keys() {
            if let Some(node) = self.node_of(*pid) {
                nodes.insert(*pid, node);
            }
        }
        for (pid, node) in &nodes {
            let kib = pss_kib(*pid);
            sample.nodes_kib += kib;
            if *node == self.spared {
                sample.spared_kib += kib;
            }
            let files = fs::read_dir(format!("/proc/{pid}/fd"));
            sample.files_open += files.into_iter().flatten().count() as u64;
        }
        let roots: BTreeSet<u32> = nodes.keys().copied().collect();
        for pid in parents.keys().filter(|pid| descends(**pid, &parents, &roots)) {
            sample.pythons += 1;
            sample.python_kib += pss_kib(*pid);
        }
        for (node, folder) in &self.folders {
            let mut usage = Usage::default();
            add_up(folder, &mut usage);
            sample.disk_bytes += usage.bytes;
            sample.log_bytes += usage.log_bytes;
            sample.chunks += usage.chunks;
            if *node == self.spared {
                sample.spared_disk_bytes = usage.bytes;
            }
        }
        sample
    }

    /// Whose process it is, if it is a node's.
    fn node_of(&self, pid: u32) -> Option<NodeId> {
        let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let words: Vec<&[u8]> = command.split(|byte| *byte == 0).collect();
        if !words.contains(&b"node".as_slice()) {
            return None;
        }
        let is_its =
            |folder: &Path| words.iter().any(|word| *word == folder.as_os_str().as_encoded_bytes());
        let found = self.folders.iter().find(|(_, folder)| is_its(folder));
        found.map(|(node, _)| node.clone())
    }
}

/// The parent of every process.
fn parents() -> BTreeMap<u32, u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let parent = |pid: u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
    };
    pids.filter_map(|pid| Some((pid, parent(pid)?))).collect()
}

/// Whether one of `roots` is among the ancestors of a process.
fn descends(pid: u32, parents: &BTreeMap<u32, u32>, roots: &BTreeSet<u32>) -> bool {
    let mut at = pid;
    while let Some(parent) = parents.get(&at).copied().filter(|parent| *parent > 1) {
        if roots.contains(&parent) {
            return true;
        }
        at = parent;
    }
    false
}

fn pss_kib(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

fn add_up(folder: &Path, usage: &mut Usage) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        // Files come and go while they are counted.
        let Ok(facts) = fs::symlink_metadata(&path) else { continue };
        if facts.is_dir() {
            add_up(&path, usage);
            continue;
        }
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name == BALLAST {
            continue;
        }
        let bytes = facts.blocks() * BLOCK_BYTES;
        usage.bytes += bytes;
        if name.starts_with("wal-") {
            usage.log_bytes += bytes;
        }
        if name.len() == 64 {
            usage.chunks += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_counted_by_what_they_are_and_ballast_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let write = |path: String, length: usize| {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, vec![1; length]).unwrap();
        };
        write("wal/wal-0000000000000000.log".to_owned(), 10_000);
        write(format!("chunks/k/{}", "a".repeat(64)), 5_000);
        write("ballast".to_owned(), 900_000);
        let node = NodeId::new("node-1").unwrap();
        let folders = vec![(node.clone(), folder.path().to_owned())];
        let sample = Sampler { folders, spared: node }.sample(1.0);
        assert!((10_000..20_000).contains(&sample.log_bytes), "{sample:?}");
        assert!((15_000..40_000).contains(&sample.disk_bytes), "{sample:?}");
        assert_eq!(sample.spared_disk_bytes, sample.disk_bytes);
        assert_eq!((sample.chunks, sample.pythons, sample.nodes_kib), (1, 0, 0));
    }

    #[test]
    fn this_process_uses_memory_and_descends_from_its_parent() {
        let pid = std::process::id();
        assert!(pss_kib(pid) > 100);
        let parents = parents();
        let parent = parents[&pid];
        assert!(parent <= 1 || descends(pid, &parents, &BTreeSet::from([parent])));
    }
}
