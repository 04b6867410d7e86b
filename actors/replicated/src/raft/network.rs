//! Raft's outgoing messages over the bus.

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use callboard_protocol::{ClusterId, Envelope, GroupId, Incarnation, ReplicaId, Subject};
use callboard_transport::{Bus, BusError};
use openraft::{
    error::{
        InstallSnapshotError, NetworkError, PayloadTooLarge, RPCError, RaftError, RemoteError,
        Timeout, Unreachable,
    },
    network::{Backoff, RPCOption, RPCTypes, RaftNetwork, RaftNetworkFactory},
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest,
        InstallSnapshotResponse, VoteRequest, VoteResponse,
    },
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::time::Instant;

use super::{
    log_store::LogStore,
    types::{Batch, LogId, Member, SnapshotMeta, TypeConfig, Vote, decode, encode},
};

/// Appends entries; body [`AppendEntriesRequest`].
pub(crate) const RPC_APPEND: &str = "append";
/// Asks for a vote; body [`VoteRequest`].
pub(crate) const RPC_VOTE: &str = "vote";
/// Sends a piece of a snapshot; body [`SnapshotPiece`].
pub(crate) const RPC_SNAPSHOT: &str = "snapshot";
/// Hands a batch to the leader; body [`Proposal`].
pub(crate) const RPC_PROPOSE: &str = "propose";
/// Asks how a member is; empty body.
pub(crate) const RPC_STATUS: &str = "status";

/// Bytes kept free below the broker's payload limit for what surrounds entries in a message.
pub(crate) const PAYLOAD_MARGIN_BYTES: usize = 16 << 10;
/// How long a message that only tells of a commit waits for the leader's own disk.
const COMMIT_NEWS_WAIT: Duration = Duration::from_millis(25);
/// Pause before an unreachable member is tried again.
const UNREACHABLE_PAUSE: Duration = Duration::from_millis(100);

/// What every Raft message says about its sender.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Signed<T> {
    pub from: ReplicaId,
    pub incarnation: Incarnation,
    pub body: T,
}

/// A piece of a snapshot.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SnapshotPiece {
    pub vote: Vote,
    pub meta: SnapshotMeta,
    pub offset: u64,
    pub data: Bytes,
    pub done: bool,
}

/// A batch handed to the leader of its term.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Proposal {
    /// Counts up per sender and run; an older one than the last seen is a duplicate.
    pub attempt: u64,
    pub batch: Batch,
}

/// The leader's answer to a [`Proposal`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ProposalAnswer {
    /// It was committed.
    Committed,
    /// It was certainly not appended.
    Refused,
    /// It may be in the log.
    Unknown(String),
}

/// One replica's end of the Raft lane.
#[derive(Debug, Clone)]
pub(crate) struct Wire {
    pub cluster: ClusterId,
    pub group: GroupId,
    pub replica: ReplicaId,
    pub incarnation: Incarnation,
    pub bus: Arc<dyn Bus>,
}

impl Wire {
    pub(crate) async fn request<T: Serialize, R: DeserializeOwned>(
        &self,
        target: ReplicaId,
        rpc: &str,
        body: T,
        deadline: Duration,
    ) -> Result<R, BusError> {
        let signed = Signed { from: self.replica, incarnation: self.incarnation, body };
        let garbled = |error: String| BusError::Disconnected(format!("garbled message: {error}"));
        let payload = encode(&signed).map_err(|error| garbled(error.to_string()))?;
        if payload.len() > self.bus.payload_max() {
            let limit = self.bus.payload_max();
            return Err(BusError::TooLarge { length: payload.len(), limit });
        }
        let deadline_ms = u32::try_from(deadline.as_millis()).ok();
        let envelope = Envelope { deadline_ms, ..Envelope::default() };
        let subject = Subject::raft(&self.cluster, &self.group, target, rpc);
        let answer = self.bus.request(&subject, &envelope, payload.into(), deadline).await?;
        decode(&answer.payload).map_err(|error| garbled(error.to_string()))
    }
}

/// Whether somebody waits for what a member does about a committed command.
#[derive(Clone)]
pub(crate) struct Awaited(pub Arc<dyn Fn(ReplicaId) -> bool + Send + Sync>);

impl fmt::Debug for Awaited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Awaited")
    }
}

/// Makes [`Link`]s.
#[derive(Debug, Clone)]
pub(crate) struct Links {
    pub wire: Wire,
    pub log: LogStore,
    pub awaited: Awaited,
}

/// Messages to one member.
#[derive(Debug)]
pub(crate) struct Link {
    wire: Wire,
    log: LogStore,
    awaited: Awaited,
    target: u64,
    /// What the target has answered last; nothing while it has not, or was not asked.
    told: Option<Told>,
}

/// An answer of a member.
#[derive(Debug, Clone, Copy)]
struct Told {
    /// The commit that it was told of.
    commit: Option<LogId>,
    /// The entry up to which its log is the leader's.
    matching: Option<LogId>,
    at: Instant,
}

