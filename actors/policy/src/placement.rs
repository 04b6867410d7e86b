//! Where new members of a kernel go: the least loaded nodes, never two on one if it can be helped.

use std::{collections::BTreeMap, fmt};

use callboard_protocol::{DiskId, KernelId, NodeId, control::NodeHealth, environment::Environment};
use serde::{Deserialize, Serialize};

use crate::{
    chance::Chance,
    environment::{EnvironmentMatch, differences},
    failure::NodesView,
};

/// How much a running cell weighs against an idle member. An idle member costs heartbeats and
/// memory; a cell takes a core.
pub const RUNNING_CELL_WEIGHT: u64 = 4;

/// The nodes and their loads at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterView {
    /// Of the desired state it was made from; a decision names it.
    pub version: u64,
    /// In order of id.
    pub nodes: Vec<NodeLoad>,
    /// What is known of their Python environments.
    #[serde(default)]
    pub environments: Environments,
}

/// Python environments, and how alike those of one kernel's nodes have to be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Environments {
    /// How alike.
    pub alike: EnvironmentMatch,
    /// By digest. A node whose environment is not in here is given the benefit of the doubt.
    pub known: BTreeMap<String, Environment>,
}

/// What one node carries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeLoad {
    /// Which.
    pub node: NodeId,
    /// Its disk.
    pub disk: DiskId,
    /// How it is.
    pub health: NodeHealth,
    /// Members placed on it.
    pub replicas: u32,
    /// Cells it executes.
    pub running_cells: u32,
    /// What its Python environment lacks; `None` if it can run kernels.
    pub python_problem: Option<String>,
    /// How full its disk is, in percent, if that is above its mark.
    #[serde(default)]
    pub disk_high_percent: Option<u8>,
    /// Digest of its Python environment.
    #[serde(default)]
    pub environment: Option<String>,
}

impl ClusterView {
    /// Joins what is heard of the nodes with how many members the desired state puts on each.
    /// Nodes that were never heard are left out.
    #[must_use]
    pub fn from_nodes(version: u64, nodes: &NodesView, placed: &BTreeMap<NodeId, u32>) -> Self {
        let heard = nodes.nodes.iter().filter_map(|(node, view)| {
            let beat = view.last_beat.as_ref()?;
            Some(NodeLoad {
                node: node.clone(),
                disk: view.disk,
                health: view.health,
                replicas: placed.get(node).copied().unwrap_or(0),
                running_cells: beat.running_cells,
                python_problem: beat.python_problem.clone(),
                disk_high_percent: beat
                    .disk_level
                    .as_ref()
                    .filter(|disk| disk.is_high)
                    .map(|disk| disk.used_percent),
                environment: beat.environment.clone(),
            })
        });
        Self { version, nodes: heard.collect(), environments: Environments::default() }
    }

    pub(crate) fn environment(&self, load: &NodeLoad) -> Option<&Environment> {
        self.environments.known.get(load.environment.as_ref()?)
    }

    /// What of `needs` a node's environment does not meet, as a clause.
    pub(crate) fn misfit(&self, node: &NodeId, needs: &Environment) -> Option<String> {
        let load = self.nodes.iter().find(|load| load.node == *node)?;
        differences(needs, self.environment(load)?, self.environments.alike)
    }

    /// What a kernel that names no needs has to find on each of its nodes: what its present members
    /// have, or that of which most nodes have the like.
    fn common_needs(&self, request: &PlacementRequest) -> Option<Environment> {
        let is_present = |load: &&NodeLoad| request.present.contains(&load.node);
        if let Some(first) =
            self.nodes.iter().filter(is_present).find_map(|it| self.environment(it))
        {
            return Some(bare(first, self.environments.alike));
        }
        let usable: Vec<&NodeLoad> =
            self.nodes.iter().filter(|it| matches!(judge(it, None), Verdict::Load(_))).collect();
        let options = usable.iter().filter_map(|load| {
            let needs = bare(self.environment(load)?, self.environments.alike);
            let alike = usable.iter().filter(|it| self.misfit(&it.node, &needs).is_none()).count();
            Some((alike.min(usize::from(request.count)), needs))
        });
        // The first of the best, so that the same view gives the same choice.
        options.reduce(|best, next| if next.0 > best.0 { next } else { best }).map(|it| it.1)
    }

    /// Counts one more member on a node, for the next decision on the same view.
    pub(crate) fn add_member(&mut self, node: &NodeId) {
        if let Some(load) = self.nodes.iter_mut().find(|load| load.node == *node) {
            load.replicas = load.replicas.saturating_add(1);
        }
    }
}

/// Asks for places.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacementRequest {
    /// For which kernel.
    pub kernel: KernelId,
    /// How many new members.
    pub count: u8,
    /// The node of each member it has already; a node may be named twice.
    pub present: Vec<NodeId>,
    /// What its session needs of a node's Python environment, if that is known.
    pub needs: Option<Environment>,
    /// The kernelspec of another language that its process is started by, if it is not Python.
    pub kernelspec: Option<String>,
}

/// A place for one new member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chosen {
    /// On which node.
    pub node: NodeId,
    /// On which of its disks.
    pub disk: DiskId,
}

/// What was thought of one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeVerdict {
    /// Which.
    pub node: NodeId,
    /// Its verdict.
    pub verdict: Verdict,
}

