//! What the code of a user can reach where the nodes are root: its own session and nothing else.
//!
//! Needs root and a Python that everybody can read; without them it says so and passes. Reproduce:
//!
//! ```text
//! umask 022; mkdir -p /var/cache/callboard-test; cd /var/cache/callboard-test
//! /usr/bin/python3 -m venv venv && venv/bin/pip install ipykernel cloudpickle
//! cargo test -p callboard-cli --test isolation
//! ```
//!
//! `CALLBOARD_TEST_PYTHON` names another.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]
#![allow(dead_code, reason = "the support of all cluster tests; this one needs a part")]

mod support;

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use support::{Cluster, executor_node, run_in};

/// Where the comment above puts it.
const PYTHON: &str = "/var/cache/callboard-test/venv/bin/python";

/// Tries everything; prints what went wrong and which files could be read.
const ATTACK: &str = r#"
import ctypes, errno, json, os, signal, socket, subprocess, sys
told = json.loads(TOLD)
done, libc = [], ctypes.CDLL(None, use_errno=True)
def never(what, attempt, *arguments):
    try:
        attempt(*arguments)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EACCES):
            done.append(f"{what}{arguments}: {error}")
    else:
        done.append(f"{what}{arguments} worked")
def call(function, *arguments):
    if getattr(libc, function)(*arguments) < 0:
        raise OSError(ctypes.get_errno(), function)
def read(path):
    with open(path, "rb") as file:
        file.read(1)
def connect(path):
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(path)
def vm_read(pid):
    here = ctypes.create_string_buffer(8)
    local = (ctypes.c_size_t * 2)(ctypes.addressof(here), 8)
    remote = (ctypes.c_size_t * 2)(id(None), 8)
    call("process_vm_readv", pid, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0)
for pid in told["pids"]:
    for name in ("environ", "mem", "maps", "auxv"):
        never("read", read, f"/proc/{pid}/{name}")
    never("list", os.listdir, f"/proc/{pid}/fd")
    never("ptrace", call, "ptrace", 16, pid, 0, 0)
    never("process_vm_readv", vm_read, pid)
    never("kill", os.kill, pid, 0)
    never("kill", os.kill, pid, signal.SIGTERM)
for path in told["directories"]:
    never("list", os.listdir, path)
    never("write", os.mkdir, path + "/mine")
    never("chmod", os.chmod, path, 0o777)
for path in told["sockets"]:
    never("connect", connect, path)
for name in ("setuid", "setgid", "seteuid"):
    never(name, getattr(os, name), 0)
never("setgroups", os.setgroups, [0])
readable = []
for path in told["files"]:
    try:
        read(path)
        readable.append(path)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EACCES, errno.ENOENT):
            done.append(f"{path}: {error}")
print(json.dumps({"done": done, "readable": readable}))
"#;

/// A cell that uses what is the session's own.
const OWN: &str = r#"
import os, resource, subprocess, sys, tempfile
assert os.getuid() == os.geteuid() == os.getgid() >= 200000 and os.getgroups() == [], os.getgroups()
assert os.environ["HOME"] == os.path.expanduser("~") == os.getcwd(), (os.environ["HOME"], os.getcwd())
assert "AWS_SECRET_ACCESS_KEY" not in os.environ
assert resource.getrlimit(resource.RLIMIT_CORE) == (0, 0)
open("/dev/stderr", "a").close(); os.listdir("/proc/self/fd"); open("/proc/self/pagemap").close()
os.makedirs("deep/er", exist_ok=True)
with open("deep/er/file", "a") as file: print("a secret", file=file)
with tempfile.NamedTemporaryFile() as file: pass
code = "import os, ipykernel, callboard_kernel.kernel; print(os.getuid())"
assert int(subprocess.check_output([sys.executable, "-c", code])) == os.getuid()
import sqlite3, wave, IPython.lib.pretty
from concurrent.futures import ProcessPoolExecutor
assert len(list(get_ipython().history_manager.get_range())) > 0
print(os.stat("deep/er/file").st_mode & 0o777 == 0o600)
"#;

fn is_root() -> bool {
    nix::unistd::Uid::effective().is_root()
}

