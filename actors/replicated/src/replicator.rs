//! All Raft groups of one node: they share its write-ahead log and its connections.
//!
//! A failure of the log is final and stops every group: watch [`Replicator::failed`] and restart
//! the process.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use callboard_protocol::{ClusterId, GroupId, Incarnation, NodeId, ReplicaId};
use callboard_transport::Lanes;
use openraft::{Config, SnapshotPolicy};
use tokio::sync::{mpsc, watch};

use crate::{
    disk::Disk,
    group::{Group, GroupInner, views},
    machine::{Applied, Machine},
    options::{GroupOptions, OpenError, RaftTiming, ReplicatorOptions},
    proposer::{Proposer, QUEUE_DEPTH_MAX},
    raft::{
        log_store::{Covered, LogStore},
        network::{Awaited, Links, Wire},
        server::{Heard, Server},
        snapshot_file::{Newest, SnapshotFiles},
        state_machine::{Replica, ReplicaParts},
        types::{Member, Raft},
    },
    wal::{Record, Wal},
};

/// Bytes of one piece of a snapshot; MessagePack and envelope stay under a payload of 1 MiB.
const SNAPSHOT_PIECE_BYTES: u64 = 256 << 10;
/// Most entries openraft puts into one message; the bytes are bounded by the payload limit.
const APPEND_ENTRIES_MAX: u64 = 64;
/// Entries kept behind a snapshot, so that a member that is a little late needs no snapshot.
const ENTRIES_KEPT: u64 = 256;

pub(crate) struct Inner {
    cluster: ClusterId,
    node: NodeId,
    incarnation: Incarnation,
    pub lanes: Lanes,
    pub disk: Arc<dyn Disk>,
    options: ReplicatorOptions,
    pub wal: Wal,
    corrupt: Mutex<BTreeSet<GroupId>>,
    open: Mutex<BTreeSet<GroupId>>,
    batch_counter: Arc<AtomicU64>,
    failed: watch::Receiver<Option<String>>,
}

/// All Raft groups of one node. Clones share it.
#[derive(Clone)]
pub struct Replicator {
    pub(crate) inner: Arc<Inner>,
}

fn locked(set: &Mutex<BTreeSet<GroupId>>) -> MutexGuard<'_, BTreeSet<GroupId>> {
    set.lock().unwrap_or_else(PoisonError::into_inner)
}

fn follow_failure(wal: &Wal) -> watch::Receiver<Option<String>> {
    let mut progress = wal.progress();
    let (sender, receiver) = watch::channel(None);
    tokio::spawn(async move {
        if let Ok(now) = progress.wait_for(|now| now.failed.is_some()).await {
            let reason = now.failed.as_ref().map(ToString::to_string);
            sender.send_replace(reason);
        }
        sender.closed().await;
    });
    receiver
}

impl Replicator {
    /// Opens the node's log. Blocks on the disk; call it while the node starts.
    ///
    /// # Errors
    /// [`OpenError::Wal`].
    #[expect(clippy::unused_async, reason = "must run inside a runtime; the signature says so")]
    pub async fn open(
        cluster: ClusterId,
        node: NodeId,
        incarnation: Incarnation,
        lanes: Lanes,
        disk: Arc<dyn Disk>,
        options: ReplicatorOptions,
    ) -> Result<Self, OpenError> {
        let (wal, recovered) = Wal::open(Arc::clone(&disk), options.wal.clone())?;
        if recovered.cut_bytes > 0 {
            let bytes = recovered.cut_bytes;
            tracing::info!(bytes, "cut a torn tail off the write-ahead log");
        }
        for group in &recovered.corrupt_groups {
            tracing::error!(%group, "the write-ahead log is damaged for this group");
        }
        let failed = follow_failure(&wal);
        Ok(Self {
            inner: Arc::new(Inner {
                cluster,
                node,
                incarnation,
                lanes,
                disk,
                options,
                wal,
                corrupt: Mutex::new(recovered.corrupt_groups),
                open: Mutex::default(),
                batch_counter: Arc::new(AtomicU64::new(0)),
                failed,
            }),
        })
    }

