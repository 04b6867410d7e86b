//! The bridge between openraft and a [`Machine`]: applies batches, tells proposers and observers,
//! builds and installs snapshots.

use std::{
    collections::HashMap,
    io::Cursor,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures::future::BoxFuture;
use openraft::{
    EntryPayload, OptionalSend, RaftSnapshotBuilder, Snapshot, StorageIOError,
    storage::{RaftLogStorage as _, RaftStateMachine},
};
use tokio::sync::{mpsc, oneshot, watch};

use super::{
    log_store::{Covered, LogStore},
    snapshot_file::{Newest, SnapshotFiles},
    types::{
        Batch, BatchId, Entry, LogId, Member, SnapshotMeta, StorageError, StoredMembership,
        TypeConfig, decode,
    },
};
use crate::machine::{Applied, Machine, Members};

/// Runs before a snapshot is written: makes durable what the snapshot names.
pub type BeforeSnapshot = Arc<dyn Fn() -> BoxFuture<'static, Result<(), String>> + Send + Sync>;

/// What became of a batch.
#[derive(Debug)]
pub(crate) enum BatchOutcome<O> {
    /// Its outputs, one per command.
    Applied(Vec<O>),
    /// It has no effect and never will.
    Void,
    /// A snapshot passed over it.
    Unknown,
}

struct Waiting<O> {
    term: u64,
    outcome: oneshot::Sender<BatchOutcome<O>>,
}

struct State<M: Machine> {
    machine: M,
    last_applied: Option<LogId>,
    membership: StoredMembership,
    waiting: HashMap<BatchId, Waiting<M::Output>>,
    newest_term: u64,
    bytes_since_snapshot: u64,
}

/// The machine of one group with what belongs to it. Clones share it.
pub(crate) struct Replica<M: Machine> {
    state: Arc<Mutex<State<M>>>,
    log: LogStore,
    files: SnapshotFiles,
    before_snapshot: Option<BeforeSnapshot>,
    covered: Arc<watch::Sender<Covered>>,
    snapshot_wish: Arc<tokio::sync::Notify>,
    snapshot_every_bytes: u64,
    observer: mpsc::UnboundedSender<Applied<M>>,
    replay_upto: Option<u64>,
}

impl<M: Machine> Clone for Replica<M> {
    fn clone(&self) -> Self {
        Self {
            state: Arc::clone(&self.state),
            log: self.log.clone(),
            files: self.files.clone(),
            before_snapshot: self.before_snapshot.clone(),
            covered: Arc::clone(&self.covered),
            snapshot_wish: Arc::clone(&self.snapshot_wish),
            snapshot_every_bytes: self.snapshot_every_bytes,
            observer: self.observer.clone(),
            replay_upto: self.replay_upto,
        }
    }
}

/// What a [`Replica`] is made of.
pub(crate) struct ReplicaParts<M: Machine> {
    pub machine: M,
    pub snapshot: Option<SnapshotMeta>,
    pub log: LogStore,
    pub files: SnapshotFiles,
    pub before_snapshot: Option<BeforeSnapshot>,
    pub covered: watch::Sender<Covered>,
    pub snapshot_every_bytes: u64,
    pub observer: mpsc::UnboundedSender<Applied<M>>,
}

impl<M: Machine> Replica<M> {
    pub(crate) fn new(parts: ReplicaParts<M>) -> Self {
        let last_applied = parts.snapshot.as_ref().and_then(|meta| meta.last_log_id);
        if let Some(last) = last_applied {
            let _closed = parts.observer.send(Applied::Installed { index: last.index });
        }
        parts.covered.send_modify(|now| now.upto = last_applied.map(|id| id.index));
        Self {
            replay_upto: parts.log.last_index(),
            state: Arc::new(Mutex::new(State {
                machine: parts.machine,
                last_applied,
                membership: parts.snapshot.map(|meta| meta.last_membership).unwrap_or_default(),
                waiting: HashMap::new(),
                newest_term: last_applied.map_or(0, |id| id.leader_id.term),
                bytes_since_snapshot: 0,
            })),
            log: parts.log,
            files: parts.files,
            before_snapshot: parts.before_snapshot,
            covered: Arc::new(parts.covered),
            snapshot_wish: Arc::default(),
            snapshot_every_bytes: parts.snapshot_every_bytes,
            observer: parts.observer,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<M>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn read<T>(&self, look: impl FnOnce(&M) -> T) -> T {
        look(&self.lock().machine)
    }

    /// The log it is applied from.
    pub(crate) fn log(&self) -> &LogStore {
        &self.log
    }

    /// The last entry that was applied.
    pub(crate) fn last_applied(&self) -> Option<LogId> {
        self.lock().last_applied
    }

    /// Snapshots the machine as it is and purges the whole log: for a replica whose Raft has
    /// stopped with everything applied.
    pub(crate) async fn condense(&self) -> Result<(), StorageError> {
        let Some(last) = self.last_applied() else { return Ok(()) };
        if self.covered.borrow().upto < Some(last.index) {
            SnapshotBuilder { replica: self.clone(), captured: None }.build_snapshot().await?;
        }
        self.log.clone().purge(last).await
    }

    /// Wakes when enough bytes were applied for a snapshot.
    pub(crate) fn snapshot_wish(&self) -> Arc<tokio::sync::Notify> {
        Arc::clone(&self.snapshot_wish)
    }

    /// Follows a batch that is about to be proposed for `term`; `None` if that term is over.
    pub(crate) fn follow(
        &self,
        id: BatchId,
        term: u64,
    ) -> Option<oneshot::Receiver<BatchOutcome<M::Output>>> {
        let mut state = self.lock();
        if state.newest_term > term {
            return None;
        }
        let (outcome, receiver) = oneshot::channel();
        state.waiting.insert(id, Waiting { term, outcome });
        Some(receiver)
    }

    /// Stops following a batch that was certainly never appended.
    pub(crate) fn forget(&self, id: BatchId) {
        self.lock().waiting.remove(&id);
    }

    fn apply_entry(&self, state: &mut State<M>, entry: Entry) -> Result<(), StorageError> {
        let index = entry.log_id.index;
        let term = entry.log_id.leader_id.term;
        let replay = self.replay_upto >= Some(index);
        match entry.payload {
            EntryPayload::Blank => {}
            EntryPayload::Normal(batch) => self.apply_batch(state, entry.log_id, batch, replay)?,
            EntryPayload::Membership(membership) => {
                let members = Members::from_raft(&membership);
                state.membership = StoredMembership::new(Some(entry.log_id), membership);
                let _closed = self.observer.send(Applied::Membership { index, members, replay });
            }
        }
        state.last_applied = Some(entry.log_id);
        if term > state.newest_term {
            state.newest_term = term;
            // What was meant for an earlier term and has not come by can no longer come.
            let late: Vec<BatchId> = state
                .waiting
                .iter()
                .filter(|(_, waiting)| waiting.term < term)
                .map(|(id, _)| *id)
                .collect();
            for id in late {
                if let Some(waiting) = state.waiting.remove(&id) {
                    let _gone = waiting.outcome.send(BatchOutcome::Void);
                }
            }
        }
        Ok(())
    }

    fn apply_batch(
        &self,
        state: &mut State<M>,
        log_id: LogId,
        batch: Batch,
        replay: bool,
    ) -> Result<(), StorageError> {
        let waiting = state.waiting.remove(&batch.id);
        if batch.term != log_id.leader_id.term {
            if let Some(waiting) = waiting {
                let _gone = waiting.outcome.send(BatchOutcome::Void);
            }
            return Ok(());
        }
        let mut outputs = Vec::with_capacity(batch.commands.len());
        for bytes in &batch.commands {
            state.bytes_since_snapshot += bytes.len() as u64;
            let command: M::Command = decode(bytes).map_err(|error| {
                let (group, index) = (&self.log.group, log_id.index);
                tracing::error!(
                    %group, index, %error,
                    "this version cannot read an entry of the log, which a newer callboard wrote: \
                     start this node with that version; nothing is lost"
                );
                StorageIOError::apply(log_id, &error)
            })?;
            let output = state.machine.apply(log_id.index, command.clone());
            outputs.push(output.clone());
            let index = log_id.index;
            let _closed = self.observer.send(Applied::Command { index, command, output, replay });
        }
        if let Some(waiting) = waiting {
            let _gone = waiting.outcome.send(BatchOutcome::Applied(outputs));
        }
        Ok(())
    }

    fn capture(&self) -> (SnapshotMeta, Vec<u8>) {
        let mut state = self.lock();
        state.bytes_since_snapshot = 0;
        let index = state.last_applied.map_or(0, |id| id.index);
        let meta = SnapshotMeta {
            last_log_id: state.last_applied,
            last_membership: state.membership.clone(),
            snapshot_id: format!("{index}-{}", self.log.replica),
        };
        (meta, state.machine.snapshot())
    }

    async fn persist(&self, meta: &SnapshotMeta, bytes: Vec<u8>) -> Result<(), StorageError> {
        let failed = |error: std::io::Error| {
            StorageError::from(StorageIOError::write_snapshot(Some(meta.signature()), &error))
        };
        if let Err(error) = self.files.write(meta.clone(), bytes).await {
            self.covered.send_modify(|now| now.failed = true);
            // openraft stops for good after this, and the disk is not to be trusted.
            let group = &self.log.group;
            self.log.wal.give_up(format!("the snapshot of group {group} was not written: {error}"));
            return Err(failed(error));
        }
        let index = meta.last_log_id.map(|id| id.index);
        self.covered.send_modify(|now| now.upto = now.upto.max(index));
        Ok(())
    }
}

/// A consistent view of the machine, to be written in the background.
pub(crate) struct SnapshotBuilder<M: Machine> {
    replica: Replica<M>,
    captured: Option<(SnapshotMeta, Vec<u8>)>,
}

impl<M: Machine> RaftSnapshotBuilder<TypeConfig> for SnapshotBuilder<M> {
    async fn build_snapshot(&mut self) -> Result<Snapshot<TypeConfig>, StorageError> {
        let (meta, bytes) = self.captured.take().unwrap_or_else(|| self.replica.capture());
        if let Some(hook) = &self.replica.before_snapshot {
            hook().await.map_err(|why| {
                let error = std::io::Error::other(why);
                StorageError::from(StorageIOError::write_snapshot(Some(meta.signature()), &error))
            })?;
        }
        self.replica.persist(&meta, bytes.clone()).await?;
        Ok(Snapshot { meta, snapshot: Box::new(Cursor::new(bytes)) })
    }
}

impl<M: Machine> RaftStateMachine<TypeConfig> for Replica<M> {
    type SnapshotBuilder = SnapshotBuilder<M>;

    async fn applied_state(
        &mut self,
    ) -> Result<(Option<LogId>, openraft::StoredMembership<u64, Member>), StorageError> {
        let state = self.lock();
        Ok((state.last_applied, state.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<()>, StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        let mut results = Vec::with_capacity(entries.len());
        for entry in entries {
            let durable_at = self.log.durable_at(entry.log_id.index);
            let log_id = entry.log_id;
            let synced = self.log.wal.synced_to(durable_at).await;
            synced.map_err(|error| StorageIOError::apply(log_id, &error))?;
            let mut state = self.lock();
            self.apply_entry(&mut state, entry)?;
            results.push(());
        }
        if self.lock().bytes_since_snapshot > self.snapshot_every_bytes {
            self.snapshot_wish.notify_one();
        }
        Ok(results)
    }

    async fn get_snapshot_builder(&mut self) -> Self::SnapshotBuilder {
        SnapshotBuilder { replica: self.clone(), captured: Some(self.capture()) }
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Cursor<Vec<u8>>>, StorageError> {
        Ok(Box::new(Cursor::new(Vec::new())))
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: Box<Cursor<Vec<u8>>>,
    ) -> Result<(), StorageError> {
        let bytes = snapshot.into_inner();
        let machine = M::restore(&bytes).map_err(|why| {
            self.covered.send_modify(|now| now.failed = true);
            let error = std::io::Error::other(why);
            StorageError::from(StorageIOError::read_snapshot(Some(meta.signature()), &error))
        })?;
        self.persist(meta, bytes).await?;
        let mut state = self.lock();
        state.machine = machine;
        state.last_applied = meta.last_log_id;
        state.membership = meta.last_membership.clone();
        state.bytes_since_snapshot = 0;
        for (_, waiting) in state.waiting.drain() {
            let _gone = waiting.outcome.send(BatchOutcome::Unknown);
        }
        if let Some(last) = meta.last_log_id {
            state.newest_term = state.newest_term.max(last.leader_id.term);
            let _closed = self.observer.send(Applied::Installed { index: last.index });
        }
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<TypeConfig>>, StorageError> {
        let newest = self.files.read_newest().await;
        match newest.map_err(|error| StorageIOError::read_snapshot(None, &error))? {
            Newest::None => Ok(None),
            Newest::Whole(stored) => Ok(Some(Snapshot {
                meta: stored.meta,
                snapshot: Box::new(Cursor::new(stored.bytes)),
            })),
            Newest::Damaged(path) => {
                tracing::error!(%path, "a snapshot file is damaged; writing it anew from memory");
                self.get_snapshot_builder().await.build_snapshot().await.map(Some)
            }
        }
    }
}
