//! Who names which chunks on this node.
//!
//! Every member of a kernel's group whose disk this is must have said what it names, in this life
//! of the node, before anything that it might name is collected. A member says so for one moment:
//! when it has applied everything that its group had committed by then. What is named by entries
//! that a member has not applied yet was promised to their proposer within the grace period, and is
//! not idle (see [`ChunkStore::idle`](super::ChunkStore::idle)).

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use callboard_protocol::{GroupId, OwnerId, ReplicaId};

use super::ChunkId;

/// A member of a kernel's group on this disk.
pub type Holder = (GroupId, ReplicaId);

/// Looks what a member names now; `None` if it cannot tell: it has not applied all that its group
/// committed, or does not know.
pub type Witness = Arc<dyn Fn() -> Option<BTreeSet<ChunkId>> + Send + Sync>;

#[derive(Default)]
struct Pin {
    owner: Option<OwnerId>,
    witness: Option<Witness>,
    /// What the member's log named when it was last looked at.
    roots: BTreeSet<ChunkId>,
    /// The same and what those chunks name in turn.
    all: Arc<BTreeSet<ChunkId>>,
    /// Whether the member sleeps: nothing changes until it is registered again.
    is_frozen: bool,
    /// Counts registrations: a life that ends late must not end the pins of the next one.
    registration: u64,
}

#[derive(Default)]
struct Holders {
    present: BTreeMap<Holder, Pin>,
    /// What members that are gone for good named last, until it is looked after.
    departed: BTreeMap<Holder, (Option<OwnerId>, Arc<BTreeSet<ChunkId>>)>,
}

/// Departed members whose chunks are remembered; older ones' are found by the collector.
const DEPARTED_MAX: usize = 64;

/// The pins of one node. Clones share them.
#[derive(Clone, Default)]
pub struct ChunkPins {
    holders: Arc<Mutex<Holders>>,
}

impl fmt::Debug for ChunkPins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChunkPins({} holders)", self.lock().present.len())
    }
}

/// Why nothing of an owner can be collected now: these members have not said what they name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("waiting for {} of kernels on this node to say what they name, {first_group} member {first_member} among them", members(*count))]
pub struct Waiting {
    /// How many.
    pub count: usize,
    /// The kernel of one of them.
    pub first_group: GroupId,
    /// Which member of it.
    pub first_member: ReplicaId,
}

fn members(count: usize) -> String {
    if count == 1 { "1 member".to_owned() } else { format!("{count} members") }
}

/// The members that have said what they name, and what.
#[derive(Debug, Default)]
pub struct Heard(HashMap<Holder, Arc<BTreeSet<ChunkId>>>);

impl ChunkPins {
    fn lock(&self) -> MutexGuard<'_, Holders> {
        self.holders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Expects a member to say what it names: it is known to be on this disk.
    pub fn expect(&self, holder: Holder) {
        self.lock().present.entry(holder).or_default();
    }

    /// A member is at work, and `witness` tells what it names. Returns the number of this
    /// registration, with which it is ended.
    pub fn register(&self, holder: Holder, owner: OwnerId, witness: Witness) -> u64 {
        let mut holders = self.lock();
        let pin = holders.present.entry(holder).or_default();
        pin.owner = Some(owner);
        pin.witness = Some(witness);
        pin.is_frozen = false;
        pin.registration += 1;
        pin.registration
    }

    /// What a member names: `roots` in its log, `all` with what those chunks name in turn.
    pub fn publish(&self, holder: &Holder, roots: BTreeSet<ChunkId>, all: BTreeSet<ChunkId>) {
        if let Some(pin) = self.lock().present.get_mut(holder) {
            pin.roots = roots;
            pin.all = Arc::new(all);
        }
    }

    /// A member is no longer at work; it will be again. Until then nothing of its owner goes.
    pub fn unregister(&self, holder: &Holder, registration: u64) {
        let mut holders = self.lock();
        let pin = holders.present.get_mut(holder);
        if let Some(pin) = pin.filter(|pin| pin.registration == registration) {
            pin.witness = None;
        }
    }

    /// A member goes to sleep with what it published last; nothing it names changes until it is
    /// registered again. Returns whether that is known to be all it names; if not, nothing of its
    /// owner goes until it has woken.
    pub fn freeze(&self, holder: &Holder) -> bool {
        let Some(witness) = self.lock().present.get(holder).and_then(|pin| pin.witness.clone())
        else {
            return false;
        };
        let named = witness();
        let mut holders = self.lock();
        let Some(pin) = holders.present.get_mut(holder) else { return false };
        pin.is_frozen = named.is_some_and(|roots| roots.is_subset(&pin.roots));
        pin.witness = None;
        pin.is_frozen
    }

