//! The command as a user meets it where no cluster is needed: exit codes, sentences, stdout against
//! stderr.

#![expect(clippy::unwrap_used, reason = "the helpers of tests are no `#[test]`")]

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use serde_json::Value;

/// Runs the command in an empty folder, with no setting of the caller's.
fn callboard(folder: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_callboard"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("CALLBOARD_")) {
        command.env_remove(name);
    }
    command.current_dir(folder).args(args).output().unwrap()
}

/// Exit code, stdout, stderr.
fn run(folder: &Path, args: &[&str]) -> (i32, String, String) {
    let output = callboard(folder, args);
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

/// Expects a failure with this code and these words on stderr, and nothing on stdout.
fn refuses(args: &[&str], code: i32, words: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    refuses_in(folder.path(), args, code, words);
}

fn refuses_in(folder: &Path, args: &[&str], code: i32, words: &[&str]) {
    let (exit, stdout, stderr) = run(folder, args);
    assert_eq!((exit, stdout.as_str()), (code, ""), "{args:?}: {stderr}");
    for word in words {
        assert!(stderr.contains(word), "{args:?}: '{word}' is missing in: {stderr}");
    }
    assert!(!stderr.contains("panicked"), "{args:?}: {stderr}");
}

#[test]
fn wrong_usage_is_refused_before_anything_is_done() {
    refuses(&["kernel", "start", "--replicas", "2"], 2, &["1, 3 or 5"]);
    refuses(&["kernel", "exec", "k"], 2, &["<CODE>"]);
    refuses(&["kernel", "exec", "k", "x", "--file", "f"], 2, &["cannot be used with"]);
    refuses(&["kernel", "exec", "k", "x", "--timeout", "0"], 2, &["above 0"]);
    refuses(&["outputs", "k", "--since", "x"], 2, &["TERM.NUMBER"]);
    refuses(&["node", "--data", "d", "--id", "a b"], 2, &["letters, digits"]);
    refuses(&["user", "add", "two words"], 2, &["letters, digits"]);
    refuses(&["user", "add", "ada", "--role", "king"], 2, &["viewer", "admin"]);
    refuses(&["user", "token", "ada", "--expires-in", "soon"], 2, &["such as 30d"]);
    refuses(&["user", "revoke", "short"], 2, &["callboard user list"]);
    refuses(&["kill", "a/b/c/d"], 2, &["names no actor", "node-2"]);
    refuses(&["bench", "nothing"], 2, &["nothing", "--help"]);
    refuses(&["frobnicate"], 2, &["unrecognized"]);
}

#[test]
fn without_a_cluster_every_verb_says_how_to_get_one() {
    for args in [
        &["nodes"][..],
        &["events"],
        &["outputs", "k"],
        &["kernel", "list"],
        &["kernel", "start"],
        &["kernel", "show", "k"],
        &["kernel", "exec", "k", "x = 1"],
        &["kernel", "interrupt", "k"],
        &["kernel", "stop", "k", "--yes"],
        &["user", "add", "ada"],
        &["user", "remove", "ada"],
        &["user", "list"],
        &["user", "token", "ada"],
        &["user", "revoke", "000000000000"],
        &["kill", "node-1", "--yes"],
    ] {
        refuses(args, 4, &["found no cluster", "callboard up", "--context"]);
    }
}

#[test]
fn the_broker_is_killed_only_where_up_runs() {
    refuses(&["kill", "broker", "--yes"], 4, &["only where `callboard up` runs"]);
}

#[test]
fn a_broker_that_does_not_answer_is_named_with_a_next_step() {
    let folder = tempfile::tempdir().unwrap();
    let context = folder.path().join("operator.json");
    // Port 1 is reserved; nothing listens on it.
    let credentials = r#"{"url":"nats://127.0.0.1:1","cluster":"c","user":"operator",
        "password":"p","inbox_prefix":"_INBOX.operator"}"#;
    fs::write(&context, credentials).unwrap();
    let context = context.to_str().unwrap();
    let words = ["no broker answers at nats://127.0.0.1:1", "callboard up"];
    refuses_in(folder.path(), &["nodes", "--context", context], 4, &words);
}

#[test]
fn a_file_that_is_not_a_context_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("x.json"), "{}").unwrap();
    refuses_in(folder.path(), &["nodes", "--context", "x.json"], 2, &["not a credentials file"]);
}

#[test]
fn a_configuration_with_several_problems_is_refused_with_all_of_them() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("c.toml"), "nodez = 3\nnodes = 0\ncluster_id = 'a b'").unwrap();
    let words = ["unknown key 'nodez'", "nodes is 0", "cluster_id"];
    refuses_in(folder.path(), &["up", "--config", "c.toml"], 2, &words);
    assert!(!folder.path().join(".callboard").exists(), "nothing may be made for a wrong config");
    refuses_in(
        folder.path(),
        &["up", "--config", "none.toml"],
        2,
        &["none.toml", "configs/cluster.toml"],
    );
}

#[test]
fn up_without_a_usable_python_says_what_to_install() {
    let folder = tempfile::tempdir().unwrap();
    let words = ["no Python at none", "--python"];
    refuses_in(folder.path(), &["up", "--python", "none"], 7, &words);
    assert!(!folder.path().join(".callboard").exists());
}

#[test]
fn completion_scripts_exist_for_every_shell() {
    let folder = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let (code, stdout, _) = run(folder.path(), &["completion", shell]);
        assert!(code == 0 && stdout.contains("callboard") && stdout.contains("kernel"), "{shell}");
        assert!(stdout.contains("revoke") && stdout.contains("expires-in"), "{shell}");
    }
}

#[test]
fn doctor_reports_every_check_as_json_and_fails_if_one_does() {
    let folder = tempfile::tempdir().unwrap();
    let (code, stdout, _) = run(folder.path(), &["doctor", "--output", "json", "--python", "none"]);
    let report: Value = serde_json::from_str(&stdout).unwrap();
    let checks = report["checks"].as_array().unwrap();
    let verdict = |name: &str| {
        let check = checks.iter().find(|check| check["check"] == name);
        check.unwrap_or_else(|| panic!("{name} is missing"))["verdict"].as_str().unwrap()
    };
    assert_eq!((code, report["ok"].as_bool()), (7, Some(false)));
    assert_eq!(verdict("python"), "fail");
    assert_eq!(verdict("configuration"), "ok");
    assert_eq!(verdict("isolation"), "warn");
    assert_eq!(verdict("cluster"), "warn");
    assert_eq!(verdict("fsync"), verdict("fsync"));
    assert!(fs::read_dir(folder.path()).unwrap().next().is_none(), "doctor leaves nothing behind");
}

#[test]
fn benches_are_listed_as_data() {
    let folder = tempfile::tempdir().unwrap();
    let (code, stdout, _) = run(folder.path(), &["bench", "list", "--output", "json"]);
    let list: Value = serde_json::from_str(&stdout).unwrap();
    assert!(code == 0 && list["benches"].is_array());
}
