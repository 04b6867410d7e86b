//! Which nodes are up, suspected or gone, judged from heartbeats; and when not to trust that.
//!
//! A node that cannot hear the others must not conclude that the others are gone. So while the
//! bus is down, while more than a third of the nodes is silent, and after this process itself was
//! stopped for a while, nothing becomes gone ([`NodesView::outage`]); once all is well for
//! `thaw_after_ms`, the clocks of silence start again.

use std::{collections::BTreeMap, fmt};

use callboard_protocol::{DiskId, Incarnation, NodeId, control::NodeHealth, node::Beat};
use serde::{Deserialize, Serialize};

mod detector;
#[cfg(test)]
mod tests;

pub use detector::FailureDetector;

/// The times the detector goes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FailureConfig {
    /// Silence after which a node is suspected, in milliseconds.
    pub suspect_after_ms: u64,
    /// Silence after which a node's members are replaced, in milliseconds.
    pub gone_after_ms: u64,
    /// How long all must be well before an outage is over, in milliseconds.
    pub thaw_after_ms: u64,
    /// A longer gap between two ticks, in milliseconds, means that this process was stopped.
    pub tick_gap_max_ms: u64,
}

impl Default for FailureConfig {
    fn default() -> Self {
        Self {
            suspect_after_ms: 1_500,
            gone_after_ms: 60_000,
            thaw_after_ms: 3_000,
            tick_gap_max_ms: 1_000,
        }
    }
}

/// What is known of the nodes at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodesView {
    /// Why silence proves nothing just now, as a sentence; `None` when all is well.
    pub outage: Option<String>,
    /// Every node heard of or expected.
    pub nodes: BTreeMap<NodeId, NodeView>,
}

/// What is known of one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeView {
    /// How it is.
    pub health: NodeHealth,
    /// Which of its process's lives was heard last; 0 if none was.
    pub incarnation: Incarnation,
    /// The disk it was last heard with.
    pub disk: DiskId,
    /// Milliseconds since it was last heard.
    pub silent_ms: u64,
    /// How its process ended, such as `killed by signal 9`, if that was seen.
    pub how: Option<String>,
    /// What it last said of itself.
    pub last_beat: Option<Beat>,
}

/// Beats of a process's life within which all that it ran before has come back, or will not.
const BEATS_TO_SETTLE: u64 = 12;

impl NodeView {
    /// Whether it has been heard so often in its present life that what is not back does not come
    /// back by itself.
    #[must_use]
    pub fn has_settled(&self) -> bool {
        self.last_beat.as_ref().is_some_and(|beat| beat.number >= BEATS_TO_SETTLE)
    }
}

impl NodesView {
    /// A sentence if more than a third of the nodes is silent. Nodes that are gone do not count:
    /// they were given up at a time when most others were heard.
    #[must_use]
    pub fn too_many_silent(&self) -> Option<String> {
        let silent: Vec<&str> =
            self.with_health(NodeHealth::Suspected).map(NodeId::as_str).collect();
        let total = silent.len() + self.with_health(NodeHealth::Up).count();
        (silent.len() * 3 > total).then(|| {
            format!(
                "{} of {total} nodes are silent ({}): nothing is replaced until they are back",
                silent.len(),
                silent.join(", ")
            )
        })
    }

    /// Whether nothing differs that anybody acts on: who is up, in which life and whether settled in
    /// it, with which disk and Python.
    #[must_use]
    pub fn says_the_same_as(&self, other: &Self) -> bool {
        let of_node = |(node, view): (&NodeId, &NodeView)| {
            let beat = view.last_beat.as_ref();
            let problem = beat.and_then(|beat| beat.python_problem.clone());
            let environment = beat.and_then(|beat| beat.environment.clone());
            let life = (view.incarnation, view.has_settled());
            (node.clone(), view.health, life, view.disk, view.how.clone(), problem, environment)
        };
        self.outage == other.outage
            && self.nodes.len() == other.nodes.len()
            && self.nodes.iter().map(of_node).eq(other.nodes.iter().map(of_node))
    }

    fn with_health(&self, health: NodeHealth) -> impl Iterator<Item = &NodeId> {
        self.nodes.iter().filter(move |(_, view)| view.health == health).map(|(node, _)| node)
    }
}

impl fmt::Display for NodesView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (node, view) in &self.nodes {
            let health = match view.health {
                NodeHealth::Up => "up",
                NodeHealth::Suspected => "suspected",
                NodeHealth::Gone => "gone",
            };
            write!(f, "{node} {health}, heard {} ms ago", view.silent_ms)?;
            match &view.how {
                Some(how) => writeln!(f, ", {how}")?,
                None => writeln!(f)?,
            }
        }
        match &self.outage {
            Some(outage) => writeln!(f, "outage: {outage}"),
            None => Ok(()),
        }
    }
}
