//! A handle to one replica of one Raft group.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use callboard_protocol::{GroupId, NodeId, ReplicaId};
use openraft::{
    ChangeMembers, ServerState,
    error::{ClientWriteError, RaftError},
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::Instant,
};

use crate::{
    dormant::Closed,
    machine::{Machine, Members},
    options::OpenError,
    proposer::{Item, Leadership, ProposeError, Stage},
    raft::{
        network::PAYLOAD_MARGIN_BYTES,
        server::{Listener, is_fatal},
        state_machine::Replica,
        types::{Member, Raft, encode},
    },
    replicator::Replicator,
};

/// How long [`Group::propose`] waits.
pub const PROPOSE_DEADLINE: Duration = Duration::from_secs(5);

/// What a replica does in its group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Follows without a vote.
    Learner,
    /// Follows.
    Follower,
    /// Asks for votes.
    Candidate,
    /// Leads.
    Leader,
    /// Its Raft has stopped.
    Stopped,
}

/// How a replica is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupMetrics {
    /// Its term.
    pub term: u64,
    /// Whom it follows.
    pub leader: Option<ReplicaId>,
    /// What it does.
    pub role: Role,
    /// Index of its last log entry.
    pub last_log: Option<u64>,
    /// Index of the last entry it applied.
    pub applied: Option<u64>,
    /// Index of the last entry its snapshot covers.
    pub snapshot: Option<u64>,
    /// Who belongs to the group.
    pub members: Members,
    /// On the leader: the last index each member is known to have.
    pub matched: BTreeMap<ReplicaId, Option<u64>>,
    /// On the leader: milliseconds since a majority last answered.
    pub quorum_acked_ago_ms: Option<u64>,
    /// Whether Raft runs; if not, the node must restart or the replica be replaced.
    pub running: bool,
}

/// Why a read barrier did not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// Only the leader can tell.
    #[error("this replica does not lead; ask replica {leader:?}")]
    NotLeader {
        /// Who does, as far as is known.
        leader: Option<ReplicaId>,
    },
    /// No majority answered in time.
    #[error("no majority answered within {waited_ms} ms; wait for more members to return")]
    NoMajority {
        /// How long was waited.
        waited_ms: u64,
    },
    /// Raft has stopped.
    #[error("the replica stopped: {0}")]
    Stopped(String),
}

/// Why a change of members did not happen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MemberError {
    /// Only the leader can change members.
    #[error("this replica does not lead; ask replica {leader:?}")]
    NotLeader {
        /// Who does, as far as is known.
        leader: Option<ReplicaId>,
    },
    /// The change itself is not possible now.
    #[error("the members cannot be changed so: {0}")]
    Refused(String),
    /// Raft has stopped.
    #[error("the replica stopped: {0}")]
    Stopped(String),
}

pub(crate) struct GroupInner<M: Machine> {
    pub id: GroupId,
    pub replica_id: ReplicaId,
    pub raft: Raft,
    pub replica: Replica<M>,
    pub replicator: Replicator,
    pub queue: mpsc::Sender<Item<M::Output>>,
    pub leader: watch::Receiver<Option<ReplicaId>>,
    pub metrics: watch::Receiver<GroupMetrics>,
    pub payload_max: usize,
    pub tasks: Mutex<Vec<JoinHandle<()>>>,
    /// Answers the group's messages.
    pub server: Mutex<Option<Listener>>,
    /// Whether the group's place on this node was given up or passed on.
    pub released: AtomicBool,
}

impl<M: Machine> Drop for GroupInner<M> {
    fn drop(&mut self) {
        self.abort_tasks();
        self.release();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let raft = self.raft.clone();
            runtime.spawn(async move { drop(raft.shutdown().await) });
        }
    }
}

