//! Awake or asleep: what the replica's actor holds, and the way from one to the other.

use std::{collections::BTreeSet, sync::Arc};

use anyhow::Context as _;
use bytes::Bytes;
use callboard_protocol::{
    ActorKind, Envelope, ReplicaId, Subject,
    kernel::{KernelPhase, SleepOffer},
};
use callboard_replicated::{ChunkId, Dormant, GroupOptions};
use callboard_transport::typed;
use ractor::ActorRef;

use super::{
    Internal, ReplicaMsg, ReplicaState,
    asleep::{AsleepMark, Heard, Sleeper, Summary},
    starting::{Kept, Tasks},
    tell,
};
use crate::{KernelMachine, ReplicaArgs};

/// A replica.
#[derive(Debug)]
pub enum Life {
    /// Its Raft runs.
    Awake(Box<ReplicaState>),
    /// Its Raft does not run.
    Asleep(Box<Sleeper>),
    /// It is on its way from one to the other, or has ended.
    Between,
}

impl Life {
    /// Starts asleep if it fell asleep in an earlier life of the node and nothing has changed.
    pub(super) async fn start(me: ActorRef<ReplicaMsg>, args: ReplicaArgs) -> anyhow::Result<Self> {
        let context = args.context.clone();
        if context.hibernation.after_ms > 0 {
            let group = args.spec.group();
            let called = called(&me);
            let dozing = context.replicator.doze(group, args.replica, called).await?;
            if let Some(dormant) = dozing
                && let Some(summary) = Summary::decode(&dormant.note().summary)
                && summary.spec_version == args.spec.version
            {
                pin(&args, &summary);
                let kept = Kept::subscribe(me, args).await?;
                return Ok(Self::Asleep(Box::new(Sleeper::new(kept, summary, dormant))));
            }
        }
        Ok(Self::Awake(Box::new(ReplicaState::start(me, args).await?)))
    }

    /// Takes a message in; wakes first if it has to, sleeps afterwards if it may.
    pub(super) async fn take(&mut self, internal: Internal) -> anyhow::Result<()> {
        if let Self::Asleep(sleeper) = self {
            match sleeper.hear(&internal) {
                Heard::Nothing => return Ok(()),
                Heard::Call(why) => {
                    // Whoever called stands for election already.
                    let stands = !matches!(internal, Internal::Called);
                    self.wake(why, stands).await?;
                }
            }
        }
        if let Self::Awake(state) = self {
            // A snapshot that finds no room ends Raft for this group: it begins anew.
            let has_ended = !state.group.metrics().borrow().running;
            if matches!(internal, Internal::Tick) && has_ended {
                anyhow::bail!("its Raft stopped; it is opened again from its log");
            }
            state.internal(internal);
            // One that cannot say what it names stays awake, or all of its chunks' owner would stay.
            if let Some((offer, others)) = state.sleep_due.take()
                && let Some(named) = state.chunk_keeper.freeze()
            {
                self.fall_asleep(&offer, others, &named).await;
            }
        }
        Ok(())
    }

    /// The kernel's entry changed.
    pub(super) async fn spec_changed(
        &mut self,
        spec: callboard_protocol::control::KernelSpec,
    ) -> anyhow::Result<()> {
        if let Self::Asleep(sleeper) = self
            && spec.version > sleeper.kept.args.spec.version
        {
            self.wake("its entry in the desired state changed", true).await?;
        }
        if let Self::Awake(state) = self {
            state.spec_changed(spec);
        }
        Ok(())
    }

    pub(super) fn kill_python(&self) {
        let python = match self {
            Self::Awake(state) => state.python.as_ref(),
            Self::Asleep(sleeper) => sleeper.kept.python.as_ref(),
            Self::Between => None,
        };
        if let Some(python) = python {
            python.kill();
        }
    }

    pub(super) async fn stop(&mut self, purge: bool) {
        match std::mem::replace(self, Self::Between) {
            Self::Awake(mut state) => state.stop(purge).await,
            Self::Asleep(sleeper) => {
                let Sleeper { dormant, kept, .. } = *sleeper;
                drop(kept);
                if purge && let Err(error) = dormant.remove().await {
                    tracing::warn!(%error, "a member's log could not be removed");
                }
            }
            Self::Between => {}
        }
    }

