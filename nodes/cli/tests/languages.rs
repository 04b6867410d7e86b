//! Kernels of other languages on real nodes: bash_kernel, whose state nothing replicates.
//!
//! Reproduce: `make setup && cargo test -p callboard-cli --test languages`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]
#![allow(dead_code, reason = "the support of all cluster tests; this one needs a part")]

mod support;

use std::{fs, path::Path};

use support::{Cluster, Ran, executor_node, wait_until};

fn start(cluster: &Cluster, name: &str, more: &[&str]) -> Ran {
    let args = ["kernel", "start", "--name", name, "--kernelspec"];
    cluster.run(&[&args[..], more].concat())
}

/// A cell that prints this, and in which nothing is said of a lost state.
fn prints(cluster: &Cluster, code: &str, expected: &str) {
    let ran = cluster.exec("b", code);
    assert_eq!((ran.code, &*ran.stdout), (0, expected), "{ran:?}");
    assert!(!ran.stderr.contains("[callboard]"), "{ran:?}");
}

/// A cell in which a fresh process says that it is one, and why.
fn is_told(cluster: &Cluster, code: &str, expected: &str, words: &[&str]) {
    let ran = cluster.exec("b", code);
    assert_eq!((ran.code, &*ran.stdout), (0, expected), "{ran:?}");
    for word in [&["[callboard] the process that ran the cells before is gone"], words].concat() {
        assert!(ran.stderr.contains(word), "'{word}' is missing: {ran:?}");
    }
    assert!(ran.stderr.contains("The state of 'bash' sessions is not replicated"), "{ran:?}");
}

