//! A rolling upgrade: the version before this one and this one in one cluster.
//!
//! Reproduce: `CALLBOARD_PREVIOUS=$(scripts/previous) cargo test -p callboard-cli --test
//! mixed_versions -- --ignored`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod support;

use std::{collections::BTreeSet, path::PathBuf};

use support::{Cluster, command, wait_until};

fn previous() -> PathBuf {
    let path = std::env::var_os("CALLBOARD_PREVIOUS");
    PathBuf::from(path.expect("CALLBOARD_PREVIOUS names no binary: run scripts/previous"))
}

/// A session that is looked after by every step of the upgrade.
struct Session<'a> {
    cluster: &'a Cluster,
    cells: usize,
}

impl Session<'_> {
    /// What was there is there; what is written now is written by the mix of this moment.
    fn goes_on(&mut self) {
        let k = |code: &str| self.cluster.exec("k", code);
        k("len(steps), int(big.sum()), words is alias, len(words)").prints(&format!(
            "({0}, {0}, True, {1})\n",
            self.cells,
            50_000 + self.cells
        ));
        k("big[-1] += 1; steps.append(len(steps)); words.append('one more')").prints("");
        self.cells += 1;
        let name = format!("after-{}", self.cells);
        let kept = self.cluster.run(&["kernel", "checkpoint", "k", &name]);
        assert_eq!(kept.code, 0, "{kept:?}");
        k("big[:] = 7; del words").prints("");
        let undone = self.cluster.run(&["kernel", "rewind", "k", &name, "--yes"]);
        assert_eq!(undone.code, 0, "{undone:?}");
        k("len(steps), int(big.sum()), words is alias")
            .prints(&format!("({0}, {0}, True)\n", self.cells));
    }
}

/// A change of users is done, or refused because a member could not read it: exit code 6, or 2 if that
/// very member leads. Either way the control plane goes on.
fn add_user(cluster: &Cluster) -> i32 {
    let mut code = 4;
    wait_until("the control plane answers", || {
        code = cluster.run(&["user", "add", "ada", "--role", "admin"]).code;
        code != 4
    });
    assert!([0, 2, 6].contains(&code), "{code}");
    assert_eq!(cluster.node_pids().len(), 3);
    code
}

/// A kernel of another language is started once every member can read it.
fn start_bash(cluster: &Cluster) -> i32 {
    let mut code = 4;
    wait_until("the control plane answers", || {
        let args = ["kernel", "start", "--name", "bash", "--kernelspec", "bash", "--wait"];
        code = cluster.run(&args).code;
        code != 4
    });
    assert_eq!(cluster.node_pids().len(), 3);
    code
}

/// The executor's node, and its replica's name.
fn executor(cluster: &Cluster) -> (String, String) {
    let shown = cluster.show("k");
    let replicas = shown["status"]["replicas"].as_array().unwrap();
    let executor = replicas.iter().find(|r| r["role"] == "executor").unwrap();
    (executor["node"].as_str().unwrap().to_owned(), format!("k/{}", executor["replica"]))
}

#[test]
#[ignore = "needs the previous version's binary: scripts/acceptance mixed"]
fn a_session_goes_on_while_its_nodes_are_upgraded_one_by_one() {
    let previous = previous();
    let mut cluster = Cluster::start_of(&previous, &[]);
    cluster.start_kernel("k");
    let begin = "import numpy as np; big = np.zeros(500_000, dtype=int); steps = []\n\
                 words = ['w'] * 50_000; alias = words";
    cluster.exec("k", begin).prints("");
    cluster.start_kernel("asleep");
    cluster.exec("asleep", "x = 1").prints("");

    // The nodes outlive their `up`; this version's `up` adopts them, and starts anew what ends.
    cluster.kill_up();
    cluster.up(&[]);
    let mut session = Session { cluster: &cluster, cells: 0 };
    session.goes_on();
    let mut old: BTreeSet<String> = cluster.node_pids().into_iter().map(|(node, _)| node).collect();
    while !old.is_empty() {
        // The executor's node first, so that a member of the other version takes over from it.
        let (node, _) = executor(&cluster);
        let next = if old.contains(&node) { node } else { old.first().unwrap().clone() };
        let code = add_user(&cluster);
        assert_eq!(start_bash(&cluster), 6, "of the previous version are {old:?}");
        eprintln!("{next} is upgraded; of the previous version are {old:?}; users: {code}");
        let before = cluster.node_pids();
        cluster.kill_node(&next);
        old.remove(&next);
        session.goes_on();
        wait_until("the node is back", || {
            let now = cluster.node_pids();
            now.len() == 3 && now.iter().any(|it| it.0 == next && !before.contains(it))
        });
        cluster.wait_whole("k");
        session.goes_on();
        // The previous version's command line, too.
        let context = cluster.context();
        let said = command(&previous)
            .args(["--context", context.to_str().unwrap(), "kernel", "exec", "k", "len(steps)"])
            .output()
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&said.stdout), format!("{}\n", session.cells));
        // From a member of this version to one of either. (Of the previous one, a killed actor stays
        // away.)
        let (node, replica) = executor(&cluster);
        if !old.contains(&node) {
            let killed = cluster.run(&["kill", &replica, "--yes"]);
            assert_eq!(killed.code, 0, "{killed:?}");
            session.goes_on();
        }
    }
    assert_eq!(add_user(&cluster), 0, "every member knows users");
    let users = cluster.run(&["user", "list"]).stdout;
    assert!(users.contains("ada") && users.contains("admin"), "{users}");
    assert_eq!(start_bash(&cluster), 0, "every member knows kernelspecs");
    cluster.exec("bash", "echo $((1 + 1))").prints("2\n");
    cluster.exec("asleep", "x").prints("1\n");
    let history = cluster.run(&["kernel", "log", "k"]);
    assert_eq!(history.code, 0, "{history:?}");
}
