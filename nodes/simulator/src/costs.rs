//! What a simulated cluster is made of: its nodes, how long things take, what they cost. Everything
//! here can be set in a file.

use callboard_policy::gpu::{autoscaling::ForecastKnobs, costs::Costs, fleet::NodeShape};
use serde::{Deserialize, Serialize};

/// Sizes of sessions that are drawn for a trace, which has none: parameters of the models that
/// NotebookOS's own workloads train, four bytes each, and as much for the optimizer's momentum.
pub const STATES_MIB: [u64; 8] = [
    90,    // ResNet-18
    1_014, // VGG-11
    1_056, // VGG-16
    1_096, // VGG-19
    208,   // Inception v3
    840,   // BERT
    950,   // GPT-2
    290,   // DeepSpeech 2
];

/// The simulated cluster.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cluster {
    /// A node.
    pub node: NodeShape,
    /// Mean time until a node that was asked for is up.
    pub boot_ms: u64,
    /// Its deviation.
    pub boot_deviation_ms: u64,
    /// What sessions take along, drawn for each.
    pub states_mib: Vec<u64>,
    /// Times and rates.
    pub costs: Costs,
    /// Prices.
    pub prices: Prices,
    /// Ours.
    pub forecast: ForecastKnobs,
}

/// A price sheet, in any one currency.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Prices {
    /// What the provider pays for an hour of a node.
    pub node_hour: f64,
    /// What a user pays for an hour of a GPU that a cell holds.
    pub gpu_hour_used: f64,
}

impl Default for Prices {
    /// On-demand list price of a machine with eight V100 GPUs; a GPU in use costs a user half as much
    /// again as an eighth of it. Assumed.
    fn default() -> Self {
        Self { node_hour: 24.48, gpu_hour_used: 4.59 }
    }
}

impl Default for Cluster {
    fn default() -> Self {
        Self {
            node: NodeShape { gpus: 8, vram_mib: 16_384 },
            boot_ms: 15_000,
            boot_deviation_ms: 2_000,
            states_mib: STATES_MIB.to_vec(),
            costs: Costs::default(),
            prices: Prices::default(),
            forecast: ForecastKnobs::default(),
        }
    }
}

impl Cluster {
    /// Everything that is out of range, a sentence each.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let mut problems = self.forecast.problems();
        if !(1..=64).contains(&self.node.gpus) {
            problems.push(format!("node.gpus is {}: give 1 to 64", self.node.gpus));
        }
        if self.boot_ms > 86_400_000 {
            problems.push(format!("boot_ms is {}: give at most a day", self.boot_ms));
        }
        if self.states_mib.is_empty() {
            problems.push("states_mib is empty: name at least one size".to_owned());
        }
        if !(self.prices.node_hour >= 0.0 && self.prices.gpu_hour_used >= 0.0) {
            problems.push("a price is negative or no number: give 0 or more".to_owned());
        }
        problems
    }
}
