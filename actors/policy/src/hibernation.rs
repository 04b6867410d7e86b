//! When an idle kernel's group falls asleep, and what wakes it.
//!
//! Asleep means that no member runs Raft. Safety needs nothing from here: a member may be stopped
//! at any time. What is decided here is that members sleep together, that nobody sleeps with work
//! to do, and that a group which cannot sleep does not try all the time.
//!
//! The leader asks the other voters, one question each, whether they may sleep at exactly this
//! place of the log. Only if all say yes does it stop its own Raft and then tell them to stop
//! theirs. A member that misses the word hears no leader, stands for election and so wakes the
//! others; one that hears it late or twice has moved on to another term or another question.

use std::collections::{BTreeMap, BTreeSet};

use callboard_protocol::{KernelId, NodeId, ReplicaId, control::NodeHealth, kernel::SleepOffer};

use crate::{chance::Chance, failure::NodesView};

#[cfg(test)]
mod tests;

/// The times hibernation goes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HibernationConfig {
    /// How long a kernel must be idle, in milliseconds; 0: it never sleeps.
    pub after_ms: u64,
    /// Pause after a group could not sleep, in milliseconds.
    pub retry_ms: u64,
    /// How long the others may take to agree, and how long a member keeps its word, in
    /// milliseconds. Under a broker's hiccup a question is asked again, which costs nothing.
    pub agree_within_ms: u64,
    /// Over how long the groups that lost an executor wake, in milliseconds: a thousand groups
    /// that open their logs in one moment would be heard by nobody.
    pub stagger_ms: u64,
}

impl Default for HibernationConfig {
    fn default() -> Self {
        Self { after_ms: 60_000, retry_ms: 5_000, agree_within_ms: 2_000, stagger_ms: 8_000 }
    }
}

/// What a replica sees of itself and its group at the moment of a decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Situation {
    /// Whether it leads the group.
    pub leading: bool,
    /// Its Raft term.
    pub term: u64,
    /// The last log entry, if it has applied it.
    pub index: Option<u64>,
    /// The other voters.
    pub others: BTreeSet<ReplicaId>,
    /// Version of the kernel's entry in the desired state.
    pub spec_version: u64,
    /// What keeps it awake, for people; `None` if nothing does.
    pub busy: Option<&'static str>,
}

impl Situation {
    /// Nothing is known: for inputs that do not look at it.
    #[must_use]
    pub fn unknown() -> Self {
        let busy = Some("it has not looked yet");
        Self {
            leading: false,
            term: 0,
            index: None,
            others: BTreeSet::new(),
            spec_version: 0,
            busy,
        }
    }
}

/// What the machine is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// Somebody wants something of the kernel, or something happened to it.
    Active,
    /// Time passed.
    Look,
    /// The leader asks whether this replica may sleep.
    Asked(SleepOffer),
    /// A voter answered.
    Answered {
        /// Which question.
        attempt: u64,
        /// Who.
        from: ReplicaId,
        /// Whether it may sleep.
        agreed: bool,
    },
    /// The leader sleeps; this replica shall, too.
    Told(SleepOffer),
}

