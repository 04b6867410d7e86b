//! Raft's incoming messages: one subscription per replica.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use callboard_protocol::{Envelope, Incarnation, ReplicaId, SubjectPattern};
use callboard_transport::{BusError, Message, Subscription};
use openraft::{
    error::{ClientWriteError, RaftError},
    raft::{AppendEntriesRequest, InstallSnapshotRequest, VoteRequest},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{sync::oneshot, task::JoinHandle};

use super::{
    log_store::LogStore,
    network::{
        Proposal, ProposalAnswer, RPC_APPEND, RPC_PROPOSE, RPC_SNAPSHOT, RPC_STATUS, RPC_VOTE,
        Signed, SnapshotPiece, Wire,
    },
    types::{Raft, TypeConfig, decode, encode},
};

/// What a member says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberStatus {
    /// Its current term.
    pub term: u64,
    /// Whom it follows.
    pub leader: Option<ReplicaId>,
    /// Index of its last log entry.
    pub last_log: Option<u64>,
    /// Index of the last entry it applied.
    pub applied: Option<u64>,
}

#[derive(Debug, Default)]
struct Senders {
    incarnations: HashMap<ReplicaId, Incarnation>,
    attempts: HashMap<ReplicaId, u64>,
}

/// One replica's Raft messages: those to come, and one that was taken out already.
#[derive(Debug)]
pub(crate) struct Heard {
    pub messages: Subscription,
    pub first: Option<Message>,
}

impl Heard {
    /// Takes the replica's messages in; they wait until somebody asks for them.
    pub(crate) async fn subscribe(wire: &Wire) -> Result<Self, BusError> {
        let pattern = SubjectPattern::RaftMember {
            cluster: wire.cluster.clone(),
            group: wire.group.clone(),
            replica: wire.replica,
        };
        Ok(Self { messages: wire.bus.subscribe(&pattern).await?, first: None })
    }

    async fn next(&mut self) -> Option<Message> {
        match self.first.take() {
            Some(message) => Some(message),
            None => self.messages.next().await,
        }
    }
}

/// A task that holds a replica's messages and hands them back when it is told to stop.
#[derive(Debug)]
pub(crate) struct Listener {
    stop: oneshot::Sender<()>,
    task: JoinHandle<Option<Heard>>,
}

impl Listener {
    /// Ends the task at once; its messages are lost.
    pub(crate) fn abort(self) {
        self.task.abort();
    }

    /// Ends the task and takes its messages; `None` if the bus is closed.
    pub(crate) async fn take(self) -> Option<Heard> {
        let _ended = self.stop.send(());
        self.task.await.ok().flatten()
    }

    /// Waits for a message that `is_call` says yes to, tells `called`, and holds it for whoever
    /// takes the messages. Others are dropped.
    pub(crate) fn doze(
        mut heard: Heard,
        is_call: impl Fn(&Message) -> bool + Send + 'static,
        called: impl FnOnce() + Send + 'static,
    ) -> Self {
        let (stop, mut stopped) = oneshot::channel();
        let task = tokio::spawn(async move {
            loop {
                let message = tokio::select! {
                    biased;
                    _ = &mut stopped => return Some(heard),
                    message = heard.next() => message?,
                };
                if is_call(&message) {
                    heard.first = Some(message);
                    called();
                    let _dropped = stopped.await;
                    return Some(heard);
                }
            }
        });
        Self { stop, task }
    }
}

/// Whether a Raft message asks for a replica that fell asleep in `term`, at its end of the log and
/// with every member. What was sent in that term or an earlier one is late: its sender stopped too.
pub(crate) fn is_call(message: &Message, term: u64) -> bool {
    let bytes = &message.payload;
    let newest = match message.subject.last() {
        RPC_APPEND => decode::<Signed<AppendEntriesRequest<TypeConfig>>>(bytes)
            .map(|signed| signed.body.vote.leader_id.term),
        RPC_VOTE => decode::<Signed<VoteRequest<u64>>>(bytes).map(|it| it.body.vote.leader_id.term),
        RPC_SNAPSHOT => {
            decode::<Signed<SnapshotPiece>>(bytes).map(|it| it.body.vote.leader_id.term)
        }
        RPC_PROPOSE => return true,
        _ => return false,
    };
    newest.is_ok_and(|newest| newest > term)
}

/// Answers one replica's Raft messages.
#[derive(Clone)]
pub(crate) struct Server {
    raft: Raft,
    log: LogStore,
    wire: Wire,
    senders: Arc<Mutex<Senders>>,
}

impl Server {
    pub(crate) fn new(raft: Raft, log: LogStore, wire: Wire) -> Self {
        Self { raft, log, wire, senders: Arc::default() }
    }

    /// Answers until the bus closes or somebody takes the messages away.
    pub(crate) fn serve(self, heard: Heard) -> Listener {
        let (stop, stopped) = oneshot::channel();
        Listener { stop, task: tokio::spawn(self.run(heard, stopped)) }
    }

    async fn run(self, mut heard: Heard, mut stopped: oneshot::Receiver<()>) -> Option<Heard> {
        let mut running = tokio::task::JoinSet::new();
        loop {
            tokio::select! {
                biased;
                _ = &mut stopped => return Some(heard),
                message = heard.next() => self.dispatch(message?, &mut running).await,
                Some(_) = running.join_next() => {}
            }
        }
    }

