//! Limits of a kernel's processes, by control groups: version 1 with a tree per controller, or
//! version 2 with one tree.
//!
//! Each Python process gets a group of its own, with what it starts in it. What this machine cannot
//! enforce is said by [`Cgroups::unenforced`]; nothing is dropped without a word.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use callboard_protocol::control::KernelLimits;
use nix::unistd::Pid;

/// Where the trees are on every Linux.
pub const CGROUP_ROOT: &str = "/sys/fs/cgroup";
/// The period over which the share of the processors is counted, in microseconds; the kernel's own
/// default.
const CPU_PERIOD_US: u64 = 100_000;
/// What the names of our groups begin with.
const PREFIX: &str = "callboard-";

/// What a control group can limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Controller {
    Memory,
    Cpu,
    Pids,
}

const CONTROLLERS: [Controller; 3] = [Controller::Memory, Controller::Cpu, Controller::Pids];

impl Controller {
    fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Cpu => "cpu",
            Self::Pids => "pids",
        }
    }

    /// What it limits, for people.
    fn limits(self) -> &'static str {
        match self {
            Self::Memory => "memory (kernel_memory_max_mib)",
            Self::Cpu => "processor share (kernel_cpu_max_percent)",
            Self::Pids => "number of processes (kernel_processes_max)",
        }
    }

    fn is_wanted(self, limits: &KernelLimits) -> bool {
        match self {
            Self::Memory => limits.memory_max_mib.is_some(),
            Self::Cpu => limits.cpu_max_percent.is_some(),
            Self::Pids => limits.processes_max.is_some(),
        }
    }

    /// The files to write, in either version.
    fn settings(self, limits: &KernelLimits, is_v2: bool) -> Vec<(&'static str, String)> {
        match self {
            Self::Memory => {
                let bytes = limits.memory_max_mib.unwrap_or(0).saturating_mul(1 << 20).to_string();
                if is_v2 {
                    vec![("memory.max", bytes)]
                } else {
                    vec![("memory.limit_in_bytes", bytes)]
                }
            }
            Self::Cpu => {
                let percent = u64::from(limits.cpu_max_percent.unwrap_or(0));
                let quota_us = percent.saturating_mul(CPU_PERIOD_US / 100);
                if is_v2 {
                    vec![("cpu.max", format!("{quota_us} {CPU_PERIOD_US}"))]
                } else {
                    vec![
                        ("cpu.cfs_period_us", CPU_PERIOD_US.to_string()),
                        ("cpu.cfs_quota_us", quota_us.to_string()),
                    ]
                }
            }
            Self::Pids => vec![("pids.max", limits.processes_max.unwrap_or(0).to_string())],
        }
    }
}

/// The control groups that a node may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroups {
    is_v2: bool,
    /// The node's own directory for each controller that can be used.
    usable: BTreeMap<Controller, PathBuf>,
    /// Why each of the others cannot.
    missing: BTreeMap<Controller, String>,
}

impl Cgroups {
    /// Makes the groups of the node called `name` below `root` and looks what can be limited.
    #[must_use]
    pub fn prepare(root: &Path, name: &str) -> Self {
        let is_v2 = root.join("cgroup.controllers").exists();
        let name = format!("{PREFIX}{name}");
        let mut this = Self { is_v2, usable: BTreeMap::new(), missing: BTreeMap::new() };
        for controller in CONTROLLERS {
            let made = if is_v2 {
                delegate(root, &name, controller)
            } else {
                own_directory(&root.join(controller.name()), &name)
            };
            match made {
                Ok(directory) => drop(this.usable.insert(controller, directory)),
                Err(why) => drop(this.missing.insert(controller, why)),
            }
        }
        for directory in this.directories() {
            remove_empty_groups(&directory);
        }
        this
    }

    /// Removes the node's own groups, if no process is left in them.
    pub fn discard(&self) {
        for directory in self.directories() {
            // One that still has groups or processes refuses.
            let _ = fs::remove_dir(directory);
        }
    }

