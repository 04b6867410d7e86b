//! A run as data: which fault strikes at which moment, in which order, with which seeds.
//!
//! Order and timings follow from the seed alone.

use std::{fmt, time::Duration};

use callboard_protocol::kernel::Level;
use rand::{
    Rng as _, SeedableRng as _,
    rngs::StdRng,
    seq::{IndexedRandom as _, SliceRandom as _},
};
use serde::{Deserialize, Serialize};

use crate::error::ChaosError;
pub use crate::kinds::{Fault, Moment};

/// How long a stopped process stays stopped and a partition lasts.
pub const HOLD: Duration = Duration::from_secs(10);
/// How long a disk stays full.
pub const FULL: Duration = Duration::from_secs(4);
/// Longest time from the first to the second of two faults, in milliseconds.
const SECOND_AFTER_MAX_MS: u64 = 500;
/// In the endurance profile, of so many trials the last [`DOUBLES`] have two faults at once.
const DOUBLES_OF: usize = 8;
/// See [`DOUBLES_OF`].
const DOUBLES: usize = 3;
/// Idle kills beyond the walk: with them, a 95th percentile is not just the slowest.
const IDLE_KILL_SAMPLES: u32 = 16;
/// Idle stops and partitions beyond the walk; each takes longer than [`HOLD`].
const IDLE_STOP_SAMPLES: u32 = 6;
/// Latest a fault strikes after its moment was seen.
const STRIKE_DELAY_MAX_MS: u64 = 20;

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
    /// What strikes shortly after on another node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub second: Option<Fault>,
}

/// Which faults and moments a plan walks, and how the cluster is set up for them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Profile {
    /// Processes that end or stop, links that are cut.
    #[default]
    Basic,
    /// Also disks that fill up, fail, rot or vanish, and two faults at once. Each node's data is on
    /// a small file system of its own, and snapshots are written often.
    Endurance,
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
    /// From the first fault to the second.
    pub second_delay: Duration,
    /// Where and how much a disk is damaged.
    pub damage_seed: u64,
}

impl Trial {
    /// What the seed decides.
    #[must_use]
    pub fn timings(&self) -> Timings {
        let mut rng = StdRng::seed_from_u64(self.seed);
        let strike_delay = Duration::from_millis(rng.random_range(0..=STRIKE_DELAY_MAX_MS));
        let cell = Duration::from_millis(rng.random_range(400..=1500));
        let (cells_before, cells_after) = (rng.random_range(1..=3), rng.random_range(1..=3));
        let received = rng.random_ratio(1, 5) && !self.moment.is_quiet();
        let level = if received { Level::Received } else { Level::Durable };
        let second_delay = Duration::from_millis(rng.random_range(0..=SECOND_AFTER_MAX_MS));
        let damage_seed = rng.random();
        Timings { strike_delay, cell, cells_before, cells_after, level, second_delay, damage_seed }
    }
}

impl Trial {
    fn new(rng: &mut StdRng, moment: Moment, fault: Fault, second: Option<Fault>) -> Self {
        Self { seed: rng.random::<u32>().into(), moment, fault, second }
    }

    /// Its faults, in the order they strike.
    pub fn faults(&self) -> impl Iterator<Item = Fault> {
        std::iter::once(self.fault).chain(self.second)
    }
}

fn pairs(moments: &[Moment], faults: &[Fault]) -> Vec<(Moment, Fault)> {
    let of = |moment: &Moment| {
        let moment = *moment;
        faults.iter().map(move |fault| (moment, *fault))
    };
    let makes_sense =
        |(moment, fault): &(Moment, Fault)| !(moment.is_asleep() && *fault == Fault::KillPython);
    moments.iter().flat_map(of).filter(makes_sense).collect()
}

/// Two faults that may strike together, and when.
fn double(rng: &mut StdRng) -> Option<(Moment, Fault, Option<Fault>)> {
    let moment = *Moment::ALL.choose(rng)?;
    let mut all = pairs_of_faults();
    all.retain(|pair| !moment.is_asleep() || pair.0 != Fault::KillPython);
    let (first, second) = *all.choose(rng)?;
    Some((moment, first, Some(second)))
}

fn pairs_of_faults() -> Vec<(Fault, Fault)> {
    let seconds = |first: Fault| Fault::ALL.into_iter().map(move |second| (first, second));
    let all = Fault::ALL.into_iter().flat_map(seconds);
    all.filter(|(first, second)| first.goes_with(*second)).collect()
}

impl fmt::Display for Trial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} × {}", self.moment, self.fault)?;
        if let Some(second) = self.second {
            write!(f, " + {second}")?;
        }
        write!(f, " (seed {})", self.seed)
    }
}

/// The trials of a run, in order. The number of a trial is its place, from 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// What order and timings were drawn from.
    pub seed: u64,
    /// How the cluster is set up.
    #[serde(default)]
    pub profile: Profile,
    /// The trials.
    pub trials: Vec<Trial>,
}

