//! One user of a soak: kernel after kernel, cell after cell, each kernel judged when it is given up.

use std::{fs, path::Path, time::Duration};

use callboard_protocol::{
    KernelId,
    control::{KernelOptions, StartKernel},
    kernel::Level,
};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tokio::time::{Instant, sleep};

use super::Shared;
use crate::{
    checker::Verdict,
    error::ChaosError,
    history::{Entry, History},
    session::Session,
    trial::until_whole,
};

/// Cells after which a kernel is judged and given up for a new one: kernels come and go, too.
const CELLS_PER_KERNEL: u32 = 60;
/// Shortest and longest pause between two cells, in milliseconds.
const PAUSE_MS: std::ops::Range<u64> = 300..1500;
/// Of so many pauses one is long, so that kernels fall asleep.
const LONG_PAUSE_OF: u32 = 25;
/// How long it is.
const LONG_PAUSE: Duration = Duration::from_secs(10);
/// Sizes that a variable takes one after the other, in bytes.
const SIZES: [usize; 6] = [1 << 10, 64 << 10, 1 << 20, 2 << 20, 256 << 10, 0];
/// How often something that a fault can spoil is tried again.
const TRIES: u32 = 10;
/// Pause between those.
const TRY_PAUSE: Duration = Duration::from_secs(2);

/// What a user's cells do besides their token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    Count,
    Blob(usize),
    Table(usize),
    File(usize),
    Output,
    Exception,
}

impl Shape {
    fn draw(rng: &mut StdRng, number: u32) -> Self {
        let size = SIZES[number as usize % SIZES.len()];
        match rng.random_range(0..8) {
            0..=2 => Self::Count,
            3 | 4 => Self::Blob(size),
            5 => Self::Table(size >> 8),
            6 if rng.random() => Self::File(size),
            6 => Self::Output,
            _ => Self::Exception,
        }
    }

    fn code(self, file: &Path) -> String {
        match self {
            Self::Count => String::new(),
            Self::Blob(size) => format!(
                "blob = bytearray(os.urandom({size}))\n\
                 sums['blob'] = hashlib.blake2b(blob).hexdigest()\n"
            ),
            Self::Table(rows) => format!("table = {{i: str(i) for i in range({rows})}}\n"),
            Self::File(size) => {
                let path = serde_json::Value::from(file.to_string_lossy());
                format!("with open({path}, 'wb') as f:\n    f.write(os.urandom({size}))\n")
            }
            Self::Output => "print('line\\n' * 400)\n".to_owned(),
            Self::Exception => "raise ValueError('on purpose')".to_owned(),
        }
    }
}

/// What a user's kernels came to.
#[derive(Debug, Clone, Default)]
pub(super) struct Work {
    /// One per kernel that was judged.
    pub verdicts: Vec<Verdict>,
    /// Why a kernel could not be used or judged.
    pub problems: Vec<String>,
}

/// Works until the time is over.
pub(super) async fn work(shared: &Shared<'_>, user: usize) -> Work {
    let mut rng = StdRng::seed_from_u64(shared.seed.wrapping_add(user as u64));
    let mut work = Work::default();
    let mut life = 0;
    while Instant::now() < shared.until {
        life += 1;
        let folder = shared.folder.join(format!("user-{user}")).join(format!("kernel-{life}"));
        match one_kernel(shared, user, &folder, &mut rng).await {
            Ok(verdict) => {
                if verdict.ok {
                    // Kept only for what failed: a soak has thousands of cells.
                    let _ = fs::remove_dir_all(&folder);
                }
                work.verdicts.push(verdict);
            }
            Err(error) => {
                (shared.say)(&format!("user {user}, kernel {life}: {error}"));
                work.problems.push(format!("user {user}, kernel {life}: {error}"));
            }
        }
        shared.forget(user);
    }
    work
}

