//! Files of a session on real nodes, each with a directory of its own.
//!
//! Reproduce: `make setup && cargo test -p callboard-cli --test files`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]
#![allow(dead_code, reason = "the support of all cluster tests; this one needs a part")]

mod support;

use std::{fs, os::unix::fs::PermissionsExt as _, path::PathBuf};

use support::{Cluster, wait_until};

/// Directories of sessions, and of their packages, on all nodes.
fn roots(cluster: &Cluster) -> Vec<PathBuf> {
    let works = (1..=3).map(|n| cluster.data().join(format!("nodes/node-{n}/work")));
    let holders = works.flat_map(|work| [work.join(".packages"), work.join(".caches"), work]);
    let entries = holders.filter_map(|it| fs::read_dir(it).ok()).flatten();
    let paths = entries.map(|entry| entry.unwrap().path());
    let holders = [".packages", ".caches"];
    paths.filter(|path| !holders.iter().any(|holder| path.ends_with(holder))).collect()
}

#[test]
fn files_follow_the_session_are_shown_and_go_with_the_kernel() {
    let cluster = Cluster::start(&[]);
    cluster.start_kernel("k");
    cluster.exec("k", "import os; os.mkdir('out'); os.chdir('out')").prints("");
    cluster.exec("k", "with open('log.txt', 'w') as f: print('one', file=f)").prints("");
    cluster.exec("k", "open('big.bin', 'wb').write(bytes(1 << 20))").prints("1048576\n");
    let shown = cluster.show("k");
    assert_eq!(shown["status"]["files"], serde_json::json!(["out", "out/big.bin", "out/log.txt"]));
    for _ in 0..2 {
        cluster.wait_whole("k");
        let executor = support::executor_node(&cluster, "k");
        cluster.kill_node(&executor);
        let code =
            "os.path.basename(os.getcwd()), open('log.txt').read(), os.path.getsize('big.bin')";
        cluster.exec("k", code).prints("('out', 'one\\n', 1048576)\n");
    }
    cluster.wait_whole("k");
    assert!(roots(&cluster).len() > 1, "{:?}", roots(&cluster));
    let ran = cluster.run(&["kernel", "stop", "k", "--yes"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    wait_until("the directories are gone", || roots(&cluster).is_empty());
}

#[test]
fn a_directory_that_the_user_names_is_used_as_it_is() {
    let cluster = Cluster::start(&[]);
    let place = tempfile::tempdir().unwrap();
    // Kernels may run under uids of their own.
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let shown = place.path().to_str().unwrap();
    let ran = cluster.run(&["kernel", "start", "--name", "k", "--directory", shown, "--wait"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    cluster.exec("k", "import os; print(os.getcwd())").prints(&format!("{shown}\n"));
    let ran =
        cluster.exec("k", "with open('f', 'w') as f: print('x', file=f)\nos.chmod('f', 0o644)");
    assert!(ran.stderr.contains("it is outside the session's directory"), "{ran:?}");
    cluster.kill_node(&support::executor_node(&cluster, "k"));
    cluster.exec("k", "print(os.getcwd(), open('f').read())").prints(&format!("{shown} x\n\n"));
    let bad = cluster.run(&["kernel", "start", "--directory", "relative"]);
    assert_eq!(bad.code, 2, "{bad:?}");
    assert!(bad.stderr.contains("absolute path"), "{bad:?}");
}
