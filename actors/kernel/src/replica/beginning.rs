//! A group that does not begin empty: after a lost majority, with what a survivor had; a branch or
//! a restored kernel, with a state made elsewhere.
//!
//! The founder of the new group reads the former group's log on this disk, puts what it comes to
//! into its own log, and tells the control plane once that is durable. Until then no cell is
//! accepted and nobody takes over.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use callboard_policy::terms::Entry;
use callboard_protocol::{
    ActorKind, Envelope, GroupId, Subject,
    control::{Holdings, KernelSpec, MemberChange, Origin, Recovery},
};
use callboard_replicated::{ChunkId, Group};
use callboard_transport::{Message, typed};

use super::{ReplicaState, branch::Branch};
use crate::{KernelMachine, NodeContext, state::Named};

/// Bytes of an earlier log in one entry, well under any broker's payload limit.
const PIECE_BYTES: usize = 256 << 10;
/// Pause before a beginning that failed is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// How often the leader of a group that replaced another says so: members of the other that come
/// back must not be heard for longer.
const GENERATION_EVERY: Duration = Duration::from_millis(500);
/// How long the leader may take to make sure that a majority still follows it.
const BARRIER_WITHIN: Duration = Duration::from_secs(1);

/// Why a kernel could not begin yet, for whoever looks at it.
pub(super) type Trouble = Arc<Mutex<Option<String>>>;

impl ReplicaState {
    /// Whether the group has still to be given what it begins with.
    pub(super) fn is_beginning(&self) -> bool {
        let KernelSpec { recovery, origin, .. } = &self.args.spec;
        (recovery.is_some() || origin.is_some()) && self.read(|log| log.begun_from().is_none())
    }

    /// Whether the group is about to become an earlier one, with every request that one accepted.
    pub(super) fn is_recovering(&self) -> bool {
        self.args.spec.recovery.is_some() && self.is_beginning()
    }

    /// What the kernel waits for, if it has not begun, as a sentence.
    pub(super) fn waits_for(&self) -> Option<String> {
        if !self.is_beginning() {
            return None;
        }
        let KernelSpec { recovery, origin, .. } = &self.args.spec;
        let what = match (recovery, origin) {
            (Some(recovery), _) => format!("the log of replica {}", recovery.from),
            (None, Some(Origin::Kernel { kernel, at })) => {
                format!("the state {at} of kernel {kernel}")
            }
            (None, _) => "a state to be uploaded by `callboard kernel restore`".to_owned(),
        };
        let why = self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let why = why.map(|why| format!(": {why}")).unwrap_or_default();
        Some(format!("it waits for {what}{why}"))
    }

    /// Gives the group what it begins with, if this is its founder.
    pub(super) fn begin(&mut self) {
        let spec = &self.args.spec;
        if let (None, Some(Origin::Kernel { kernel, at })) = (&spec.recovery, &spec.origin) {
            let branch = Branch {
                context: self.args.context.clone(),
                group: self.group.clone(),
                owner: spec.owner.clone(),
                replica: self.args.replica,
                from: *kernel,
                at: at.clone(),
            };
            self.tasks.push(tokio::spawn(branch.run(self.trouble.clone())));
        }
        let Some(recovery) = spec.recovery.clone() else { return };
        let trouble = self.trouble.clone();
        let former = GroupId::of_kernel(spec.kernel, spec.generation.saturating_sub(1));
        let (context, group) = (self.args.context.clone(), self.group.clone());
        self.tasks.push(tokio::spawn(async move {
            while let Err(why) = adopt(&context, &group, &former, &recovery).await {
                tracing::warn!(group = %group.id(), %why, "the kernel cannot be recovered yet");
                *trouble.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
                tokio::time::sleep(RETRY).await;
            }
        }));
    }

    /// As the leader of a group that was made anew, tells the control plane once it is whole.
    /// Returns whether there is something to tell.
    pub(super) fn report_recovered(&mut self) -> bool {
        if self.args.spec.recovery.is_none() || self.is_beginning() {
            return false;
        }
        self.report(self.args.replica, MemberChange::Recovered);
        true
    }