async fn one_kernel(
    shared: &Shared<'_>,
    user: usize,
    folder: &Path,
    rng: &mut StdRng,
) -> Result<Verdict, ChaosError> {
    fs::create_dir_all(folder).map_err(ChaosError::io("make", folder))?;
    let kernel = start(shared).await?;
    let history = History::create(&folder.join("history.jsonl"))?;
    history.record(&Entry::Trial {
        what: format!("soak, user {user}"),
        seed: shared.seed,
        kernel: kernel.to_string(),
    })?;
    let mut session = Session::new(shared.cluster, kernel, history);
    until_whole(shared.cluster, &session).await?;
    let witness = folder.join("witness.txt");
    let python = prepare(&mut session, &witness).await?;
    shared.note(user, kernel, python);
    cells(shared, &mut session, &folder.join("file.bin"), rng).await?;
    let verdict = judge(shared, &mut session, &witness).await?;
    let control = shared.cluster.client().control();
    control.stop_kernel(kernel).await.map_err(ChaosError::refused("stop a kernel"))?;
    Ok(verdict)
}

/// Starts a kernel, through whatever faults there are.
async fn start(shared: &Shared<'_>) -> Result<KernelId, ChaosError> {
    let kernel = KernelId::generate();
    let request = StartKernel {
        kernel,
        name: None,
        replicas: 3,
        options: KernelOptions::default(),
        origin: None,
        settings: Default::default(),
    };
    let control = shared.cluster.client().control();
    let mut tries = 0;
    loop {
        match control.start_kernel(&request).await {
            Ok(_) => return Ok(kernel),
            Err(fault) if tries == TRIES => {
                return Err(ChaosError::refused("start a kernel")(fault));
            }
            Err(_) => sleep(TRY_PAUSE).await,
        }
        tries += 1;
    }
}

/// The preparing cell may be hit by a fault like any other; run again, it changes nothing.
async fn prepare(session: &mut Session, witness: &Path) -> Result<u32, ChaosError> {
    let mut tries = 0;
    loop {
        match session.prepare(witness).await {
            Err(_) if tries < TRIES => sleep(TRY_PAUSE).await,
            prepared => return prepared,
        }
        tries += 1;
    }
}

async fn cells(
    shared: &Shared<'_>,
    session: &mut Session,
    file: &Path,
    rng: &mut StdRng,
) -> Result<(), ChaosError> {
    for number in 0..CELLS_PER_KERNEL {
        if Instant::now() >= shared.until {
            break;
        }
        let shape = Shape::draw(rng, number);
        if shape == Shape::Exception {
            session.run(shape.code(file)).await?;
        } else {
            let cell = session.begin("", &shape.code(file), Level::Durable)?;
            session.finish(cell).await?;
        }
        let pause = Duration::from_millis(rng.random_range(PAUSE_MS));
        sleep(if rng.random_ratio(1, LONG_PAUSE_OF) { LONG_PAUSE } else { pause }).await;
    }
    Ok(())
}

/// Has the kernel judged. A fault may keep it from answering for a while, which is no finding.
async fn judge(
    shared: &Shared<'_>,
    session: &mut Session,
    witness: &Path,
) -> Result<Verdict, ChaosError> {
    session.ask_again().await?;
    let mut tries = 0;
    loop {
        let judged = async {
            session.read_final().await?;
            let credentials = shared.cluster.frontend_credentials();
            let history = session.history().path().to_owned();
            let kernel = session.kernel().id();
            shared.checker.judge(&history, witness, &credentials, kernel).await
        };
        match judged.await {
            Err(_) if tries < TRIES => sleep(TRY_PAUSE).await,
            judged => return judged,
        }
        tries += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_runs_every_shape_and_what_it_keeps_grows_and_shrinks() {
        let mut rng = StdRng::seed_from_u64(1);
        let shapes: Vec<Shape> = (0..300).map(|number| Shape::draw(&mut rng, number)).collect();
        let blobs: Vec<usize> = shapes
            .iter()
            .filter_map(|it| if let Shape::Blob(n) = it { Some(*n) } else { None })
            .collect();
        assert!(blobs.contains(&0) && blobs.contains(&(2 << 20)), "{blobs:?}");
        for wanted in [Shape::Count, Shape::Output, Shape::Exception] {
            assert!(shapes.contains(&wanted), "{wanted:?}");
        }
        assert!(shapes.iter().any(|it| matches!(it, Shape::File(_))));
        assert!(shapes.iter().any(|it| matches!(it, Shape::Table(_))));
    }
}