    /// What of these limits cannot be enforced here, each as a sentence.
    #[must_use]
    pub fn unenforced(&self, limits: &KernelLimits) -> Vec<String> {
        let wanted = self.missing.iter().filter(|(controller, _)| controller.is_wanted(limits));
        wanted
            .map(|(controller, why)| {
                format!("the limit of {} is not enforced: {why}", controller.limits())
            })
            .collect()
    }

    /// What cannot be enforced here of any kernel's limits, each as a sentence.
    #[must_use]
    pub fn unenforced_at_all(&self) -> Vec<String> {
        self.unenforced(&KernelLimits {
            memory_max_mib: Some(0),
            cpu_max_percent: Some(0),
            cell_wall_time_max_s: Some(0),
            processes_max: Some(0),
        })
    }

    /// Puts a process and what it starts from now on into a group of its own.
    ///
    /// # Errors
    /// If a limit that can be enforced here cannot be set.
    pub fn confine(&self, name: &str, pid: Pid, limits: &KernelLimits) -> io::Result<Confined> {
        let mut confined = Confined { is_v2: self.is_v2, directories: Vec::new(), memory: None };
        for (controller, parent) in &self.usable {
            if !controller.is_wanted(limits) {
                continue;
            }
            let directory = parent.join(name);
            if !confined.directories.contains(&directory) {
                fs::create_dir_all(&directory)?;
                confined.directories.push(directory.clone());
            }
            for (file, value) in controller.settings(limits, self.is_v2) {
                fs::write(directory.join(file), value)?;
            }
            if *controller == Controller::Memory {
                confined.memory = Some(directory);
            }
        }
        for directory in &confined.directories {
            fs::write(directory.join("cgroup.procs"), pid.to_string())?;
        }
        Ok(confined)
    }

    fn directories(&self) -> Vec<PathBuf> {
        let mut all: Vec<PathBuf> = self.usable.values().cloned().collect();
        all.dedup();
        all
    }
}

/// The node's directory in the tree of one controller of version 1.
fn own_directory(tree: &Path, name: &str) -> Result<PathBuf, String> {
    if !tree.is_dir() {
        return Err(format!("this machine has no control groups at {}", tree.display()));
    }
    let directory = tree.join(name);
    fs::create_dir_all(&directory).map_err(|error| cannot(&directory, &error))?;
    Ok(directory)
}

/// The node's directory in the one tree of version 2, with a controller switched on below it.
fn delegate(root: &Path, name: &str, controller: Controller) -> Result<PathBuf, String> {
    let directory = own_directory(root, name)?;
    for level in [root, &directory] {
        let offered = fs::read_to_string(level.join("cgroup.controllers")).unwrap_or_default();
        if level == root && !offered.split_whitespace().any(|it| it == controller.name()) {
            let shown = root.display();
            return Err(format!("{shown} does not offer the controller {}", controller.name()));
        }
        let file = level.join("cgroup.subtree_control");
        fs::write(&file, format!("+{}", controller.name()))
            .map_err(|error| cannot(&file, &error))?;
    }
    Ok(directory)
}

fn cannot(path: &Path, error: &io::Error) -> String {
    format!("{} cannot be written ({error}); run the node as root, or delegate it", path.display())
}

/// Groups whose processes ended with a former life of the node.
fn remove_empty_groups(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            // One that still has processes refuses.
            let _ = fs::remove_dir(entry.path());
        }
    }
}

/// A process within its limits. Dropping it removes the group once its processes are gone.
#[derive(Debug)]
pub struct Confined {
    is_v2: bool,
    directories: Vec<PathBuf>,
    memory: Option<PathBuf>,
}

impl Confined {
    /// How often the system has killed one of its processes because it used too much memory.
    #[must_use]
    pub fn memory_kills(&self) -> u64 {
        let Some(directory) = &self.memory else { return 0 };
        let file = if self.is_v2 { "memory.events" } else { "memory.oom_control" };
        let text = fs::read_to_string(directory.join(file)).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        line.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
    }
}

