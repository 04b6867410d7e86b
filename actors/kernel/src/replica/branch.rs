//! A new kernel's first state, fetched from another kernel.
//!
//! The new group's leader asks the other kernel's leader what the state consists of, pulls its
//! chunks from that kernel's nodes to a majority of its own, and puts the state in its log. The
//! other kernel is asked like by anybody who looks at it: whatever it runs goes on.

use std::{
    sync::{Arc, PoisonError},
    time::Duration,
};

use callboard_policy::terms::{Entry, StateGroup};
use callboard_protocol::{
    ActorKind, Envelope, Fault, KernelId, NodeId, OwnerId, ReplicaId, Subject,
    history::{GetManifest, Manifest, SeedEnd},
    kernel::KernelStatus,
};
use callboard_replicated::{ChunkId, Group};
use callboard_transport::typed;

use super::{beginning::Trouble, chunks};
use crate::{
    KernelMachine, NodeContext,
    state::{self, Named},
};

/// Pause between looks at whether this replica leads, and between attempts.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How long the other kernel's leader may take to answer.
const ASK_WITHIN: Duration = Duration::from_secs(2);

/// A branch on its way.
#[derive(Debug)]
pub(super) struct Branch {
    pub(super) context: Arc<NodeContext>,
    pub(super) group: Group<KernelMachine>,
    pub(super) owner: OwnerId,
    pub(super) replica: ReplicaId,
    pub(super) from: KernelId,
    pub(super) at: String,
}

impl Branch {
    /// Goes on until the group has begun; only its leader does something.
    pub(super) async fn run(self, trouble: Trouble) {
        while self.group.read(|machine| machine.log().begun_from().is_none()) {
            if self.group.is_leader()
                && let Err(why) = self.seed().await
            {
                tracing::warn!(group = %self.group.id(), %why, "a branch has no first state yet");
                *trouble.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Fetches the state page by page; each page's chunks are on a majority before it is named.
    async fn seed(&self) -> Result<(), String> {
        let sources = self.sources().await?;
        let mut at = self.at.clone();
        loop {
            let skip = self.group.read(|machine| machine.log().groups_held());
            let asked = GetManifest { at: Some(at.clone()), skip };
            let page: Manifest = self.ask("manifest", &asked).await?;
            let groups: Vec<(String, StateGroup)> =
                rmp_serde::from_slice(&page.groups).map_err(|error| error.to_string())?;
            self.bring(&sources, &groups).await?;
            let end = (!page.more).then(|| SeedEnd {
                refused: page.refused,
                execution_count: page.execution_count,
                from: format!("the state after cell {} of kernel {}", page.cell, self.from),
            });
            let entry = Entry::Seed { skip, groups, end };
            self.group.propose(entry).await.map_err(|error| error.to_string())?;
            if !page.more {
                return Ok(());
            }
            at = page.at;
        }
    }

    /// The nodes of the other kernel's members.
    async fn sources(&self) -> Result<Vec<NodeId>, String> {
        let status: KernelStatus = self.ask("show", &()).await?;
        Ok(status.replicas.into_iter().map(|replica| replica.node).collect())
    }

    /// Pulls the chunks of groups here, then hands them to enough of the other members.
    async fn bring(
        &self,
        sources: &[NodeId],
        groups: &[(String, StateGroup)],
    ) -> Result<(), String> {
        let named = Named::of(groups.iter().flat_map(|(_, group)| &group.parts));
        let (context, owner) = (&self.context, &self.owner);
        // What indexes list is known once they are here.
        let indexes = chunks::read_all(context, owner, sources, &named.indexes).await?;
        let all = named.expand(|index| state::listed_by(indexes.get(index)?));
        let all = all.map_err(|index| {
            format!("index {} of the state cannot be understood", ChunkId::from(index))
        })?;
        let chunks: Vec<ChunkId> = all.into_iter().map(ChunkId::from).collect();
        if chunks.is_empty() {
            return Ok(());
        }
        let exchange = &context.exchange;
        let pulled = exchange.pull(sources, owner, &chunks).await;
        pulled.map_err(|error| error.to_string())?;
        let voters = self.group.members().voters;
        let wanted = voters.len() / 2;
        let (mut stored, mut last) = (0, String::new());
        for (_, node) in voters.iter().filter(|(id, _)| **id != self.replica) {
            if stored >= wanted {
                break;
            }
            match exchange.push(node, owner, &chunks).await {
                Ok(()) => stored += 1,
                Err(error) => last = error.to_string(),
            }
        }
        if stored >= wanted { Ok(()) } else { Err(last) }
    }

    async fn ask<Req, Rep>(&self, verb: &str, request: &Req) -> Result<Rep, String>
    where
        Req: serde::Serialize + Sync,
        Rep: serde::de::DeserializeOwned,
    {
        let subject = Subject::actor(&self.context.cluster, ActorKind::Kernel, self.from, verb);
        let bus = &*self.context.lanes.control;
        let envelope = Envelope::new(self.owner.clone());
        let asked = typed::ask(bus, &subject, &envelope, request, ASK_WITHIN).await;
        asked.map_err(|fault: Fault| fault.message)
    }
}
