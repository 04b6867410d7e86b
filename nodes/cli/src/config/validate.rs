//! What values of the configuration are refused, and what to write instead.

use callboard_kernel::python::UIDS_PER_NODE;
use callboard_protocol::ClusterId;

use super::{ClusterConfig, given_path};

/// Most nodes that one machine runs: more than this many processes help nobody.
const NODES_MAX: u16 = 64;

/// Largest file of a node's log, in MiB: it is read as a whole when the node starts.
const LOG_SEGMENT_MAX_MB: u64 = 1024;

/// Shortest grace period of chunks: three times as long as a receipt for them counts.
const CHUNK_GRACE_MIN_S: u64 = 60;

/// Most files that may be carried: each is named in the kernel's log, which every snapshot holds.
const FILES_MAX: u64 = 100_000;

/// Most that carried files may have together: what changed is read into memory after a cell.
const FILES_TOTAL_MAX_MIB: u64 = 4_096;

/// Less memory than this is too little for a kernel that does nothing.
const MEMORY_MIN_MIB: u64 = 128;

/// The highest first uid; those of all nodes follow it.
const UID_BASE_MAX: u32 = 2_000_000_000;

/// A kernel has a dozen threads before it runs anything.
const PROCESSES_MIN: u64 = 20;

/// Problems found so far.
#[derive(Default)]
struct Problems(Vec<String>);

impl Problems {
    fn check(&mut self, right: bool, problem: String) {
        if !right {
            self.0.push(problem);
        }
    }
}

impl ClusterConfig {
    /// Everything that is wrong with the values.
    #[must_use]
    pub fn validate(&self) -> Vec<String> {
        let mut problems = Problems::default();
        self.validate_cluster(&mut problems);
        self.validate_files(&mut problems);
        self.validate_processes(&mut problems);
        self.validate_storage(&mut problems);
        problems.0
    }

    fn validate_cluster(&self, problems: &mut Problems) {
        let mut check = |right, problem| problems.check(right, problem);
        if let Err(error) = ClusterId::new(self.cluster_id.as_str()) {
            check(false, format!("cluster_id: {error}"));
        }
        let host = &self.broker_host;
        check(
            host.parse::<std::net::IpAddr>().is_ok(),
            format!("broker_host is '{host}'; use an IP address of this machine"),
        );
        let listen = &self.gateway_listen;
        check(
            self.gateway().is_ok(),
            format!(
                "gateway_listen is '{listen}'; use ADDRESS:PORT such as 127.0.0.1:8989, or nothing"
            ),
        );
        let nodes = self.nodes;
        check((1..=NODES_MAX).contains(&nodes), format!("nodes is {nodes}; use 1 to {NODES_MAX}"));
        for (key, value) in [
            ("heartbeat_interval_ms", self.heartbeat_interval_ms),
            ("capture_budget_s", self.capture_budget_s),
            ("state_mib_max", self.state_mib_max),
            ("snapshot_every_entries", self.snapshot_every_entries),
            ("log_segment_mb", self.log_segment_mb),
        ] {
            check(value > 0, format!("{key} is 0; use at least 1"));
        }
        for (low_key, low, high_key, high) in [
            (
                "2 × heartbeat_interval_ms",
                self.heartbeat_interval_ms.saturating_mul(2),
                "election_timeout_min_ms",
                self.election_timeout_min_ms,
            ),
            (
                "election_timeout_min_ms",
                self.election_timeout_min_ms,
                "election_timeout_max_ms",
                self.election_timeout_max_ms,
            ),
            ("2 × the node's beat of 450 ms", 900, "suspect_after_ms", self.suspect_after_ms),
            ("suspect_after_ms", self.suspect_after_ms, "gone_after_ms", self.gone_after_ms),
        ] {
            check(low < high, format!("{high_key} is {high}; it must be above {low_key}, {low}"));
        }
        let endpoint = &self.otlp_endpoint;
        let is_url = endpoint.starts_with("http://") || endpoint.starts_with("https://");
        check(
            endpoint.is_empty() || is_url,
            format!("otlp_endpoint is '{endpoint}'; use a URL such as http://127.0.0.1:4318"),
        );
    }

    fn validate_files(&self, problems: &mut Problems) {
        let mut check = |right, problem| problems.check(right, problem);
        for path in self.shared_directories.iter().chain(given_path(&self.session_directory)) {
            let shown = path.display();
            check(
                path.is_absolute(),
                format!("'{shown}' is no absolute path; every node must find it"),
            );
        }
        check(
            self.carry_files_max <= FILES_MAX,
            format!("carry_files_max is {}; use at most {FILES_MAX}", self.carry_files_max),
        );
        check(
            self.carry_files_total_max_mib <= FILES_TOTAL_MAX_MIB,
            format!(
                "carry_files_total_max_mib is {}; use at most {FILES_TOTAL_MAX_MIB}, and a shared directory for more",
                self.carry_files_total_max_mib
            ),
        );
    }

    fn validate_processes(&self, problems: &mut Problems) {
        let mut check = |right, problem| problems.check(right, problem);
        let (least, most) = (self.pool_min, self.pool_max);
        check(least <= most, format!("pool_max is {most}; it must not be below pool_min, {least}"));
        let is_module = |word: &str| {
            word.split('.').all(|part| {
                !part.is_empty()
                    && !part.starts_with(|first: char| first.is_ascii_digit())
                    && part.chars().all(|it| it.is_alphanumeric() || it == '_')
            })
        };
        for word in self.zygote_preload.split_whitespace().filter(|word| !is_module(word)) {
            check(false, format!("zygote_preload: '{word}' is no name of a Python module"));
        }
        let memory = self.kernel_memory_max_mib;
        check(
            memory == 0 || memory >= MEMORY_MIN_MIB,
            format!(
                "kernel_memory_max_mib is {memory}; Python needs {MEMORY_MIN_MIB} to start, and 0 is no limit"
            ),
        );
        let base = self.kernel_uid_base;
        check(
            base.is_multiple_of(UIDS_PER_NODE) && base <= UID_BASE_MAX,
            format!(
                "kernel_uid_base is {base}; use a multiple of {UIDS_PER_NODE}, the uids of one node, up to {UID_BASE_MAX}"
            ),
        );
        let processes = self.kernel_processes_max;
        check(
            processes == 0 || processes >= PROCESSES_MIN,
            format!(
                "kernel_processes_max is {processes}; a kernel has up to {PROCESSES_MIN} threads of its own, and 0 is no limit"
            ),
        );
    }

    fn validate_storage(&self, problems: &mut Problems) {
        let mut check = |right, problem| problems.check(right, problem);
        let segment = self.log_segment_mb;
        check(
            segment <= LOG_SEGMENT_MAX_MB,
            format!("log_segment_mb is {segment}; use at most {LOG_SEGMENT_MAX_MB}"),
        );
        let (grace, mark) = (self.chunk_grace_s, self.disk_high_water_percent);
        check(
            grace >= CHUNK_GRACE_MIN_S,
            format!("chunk_grace_s is {grace}; use at least {CHUNK_GRACE_MIN_S}"),
        );
        check(
            (1..=100).contains(&mark),
            format!("disk_high_water_percent is {mark}; use 1 to 100"),
        );
        let url = &self.object_store_url;
        check(
            url.is_empty() || url.starts_with("file:///") || url.starts_with("s3://"),
            format!(
                "object_store_url is '{url}'; use file:///directory or s3://bucket/prefix, or \
                 leave it empty"
            ),
        );
    }
}