    /// Opens the group. The last leader stands for election at once, if `stands`.
    async fn wake(&mut self, why: &'static str, stands: bool) -> anyhow::Result<()> {
        let Self::Asleep(sleeper) = std::mem::replace(self, Self::Between) else { return Ok(()) };
        let Sleeper { kept, sleeping, dormant, .. } = *sleeper;
        let kernel = kept.args.spec.kernel;
        tracing::debug!(%kernel, replica = %kept.args.replica, why, "waking");
        let is_first = stands && sleeping.leader == kept.args.replica;
        let options = GroupOptions::new(KernelMachine::default());
        let (group, events) = dormant
            .wake(options)
            .await
            .with_context(|| format!("kernel {kernel} cannot wake on this node"))?;
        if is_first {
            // Nobody leads, and whoever led last is as good as any other.
            group.trigger_elect().await;
        }
        let mut state = ReplicaState::awake(kept, group, events);
        // Nothing that was proposed before can still arrive.
        state.executor.make_due();
        *self = Self::Awake(Box::new(state));
        Ok(())
    }

    /// Stops Raft, then tells the `others` that it is their turn.
    async fn fall_asleep(
        &mut self,
        offer: &SleepOffer,
        others: Vec<ReplicaId>,
        named: &BTreeSet<ChunkId>,
    ) {
        let Self::Awake(state) = std::mem::replace(self, Self::Between) else { return };
        let summary = state.summary(offer, named);
        let wakes_in_ms = state.wakes_in_ms();
        let (kept, group) = state.part();
        let closed = group.close().await;
        if !others.is_empty() {
            tell_to_sleep(&kept.args, offer, others).await;
        }
        let is_whole = closed.is_whole();
        let dormant: Dormant = closed.sleep(summary.encode(), called(&kept.me)).await;
        if !is_whole {
            // Something came at the last moment.
            tell(&kept.me, Internal::Called);
        }
        tracing::debug!(kernel = %kept.args.spec.kernel, replica = %kept.args.replica, "asleep");
        let mut sleeper = Sleeper::new(kept, summary, dormant);
        sleeper.wake_to_park(wakes_in_ms);
        *self = Self::Asleep(Box::new(sleeper));
    }
}

/// Pins what a replica named when it fell asleep in an earlier life of the node.
fn pin(args: &ReplicaArgs, summary: &Summary) {
    let hashes = summary.chunks.iter().filter_map(|hash| <[u8; 32]>::try_from(&hash[..]).ok());
    let holder = (args.spec.group(), args.replica);
    let named = hashes.map(ChunkId::from).collect();
    args.context.pins.freeze_as(holder, args.spec.owner.clone(), named);
}

/// A Raft message asks for a sleeping replica.
fn called(me: &ActorRef<ReplicaMsg>) -> impl FnOnce() + Send + 'static {
    let me = me.clone();
    move || tell(&me, Internal::Called)
}

async fn tell_to_sleep(args: &ReplicaArgs, offer: &SleepOffer, others: Vec<ReplicaId>) {
    let context = &args.context;
    for other in others {
        let id = format!("{}-{other}", args.spec.kernel);
        let subject = Subject::actor(&context.cluster, ActorKind::Replica, id, "sleep");
        let envelope = Envelope::default();
        let told = typed::announce(&*context.lanes.control, &subject, &envelope, offer).await;
        if let Err(fault) = told {
            tracing::debug!(%fault, "a member was not told to sleep and will wake the others");
        }
    }
}

impl ReplicaState {
    /// What is to be known of the kernel while it sleeps. All members have the same log here.
    fn summary(&self, offer: &SleepOffer, named: &BTreeSet<ChunkId>) -> Summary {
        let mut status = self.status();
        status.phase = KernelPhase::Hibernating;
        status.raft_leader = Some(offer.from);
        for replica in &mut status.replicas {
            replica.lag_entries = Some(0);
        }
        Summary {
            leader: offer.from,
            executor: self.read(|log| log.open_term().map(|open| open.replica)),
            voters: self.group.members().voters,
            spec_version: self.args.spec.version,
            status,
            chunks: named.iter().map(|id| Bytes::copy_from_slice(id.as_bytes())).collect(),
        }
    }
}

impl Sleeper {
    pub(super) fn new(kept: Kept, summary: Summary, dormant: Dormant) -> Self {
        let args = &kept.args;
        let note = dormant.note();
        let mark = AsleepMark::set(
            Arc::clone(&args.context),
            callboard_policy::hibernation::digest_share(
                args.spec.kernel,
                args.replica,
                note.index,
                note.term,
            ),
        );
        let sleeping = summary.sleeping(args.replica);
        let mut sleeper = Self {
            kept,
            sleeping,
            dormant,
            is_waking: false,
            alarm: Tasks::default(),
            _mark: mark,
        };
        sleeper.nodes_changed();
        sleeper
    }
}
