//! The zygote and the stock of started processes, with real Python.
//!
//! Reproduce: `make setup && cargo test -p callboard-kernel --test pool`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use callboard_kernel::{
    PythonConfig, PythonPool,
    python::{PythonEvent, Taken, Zygote, memory::unique_bytes, unpack_package},
};
use callboard_policy::prewarm::PoolBounds;
use callboard_protocol::node::PythonStock;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

const DEADLINE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(10);

struct Node {
    directory: tempfile::TempDir,
    pool: PythonPool,
    zygote: Zygote,
}

fn config(directory: &Path) -> PythonConfig {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.venv/bin/python");
    assert!(program.exists(), "no Python environment: run `make setup` first");
    PythonConfig {
        program,
        package_dir: unpack_package(&directory.join("python")).unwrap(),
        capture_budget_ms: 60_000,
        state_bytes_max: 1 << 30,
        isolated: false,
    }
}

impl Node {
    fn start(libraries: &str, processes: usize) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let config = config(directory.path());
        let run_dir = directory.path().join("run");
        std::fs::create_dir(&run_dir).unwrap();
        let zygote = Zygote::start(config.clone(), libraries, &run_dir).unwrap();
        let bounds = PoolBounds {
            processes_min: processes,
            processes_max: processes,
            memory_reserve_mib: 0,
        };
        let pool = PythonPool::start(config, &run_dir, zygote.clone(), bounds);
        Self { directory, pool, zygote }
    }

    fn run_dir(&self) -> PathBuf {
        self.directory.path().join("run")
    }

    async fn until(&self, what: &str, is_so: impl Fn(PythonStock) -> bool) -> PythonStock {
        let waiting = async {
            loop {
                let stock = self.pool.status();
                if is_so(stock) {
                    return stock;
                }
                tokio::time::sleep(POLL).await;
            }
        };
        let reached = tokio::time::timeout(DEADLINE, waiting).await;
        reached.unwrap_or_else(|_| panic!("{what}: {:?}", self.pool.status()))
    }

    async fn full(&self) -> PythonStock {
        self.until("it does not fill", |stock| stock.ready == stock.target && stock.ready > 0).await
    }
}

async fn ready(taken: &mut Taken) -> i32 {
    if let Some(hello) = &taken.hello {
        return hello.pid;
    }
    match tokio::time::timeout(DEADLINE, taken.events.recv()).await.unwrap() {
        Some(PythonEvent::Ready(hello)) => hello.pid,
        other => panic!("not ready: {other:?}"),
    }
}

async fn end(taken: &mut Taken) -> String {
    loop {
        match tokio::time::timeout(DEADLINE, taken.events.recv()).await.unwrap() {
            Some(PythonEvent::Exited { how }) => return how,
            Some(_) => {}
            None => panic!("it ended without a word"),
        }
    }
}

fn parent_of(pid: i32) -> u32 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap();
    line.trim().parse().unwrap()
}

fn niceness_of(pid: i32) -> i32 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit(") ").next().unwrap().split(' ').nth(16).unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_taken_out_of_stock_is_ready_a_child_of_the_node_and_says_how_it_ended() {
    let node = Node::start("", 2);
    node.full().await;
    let mut taken = node.pool.take();
    assert!(taken.hello.is_some(), "the stock was full");
    let pid = ready(&mut taken).await;
    assert_eq!(parent_of(pid), std::process::id());
    let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
    let run_dir = std::fs::canonicalize(node.run_dir()).unwrap();
    let words = String::from_utf8_lossy(&words).into_owned();
    assert!(words.contains(run_dir.to_str().unwrap()), "the sweep would not know it: {words}");
    assert_eq!(niceness_of(pid), 0, "it runs like any other once it is taken");
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    let how = end(&mut taken).await;
    assert!(how.starts_with("killed by signal 9"), "{how}");
    node.full().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_died_in_stock_is_not_handed_out() {
    let node = Node::start("", 1);
    node.full().await;
    for entry in std::fs::read_dir(node.run_dir()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|it| it == "pid") && !path.ends_with("zygote.pid") {
            let pid = std::fs::read_to_string(path).unwrap().parse().unwrap();
            kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
            while std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok() {
                tokio::time::sleep(POLL).await;
            }
        }
    }
    let mut taken = node.pool.take();
    let pid = ready(&mut taken).await;
    assert_eq!(parent_of(pid), std::process::id());
    taken.process.kill();
    end(&mut taken).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kernels_outlive_the_zygote_and_a_new_one_follows() {
    let node = Node::start("", 1);
    let first = node.full().await.zygote_pid.unwrap();
    let mut taken = node.pool.take();
    let pid = ready(&mut taken).await;
    kill(Pid::from_raw(i32::try_from(first).unwrap()), Signal::SIGKILL).unwrap();
    node.until("it is not seen to end", |stock| stock.zygote_pid != Some(first)).await;
    let mut without = node.pool.take();
    ready(&mut without).await;
    let second = node.until("no new one", |stock| stock.zygote_pid.is_some()).await;
    assert_ne!(second.zygote_pid, Some(first));
    assert_eq!(parent_of(pid), std::process::id(), "it lives");
    node.full().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_forked_before_other_libraries_were_installed_is_given_up() {
    let node = Node::start("", 1);
    node.full().await;
    let life = node.zygote.status().borrow().life;
    // The package's own folder is one of those whose change is seen.
    std::fs::write(node.directory.path().join("python/installed.py"), "").unwrap();
    node.until("the change is not seen", |_| node.zygote.status().borrow().life > life).await;
    node.full().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_zygote_that_cannot_start_leaves_the_long_way() {
    let directory = tempfile::tempdir().unwrap();
    let good = config(directory.path());
    let broken = PythonConfig { program: PathBuf::from("/bin/false"), ..good.clone() };
    let zygote = Zygote::start(broken, "", directory.path()).unwrap();
    let pool = PythonPool::start(good, directory.path(), zygote, PoolBounds::default());
    let mut taken = pool.take();
    ready(&mut taken).await;
    assert_eq!(pool.status().zygote_pid, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_shares_most_of_its_memory_with_the_zygote() {
    let node = Node::start("numpy pandas matplotlib", 1);
    assert_eq!(node.full().await.preloaded, 3);
    let mut taken = node.pool.take();
    let pid = ready(&mut taken).await;
    let unique = unique_bytes(u32::try_from(pid).unwrap()).unwrap();
    println!("unique memory of a warm process: {:.1} MiB", unique as f64 / f64::from(1 << 20));
    assert!(unique < 30 << 20, "{unique} bytes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_zygote_that_does_not_answer_is_replaced_and_nobody_waits_for_it_for_long() {
    let node = Node::start("", 1);
    let first = node.full().await.zygote_pid.unwrap();
    kill(Pid::from_raw(i32::try_from(first).unwrap()), Signal::SIGSTOP).unwrap();
    let mut out_of_stock = node.pool.take();
    let mut started_the_long_way = node.pool.take();
    ready(&mut out_of_stock).await;
    ready(&mut started_the_long_way).await;
    let replaced = |stock: PythonStock| stock.zygote_pid.is_some_and(|pid| pid != first);
    node.until("it is not replaced", replaced).await;
}