/// What the machine wants done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Ask these voters.
    Ask(SleepOffer, BTreeSet<ReplicaId>),
    /// Answer the one who asked: `None` is a yes, a text says why not.
    Answer(Option<&'static str>),
    /// Stop Raft, then tell these voters the same.
    Sleep(SleepOffer, BTreeSet<ReplicaId>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Agreeing {
    offer: SleepOffer,
    missing: BTreeSet<ReplicaId>,
    since_ms: u64,
}

/// One awake replica's part in falling asleep. Times are milliseconds of a clock that never goes
/// back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hibernation {
    config: HibernationConfig,
    me: ReplicaId,
    active_ms: u64,
    not_before_ms: u64,
    attempts: u64,
    agreeing: Option<Agreeing>,
    promised: Option<(SleepOffer, u64)>,
}

impl Hibernation {
    /// A replica that has just woken or started.
    #[must_use]
    pub fn new(config: HibernationConfig, me: ReplicaId, now_ms: u64) -> Self {
        Self {
            config,
            me,
            active_ms: now_ms,
            not_before_ms: 0,
            attempts: 0,
            agreeing: None,
            promised: None,
        }
    }

    /// Takes one input in and says what to do.
    pub fn step(&mut self, input: Input, seen: &Situation, now_ms: u64) -> Option<Action> {
        match input {
            Input::Active => {
                self.active_ms = now_ms;
                self.agreeing = None;
                self.promised = None;
                None
            }
            Input::Look => self.look(seen, now_ms),
            Input::Asked(offer) => Some(Action::Answer(self.asked(offer, seen, now_ms).err())),
            Input::Answered { attempt, from, agreed } => {
                self.answered(attempt, from, agreed, seen, now_ms)
            }
            Input::Told(offer) => self.told(&offer, seen, now_ms),
        }
    }

    /// Whether [`Input::Look`] can lead to anything at `now_ms`.
    #[must_use]
    pub fn may_look(&self, now_ms: u64) -> bool {
        self.agreeing.is_some() || self.is_due(now_ms)
    }

    fn is_due(&self, now_ms: u64) -> bool {
        self.config.after_ms > 0
            && now_ms.saturating_sub(self.active_ms) >= self.config.after_ms
            && now_ms >= self.not_before_ms
    }

    fn look(&mut self, seen: &Situation, now_ms: u64) -> Option<Action> {
        if let Some(agreeing) = &self.agreeing {
            let is_late = now_ms.saturating_sub(agreeing.since_ms) >= self.config.agree_within_ms;
            if is_late || !stands(&agreeing.offer, seen) || !seen.leading {
                self.give_up(now_ms);
            }
            return None;
        }
        if !self.is_due(now_ms) || !seen.leading || seen.busy.is_some() {
            return None;
        }
        self.attempts += 1;
        let offer = SleepOffer {
            from: self.me,
            attempt: self.attempts,
            term: seen.term,
            index: seen.index?,
            spec_version: seen.spec_version,
        };
        if seen.others.is_empty() {
            return Some(Action::Sleep(offer, BTreeSet::new()));
        }
        let missing = seen.others.clone();
        self.agreeing =
            Some(Agreeing { offer: offer.clone(), missing: missing.clone(), since_ms: now_ms });
        Some(Action::Ask(offer, missing))
    }

    fn asked(
        &mut self,
        offer: SleepOffer,
        seen: &Situation,
        now_ms: u64,
    ) -> Result<(), &'static str> {
        if self.config.after_ms == 0 {
            return Err("hibernation is off here");
        }
        if seen.leading {
            return Err("it leads itself");
        }
        if let Some(busy) = seen.busy {
            return Err(busy);
        }
        if !stands(&offer, seen) {
            return Err("its log or its entry is at another place");
        }
        self.promised = Some((offer, now_ms));
        Ok(())
    }

    fn answered(
        &mut self,
        attempt: u64,
        from: ReplicaId,
        agreed: bool,
        seen: &Situation,
        now_ms: u64,
    ) -> Option<Action> {
        let agreeing = self.agreeing.as_mut().filter(|it| it.offer.attempt == attempt)?;
        if !agreed || !stands(&agreeing.offer, seen) || !seen.leading || seen.busy.is_some() {
            self.give_up(now_ms);
            return None;
        }
        agreeing.missing.remove(&from);
        if !agreeing.missing.is_empty() {
            return None;
        }
        let offer = self.agreeing.take()?.offer;
        Some(Action::Sleep(offer, seen.others.clone()))
    }

    fn told(&mut self, offer: &SleepOffer, seen: &Situation, now_ms: u64) -> Option<Action> {
        let (promised, since_ms) = self.promised.take()?;
        let is_kept = promised == *offer
            && now_ms.saturating_sub(since_ms) < self.config.agree_within_ms.saturating_mul(2)
            && stands(offer, seen)
            && !seen.leading
            && seen.busy.is_none();
        is_kept.then_some(Action::Sleep(promised, BTreeSet::new()))
    }

    fn give_up(&mut self, now_ms: u64) {
        self.agreeing = None;
        self.not_before_ms = now_ms.saturating_add(self.config.retry_ms);
    }
}

/// Whether the group is still where the offer was made.
fn stands(offer: &SleepOffer, seen: &Situation) -> bool {
    offer.term == seen.term
        && Some(offer.index) == seen.index
        && offer.spec_version == seen.spec_version
}

/// What is known of a group that sleeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sleeping {
    /// This replica.
    pub me: ReplicaId,
    /// Who led last.
    pub leader: ReplicaId,
    /// Who has an executor term open.
    pub executor: Option<ReplicaId>,
    /// The voters and their nodes.
    pub voters: BTreeMap<ReplicaId, NodeId>,
}

impl Sleeping {
    /// Whether this replica answers questions about the sleeping group: the former leader does,
    /// else the first voter whose node is well.
    #[must_use]
    pub fn answers(&self, nodes: &NodesView) -> bool {
        let others = self.voters.keys().filter(|id| **id != self.leader);
        let mut order = std::iter::once(&self.leader).chain(others);
        order.find(|id| self.is_well(**id, nodes)).or(Some(&self.leader)) == Some(&self.me)
    }

    /// Whether the group has to wake because its executor's node is silent. Silence proves nothing
    /// during an outage, and a group without an open term loses nothing by it.
    #[must_use]
    pub fn has_lost_its_executor(&self, nodes: &NodesView) -> bool {
        nodes.outage.is_none() && self.executor.is_some_and(|id| !self.is_well(id, nodes))
    }

    fn is_well(&self, id: ReplicaId, nodes: &NodesView) -> bool {
        let view = self.voters.get(&id).and_then(|node| nodes.nodes.get(node));
        view.is_none_or(|view| view.health == NodeHealth::Up)
    }
}

/// How long a group waits before it wakes for a lost executor: drawn from its id, so that groups
/// spread and the members of one wake together.
#[must_use]
pub fn wake_delay_ms(kernel: KernelId, config: &HibernationConfig) -> u64 {
    Chance::new(kernel.0.as_u64_pair().1).between(0, config.stagger_ms)
}

/// One sleeping replica's share of its node's digest. Shares are combined by exclusive or, so that
/// their order does not matter and one that wakes is taken out again.
#[must_use]
pub fn digest_share(kernel: KernelId, replica: ReplicaId, index: u64, term: u64) -> u64 {
    let (high, low) = kernel.0.as_u64_pair();
    [high, low, replica.0, index, term]
        .into_iter()
        .fold(0, |sum, part| Chance::new(sum ^ part).next_u64())
}
