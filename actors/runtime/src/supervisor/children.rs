//! A supervisor's children: the part that acts on them.

use std::time::Duration;

use callboard_policy::restart::{RestartDecision, RestartHistory};
use ractor::{ActorCell, ActorId, ActorProcessingErr, RpcReplyPort};
use tokio::time::Instant;

use super::{
    ChildInfo, ChildState, OnExceeded, SupervisorArgs, SupervisorError, SupervisorEvent,
    SupervisorMsg, Timers,
};
use crate::{ChildSpec, Presence, Restart};

/// Longest `pre_start`. Reading back a large log takes seconds; a minute means it hangs, and the
/// supervisor with it.
const START_WITHIN: Duration = Duration::from_secs(60);

/// How long a killed actor may take to be gone. Only code that blocks its thread takes longer, and
/// waiting does not help against that.
const KILL_WITHIN: Duration = Duration::from_secs(1);

pub(crate) struct Children {
    args: SupervisorArgs,
    timers: Timers,
    born: Instant,
    history: RestartHistory,
    children: Vec<Child>,
    rounds: u64,
}

struct Child {
    spec: ChildSpec,
    state: State,
    restarts: u32,
    history: RestartHistory,
}

enum State {
    Running(ActorCell),
    Restarting { round: u64 },
    Stopping { cell: ActorCell, waiting: Vec<RpcReplyPort<()>> },
    Abandoned,
}

impl Child {
    fn actor(&self) -> Option<&ActorCell> {
        match &self.state {
            State::Running(cell) | State::Stopping { cell, .. } => Some(cell),
            State::Restarting { .. } | State::Abandoned => None,
        }
    }
}

impl Drop for Children {
    /// However the supervisor ends, nobody waits for its children any more.
    fn drop(&mut self) {
        for child in &self.children {
            if let Some(cell) = child.actor() {
                child.spec.vacate(Some(cell.get_id()), stopped("its supervisor has ended"));
            }
        }
    }
}

fn stopped(reason: &str) -> Presence {
    Presence::Stopped { reason: reason.to_owned() }
}

impl Children {
    pub(super) fn new(args: SupervisorArgs, timers: Timers) -> Self {
        let history = RestartHistory::new(args.settings.policy, args.settings.seed);
        Self { args, timers, born: Instant::now(), history, children: Vec::new(), rounds: 0 }
    }

    pub(super) async fn start_child(&mut self, spec: ChildSpec) -> Result<(), SupervisorError> {
        if self.children.iter().any(|child| child.spec.name == spec.name) {
            return Err(SupervisorError::NameTaken(spec.name));
        }
        let cell = self
            .start(&spec)
            .await
            .map_err(|reason| SupervisorError::NotStarted { name: spec.name.clone(), reason })?;
        // Siblings draw different delays.
        let salt = spec.name.bytes().fold(0_u64, |sum, it| sum.rotate_left(7) ^ u64::from(it));
        let settings = &self.args.settings;
        let history = RestartHistory::new(settings.policy, settings.seed ^ salt);
        self.children.push(Child { spec, state: State::Running(cell), restarts: 0, history });
        Ok(())
    }

    async fn start(&self, spec: &ChildSpec) -> Result<ActorCell, String> {
        let starting = (spec.start)(self.timers.supervisor());
        let cell = match tokio::time::timeout(START_WITHIN, starting).await {
            Ok(Ok(cell)) => cell,
            Ok(Err(failure)) => return Err(failure.to_string()),
            Err(_) => return Err(format!("not started within {} s", START_WITHIN.as_secs())),
        };
        self.args.tell(SupervisorEvent::ChildStarted { name: spec.name.clone() });
        Ok(cell)
    }