    /// A member sleeps since an earlier life of the node, and names exactly these chunks.
    pub fn freeze_as(&self, holder: Holder, owner: OwnerId, named: BTreeSet<ChunkId>) {
        let mut holders = self.lock();
        let pin = holders.present.entry(holder).or_default();
        pin.owner = Some(owner);
        pin.roots = named.clone();
        pin.all = Arc::new(named);
        pin.is_frozen = true;
    }

    /// What a member published last.
    #[must_use]
    pub fn published(&self, holder: &Holder) -> Arc<BTreeSet<ChunkId>> {
        self.lock().present.get(holder).map(|pin| pin.all.clone()).unwrap_or_default()
    }

    /// A member is gone for good, with everything it named.
    pub fn forget(&self, holder: &Holder) {
        let mut holders = self.lock();
        let Some(pin) = holders.present.remove(holder) else { return };
        holders.departed.insert(holder.clone(), (pin.owner, pin.all));
        while holders.departed.len() > DEPARTED_MAX {
            holders.departed.pop_first();
        }
    }

    /// Whether a member of a group for which `is_meant` holds is on this disk.
    #[must_use]
    pub fn has_group(&self, is_meant: impl Fn(&GroupId) -> bool) -> bool {
        self.lock().present.keys().any(|(group, _)| is_meant(group))
    }

    /// What the members on this disk, of groups for which `is_meant` holds, named before they went
    /// for good. Given once.
    #[must_use]
    pub fn take_departed(
        &self,
        is_meant: impl Fn(&GroupId) -> bool,
    ) -> Vec<(OwnerId, Arc<BTreeSet<ChunkId>>)> {
        let mut holders = self.lock();
        let gone: Vec<Holder> =
            holders.departed.keys().filter(|(group, _)| is_meant(group)).cloned().collect();
        let taken = gone.iter().filter_map(|holder| holders.departed.remove(holder));
        taken.filter_map(|(owner, chunks)| Some((owner?, chunks))).collect()
    }

    /// Whether a member on this disk is, or may be, of a kernel of this owner.
    #[must_use]
    pub fn has_owner(&self, owner: &OwnerId) -> bool {
        let holders = self.lock();
        holders.present.values().any(|pin| pin.owner.as_ref().is_none_or(|it| it == owner))
    }

    /// Everything that members on this node name of an owner's chunks.
    ///
    /// # Errors
    /// [`Waiting`] if one that may name some has not said so, or is behind.
    pub fn named(&self, owner: &OwnerId) -> Result<HashSet<ChunkId>, Waiting> {
        self.hear(owner, &mut Heard::default())
    }

    /// The same, of members that say so one after the other: whoever did counts as `heard` and is
    /// not asked again. What a member names after that was promised to it before, and is not idle.
    ///
    /// # Errors
    /// [`Waiting`] as long as one is missing.
    pub fn hear(&self, owner: &OwnerId, heard: &mut Heard) -> Result<HashSet<ChunkId>, Waiting> {
        // Witnesses look at machines under their own locks: not under ours.
        let asked: Vec<_> = {
            let holders = self.lock();
            let concerned = holders.present.iter().filter(|(holder, pin)| {
                pin.owner.as_ref().is_none_or(|it| it == owner) && !heard.0.contains_key(holder)
            });
            concerned
                .map(|(holder, pin)| (holder.clone(), pin.witness.clone(), pin.is_frozen))
                .collect()
        };
        let mut silent = Vec::new();
        for (holder, witness, is_frozen) in asked {
            let roots = witness.and_then(|look| look());
            let holders = self.lock();
            let Some(pin) = holders.present.get(&holder) else { continue };
            let is_known = match &roots {
                Some(roots) => roots.is_subset(&pin.roots),
                None => is_frozen && pin.is_frozen,
            };
            if is_known {
                heard.0.insert(holder, pin.all.clone());
            } else {
                silent.push(holder);
            }
        }
        match silent.first() {
            None => Ok(heard.0.values().flat_map(|all| all.iter().copied()).collect()),
            Some((group, member)) => Err(Waiting {
                count: silent.len(),
                first_group: group.clone(),
                first_member: *member,
            }),
        }
    }

    /// The members that name a chunk of an owner, as far as they have said.
    #[must_use]
    pub fn who_names(&self, owner: &OwnerId, id: ChunkId) -> Vec<Holder> {
        let holders = self.lock();
        let naming = holders
            .present
            .iter()
            .filter(|(_, pin)| pin.owner.as_ref() == Some(owner) && pin.all.contains(&id));
        naming.map(|(holder, _)| holder.clone()).collect()
    }
}
