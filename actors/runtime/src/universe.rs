//! The test universe: a runtime on a paused clock that knows every actor started in it, and fails
//! the test that leaves one running or has one panic.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    future::Future,
    panic::PanicHookInfo,
    sync::{Arc, Mutex, MutexGuard, Once, PoisonError},
    time::Duration,
};

use ractor::{ActorCell, ActorStatus};

#[cfg(test)]
mod tests;

/// How long actors may take to end once the test is over, on the paused clock: longer than any
/// stop deadline, and no real time.
const END_WITHIN: Duration = Duration::from_secs(120);

thread_local! {
    /// The universe this thread runs. Its runtime has one thread, so all its actors are here.
    static CURRENT: RefCell<Option<Arc<Mutex<Seen>>>> = const { RefCell::new(None) };
}

#[derive(Default)]
struct Seen {
    actors: BTreeMap<String, ActorCell>,
    panics: Vec<String>,
    panics_expected: Vec<String>,
    random: u64,
}

/// Notes an actor, if a universe is running on this thread.
pub(crate) fn track(cell: ActorCell) {
    if let Some(seen) = current() {
        lock(&seen).actors.insert(cell.get_id().to_string(), cell);
    }
}

fn current() -> Option<Arc<Mutex<Seen>>> {
    CURRENT.try_with(|current| current.borrow().clone()).ok().flatten()
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A test's world.
#[derive(Clone)]
pub struct Universe {
    seed: u64,
    seen: Arc<Mutex<Seen>>,
}

impl Universe {
    /// Runs a test on one thread with a paused clock, which jumps to the next timer when nothing
    /// else is left to do.
    ///
    /// # Panics
    /// If the test does, if an actor panicked without [`Universe::expect_panic`], if an expected
    /// panic did not happen, or if an actor is left running. Prints the seed.
    pub fn run<F: Future<Output = ()>>(seed: u64, test: impl FnOnce(Self) -> F) {
        watch_panics();
        let seen = Arc::new(Mutex::new(Seen { random: seed, ..Seen::default() }));
        let universe = Self { seed, seen: Arc::clone(&seen) };
        let _on_this_thread = Here::enter(Arc::clone(&seen));
        let _seed_on_failure = SeedOnFailure(seed);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap_or_else(|failure| fail(&format!("no runtime: {failure}")));
        runtime.block_on(async {
            test(universe.clone()).await;
            universe.check().await;
        });
    }

    /// The seed the test was started with.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The next number of a stream that depends on the seed alone (an LCG of Knuth's, upper half
    /// mixed in).
    #[must_use]
    pub fn random(&self) -> u64 {
        let mut seen = lock(&self.seen);
        seen.random = seen
            .random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        seen.random ^ (seen.random >> 32)
    }

    /// Lets time pass and whatever is due in it happen.
    pub async fn advance(&self, by: Duration) {
        tokio::time::sleep(by).await;
    }

    /// Says that a panic with this text in its message belongs to the test.
    pub fn expect_panic(&self, text: &str) {
        lock(&self.seen).panics_expected.push(text.to_owned());
    }

    /// Also watches an actor that was not started through this crate.
    pub fn track(&self, cell: ActorCell) {
        lock(&self.seen).actors.insert(cell.get_id().to_string(), cell);
    }

    async fn check(&self) {
        let actors: Vec<ActorCell> = lock(&self.seen).actors.values().cloned().collect();
        // Those that were told to stop, and those a stopping one stops, get the time to.
        let ending = |cell: &&ActorCell| cell.get_status() >= ActorStatus::Draining;
        for cell in actors.iter().filter(ending) {
            let _ = cell.wait(Some(END_WITHIN)).await;
        }
        tokio::task::yield_now().await;
        let running = |cell: &&ActorCell| cell.get_status() != ActorStatus::Stopped;
        let leaked: Vec<String> = actors
            .iter()
            .filter(running)
            .map(|cell| format!("{} {}", cell.get_id(), cell.get_name().unwrap_or_default()))
            .collect();
        let seen = lock(&self.seen);
        let expected = |panic: &&String| !seen.panics_expected.iter().any(|it| panic.contains(it));
        let unexpected: Vec<&String> = seen.panics.iter().filter(expected).collect();
        let missing: Vec<&String> = seen
            .panics_expected
            .iter()
            .filter(|text| !seen.panics.iter().any(|panic| panic.contains(*text)))
            .collect();
        let mut faults = Vec::new();
        if !unexpected.is_empty() {
            faults.push(format!("panicked: {unexpected:?}"));
        }
        if !missing.is_empty() {
            faults.push(format!("expected to panic, and did not: {missing:?}"));
        }
        if !leaked.is_empty() {
            faults.push(format!("{} actors left running: {leaked:?}", leaked.len()));
        }
        drop(seen);
        if !faults.is_empty() {
            fail(&faults.join("; "));
        }
    }
}

#[expect(clippy::panic, reason = "failing the test is what the universe is for")]
fn fail(why: &str) -> ! {
    panic!("the universe: {why}")
}

/// Makes the universe known to its thread while it runs.
struct Here;

impl Here {
    fn enter(seen: Arc<Mutex<Seen>>) -> Self {
        CURRENT.with(|current| *current.borrow_mut() = Some(seen));
        Self
    }
}

impl Drop for Here {
    fn drop(&mut self) {
        CURRENT.with(|current| *current.borrow_mut() = None);
    }
}

struct SeedOnFailure(u64);

impl Drop for SeedOnFailure {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the universe failed with seed {}", self.0);
        }
    }
}

/// ractor catches panics of actors; the hook sees them before it does.
fn watch_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info: &PanicHookInfo<'_>| {
            if let Some(seen) = current() {
                lock(&seen).panics.push(info.to_string());
            }
            previous(info);
        }));
    });
}
