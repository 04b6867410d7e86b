//! A trace on a virtual clock: what happens is told to the scheduler, what it says is carried out,
//! and both are timed. No policy is decided here.
//!
//! A person waits for a result: a task is submitted at its recorded time, or when the session's
//! previous one has been answered if that is later.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, VecDeque},
};

use callboard_policy::gpu::{
    costs::Start,
    fleet::Slot,
    scheduler::{Effect, Input, Policies, Scheduler},
};
use callboard_protocol::KernelId;

use crate::{
    chance::Stream,
    costs::Cluster,
    metrics::{Metrics, Window},
    trace::{SessionIndex, Task, Trace, TraceError},
};

/// Purposes of random streams.
const BOOTS: u64 = 1;
const STATES: u64 = 2;

/// How a run is looked at while it goes on.
pub trait Watch {
    /// Something was told to the scheduler, and this is what it said. It is as it was left by that.
    fn decided(
        &mut self,
        _now_ms: u64,
        _input: &Input,
        _effects: &[Effect],
        _scheduler: &Scheduler,
    ) {
    }

    /// The state at a regular moment.
    fn sample(&mut self, _sample: Sample) {}
}

/// Looks at nothing.
#[derive(Debug, Default)]
pub struct Unwatched;
impl Watch for Unwatched {}

/// The state of a cluster at a moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    /// When.
    pub at_ms: u64,
    /// GPUs of all nodes, those that start included.
    pub provisioned: u64,
    /// GPUs held.
    pub held: u64,
    /// GPUs that all open sessions would use at once, by those of all nodes.
    pub subscription: f64,
    /// Cells that wait.
    pub waiting: usize,
}

/// How a run is set.
#[derive(Debug, Clone)]
pub struct Setting<'a> {
    /// What happens.
    pub trace: &'a Trace,
    /// Where.
    pub cluster: &'a Cluster,
    /// Of all that is drawn.
    pub seed: u64,
    /// Windows that are summed up, in order.
    pub windows: &'a [Window],
    /// Nodes that are up at the beginning.
    pub nodes: u32,
    /// How often the watcher gets a sample.
    pub sample_every_ms: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    NodeUp(Slot),
    MemberMoved { kernel: KernelId, from: Slot, to: Slot },
    Prefetched { kernel: KernelId, slot: Slot },
    Ended(KernelId),
    Released(KernelId),
    Close(KernelId),
    Submit(KernelId),
    Look,
    Wake,
    Sample,
}

/// A session that is open.
struct Live {
    tasks: VecDeque<Task>,
    state_mib: u64,
    submitted_ms: u64,
    running: Option<Running>,
}

struct Running {
    gpus: u32,
    granted_ms: u64,
}

/// One run.
pub struct Engine<'a> {
    setting: Setting<'a>,
    scheduler: Scheduler,
    keeps_state_in_storage: bool,
    holds_sessions: bool,
    now_ms: u64,
    events: BinaryHeap<Reverse<(u64, Event)>>,
    unopened: VecDeque<&'a SessionIndex>,
    live: BTreeMap<KernelId, Live>,
    up_since: BTreeMap<Slot, u64>,
    bound_since: BTreeMap<KernelId, (u64, u32)>,
    boots: Stream,
    states: Stream,
    metrics: Vec<Metrics>,
}

impl<'a> Engine<'a> {
    /// Ready to run.
    #[must_use]
    pub fn new(setting: Setting<'a>, policies: Policies) -> Self {
        use callboard_policy::gpu::scheduler::Binding;
        let keeps_state_in_storage = policies.replicas == 0 && policies.binding == Binding::Cell;
        let holds_sessions = matches!(policies.binding, Binding::Session { .. });
        let Cluster { node, boot_ms, .. } = *setting.cluster;
        Self {
            scheduler: Scheduler::new(policies, node, boot_ms),
            keeps_state_in_storage,
            holds_sessions,
            now_ms: 0,
            events: BinaryHeap::new(),
            unopened: setting.trace.sessions.iter().collect(),
            live: BTreeMap::new(),
            up_since: BTreeMap::new(),
            bound_since: BTreeMap::new(),
            boots: Stream::new(setting.seed, BOOTS),
            states: Stream::new(setting.seed, STATES),
            metrics: setting.windows.iter().map(|it| Metrics::new(*it)).collect(),
            setting,
        }
    }

