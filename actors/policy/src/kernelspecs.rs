//! Kernelspecs of other languages: which nodes have which, and what the others are refused with.

use std::collections::{BTreeMap, BTreeSet};

use callboard_protocol::{
    NodeId,
    control::{KernelspecStatus, NodeHealth},
};

use crate::placement::{ClusterView, NodeLoad};

/// Why no kernel of a kernelspec can be placed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoKernelspec {
    /// No node has it.
    #[error(
        "no node has a kernelspec '{name}': use {}, or install it for Jupyter on the nodes",
        known.join(" or ")
    )]
    Unknown {
        /// The name.
        name: String,
        /// Those there are.
        known: Vec<String>,
    },
    /// Some node has not said yet what it has.
    #[error(
        "no node is known to have a kernelspec '{name}', and {node} has still to say what it has: \
         try again in a moment"
    )]
    Unsaid {
        /// The name.
        name: String,
        /// The node.
        node: NodeId,
    },
}

impl ClusterView {
    /// The kernelspecs that nodes which are up have.
    #[must_use]
    pub fn kernelspecs(&self) -> BTreeMap<String, KernelspecStatus> {
        let mut found: BTreeMap<String, KernelspecStatus> = BTreeMap::new();
        for load in self.nodes.iter().filter(|load| load.health == NodeHealth::Up) {
            let has = self.environment(load).into_iter().flat_map(|it| &it.kernelspecs);
            for (name, spec) in has {
                let status = found
                    .entry(name.clone())
                    .or_insert_with(|| KernelspecStatus { spec: spec.clone(), nodes: Vec::new() });
                status.nodes.push(load.node.clone());
            }
        }
        found
    }

    /// Whether a kernelspec is one that a node has.
    ///
    /// # Errors
    /// If none has it, or none is known to.
    pub fn check_kernelspec(&self, name: &str) -> Result<(), NoKernelspec> {
        let found = self.kernelspecs();
        if found.contains_key(name) {
            return Ok(());
        }
        let name = name.to_owned();
        // A leader that has just begun has not heard of all of them.
        let is_here = |load: &&NodeLoad| load.health != NodeHealth::Gone;
        let silent = |load: &&NodeLoad| self.environment(load).is_none();
        match self.nodes.iter().filter(is_here).find(silent) {
            Some(load) => Err(NoKernelspec::Unsaid { name, node: load.node.clone() }),
            None => {
                let python = "python3".to_owned();
                let known: BTreeSet<String> = found.into_keys().chain([python]).collect();
                Err(NoKernelspec::Unknown { name, known: known.into_iter().collect() })
            }
        }
    }

    /// Why a node cannot run kernels of a kernelspec, as a clause; `None` if it can.
    pub(crate) fn lacks_kernelspec(&self, load: &NodeLoad, name: &str) -> Option<String> {
        match self.environment(load) {
            Some(environment) if environment.kernelspecs.contains_key(name) => None,
            Some(_) => Some(format!("it has no kernelspec '{name}'")),
            None => Some(format!("it has not said whether it has a kernelspec '{name}'")),
        }
    }
}
