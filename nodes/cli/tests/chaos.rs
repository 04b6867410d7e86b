//! Two chaos trials on a real cluster: real processes, a real broker, the independent checker.
//!
//! Reproduce: `make setup && cargo test -p callboard-cli --test chaos`.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

const PLAN: &str = r#"
seed = 5

[[trials]]
seed = 51
moment = "idle"
fault = "kill_node"

[[trials]]
seed = 52
moment = "while_running"
fault = "kill_python"
"#;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

#[test]
fn a_lost_node_and_a_lost_python_lose_no_cell_and_run_none_twice() {
    let python = root().join(".venv/bin/python");
    assert!(python.exists(), "no Python environment: run `make setup` first");
    let folder = tempfile::tempdir_in("/tmp").unwrap();
    let plan = folder.path().join("plan.toml");
    std::fs::write(&plan, PLAN).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_callboard"))
        .current_dir(root())
        .args(["bench", "chaos", "--output", "json", "--plan"])
        .arg(&plan)
        .arg("--dir")
        .arg(folder.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{said}"));
    for name in ["acknowledged_cells_lost", "cells_run_twice", "interrupted_without_answer"] {
        let figures = report["figures"].as_array().unwrap();
        let figure = figures.iter().find(|figure| figure["name"] == name).unwrap();
        assert_eq!(figure["value"], 0.0, "{figure}\n{said}");
    }
    assert!(said.contains("2 trials made, 0 failed"), "{said}");
}
