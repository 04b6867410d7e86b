//! Turns single commands into batches and gets each batch into the log once.
//!
//! openraft 0.9 syncs once per entry, so commands that wait together share one entry. A batch is
//! meant for one term; when an entry of a later term is applied here and the batch was not, it
//! never will be, and it is proposed again for the new term. So a caller hears "unknown" only if
//! its deadline ends first or a snapshot passes over the batch.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use callboard_protocol::ReplicaId;
use callboard_transport::BusError;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch},
    time::Instant,
};

use crate::{
    machine::Machine,
    raft::{
        network::{Proposal, ProposalAnswer, RPC_PROPOSE, Wire},
        state_machine::{BatchOutcome, Replica},
        types::{Batch, BatchId, Raft},
    },
};

/// Most commands of one entry; bounds the time one apply holds the machine.
const BATCH_COMMANDS_MAX: usize = 512;
/// An entry stops growing beyond this; well under any broker's payload limit.
const BATCH_BYTES_SOFT: usize = 256 << 10;
/// Entries a leader has in flight at once; openraft appends them one by one, so a few suffice.
const IN_FLIGHT_MAX: usize = 4;
/// Commands that may wait. Beyond it a proposer waits for room.
pub(crate) const QUEUE_DEPTH_MAX: usize = 4096;
/// How long a forwarded batch may take before its outcome is left to the log.
const FORWARD_DEADLINE: Duration = Duration::from_secs(2);

/// Why a command has no output.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// The command cannot be sent to the other replicas. Certainly not in the log.
    #[error("a command of {length} bytes is over the limit of {limit} bytes; send less at once")]
    TooLarge {
        /// Its encoded length.
        length: usize,
        /// The limit.
        limit: usize,
    },
    /// It is certainly not in the log and never will be.
    #[error("the command was not carried out: {reason}")]
    NotExecuted {
        /// In words.
        reason: String,
    },
    /// It may be in the log.
    #[error("the command may have been carried out: {reason}")]
    Unknown {
        /// In words.
        reason: String,
    },
}

impl ProposeError {
    /// Whether the command can be proposed again without running twice.
    #[must_use]
    pub fn certainly_not_executed(&self) -> bool {
        !matches!(self, Self::Unknown { .. })
    }
}

const QUEUED: u8 = 0;
const SENT: u8 = 1;
const CANCELLED: u8 = 2;

/// Whether a command left the queue; decides what its deadline means.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stage(Arc<AtomicU8>);

impl Stage {
    fn advance(&self, to: u8) -> bool {
        self.0.compare_exchange(QUEUED, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Takes the command back if it was not sent. Returns whether it could.
    pub(crate) fn cancel(&self) -> bool {
        self.advance(CANCELLED)
    }

    fn requeue(&self) {
        self.0.store(QUEUED, Ordering::Release);
    }
}

/// One command on its way.
#[derive(Debug)]
pub(crate) struct Item<O> {
    pub bytes: Bytes,
    pub stage: Stage,
    pub deadline: Instant,
    pub answer: oneshot::Sender<Result<O, ProposeError>>,
}

/// Who leads, in which term.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Leadership {
    pub leader: Option<ReplicaId>,
    pub term: u64,
}

/// The task that proposes for one replica.
pub(crate) struct Proposer<M: Machine> {
    pub raft: Raft,
    pub replica: Replica<M>,
    pub wire: Wire,
    pub leadership: watch::Receiver<Leadership>,
    pub counter: Arc<AtomicU64>,
    pub queue: mpsc::Receiver<Item<M::Output>>,
}

type Returned<O> = Vec<Item<O>>;

impl<M: Machine> Proposer<M> {
    /// Runs until every handle that can propose is gone.
    pub(crate) async fn run(mut self) {
        let (back, mut returned) = mpsc::unbounded_channel::<Returned<M::Output>>();
        let mut waiting: VecDeque<Item<M::Output>> = VecDeque::new();
        let slots = Arc::new(Semaphore::new(IN_FLIGHT_MAX));
        let mut tasks = tokio::task::JoinSet::new();
        loop {
            while tasks.try_join_next().is_some() {}
            if waiting.is_empty() {
                tokio::select! {
                    biased;
                    Some(items) = returned.recv() => put_back(&mut waiting, items),
                    item = self.queue.recv() => match item {
                        Some(item) => waiting.push_back(item),
                        None => return,
                    },
                }
            }
            while let Ok(items) = returned.try_recv() {
                put_back(&mut waiting, items);
            }
            while waiting.len() < BATCH_COMMANDS_MAX {
                let Ok(item) = self.queue.try_recv() else { break };
                waiting.push_back(item);
            }
            let Some(leadership) = self.wait_for_leader(&mut waiting).await else { continue };
            let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
            let items = take_batch(&mut waiting);
            if !items.is_empty() {
                self.send(items, leadership, slot, &back, &mut tasks).await;
            }
        }
    }

