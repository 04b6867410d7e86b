//! Real clusters: the `callboard` binary, a real broker, real nodes, real Python.
//!
//! Needs the project's Python environment: `make setup`. Reproduce one test with
//! `cargo test -p callboard-cli --test cluster NAME`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod support;

use std::path::Path;

use support::{Cluster, Ran, wait_until};

fn executor_node(cluster: &Cluster) -> String {
    support::executor_node(cluster, "k")
}

#[test]
fn a_session_survives_its_node_its_broker_and_everything_at_once() {
    let mut cluster = Cluster::start(&[]);
    cluster.start_kernel("k");
    cluster.exec("k", "x = 1").prints("");
    let executor = executor_node(&cluster);
    cluster.kill_node(&executor);
    cluster.exec("k", "x").prints("1\n");
    cluster.wait_whole("k");

    cluster.kill_broker();
    cluster.exec("k", "x += 1; x").prints("2\n");

    let mut running =
        cluster.spawn_exec("k", "print('on', flush=True)\nx = 9\nimport time; time.sleep(600)");
    running.wait_for_output("on");
    let executor = executor_node(&cluster);
    cluster.kill_node(&executor);
    let interrupted = running.finish();
    assert_eq!(interrupted.code, 5, "{interrupted:?}");
    assert!(interrupted.stderr.contains("killed by signal 9"), "{interrupted:?}");
    assert!(interrupted.stderr.contains(&executor), "{interrupted:?}");
    cluster.exec("k", "x").prints("2\n");

    cluster.kill_everything();
    cluster.up(&[]);
    cluster.exec("k", "x").prints("2\n");
    let outputs = cluster.run(&["outputs", "k", "--since", "0.0"]);
    assert_eq!(outputs.code, 0, "{outputs:?}");
    assert!(outputs.stdout.contains("on"), "an old output is gone: {outputs:?}");
}

#[test]
fn what_does_not_exist_is_named_with_a_next_step() {
    let cluster = Cluster::start(&[]);
    let says = |ran: Ran, code: i32, words: &[&str]| {
        assert_eq!(ran.code, code, "{ran:?}");
        for word in words {
            assert!(ran.stderr.contains(word), "'{word}' is missing: {ran:?}");
        }
        assert!(!ran.stderr.contains("panicked"), "{ran:?}");
    };
    says(cluster.run(&["kernel", "exec", "nosuch", "1"]), 3, &["nosuch", "callboard kernel start"]);
    says(cluster.run(&["kernel", "show", "nosuch"]), 3, &["nosuch", "callboard kernel start"]);
    says(cluster.run(&["kernel", "stop", "nosuch", "--yes"]), 3, &["nosuch"]);
    says(cluster.run(&["outputs", "nosuch"]), 3, &["nosuch"]);
    says(cluster.run(&["kill", "node-9", "--yes"]), 3, &["node-9", "there are node-1"]);
    says(cluster.run(&["kernel", "start", "--replicas", "2"]), 2, &["1, 3 or 5"]);
}

#[test]
fn what_is_in_use_is_refused_and_nothing_is_lost() {
    let cluster = Cluster::start(&[]);
    cluster.start_kernel("k");
    cluster.exec("k", "x = 1").prints("");
    let second = cluster.up_that_fails(&[]);
    assert_eq!(second.code, 7, "{second:?}");
    assert!(second.stderr.contains("already runs"), "{second:?}");
    cluster.exec("k", "x").prints("1\n");

    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let elsewhere = tempfile::tempdir().unwrap();
    let refused = support::run_in(elsewhere.path(), &["up", "--data", "data", "--port", &port]);
    assert_eq!(refused.code, 7, "{refused:?}");
    assert!(refused.stderr.contains(&port), "{refused:?}");
}

#[test]
fn without_python_or_ipykernel_up_says_what_to_install() {
    let bare = tempfile::tempdir().unwrap();
    let python = bare.path().join("python");
    // A Python that has the standard library and nothing else.
    std::fs::write(&python, "#!/bin/sh\nexec python3 -S -I \"$@\"\n").unwrap();
    support::make_executable(&python);
    let refused = support::run_in(
        bare.path(),
        &["up", "--data", "data", "--python", python.to_str().unwrap()],
    );
    assert_eq!(refused.code, 7, "{refused:?}");
    assert!(refused.stderr.contains("lacks ipykernel and cloudpickle"), "{refused:?}");
    assert!(refused.stderr.contains("make setup"), "{refused:?}");

    let missing = tempfile::tempdir().unwrap();
    let none = support::run_in(
        missing.path(),
        &["up", "--data", "data", "--python", "/nonexistent/python"],
    );
    assert_eq!(none.code, 7, "{none:?}");
    assert!(none.stderr.contains("/nonexistent/python"), "{none:?}");
}