/// Whether a node can take a member, and how gladly.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It can; the lowest load wins.
    Load(u64),
    /// It cannot, for this reason.
    Refused(String),
}

/// Where new members go, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// For which kernel.
    pub kernel: KernelId,
    /// The view it was made on.
    pub version: u64,
    /// How many places were asked for.
    pub asked: u8,
    /// The places, best first. Fewer than asked for only if no node can take a member.
    pub chosen: Vec<Chosen>,
    /// Whether some node now holds two members of the kernel.
    pub shared: bool,
    /// Every node, in order of id.
    pub verdicts: Vec<NodeVerdict>,
}

/// Chooses places. The same arguments give the same places; `seed` only breaks ties.
#[must_use]
pub fn place(view: &ClusterView, request: &PlacementRequest, seed: u64) -> Placement {
    let mut chance = Chance::new(seed);
    let mut candidates: Vec<Candidate<'_>> = Vec::new();
    let mut verdicts = Vec::new();
    let needs = match &request.kernelspec {
        None => request.needs.clone().or_else(|| view.common_needs(request)),
        Some(_) => None,
    };
    for load in &view.nodes {
        let lot = chance.next_u64();
        let misfit = match &request.kernelspec {
            None => needs
                .as_ref()
                .and_then(|needs| view.misfit(&load.node, needs))
                .map(|misfit| format!("its Python environment {misfit}")),
            Some(name) => view.lacks_kernelspec(load, name),
        };
        let verdict = judge(load, misfit);
        if let Verdict::Load(cost) = verdict {
            let members = request.present.iter().filter(|node| **node == load.node).count();
            candidates.push(Candidate { load, members, cost, lot });
        }
        verdicts.push(NodeVerdict { node: load.node.clone(), verdict });
    }

    let mut chosen = Vec::new();
    let mut shared = false;
    for _ in 0..request.count {
        let Some(best) = candidates.iter_mut().min_by_key(|it| (it.members, it.cost, it.lot))
        else {
            break;
        };
        shared |= best.members > 0;
        best.members += 1;
        best.cost += 1;
        chosen.push(Chosen { node: best.load.node.clone(), disk: best.load.disk });
    }
    Placement {
        kernel: request.kernel,
        version: view.version,
        asked: request.count,
        chosen,
        shared,
        verdicts,
    }
}

struct Candidate<'a> {
    load: &'a NodeLoad,
    members: usize,
    cost: u64,
    lot: u64,
}

/// An environment reduced to what any session in it needs.
fn bare(environment: &Environment, alike: EnvironmentMatch) -> Environment {
    match alike {
        EnvironmentMatch::Exact => environment.clone(),
        EnvironmentMatch::Imported | EnvironmentMatch::Off => {
            Environment { distributions: BTreeMap::new(), ..environment.clone() }
        }
    }
}

fn judge(load: &NodeLoad, misfit: Option<String>) -> Verdict {
    match (load.health, &load.python_problem, misfit) {
        (NodeHealth::Suspected, ..) => Verdict::Refused("it is suspected to be down".to_owned()),
        (NodeHealth::Gone, ..) => Verdict::Refused("it is gone".to_owned()),
        (NodeHealth::Up, Some(problem), _) => {
            Verdict::Refused(format!("it cannot run Python kernels: {problem}"))
        }
        (NodeHealth::Up, None, _) if load.disk_high_percent.is_some() => {
            let percent = load.disk_high_percent.unwrap_or_default();
            Verdict::Refused(format!("its disk is {percent} % full: free space on it"))
        }
        (NodeHealth::Up, None, Some(misfit)) => Verdict::Refused(misfit),
        (NodeHealth::Up, None, None) => Verdict::Load(
            u64::from(load.replicas) + RUNNING_CELL_WEIGHT * u64::from(load.running_cells),
        ),
    }
}

impl Placement {
    /// Each node that cannot take a member, with the reason.
    #[must_use]
    pub fn refusals(&self) -> Vec<String> {
        let refusals = self.verdicts.iter().filter_map(|it| match &it.verdict {
            Verdict::Refused(why) => Some(format!("{}: {why}", it.node)),
            Verdict::Load(_) => None,
        });
        refusals.collect()
    }

    /// A sentence with a next step if there are fewer places than asked for.
    #[must_use]
    pub fn shortfall(&self) -> Option<String> {
        if self.chosen.len() >= usize::from(self.asked) {
            return None;
        }
        let refusals = self.refusals();
        Some(if refusals.is_empty() {
            "no node is known that could hold a kernel: start one with `callboard node`".to_owned()
        } else {
            format!(
                "no node can take a kernel ({}): repair one of them or add a node",
                refusals.join("; ")
            )
        })
    }
}

impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} new members of {} on view {}", self.asked, self.kernel, self.version)?;
        for (rank, chosen) in self.chosen.iter().enumerate() {
            writeln!(f, "  {}. {}", rank + 1, chosen.node)?;
        }
        if self.shared {
            writeln!(
                f,
                "  some node holds two members, as there are too few nodes: \
                 add nodes to survive the loss of one"
            )?;
        }
        if let Some(shortfall) = self.shortfall() {
            writeln!(f, "  {shortfall}")?;
        }
        for it in &self.verdicts {
            match &it.verdict {
                Verdict::Load(load) => writeln!(f, "  {}: load {load}", it.node)?,
                Verdict::Refused(why) => writeln!(f, "  {}: refused, {why}", it.node)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
