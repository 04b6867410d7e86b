//! Nodes: asked for, up, closed, emptied, given back, lost.

use callboard_protocol::KernelId;

use super::{Binding, Effect, Phase, Scheduler, growth::Known, session::Copy};
use crate::gpu::{
    autoscaling::ScaleView,
    fleet::{NodeShape, NodeState, Slot},
    placement::MemberRequest,
    queueing::Waiting,
};

impl Scheduler {
    /// Asks for nodes.
    pub(super) fn boot(&mut self, count: u32, effects: &mut Vec<Effect>) {
        for _ in 0..count {
            let slot = Slot(self.next_slot);
            self.next_slot += 1;
            self.booting.insert(slot);
            effects.push(Effect::Boot { slot });
        }
    }

    pub(super) fn node_up(&mut self, now_ms: u64, slot: Slot, shape: NodeShape) {
        self.booting.remove(&slot);
        self.next_slot = self.next_slot.max(slot.0 + 1);
        self.fleet.add(slot, shape, now_ms);
        let lacking: Vec<KernelId> = self
            .sessions
            .iter()
            .filter(|(_, it)| it.members.len() < self.policies.replicas)
            .map(|(kernel, _)| *kernel)
            .collect();
        for kernel in lacking {
            self.place_members(kernel);
        }
    }

    pub(super) fn node_lost(&mut self, slot: Slot, effects: &mut Vec<Effect>) {
        self.booting.remove(&slot);
        if self.fleet.remove(slot).is_none() {
            return;
        }
        for kernel in self.members_on.remove(&slot).unwrap_or_default() {
            if let Some(session) = self.sessions.get_mut(&kernel) {
                session.members.retain(|it| *it != slot);
            }
            let missing = self.place_members(kernel);
            self.boot(missing, effects);
        }
        let mut freed = Vec::new();
        for (kernel, session) in &mut self.sessions {
            let was_running = match session.phase {
                Phase::Running(at) if at == slot => true,
                Phase::Clearing(at) if at == slot => false,
                _ if session.bound == Some(slot) => false,
                _ => continue,
            };
            session.phase = Phase::Idle;
            session.bound = None;
            session.next = None;
            freed.push((session.owner, std::mem::take(&mut session.held)));
            if was_running {
                effects.push(Effect::CellLost { kernel: *kernel });
            }
        }
        // The node is out of the fleet with what was held on it; only the owners' shares are left.
        for (owner, gpus) in freed {
            self.give(slot, owner, gpus);
        }
    }

    pub(super) fn member_moved(&mut self, kernel: KernelId, from: Slot, to: Slot) {
        let Some(session) = self.sessions.get_mut(&kernel) else { return };
        let gpus = session.gpus;
        let Some(at) = session.moving.iter().position(|it| *it == (from, to)) else { return };
        session.moving.swap_remove(at);
        let is_member = session.members.contains(&from);
        session.members.retain(|it| *it != from);
        if is_member {
            self.forget_member(kernel, from, gpus);
        }
        let is_there = self.fleet.get(to).is_some();
        let Some(session) = self.sessions.get_mut(&kernel) else { return };
        if is_member && is_there && !session.members.contains(&to) {
            session.members.push(to);
            self.members_on.entry(to).or_default().insert(kernel);
        } else {
            // It was replaced on its way, or its new node was lost.
            self.fleet.unsubscribe(to, gpus);
            self.place_members(kernel);
        }
    }

    /// The regular look at the number of nodes.
    pub(super) fn look(&mut self, now_ms: u64, effects: &mut Vec<Effect>) {
        self.reclaim(now_ms, effects);
        self.policies.placement.observe(self.subscribed, self.fleet.held());
        let waiting: Vec<Waiting> = self.queue.iter().map(|it| it.cell.clone()).collect();
        let known = Known {
            sessions: &self.sessions,
            pauses: &self.pauses,
            cells: &self.cells,
            gpus_of_a_node: self.shape.gpus,
        };
        let claims = known.claims(now_ms);
        self.fleet.claim(&claims);
        let returning = known.returning(now_ms);
        let growth = |ahead_ms: u64| known.growth(now_ms, ahead_ms);
        let view = ScaleView {
            now_ms,
            fleet: &self.fleet,
            booting: u32::try_from(self.booting.len()).unwrap_or(u32::MAX),
            boot_ms: self.boot_ms,
            shape: self.shape,
            waiting: &waiting,
            growth: &growth,
        };
        let plan = self.policies.scaling.plan(&view);
        for slot in &plan.give_back {
            self.evacuate(*slot, effects);
        }
        self.boot(plan.add, effects);
        self.prefetch(returning, effects);
    }