    /// Says which generation of the kernel's group lives, so that members of an earlier one end.
    pub(super) fn tell_generation(&mut self) {
        let generation = self.args.spec.generation;
        let is_due = self.told_generation.is_none_or(|at| at.elapsed() >= GENERATION_EVERY);
        if generation == 0 || !is_due || !self.group.is_leader() || self.is_beginning() {
            return;
        }
        self.told_generation = Some(Instant::now());
        let context = self.args.context.clone();
        let kernel = self.args.spec.kernel;
        tokio::spawn(async move {
            let subject = Subject::actor(&context.cluster, ActorKind::Kernel, kernel, "generation");
            let bus = &*context.lanes.control;
            let told = typed::announce(bus, &subject, &Envelope::default(), &generation).await;
            if let Err(fault) = told {
                tracing::debug!(%fault, "the generation could not be told");
            }
        });
    }

    /// A group of the kernel is heard of. If it replaced this one, this replica ends at once; its
    /// node removes it when it learns the same.
    pub(super) fn heard_generation(&self, generation: u64) {
        if generation > self.args.spec.generation {
            tracing::warn!(
                kernel = %self.args.spec.kernel,
                "the kernel was recovered elsewhere: this member of its former group ends"
            );
            self.me.stop(None);
        }
    }

    /// Says that the group lives, if this replica leads a majority.
    pub(super) fn answer_alive(&self, message: &Message) {
        if !self.group.is_leader() {
            return;
        }
        let (group, publisher) = (self.group.clone(), self.publisher.clone());
        let (reply_to, replica) = (message.reply_to.clone(), self.args.replica);
        tokio::spawn(async move {
            let is_alive = group.read_barrier(BARRIER_WITHIN).await.is_ok();
            if let (true, Some(reply_to)) = (is_alive, reply_to) {
                publisher.answer(&reply_to, &callboard_protocol::Answer::Ok(replica));
            }
        });
    }

    /// Says what this member has, led or not.
    pub(super) fn answer_holdings(&self, message: &Message) {
        let metrics = self.group.metrics().borrow().clone();
        let unconfirmed =
            metrics.last_log.unwrap_or(0).saturating_sub(metrics.applied.unwrap_or(0));
        let named = self.read(Named::by_state);
        let chunks: Vec<ChunkId> =
            named.content.into_iter().chain(named.indexes).map(ChunkId::from).collect();
        let missing = self.args.context.chunks.missing(&self.args.spec.owner, &chunks);
        let holdings = self.read(|log| Holdings {
            accepted: log.accepted(),
            completed: log.completed(),
            unconfirmed,
            missing_chunks: missing.len() as u64,
        });
        self.answer_with(message, Ok(holdings));
    }
}

/// Puts what the former group's log on this disk comes to into the new group's log. Goes on where
/// an earlier life of this replica was.
async fn adopt(
    context: &Arc<NodeContext>,
    group: &Group<KernelMachine>,
    former: &GroupId,
    recovery: &Recovery,
) -> Result<(), String> {
    let held = || {
        let held = |machine: &KernelMachine| {
            let log = machine.log();
            log.begun_from().is_none().then(|| log.bytes_held())
        };
        group.read(held)
    };
    if held().is_none() {
        return Ok(());
    }
    let salvaged = context.replicator.salvage(former, KernelMachine::default()).await;
    let salvaged = salvaged.map_err(|error| error.to_string())?;
    let log = rmp_serde::to_vec(salvaged.machine.log()).map_err(|error| error.to_string())?;
    let (log, total) = (Bytes::from(log.clone()), log.len() as u64);
    tracing::info!(%former, last = ?salvaged.last_log, bytes = total, "a survivor's log is read");
    while let Some(offset) = held() {
        let at = usize::try_from(offset).unwrap_or(usize::MAX).min(log.len());
        let bytes = log.slice(at..log.len().min(at + PIECE_BYTES));
        let cause = recovery.cause.clone();
        let piece = Entry::Adopt { offset, bytes, total, cause };
        group.propose(piece).await.map_err(|error| error.to_string())?;
        if held().is_some_and(|now| now <= offset) {
            return Err("its pieces do not fit together; it is begun again".to_owned());
        }
    }
    Ok(())
}
