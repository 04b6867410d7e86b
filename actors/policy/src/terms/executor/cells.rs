//! Starts cells in order and puts finished ones in the log.

use callboard_protocol::{
    Seq, Term,
    kernel::{CellEnd, CellOutcome, Level},
};

use super::{Action, Attempt, Executor, FinishedCell, PythonPhase};
use crate::terms::{Entry, KernelLog, LoggedOutput, StateDelta};

impl Executor {
    pub(super) fn finished(
        &mut self,
        log: &KernelLog,
        term: Term,
        seq: Seq,
        (outputs, delta): (Vec<LoggedOutput>, StateDelta),
        actions: &mut Vec<Action>,
    ) {
        if self.my_term(log) != Some(term) || !self.serves(term) {
            return;
        }
        let Some(cell) = log.pending().iter().find(|cell| cell.seq == seq) else { return };
        let (level, msg_id) = (cell.level, cell.msg_id.clone());
        if level == Level::Received {
            let last_output = outputs.last().map(|output| output.place.cursor);
            let outcome = CellOutcome::Completed;
            actions.push(Action::PublishEnded(CellEnd { seq, msg_id, term, outcome, last_output }));
        }
        self.finished.push_back(FinishedCell { seq, level, outputs, delta });
    }

    /// Starts the next cell that may be started, and puts finished ones in the log.
    pub(super) fn tend_cells(&mut self, log: &KernelLog, now_ms: u64, actions: &mut Vec<Action>) {
        let Some(term) = self.my_term(log) else { return };
        if self.python != PythonPhase::Serving(term) {
            return;
        }
        self.propose_finished(term, now_ms, actions);
        for cell in log.pending() {
            if cell.seq <= self.started_through {
                let is_finished = self.finished.iter().any(|done| done.seq == cell.seq);
                if is_finished && cell.level == Level::Received {
                    continue;
                }
                return;
            }
            if cell.grant == Some(term) {
                self.started_through = cell.seq;
                actions.push(Action::Run { term, cell: cell.clone() });
            } else if self.attempt(Attempt::Start(term, cell.seq), now_ms) {
                actions.push(Action::Propose(Entry::Start { term, seq: cell.seq }));
            }
            return;
        }
    }

    fn propose_finished(&mut self, term: Term, now_ms: u64, actions: &mut Vec<Action>) {
        for index in 0..self.finished.len() {
            let seq = self.finished[index].seq;
            if self.attempt(Attempt::Complete(term, seq), now_ms) {
                let FinishedCell { outputs, delta, .. } = self.finished[index].clone();
                actions.push(Action::Propose(Entry::Complete { term, seq, outputs, delta }));
            }
        }
    }
}
