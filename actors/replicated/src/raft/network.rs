//! Raft's outgoing messages over the bus.

use std::{sync::Arc, time::Duration};

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

/// Makes [`Link`]s.
#[derive(Debug, Clone)]
pub(crate) struct Links {
    pub wire: Wire,
    pub log: LogStore,
}

/// Messages to one member.
#[derive(Debug)]
pub(crate) struct Link {
    wire: Wire,
    log: LogStore,
    target: u64,
}

impl RaftNetworkFactory<TypeConfig> for Links {
    type Network = Link;

    async fn new_client(&mut self, target: u64, _node: &Member) -> Link {
        Link { wire: self.wire.clone(), log: self.log.clone(), target }
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
        rpc.leader_commit = self.tellable(rpc.leader_commit, !rpc.entries.is_empty()).await;
        self.call((RPC_APPEND, RPCTypes::AppendEntries), rpc, &option).await
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