impl Drop for Confined {
    fn drop(&mut self) {
        let directories = std::mem::take(&mut self.directories);
        // Processes that were killed take a moment to leave their group.
        std::thread::spawn(move || {
            for _ in 0..REMOVALS_TRIED {
                let is_left =
                    directories.iter().any(|it| it.exists() && fs::remove_dir(it).is_err());
                if !is_left {
                    return;
                }
                std::thread::sleep(REMOVAL_PAUSE);
            }
        });
    }
}

/// How often and with what pause a group's removal is tried; what is left goes with the next start.
const REMOVALS_TRIED: u32 = 20;
const REMOVAL_PAUSE: std::time::Duration = std::time::Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> KernelLimits {
        KernelLimits {
            memory_max_mib: Some(64),
            cpu_max_percent: Some(150),
            cell_wall_time_max_s: None,
            processes_max: Some(20),
        }
    }

    fn read(directory: &Path, file: &str) -> String {
        fs::read_to_string(directory.join(file)).unwrap()
    }

    #[test]
    fn version_2_has_one_group_with_every_limit() {
        let tree = tempfile::tempdir().unwrap();
        fs::write(tree.path().join("cgroup.controllers"), "cpu memory pids\n").unwrap();
        let groups = Cgroups::prepare(tree.path(), "n");
        assert!(groups.unenforced(&limits()).is_empty(), "{groups:?}");
        let confined = groups.confine("k", Pid::from_raw(7), &limits()).unwrap();
        let group = tree.path().join("callboard-n/k");
        assert_eq!(read(&group, "memory.max"), (64 << 20).to_string());
        assert_eq!(read(&group, "cpu.max"), "150000 100000");
        assert_eq!(read(&group, "pids.max"), "20");
        assert_eq!(read(&group, "cgroup.procs"), "7");
        assert_eq!(confined.memory_kills(), 0);
        fs::write(group.join("memory.events"), "low 0\noom 3\noom_kill 2\n").unwrap();
        assert_eq!(confined.memory_kills(), 2);
    }

    #[test]
    fn version_1_has_a_group_per_limit_and_what_is_missing_is_said() {
        let tree = tempfile::tempdir().unwrap();
        for controller in ["memory", "cpu"] {
            fs::create_dir(tree.path().join(controller)).unwrap();
        }
        let groups = Cgroups::prepare(tree.path(), "n");
        let said = groups.unenforced(&limits());
        assert_eq!(said.len(), 1);
        assert!(said[0].contains("kernel_processes_max) is not enforced"), "{said:?}");
        assert!(groups.unenforced(&KernelLimits::default()).is_empty());
        let confined = groups.confine("k", Pid::from_raw(7), &limits()).unwrap();
        let memory = tree.path().join("memory/callboard-n/k");
        assert_eq!(read(&memory, "memory.limit_in_bytes"), (64 << 20).to_string());
        assert_eq!(read(&tree.path().join("cpu/callboard-n/k"), "cpu.cfs_quota_us"), "150000");
        fs::write(memory.join("memory.oom_control"), "under_oom 0\noom_kill 1\n").unwrap();
        assert_eq!(confined.memory_kills(), 1);
    }

    #[test]
    fn a_machine_without_control_groups_enforces_nothing_and_says_so() {
        let tree = tempfile::tempdir().unwrap();
        let groups = Cgroups::prepare(&tree.path().join("nothing"), "n");
        assert_eq!(groups.unenforced(&limits()).len(), 3);
        fs::write(tree.path().join("cgroup.controllers"), "cpu\n").unwrap();
        let said = Cgroups::prepare(tree.path(), "n").unenforced(&limits());
        assert!(said[0].contains("does not offer the controller memory"), "{said:?}");
        assert_eq!(said.len(), 2);
    }
}
