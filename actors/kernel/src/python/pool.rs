//! The node's source of Python processes: a stock of started ones, filled ahead of demand.
//!
//! What is in stock holds no kernel's data: it becomes a kernel's when it is taken. How many there
//! are is decided in `callboard_policy::prewarm`; here that is carried out. One that is taken while
//! the stock is empty is started for its taker, by the zygote if there is one.

use std::{
    collections::VecDeque,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, Instant},
};

use callboard_policy::prewarm::{Decision, PoolBounds, PoolView, Prewarm};
use callboard_protocol::node::PythonStock;
use nix::{sys::signal::kill, unistd::Pid};
use tokio::sync::{
    Notify,
    mpsc::{UnboundedReceiver, error::TryRecvError},
};

use super::{
    ForeignKernel, Hello, PythonConfig, PythonEvent, PythonProcess,
    memory::{available_mib, may_lower_niceness},
    orphans::Orphans,
    zygote::Zygote,
};

/// How often the stock is looked at again without a cause.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often ended processes that kernels left behind are looked for.
const BURY_EVERY: Duration = Duration::from_secs(20);
/// Niceness of a process that is started for the stock, where it can be taken back later.
const NICE_WHILE_STARTING: i32 = 10;

/// Where a node's Python processes come from. Clones are handles to one stock.
#[derive(Debug, Clone)]
pub struct PythonPool(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    config: PythonConfig,
    run_dir: PathBuf,
    zygote: Option<Zygote>,
    nice: i32,
    began: Instant,
    stock: Mutex<Stock>,
    wake: Arc<Notify>,
}

#[derive(Debug)]
struct Stock {
    ready: VecDeque<Started>,
    starting: usize,
    target: usize,
    prewarm: Prewarm,
    zygote_life: u64,
}

/// A process that is ready.
#[derive(Debug)]
struct Started {
    process: PythonProcess,
    events: UnboundedReceiver<PythonEvent>,
    hello: Hello,
}

/// A process that was taken. One out of the stock is ready: its first event is not told again.
#[derive(Debug)]
pub struct Taken {
    /// The process.
    pub process: PythonProcess,
    /// What it tells.
    pub events: UnboundedReceiver<PythonEvent>,
    /// What it said of itself, if it is ready.
    pub hello: Option<Hello>,
}

impl PythonPool {
    /// No stock and no zygote: each process is started when it is taken.
    #[must_use]
    pub fn bare(config: PythonConfig, run_dir: &Path) -> Self {
        let none = PoolBounds { processes_min: 0, processes_max: 0, memory_reserve_mib: 0 };
        Self(Arc::new(Inner::new(config, run_dir, None, none)))
    }

    /// Starts to fill a stock as soon as `zygote` can fork.
    #[must_use]
    pub fn start(config: PythonConfig, run_dir: &Path, zygote: Zygote, bounds: PoolBounds) -> Self {
        let pool = Self(Arc::new(Inner::new(config, run_dir, Some(zygote.clone()), bounds)));
        tokio::spawn(keep(Arc::downgrade(&pool.0), zygote, pool.0.wake.clone()));
        pool
    }

    /// Takes a process out of the stock, or starts one if it is empty.
    #[must_use]
    pub fn take(&self) -> Taken {
        let inner = &self.0;
        let taken = {
            let mut stock = inner.stock();
            stock.prewarm.taken(inner.now_ms());
            stock.pop()
        };
        inner.wake.notify_one();
        match taken {
            Some(Started { process, events, hello }) => {
                if inner.nice != 0 {
                    take_niceness_back(hello.pid);
                }
                Taken { process, events, hello: Some(hello) }
            }
            None => {
                let (process, events) = inner.launch(0);
                Taken { process, events, hello: None }
            }
        }
    }

    /// Starts the process of a kernel of another language: there is no stock of them.
    #[must_use]
    pub fn start_foreign(&self, kernel: ForeignKernel) -> Taken {
        let Inner { config, run_dir, .. } = &*self.0;
        let (process, events) = PythonProcess::launch_foreign(config.clone(), run_dir, kernel);
        Taken { process, events, hello: None }
    }

    /// What is in stock.
    #[must_use]
    pub fn status(&self) -> PythonStock {
        let stock = self.0.stock();
        let zygote = self.0.zygote.as_ref().map(|zygote| zygote.status().borrow().clone());
        let zygote = zygote.unwrap_or_default();
        PythonStock {
            ready: u32::try_from(stock.ready.len()).unwrap_or(u32::MAX),
            target: u32::try_from(stock.target).unwrap_or(u32::MAX),
            zygote_pid: zygote.pid,
            preloaded: u32::try_from(zygote.loaded.len()).unwrap_or(u32::MAX),
        }
    }
}