impl<M: Machine> GroupInner<M> {
    fn abort_tasks(&self) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        for task in tasks.drain(..) {
            task.abort();
        }
        if let Some(server) = self.take_server() {
            server.abort();
        }
    }

    pub(crate) fn take_server(&self) -> Option<Listener> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Gives up the group's place on this node, unless that happened already.
    fn release(&self) {
        if !self.released.swap(true, Ordering::AcqRel) {
            self.replicator.closed(&self.id);
        }
    }
}

/// One replica of a group. Clones share it; dropping the last one stops it ungracefully.
pub struct Group<M: Machine> {
    pub(crate) inner: Arc<GroupInner<M>>,
}

impl<M: Machine> Clone for Group<M> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

impl<M: Machine> std::fmt::Debug for Group<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Group({}, replica {})", self.inner.id, self.inner.replica_id)
    }
}

impl<M: Machine> Group<M> {
    /// The group.
    #[must_use]
    pub fn id(&self) -> &GroupId {
        &self.inner.id
    }

    /// This replica.
    #[must_use]
    pub fn replica(&self) -> ReplicaId {
        self.inner.replica_id
    }

    /// Puts a command into the log, by way of the leader, and waits until it is applied here; at
    /// most [`PROPOSE_DEADLINE`]. The command is queued by the call itself, so calls keep their
    /// order while leadership is stable, in whatever order their futures are polled; dropping the
    /// future does not take the command back.
    ///
    /// # Errors
    /// [`ProposeError`].
    pub fn propose(
        &self,
        command: M::Command,
    ) -> impl Future<Output = Result<M::Output, ProposeError>> + Send + 'static {
        self.propose_within(command, PROPOSE_DEADLINE)
    }

    /// Like [`Group::propose`] with another deadline.
    ///
    /// # Errors
    /// [`ProposeError`].
    pub fn propose_within(
        &self,
        command: M::Command,
        deadline: Duration,
    ) -> impl Future<Output = Result<M::Output, ProposeError>> + Send + 'static {
        let deadline = Instant::now() + deadline;
        let queued = self.enqueue(&command, deadline);
        let queue = self.inner.queue.clone();
        async move {
            let Queued { stage, outcome, refused } = queued?;
            if let Some(item) = refused {
                match tokio::time::timeout_at(deadline, queue.send(item)).await {
                    Err(_) => return Err(not_executed("too many commands wait already")),
                    Ok(Err(_)) => return Err(not_executed("the replica is shut down")),
                    Ok(Ok(())) => {}
                }
            }
            // A queue that nobody holds open ends with the replica.
            drop(queue);
            match tokio::time::timeout_at(deadline, outcome).await {
                Ok(Ok(result)) => result,
                _ if stage.cancel() => {
                    Err(not_executed("no leader took it in time; try again later"))
                }
                Ok(Err(_)) => {
                    Err(ProposeError::Unknown { reason: "the replica stopped".to_owned() })
                }
                Err(_) => Err(ProposeError::Unknown {
                    reason: "no majority confirmed it in time".to_owned(),
                }),
            }
        }
    }

    fn enqueue(
        &self,
        command: &M::Command,
        deadline: Instant,
    ) -> Result<Queued<M::Output>, ProposeError> {
        let bytes = encode(command).map_err(|error| not_executed(&error.to_string()))?;
        let limit = self.inner.payload_max.saturating_sub(PAYLOAD_MARGIN_BYTES);
        if bytes.len() > limit {
            return Err(ProposeError::TooLarge { length: bytes.len(), limit });
        }
        let (answer, outcome) = oneshot::channel();
        let stage = Stage::default();
        let item = Item { bytes: bytes.into(), stage: stage.clone(), deadline, answer };
        let refused = match self.inner.queue.try_send(item) {
            Ok(()) => None,
            Err(mpsc::error::TrySendError::Full(item)) => Some(item),
            Err(mpsc::error::TrySendError::Closed(_)) => {
                return Err(not_executed("the replica is shut down"));
            }
        };
        Ok(Queued { stage, outcome, refused })
    }

    /// Looks at the machine under a short lock.
    pub fn read<T>(&self, look: impl FnOnce(&M) -> T) -> T {
        self.inner.replica.read(look)
    }

    /// On the leader: afterwards [`Group::read`] sees everything acknowledged before the call.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn read_barrier(&self, deadline: Duration) -> Result<(), ReadError> {
        let waited_ms = u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX);
        let barrier = self.inner.raft.ensure_linearizable();
        match tokio::time::timeout(deadline, barrier).await {
            Err(_) => Err(ReadError::NoMajority { waited_ms }),
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) if is_fatal(&error) => Err(ReadError::Stopped(error.to_string())),
            Ok(Err(error)) => match error.forward_to_leader() {
                Some(to) => Err(ReadError::NotLeader { leader: to.leader_id.map(ReplicaId) }),
                None => Err(ReadError::NoMajority { waited_ms }),
            },
        }
    }

    /// Whether this replica believes to lead.
    #[must_use]
    pub fn is_leader(&self) -> bool {
        *self.inner.leader.borrow() == Some(self.inner.replica_id)
    }

    /// Follows who leads.
    #[must_use]
    pub fn leader(&self) -> watch::Receiver<Option<ReplicaId>> {
        self.inner.leader.clone()
    }

    /// Follows how the replica is.
    #[must_use]
    pub fn metrics(&self) -> watch::Receiver<GroupMetrics> {
        self.inner.metrics.clone()
    }

    /// Who belongs to the group, as far as this replica knows.
    #[must_use]
    pub fn members(&self) -> Members {
        self.inner.metrics.borrow().members.clone()
    }

    /// On the leader: adds a replica that follows without a vote. Does not wait until it has
    /// caught up; [`GroupMetrics::matched`] tells.
    ///
    /// # Errors
    /// [`MemberError`].
    pub async fn add_learner(&self, replica: ReplicaId, node: NodeId) -> Result<(), MemberError> {
        let member = Member { node: Some(node) };
        let added = self.inner.raft.add_learner(replica.0, member, false).await;
        added.map(drop).map_err(|error| member_error(&error))
    }

    /// On the leader: makes exactly these replicas voters; all must be members already. Voters
    /// that are not among them leave the group, learners stay.
    ///
    /// # Errors
    /// [`MemberError`]. After one, look at [`Group::members`]: the change may be half done.
    pub async fn change_voters(&self, voters: BTreeSet<ReplicaId>) -> Result<(), MemberError> {
        let voters: BTreeSet<u64> = voters.into_iter().map(|replica| replica.0).collect();
        let changed = self.inner.raft.change_membership(voters, false).await;
        changed.map(drop).map_err(|error| member_error(&error))
    }

    /// On the leader: removes a replica that has no vote.
    ///
    /// # Errors
    /// [`MemberError`].
    pub async fn remove_learner(&self, replica: ReplicaId) -> Result<(), MemberError> {
        let change = ChangeMembers::RemoveNodes(BTreeSet::from([replica.0]));
        let changed = self.inner.raft.change_membership(change, true).await;
        changed.map(drop).map_err(|error| member_error(&error))
    }

    /// Stands for election now.
    pub async fn trigger_elect(&self) {
        let _stopped = self.inner.raft.trigger().elect().await;
    }

    /// Writes a snapshot soon and purges the log it covers.
    pub async fn trigger_snapshot(&self) {
        let _stopped = self.inner.raft.trigger().snapshot().await;
    }

    /// Stops the replica. Its log stays; it can be opened again.
    pub async fn shutdown(&self) {
        self.inner.abort_tasks();
        let _panicked = self.inner.raft.shutdown().await;
        self.inner.release();
    }

    /// Stops Raft and goes on listening, so that the replica can fall asleep. Other handles of it
    /// are of no use afterwards.
    pub async fn close(self) -> Closed<M> {
        let heard = match self.inner.take_server() {
            Some(server) => server.take().await,
            None => None,
        };
        self.inner.abort_tasks();
        let _panicked = self.inner.raft.shutdown().await;
        self.inner.released.store(true, Ordering::Release);
        Closed::new(
            self.inner.replicator.clone(),
            self.inner.id.clone(),
            self.inner.replica_id,
            self.inner.replica.clone(),
            heard,
        )
    }

    /// Stops the replica and erases its log and snapshots durably.
    ///
    /// # Errors
    /// [`OpenError`] if the disk refuses.
    pub async fn remove(self) -> Result<(), OpenError> {
        self.shutdown().await;
        self.inner.replicator.erase(&self.inner.id).await
    }
}