    /// The current leader; `None` if the first command's deadline came first.
    async fn wait_for_leader(
        &mut self,
        waiting: &mut VecDeque<Item<M::Output>>,
    ) -> Option<Leadership> {
        let first = waiting.iter().map(|item| item.deadline).min()?;
        let known = self.leadership.wait_for(|now| now.leader.is_some());
        match tokio::time::timeout_at(first, known).await {
            Ok(Ok(now)) => return Some(*now),
            Ok(Err(_)) => waiting.clear(),
            Err(_) => {
                let now = Instant::now();
                waiting.retain(|item| item.deadline > now);
            }
        }
        None
    }

    async fn send(
        &mut self,
        items: Vec<Item<M::Output>>,
        leadership: Leadership,
        slot: OwnedSemaphorePermit,
        back: &mpsc::UnboundedSender<Returned<M::Output>>,
        tasks: &mut tokio::task::JoinSet<()>,
    ) {
        let Leadership { leader: Some(leader), term } = leadership else { return };
        let number = self.counter.fetch_add(1, Ordering::Relaxed) + 1;
        let id = BatchId { replica: self.wire.replica, incarnation: self.wire.incarnation, number };
        let commands = items.iter().map(|item| item.bytes.clone()).collect();
        let batch = Batch { id, term, commands };
        let Some(outcome) = self.replica.follow(id, term) else {
            // The machine is ahead of what Raft says about itself: wait for the news.
            give_back(items, back);
            return self.pause_unless_changed(leadership).await;
        };
        if leader == self.wire.replica {
            // The outcome comes from applying the entry, or a later term's.
            if self.raft.client_write_ff(batch).await.is_err() {
                fail(items, || ProposeError::Unknown { reason: "the replica stopped".into() });
                return;
            }
            tasks.spawn(settle(items, outcome, back.clone(), slot));
        } else {
            let proposal = Proposal { attempt: number, batch };
            let sent: Result<ProposalAnswer, BusError> =
                self.wire.request(leader, RPC_PROPOSE, proposal, FORWARD_DEADLINE).await;
            match sent {
                Ok(ProposalAnswer::Refused)
                | Err(
                    BusError::NoResponders(_) | BusError::TooLarge { .. } | BusError::Forbidden(_),
                ) => {
                    self.replica.forget(id);
                    give_back(items, back);
                    self.pause_unless_changed(leadership).await;
                }
                _ => drop(tasks.spawn(settle(items, outcome, back.clone(), slot))),
            }
        }
    }

    /// Waits for other leadership, but not for long: the same leader may have come back.
    async fn pause_unless_changed(&mut self, tried: Leadership) {
        let changed = self.leadership.wait_for(|now| *now != tried);
        let _same = tokio::time::timeout(Duration::from_millis(50), changed).await;
    }
}

/// Waits for a batch's outcome and tells its callers.
async fn settle<O>(
    items: Vec<Item<O>>,
    outcome: oneshot::Receiver<BatchOutcome<O>>,
    back: mpsc::UnboundedSender<Returned<O>>,
    slot: OwnedSemaphorePermit,
) {
    let deadline = items.iter().map(|item| item.deadline).max().unwrap_or_else(Instant::now);
    match tokio::time::timeout_at(deadline, outcome).await {
        Ok(Ok(BatchOutcome::Applied(outputs))) => {
            for (item, output) in items.into_iter().zip(outputs) {
                let _gone = item.answer.send(Ok(output));
            }
        }
        Ok(Ok(BatchOutcome::Void)) => give_back(items, &back),
        Ok(Ok(BatchOutcome::Unknown)) => fail(items, || ProposeError::Unknown {
            reason: "a snapshot from the leader passed over it".to_owned(),
        }),
        Ok(Err(_)) => {
            fail(items, || ProposeError::Unknown { reason: "the replica stopped".to_owned() });
        }
        Err(_) => fail(items, || ProposeError::Unknown {
            reason: "no majority confirmed it in time".to_owned(),
        }),
    }
    drop(slot);
}

fn fail<O>(items: Vec<Item<O>>, error: impl Fn() -> ProposeError) {
    for item in items {
        let _gone = item.answer.send(Err(error()));
    }
}

fn give_back<O>(items: Vec<Item<O>>, back: &mpsc::UnboundedSender<Returned<O>>) {
    for item in &items {
        item.stage.requeue();
    }
    let _stopped = back.send(items);
}

fn put_back<O>(waiting: &mut VecDeque<Item<O>>, items: Vec<Item<O>>) {
    for item in items.into_iter().rev() {
        waiting.push_front(item);
    }
}

/// Takes what fits into one entry and is still wanted.
fn take_batch<O>(waiting: &mut VecDeque<Item<O>>) -> Vec<Item<O>> {
    let mut items: Vec<Item<O>> = Vec::new();
    let mut bytes = 0;
    while let Some(item) = waiting.front() {
        let full = !items.is_empty() && bytes + item.bytes.len() > BATCH_BYTES_SOFT;
        if full || items.len() >= BATCH_COMMANDS_MAX {
            break;
        }
        let Some(item) = waiting.pop_front() else { break };
        if item.stage.advance(SENT) {
            bytes += item.bytes.len();
            items.push(item);
        }
    }
    items
}
