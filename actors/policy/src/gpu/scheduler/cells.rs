//! Kernels and their cells: from the queue to GPUs and back.

use callboard_protocol::KernelId;

use super::{Binding, Effect, Phase, Queued, Scheduler, Session, Submitted};
use crate::gpu::{
    autoscaling::Lacking,
    costs::Start,
    decision::Reasons,
    fleet::{NodeState, Slot},
    placement::MemberRequest,
    queueing::{QueueView, Waiting},
};

/// A cell that can have GPUs: where, how it starts there, which member it replaces, and why.
struct Fit {
    slot: Slot,
    start: Start,
    moved: Option<Slot>,
    reasons: Reasons,
}

impl Scheduler {
    pub(super) fn open(&mut self, kernel: KernelId, session: Session, effects: &mut Vec<Effect>) {
        self.subscribed += u64::from(session.gpus);
        self.sessions.insert(kernel, session);
        let missing = self.place_members(kernel);
        self.boot(missing, effects);
    }

    /// Places the members that a kernel lacks, and says how many nodes that takes which there are not.
    pub(super) fn place_members(&mut self, kernel: KernelId) -> u32 {
        let Some(session) = self.sessions.get_mut(&kernel) else { return 0 };
        let lacking = self.policies.replicas.saturating_sub(session.members.len());
        if lacking == 0 {
            return 0;
        }
        let request = MemberRequest {
            gpus: session.gpus,
            vram_mib: session.vram_mib,
            count: lacking,
            present: session.present(),
        };
        let places = self.policies.placement.place(&self.fleet, &request);
        for slot in &places.slots {
            session.members.push(*slot);
            self.fleet.subscribe(*slot, session.gpus);
            self.members_on.entry(*slot).or_default().insert(kernel);
        }
        u32::try_from(lacking - places.slots.len()).unwrap_or(u32::MAX)
    }

    pub(super) fn close(&mut self, kernel: KernelId) {
        self.queue.retain(|it| it.cell.kernel != kernel);
        let Some(session) = self.sessions.remove(&kernel) else { return };
        self.subscribed -= u64::from(session.gpus);
        for slot in &session.members {
            self.forget_member(kernel, *slot, session.gpus);
        }
        for (_, to) in &session.moving {
            self.fleet.unsubscribe(*to, session.gpus);
        }
        let holds_at = match session.phase {
            Phase::Running(slot) | Phase::Clearing(slot) => Some(slot),
            _ => session.bound,
        };
        if let Some(slot) = holds_at {
            self.give(slot, session.owner, session.held);
        }
        self.open_kept(kernel);
    }

    pub(super) fn forget_member(&mut self, kernel: KernelId, slot: Slot, gpus: u32) {
        self.fleet.unsubscribe(slot, gpus);
        if let Some(kernels) = self.members_on.get_mut(&slot) {
            kernels.remove(&kernel);
        }
    }

    pub(super) fn submitted(
        &mut self,
        kernel: KernelId,
        cell: Submitted,
        effects: &mut Vec<Effect>,
    ) {
        let widest = self.fleet.widest().max(self.shape.gpus);
        if cell.gpus > widest {
            let why = format!(
                "no node has {} GPUs, or could have: the largest has {widest}; ask for fewer, or add \
                 a larger node",
                cell.gpus
            );
            effects.push(Effect::Refuse { kernel, why });
            return;
        }
        let Some(session) = self.sessions.get_mut(&kernel) else { return };
        match session.phase {
            Phase::Idle => {
                if session.has_run {
                    let pause_ms = cell.at_ms - session.since_ms;
                    session.pauses.note_own(pause_ms);
                    self.pauses.note(pause_ms, POPULATION_KEPT);
                }
                self.enqueue(kernel, cell);
            }
            Phase::Clearing(_) => session.next = Some(cell),
            Phase::Waiting | Phase::Running(_) => {}
        }
    }

    fn enqueue(&mut self, kernel: KernelId, cell: Submitted) {
        let Some(session) = self.sessions.get_mut(&kernel) else { return };
        session.phase = Phase::Waiting;
        session.cell_gpus = match self.policies.binding {
            Binding::Cell => cell.gpus,
            Binding::Session { .. } => session.gpus,
        };
        let cell = Waiting {
            kernel,
            owner: session.owner,
            gpus: session.cell_gpus,
            since_ms: cell.at_ms,
            priority: cell.priority,
            deadline_ms: cell.deadline_ms,
        };
        self.queue.push(Queued { cell, not_before_ms: 0, attempts: 0, is_heard: false });
    }