/// A Python that everybody can read.
fn readable_python() -> Option<String> {
    let named = std::env::var("CALLBOARD_TEST_PYTHON").unwrap_or_else(|_| PYTHON.to_owned());
    if is_root() && Path::new(&named).exists() {
        return Some(named);
    }
    eprintln!("skipped: needs root and {named}; see the top of this file");
    None
}

fn pid_of(cluster: &Cluster, kernel: &str) -> i64 {
    cluster.exec(kernel, "import os; print(os.getpid())").stdout.trim().parse().unwrap()
}

/// Everything below a directory: files, directories, sockets.
fn all_below(directory: &Path, found: &mut [Vec<PathBuf>; 3]) {
    use std::os::unix::fs::FileTypeExt as _;
    found[1].push(directory.to_owned());
    for entry in fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        // What comes and goes meanwhile is not looked at.
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => all_below(&entry.path(), found),
            Ok(kind) if kind.is_socket() => found[2].push(entry.path()),
            Ok(kind) if kind.is_file() => found[0].push(entry.path()),
            _ => {}
        }
    }
}

/// What there is to be attacked from kernel `from`, as the attack is told of it.
fn targets(cluster: &Cluster, victim: &str, from: &str) -> Value {
    let mut found: [Vec<PathBuf>; 3] = Default::default();
    all_below(&cluster.data(), &mut found);
    let [files, directories, sockets] = found;
    let own = cluster.show(from)["spec"]["kernel"].as_str().unwrap().to_owned();
    // One that everybody may list holds no secret by itself; it may not be written for that.
    let directories: Vec<_> = directories
        .into_iter()
        .filter(|path| !path.to_string_lossy().contains(&own))
        .filter(|path| *path != cluster.data())
        .filter(|path| !path.components().any(|part| part.as_os_str() == "python"))
        .collect();
    let mut pids: Vec<i64> = cluster.node_pids().iter().map(|(_, pid)| i64::from(*pid)).collect();
    pids.push(pid_of(cluster, victim));
    for path in files.iter().filter(|path| path.ends_with("zygote.pid")) {
        pids.push(fs::read_to_string(path).unwrap().trim().parse().unwrap());
    }
    json!({ "pids": pids, "files": files, "directories": directories, "sockets": sockets })
}

fn attack(cluster: &Cluster, victim: &str, from: &str) {
    // The nodes' stocks of processes, whose sockets are among them, fill after a kernel was started.
    let end = Instant::now() + Duration::from_secs(60);
    let kinds = ["pids", "files", "directories", "sockets"];
    let (told, count) = loop {
        let told = targets(cluster, victim, from);
        let count = kinds.map(|kind| told[kind].as_array().unwrap().len());
        if count[0] >= 7 && count[1] > 30 && count[2] > 20 && count[3] > 10 {
            break (told, count);
        }
        assert!(Instant::now() < end, "{count:?}");
        std::thread::sleep(Duration::from_millis(100));
    };
    let literal = serde_json::to_string(&told.to_string()).unwrap();
    let ran = cluster.exec(from, &ATTACK.replace("TOLD", &literal));
    assert_eq!(ran.code, 0, "{ran:?}");
    let said: Value = serde_json::from_str(ran.stdout.trim()).unwrap();
    assert_eq!(said["done"], json!([]), "{said:#}");
    let own = cluster.show(from)["spec"]["kernel"].as_str().unwrap().to_owned();
    let mut is_own_seen = false;
    for path in said["readable"].as_array().unwrap() {
        let path = path.as_str().unwrap();
        is_own_seen |= path.contains(&own);
        // Those of `up` hold the names and process ids of nodes.
        let is_public = path.contains("/python/callboard_kernel/")
            || ["/up.lock", "/up.json"].iter().any(|name| path.ends_with(name));
        assert!(path.contains(&own) || is_public, "{path} can be read");
    }
    assert!(is_own_seen, "{said:#}");
    println!("{from} against {victim}: tried {count:?} {kinds:?}, nothing worked");
}

