//! A replica that sleeps: what it holds, what it answers, and what it wakes for.
//!
//! Owns: the feeds of the mailbox, a live Python process if there is one, and a summary. Never: a
//! machine, a log, a timer.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use callboard_policy::hibernation::{Sleeping, wake_delay_ms};
use callboard_protocol::{
    Answer, NodeId, ReplicaId,
    control::NodeHealth,
    kernel::{KernelStatus, ReplicaRole, Seen, SeenAnswer},
};
use callboard_replicated::Dormant;
use callboard_transport::{Message, typed};
use serde::{Deserialize, Serialize};

use super::{
    Internal,
    starting::{Kept, Tasks},
    tell,
};
use crate::{NodeContext, requests};

/// What is known of a kernel while it sleeps; part of the note on disk, as MessagePack with names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Summary {
    pub(super) leader: ReplicaId,
    pub(super) executor: Option<ReplicaId>,
    pub(super) voters: BTreeMap<ReplicaId, NodeId>,
    pub(super) spec_version: u64,
    pub(super) status: KernelStatus,
    /// Hashes of the chunks its log names: none of them may go while it sleeps.
    pub(super) chunks: Vec<Bytes>,
}

impl Summary {
    pub(super) fn encode(&self) -> Bytes {
        // Writing plain data to memory cannot fail.
        rmp_serde::to_vec_named(self).unwrap_or_default().into()
    }

    /// `None` if another version wrote it; the replica is opened then.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        rmp_serde::from_slice(bytes).ok()
    }

    pub(super) fn sleeping(&self, me: ReplicaId) -> Sleeping {
        let voters = self.voters.clone();
        Sleeping { me, leader: self.leader, executor: self.executor, voters }
    }
}

/// Counts a replica among its node's sleepers for as long as it lives.
#[derive(Debug)]
pub(super) struct AsleepMark {
    context: Arc<NodeContext>,
    share: u64,
}

impl AsleepMark {
    pub(super) fn set(context: Arc<NodeContext>, share: u64) -> Self {
        context.stats.asleep.fetch_add(1, Ordering::Relaxed);
        context.stats.asleep_digest.fetch_xor(share, Ordering::Relaxed);
        Self { context, share }
    }
}

impl Drop for AsleepMark {
    fn drop(&mut self) {
        self.context.stats.asleep.fetch_sub(1, Ordering::Relaxed);
        self.context.stats.asleep_digest.fetch_xor(self.share, Ordering::Relaxed);
    }
}

/// A replica that sleeps.
#[derive(Debug)]
pub struct Sleeper {
    pub(super) kept: Kept,
    pub(super) sleeping: Sleeping,
    pub(super) dormant: Dormant,
    /// Whether it waits its turn to wake for a lost executor.
    pub(super) is_waking: bool,
    /// Wakes it so that its kernel can be parked.
    pub(super) alarm: Tasks,
    pub(super) _mark: AsleepMark,
}

/// What a message means to a sleeper.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Heard {
    /// It sleeps on.
    Nothing,
    /// It wakes and handles the message; why, for people.
    Call(&'static str),
}

impl Sleeper {
    pub(super) fn hear(&mut self, internal: &Internal) -> Heard {
        match internal {
            Internal::Bus(message) if requests::is_show(message) => self.answer_show(message),
            Internal::Bus(message) if requests::is_seen(message) => self.seen(message),
            Internal::Bus(message) if requests::is_generation(message) => self.generation(message),
            Internal::Bus(_) => Heard::Call("a request"),
            Internal::OwnBus(message) if requests::is_about_sleep(message) => Heard::Nothing,
            Internal::OwnBus(_) => Heard::Call("a question of the group's leader"),
            Internal::ParkDue => Heard::Call("it is to be parked soon"),
            Internal::Called => Heard::Call("a message of another member"),
            Internal::Python(life, _) if *life == self.kept.python_life => {
                Heard::Call("its Python process")
            }
            // What was applied as it fell asleep.
            Internal::Group(_) => Heard::Call("an entry of the log"),
            Internal::Nodes => self.nodes_changed(),
            Internal::WakeDue => {
                self.is_waking = false;
                let nodes = self.kept.args.context.nodes.borrow();
                if self.sleeping.has_lost_its_executor(&nodes) {
                    Heard::Call("the node of its executor is silent")
                } else {
                    Heard::Nothing
                }
            }
            // Left over from when it was awake.
            Internal::NeedsNoted(_)
            | Internal::Python(..)
            | Internal::Proposed(..)
            | Internal::Packed(..)
            | Internal::Stored(..)
            | Internal::OutputsStored(..)
            | Internal::BaseReadable(..)
            | Internal::RestoreRead(..)
            | Internal::Membership
            | Internal::MembershipChanged
            | Internal::SleepAnswered { .. }
            | Internal::StartPython
            | Internal::Flush
            | Internal::Tick => Heard::Nothing,
        }
    }