    pub(super) fn stop_child(&mut self, name: &str, reply: RpcReplyPort<()>) {
        let Some(index) = self.children.iter().position(|child| child.spec.name == name) else {
            let _ = reply.send(());
            return;
        };
        let child = &mut self.children[index];
        match &mut child.state {
            State::Running(cell) => {
                let (cell, actor) = (cell.clone(), cell.get_id());
                cell.stop(Some("told to stop".to_owned()));
                let overdue = move || SupervisorMsg::StopOverdue { actor };
                self.timers.after(child.spec.stop_within, overdue);
                child.spec.vacate(None, stopped("it was told to stop"));
                child.state = State::Stopping { cell, waiting: vec![reply] };
            }
            State::Stopping { waiting, .. } => waiting.push(reply),
            State::Restarting { .. } | State::Abandoned => {
                self.forget(index, "it was told to stop");
                let _ = reply.send(());
            }
        }
    }

    /// A child told to stop has not: `actor` is killed, if it is that one still.
    pub(super) fn kill_overdue(&self, actor: ActorId) {
        let mut cells = self.children.iter().filter_map(Child::actor);
        if let Some(cell) = cells.find(|cell| cell.get_id() == actor) {
            tracing::warn!(%actor, "an actor did not stop in time and is killed");
            cell.kill();
        }
    }

    pub(super) fn list(&self) -> Vec<ChildInfo> {
        let info = |child: &Child| ChildInfo {
            name: child.spec.name.clone(),
            state: match child.state {
                State::Running(_) => ChildState::Running,
                State::Restarting { .. } => ChildState::Restarting,
                State::Stopping { .. } => ChildState::Stopping,
                State::Abandoned => ChildState::Abandoned,
            },
            restarts: child.restarts,
        };
        self.children.iter().map(info).collect()
    }

    /// An actor linked to the supervisor has ended.
    pub(super) async fn on_exit(
        &mut self,
        actor: ActorId,
        failed: bool,
        reason: String,
    ) -> Result<(), ActorProcessingErr> {
        let ended = |child: &Child| child.actor().is_some_and(|cell| cell.get_id() == actor);
        // Others were stopped by the supervisor itself and have been dealt with.
        let Some(index) = self.children.iter().position(ended) else { return Ok(()) };
        if let State::Stopping { waiting, .. } = &mut self.children[index].state {
            let waiting = std::mem::take(waiting);
            self.forget(index, "it was told to stop");
            for reply in waiting {
                let _ = reply.send(());
            }
            return Ok(());
        }
        let spec = &self.children[index].spec;
        self.args
            .tell(SupervisorEvent::ChildExited { name: spec.name.clone(), reason: reason.clone() });
        let again = match spec.restart {
            Restart::Permanent => true,
            Restart::Transient => failed,
            Restart::Temporary => false,
        };
        if again {
            tracing::warn!(child = spec.name, reason, "a child ended");
            return self.recover(index, &reason).await;
        }
        spec.vacate(None, stopped(&reason));
        self.children.remove(index);
        Ok(())
    }

    fn forget(&mut self, index: usize, reason: &str) {
        let child = self.children.remove(index);
        child.spec.vacate(None, stopped(reason));
        self.args.tell(SupervisorEvent::ChildStopped { name: child.spec.name });
    }