impl Inner {
    fn new(
        config: PythonConfig,
        run_dir: &Path,
        zygote: Option<Zygote>,
        bounds: PoolBounds,
    ) -> Self {
        let stock = Stock {
            ready: VecDeque::new(),
            starting: 0,
            target: bounds.processes_min,
            prewarm: Prewarm::new(bounds),
            zygote_life: 0,
        };
        Self {
            config,
            run_dir: run_dir.to_owned(),
            zygote,
            nice: if may_lower_niceness() { NICE_WHILE_STARTING } else { 0 },
            began: Instant::now(),
            stock: Mutex::new(stock),
            wake: Arc::new(Notify::new()),
        }
    }

    fn stock(&self) -> MutexGuard<'_, Stock> {
        self.stock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn launch(&self, nice: i32) -> (PythonProcess, UnboundedReceiver<PythonEvent>) {
        PythonProcess::launch_from(self.config.clone(), &self.run_dir, self.zygote.clone(), nice)
    }

    /// Looks at the stock once; returns how many to start.
    fn look(&self, zygote_life: u64, can_fork: bool) -> usize {
        let now_ms = self.now_ms();
        let mut stock = self.stock();
        if zygote_life != stock.zygote_life {
            // Those in stock may be of another environment.
            stock.ready.clear();
            stock.zygote_life = zygote_life;
        }
        stock.ready.retain_mut(Started::is_alive);
        let view = PoolView {
            ready: stock.ready.len(),
            starting: stock.starting,
            memory_available_mib: available_mib(),
        };
        let Decision { target, start, retire, reason } = stock.prewarm.decide(view, now_ms);
        if target != stock.target {
            tracing::info!(target, %reason, "the stock of Python processes changes");
            stock.target = target;
        }
        for _ in 0..retire {
            stock.ready.pop_back();
        }
        let start = if can_fork { start } else { 0 };
        stock.starting += start;
        start
    }

    /// Starts one for the stock.
    async fn add(&self) {
        let began = Instant::now();
        let (process, mut events) = self.launch(self.nice);
        let first = events.recv().await;
        let mut stock = self.stock();
        stock.starting -= 1;
        match first {
            Some(PythonEvent::Ready(hello)) => {
                let took_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
                stock.prewarm.started(took_ms);
                stock.ready.push_back(Started { process, events, hello });
            }
            Some(PythonEvent::NotReady(error)) => {
                tracing::warn!(%error, "a Python process for the stock did not come up");
            }
            _ => {}
        }
    }
}

impl Stock {
    fn pop(&mut self) -> Option<Started> {
        loop {
            let mut started = self.ready.pop_front()?;
            if started.is_alive() {
                return Some(started);
            }
        }
    }
}

impl Started {
    /// Whether it has not ended: it says nothing else while nobody asks.
    fn is_alive(&mut self) -> bool {
        loop {
            match self.events.try_recv() {
                // Its end may be known to the system and not be told yet.
                Err(TryRecvError::Empty) => {
                    return kill(Pid::from_raw(self.hello.pid), None).is_ok();
                }
                Err(TryRecvError::Disconnected) | Ok(PythonEvent::Exited { .. }) => return false,
                Ok(_) => {}
            }
        }
    }
}

/// Keeps the stock at its size until the pool is gone.
async fn keep(pool: Weak<Inner>, zygote: Zygote, wake: Arc<Notify>) {
    let mut status = zygote.status();
    let (mut orphans, mut buried) = (Orphans::default(), Instant::now());
    loop {
        if buried.elapsed() >= BURY_EVERY {
            orphans.bury();
            buried = Instant::now();
        }
        let (life, can_fork) = {
            let seen = status.borrow_and_update();
            (seen.life, seen.pid.is_some())
        };
        {
            let Some(inner) = pool.upgrade() else { return };
            for _ in 0..inner.look(life, can_fork) {
                let pool = pool.clone();
                tokio::spawn(async move {
                    if let Some(inner) = pool.upgrade() {
                        inner.add().await;
                        inner.wake.notify_one();
                    }
                });
            }
        }
        tokio::select! {
            () = wake.notified() => {}
            changed = status.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}

/// A process that is taken is like any other from then on, with all its threads.
fn take_niceness_back(pid: i32) {
    let group = rustix::process::Pid::from_raw(pid);
    if let Some(group) = group
        && let Err(error) = rustix::process::setpriority_pgrp(Some(group), 0)
    {
        tracing::warn!(%error, pid, "a Python process stays at a lower priority");
    }
}