    /// The node.
    #[must_use]
    pub fn node(&self) -> &NodeId {
        &self.inner.node
    }

    /// Raft's clock on this node.
    #[must_use]
    pub fn timing(&self) -> &RaftTiming {
        &self.inner.options.timing
    }

    /// Groups with records in the node's log.
    #[must_use]
    pub fn known_groups(&self) -> BTreeSet<GroupId> {
        self.inner.wal.group_ids().into_iter().collect()
    }

    /// Groups that lost records they may have answered for: erase and replace them.
    #[must_use]
    pub fn corrupt_groups(&self) -> BTreeSet<GroupId> {
        locked(&self.inner.corrupt).clone()
    }

    /// Follows whether the log failed for good; `Some` says why. Then restart the process.
    #[must_use]
    pub fn failed(&self) -> watch::Receiver<Option<String>> {
        self.inner.failed.clone()
    }

    /// Erases a closed group's log and snapshots durably; what a crash left of an earlier attempt
    /// as well.
    ///
    /// # Errors
    /// [`OpenError::AlreadyOpen`], or what the disk says.
    pub async fn erase(&self, group: &GroupId) -> Result<(), OpenError> {
        if locked(&self.inner.open).contains(group) {
            return Err(OpenError::AlreadyOpen(group.clone()));
        }
        if self.known_groups().contains(group) || self.corrupt_groups().contains(group) {
            self.inner.wal.append(group, [Record::Erase]).synced().await?;
        }
        let files = self.snapshot_files(group);
        let failed = |source| OpenError::Snapshot { group: group.clone(), source };
        files.erase().await.map_err(failed)?;
        locked(&self.inner.corrupt).remove(group);
        Ok(())
    }

    /// Stops everything at once without writing what is queued, as a crash would.
    pub fn crash(&self) {
        self.inner.wal.crash();
    }

    /// Writes what is queued and stops the log; shut the groups down first.
    pub async fn close(&self) {
        self.inner.wal.close().await;
    }

    pub(crate) fn wal(&self) -> &Wal {
        &self.inner.wal
    }

    pub(crate) fn snapshot_files(&self, group: &GroupId) -> SnapshotFiles {
        SnapshotFiles::new(Arc::clone(&self.inner.disk), group)
    }

    pub(crate) fn closed(&self, group: &GroupId) {
        locked(&self.inner.open).remove(group);
    }

    /// Opens a replica. The events tell what is applied, in order; they start with what the log
    /// already holds.
    ///
    /// # Errors
    /// [`OpenError`]; after [`OpenError::Corrupt`] erase the group and add a new replica.
    pub async fn open_group<M: Machine>(
        &self,
        group: GroupId,
        replica: ReplicaId,
        options: GroupOptions<M>,
    ) -> Result<(Group<M>, mpsc::UnboundedReceiver<Applied<M>>), OpenError> {
        self.claim(&group)?;
        self.open_claimed(group, replica, options, None).await
    }

    /// Takes the group's place on this node.
    pub(crate) fn claim(&self, group: &GroupId) -> Result<(), OpenError> {
        if locked(&self.inner.corrupt).contains(group) {
            let what = "the write-ahead log".to_owned();
            return Err(OpenError::Corrupt { group: group.clone(), what });
        }
        if !locked(&self.inner.open).insert(group.clone()) {
            return Err(OpenError::AlreadyOpen(group.clone()));
        }
        Ok(())
    }

    /// Opens a replica whose place is taken. `heard` is what it listened to while it slept.
    pub(crate) async fn open_claimed<M: Machine>(
        &self,
        group: GroupId,
        replica: ReplicaId,
        options: GroupOptions<M>,
        heard: Option<Heard>,
    ) -> Result<(Group<M>, mpsc::UnboundedReceiver<Applied<M>>), OpenError> {
        let opened = self.start(group.clone(), replica, options, heard).await;
        if let Err(error) = &opened {
            if matches!(error, OpenError::Corrupt { .. }) {
                locked(&self.inner.corrupt).insert(group.clone());
            }
            self.closed(&group);
        }
        opened
    }

