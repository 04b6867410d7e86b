//! Removes objects that no kernel of the cluster names.
//!
//! The node whose member leads the system group does it, and only while every node that hosts
//! replicas says what it names: one that is silent might name anything.

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
    time::Duration,
};

use callboard_control::DesiredState;
use callboard_protocol::{
    ActorKind, ClusterId, Envelope, NodeId, OwnerId, Subject,
    storage::{Named, NamedAmong},
};
use callboard_replicated::{ChunkId, Group};
use callboard_transport::{Bus, typed};

use super::ObjectArchive;

/// Between two sweeps: a sweep lists all objects.
const SWEEP_EVERY: Duration = Duration::from_secs(600);
/// Grace periods of chunks that make one of objects: clocks of two machines are compared here.
const GRACE_TIMES: u32 = 10;
/// Chunks asked about in one message.
const ASKED_MAX: usize = 2000;
/// How long a node may take to say what it names.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// What a sweep needs to know of the cluster.
#[derive(Clone)]
pub(crate) struct Sweeper {
    pub(crate) cluster: ClusterId,
    pub(crate) bus: Arc<dyn Bus>,
    pub(crate) group: Group<DesiredState>,
}

impl Sweeper {
    /// Sweeps for ever, whenever this node leads.
    pub(crate) async fn sweep_for_ever(self, archive: Arc<ObjectArchive>, chunk_grace: Duration) {
        loop {
            tokio::time::sleep(SWEEP_EVERY).await;
            if !self.group.is_leader() {
                continue;
            }
            match self.sweep(&archive, chunk_grace * GRACE_TIMES).await {
                Ok(0) => {}
                Ok(chunks) => tracing::info!(chunks, "swept the object store"),
                Err(why) => tracing::info!(%why, "the object store is not swept now"),
            }
        }
    }

    /// Removes what nobody names and was written `grace` ago; returns how many chunks.
    pub(crate) async fn sweep(
        &self,
        archive: &ObjectArchive,
        grace: Duration,
    ) -> Result<usize, String> {
        let mut removed = 0;
        for owner in archive.owners().await? {
            let old: Vec<ChunkId> = archive
                .list(&owner)
                .await?
                .into_iter()
                .filter(|it| it.written.elapsed().is_ok_and(|age| age >= grace))
                .map(|it| it.id)
                .collect();
            for asked in old.chunks(ASKED_MAX) {
                removed += self.remove_unnamed(archive, &owner, asked).await?;
            }
        }
        Ok(removed)
    }

    async fn remove_unnamed(
        &self,
        archive: &ObjectArchive,
        owner: &OwnerId,
        asked: &[ChunkId],
    ) -> Result<usize, String> {
        let named = self.named_among(owner, asked).await?;
        let mut removed = 0;
        for id in asked.iter().filter(|id| !named.contains(id)) {
            archive.remove(owner, *id).await?;
            archive.queue.forget(owner, *id);
            removed += 1;
        }
        Ok(removed)
    }

    /// Which of these chunks some kernel names; every node that hosts replicas has to answer.
    async fn named_among(
        &self,
        owner: &OwnerId,
        asked: &[ChunkId],
    ) -> Result<HashSet<ChunkId>, String> {
        let nodes: BTreeSet<NodeId> = self.group.read(|state| {
            let replicas = state.kernels().values().flat_map(|spec| spec.replicas.values());
            replicas.map(|replica| replica.node.clone()).collect()
        });
        let request = NamedAmong {
            owner: owner.clone(),
            chunks: asked.iter().map(ToString::to_string).collect(),
        };
        let mut named = HashSet::new();
        for node in nodes {
            let subject = Subject::actor(&self.cluster, ActorKind::Node, &node, "named");
            let envelope = Envelope::default();
            let answer: Named =
                typed::ask(&*self.bus, &subject, &envelope, &request, ANSWER_WITHIN)
                    .await
                    .map_err(|fault| format!("{node}: {fault}"))?;
            let positions = answer.positions.into_iter();
            named.extend(positions.filter_map(|at| asked.get(at as usize).copied()));
        }
        Ok(named)
    }
}

/// Removes chunks of a kernel that was purged, unless another kernel names them.
pub(crate) async fn forget(
    sweeper: &Sweeper,
    archive: &ObjectArchive,
    owner: &OwnerId,
    chunks: &BTreeSet<ChunkId>,
) {
    let chunks: Vec<ChunkId> = chunks.iter().copied().collect();
    for asked in chunks.chunks(ASKED_MAX) {
        if let Err(why) = sweeper.remove_unnamed(archive, owner, asked).await {
            tracing::info!(%why, "purged chunks go from the object store with the next sweep");
            return;
        }
    }
}
