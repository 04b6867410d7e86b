//! Processes that fell to this node: what kernels started and left behind.
//!
//! The node is the reaper of its descendants, so that forked kernels become its children; with them
//! come the orphans of kernels. Those that have ended stay in the process table until somebody
//! waits for them. Nobody else does: tokio waits for what it started, and does so at once.

use std::{collections::HashSet, fs};

use nix::{
    sys::wait::{WaitPidFlag, waitpid},
    unistd::Pid,
};

/// A process by its id and the time it began: an id is used again.
type Seen = (i32, u64);

/// Children that had ended when they were last looked at.
#[derive(Debug, Default)]
pub(super) struct Orphans(HashSet<Seen>);

impl Orphans {
    /// Takes the ended children that were there at the last look, too, out of the process table;
    /// returns how many. Whoever waits for a child does so long before the next look.
    pub(super) fn bury(&mut self) -> usize {
        let ended = ended_children();
        let (old, new): (HashSet<Seen>, HashSet<Seen>) =
            ended.into_iter().partition(|seen| self.0.contains(seen));
        self.0 = new;
        let bury =
            |(pid, _): &&Seen| waitpid(Pid::from_raw(*pid), Some(WaitPidFlag::WNOHANG)).is_ok();
        old.iter().filter(bury).count()
    }
}

fn ended_children() -> HashSet<Seen> {
    let tasks = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let children = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    let pids: Vec<i32> = children
        .flat_map(|text| text.split_whitespace().map(str::parse).collect::<Vec<_>>())
        .filter_map(Result::ok)
        .collect();
    pids.into_iter().filter_map(|pid| Some((pid, ended(pid)?))).collect()
}

/// When a process began, in ticks, if it has ended and nobody waited for it.
fn ended(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    if fields.next()? != "Z" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    // One test: two at once would bury each other's children.
    #[test]
    #[expect(clippy::zombie_processes, reason = "that is what is looked for")]
    fn an_ended_child_nobody_waits_for_is_buried_at_the_second_look_and_a_living_one_is_left_alone()
    {
        let mut living = Command::new("sleep").arg("600").spawn().unwrap();
        let child = Command::new("true").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        while ended(pid).is_none() {
            std::thread::yield_now();
        }
        let mut orphans = Orphans::default();
        orphans.bury();
        assert!(ended(pid).is_some(), "somebody may still wait for it");
        assert!(orphans.bury() >= 1);
        assert_eq!(ended(pid), None);
        assert_eq!(living.try_wait().unwrap(), None);
        living.kill().unwrap();
        living.wait().unwrap();
    }
}