#[test]
fn user_code_reaches_its_own_session_and_nothing_else() {
    let Some(python) = readable_python() else { return };
    let cluster = Cluster::start_reachable(&["--python", &python]);
    for kernel in ["a", "b"] {
        cluster.start_kernel(kernel);
        cluster.exec(kernel, OWN).prints("True\n");
        cluster.exec(kernel, "secret = bytearray(3 << 20); secret[5] = 7").prints("");
    }
    attack(&cluster, "a", "b");
    attack(&cluster, "b", "a");
    let uid = |kernel: &str| cluster.exec(kernel, "print(os.getuid())").stdout;
    assert_ne!(uid("a"), uid("b"));
    let (before, doctor) = (uid("a"), doctor(&cluster, &python));
    assert!(doctor.contains("each kernel runs under a uid of its own"), "{doctor}");
    for _ in 0..2 {
        cluster.wait_whole("a");
        cluster.kill_node(&executor_node(&cluster, "a"));
        let code = "secret[5], len(secret), open('deep/er/file').read(), os.environ['HOME'] == os.getcwd()";
        cluster.exec("a", code).prints("(7, 3145728, 'a secret\\n', True)\n");
        println!("a ran as uid {} and runs as uid {}", before.trim(), uid("a").trim());
        assert_ne!(uid("a"), uid("b"));
    }
    cluster.wait_whole("a");
    cluster.exec("a", "with open('deep/er/file', 'a') as f: print('more', file=f)").prints("");
    attack(&cluster, "b", "a");
}

/// Any kernel is one of another language to Callboard if its kernelspec says so, ipykernel too.
const FOREIGN: &str = r#"
import os, resource
assert os.getuid() == os.geteuid() == os.getgid() >= 200000 and os.getgroups() == [], os.getgroups()
assert os.environ["HOME"] == os.path.expanduser("~") == os.getcwd(), (os.environ["HOME"], os.getcwd())
assert not [name for name in os.environ if name.startswith(("AWS_", "CALLBOARD_"))]
assert resource.getrlimit(resource.RLIMIT_CORE) == (0, 0)
with open("file", "a") as file: print("a secret", file=file)
print("NoNewPrivs:\t1" in open("/proc/self/status").read())
"#;

#[test]
fn the_process_of_another_language_reaches_its_own_session_and_nothing_else() {
    let Some(python) = readable_python() else { return };
    let place = tempfile::tempdir().unwrap();
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let spec = json!({
        "argv": [python, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": "Other", "language": "other",
    });
    let folder = place.path().join("kernels/other");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("kernel.json"), spec.to_string()).unwrap();
    let config = place.path().join("cluster.toml");
    let launcher = format!("node_launcher = \"env JUPYTER_PATH={}\"\n", place.path().display());
    fs::write(&config, launcher).unwrap();
    let config = config.to_str().unwrap();
    let cluster = Cluster::start_reachable(&["--python", &python, "--config", config]);
    cluster.start_kernel("a");
    let ran = cluster.run(&["kernel", "start", "--name", "b", "--kernelspec", "other", "--wait"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    cluster.exec("b", FOREIGN).prints("True\n");
    cluster.exec("a", "open('file', 'w').close()").prints("");
    attack(&cluster, "a", "b");
    attack(&cluster, "b", "a");
    cluster.kill_node(&executor_node(&cluster, "b"));
    let again = cluster.exec("b", FOREIGN);
    assert_eq!((again.code, &*again.stdout), (0, "True\n"), "{again:?}");
}

fn doctor(cluster: &Cluster, python: &str) -> String {
    run_in(&cluster.data(), &["doctor", "--data", ".", "--python", python]).stdout
}

#[test]
fn a_python_that_others_cannot_read_leaves_kernels_with_the_node_and_says_so() {
    if !is_root() {
        eprintln!("skipped: needs root");
        return;
    }
    let place = tempfile::tempdir().unwrap();
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let python = place.path().join("python");
    std::os::unix::fs::symlink("/usr/bin/python3", &python).unwrap();
    let python = python.to_str().unwrap();
    let doctor = run_in(place.path(), &["doctor", "--data", "/nowhere/data", "--python", python]);
    let closed = place.path().display();
    let sentence = format!("{python} cannot be read by other users, as {closed} is closed to them");
    assert!(doctor.stdout.contains(&sentence), "{doctor:?}");
}
