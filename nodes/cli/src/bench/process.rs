//! What processes cost, as /proc tells it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

/// Ticks of /proc's clock in a second: fixed on Linux whatever the kernel's own tick.
const TICKS_PER_SECOND: f64 = 100.0;

/// Processes of this machine with their parents.
#[derive(Debug)]
pub(super) struct Tree(BTreeMap<u32, u32>);

impl Tree {
    /// As they are now.
    #[must_use]
    pub(super) fn now() -> Self {
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        Self(pids.filter_map(|pid| Some((pid, Stat::of(pid)?.parent))).collect())
    }

    /// A process and everything it started.
    #[must_use]
    pub(super) fn family(&self, head: u32) -> BTreeSet<u32> {
        let mut family = BTreeSet::from([head]);
        loop {
            let before = family.len();
            let is_child = |(_, parent): &(&u32, &u32)| family.contains(parent);
            let children: Vec<u32> = self.0.iter().filter(is_child).map(|(pid, _)| *pid).collect();
            family.extend(children);
            if family.len() == before {
                return family;
            }
        }
    }
}

struct Stat {
    parent: u32,
    /// In user and kernel mode, in ticks of the clock.
    cpu_ticks: u64,
}

impl Stat {
    fn of(pid: u32) -> Option<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name, in brackets, may hold anything.
        let (_, rest) = text.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
        Some(Self { parent: u32::try_from(number(1)?).ok()?, cpu_ticks: number(11)? + number(12)? })
    }
}

/// Seconds of processor time that processes have used, each by itself.
#[must_use]
pub(super) fn cpu_seconds(pids: &BTreeSet<u32>) -> BTreeMap<u32, f64> {
    #[expect(clippy::cast_precision_loss, reason = "ticks of minutes are small")]
    let seconds = |ticks: u64| ticks as f64 / TICKS_PER_SECOND;
    let used = pids.iter().filter_map(|pid| Some((*pid, seconds(Stat::of(*pid)?.cpu_ticks))));
    used.collect()
}

/// Milliseconds of processor time that a process's threads have used so far, to the nanosecond; those
/// that have ended do not count. `None` if it is gone.
#[must_use]
pub(super) fn cpu_ms(pid: u32) -> Option<f64> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten();
    let of = |thread: fs::DirEntry| {
        let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<f64>().ok()
    };
    Some(threads.filter_map(of).sum::<f64>() / 1e6)
}

/// The name of a process: `node-1`, `nats-server`, `python`.
#[must_use]
pub(super) fn name(pid: u32) -> String {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words: Vec<String> = line
        .split(|byte| *byte == 0)
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .collect();
    let program = words.first().and_then(|word| word.rsplit('/').next()).unwrap_or("?");
    let id = words.iter().position(|word| word == "--id").and_then(|at| words.get(at + 1));
    id.map_or_else(|| program.to_owned(), Clone::clone)
}

/// Memory of a process in MiB.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Memory {
    /// Its share of the pages it uses together with others, and all of its own.
    pub(super) proportional_mib: f64,
    /// Pages that nobody else uses.
    pub(super) unique_mib: f64,
}

/// The memory of a process; `None` if it is gone or not ours.
#[must_use]
pub(super) fn memory(pid: u32) -> Option<Memory> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let mib = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key))?;
        Some(line.split_whitespace().next()?.parse::<f64>().ok()? / 1024.0)
    };
    let unique_mib = mib("Private_Clean:")? + mib("Private_Dirty:")?;
    Some(Memory { proportional_mib: mib("Pss:")?, unique_mib })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_a_family_time_and_memory() {
        let me = std::process::id();
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let family = Tree::now().family(me);
        assert!(family.contains(&child.id()) && family.contains(&me), "{family:?}");
        assert!(!Tree::now().family(child.id()).contains(&me));
        assert_eq!(name(child.id()), "sleep");
        assert!(cpu_seconds(&family).contains_key(&me));
        let memory = memory(me).unwrap();
        assert!(memory.unique_mib > 0.0 && memory.proportional_mib >= memory.unique_mib);
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