    /// Brings the bytes of sessions that will be back soon, and for which there will be no room where
    /// they are, to where there is room now.
    fn prefetch(&mut self, returning: Vec<(KernelId, f64)>, effects: &mut Vec<Effect>) {
        for (kernel, own) in returning {
            let Some(migration) = self.policies.migration.as_mut().filter(|it| it.is_proactive)
            else {
                return;
            };
            let Some(session) = self.sessions.get_mut(&kernel) else { continue };
            let want = session.want();
            // Room is what others do not claim; this session's own claim is where its process is.
            let has_room = |slot: Slot| {
                self.fleet.get(slot).is_some_and(|node| {
                    let own = if want.executor == Some(slot) { own } else { 0.0 };
                    let others = f64::from(node.claimed_milli) / 1_000.0 - own;
                    node.state == NodeState::Open
                        && f64::from(node.free) >= f64::from(want.gpus) + others.max(0.0).ceil()
                })
            };
            let is_copied =
                session.copy.as_ref().is_some_and(|it| !it.is_there || has_room(it.slot));
            let mut own = want.executor.into_iter().chain(want.members.iter().copied());
            if is_copied || own.any(has_room) {
                continue;
            }
            if let Some(slot) = migration.choice.choose(&self.fleet, &want).to {
                session.copy = Some(Copy { slot, is_there: false });
                effects.push(Effect::Prefetch { kernel, slot });
            }
        }
    }

    pub(super) fn prefetched(&mut self, kernel: KernelId, slot: Slot) {
        let copy = self.sessions.get_mut(&kernel).and_then(|it| it.copy.as_mut());
        if let Some(copy) = copy.filter(|it| it.slot == slot) {
            copy.is_there = true;
        }
    }

    /// Sessions that hold GPUs and were idle for too long lose them.
    fn reclaim(&mut self, now_ms: u64, effects: &mut Vec<Effect>) {
        let Binding::Session { reclaim_after_ms: Some(after_ms) } = self.policies.binding else {
            return;
        };
        let mut reclaimed = Vec::new();
        for (kernel, session) in &mut self.sessions {
            let is_idle = session.phase == Phase::Idle && now_ms - session.since_ms > after_ms;
            if let (Some(slot), true) = (session.bound, is_idle) {
                session.bound = None;
                session.executor = None;
                reclaimed.push((slot, session.owner, std::mem::take(&mut session.held)));
                effects.push(Effect::Reclaimed { kernel: *kernel });
            }
        }
        for (slot, owner, gpus) in reclaimed {
            self.give(slot, owner, gpus);
        }
    }

    /// Closes a node and moves its members away; nothing is done unless each has a place to go to.
    fn evacuate(&mut self, slot: Slot, effects: &mut Vec<Effect>) {
        let kernels = self.members_on.get(&slot).cloned().unwrap_or_default();
        let Some(node) = self.fleet.get(slot) else { return };
        if node.members as usize != kernels.len() {
            // Members are on their way to it.
            return;
        }
        self.fleet.set_state(slot, NodeState::Draining);
        let mut moves = Vec::new();
        for kernel in kernels {
            let Some(session) = self.sessions.get(&kernel) else { continue };
            let request = MemberRequest {
                gpus: session.gpus,
                vram_mib: session.vram_mib,
                count: 1,
                present: session.present(),
            };
            let to = self.policies.placement.place(&self.fleet, &request).slots.first().copied();
            let Some(to) = to else {
                for (_, to, gpus) in moves {
                    self.fleet.unsubscribe(to, gpus);
                }
                self.fleet.set_state(slot, NodeState::Open);
                return;
            };
            self.fleet.subscribe(to, request.gpus);
            moves.push((kernel, to, request.gpus));
        }
        for (kernel, to, _) in moves {
            if let Some(session) = self.sessions.get_mut(&kernel) {
                session.moving.push((slot, to));
            }
            effects.push(Effect::MoveMember { kernel, from: slot, to });
        }
    }

    /// Gives back the closed nodes on which nothing is left.
    pub(super) fn give_back_empty(&mut self, effects: &mut Vec<Effect>) {
        let is_left = |node: &crate::gpu::fleet::FleetNode| {
            node.state == NodeState::Draining && node.held == 0 && node.members == 0
        };
        let left: Vec<Slot> =
            self.fleet.iter().filter(|(_, node)| is_left(node)).map(|(slot, _)| slot).collect();
        for slot in left {
            self.fleet.remove(slot);
            self.members_on.remove(&slot);
            effects.push(Effect::GiveBack { slot });
        }
    }
}
