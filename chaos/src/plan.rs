//! A run as data: which fault strikes at which moment, in which order, with which seeds.
//!
//! Order and timings follow from the seed alone.

use std::{fmt, time::Duration};

use callboard_protocol::kernel::Level;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng, seq::SliceRandom as _};
use serde::{Deserialize, Serialize};

use crate::error::ChaosError;

/// How long a stopped process stays stopped and a partition lasts.
pub const HOLD: Duration = Duration::from_secs(10);
/// Idle kills beyond the walk: with them, a 95th percentile is not just the slowest.
const IDLE_KILL_SAMPLES: u32 = 16;
/// Idle stops and partitions beyond the walk; each takes longer than [`HOLD`].
const IDLE_STOP_SAMPLES: u32 = 6;
/// Latest a fault strikes after its moment was seen.
const STRIKE_DELAY_MAX_MS: u64 = 20;

/// When a fault strikes, relative to the cell under test. Everything is seen from outside: no
/// process has hooks for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Moment {
    /// The client got the cell's `Accepted`.
    AfterAccept,
    /// The client got the cell's first output; the cell has written its token and sleeps.
    WhileRunning,
    /// A chunk of what the cell made appeared on the disk of a node that is not the executor's.
    AfterChunks,
    /// The client got the cell's `status: idle`: its code is over; capture, `Complete` and its
    /// application are under way, and the reply of a durable cell is still held back.
    AfterCompleteBeforeReply,
    /// The control plane just put a new member into the kernel's entry, because a standby's node
    /// was silent for long enough.
    DuringMembershipChange,
    /// No cell runs. One is sent at the moment the fault strikes.
    Idle,
}

impl Moment {
    /// Every one.
    pub const ALL: [Self; 6] = [
        Self::AfterAccept,
        Self::WhileRunning,
        Self::AfterChunks,
        Self::AfterCompleteBeforeReply,
        Self::DuringMembershipChange,
        Self::Idle,
    ];
}

/// What is done to the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// SIGKILL of the executor's Python process.
    KillPython,
    /// SIGKILL of the executor's node.
    KillNode,
    /// SIGKILL of the node of the Raft leader of the kernel's group.
    KillLeaderNode,
    /// SIGKILL of the broker.
    KillBroker,
    /// SIGSTOP of the executor's node process, SIGCONT after [`HOLD`]. Its Python runs on.
    #[serde(rename = "stop_10s")]
    Stop10s,
    /// The network namespace of the executor's node is cut off for [`HOLD`].
    Partition,
}

impl Fault {
    /// Every one.
    pub const ALL: [Self; 6] = [
        Self::KillPython,
        Self::KillNode,
        Self::KillLeaderNode,
        Self::KillBroker,
        Self::Stop10s,
        Self::Partition,
    ];

    /// Whether it ends a process rather than holding one up.
    #[must_use]
    pub fn is_kill(self) -> bool {
        !matches!(self, Self::Stop10s | Self::Partition)
    }
}

fn name<T: Serialize>(value: T, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let value = serde_json::to_value(value).map_err(|_| fmt::Error)?;
    f.write_str(value.as_str().ok_or(fmt::Error)?)
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        name(self, f)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        name(self, f)
    }
}

/// One fault at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trial {
    /// Of its timings.
    pub seed: u64,
    /// When.
    pub moment: Moment,
    /// What.
    pub fault: Fault,
}

/// What a trial's seed decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timings {
    /// From the moment to the fault.
    pub strike_delay: Duration,
    /// How long the cell under test sleeps.
    pub cell: Duration,
    /// Cells before it.
    pub cells_before: u32,
    /// Cells after it.
    pub cells_after: u32,
    /// What the cell under test asks for.
    pub level: Level,
}

impl Trial {
    /// What the seed decides.
    #[must_use]
    pub fn timings(&self) -> Timings {
        let mut rng = StdRng::seed_from_u64(self.seed);
        let strike_delay = Duration::from_millis(rng.random_range(0..=STRIKE_DELAY_MAX_MS));
        let cell = Duration::from_millis(rng.random_range(400..=1500));
        let (cells_before, cells_after) = (rng.random_range(1..=3), rng.random_range(1..=3));
        let received = rng.random_ratio(1, 5) && self.moment != Moment::Idle;
        let level = if received { Level::Received } else { Level::Durable };
        Timings { strike_delay, cell, cells_before, cells_after, level }
    }
}