#[test]
fn a_node_without_a_broker_waits_and_then_says_what_to_do() {
    let mut cluster = Cluster::start(&[]);
    let credentials = cluster.data().join("credentials/node-1.json");
    cluster.stop();
    let elsewhere = tempfile::tempdir().unwrap();
    let refused = support::run_in(
        elsewhere.path(),
        &[
            "node",
            "--data",
            "n",
            "--id",
            "node-1",
            "--bootstrap",
            "node-1",
            "--broker-wait-s",
            "1",
            "--credentials",
            credentials.to_str().unwrap(),
        ],
    );
    assert_eq!(refused.code, 4, "{refused:?}");
    assert!(refused.stderr.contains("no broker answers"), "{refused:?}");
    assert!(refused.stderr.contains("callboard up"), "{refused:?}");
}

/// Changes one bit in the middle of the largest file below `directory` whose name passes.
fn flip_a_bit(directory: &Path, passes: impl Fn(&Path) -> bool) {
    let mut files = Vec::new();
    let mut pending = vec![directory.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                pending.push(path);
            } else if passes(&path) {
                files.push((path.metadata().unwrap().len(), path));
            }
        }
    }
    let (_, path) = files.into_iter().max().expect("a file to damage");
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    std::fs::write(&path, bytes).unwrap();
}

#[test]
fn a_flipped_bit_in_a_chunk_is_never_served_and_repaired_from_peers() {
    let mut cluster = Cluster::start(&[]);
    cluster.start_kernel("k");
    cluster
        .exec("k", "import numpy as np; a = np.arange(100_000); int(a.sum())")
        .prints("4999950000\n");
    cluster.wait_whole("k");
    let node = executor_node(&cluster);
    cluster.stop();
    flip_a_bit(&cluster.data().join("nodes").join(&node).join("chunks"), |path| {
        path.metadata().unwrap().len() > 100_000
    });
    cluster.up(&[]);
    for _ in 0..3 {
        cluster.exec("k", "int(a.sum())").prints("4999950000\n");
        let executor = executor_node(&cluster);
        cluster.kill_node(&executor);
        cluster.wait_whole("k");
    }
}

#[test]
fn a_flipped_bit_in_the_log_is_found_and_the_replica_rebuilt() {
    let mut cluster = Cluster::start(&[]);
    cluster.start_kernel("k");
    for n in 0..20 {
        cluster.exec("k", &format!("x{n} = {n}")).prints("");
    }
    cluster.stop();
    flip_a_bit(&cluster.data().join("nodes/node-2/wal"), |_| true);
    cluster.up(&[]);
    cluster.exec("k", "sum(globals()[f'x{n}'] for n in range(20))").prints("190\n");
    cluster.wait_whole("k");
    // The other copies can go one after the other: every replica has everything.
    for _ in 0..2 {
        let executor = executor_node(&cluster);
        cluster.kill_node(&executor);
        cluster.exec("k", "x7, x19").prints("(7, 19)\n");
        cluster.wait_whole("k");
    }
}

#[test]
fn a_kernel_that_lost_most_of_its_disks_goes_on_with_the_last_one() {
    let mut cluster = Cluster::start(&["--nodes", "5"]);
    cluster.start_kernel("k");
    cluster.exec("k", "import numpy as np; big = np.arange(300_000); x = 1").prints("");
    cluster.exec("k", "x += 1").prints("");
    cluster.wait_whole("k");
    let shown = cluster.show("k");
    let member = |r: &serde_json::Value| {
        (r["replica"].as_u64().unwrap(), r["node"].as_str().unwrap().to_owned())
    };
    let members: Vec<_> =
        shown["status"]["replicas"].as_array().unwrap().iter().map(member).collect();
    cluster.kill_everything();
    for (_, node) in &members[..2] {
        std::fs::remove_dir_all(cluster.data().join("nodes").join(node)).unwrap();
    }
    cluster.up(&[]);
    let lost =
        cluster.run(&["kernel", "recover", "k", "--from", &members[0].0.to_string(), "--yes"]);
    assert_ne!(lost.code, 0, "a lost replica is no survivor: {lost:?}");
    let from = members[2].0.to_string();
    let events = cluster.watch();
    wait_until("the kernel is recovered", || {
        cluster.run(&["kernel", "recover", "k", "--from", &from, "--yes"]).code == 0
    });
    events.wait_for(&["audit 20", " default kernel_recovered ", ": k, of default"]);
    cluster.exec("k", "x, int(big[-1])").prints("(2, 299999)\n");
    cluster.wait_whole("k");
    let executor = executor_node(&cluster);
    cluster.kill_node(&executor);
    cluster.exec("k", "x").prints("2\n");
}

