//! A cluster of real processes for a test, which ends with it.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::{
    io::{BufRead, BufReader, Read},
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use callboard_client::Client;
use callboard_protocol::{ActorKind, Subject};
use callboard_transport::Credentials;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);

/// What a command printed and how it ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    /// Fails unless the command ended well and printed exactly this.
    pub(crate) fn prints(&self, expected: &str) {
        assert_eq!(self.code, 0, "{self:?}");
        assert_eq!(self.stdout, expected, "{self:?}");
    }
}

fn binary() -> Command {
    command(Path::new(env!("CARGO_BIN_EXE_callboard")))
}

/// A `callboard`, of whatever version.
pub(crate) fn command(program: &Path) -> Command {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    assert!(root.join(".venv/bin/python").exists(), "no Python environment: run `make setup`");
    let mut command = Command::new(program);
    command.env_remove("CALLBOARD_CONTEXT").env_remove("CALLBOARD_LOG");
    // How full the disk of the machine is that runs the tests must not matter.
    command.env("CALLBOARD_DISK_HIGH_WATER_PERCENT", "100");
    // Its gateway would be a user with a token; tests of gateways have clusters of their own.
    command.env("CALLBOARD_GATEWAY_LISTEN", "");
    command
}

/// Runs the binary in `directory` and waits for it.
pub(crate) fn run_in(directory: &Path, args: &[&str]) -> Ran {
    let output = binary().current_dir(directory).args(args).output().unwrap();
    Ran {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

pub(crate) fn make_executable(path: &Path) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

pub(crate) fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < until, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(POLL);
    }
}

/// The node whose replica executes the cells of a kernel.
pub(crate) fn executor_node(cluster: &Cluster, kernel: &str) -> String {
    let shown = cluster.show(kernel);
    let replicas = shown["status"]["replicas"].as_array().unwrap();
    let executor = replicas.iter().find(|r| r["role"] == "executor").unwrap();
    executor["node"].as_str().unwrap().to_owned()
}

fn kill_pid(pid: i32) {
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
}

/// A running `kernel exec`.
pub(crate) struct Running {
    child: Child,
    stdout: BufReader<std::process::ChildStdout>,
}

impl Running {
    /// Waits for the cell's first line of output.
    pub(crate) fn wait_for_output(&mut self, line: &str) {
        let mut first = String::new();
        self.stdout.read_line(&mut first).unwrap();
        assert_eq!(first.trim_end(), line);
    }

    pub(crate) fn finish(mut self) -> Ran {
        let (mut stdout, mut stderr) = (String::new(), String::new());
        self.stdout.read_to_string(&mut stdout).unwrap();
        self.child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        let code = self.child.wait().unwrap().code().unwrap_or(-1);
        Ran { code, stdout, stderr }
    }
}

/// A running `events --follow`, which ends with the test.
pub(crate) struct Watching {
    child: Child,
    file: PathBuf,
}

