//! The Python environments of the nodes, asked for once per digest.
//!
//! A restart loses them; they are asked for again.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use callboard_policy::{
    environment::EnvironmentMatch, failure::NodesView, placement::Environments,
};
use callboard_protocol::{
    ActorKind, ClusterId, Envelope, NodeId, Subject, control::NodeHealth, environment::Environment,
};
use callboard_transport::{Bus, typed};
use futures::future::join_all;

/// How long a node may take to tell its environment; it is asked again in the next round.
const ANSWER_WITHIN: Duration = Duration::from_millis(500);
/// How long a node may take, from when it is up, to look at what is installed on it.
const AWAITED_WITHIN: Duration = Duration::from_secs(5);
/// Environments remembered; more than one per node is the exception.
const KNOWN_MAX: usize = 256;

/// What has been learned of the nodes' environments.
#[derive(Debug)]
pub(crate) struct Learned {
    alike: EnvironmentMatch,
    known: Mutex<BTreeMap<String, Environment>>,
    /// Since when a node has to say what is installed on it.
    awaited_since: Mutex<Option<Instant>>,
}

impl Learned {
    pub(crate) fn new(alike: EnvironmentMatch) -> Self {
        Self { alike, known: Mutex::default(), awaited_since: Mutex::default() }
    }

    /// All that is known.
    pub(crate) fn get(&self) -> Environments {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Environments { alike: self.alike, known }
    }

    /// Asks the nodes whose environment is not known yet.
    pub(crate) async fn learn(&self, bus: &dyn Bus, cluster: &ClusterId, nodes: &NodesView) {
        let asks = self.unknown(nodes).into_iter().map(|(id, node)| async move {
            let subject = Subject::actor(cluster, ActorKind::Node, &node, "environment");
            let envelope = Envelope::default();
            let asked = typed::ask(bus, &subject, &envelope, &(), ANSWER_WITHIN).await;
            asked
                .inspect_err(|fault| tracing::debug!(%node, %id, %fault, "no environment yet"))
                .ok()
        });
        let learned: Vec<Environment> = join_all(asks).await.into_iter().flatten().collect();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() + learned.len() > KNOWN_MAX {
            known.clear();
        }
        known.extend(learned.into_iter().map(|it| (it.id.clone(), it)));
    }

    /// Whether a node that can run kernels has still to say what is installed on it, and is worth
    /// waiting for.
    pub(crate) fn is_awaited(&self, nodes: &NodesView) -> bool {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let up = nodes.nodes.values().filter(|view| view.health == NodeHealth::Up);
        let said: Vec<(bool, bool)> = up
            .filter_map(|view| view.last_beat.as_ref())
            .map(|beat| {
                let is_known = beat.environment.as_ref().is_some_and(|id| known.contains_key(id));
                (beat.python_problem.is_none(), is_known)
            })
            .collect();
        // A leader that has just begun has heard of none.
        let is_silent = !said.iter().any(|(_, is_known)| *is_known)
            || said.iter().any(|(has_python, is_known)| *has_python && !is_known);
        let mut since = self.awaited_since.lock().unwrap_or_else(PoisonError::into_inner);
        if !is_silent {
            *since = None;
            return false;
        }
        since.get_or_insert_with(Instant::now).elapsed() < AWAITED_WITHIN
    }

    /// One node for each environment that is not known.
    fn unknown(&self, nodes: &NodesView) -> Vec<(String, NodeId)> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let mut seen = BTreeSet::new();
        let up = nodes.nodes.iter().filter(|(_, view)| view.health == NodeHealth::Up);
        up.filter_map(|(node, view)| {
            let id = view.last_beat.as_ref()?.environment.clone()?;
            (!known.contains_key(&id) && seen.insert(id.clone())).then(|| (id, node.clone()))
        })
        .collect()
    }
}