    async fn start<M: Machine>(
        &self,
        group: GroupId,
        replica_id: ReplicaId,
        options: GroupOptions<M>,
        heard: Option<Heard>,
    ) -> Result<(Group<M>, mpsc::UnboundedReceiver<Applied<M>>), OpenError> {
        let inner = &self.inner;
        let raft_error = |why: String| OpenError::Raft { group: group.clone(), why };
        let files = self.snapshot_files(&group);
        let (covered, covered_receiver) = watch::channel(Covered::default());
        let mut log = self.log_store(&group, replica_id, covered_receiver);
        log.woken = heard.is_some();
        let (machine, snapshot) = self.restore(&group, &files, options.initial).await?;
        let (observer, events) = mpsc::unbounded_channel();
        let replica = Replica::new(ReplicaParts {
            machine,
            snapshot,
            log: log.clone(),
            files,
            before_snapshot: options.before_snapshot,
            covered,
            snapshot_every_bytes: options.snapshot_every_bytes,
            observer,
        });
        let wire = self.wire(&group, replica_id);
        let heard = match heard {
            Some(heard) => heard,
            None => self.listen(&group, replica_id).await?,
        };
        let every = options.snapshot_every_entries;
        let config =
            self.raft_config(&group, every, options.timing.as_ref()).map_err(raft_error)?;
        let machine = replica.clone();
        let awaited = Awaited(Arc::new(move |member| machine.read(|it| it.is_awaited(member))));
        let links = Links { wire: wire.clone(), log: log.clone(), awaited };
        let raft = Raft::new(replica_id.0, Arc::new(config), links, log.clone(), replica.clone())
            .await
            .map_err(|error| raft_error(error.to_string()))?;
        let views = views(&raft);
        let (queue, receiver) = mpsc::channel(QUEUE_DEPTH_MAX);
        let proposer = Proposer {
            raft: raft.clone(),
            replica: replica.clone(),
            wire: wire.clone(),
            leadership: views.leadership,
            counter: Arc::clone(&inner.batch_counter),
            queue: receiver,
        };
        let server = Server::new(raft.clone(), log, wire);
        let tasks = vec![
            views.task,
            tokio::spawn(proposer.run()),
            tokio::spawn(snapshot_on_wish(raft.clone(), replica.snapshot_wish())),
            tokio::spawn(stop_with_the_log(raft.clone(), inner.wal.clone())),
        ];
        let handle = Group {
            inner: Arc::new(GroupInner {
                id: group.clone(),
                replica_id,
                raft: raft.clone(),
                replica,
                replicator: self.clone(),
                queue,
                leader: views.leader,
                metrics: views.metrics,
                payload_max: inner.lanes.raft.payload_max(),
                tasks: Mutex::new(tasks),
                server: Mutex::new(Some(server.serve(heard))),
                released: AtomicBool::new(false),
            }),
        };
        self.begin(&raft, options.found).await.map_err(raft_error)?;
        Ok((handle, events))
    }

    fn log_store(
        &self,
        group: &GroupId,
        replica: ReplicaId,
        covered: watch::Receiver<Covered>,
    ) -> LogStore {
        let (wal, parallel) = (self.inner.wal.clone(), self.inner.options.parallel_leader_fsync);
        LogStore::new(wal, group.clone(), replica.0, parallel, covered)
    }

    /// Listens to a replica's Raft messages.
    pub(crate) async fn listen(
        &self,
        group: &GroupId,
        replica: ReplicaId,
    ) -> Result<Heard, OpenError> {
        let heard = Heard::subscribe(&self.wire(group, replica)).await;
        heard.map_err(|source| OpenError::Bus { group: group.clone(), source })
    }

    fn wire(&self, group: &GroupId, replica: ReplicaId) -> Wire {
        Wire {
            cluster: self.inner.cluster.clone(),
            group: group.clone(),
            replica,
            incarnation: self.inner.incarnation,
            bus: Arc::clone(&self.inner.lanes.raft),
        }
    }

