//! `callboard node`: one node process.

use std::{
    io::{self, ErrorKind},
    path::PathBuf,
    time::Duration,
};

use callboard_agent::{ExitReason, NodeError, NodeOptions, StorageOptions, UpkeepConfig, run_node};
use callboard_policy::{
    failure::FailureConfig, hibernation::HibernationConfig, prewarm::PoolBounds,
    repair::RepairLimits,
};
use callboard_protocol::NodeId;
use callboard_replicated::{RaftTiming, ReplicatorOptions, WalOptions};
use callboard_transport::{Credentials, telemetry};
use clap::Args;

use crate::{
    config::{ClusterConfig, Overrides},
    exit::{Exit, Failure, Outcome},
    python::find_python,
};

/// How long a node waits for a broker that is down when it starts: longer than a broker that
/// restarts takes, short enough that a wrong address is noticed.
const BROKER_WAIT_S: u64 = 60;
const MIB: u64 = 1 << 20;

/// Arguments of `node`.
#[derive(Debug, Args)]
pub struct NodeArgs {
    /// The node's own folder.
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,
    /// The node's id.
    #[arg(long)]
    pub id: NodeId,
    /// The node's credentials file, as `up` wrote it.
    #[arg(long, value_name = "FILE")]
    pub credentials: PathBuf,
    /// The nodes that found the cluster, in order.
    #[arg(long, value_delimiter = ',', required = true, value_name = "IDS")]
    pub bootstrap: Vec<NodeId>,
    /// The cluster's configuration file.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The Python that kernels run on.
    #[arg(long, value_name = "PROGRAM")]
    pub python: Option<PathBuf>,
    /// How long to wait for a broker that does not answer.
    #[arg(long, value_name = "SECONDS", default_value_t = BROKER_WAIT_S)]
    pub broker_wait_s: u64,
    /// Take over a folder that was made on another machine, for good.
    #[arg(long)]
    pub adopt_directory: bool,
}

/// Runs the node until SIGTERM or SIGINT.
///
/// # Errors
/// A [`Failure`] if it cannot start, or ends by itself.
pub async fn run(args: NodeArgs) -> Outcome {
    let flags = Overrides { python_program: args.python, ..Overrides::default() };
    let config = ClusterConfig::load(args.config.as_deref(), &flags)?;
    let credentials = Credentials::load(&args.credentials).map_err(Failure::usage)?;
    let endpoint = Some(config.otlp_endpoint.as_str()).filter(|url| !url.is_empty());
    let _telemetry = telemetry::init(args.id.as_str(), endpoint).map_err(Failure::usage)?;
    let python = find_python(&config.python_program)?;
    let (limits_max, storage) = (config.limits(), storage(&config));
    let options = NodeOptions {
        files: config.files(&args.id, &args.data),
        data_dir: args.data,
        node: args.id,
        credentials,
        bootstrap: args.bootstrap,
        adopt_directory: args.adopt_directory,
        python,
        hibernation: HibernationConfig {
            after_ms: config.hibernate_after_s.saturating_mul(1000),
            ..HibernationConfig::default()
        },
        zygote_preload: config.zygote_preload,
        pool: PoolBounds {
            processes_min: usize::from(config.pool_min),
            processes_max: usize::from(config.pool_max),
            ..PoolBounds::default()
        },
        upkeep: UpkeepConfig {
            standby: config.standby_python,
            park_after_ms: Some(config.park_after_s.saturating_mul(1000)).filter(|ms| *ms > 0),
            park_with_refused: config.park_with_refused,
        },
        capture_budget_ms: config.capture_budget_s.saturating_mul(1000),
        state_bytes_max: config.state_mib_max.saturating_mul(1 << 20),
        broker_wait: Duration::from_secs(args.broker_wait_s),
        failure: FailureConfig {
            suspect_after_ms: config.suspect_after_ms,
            gone_after_ms: config.gone_after_ms,
            ..FailureConfig::default()
        },
        repair: RepairLimits::default(),
        environment_match: config.environment_match,
        limits_max,
        kernel_uid_base: Some(config.kernel_uid_base).filter(|base| *base > 0),
        replicator: ReplicatorOptions {
            timing: RaftTiming {
                heartbeat_interval_ms: config.heartbeat_interval_ms,
                election_timeout_min_ms: config.election_timeout_min_ms,
                election_timeout_max_ms: config.election_timeout_max_ms,
            },
            wal: WalOptions::of_segments(config.log_segment_mb << 20),
            snapshot_every_entries_max: config.snapshot_every_entries,
            ..ReplicatorOptions::default()
        },
        storage,
        disk_faults: config.disk_faults,
    };
    match run_node(options).await {
        Ok(ExitReason::Stopped) => Ok(Exit::Ok),
        Ok(ExitReason::RestartNeeded(why)) => Err(Failure::new(Exit::RestartNeeded, why)),
        Err(error @ (NodeError::NoBroker { .. } | NodeError::Bus(_))) => {
            Err(Failure::new(Exit::Unavailable, error))
        }
        Err(error @ NodeError::Connect(_)) => Err(Failure::usage(error)),
        // It passes, as what stops a node at work.
        Err(error) if is_full_disk(&error) => Err(Failure::new(Exit::RestartNeeded, error)),
        Err(error) => Err(Failure::environment(error)),
    }
}

/// How the node uses its disk.
fn storage(config: &ClusterConfig) -> StorageOptions {
    StorageOptions {
        owner_quota_bytes: config.owner_quota_mib.saturating_mul(MIB),
        chunk_grace: Duration::from_secs(config.chunk_grace_s),
        disk_high_water_percent: config.disk_high_water_percent,
        disk_reserve_bytes: config.disk_reserve_mib.saturating_mul(MIB),
        scrub_bytes_per_s: config.scrub_mib_per_s.saturating_mul(MIB),
        object_store_url: config.object_store_url.clone(),
    }
}

/// Whether an error comes down to a disk without room.
fn is_full_disk(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(this) = cause {
        if this.downcast_ref::<io::Error>().is_some_and(|it| it.kind() == ErrorKind::StorageFull) {
            return true;
        }
        cause = this.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use callboard_agent::DataDirError;

    use super::*;

    fn failed(kind: ErrorKind) -> NodeError {
        let source = io::Error::from(kind);
        NodeError::from(DataDirError::Io {
            what: "write",
            path: PathBuf::from("incarnation"),
            source,
        })
    }

    #[test]
    fn a_full_disk_is_found_below_other_errors() {
        assert!(is_full_disk(&failed(ErrorKind::StorageFull)));
        assert!(!is_full_disk(&failed(ErrorKind::PermissionDenied)));
    }
}
