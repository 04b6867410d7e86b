//! What the kernel of this machine says of memory and priorities, from /proc.

use std::{fs, io, path::Path};

/// The capability to raise priorities, in the bit mask of `/proc/self/status`.
const CAP_SYS_NICE: u32 = 23;

/// Memory that could be had without swapping, in MiB.
pub(super) fn available_mib() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    Some(kib_of(&text, "MemAvailable:")? / 1024)
}

/// Memory of a process that it shares with no other, in bytes: what would be free without it.
///
/// # Errors
/// If the process is gone or not ours to look at.
pub fn unique_bytes(pid: u32) -> io::Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let private = ["Private_Clean:", "Private_Dirty:", "Private_Hugetlb:"];
    Ok(private.iter().filter_map(|name| kib_of(&text, name)).sum::<u64>() * 1024)
}

/// Process ids of the kernels that run below a node's run directory, those in stock included.
///
/// # Errors
/// If the directory cannot be read.
pub fn kernels_below(run_dir: &Path) -> io::Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(run_dir)? {
        let path = entry?.path();
        let is_kernel = path.extension().is_some_and(|it| it == "pid")
            && path.file_stem().is_some_and(|it| it != "zygote");
        if is_kernel
            && let Some(pid) =
                fs::read_to_string(&path).ok().and_then(|pid| pid.trim().parse().ok())
        {
            found.push(pid);
        }
    }
    Ok(found)
}

/// Whether this process may raise a priority again that was lowered.
pub(super) fn may_lower_niceness() -> bool {
    let text = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = text.lines().find_map(|line| line.strip_prefix("CapEff:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask & (1 << CAP_SYS_NICE) != 0)
}

fn kib_of(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().trim_end_matches("kB").trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_from_the_kernels_tables() {
        let text = "Rss:  5120 kB\nPrivate_Clean:  4 kB\nPrivate_Dirty:     1020 kB\n";
        assert_eq!(kib_of(text, "Private_Dirty:"), Some(1020));
        assert_eq!(kib_of(text, "Private:"), None);
        assert!(available_mib().is_some_and(|mib| mib > 0));
        assert!(unique_bytes(std::process::id()).unwrap() > 1 << 20);
    }

    #[test]
    fn the_zygote_is_no_kernel() {
        let run = tempfile::tempdir().unwrap();
        for (name, text) in [("a.pid", "12"), ("zygote.pid", "13"), ("b.pid", ""), ("log", "14")] {
            fs::write(run.path().join(name), text).unwrap();
        }
        assert_eq!(kernels_below(run.path()).unwrap(), [12]);
    }
}