impl Plan {
    /// Walks every moment × fault in an order drawn from `seed`, again and again with other seeds
    /// until there are `count` trials; then idle kills and idle stops for their percentiles.
    #[must_use]
    pub fn full(seed: u64, count: u32) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut walk = pairs(&Moment::BASIC, &Fault::BASIC);
        let mut trials: Vec<Trial> = Vec::new();
        while trials.len() < count as usize {
            walk.shuffle(&mut rng);
            for &(moment, fault) in walk.iter().take(count as usize - trials.len()) {
                trials.push(Trial::new(&mut rng, moment, fault, None));
            }
        }
        let kills = (0..IDLE_KILL_SAMPLES).map(|_| Fault::KillNode);
        let stops = (0..IDLE_STOP_SAMPLES)
            .map(|n| if n % 2 == 0 { Fault::Stop10s } else { Fault::Partition });
        for fault in kills.chain(stops) {
            trials.push(Trial::new(&mut rng, Moment::Idle, fault, None));
        }
        Self { seed, profile: Profile::Basic, trials }
    }

    /// Of every eight trials, five walk every moment × fault in an order drawn from `seed`, and
    /// three have two faults at once, drawn from those that leave a majority of the disks.
    #[must_use]
    pub fn endurance(seed: u64, count: u32) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut walk = Vec::new();
        let mut trials = Vec::new();
        for number in 0..count as usize {
            if walk.is_empty() {
                walk = pairs(&Moment::ALL, &Fault::ALL);
                walk.shuffle(&mut rng);
            }
            let is_double = number % DOUBLES_OF >= DOUBLES_OF - DOUBLES;
            let drawn = if is_double { double(&mut rng) } else { None };
            let (moment, fault, second) = match drawn {
                Some(drawn) => drawn,
                None => match walk.pop() {
                    Some((moment, fault)) => (moment, fault, None),
                    None => break,
                },
            };
            trials.push(Trial::new(&mut rng, moment, fault, second));
        }
        Self { seed, profile: Profile::Endurance, trials }
    }

    /// The shipped short plan of a profile, its seeds drawn from `seed`.
    ///
    /// # Errors
    /// [`ChaosError::BadPlan`], which a test excludes.
    pub fn quick(seed: u64, profile: Profile) -> Result<Self, ChaosError> {
        let mut plan = Self::parse(match profile {
            Profile::Basic => include_str!("../plans/quick.toml"),
            Profile::Endurance => include_str!("../plans/endurance-quick.toml"),
        })?;
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
    fn the_endurance_profile_walks_every_moment_and_fault_and_pairs_that_leave_a_majority() {
        let plan = Plan::endurance(7, 200);
        assert_eq!(plan.trials.len(), 200);
        let singles: HashSet<(Moment, Fault)> = plan
            .trials
            .iter()
            .filter(|trial| trial.second.is_none())
            .map(|trial| (trial.moment, trial.fault))
            .collect();
        assert_eq!(singles.len(), Moment::ALL.len() * Fault::ALL.len() - 2);
        let doubles: Vec<_> =
            plan.trials.iter().filter_map(|it| Some((it.fault, it.second?))).collect();
        assert_eq!(doubles.len(), 75);
        for (first, second) in doubles {
            assert!(!(first.destroys() && second.destroys()), "{first} + {second}");
        }
        assert_eq!(Plan::endurance(7, 200), plan);
        let text = toml::to_string(&plan).unwrap();
        assert_eq!(Plan::parse(&text).unwrap(), plan);
    }

    #[test]
    fn the_shipped_quick_endurance_plan_has_every_fault_of_its_own_and_two_at_once() {
        let plan = Plan::quick(1, Profile::Endurance).unwrap();
        assert_eq!(plan.profile, Profile::Endurance);
        let struck: HashSet<Fault> = plan.trials.iter().flat_map(Trial::faults).collect();
        let own = Fault::ALL.into_iter().filter(|fault| !Fault::BASIC.contains(fault));
        let missing: Vec<Fault> = own.filter(|fault| !struck.contains(fault)).collect();
        assert!(missing.is_empty(), "{missing:?}");
        assert!(plan.trials.iter().any(|trial| trial.second.is_some()));
        assert!(plan.trials.iter().any(|trial| trial.moment == Moment::DuringSnapshot));
    }

    #[test]
    fn the_shipped_quick_plan_has_every_fault_and_idle_samples_of_both_kinds() {
        let plan = Plan::quick(1, Profile::Basic).unwrap();
        let faults: HashSet<Fault> = plan.trials.iter().map(|trial| trial.fault).collect();
        assert_eq!(faults.len(), Fault::BASIC.len());
        let idle = |kill: bool| {
            plan.trials.iter().any(|t| t.moment == Moment::Idle && t.fault.is_kill() == kill)
        };
        assert!(idle(true) && idle(false));
    }
}