    pub(super) fn ended(&mut self, now_ms: u64, kernel: KernelId) {
        let Some(session) = self.sessions.get_mut(&kernel) else { return };
        let Phase::Running(slot) = session.phase else { return };
        let took_ms = now_ms - session.since_ms;
        session.cells.note_own(took_ms);
        self.cells.note(took_ms, POPULATION_KEPT);
        session.since_ms = now_ms;
        session.has_run = true;
        session.phase = match self.policies.binding {
            Binding::Cell => Phase::Clearing(slot),
            Binding::Session { .. } => Phase::Idle,
        };
    }

    pub(super) fn released(&mut self, kernel: KernelId) {
        let Some(session) = self.sessions.get_mut(&kernel) else { return };
        let Phase::Clearing(slot) = session.phase else { return };
        session.phase = Phase::Idle;
        let (owner, held, next) = (session.owner, session.held, session.next.take());
        session.held = 0;
        self.give(slot, owner, held);
        if let Some(cell) = next {
            self.enqueue(kernel, cell);
        }
    }

    pub(super) fn give(&mut self, slot: Slot, owner: u64, gpus: u32) {
        self.fleet.release(slot, gpus);
        if let Some(held) = self.held_by.get_mut(&owner) {
            *held = held.saturating_sub(u64::from(gpus));
            if *held == 0 {
                self.held_by.remove(&owner);
            }
        }
    }

    /// Gives GPUs to the cells that wait, as far as there are any, and asks for nodes if there are not.
    pub(super) fn dispatch(&mut self, now_ms: u64, effects: &mut Vec<Effect>) {
        if self.queue.is_empty() {
            return;
        }
        let mut order: Vec<Waiting> = self
            .queue
            .iter()
            .filter(|it| it.not_before_ms <= now_ms)
            .map(|it| it.cell.clone())
            .collect();
        let held_by = &self.held_by;
        let view =
            QueueView { now_ms, held_by: &|owner| held_by.get(&owner).copied().unwrap_or(0) };
        self.policies.queueing.order(&view, &mut order);
        for cell in order {
            if self.try_grant(now_ms, &cell, effects) {
                self.queue.retain(|it| it.cell.kernel != cell.kernel);
            } else if self.policies.queueing.is_strict() {
                break;
            }
        }
        self.ask_for_nodes(now_ms, effects);
    }

    fn try_grant(&mut self, now_ms: u64, cell: &Waiting, effects: &mut Vec<Effect>) -> bool {
        let kernel = cell.kernel;
        let Some(session) = self.sessions.get(&kernel) else { return true };
        if session.members.len() < self.policies.replicas {
            return false;
        }
        if let Some(slot) = session.bound {
            let reasons = Reasons::on(self.fleet.version());
            self.run(
                now_ms,
                kernel,
                Fit { slot, start: Start::Resident, moved: None, reasons },
                effects,
            );
            return true;
        }
        self.open_kept(kernel);
        let Some(fit) = self.fit(kernel) else {
            self.keep_if_overdue(now_ms, cell, effects);
            return false;
        };
        let Some(session) = self.sessions.get_mut(&kernel) else { return true };
        if !self.fleet.hold(fit.slot, session.cell_gpus) {
            return false;
        }
        session.held = session.cell_gpus;
        *self.held_by.entry(session.owner).or_default() += u64::from(session.held);
        self.run(now_ms, kernel, fit, effects);
        true
    }

    fn fit(&mut self, kernel: KernelId) -> Option<Fit> {
        let want = self.sessions.get(&kernel)?.want();
        let choice = self.policies.executor.choose(&self.fleet, &want);
        if let Some((slot, start)) = choice.chosen {
            return Some(Fit { slot, start, moved: None, reasons: choice.reasons });
        }
        let migration = self.policies.migration.as_mut()?;
        let to = migration.choice.choose(&self.fleet, &want);
        let (slot, start) = (to.to?, migration.start);
        Some(Fit { slot, start, moved: to.from, reasons: to.reasons })
    }