    /// Runs to the horizon; metrics in the order of the windows.
    ///
    /// # Errors
    /// [`TraceError`] if the trace cannot be read any more.
    pub fn run(mut self, watch: &mut dyn Watch) -> Result<Vec<Metrics>, TraceError> {
        for slot in 0..self.setting.nodes {
            self.up_since.insert(Slot(slot), 0);
            self.tell(Input::NodeUp { slot: Slot(slot), shape: self.setting.cluster.node }, watch);
        }
        self.at(self.scheduler.interval_ms(), Event::Look);
        self.at(0, Event::Sample);
        let horizon_ms = self.setting.trace.horizon_ms;
        loop {
            let next_ms = self.events.peek().map_or(u64::MAX, |it| it.0.0);
            let opens_ms = self.unopened.front().map_or(u64::MAX, |it| it.first_ms);
            if next_ms.min(opens_ms) >= horizon_ms {
                break;
            }
            if opens_ms <= next_ms {
                self.now_ms = opens_ms;
                if let Some(session) = self.unopened.pop_front() {
                    self.open(session, watch)?;
                }
            } else if let Some(Reverse((at_ms, event))) = self.events.pop() {
                self.now_ms = at_ms;
                self.happen(event, watch);
            }
        }
        self.now_ms = horizon_ms;
        Ok(self.finish())
    }

    fn at(&mut self, at_ms: u64, event: Event) {
        self.events.push(Reverse((at_ms, event)));
    }

    fn open(&mut self, session: &SessionIndex, watch: &mut dyn Watch) -> Result<(), TraceError> {
        let tasks: VecDeque<Task> = self.setting.trace.tasks_of(session)?.into();
        let state_mib = self.states.one_of(&self.setting.cluster.states_mib);
        let Some(first) = tasks.front() else { return Ok(()) };
        let kernel = KernelId::from_number(u128::from(session.session));
        self.at(first.submit_ms, Event::Submit(kernel));
        self.live.insert(kernel, Live { tasks, state_mib, submitted_ms: 0, running: None });
        let opened = Input::SessionOpened {
            kernel,
            owner: session.session,
            gpus: session.gpus,
            vram_mib: 0,
            state_mib,
        };
        self.tell(opened, watch);
        Ok(())
    }

    fn happen(&mut self, event: Event, watch: &mut dyn Watch) {
        match event {
            Event::NodeUp(slot) => {
                self.tell(Input::NodeUp { slot, shape: self.setting.cluster.node }, watch);
            }
            Event::MemberMoved { kernel, from, to } => {
                self.each(|it, now_ms| it.moved(now_ms));
                self.tell(Input::MemberMoved { kernel, from, to }, watch);
            }
            Event::Prefetched { kernel, slot } => {
                self.tell(Input::Prefetched { kernel, slot }, watch);
            }
            Event::Submit(kernel) => self.submit(kernel, watch),
            Event::Ended(kernel) => self.end(kernel, watch),
            Event::Released(kernel) => self.tell(Input::Released { kernel }, watch),
            Event::Close(kernel) => {
                self.live.remove(&kernel);
                self.unbind(kernel);
                self.tell(Input::SessionClosed { kernel }, watch);
            }
            Event::Look => {
                self.at(self.now_ms + self.scheduler.interval_ms(), Event::Look);
                self.tell(Input::Look, watch);
            }
            Event::Wake => self.tell(Input::Woken, watch),
            Event::Sample => {
                self.at(self.now_ms + self.setting.sample_every_ms, Event::Sample);
                watch.sample(self.sample());
            }
        }
    }

    fn submit(&mut self, kernel: KernelId, watch: &mut dyn Watch) {
        let Some(live) = self.live.get_mut(&kernel) else { return };
        let Some(task) = live.tasks.front() else { return };
        live.submitted_ms = self.now_ms;
        let gpus = task.gpus;
        self.tell(Input::CellSubmitted { kernel, gpus, priority: 0, deadline_ms: None }, watch);
    }

    fn tell(&mut self, input: Input, watch: &mut dyn Watch) {
        let effects = self.scheduler.handle(self.now_ms, &input);
        watch.decided(self.now_ms, &input, &effects, &self.scheduler);
        for effect in effects {
            self.carry_out(&effect);
        }
    }

    fn carry_out(&mut self, effect: &Effect) {
        let cluster = self.setting.cluster;
        match *effect {
            Effect::Boot { slot } => {
                let takes_ms = self.boots.normal_ms(cluster.boot_ms, cluster.boot_deviation_ms);
                self.up_since.insert(slot, self.now_ms);
                self.at(self.now_ms + takes_ms, Event::NodeUp(slot));
                self.each(|it, now_ms| it.booted(now_ms));
            }
            Effect::GiveBack { slot } => {
                if let Some(since_ms) = self.up_since.remove(&slot) {
                    let gpus = cluster.node.gpus;
                    self.each(|it, now_ms| it.provisioned(gpus, since_ms, now_ms));
                }
                self.each(|it, now_ms| it.gave_back(now_ms));
            }
            Effect::MoveMember { kernel, from, to } => {
                let state_mib = self.live.get(&kernel).map_or(0, |it| it.state_mib);
                let takes_ms = cluster.costs.copy_ms(state_mib);
                self.at(self.now_ms + takes_ms, Event::MemberMoved { kernel, from, to });
            }
            Effect::Prefetch { kernel, slot } => {
                let state_mib = self.live.get(&kernel).map_or(0, |it| it.state_mib);
                let takes_ms = cluster.costs.copy_ms(state_mib);
                self.at(self.now_ms + takes_ms, Event::Prefetched { kernel, slot });
                self.each(|it, now_ms| it.prefetched(now_ms, state_mib));
            }
            Effect::Grant { kernel, gpus, start, .. } => self.grant(kernel, gpus, start),
            Effect::Reclaimed { kernel } => {
                self.unbind(kernel);
                self.each(|it, now_ms| it.reclaimed(now_ms));
            }
            Effect::WakeAt { at_ms } => self.at(at_ms, Event::Wake),
            // Nodes are not lost here, and a trace with wider tasks was refused.
            Effect::CellLost { .. } | Effect::Refuse { .. } => {}
        }
    }