    /// A child that should run does not: plans its next start, or gives up.
    async fn recover(&mut self, index: usize, reason: &str) -> Result<(), ActorProcessingErr> {
        let now_ms = u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX);
        let name = self.children[index].spec.name.clone();
        let on_exceeded = self.args.settings.on_exceeded;
        let history = match on_exceeded {
            OnExceeded::Escalate => &mut self.history,
            OnExceeded::Abandon => &mut self.children[index].history,
        };
        match (history.on_exit(now_ms), on_exceeded) {
            (RestartDecision::Restart { after_ms }, _) => {
                self.plan_restart(index, after_ms).await;
                Ok(())
            }
            (RestartDecision::Escalate { reason: why }, OnExceeded::Abandon) => {
                let reason = format!("{why}; last: {reason}");
                tracing::error!(child = name, reason, "a child stays down");
                let child = &mut self.children[index];
                child.state = State::Abandoned;
                child.spec.vacate(None, stopped(&reason));
                self.args.tell(SupervisorEvent::ChildAbandoned { name, reason });
                Ok(())
            }
            (RestartDecision::Escalate { reason: why }, OnExceeded::Escalate) => {
                let supervisor = self.args.name.clone();
                let reason = format!("{name} {why}; last: {reason}");
                tracing::error!(supervisor, reason, "a supervisor gives up");
                self.stop_all(&reason).await;
                let event = SupervisorEvent::Escalated { supervisor, reason: reason.clone() };
                self.args.tell(event);
                Err(reason.into())
            }
        }
    }

    /// Stops whoever is started again with the child at `failed`, and sets the timer.
    async fn plan_restart(&mut self, failed: usize, after_ms: u64) {
        self.rounds += 1;
        let round = self.rounds;
        let failed_name = self.children[failed].spec.name.clone();
        let affected = self.args.settings.strategy.affected(failed, self.children.len());
        for index in affected.rev() {
            let child = &mut self.children[index];
            if matches!(child.state, State::Stopping { .. } | State::Abandoned) {
                continue;
            }
            let name = child.spec.name.clone();
            let is_sibling = name != failed_name;
            if is_sibling && let State::Running(cell) = &child.state {
                end(cell, child.spec.stop_within, "a sibling failed").await;
            }
            if is_sibling && child.spec.restart == Restart::Temporary {
                self.forget(index, "a sibling failed");
                continue;
            }
            child.state = State::Restarting { round };
            child.spec.vacate(None, Presence::Restarting);
            self.args.tell(SupervisorEvent::ChildRestarting { name, after_ms });
        }
        let due = move || SupervisorMsg::RestartDue { round };
        self.timers.after(Duration::from_millis(after_ms), due);
    }

    /// Starts the children of a round, unless they were stopped or replanned meanwhile.
    pub(super) async fn restart(&mut self, round: u64) -> Result<(), ActorProcessingErr> {
        let waits =
            |child: &Child| matches!(child.state, State::Restarting { round: r } if r == round);
        while let Some(index) = self.children.iter().position(waits) {
            let spec = self.children[index].spec.clone();
            match self.start(&spec).await {
                Ok(cell) => {
                    let child = &mut self.children[index];
                    child.state = State::Running(cell);
                    child.restarts += 1;
                }
                Err(reason) => {
                    let (name, reason) = (spec.name, format!("did not start: {reason}"));
                    let event = SupervisorEvent::ChildExited { name, reason: reason.clone() };
                    self.args.tell(event);
                    // Replans every child of this round that has not been started.
                    self.recover(index, &reason).await?;
                }
            }
        }
        Ok(())
    }

    /// Stops all children, the last one first.
    pub(super) async fn stop_all(&mut self, reason: &str) {
        while let Some(child) = self.children.pop() {
            if let Some(cell) = child.actor() {
                end(cell, child.spec.stop_within, reason).await;
            }
            child.spec.vacate(None, stopped(reason));
            self.args.tell(SupervisorEvent::ChildStopped { name: child.spec.name.clone() });
            if let State::Stopping { waiting, .. } = child.state {
                for reply in waiting {
                    let _ = reply.send(());
                }
            }
        }
    }
}

/// Stops an actor, and kills it if it takes longer than `within`.
async fn end(cell: &ActorCell, within: Duration, reason: &str) {
    cell.stop(Some(reason.to_owned()));
    if cell.wait(Some(within)).await.is_err() {
        tracing::warn!(actor = %cell.get_id(), "an actor did not stop in time and is killed");
        cell.kill();
        // Nothing more can be done about an actor that blocks its thread.
        let _ = cell.wait(Some(KILL_WITHIN)).await;
    }
}
