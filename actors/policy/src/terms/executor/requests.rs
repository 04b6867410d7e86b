//! From a request on the bus to its place in the log.

use callboard_protocol::{
    Fault, FaultCode,
    kernel::{Accepted, CellState},
};

use super::{
    ACCEPT_GRACE_MS, Action, Executor, REPROPOSE_MS, REQUEST_KEPT_MS, REQUESTS_KEPT_MAX, Request,
    Waiting,
};
use crate::terms::{Applied, Entry, KernelLog};

impl Executor {
    pub(super) fn requested(
        &mut self,
        log: &KernelLog,
        request: Request,
        now_ms: u64,
        actions: &mut Vec<Action>,
    ) {
        let known_hash = log.request(&request.msg_id).map(|(_, hash, _)| *hash);
        let waiting = self.waiting.get_mut(&request.msg_id);
        let waiting_hash = waiting.as_ref().map(|waiting| waiting.request.hash);
        if known_hash.or(waiting_hash).is_some_and(|hash| hash != request.hash) {
            actions.push(Action::Answer {
                answer: Err(refusal(&Applied::Conflict, &request.msg_id)),
                msg_id: request.msg_id,
            });
            return;
        }
        if let Some(waiting) = waiting {
            // A resent request keeps its place: those of one client are ordered as first sent.
            waiting.since_ms = now_ms;
            return;
        }
        if self.waiting.len() >= REQUESTS_KEPT_MAX {
            return;
        }
        self.arrivals.push_back(request.msg_id.clone());
        self.waiting.insert(request.msg_id.clone(), Waiting { request, since_ms: now_ms });
    }

    pub(super) fn refused(&mut self, msg_id: String, applied: &Applied, actions: &mut Vec<Action>) {
        self.forget_request(&msg_id);
        let answer = Err(refusal(applied, &msg_id));
        actions.push(Action::Answer { msg_id, answer });
    }

    fn forget_request(&mut self, msg_id: &str) {
        self.waiting.remove(msg_id);
        self.accepts.remove(msg_id);
        self.arrivals.retain(|arrived| arrived != msg_id);
    }

    /// Answers requests that have their place in the log by now.
    pub(super) fn answer_ordered(&mut self, log: &KernelLog, actions: &mut Vec<Action>) {
        let ordered: Vec<String> =
            self.arrivals.iter().filter(|msg_id| log.request(msg_id).is_some()).cloned().collect();
        for msg_id in ordered {
            let proposed_here = self.accepts.contains_key(&msg_id);
            let waited_hash = self.waiting.get(&msg_id).map(|waiting| waiting.request.hash);
            self.forget_request(&msg_id);
            let Some((seq, hash, end)) = log.request(&msg_id) else { continue };
            if proposed_here || self.leading || self.my_term(log).is_some() {
                let state = end.map_or(CellState::Pending, |end| CellState::Ended(end.clone()));
                // The place may have gone to another request that came under the same id.
                let answer = if waited_hash.is_some_and(|waited| waited != *hash) {
                    Err(refusal(&Applied::Conflict, &msg_id))
                } else {
                    Ok(Accepted { seq, state })
                };
                actions.push(Action::Answer { msg_id, answer });
            }
        }
    }

    /// Gives waiting requests their place: the executor does, or the leader where it does not.
    pub(super) fn propose_waiting(
        &mut self,
        log: &KernelLog,
        now_ms: u64,
        actions: &mut Vec<Action>,
    ) {
        let stale: Vec<String> = self
            .waiting
            .iter()
            .filter(|(_, waiting)| now_ms.saturating_sub(waiting.since_ms) > REQUEST_KEPT_MS)
            .map(|(msg_id, _)| msg_id.clone())
            .collect();
        for msg_id in stale {
            self.forget_request(&msg_id);
        }
        let grant = self.my_term(log).filter(|term| self.serves(*term));
        let executor_may_answer =
            log.open_term().is_some_and(|open| !self.suspects.contains_key(&open.replica));
        for msg_id in &self.arrivals {
            let Some(waiting) = self.waiting.get(msg_id) else { continue };
            let waited_ms = now_ms.saturating_sub(waiting.since_ms);
            let is_my_turn = grant.is_some()
                || (self.leading && (!executor_may_answer || waited_ms >= ACCEPT_GRACE_MS));
            let tried = self.accepts.get(msg_id);
            if !is_my_turn || tried.is_some_and(|at| now_ms.saturating_sub(*at) < REPROPOSE_MS) {
                continue;
            }
            self.accepts.insert(msg_id.clone(), now_ms);
            let request = waiting.request.clone();
            actions.push(Action::Propose(Entry::Accept {
                msg_id: request.msg_id,
                hash: request.hash,
                level: request.level,
                request: request.frame,
                horizon: request.horizon,
                grant,
            }));
        }
    }
}

fn refusal(applied: &Applied, msg_id: &str) -> Fault {
    match applied {
        Applied::Conflict => Fault::new(
            FaultCode::Conflict,
            format!(
                "the message id '{msg_id}' was used before for another request: send this one \
                 under a fresh id"
            ),
        ),
        Applied::Expired => Fault::maybe_executed(
            FaultCode::Conflict,
            format!(
                "the request '{msg_id}' is older than what the kernel remembers and may have been \
                 executed: look at the outputs before you run it again under a fresh id"
            ),
        ),
        Applied::QueueFull => Fault::new(
            FaultCode::Exhausted,
            "too many cells wait in this kernel: interrupt it, or wait until some have run",
        ),
        _ => Fault::new(FaultCode::Internal, "the kernel did not take the request"),
    }
}