    fn grant(&mut self, kernel: KernelId, gpus: u32, start: Start) {
        let Some(live) = self.live.get_mut(&kernel) else { return };
        let Some(task) = live.tasks.pop_front() else { return };
        let begins_ms = self.now_ms + self.setting.cluster.costs.start_ms(start, live.state_mib);
        let submitted_ms = live.submitted_ms;
        live.running = Some(Running { gpus, granted_ms: self.now_ms });
        let ends_ms = begins_ms + task.duration_ms;
        if self.holds_sessions {
            self.bound_since.entry(kernel).or_insert((self.now_ms, gpus));
        }
        self.at(ends_ms, Event::Ended(kernel));
        for metrics in &mut self.metrics {
            metrics.started(submitted_ms, start, begins_ms - submitted_ms);
            metrics.used(task.gpus, begins_ms, ends_ms);
        }
    }

    fn end(&mut self, kernel: KernelId, watch: &mut dyn Watch) {
        let costs = &self.setting.cluster.costs;
        let Some(live) = self.live.get_mut(&kernel) else { return };
        let Some(Running { gpus, granted_ms }) = live.running.take() else { return };
        // With members, the state is on another node before the reply; without, in shared storage,
        // and the GPUs are held until then.
        let (mut released_ms, reply_ms) = if self.holds_sessions {
            (self.now_ms, self.now_ms)
        } else if self.keeps_state_in_storage {
            let released_ms =
                self.now_ms + costs.release_ms(live.state_mib) + costs.store_ms(live.state_mib);
            (released_ms, released_ms)
        } else {
            let released_ms = self.now_ms + costs.release_ms(live.state_mib);
            (released_ms, self.now_ms)
        };
        released_ms = released_ms.max(self.now_ms);
        let submitted_ms = live.submitted_ms;
        let next_ms = live.tasks.front().map(|it| it.submit_ms.max(reply_ms));
        self.tell(Input::CellEnded { kernel }, watch);
        if !self.holds_sessions {
            self.at(released_ms, Event::Released(kernel));
        }
        for metrics in &mut self.metrics {
            metrics.completed(submitted_ms, reply_ms - submitted_ms);
            if !self.holds_sessions {
                metrics.held(gpus, granted_ms, released_ms);
            }
        }
        match next_ms {
            Some(next_ms) => self.at(next_ms, Event::Submit(kernel)),
            None => self.at(released_ms + 1, Event::Close(kernel)),
        }
    }

    fn unbind(&mut self, kernel: KernelId) {
        if let Some((since_ms, gpus)) = self.bound_since.remove(&kernel) {
            self.each(|it, now_ms| it.held(gpus, since_ms, now_ms));
        }
    }

    fn each(&mut self, note: impl Fn(&mut Metrics, u64)) {
        for metrics in &mut self.metrics {
            note(metrics, self.now_ms);
        }
    }

    fn sample(&self) -> Sample {
        let gpus = u64::from(self.setting.cluster.node.gpus);
        let provisioned = self.up_since.len() as u64 * gpus;
        Sample {
            at_ms: self.now_ms,
            provisioned,
            held: self.scheduler.fleet().held(),
            subscription: self.scheduler.subscribed() as f64 / provisioned.max(1) as f64,
            waiting: self.scheduler.waiting_len(),
        }
    }

    fn finish(mut self) -> Vec<Metrics> {
        let gpus = self.setting.cluster.node.gpus;
        for since_ms in std::mem::take(&mut self.up_since).into_values() {
            self.each(|it, now_ms| it.provisioned(gpus, since_ms, now_ms));
        }
        for kernel in self.bound_since.keys().copied().collect::<Vec<_>>() {
            self.unbind(kernel);
        }
        for live in std::mem::take(&mut self.live).into_values() {
            if let (Some(running), false) = (live.running, self.holds_sessions) {
                self.each(|it, now_ms| it.held(running.gpus, running.granted_ms, now_ms));
            }
        }
        self.metrics
    }
}
