//! How a node comes to its member of the system group: the one it had, a founder's, or one that
//! the control plane gives it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use callboard_control::{RegisterNode, Registered};
use callboard_protocol::{ActorKind, ClusterId, Envelope, NodeId, ReplicaId, Subject};
use callboard_transport::{Bus, typed};
use futures::future::join_all;
use tokio::time::Instant;

use crate::{
    data_dir::{DataDir, Founder, Membership},
    error::NodeError,
    founding::{FOUNDING_VERB, FoundingDecision, FoundingDesk, FoundingStage, decide},
};

/// How long one question may take.
const ASK_WITHIN: Duration = Duration::from_secs(2);
/// Pause between two rounds of questions.
const ASK_EVERY: Duration = Duration::from_millis(300);
/// How often the log says what is waited for.
const SAY_EVERY: Duration = Duration::from_secs(5);
/// How long a refusal is taken for the echo of a former life of this node: longer than the time
/// after which a silent node is suspected.
const DOUBLE_WITHIN: Duration = Duration::from_secs(10);

/// A node that looks for its place.
pub(crate) struct Joining<'a> {
    pub(crate) cluster: &'a ClusterId,
    pub(crate) node: &'a NodeId,
    pub(crate) bootstrap: &'a [NodeId],
    pub(crate) dir: &'a DataDir,
    pub(crate) bus: Arc<dyn Bus>,
    pub(crate) desk: &'a FoundingDesk,
}

impl Joining<'_> {
    /// The node's member of the system group; waits for the other nodes for as long as it takes.
    pub(crate) async fn settle(&self) -> Result<Membership, NodeError> {
        let membership = match self.dir.membership()? {
            Some(membership) => membership,
            None => {
                let membership = self.first_time().await?;
                self.dir.save_membership(&membership)?;
                membership
            }
        };
        self.show(&membership);
        Ok(membership)
    }

    /// A fresh member, in place of one whose log is lost.
    pub(crate) async fn replace(&self, lost: ReplicaId) -> Result<Membership, NodeError> {
        let membership = self.register(Some(lost)).await?;
        self.dir.save_membership(&membership)?;
        self.show(&membership);
        Ok(membership)
    }

    fn show(&self, membership: &Membership) {
        self.desk.show(if membership.founders.is_empty() {
            FoundingStage::Member
        } else {
            FoundingStage::Founder(membership.founders.clone())
        });
    }

    async fn first_time(&self) -> Result<Membership, NodeError> {
        let mut said = Said::default();
        loop {
            let heard = self.ask_the_others().await;
            match decide(self.node, self.dir.disk(), self.bootstrap, &heard) {
                FoundingDecision::Found(founders) => return self.founder(founders),
                FoundingDecision::Join => return self.register(None).await,
                FoundingDecision::Wait(why) => said.say(&why),
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
    }

    fn founder(&self, founders: Vec<Founder>) -> Result<Membership, NodeError> {
        let own = founders.iter().find(|it| it.node == *self.node);
        let Some(own) = own else { return Err(NodeError::NotAFounder(self.node.clone())) };
        Ok(Membership { member: own.member, opened: false, founders })
    }

    async fn ask_the_others(&self) -> BTreeMap<NodeId, crate::founding::FoundingStatus> {
        let others = self.bootstrap.iter().filter(|other| *other != self.node);
        let asked = others.map(|other| async move {
            let subject = Subject::actor(self.cluster, ActorKind::Node, other, FOUNDING_VERB);
            let envelope = Envelope::default();
            let said = typed::ask(&*self.bus, &subject, &envelope, &(), ASK_WITHIN).await;
            Some((other.clone(), said.ok()?))
        });
        join_all(asked).await.into_iter().flatten().collect()
    }

    async fn register(&self, lost: Option<ReplicaId>) -> Result<Membership, NodeError> {
        let subject = Subject::actor(self.cluster, ActorKind::Control, "main", "register_node");
        let request = RegisterNode { node: self.node.clone(), disk: self.dir.disk(), lost };
        let mut said = Said::default();
        let mut refused_since: Option<Instant> = None;
        loop {
            let envelope = Envelope::default();
            let answer: Result<Registered, _> =
                typed::ask(&*self.bus, &subject, &envelope, &request, ASK_WITHIN).await;
            match answer {
                Ok(Registered { member }) => {
                    return Ok(Membership { member, opened: false, founders: Vec::new() });
                }
                Err(fault) if fault.code == callboard_protocol::FaultCode::Conflict => {
                    let since = *refused_since.get_or_insert_with(Instant::now);
                    if since.elapsed() >= DOUBLE_WITHIN {
                        return Err(NodeError::Double(fault.message));
                    }
                }
                Err(fault) => said.say(&format!("waiting to join the cluster: {fault}")),
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
    }
}

/// Says the same thing seldom.
#[derive(Default)]
struct Said(Option<(String, Instant)>);

impl Said {
    fn say(&mut self, what: &str) {
        let is_news =
            self.0.as_ref().is_none_or(|(last, at)| last != what || at.elapsed() >= SAY_EVERY);
        if is_news {
            tracing::info!("{what}");
            self.0 = Some((what.to_owned(), Instant::now()));
        }
    }
}
