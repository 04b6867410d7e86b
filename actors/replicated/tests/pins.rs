//! Random histories of kernels on one disk, with crashes: no chunk that is named is ever collected,
//! and what nobody names goes.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use callboard_protocol::{GroupId, OwnerId, ReplicaId};
use callboard_replicated::{ChunkId, ChunkPins, ChunkStore, Holder, RECEIPT_VALID};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tempfile::TempDir;
use tokio::time::{Instant, advance};

const GRACE: Duration = Duration::from_secs(60);
const KERNELS: u64 = 4;
/// Contents that kernels share: the same bytes come and go.
const CONTENTS: u64 = 12;
const STEPS: usize = 250;

type Names = BTreeSet<ChunkId>;

/// One kernel's member as the disk sees it.
#[derive(Default)]
struct Member {
    /// What its applied state names.
    applied: Names,
    /// Committed in its group, not applied here.
    committed: Vec<Names>,
    /// Stored and not proposed yet, with the time of the receipt.
    stored: Option<(Instant, Names)>,
    is_running: bool,
    is_cut_off: bool,
    is_gone: bool,
}

struct World {
    rng: StdRng,
    directory: TempDir,
    store: ChunkStore,
    pins: ChunkPins,
    members: BTreeMap<u64, Arc<Mutex<Member>>>,
    registrations: BTreeMap<u64, u64>,
    grace: Duration,
}

fn owner() -> OwnerId {
    OwnerId::default()
}

fn holder(kernel: u64) -> Holder {
    (GroupId::new(format!("kernel-{kernel}")).unwrap(), ReplicaId(1))
}

fn content(number: u64) -> (ChunkId, Bytes) {
    let bytes = Bytes::from(format!("content {number}"));
    (ChunkId::of(&bytes), bytes)
}

impl World {
    fn new(seed: u64, grace: Duration) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = ChunkStore::open(directory.path()).unwrap();
        let members = (0..KERNELS).map(|kernel| (kernel, Arc::default())).collect();
        let rng = StdRng::seed_from_u64(seed);
        let pins = ChunkPins::default();
        let registrations = BTreeMap::new();
        Self { rng, directory, store, pins, members, registrations, grace }
    }

    fn member(&self, kernel: u64) -> std::sync::MutexGuard<'_, Member> {
        self.members[&kernel].lock().unwrap()
    }

    /// One thing that can happen to a kernel, or to all.
    async fn step(&mut self) {
        let kernel = self.rng.random_range(0..KERNELS);
        match self.rng.random_range(0..100) {
            0..20 => self.store_state(kernel).await,
            20..40 => self.propose(kernel),
            40..60 => self.apply(kernel),
            60..68 => self.toggle_running(kernel),
            68..74 => {
                let mut member = self.member(kernel);
                member.is_cut_off = !member.is_cut_off;
            }
            74..77 => self.crash(),
            77..78 => self.end(kernel),
            78..86 => self.collect().await,
            86..90 => {
                self.settle();
                advance(Duration::from_secs(self.rng.random_range(1..90))).await;
                self.collect().await;
            }
            _ => advance(Duration::from_secs(self.rng.random_range(1..45))).await,
        }
    }

    async fn store_state(&mut self, kernel: u64) {
        if self.member(kernel).is_gone || self.member(kernel).stored.is_some() {
            return;
        }
        let count = self.rng.random_range(0..4);
        let numbers: Vec<u64> = (0..count).map(|_| self.rng.random_range(0..CONTENTS)).collect();
        let chunks: Vec<_> = numbers.into_iter().map(content).collect();
        let names = chunks.iter().map(|(id, _)| *id).collect();
        self.store.put_many(&owner(), chunks).await.unwrap();
        self.member(kernel).stored = Some((Instant::now(), names));
    }

    /// The executor names what it stored, if its receipts still count; a member that is cut off
    /// hears of the entry later.
    fn propose(&self, kernel: u64) {
        let mut member = self.member(kernel);
        if let Some((since, names)) = member.stored.take()
            && since.elapsed() < RECEIPT_VALID
        {
            member.committed.push(names);
        }
    }

    fn apply(&self, kernel: u64) {
        let mut member = self.member(kernel);
        if member.is_running && !member.is_cut_off && !member.committed.is_empty() {
            member.applied = member.committed.remove(0);
            let names = member.applied.clone();
            drop(member);
            self.pins.publish(&holder(kernel), names.clone(), names);
        }
    }

    fn toggle_running(&mut self, kernel: u64) {
        if self.member(kernel).is_gone {
            return;
        }
        let was_running = std::mem::replace(&mut self.member(kernel).is_running, false);
        if was_running {
            self.pins.unregister(&holder(kernel), self.registrations[&kernel]);
            return;
        }
        let of_member = self.members[&kernel].clone();
        let witness = move || {
            let member = of_member.lock().unwrap();
            // A member that is cut off notices; one that has entries to apply knows.
            let is_current = !member.is_cut_off && member.committed.is_empty();
            is_current.then(|| member.applied.clone())
        };
        let registration = self.pins.register(holder(kernel), owner(), Arc::new(witness));
        self.registrations.insert(kernel, registration);
        let names = {
            let mut member = self.member(kernel);
            member.is_running = true;
            member.applied.clone()
        };
        self.pins.publish(&holder(kernel), names.clone(), names);
    }

    /// The node's process ends and begins anew: pins and times are lost, receipts go with it.
    fn crash(&mut self) {
        self.store = ChunkStore::open(self.directory.path()).unwrap();
        self.pins = ChunkPins::default();
        for (kernel, member) in &self.members {
            let mut member = member.lock().unwrap();
            member.is_running = false;
            if !member.is_gone {
                self.pins.expect(holder(*kernel));
            }
        }
    }

    /// Everybody is up, in touch and has applied everything: else hardly anything is collected.
    fn settle(&mut self) {
        for kernel in 0..KERNELS {
            self.member(kernel).is_cut_off = false;
            if !self.member(kernel).is_running {
                self.toggle_running(kernel);
            }
            while !self.member(kernel).committed.is_empty() {
                self.apply(kernel);
            }
        }
    }

    fn end(&mut self, kernel: u64) {
        let mut member = self.member(kernel);
        *member = Member { is_gone: true, ..Member::default() };
        drop(member);
        self.pins.forget(&holder(kernel));
    }

    async fn collect(&self) {
        let owner = owner();
        let collected = self.store.collect_unnamed(&self.pins, &owner, self.grace, 100);
        let _waiting = collected.await.unwrap();
    }

    /// The first chunk that is named and gone.
    fn lost(&self) -> Option<(u64, ChunkId)> {
        self.members.iter().find_map(|(kernel, member)| {
            let member = member.lock().unwrap();
            let promised =
                member.stored.iter().filter(|(since, _)| since.elapsed() < RECEIPT_VALID);
            let named = member.committed.iter().chain([&member.applied]);
            let mut named = named.chain(promised.map(|(_, names)| names)).flatten();
            named.find(|id| !self.store.has(&owner(), **id)).map(|id| (*kernel, *id))
        })
    }
}