#[test]
fn a_bash_session_runs_and_says_when_its_state_is_lost() {
    let mut cluster = Cluster::start(&[]);
    let unknown = start(&cluster, "b", &["nosuch"]);
    assert_eq!(unknown.code, 3, "{unknown:?}");
    assert!(unknown.stderr.contains("no node has a kernelspec 'nosuch': use bash or python3"));
    let started = start(&cluster, "b", &["bash", "--wait"]);
    assert_eq!(started.code, 0, "{started:?}");
    assert!(started.stderr.contains("the state of 'bash' sessions is not replicated"));
    let shown = cluster.run(&["kernel", "show", "b"]).stdout;
    assert!(shown.contains("state      the state of 'bash' sessions is not replicated"), "{shown}");

    prints(&cluster, "x=5; echo first", "first\n");
    prints(&cluster, "echo $x", "5\n");
    let failed = cluster.exec("b", "false");
    assert_eq!(failed.code, 1, "{failed:?}");

    let mut running = cluster.spawn_exec("b", "echo on; sleep 100");
    running.wait_for_output("on");
    assert_eq!(cluster.run(&["kernel", "interrupt", "b"]).code, 0);
    let interrupted = running.finish();
    assert_eq!(interrupted.code, 1, "{interrupted:?}");
    prints(&cluster, "echo $x", "5\n");

    for undo in [
        &["kernel", "checkpoint", "b", "name"][..],
        &["kernel", "rewind", "b", "1", "--yes"],
        &["kernel", "branch", "b"],
        &["kernel", "backup", "b", "file"],
    ] {
        let refused = cluster.run(undo);
        assert_eq!(refused.code, 2, "{refused:?}");
        assert!(refused.stderr.contains("there is none to keep, to go back to"), "{refused:?}");
    }
    let history = cluster.run(&["kernel", "log", "b"]);
    assert!(history.code == 0 && history.stdout.contains("x=5; echo first"), "{history:?}");

    // The parent of bash is the kernel.
    let killed = cluster.exec("b", "kill -9 $PPID; sleep 100");
    assert_eq!(killed.code, 5, "{killed:?}");
    assert!(killed.stderr.contains("was killed by signal 9"), "{killed:?}");
    assert!(killed.stderr.contains("the variables of its process are gone"), "{killed:?}");
    is_told(&cluster, "echo \"[$x]\"", "[]\n", &["was killed by signal 9"]);
    prints(&cluster, "y=7; echo \"[$x$y]\"", "[7]\n");

    cluster.wait_whole("b");
    let lost = executor_node(&cluster, "b");
    // It would start the node again.
    cluster.kill_up();
    cluster.kill_node(&lost);
    let words = [&*format!("executor lost on {lost}"), "Files stay where they were written"];
    is_told(&cluster, "echo \"[$y]\"", "[]\n", &words);
    assert_ne!(executor_node(&cluster, "b"), lost);
    cluster.up(&[]);
    prints(&cluster, "z=9; echo \"[$y$z]\"", "[9]\n");

    // Whoever restarts it means to lose them.
    let answer = cluster.request_raw("b", "restart", br#"{"id": "wish"}"#.to_vec());
    assert!(answer.contains("ok"), "{answer}");
    prints(&cluster, "echo \"[$z]\"", "[]\n");

    prints(&cluster, "w=1", "");
    cluster.kill_everything();
    cluster.up(&[]);
    is_told(&cluster, "echo \"[$w]\"", "[]\n", &[]);
    let outputs = cluster.run(&["outputs", "b", "--since", "0.0"]);
    assert!(outputs.code == 0 && outputs.stdout.contains("first"), "{outputs:?}");
}

#[test]
fn a_bash_session_is_not_parked_when_a_python_one_is() {
    let place = tempfile::tempdir().unwrap();
    let config = place.path().join("cluster.toml");
    fs::write(&config, "park_after_s = 1\nhibernate_after_s = 1\n").unwrap();
    let cluster = Cluster::start(&["--config", config.to_str().unwrap()]);
    let started = start(&cluster, "b", &["bash", "--wait"]);
    assert_eq!(started.code, 0, "{started:?}");
    prints(&cluster, "x=5", "");
    // It began later and is parked: the other would have been.
    cluster.start_kernel("k");
    cluster.exec("k", "x = 1").prints("");
    let phase = |kernel: &str| {
        let shown = cluster.run(&["kernel", "show", kernel, "--output", "json"]).stdout;
        let shown: serde_json::Value = serde_json::from_str(&shown).unwrap_or_default();
        (shown["status"]["phase"].clone(), shown["status"]["term"].is_number())
    };
    wait_until("the Python kernel has no executor", || !phase("k").1);
    wait_until("the bash kernel sleeps", || phase("b").0 == "hibernating");
    assert!(phase("b").1, "its process stays");
    prints(&cluster, "echo $x", "5\n");
}

/// Writes a kernelspec that starts bash_kernel under another name.
fn install(jupyter: &Path) {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.venv/bin/python");
    let spec = serde_json::json!({
        "argv": [python, "-m", "bash_kernel", "-f", "{connection_file}"],
        "display_name": "Shell", "language": "bash", "env": { "PS1": "$" },
    });
    let folder = jupyter.join("kernels/shell");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("kernel.json"), spec.to_string()).unwrap();
}

#[test]
fn members_go_to_nodes_that_have_the_kernelspec_and_those_that_lack_it_are_named() {
    let place = tempfile::tempdir().unwrap();
    let jupyter = |node: &str| place.path().join(node);
    install(&jupyter("node-1"));
    install(&jupyter("node-2"));
    let config = place.path().join("cluster.toml");
    let launcher = format!("env JUPYTER_PATH={}/{{node}}", place.path().display());
    fs::write(&config, format!("node_launcher = \"{launcher}\"\n")).unwrap();
    let cluster = Cluster::start(&["--config", config.to_str().unwrap()]);
    let started = start(&cluster, "b", &["shell", "--wait"]);
    assert_eq!(started.code, 0, "{started:?}");
    assert!(started.stderr.contains("only 2 of 3 replicas have a place"), "{started:?}");
    wait_until("who lacks it is named", || {
        let shown = cluster.run(&["kernel", "show", "b"]).stdout;
        shown.contains("node-3: it has no kernelspec 'shell'")
    });
    prints(&cluster, "echo on $(basename $0)", "on bash\n");
    // Seen without a restart.
    install(&jupyter("node-3"));
    cluster.wait_whole("b");
}