impl Watching {
    /// Waits for a line that has all of these words.
    pub(crate) fn wait_for(&self, words: &[&str]) {
        wait_until(&format!("an event with {words:?}"), || {
            let said = std::fs::read_to_string(&self.file).unwrap();
            said.lines().any(|line| words.iter().all(|word| line.contains(word)))
        });
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        // Fails only if it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A cluster in a temporary directory.
pub(crate) struct Cluster {
    directory: tempfile::TempDir,
    up: Option<Child>,
}

impl Cluster {
    /// Starts three nodes; `args` go to `up`.
    pub(crate) fn start(args: &[&str]) -> Self {
        let mut cluster = Self { directory: tempfile::tempdir().unwrap(), up: None };
        cluster.up(args);
        cluster
    }

    /// The same, of another version.
    pub(crate) fn start_of(program: &Path, args: &[&str]) -> Self {
        let mut cluster = Self { directory: tempfile::tempdir().unwrap(), up: None };
        cluster.up_of(program, args);
        cluster
    }

    /// The same, in a directory that users other than root can reach.
    pub(crate) fn start_reachable(args: &[&str]) -> Self {
        let mut cluster = Self { directory: tempfile::tempdir().unwrap(), up: None };
        make_executable(cluster.directory.path());
        cluster.up(args);
        cluster
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// Starts `up` and waits until it says that the cluster is ready.
    pub(crate) fn up(&mut self, args: &[&str]) {
        self.up_of(Path::new(env!("CARGO_BIN_EXE_callboard")), args);
    }

    /// The same, of another version.
    pub(crate) fn up_of(&mut self, program: &Path, args: &[&str]) {
        let mut child = command(program)
            .current_dir(self.directory.path())
            .args(["up", "--data", "data"])
            .args(args)
            .env("AWS_SECRET_ACCESS_KEY", "a secret of the nodes")
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(self.directory.path().join("up.log")).unwrap())
            .process_group(0)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut said = Vec::new();
        loop {
            match lines.next() {
                Some(Ok(line)) if line.starts_with("ready") => break,
                Some(Ok(line)) => said.push(line),
                _ => {
                    let log = std::fs::read_to_string(self.directory.path().join("up.log"));
                    panic!("`up` ended before it was ready: {said:#?} {log:?}")
                }
            }
        }
        // What it says later has to go somewhere.
        std::thread::spawn(move || lines.for_each(drop));
        self.up = Some(child);
    }

    /// Runs a second `up` that is expected to end by itself.
    pub(crate) fn up_that_fails(&self, args: &[&str]) -> Ran {
        let all: Vec<&str> = ["up", "--data", "data"].iter().chain(args).copied().collect();
        run_in(self.directory.path(), &all)
    }

    pub(crate) fn context(&self) -> PathBuf {
        self.data().join("credentials/operator.json")
    }

    /// Runs a verb against this cluster.
    pub(crate) fn run(&self, args: &[&str]) -> Ran {
        let context = self.context();
        let all: Vec<&str> =
            ["--context", context.to_str().unwrap()].iter().chain(args).copied().collect();
        run_in(self.directory.path(), &all)
    }

    pub(crate) fn start_kernel(&self, name: &str) {
        let ran = self.run(&["kernel", "start", "--name", name, "--wait"]);
        assert_eq!(ran.code, 0, "{ran:?}");
    }

    /// Runs a cell; code goes through standard input's place, a file, so that it may be long.
    pub(crate) fn exec(&self, kernel: &str, code: &str) -> Ran {
        let file = self.directory.path().join("cell.py");
        std::fs::write(&file, code).unwrap();
        self.run(&["kernel", "exec", kernel, "--file", file.to_str().unwrap()])
    }

    /// Starts a cell.
    pub(crate) fn spawn_exec(&self, kernel: &str, code: &str) -> Running {
        let mut child = binary()
            .current_dir(self.directory.path())
            .arg("--context")
            .arg(self.context())
            .args(["kernel", "exec", kernel, code])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        Running { child, stdout }
    }

    /// Writes down what happens from now on.
    pub(crate) fn watch(&self) -> Watching {
        let file = self.directory.path().join("events");
        let child = binary()
            .arg("--context")
            .arg(self.context())
            .args(["events", "--follow", "--beats"])
            .stdout(std::fs::File::create(&file).unwrap())
            .spawn()
            .unwrap();
        let watching = Watching { child, file };
        watching.wait_for(&["beat"]);
        watching
    }

    pub(crate) fn show(&self, kernel: &str) -> Value {
        let mut shown = Value::Null;
        wait_until("the kernel answers and has an executor", || {
            let ran = self.run(&["kernel", "show", kernel, "--output", "json"]);
            shown = serde_json::from_str(&ran.stdout).unwrap_or(Value::Null);
            shown["status"]["term"].is_number()
        });
        shown
    }

    /// Waits until every wanted replica is there and none lags.
    pub(crate) fn wait_whole(&self, kernel: &str) {
        wait_until("the kernel is whole", || {
            let shown = self.show(kernel);
            let replicas = shown["status"]["replicas"].as_array().cloned().unwrap_or_default();
            let whole = |r: &Value| {
                (r["role"] == "executor" || r["role"] == "standby") && r["lag_entries"] == 0
            };
            replicas.len() == 3 && replicas.iter().all(whole)
        });
    }

    fn nodes(&self) -> Vec<(String, i32)> {
        let ran = self.run(&["nodes", "--output", "json"]);
        assert_eq!(ran.code, 0, "{ran:?}");
        let listed: Value = serde_json::from_str(&ran.stdout).unwrap();
        let pid = |node: &Value| i32::try_from(node["pid"].as_i64().unwrap()).unwrap();
        let name = |node: &Value| node["node"].as_str().unwrap().to_owned();
        listed["nodes"].as_array().unwrap().iter().map(|n| (name(n), pid(n))).collect()
    }

    pub(crate) fn node_pids(&self) -> Vec<(String, i32)> {
        self.nodes()
    }

    /// SIGKILL for one node's process.
    pub(crate) fn kill_node(&self, node: &str) {
        let nodes = self.nodes();
        let (_, pid) = nodes.iter().find(|(name, _)| name == node).unwrap();
        kill_pid(*pid);
    }

    fn broker_pid(&self) -> i32 {
        let text = std::fs::read_to_string(self.data().join("broker/broker.json")).unwrap();
        let broker: Value = serde_json::from_str(&text).unwrap();
        i32::try_from(broker["pid"].as_i64().unwrap()).unwrap()
    }

    pub(crate) fn kill_broker(&self) {
        kill_pid(self.broker_pid());
    }

    /// SIGKILL for `up` alone.
    pub(crate) fn kill_up(&mut self) {
        let mut up = self.up.take().unwrap();
        up.kill().unwrap();
        up.wait().unwrap();
    }

    /// SIGKILL for `up`, every node and the broker.
    pub(crate) fn kill_everything(&mut self) {
        let nodes = self.nodes();
        let broker = self.broker_pid();
        self.kill_up();
        for (_, pid) in nodes {
            kill_pid(pid);
        }
        kill_pid(broker);
    }

    /// Stops the cluster in order.
    pub(crate) fn stop(&mut self) {
        if let Some(mut up) = self.up.take() {
            let pid = Pid::from_raw(i32::try_from(up.id()).unwrap());
            kill(pid, Signal::SIGTERM).unwrap();
            up.wait().unwrap();
        }
    }

    /// Sends bytes to a verb of a kernel and returns the answer.
    pub(crate) fn request_raw(&self, kernel: &str, verb: &str, body: Vec<u8>) -> String {
        let id = self.show(kernel)["spec"]["kernel"].as_str().unwrap().to_owned();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let credentials = Credentials::load(&self.context()).unwrap();
            let client = Client::connect(&credentials).await.unwrap();
            let subject = Subject::actor(client.cluster(), ActorKind::Kernel, id, verb);
            let answer = client
                .bus()
                .request(&subject, &client.envelope(), body.into(), Duration::from_secs(5))
                .await
                .unwrap();
            String::from_utf8_lossy(&answer.payload).into_owned()
        })
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.up.is_none() && self.data().join("up.json").exists() {
            // A killed `up` left its processes running: adopt them, then stop them.
            self.up(&[]);
        }
        self.stop();
    }
}