impl fmt::Display for Trial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} × {} (seed {})", self.moment, self.fault, self.seed)
    }
}

/// The trials of a run, in order. The number of a trial is its place, from 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// What order and timings were drawn from.
    pub seed: u64,
    /// The trials.
    pub trials: Vec<Trial>,
}

impl Plan {
    /// Walks every moment × fault in an order drawn from `seed`, again and again with other seeds
    /// until there are `count` trials; then idle kills and idle stops for their percentiles.
    #[must_use]
    pub fn full(seed: u64, count: u32) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut walk: Vec<(Moment, Fault)> = Moment::ALL
            .into_iter()
            .flat_map(|moment| Fault::ALL.into_iter().map(move |fault| (moment, fault)))
            .collect();
        let mut trials: Vec<Trial> = Vec::new();
        while trials.len() < count as usize {
            walk.shuffle(&mut rng);
            for &(moment, fault) in walk.iter().take(count as usize - trials.len()) {
                trials.push(Trial { seed: rng.random::<u32>().into(), moment, fault });
            }
        }
        let kills = (0..IDLE_KILL_SAMPLES).map(|_| Fault::KillNode);
        let stops = (0..IDLE_STOP_SAMPLES)
            .map(|n| if n % 2 == 0 { Fault::Stop10s } else { Fault::Partition });
        for fault in kills.chain(stops) {
            trials.push(Trial { seed: rng.random::<u32>().into(), moment: Moment::Idle, fault });
        }
        Self { seed, trials }
    }

    /// The shipped short plan, its seeds drawn from `seed`.
    ///
    /// # Errors
    /// [`ChaosError::BadPlan`], which a test excludes.
    pub fn quick(seed: u64) -> Result<Self, ChaosError> {
        let mut plan = Self::parse(include_str!("../plans/quick.toml"))?;
        let mut rng = StdRng::seed_from_u64(seed);
        plan.seed = seed;
        for trial in &mut plan.trials {
            trial.seed = rng.random::<u32>().into();
        }
        Ok(plan)
    }

    /// Reads a plan.
    ///
    /// # Errors
    /// [`ChaosError::BadPlan`] with what is wrong where.
    pub fn parse(text: &str) -> Result<Self, ChaosError> {
        toml::from_str(text).map_err(|error| ChaosError::BadPlan(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn the_first_36_trials_walk_every_moment_and_fault_once() {
        let plan = Plan::full(7, 60);
        let pairs = |trials: &[Trial]| -> HashSet<(Moment, Fault)> {
            trials.iter().map(|trial| (trial.moment, trial.fault)).collect()
        };
        assert_eq!(pairs(&plan.trials[..36]).len(), 36);
        assert_eq!(pairs(&plan.trials[36..60]).len(), 24);
        let samples = &plan.trials[60..];
        assert!(samples.iter().all(|trial| trial.moment == Moment::Idle));
        assert_eq!(samples.len(), (IDLE_KILL_SAMPLES + IDLE_STOP_SAMPLES) as usize);
    }

    #[test]
    fn a_plan_follows_from_its_seed() {
        assert_eq!(Plan::full(3, 60), Plan::full(3, 60));
        assert_ne!(Plan::full(3, 60), Plan::full(4, 60));
        let trial = Plan::full(3, 60).trials[5];
        assert_eq!(trial.timings(), trial.timings());
    }

    #[test]
    fn a_plan_survives_its_file_and_unknown_keys_are_refused() {
        let plan = Plan::full(1, 4);
        let text = toml::to_string(&plan).unwrap();
        assert_eq!(Plan::parse(&text).unwrap(), plan);
        let error = Plan::parse(&format!("sead = 1\n{text}")).unwrap_err().to_string();
        assert!(error.contains("sead"), "{error}");
    }

    #[test]
    fn the_shipped_quick_plan_has_every_fault_and_idle_samples_of_both_kinds() {
        let plan = Plan::quick(1).unwrap();
        let faults: HashSet<Fault> = plan.trials.iter().map(|trial| trial.fault).collect();
        assert_eq!(faults.len(), Fault::ALL.len());
        let idle = |kill: bool| {
            plan.trials.iter().any(|t| t.moment == Moment::Idle && t.fault.is_kill() == kill)
        };
        assert!(idle(true) && idle(false));
    }
}