#[test]
fn malformed_and_oversized_messages_get_a_sentence() {
    let cluster = Cluster::start(&[]);
    cluster.start_kernel("k");
    cluster.exec("k", "x = 1").prints("");
    let answer = cluster.request_raw("k", "shell", b"not a Jupyter message".to_vec());
    assert!(answer.contains("malformed Jupyter message"), "{answer}");
    let answer = cluster.request_raw("k", "nosuchverb", Vec::new());
    assert!(answer.contains("nosuchverb"), "{answer}");
    let big = cluster.exec("k", &format!("s = '{}'", "x".repeat(600 << 10)));
    assert_eq!(big.code, 2, "{}", big.stderr);
    assert!(big.stderr.contains("over the limit"), "{}", big.stderr);
    cluster.exec("k", "x").prints("1\n");
}

#[test]
fn killing_up_leaves_the_cluster_running_and_a_second_up_adopts_it() {
    let mut cluster = Cluster::start(&[]);
    cluster.start_kernel("k");
    cluster.exec("k", "x = 1").prints("");
    let before = cluster.node_pids();
    cluster.kill_up();
    cluster.exec("k", "x").prints("1\n");
    cluster.up(&[]);
    assert_eq!(cluster.node_pids(), before);
    cluster.exec("k", "x").prints("1\n");
}

#[test]
fn a_session_goes_back_branches_and_comes_back_from_a_file() {
    let cluster = Cluster::start(&[]);
    cluster.start_kernel("k");
    cluster.exec("k", "import numpy as np; big = np.arange(200_000); x = 1").prints("");
    cluster.exec("k", "big[0] = 7; x = 2").prints("");
    let kept = cluster.run(&["kernel", "checkpoint", "k", "seven"]);
    assert_eq!(kept.code, 0, "{kept:?}");
    cluster.exec("k", "del big").prints("");
    let log = cluster.run(&["kernel", "log", "k"]);
    assert!(log.stdout.contains("seven") && log.stdout.contains("del big"), "{log:?}");
    let gone = cluster.run(&["kernel", "rewind", "k", "99", "--yes"]);
    assert_eq!(gone.code, 3, "{gone:?}");
    assert!(gone.stderr.contains("no cell 99 yet"), "{gone:?}");
    let rewound = cluster.run(&["kernel", "rewind", "k", "1", "--yes"]);
    assert_eq!(rewound.code, 0, "{rewound:?}");
    assert!(rewound.stderr.contains("undoes cell 2"), "{rewound:?}");
    cluster.exec("k", "int(big[0]), x").prints("(0, 1)\n");
    let branch = cluster.run(&["kernel", "branch", "k", "--at", "seven", "--name", "other"]);
    assert_eq!(branch.code, 0, "{branch:?}");
    cluster.exec("other", "int(big[0]), x").prints("(7, 2)\n");

    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("k.backup");
    let file = file.to_str().unwrap();
    let backup = cluster.run(&["kernel", "backup", "k", file, "--at", "seven"]);
    assert_eq!(backup.code, 0, "{backup:?}");
    let restored = cluster.run(&["kernel", "restore", file, "--name", "again"]);
    assert_eq!(restored.code, 0, "{restored:?}");
    cluster.exec("again", "int(big[0]), x, int(big.sum()) > 0").prints("(7, 2, True)\n");
    flip_a_bit(directory.path(), |_| true);
    let damaged = cluster.run(&["kernel", "restore", file]);
    assert_ne!(damaged.code, 0, "{damaged:?}");
    assert!(damaged.stderr.contains("k.backup"), "{damaged:?}");
    let kernels = cluster.run(&["kernel", "list", "--output", "json"]);
    let kernels: serde_json::Value = serde_json::from_str(&kernels.stdout).unwrap();
    assert_eq!(kernels["kernels"].as_array().unwrap().len(), 3, "nothing was started");
}
