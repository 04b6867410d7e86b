//! What goes wrong on an in-memory bus, as data.

use serde::{Deserialize, Serialize};

/// Faults of an in-memory bus. The default has none.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FaultPlan {
    /// Share of deliveries that are lost, 0 to 1.
    pub drop_probability: f64,
    /// Share of deliveries that happen twice, 0 to 1.
    pub duplicate_probability: f64,
    /// Shortest delay of a delivery.
    pub delay_min_ms: u64,
    /// Longest delay of a delivery.
    pub delay_max_ms: u64,
    /// Whether a message with a shorter delay may overtake an earlier one of the same sender.
    pub reorder: bool,
    /// Largest payload in bytes.
    pub payload_max: usize,
    /// Pairs of endpoints between which nothing passes.
    pub partitions: Vec<(String, String)>,
    /// Whether the broker is down.
    pub broker_outage: bool,
}

impl Default for FaultPlan {
    fn default() -> Self {
        Self {
            drop_probability: 0.0,
            duplicate_probability: 0.0,
            delay_min_ms: 0,
            delay_max_ms: 0,
            reorder: false,
            payload_max: 1024 * 1024,
            partitions: Vec::new(),
            broker_outage: false,
        }
    }
}

/// Everything that is wrong with a plan, in one sentence per problem.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the fault plan is not valid: {}", .0.join("; "))]
pub struct PlanError(pub Vec<String>);

impl FaultPlan {
    /// Checks every value.
    ///
    /// # Errors
    /// [`PlanError`] with all problems at once.
    pub fn validate(&self) -> Result<(), PlanError> {
        let mut problems = Vec::new();
        for (name, value) in [
            ("drop_probability", self.drop_probability),
            ("duplicate_probability", self.duplicate_probability),
        ] {
            if !(0.0..=1.0).contains(&value) {
                problems.push(format!("{name} is {value}, but must be between 0 and 1"));
            }
        }
        if self.delay_min_ms > self.delay_max_ms {
            problems.push(format!(
                "delay_min_ms is {}, but must not be above delay_max_ms, {}",
                self.delay_min_ms, self.delay_max_ms
            ));
        }
        if self.payload_max == 0 {
            problems.push("payload_max is 0, but must be at least 1".to_owned());
        }
        if problems.is_empty() { Ok(()) } else { Err(PlanError(problems)) }
    }
}