    async fn dispatch(&self, message: Message, running: &mut tokio::task::JoinSet<()>) {
        if message.subject.last() == RPC_PROPOSE {
            // Handed to Raft here, in order of arrival; only the answer waits elsewhere.
            if let Some(answer) = self.propose(&message).await {
                let server = self.clone();
                running.spawn(async move { server.respond(&message, &answer.await).await });
            }
            return;
        }
        let server = self.clone();
        running.spawn(async move { server.answer(message).await });
    }

    fn open<T: DeserializeOwned>(&self, message: &Message) -> Option<Signed<T>> {
        let signed: Signed<T> = match decode(&message.payload) {
            Ok(signed) => signed,
            Err(error) => {
                tracing::warn!(subject = %message.subject, %error, "dropped a garbled message");
                return None;
            }
        };
        let mut senders = self.senders.lock().unwrap_or_else(PoisonError::into_inner);
        let newest = senders.incarnations.entry(signed.from).or_default();
        if signed.incarnation < *newest {
            return None;
        }
        if signed.incarnation > *newest {
            *newest = signed.incarnation;
            senders.attempts.remove(&signed.from);
        }
        Some(signed)
    }

    async fn respond<T: Serialize>(&self, message: &Message, body: &T) {
        let (Some(reply_to), Ok(payload)) = (&message.reply_to, encode(body)) else { return };
        let envelope: Envelope = message.envelope.causing();
        let sent = self.wire.bus.respond(reply_to, &envelope, payload.into()).await;
        if let Err(error) = sent {
            tracing::debug!(%error, "an answer could not be sent");
        }
    }

    async fn answer(&self, message: Message) {
        match message.subject.last() {
            RPC_APPEND => {
                let Some(signed) = self.open::<AppendEntriesRequest<TypeConfig>>(&message) else {
                    return;
                };
                let result = self.raft.append_entries(signed.body).await;
                // The answer may speak of any entry in the log: all must be durable first.
                if self.log.wal.promises_synced(&self.log.group).await.is_ok() {
                    self.respond(&message, &result).await;
                }
            }
            RPC_VOTE => {
                let Some(signed) = self.open::<VoteRequest<u64>>(&message) else { return };
                let result = self.raft.vote(signed.body).await;
                if self.log.wal.promises_synced(&self.log.group).await.is_ok() {
                    self.respond(&message, &result).await;
                }
            }
            RPC_SNAPSHOT => {
                let Some(signed) = self.open::<SnapshotPiece>(&message) else { return };
                let piece = signed.body;
                let request = InstallSnapshotRequest {
                    vote: piece.vote,
                    meta: piece.meta,
                    offset: piece.offset,
                    data: piece.data.to_vec(),
                    done: piece.done,
                };
                let result = self.raft.install_snapshot(request).await;
                if self.log.wal.promises_synced(&self.log.group).await.is_ok() {
                    self.respond(&message, &result).await;
                }
            }
            RPC_STATUS => {
                let status = {
                    let receiver = self.raft.metrics();
                    let metrics = receiver.borrow();
                    MemberStatus {
                        term: metrics.current_term,
                        leader: metrics.current_leader.map(ReplicaId),
                        last_log: metrics.last_log_index,
                        applied: metrics.last_applied.map(|id| id.index),
                    }
                };
                self.respond(&message, &status).await;
            }
            other => tracing::debug!(verb = other, "ignored an unknown Raft message"),
        }
    }

    /// Takes a forwarded batch; `None` drops the message without an answer.
    async fn propose(
        &self,
        message: &Message,
    ) -> Option<futures::future::BoxFuture<'static, ProposalAnswer>> {
        let signed = self.open::<Proposal>(message)?;
        let Proposal { attempt, batch } = signed.body;
        {
            let mut senders = self.senders.lock().unwrap_or_else(PoisonError::into_inner);
            let last = senders.attempts.entry(signed.from).or_default();
            if attempt <= *last {
                return None;
            }
            *last = attempt;
        }
        let leads = {
            let receiver = self.raft.metrics();
            let metrics = receiver.borrow();
            metrics.current_leader == Some(self.log.replica) && metrics.current_term == batch.term
        };
        if !leads {
            return Some(Box::pin(async { ProposalAnswer::Refused }));
        }
        match self.raft.client_write_ff(batch).await {
            Err(fatal) => Some(Box::pin(async move { ProposalAnswer::Unknown(fatal.to_string()) })),
            Ok(receiver) => Some(Box::pin(async move {
                match receiver.await {
                    Ok(Ok(_)) => ProposalAnswer::Committed,
                    Ok(Err(ClientWriteError::ForwardToLeader(_))) => {
                        ProposalAnswer::Unknown("the leader changed".to_owned())
                    }
                    Ok(Err(error)) => ProposalAnswer::Unknown(error.to_string()),
                    Err(_) => ProposalAnswer::Unknown("the leader stopped".to_owned()),
                }
            })),
        }
    }
}

/// Whether an error means that the replica's Raft has stopped.
pub(crate) fn is_fatal<E: std::error::Error>(error: &RaftError<u64, E>) -> bool {
    matches!(error, RaftError::Fatal(_))
}
