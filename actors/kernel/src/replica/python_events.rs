//! What the Python process tells, and what becomes of it.

use callboard_policy::terms::{Input, PythonPhase};
use callboard_protocol::{
    Seq, Term,
    jupyter::{Channel, JupyterMessage},
    kernel::{Level, TookOver},
};

use super::ReplicaState;
use crate::{
    aborted,
    python::{FromKernel, PythonEvent},
    running_cell::{IopubKind, PlacedOutput, classify},
    said,
};

impl ReplicaState {
    pub(super) fn python_event(&mut self, event: PythonEvent) {
        match event {
            PythonEvent::Ready(hello) => {
                self.python_failures = 0;
                tracing::debug!(python = %hello.python, "Python is warm");
                self.step(Input::PythonWarm);
            }
            PythonEvent::Jupyter(FromKernel { message, room }) => {
                self.heard(message);
                self.publisher.release(room);
            }
            PythonEvent::Captured(captured) => {
                let groups = captured.upsert.iter();
                self.note_imported(groups.map(|it| (it.group.as_str(), it.first_whole())));
                if let Some(cell) = &mut self.cell
                    && cell.msg_id == captured.msg_id
                {
                    let wish = captured.rewind.clone();
                    cell.captured(captured);
                    if let Some(to) = wish {
                        self.wish_rewind(&to);
                    }
                    self.finish_cell();
                }
            }
            PythonEvent::Saving { msg_id } => {
                tracing::info!(kernel = %self.args.spec.kernel, %msg_id, "saving state");
            }
            PythonEvent::Restored(restored) => {
                for failed in &restored.failed {
                    tracing::warn!(name = %failed.name, reason = %failed.reason, "not restored");
                }
                if let PythonPhase::Restoring(term) = self.executor.python() {
                    self.step(Input::Restored(term));
                    let last_loss = self.read(|log| log.last_loss().map(str::to_owned));
                    let node = self.args.context.node.clone();
                    self.publisher.took_over(&TookOver { term, node, last_loss });
                    if self.read(|log| log.pending().is_empty()) {
                        let idle = said::status(self.args.spec.kernel, "idle");
                        self.publisher.emitted(&idle, None);
                    }
                }
            }
            PythonEvent::NotReady(_) | PythonEvent::Exited { .. } => self.python_gone(&event),
        }
    }

    fn serving_term(&self) -> Option<Term> {
        match self.executor.python() {
            PythonPhase::Serving(term) => Some(term),
            _ => None,
        }
    }

    pub(super) fn heard(&mut self, message: JupyterMessage) {
        let Some(term) = self.serving_term() else { return };
        match message.channel {
            Channel::Iopub => self.heard_iopub(term, message),
            Channel::Shell => self.reply(term, message),
            Channel::Control | Channel::Stdin => self.publisher.emitted(&message, None),
        }
    }

    fn heard_iopub(&mut self, term: Term, message: JupyterMessage) {
        let kind = classify(&message);
        let seq = self.cell.as_ref().filter(|cell| cell.caused(&message)).map(|cell| cell.seq);
        if kind != IopubKind::Output {
            return self.heard_status(kind, &message, seq.is_some());
        }
        // What a background thread prints belongs to no cell that could still complete.
        let place = self.numbers.next(term, seq.unwrap_or(Seq(0)));
        self.publisher.emitted(&message, Some(place));
        let output = PlacedOutput { place, message };
        let due = match (&mut self.cell, seq) {
            (Some(cell), Some(_)) => {
                cell.output(output);
                cell.take_unlogged(false)
            }
            _ => vec![output],
        };
        self.log_outputs(due);
        if seq.is_some() {
            self.say_notice();
        }
    }

    fn heard_status(&mut self, kind: IopubKind, message: &JupyterMessage, is_of_cell: bool) {
        if is_of_cell && kind != IopubKind::Status {
            self.say_notice();
        }
        let Some(cell) = self.cell.as_mut().filter(|_| is_of_cell) else {
            return self.publisher.emitted(message, None);
        };
        let is_told = kind == IopubKind::Idle && cell.is_told_idle;
        cell.is_told_idle |= kind == IopubKind::IdleEarly;
        if !is_told {
            self.publisher.emitted(message, None);
        }
        if kind == IopubKind::Idle {
            cell.idle();
        }
        if kind != IopubKind::Status {
            self.finish_cell();
        }
    }

    fn reply(&mut self, term: Term, message: JupyterMessage) {
        let Some(cell) = self.cell.as_mut().filter(|cell| cell.caused(&message)) else {
            self.publisher.emitted(&message, None);
            return;
        };
        if cell.stops_on_error && aborted::has_raised(&message) {
            self.abort_through = self.group.read(|machine| machine.log().accepted());
        }
        if cell.level == Level::Received {
            let place = self.numbers.next(term, cell.seq);
            cell.output(PlacedOutput { place, message: message.clone() });
            cell.replied(None);
            self.publisher.emitted(&message, Some(place));
        } else {
            cell.replied(Some(message));
        }
        self.finish_cell();
    }
}