impl RaftNetworkFactory<TypeConfig> for Links {
    type Network = Link;

    async fn new_client(&mut self, target: u64, _node: &Member) -> Link {
        let (wire, log, awaited) = (self.wire.clone(), self.log.clone(), self.awaited.clone());
        Link { wire, log, awaited, target, told: None }
    }
}

type RpcResult<T, E> = Result<T, RPCError<u64, Member, E>>;

impl Link {
    async fn call<T, R, E>(
        &self,
        rpc: (&str, RPCTypes),
        body: T,
        option: &RPCOption,
    ) -> RpcResult<R, E>
    where
        T: Serialize,
        R: DeserializeOwned,
        E: std::error::Error + DeserializeOwned,
    {
        let deadline = option.hard_ttl();
        let target = ReplicaId(self.target);
        let answer: Result<Result<R, E>, BusError> =
            self.wire.request(target, rpc.0, body, deadline).await;
        match answer {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(RemoteError::new(self.target, error).into()),
            Err(BusError::TimedOut { .. }) => Err(Timeout {
                action: rpc.1,
                id: self.log.replica,
                target: self.target,
                timeout: deadline,
            }
            .into()),
            Err(error @ BusError::TooLarge { .. }) => Err(NetworkError::new(&error).into()),
            Err(error) => Err(Unreachable::new(&error).into()),
        }
    }

    /// Whether nothing need be sent: the message only tells of a commit, which the next entry or
    /// heartbeat tells, too, and nobody waits for what the member does about it.
    fn can_wait(
        &self,
        told: Option<Told>,
        rpc: &AppendEntriesRequest<TypeConfig>,
        deadline: Duration,
    ) -> bool {
        let is_news = told.is_some_and(|told| {
            rpc.entries.is_empty()
                && rpc.leader_commit > told.commit
                && rpc.prev_log_id == told.matching
                && told.at.elapsed() < deadline
        });
        is_news && !(self.awaited.0)(ReplicaId(self.target))
    }

    /// The commit index this leader may tell: no further than its own disk.
    async fn tellable(&self, commit: Option<LogId>, urgent: bool) -> Option<LogId> {
        let commit = commit?;
        if !urgent {
            let durable_at = self.log.durable_at(commit.index);
            let synced = self.log.wal.synced_to(durable_at);
            let _late = tokio::time::timeout(COMMIT_NEWS_WAIT, synced).await;
        }
        self.log.clamp_to_synced(commit)
    }
}

/// How many of the entries fit into one message; `None` if all do.
fn entries_that_fit(rpc: &AppendEntriesRequest<TypeConfig>, limit: usize) -> Option<u64> {
    let mut length = PAYLOAD_MARGIN_BYTES;
    for (count, entry) in rpc.entries.iter().enumerate() {
        length += encode(entry).map_or(0, |bytes| bytes.len());
        if length > limit && count > 0 {
            return Some(count as u64);
        }
    }
    None
}

impl RaftNetwork<TypeConfig> for Link {
    async fn append_entries(
        &mut self,
        mut rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> RpcResult<AppendEntriesResponse<u64>, RaftError<u64>> {
        if let Some(count) = entries_that_fit(&rpc, self.wire.bus.payload_max()) {
            return Err(PayloadTooLarge::new_entries_hint(count).into());
        }
        // Not twice in a row, so that a member hears something in every interval; and what is given up
        // half way has no answer.
        let told = self.told.take();
        if self.can_wait(told, &rpc, option.hard_ttl()) {
            return Ok(AppendEntriesResponse::Success);
        }
        let commit = self.tellable(rpc.leader_commit, !rpc.entries.is_empty()).await;
        rpc.leader_commit = commit;
        let last = rpc.entries.last().map(|entry| entry.log_id).or(rpc.prev_log_id);
        let answer = self.call((RPC_APPEND, RPCTypes::AppendEntries), rpc, &option).await;
        let matching = match &answer {
            Ok(AppendEntriesResponse::Success) => last,
            Ok(AppendEntriesResponse::PartialSuccess(matching)) => *matching,
            Ok(_) | Err(_) => return answer,
        };
        self.told = Some(Told { commit, matching, at: Instant::now() });
        answer
    }

    async fn install_snapshot(
        &mut self,
        rpc: InstallSnapshotRequest<TypeConfig>,
        option: RPCOption,
    ) -> RpcResult<InstallSnapshotResponse<u64>, RaftError<u64, InstallSnapshotError>> {
        let piece = SnapshotPiece {
            vote: rpc.vote,
            meta: rpc.meta,
            offset: rpc.offset,
            data: rpc.data.into(),
            done: rpc.done,
        };
        self.call((RPC_SNAPSHOT, RPCTypes::InstallSnapshot), piece, &option).await
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<u64>,
        option: RPCOption,
    ) -> RpcResult<VoteResponse<u64>, RaftError<u64>> {
        self.call((RPC_VOTE, RPCTypes::Vote), rpc, &option).await
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(UNREACHABLE_PAUSE))
    }
}
