//! Limits of kernels on real nodes: what happens when one bites, and that the cell says so.
//!
//! Reproduce: `make setup && cargo test -p callboard-cli --test limits`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]
#![allow(dead_code, reason = "the support of all cluster tests; this one needs a part")]

mod support;

use support::{Cluster, run_in};

#[test]
fn a_kernel_within_its_limits_says_which_one_it_ran_into() {
    let cluster = Cluster::start(&[]);
    let ran = cluster.run(&[
        "kernel",
        "start",
        "--name",
        "k",
        "--wait",
        "--memory-max-mib",
        "300",
        "--processes-max",
        "64",
        "--cpu-max-percent",
        "150",
    ]);
    assert_eq!(ran.code, 0, "{ran:?}");
    cluster.exec("k", "x = 1").prints("");
    let shown = cluster.run(&["kernel", "show", "k"]).stdout;
    assert!(shown.contains("limits     memory 300 MiB, processor 150 %, 64 processes"), "{shown}");
    if ran.stderr.contains("is not enforced") {
        // Not root, or no control groups: it was said at the start, and is said again.
        assert!(shown.contains("is not enforced"), "{shown}");
        let doctor = run_in(&cluster.data(), &["doctor"]);
        assert!(doctor.stdout.contains("is not enforced"), "{doctor:?}");
        return;
    }
    let ran = cluster.exec("k", "x = 2\nhuge = bytearray(600 << 20)");
    assert_eq!(ran.code, 5, "{ran:?}");
    assert!(
        ran.stderr.contains("was killed, as it used more than 300 MiB (limit of this kernel)"),
        "{ran:?}"
    );
    cluster.exec("k", "x").prints("1\n");
    let code = "import os\nlive = []\ntry:\n    for n in range(200):\n        pid = os.fork()\n        \
                if not pid:\n            import time; time.sleep(60)\n        live.append(pid)\n\
                except OSError as error:\n    print(type(error).__name__)\n\
                for pid in live: os.kill(pid, 9)";
    cluster.exec("k", code).prints("BlockingIOError\n");
}

#[test]
fn a_cell_that_runs_too_long_is_interrupted_and_one_that_does_not_stop_is_ended() {
    let cluster = Cluster::start(&[]);
    let ran =
        cluster.run(&["kernel", "start", "--name", "k", "--wait", "--cell-wall-time-max-s", "1"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let ran = cluster.exec("k", "x = 1\nwhile True: pass");
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.stderr.contains("this cell has run for 1 s, the limit of this kernel"), "{ran:?}");
    assert!(ran.stderr.contains("KeyboardInterrupt"), "{ran:?}");
    cluster.exec("k", "x").prints("1\n");
    let code = "import time\nx = 2\nwhile True:\n    try: time.sleep(60)\n    \
                except KeyboardInterrupt: pass";
    let ran = cluster.exec("k", code);
    assert_eq!(ran.code, 5, "{ran:?}");
    assert!(ran.stderr.contains("did not stop when it was interrupted"), "{ran:?}");
    cluster.exec("k", "x").prints("1\n");
}

#[test]
fn more_than_the_configuration_allows_is_refused() {
    let place = tempfile::tempdir().unwrap();
    let config = place.path().join("cluster.toml");
    std::fs::write(&config, "nodes = 1\nkernel_memory_max_mib = 256\n").unwrap();
    let cluster = Cluster::start(&["--config", config.to_str().unwrap()]);
    let more = ["kernel", "start", "--replicas", "1", "--memory-max-mib", "300"];
    let ran = cluster.run(&more);
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(ran.stderr.contains("the cluster's configuration allows 256"), "{ran:?}");
}