/// A command that was handed over, or found the queue full.
struct Queued<O> {
    stage: Stage,
    outcome: oneshot::Receiver<Result<O, ProposeError>>,
    refused: Option<Item<O>>,
}

fn not_executed(reason: &str) -> ProposeError {
    ProposeError::NotExecuted { reason: reason.to_owned() }
}

fn member_error(error: &RaftError<u64, ClientWriteError<u64, Member>>) -> MemberError {
    match error {
        RaftError::Fatal(fatal) => MemberError::Stopped(fatal.to_string()),
        RaftError::APIError(ClientWriteError::ForwardToLeader(to)) => {
            MemberError::NotLeader { leader: to.leader_id.map(ReplicaId) }
        }
        RaftError::APIError(ClientWriteError::ChangeMembershipError(why)) => {
            MemberError::Refused(why.to_string())
        }
    }
}

fn translate(metrics: &openraft::RaftMetrics<u64, Member>) -> GroupMetrics {
    let running = metrics.running_state.is_ok();
    let role = match metrics.state {
        _ if !running => Role::Stopped,
        ServerState::Learner => Role::Learner,
        ServerState::Follower => Role::Follower,
        ServerState::Candidate => Role::Candidate,
        ServerState::Leader => Role::Leader,
        ServerState::Shutdown => Role::Stopped,
    };
    let matched = metrics.replication.iter().flatten();
    GroupMetrics {
        term: metrics.current_term,
        leader: metrics.current_leader.map(ReplicaId),
        role,
        last_log: metrics.last_log_index,
        applied: metrics.last_applied.map(|id| id.index),
        snapshot: metrics.snapshot.map(|id| id.index),
        members: Members::from_raft(metrics.membership_config.membership()),
        matched: matched.map(|(id, log)| (ReplicaId(*id), log.map(|log| log.index))).collect(),
        quorum_acked_ago_ms: metrics.millis_since_quorum_ack,
        running,
    }
}

