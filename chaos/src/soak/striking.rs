//! The faults of a soak: one after the other, each on the kernel of a user drawn from the seed.

use std::time::Duration;

use callboard_protocol::KernelId;
use rand::{
    Rng as _, SeedableRng as _,
    rngs::StdRng,
    seq::{IndexedRandom as _, SliceRandom as _},
};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::Shared;
use crate::{
    error::ChaosError,
    fault::Target,
    plan::Fault,
    trial::{WHOLE_WITHIN, strangers},
};

/// For so long before the end nothing strikes: the last kernels are to be judged. At most a sixth of
/// the run.
const QUIET_END_MAX: Duration = Duration::from_secs(20);
/// For so long after a disk was damaged none is damaged again: the control plane hears of each member
/// that lost its log, and replaces them one after the other.
const BETWEEN_DAMAGES: Duration = Duration::from_secs(60);
/// How long members that are on their way may then keep the next disk from being damaged.
const SETTLED_WITHIN: Duration = Duration::from_secs(10);
/// Pause between looks.
const POLL: Duration = Duration::from_millis(500);

/// A fault that struck.
#[derive(Debug, Clone)]
pub(super) struct Blow {
    /// Seconds since the run began.
    pub at_s: f64,
    /// What was done to what.
    pub what: String,
}

/// Strikes every so often until shortly before the end.
pub(super) async fn strike_on(shared: &Shared<'_>, every: Duration) -> Vec<Blow> {
    let mut rng = StdRng::seed_from_u64(shared.seed);
    let mut blows = Vec::new();
    let mut damaged = None;
    let mut next = Instant::now() + every;
    let quiet_end = QUIET_END_MAX.min((shared.until - shared.begun) / 6);
    while next + quiet_end < shared.until {
        sleep_until(next).await;
        next += every;
        let at_s = shared.begun.elapsed().as_secs_f64();
        match strike(shared, &mut rng, &mut damaged).await {
            Ok(what) => {
                (shared.say)(&format!("[{at_s:6.1} s] {what}"));
                blows.push(Blow { at_s, what });
            }
            Err(error) => (shared.say)(&format!("[{at_s:6.1} s] nothing struck: {error}")),
        }
        // A fault that lasted longer than the pause does not make the next ones come thicker.
        next = next.max(Instant::now());
    }
    blows
}

async fn strike(
    shared: &Shared<'_>,
    rng: &mut StdRng,
    damaged: &mut Option<Instant>,
) -> Result<String, ChaosError> {
    let nobody =
        || ChaosError::TooSlow { what: "a kernel to strike", within_s: 0, detail: String::new() };
    let mut kernels = shared.kernels();
    kernels.shuffle(rng);
    let mut fault = *shared.faults.choose(rng).ok_or_else(nobody)?;
    let is_recent = damaged.is_some_and(|at| at.elapsed() < BETWEEN_DAMAGES);
    if fault.destroys() && (is_recent || !settled(shared, &kernels).await) {
        // A second disk must not go before the first one's replicas are elsewhere.
        fault = Fault::KillNode;
    }
    // One may have no executor or no Python just now: then the next one.
    let mut target = Err(nobody());
    for of in &kernels {
        target = aim(shared, fault, *of).await;
        if target.is_ok() {
            break;
        }
    }
    let target = target?;
    if fault.destroys() {
        *damaged = Some(Instant::now());
    }
    let struck = target.seeded(rng.random()).strike(shared.cluster).await?;
    let what = format!("{fault}: {}", struck.what);
    struck.heal(shared.cluster).await?;
    shared.cluster.all_up(WHOLE_WITHIN).await?;
    Ok(what)
}

async fn aim(
    shared: &Shared<'_>,
    fault: Fault,
    (kernel, python): (KernelId, u32),
) -> Result<Target, ChaosError> {
    let status = shared.cluster.client().kernel(kernel).show().await;
    let status = status.map_err(ChaosError::refused("look at a kernel"))?;
    let spared = Some(&shared.spared);
    Target::find(shared.cluster, fault, (kernel, &status), python, spared).await
}

/// Whether every kernel has all its members where they belong, soon.
async fn settled(shared: &Shared<'_>, kernels: &[(KernelId, u32)]) -> bool {
    let all = async {
        for (kernel, _) in kernels {
            // A kernel that was given up meanwhile has no members.
            while strangers(shared.cluster, *kernel).await.is_ok_and(|found| !found.is_empty()) {
                sleep(POLL).await;
            }
        }
    };
    timeout(SETTLED_WITHIN, all).await.is_ok()
}