    fn run(&mut self, now_ms: u64, kernel: KernelId, fit: Fit, effects: &mut Vec<Effect>) {
        let Fit { slot, start, moved, reasons } = fit;
        let binding = self.policies.binding;
        let Some(session) = self.sessions.get_mut(&kernel) else { return };
        session.phase = Phase::Running(slot);
        session.executor = Some(slot);
        // The cell changes the session; a copy of what it was is worth nothing.
        session.copy = None;
        session.since_ms = now_ms;
        if matches!(binding, Binding::Session { .. }) {
            session.bound = Some(slot);
        }
        let (gpus, held) = (session.gpus, session.held);
        if let Some(from) = moved {
            session.members.retain(|it| *it != from);
            session.members.push(slot);
            self.forget_member(kernel, from, gpus);
            self.fleet.subscribe(slot, gpus);
            self.members_on.entry(slot).or_default().insert(kernel);
        }
        effects.push(Effect::Grant { kernel, slot, gpus: held, start, reasons });
    }

    /// A cell that has waited past its bound gets the node that will have room first.
    fn keep_if_overdue(&mut self, now_ms: u64, cell: &Waiting, effects: &mut Vec<Effect>) {
        let Some(bound_ms) = self.policies.queueing.bound_ms() else { return };
        let overdue_at_ms = cell.since_ms + bound_ms;
        if now_ms < overdue_at_ms {
            self.wake_at(overdue_at_ms, effects);
            return;
        }
        let fits = self.fleet.iter().filter(|(_, node)| {
            node.state == NodeState::Open
                && node.usable() >= cell.gpus
                && node.shape.vram_mib
                    >= self.sessions.get(&cell.kernel).map_or(0, |it| it.vram_mib)
        });
        let most = fits.max_by_key(|(slot, node)| (node.free, std::cmp::Reverse(*slot)));
        if let Some(slot) = most.map(|(slot, _)| slot) {
            self.fleet.set_state(slot, NodeState::Kept(cell.kernel));
            self.kept.insert(cell.kernel, slot);
        }
    }

    /// Opens the node that was kept for a kernel's cell.
    fn open_kept(&mut self, kernel: KernelId) {
        if let Some(slot) = self.kept.remove(&kernel) {
            self.fleet.set_state(slot, NodeState::Open);
        }
    }

    /// Tells the autoscaler of cells for which there is no room, and sets when they are looked at
    /// again where that is not whenever something is free.
    fn ask_for_nodes(&mut self, now_ms: u64, effects: &mut Vec<Effect>) {
        let patience_ms = self.policies.scaling.patience_ms();
        let backoff = self.policies.migration.as_ref().and_then(|it| it.backoff);
        let (mut unheard, mut waiting, mut wake_at_ms) = (0, Vec::new(), u64::MAX);
        for queued in &mut self.queue {
            if queued.not_before_ms > now_ms {
                wake_at_ms = wake_at_ms.min(queued.not_before_ms);
                continue;
            }
            let heard_at_ms = queued.cell.since_ms + patience_ms;
            if heard_at_ms > now_ms {
                wake_at_ms = wake_at_ms.min(heard_at_ms);
                continue;
            }
            waiting.push(queued.cell.clone());
            unheard += u32::from(!queued.is_heard);
            queued.is_heard = true;
            let is_placed = self
                .sessions
                .get(&queued.cell.kernel)
                .is_some_and(|it| it.members.len() >= self.policies.replicas);
            if let (Some(backoff), true) = (backoff, is_placed) {
                let wait_ms = backoff.first_ms * backoff.factor.powi(queued.attempts as i32);
                queued.attempts += 1;
                queued.not_before_ms = now_ms + wait_ms.min(backoff.max_ms) as u64;
                wake_at_ms = wake_at_ms.min(queued.not_before_ms);
            }
        }
        if wake_at_ms != u64::MAX {
            self.wake_at(wake_at_ms, effects);
        }
        if waiting.is_empty() {
            return;
        }
        let lacking = Lacking {
            waiting: &waiting,
            unheard,
            booting: u32::try_from(self.booting.len()).unwrap_or(u32::MAX),
            shape: self.shape,
        };
        let add = self.policies.scaling.on_waiting(&lacking);
        self.boot(add, effects);
    }

    /// Asks to be woken, unless it will be earlier.
    fn wake_at(&mut self, at_ms: u64, effects: &mut Vec<Effect>) {
        if self.woken_at_ms == 0 || at_ms < self.woken_at_ms {
            self.woken_at_ms = at_ms;
            effects.push(Effect::WakeAt { at_ms });
        }
    }
}

/// What is left of the population's counts after one more observation: the last few thousand cells.
const POPULATION_KEPT: f64 = 0.9995;