    pub(crate) async fn restore<M: Machine>(
        &self,
        group: &GroupId,
        files: &SnapshotFiles,
        initial: M,
    ) -> Result<(M, Option<crate::raft::types::SnapshotMeta>), OpenError> {
        let corrupt = |what| OpenError::Corrupt { group: group.clone(), what };
        let newest = files.read_newest().await;
        let failed = |source| OpenError::Snapshot { group: group.clone(), source };
        let purged = self.inner.wal.group(group, |log| log.purged.as_ref().map(|(upto, _)| *upto));
        let (machine, meta) = match newest.map_err(failed)? {
            Newest::None => (initial, None),
            Newest::Whole(stored) => {
                let machine = M::restore(&stored.bytes)
                    .map_err(|why| corrupt(format!("its snapshot cannot be restored: {why}")))?;
                (machine, Some(stored.meta))
            }
            Newest::Damaged(path) => return Err(corrupt(format!("its snapshot {path}"))),
        };
        let covered = meta.as_ref().and_then(|meta| meta.last_log_id).map(|id| id.index);
        if purged > covered {
            return Err(corrupt("its snapshot is missing".to_owned()));
        }
        Ok((machine, meta))
    }

    fn raft_config(
        &self,
        group: &GroupId,
        snapshot_every_entries: u64,
        timing: Option<&RaftTiming>,
    ) -> Result<Config, String> {
        let every_max = self.inner.options.snapshot_every_entries_max;
        let snapshot_every_entries = snapshot_every_entries.min(every_max);
        let timing = timing.unwrap_or(&self.inner.options.timing);
        Config {
            cluster_name: format!("{}/{group}", self.inner.cluster),
            heartbeat_interval: timing.heartbeat_interval_ms,
            election_timeout_min: timing.election_timeout_min_ms,
            election_timeout_max: timing.election_timeout_max_ms,
            install_snapshot_timeout: 10 * timing.election_timeout_max_ms,
            max_payload_entries: APPEND_ENTRIES_MAX,
            replication_lag_threshold: ENTRIES_KEPT.max(snapshot_every_entries),
            snapshot_policy: SnapshotPolicy::LogsSinceLast(snapshot_every_entries),
            snapshot_max_chunk_size: SNAPSHOT_PIECE_BYTES,
            max_in_snapshot_log_to_keep: ENTRIES_KEPT.min(snapshot_every_entries),
            purge_batch_size: 1,
            ..Config::default()
        }
        .validate()
        .map_err(|error| error.to_string())
    }

    /// Founds the group if it is asked for and nothing is there yet; a single voter leads at once.
    async fn begin(
        &self,
        raft: &Raft,
        found: Option<BTreeMap<ReplicaId, NodeId>>,
    ) -> Result<(), String> {
        let begun = raft.is_initialized().await.map_err(|error| error.to_string())?;
        if let (false, Some(members)) = (begun, found) {
            let members: BTreeMap<u64, Member> = members
                .into_iter()
                .map(|(replica, node)| (replica.0, Member { node: Some(node) }))
                .collect();
            let founded = raft.initialize(members).await;
            // Another founder may have been faster: its log is the same.
            if let Err(error) = founded
                && matches!(&error, openraft::error::RaftError::Fatal(_))
            {
                return Err(error.to_string());
            }
        } else if begun {
            let alone = {
                let receiver = raft.metrics();
                let metrics = receiver.borrow();
                let voters: Vec<u64> = metrics.membership_config.voter_ids().collect();
                voters == [metrics.id]
            };
            if alone {
                raft.trigger().elect().await.map_err(|error| error.to_string())?;
            }
        }
        Ok(())
    }

    /// How many batches this node has proposed.
    #[must_use]
    pub fn batches_proposed(&self) -> u64 {
        self.inner.batch_counter.load(Ordering::Relaxed)
    }
}

impl std::fmt::Debug for Replicator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Replicator({})", self.inner.node)
    }
}

async fn snapshot_on_wish(raft: Raft, wish: Arc<tokio::sync::Notify>) {
    loop {
        wish.notified().await;
        if raft.trigger().snapshot().await.is_err() {
            return;
        }
    }
}

/// A replica without a log must not speak.
async fn stop_with_the_log(raft: Raft, wal: Wal) {
    let mut progress = wal.progress();
    drop(progress.wait_for(|now| now.failed.is_some()).await);
    let _panicked = raft.shutdown().await;
}