/// What the outside sees of openraft's metrics.
pub(crate) struct Views {
    pub leadership: watch::Receiver<Leadership>,
    pub leader: watch::Receiver<Option<ReplicaId>>,
    pub metrics: watch::Receiver<GroupMetrics>,
    pub task: JoinHandle<()>,
}

/// Follows openraft's metrics and translates them.
pub(crate) fn views(raft: &Raft) -> Views {
    let mut source = raft.metrics();
    let first = translate(&source.borrow_and_update());
    let leadership_of =
        |metrics: &GroupMetrics| Leadership { leader: metrics.leader, term: metrics.term };
    let (leadership_sender, leadership) = watch::channel(leadership_of(&first));
    let (leader_sender, leader) = watch::channel(first.leader);
    let (metrics_sender, metrics) = watch::channel(first);
    let task = tokio::spawn(async move {
        while source.changed().await.is_ok() {
            let now = translate(&source.borrow_and_update());
            let leadership = leadership_of(&now);
            leadership_sender.send_if_modified(|old| replace(old, leadership));
            leader_sender.send_if_modified(|old| replace(old, now.leader));
            metrics_sender.send_if_modified(|old| replace(old, now));
        }
        metrics_sender.send_modify(|last| {
            last.running = false;
            last.role = Role::Stopped;
            last.leader = None;
        });
        leader_sender.send_replace(None);
    });
    Views { leadership, leader, metrics, task }
}

fn replace<T: PartialEq>(old: &mut T, new: T) -> bool {
    let differs = *old != new;
    *old = new;
    differs
}