    /// Wakes to end if another group has replaced its own.
    fn generation(&self, message: &Message) -> Heard {
        let told = typed::decode::<u64>(message).unwrap_or_default();
        if told > self.kept.args.spec.generation {
            Heard::Call("another group of the kernel")
        } else {
            Heard::Nothing
        }
    }

    /// Prepares to wake if the executor's node is silent: not at once, since many groups may have
    /// lost theirs with the same node.
    pub(super) fn nodes_changed(&mut self) -> Heard {
        let context = &self.kept.args.context;
        let is_lost = self.sleeping.has_lost_its_executor(&context.nodes.borrow());
        if is_lost && !self.is_waking {
            self.is_waking = true;
            let me = self.kept.me.clone();
            let delay_ms = wake_delay_ms(self.kept.args.spec.kernel, &context.hibernation);
            self.alarm.push(tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(delay_ms)).await;
                tell(&me, Internal::WakeDue);
            }));
        }
        Heard::Nothing
    }

    /// An executor that sleeps still wants its kernel parked in time, and a warning of that before.
    pub(super) fn wake_to_park(&mut self, wakes_in_ms: Option<u64>) {
        let Some(delay_ms) = wakes_in_ms else { return };
        let me = self.kept.me.clone();
        self.alarm.push(tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(delay_ms)).await;
            tell(&me, Internal::ParkDue);
        }));
    }

    /// Answers from the summary, if it is this replica's turn.
    /// Notes how far a session is, or says how far it was.
    fn seen(&self, message: &Message) -> Heard {
        let (context, kernel) = (&self.kept.args.context, self.kept.args.spec.kernel);
        match typed::decode::<Seen>(message) {
            Ok(Seen { session, place: Some(place) }) => {
                context.cursors.note(kernel, session, place);
            }
            Ok(Seen { session, place: None }) => {
                let answers = self.sleeping.answers(&context.nodes.borrow());
                if let Some(reply_to) = message.reply_to.as_ref().filter(|_| answers) {
                    let place = context.cursors.of(kernel, &session);
                    let answer = SeenAnswer { place, last: None };
                    self.kept.publisher.answer(reply_to, &Answer::Ok(answer));
                }
            }
            Err(_) => {}
        }
        Heard::Nothing
    }

    fn answer_show(&self, message: &Message) -> Heard {
        let nodes = self.kept.args.context.nodes.borrow();
        if !self.sleeping.answers(&nodes) {
            return Heard::Nothing;
        }
        let Some(Summary { mut status, .. }) = Summary::decode(&self.dormant.note().summary) else {
            return Heard::Call("a look at a kernel without a summary");
        };
        for replica in &mut status.replicas {
            let view = nodes.nodes.get(&replica.node);
            if view.is_some_and(|view| view.health != NodeHealth::Up) {
                replica.role = ReplicaRole::Unreachable;
            }
        }
        let voters = self.sleeping.voters.len() as u64;
        let well = status.replicas.iter().filter(|it| it.role != ReplicaRole::Unreachable).count();
        status.losses_survivable = (well as u64).saturating_sub(voters / 2 + 1);
        if let Some(reply_to) = &message.reply_to {
            self.kept.publisher.answer(reply_to, &Answer::Ok(status));
        }
        Heard::Nothing
    }
}

#[cfg(test)]
mod tests {
    use callboard_protocol::{Seq, kernel::KernelPhase};

    use super::*;

    #[test]
    fn a_summary_is_read_back_and_what_is_none_is_refused() {
        let status = KernelStatus {
            term: None,
            accepted: Seq(3),
            ended: Seq(3),
            queue_depth: 0,
            replicas: Vec::new(),
            raft_leader: Some(ReplicaId(2)),
            losses_survivable: 1,
            names: vec!["x".to_owned()],
            refused: Vec::new(),
            state_bytes: 9,
            last_loss: None,
            waits_for: None,
            files: Vec::new(),
            limits: callboard_protocol::control::KernelLimits::default(),
            unenforced: Vec::new(),
            phase: KernelPhase::Hibernating,
        };
        let voters = [(ReplicaId(2), NodeId::new("node-2").unwrap())].into();
        let (leader, executor, spec_version) = (ReplicaId(2), Some(ReplicaId(2)), 7);
        let chunks = vec![Bytes::from_static(&[7; 32])];
        let summary = Summary { leader, executor, voters, spec_version, status, chunks };
        assert_eq!(Summary::decode(&summary.encode()), Some(summary));
        assert_eq!(Summary::decode(b""), None);
        assert_eq!(Summary::decode(b"of another version"), None);
    }
}
