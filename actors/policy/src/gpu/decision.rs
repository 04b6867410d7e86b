//! A decision and its reasons.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

use super::fleet::Slot;

/// How many runners-up a decision names.
pub const RUNNERS_UP_MAX: usize = 3;

/// Why a node was not chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// It has too few free GPUs.
    TooFewFree,
    /// Its GPUs have too little memory, or it takes nothing new.
    Closed,
    /// Its subscription would reach the limit.
    Oversubscribed,
    /// It has a member of the kernel already.
    HasMember,
    /// It has no member of the kernel.
    NoMember,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TooFewFree => "with too few free GPUs",
            Self::Closed => "draining, kept for another cell or with too little memory per GPU",
            Self::Oversubscribed => "at the limit of subscription",
            Self::HasMember => "with a member of the kernel already",
            Self::NoMember => "without a member of the kernel",
        })
    }
}

/// A node that could be chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ranked {
    /// Which.
    pub slot: Slot,
    /// What choosing it costs, in the policy's own unit; the lowest wins.
    pub cost: u64,
}

/// What was chosen, from what, and what was not considered.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Reasons {
    /// The fleet it was made on.
    pub version: u64,
    /// Cost of the winner.
    pub cost: u64,
    /// The next best, best first.
    pub runners_up: Vec<Ranked>,
    /// How many nodes were refused for what.
    pub refused: BTreeMap<Refusal, u32>,
}

impl Reasons {
    /// Made on a fleet of this version.
    #[must_use]
    pub fn on(version: u64) -> Self {
        Self { version, ..Self::default() }
    }

    /// Counts nodes as refused.
    pub fn refuse(&mut self, why: Refusal, nodes: usize) {
        if nodes > 0 {
            *self.refused.entry(why).or_default() += u32::try_from(nodes).unwrap_or(u32::MAX);
        }
    }

    /// Takes the cheapest of `candidates` and notes the next.
    pub fn choose(&mut self, mut candidates: Vec<Ranked>) -> Option<Slot> {
        candidates.sort_by_key(|it| (it.cost, it.slot));
        let winner = *candidates.first()?;
        self.cost = winner.cost;
        self.runners_up = candidates.into_iter().skip(1).take(RUNNERS_UP_MAX).collect();
        Some(winner.slot)
    }
}

impl fmt::Display for Reasons {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cost {} on view {}", self.cost, self.version)?;
        if !self.runners_up.is_empty() {
            let list = self.runners_up.iter().map(|it| format!("{} ({})", it.slot, it.cost));
            write!(f, "; next: {}", list.collect::<Vec<_>>().join(", "))?;
        }
        for (why, nodes) in &self.refused {
            write!(f, "; {nodes} {why}")?;
        }
        Ok(())
    }
}