async fn run(seed: u64, grace: Duration) -> Result<World, String> {
    let mut world = World::new(seed, grace);
    for step in 0..STEPS {
        world.step().await;
        if let Some((kernel, id)) = world.lost() {
            return Err(format!("seed {seed}, step {step}: kernel {kernel} lost {id:?}"));
        }
    }
    Ok(world)
}

#[tokio::test(start_paused = true)]
async fn no_named_chunk_is_ever_collected_and_garbage_goes_in_the_end() {
    let mut collected = 0;
    for seed in 0..40 {
        let mut world = run(seed, GRACE).await.unwrap();
        collected +=
            world.store.counters().collected_chunks.load(std::sync::atomic::Ordering::Relaxed);
        for kernel in 0..KERNELS {
            world.end(kernel);
        }
        advance(GRACE * 2).await;
        world.collect().await;
        assert!(world.store.usage().is_empty(), "seed {seed}: {:?}", world.store.usage());
    }
    assert!(collected > 0, "the histories collect nothing");
}

#[tokio::test(start_paused = true)]
async fn without_a_grace_period_the_check_finds_a_loss() {
    let mut losses = 0;
    for seed in 0..40 {
        losses += usize::from(run(seed, Duration::ZERO).await.is_err());
    }
    assert!(losses > 0, "the check never fires");
}

#[tokio::test(start_paused = true)]
async fn a_member_that_has_not_said_what_it_names_holds_everything() {
    let world = World::new(1, GRACE);
    world.store.put_many(&owner(), vec![content(1)]).await.unwrap();
    advance(GRACE * 2).await;
    world.pins.expect(holder(1));
    let owner = owner();
    let collect = || world.store.collect_unnamed(&world.pins, &owner, GRACE, 100);
    let waiting = collect().await.unwrap().unwrap_err();
    assert!(waiting.to_string().contains("kernel-1 member 1"), "{waiting}");
    let registration =
        world.pins.register(holder(1), OwnerId::new("other").unwrap(), Arc::new(|| None));
    assert_eq!(collect().await.unwrap().unwrap().chunks, 1, "it is of another owner");
    world.pins.unregister(&holder(1), registration);
    assert!(world.pins.has_group(|group| *group == holder(1).0));
}

#[tokio::test(start_paused = true)]
async fn a_member_that_sleeps_keeps_what_it_named_and_holds_up_nothing() {
    let world = World::new(2, GRACE);
    world.store.put_many(&owner(), vec![content(1), content(2)]).await.unwrap();
    let names = Names::from([content(1).0]);
    let of_witness = names.clone();
    let registration =
        world.pins.register(holder(1), owner(), Arc::new(move || Some(of_witness.clone())));
    world.pins.publish(&holder(1), names.clone(), names);
    assert!(world.pins.freeze(&holder(1)));
    world.pins.unregister(&holder(1), registration);
    advance(GRACE * 2).await;
    world.collect().await;
    assert_eq!(world.store.missing(&owner(), &[content(1).0, content(2).0]), [content(2).0]);
}

#[tokio::test(start_paused = true)]
async fn members_that_are_never_up_to_date_at_the_same_moment_hold_up_nothing() {
    let world = World::new(3, GRACE);
    world.store.put_many(&owner(), vec![content(1), content(2)]).await.unwrap();
    let names = Names::from([content(1).0]);
    for kernel in 1..=2 {
        // Each look finds one of the two behind.
        let (looks, of_witness) = (AtomicU64::new(kernel), names.clone());
        let witness = move || {
            looks.fetch_add(1, Ordering::Relaxed).is_multiple_of(2).then(|| of_witness.clone())
        };
        world.pins.register(holder(kernel), owner(), Arc::new(witness));
        world.pins.publish(&holder(kernel), names.clone(), names.clone());
    }
    advance(GRACE * 2).await;
    world.collect().await;
    assert_eq!(world.store.missing(&owner(), &[content(1).0, content(2).0]), [content(2).0]);
}
