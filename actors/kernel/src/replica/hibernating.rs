//! An awake replica's part in its group's falling asleep: what keeps it awake, whom it asks.

use std::collections::BTreeSet;

use callboard_policy::hibernation::{Action, Input, Situation};
use callboard_protocol::{
    ActorKind, Envelope, ReplicaId, Subject,
    control::{NodeHealth, Standing},
    kernel::{SleepAnswer, SleepOffer},
};
use callboard_replicated::GroupMetrics;
use callboard_transport::{Message, typed};
use tokio::task::JoinHandle;

use super::{Internal, ReplicaState, tell};

/// Asks a member whether it may sleep.
pub(crate) const VERB_OFFER: &str = "offer_sleep";
/// Tells a member that agreed to sleep.
pub(crate) const VERB_SLEEP: &str = "sleep";

impl ReplicaState {
    /// The kernel is in use: it stays awake for a while.
    pub(super) fn active(&mut self) {
        self.hibernate(Input::Active);
    }

    /// Lets the machine decide, and carries out what needs no answer to somebody.
    pub(super) fn hibernate(&mut self, input: Input) -> Option<Action> {
        let now_ms = self.now_ms();
        // What the replica sees of itself costs a little, and most inputs only move a clock.
        let seen = match &input {
            Input::Active => Situation::unknown(),
            Input::Look if !self.hibernation.may_look(now_ms) => return None,
            _ => self.situation(),
        };
        match self.hibernation.step(input, &seen, now_ms)? {
            Action::Ask(offer, others) => self.ask_to_sleep(&offer, others),
            Action::Sleep(offer, others) => {
                self.sleep_due = Some((offer, others.into_iter().collect()));
            }
            answer @ Action::Answer(_) => return Some(answer),
        }
        None
    }

    /// A message on this replica's own subjects.
    pub(super) fn own_bus(&mut self, message: &Message) {
        match message.subject.last() {
            VERB_OFFER => match typed::decode::<SleepOffer>(message) {
                Ok(offer) => {
                    if let Some(Action::Answer(refusal)) = self.hibernate(Input::Asked(offer)) {
                        let refusal = refusal.map(str::to_owned);
                        self.answer_with(message, Ok(SleepAnswer { refusal }));
                    }
                }
                Err(fault) => self.refuse(message, fault),
            },
            VERB_SLEEP => match typed::decode::<SleepOffer>(message) {
                Ok(offer) => drop(self.hibernate(Input::Told(offer))),
                Err(fault) => tracing::debug!(%fault, "a word to sleep could not be read"),
            },
            _ => {
                self.active();
                self.answer_readiness(message);
            }
        }
    }

    fn ask_to_sleep(&mut self, offer: &SleepOffer, others: BTreeSet<ReplicaId>) {
        let context = &self.args.context;
        let within = std::time::Duration::from_millis(context.hibernation.agree_within_ms);
        for from in others {
            let id = format!("{}-{from}", self.args.spec.kernel);
            let subject = Subject::actor(&context.cluster, ActorKind::Replica, id, VERB_OFFER);
            let (bus, me, offer) = (context.lanes.control.clone(), self.me.clone(), offer.clone());
            self.tasks.push(tokio::spawn(async move {
                let envelope = Envelope::default();
                let answer: Result<SleepAnswer, _> =
                    typed::ask(&*bus, &subject, &envelope, &offer, within).await;
                let refusal = match answer {
                    Ok(SleepAnswer { refusal }) => refusal,
                    Err(fault) => Some(fault.to_string()),
                };
                if let Some(why) = &refusal {
                    tracing::debug!(%subject, why, "a member stays awake");
                }
                let (attempt, agreed) = (offer.attempt, refusal.is_none());
                tell(&me, Internal::SleepAnswered { attempt, from, agreed });
            }));
        }
    }

    fn situation(&self) -> Situation {
        let metrics = self.group.metrics().borrow().clone();
        let me = self.args.replica;
        Situation {
            leading: self.group.is_leader(),
            term: metrics.term,
            index: metrics.applied.filter(|_| metrics.applied == metrics.last_log),
            others: metrics.members.voters.keys().copied().filter(|id| *id != me).collect(),
            spec_version: self.args.spec.version,
            busy: self.busy(&metrics),
        }
    }

    /// What keeps it awake, for people.
    fn busy(&self, metrics: &GroupMetrics) -> Option<&'static str> {
        let is_spreading =
            self.spreading.as_ref().is_some_and(|task| !JoinHandle::is_finished(task));
        if self.cell.is_some() || !self.lingering.is_empty() || is_spreading {
            return Some("a cell runs or is being stored");
        }
        if !self.held_replies.is_empty() || !self.askers.is_empty() {
            return Some("somebody waits for an answer");
        }
        if !self.chunks_complete {
            return Some("parts of its state are still being fetched");
        }
        if self.changing_members || !self.is_settled(metrics) {
            return Some("its members are changing");
        }
        if self.is_someone_unwell(metrics) {
            return Some("a member is not heard or lags behind");
        }
        self.read(|log| self.executor.unrest(log))
    }

    /// Whether the group's members are those of the entry, all of them voters.
    fn is_settled(&self, metrics: &GroupMetrics) -> bool {
        let (spec, members) = (&self.args.spec, &metrics.members);
        let is_still = |standing| !matches!(standing, Standing::Joiner | Standing::Leaver);
        members.learners.is_empty()
            && spec.replicas.values().all(|member| is_still(member.standing))
            && members.voters.keys().eq(spec.replicas.keys())
    }

    fn is_someone_unwell(&self, metrics: &GroupMetrics) -> bool {
        let nodes = self.args.context.nodes.borrow();
        let is_unheard =
            |node| nodes.nodes.get(node).is_some_and(|view| view.health != NodeHealth::Up);
        let lags = |id: &ReplicaId| {
            let matched = metrics.matched.get(id).copied().flatten();
            *id != self.args.replica && matched != metrics.last_log
        };
        nodes.outage.is_some()
            || metrics.members.voters.values().any(is_unheard)
            || (self.group.is_leader() && metrics.members.voters.keys().any(lags))
    }
}
