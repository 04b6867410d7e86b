//! `callboard simulate` and `callboard explain` as a user meets them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::{
    path::Path,
    process::{Command, Output},
};

use serde_json::Value;
use tempfile::TempDir;

const TRACE: &str = "session,gpus,submit_min,duration_min
1,8,0,10
1,8,12,10
2,4,5,30
2,4,40,3
3,1,6,100
";

fn callboard(dir: &Path, words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_callboard")).args(words).current_dir(dir).output().unwrap()
}

fn with_trace(text: &str) -> TempDir {
    let dir = TempDir::new().unwrap();
    std::fs::write(dir.path().join("trace.csv"), text).unwrap();
    dir
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn every_scheduler_is_compared_and_the_same_seed_prints_the_same_bytes() {
    let dir = with_trace(TRACE);
    let words = ["simulate", "--trace", "trace.csv", "--plots", "plots", "--output", "json"];
    let first = callboard(dir.path(), &words);
    assert!(first.status.success(), "{}", stderr(&first));
    let found: Value = serde_json::from_slice(&first.stdout).unwrap();
    assert_eq!(found["simulated"], true);
    assert_eq!(found["tasks"], 5);
    let runs = found["runs"].as_array().unwrap();
    for policy in
        ["reservation", "reservation-30m", "fcfs-batch", "pooled", "notebookos", "callboard"]
    {
        let run = runs.iter().find(|it| it["policy"] == policy && it["window"] == "all");
        let figures = &run.unwrap_or_else(|| panic!("no {policy}"))["figures"];
        assert_eq!(figures["tasks"], 5, "{policy}");
        assert!(figures["gpu_hours"].as_f64().unwrap() > 0.0, "{policy}");
    }
    for plot in ["delay.svg", "gpus.svg", "subscription.svg"] {
        let text = std::fs::read_to_string(dir.path().join("plots").join(plot)).unwrap();
        assert!(text.contains("<svg") && text.contains("callboard"), "{plot}");
    }
    let second = callboard(dir.path(), &words);
    assert_eq!(first.stdout, second.stdout);
    let table = callboard(dir.path(), &["simulate", "--trace", "trace.csv"]);
    assert!(
        stdout(&table).contains("simulated · seed 1 · 3 sessions, 5 tasks"),
        "{}",
        stdout(&table)
    );
}

#[test]
fn decisions_are_written_explained_and_decided_again() {
    let dir = with_trace(TRACE);
    let words =
        ["simulate", "--trace", "trace.csv", "--policy", "callboard", "--decisions", "run.jsonl"];
    let output = callboard(dir.path(), &words);
    assert!(output.status.success(), "{}", stderr(&output));
    let explained = stdout(&callboard(dir.path(), &["explain", "run.jsonl", "--kernel", "1"]));
    let grants: Vec<&str> = explained.lines().filter(|it| it.contains("gets 8 GPUs of")).collect();
    assert_eq!(grants.len(), 2, "{explained}");
    assert!(grants[1].starts_with("day 1 00:12:00"), "{explained}");
    let replayed = callboard(dir.path(), &["explain", "run.jsonl", "--replay"]);
    assert!(replayed.status.success());
    assert!(stdout(&replayed).contains("all the same"), "{}", stdout(&replayed));
}

#[test]
fn what_cannot_be_simulated_is_refused_with_a_next_step() {
    let dir = with_trace("session,gpus,submit_min,duration_min\n1,1,0,1\n1,9,1,1\n1,x,2,1\n");
    std::fs::write(dir.path().join("bad.toml"), "boot_ms = 15000\nboots = 1\n").unwrap();
    std::fs::write(dir.path().join("range.toml"), "[forecast]\nz = 99\n").unwrap();
    for (words, parts) in [
        (vec!["--trace", "trace.csv"], vec!["2 bad rows", "line 3", "line 4", "--skip-bad"]),
        (vec!["--trace", "none.csv"], vec!["cannot read none.csv"]),
        (vec!["--synthetic", "5", "--policy", "tiresias"], vec!["no scheduler 'tiresias'"]),
        (vec!["--synthetic", "5", "--config", "bad.toml"], vec!["boots"]),
        (vec!["--synthetic", "5", "--config", "range.toml"], vec!["z is 99", "-5 to 20"]),
        (vec!["--synthetic", "5", "--what-if", "forecast.z"], vec!["is no sweep"]),
        (vec!["--synthetic", "5", "--decisions", "run.jsonl"], vec!["for one scheduler"]),
    ] {
        let words: Vec<&str> = ["simulate"].into_iter().chain(words).collect();
        let output = callboard(dir.path(), &words);
        assert_eq!(output.status.code(), Some(2), "{words:?}: {}", stderr(&output));
        for part in parts {
            assert!(stderr(&output).contains(part), "{words:?}: {}", stderr(&output));
        }
    }
    let skipped = callboard(dir.path(), &["simulate", "--trace", "trace.csv", "--skip-bad"]);
    assert!(stdout(&skipped).contains("2 bad rows left out"), "{}", stderr(&skipped));
    let explained = callboard(dir.path(), &["explain", "trace.csv"]);
    assert_eq!(explained.status.code(), Some(2));
    assert!(stderr(&explained).contains("line 1 is no decision"), "{}", stderr(&explained));
}
