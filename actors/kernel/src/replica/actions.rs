//! Carries out what the local machine wants.

use callboard_policy::terms::{Action, Entry, Input, PendingCell, PythonPhase};
use callboard_protocol::{
    Fault, Seq, Term,
    jupyter::JupyterMessage,
    kernel::{Accepted, CellEnd},
};

use super::{Internal, ReplicaState, tell};
use crate::{
    aborted,
    python::{PythonEvent, SessionConfig, Taken},
    running_cell::{PlacedOutput, RunningCell},
    state::{self, Packer},
};

/// More bytes than this are hashed out of the runtime's way: Raft's heartbeats would wait for it.
const HASHED_IN_PLACE_BYTES_MAX: usize = 1 << 20;

impl ReplicaState {
    pub(super) fn carry_out(&mut self, action: Action) {
        match action {
            Action::Propose(entry) => self.propose(entry),
            Action::Answer { msg_id, answer } => self.answer_request(&msg_id, answer),
            Action::StartPython => self.launch_python_later(),
            Action::KillPython | Action::ReleasePython => self.kill_python(),
            Action::Restore(term) => self.restore(term),
            Action::Run { term, cell } => self.run(term, cell),
            Action::PublishEnded(end) => self.publish_ended(&end),
        }
    }

    fn answer_request(&mut self, msg_id: &str, answer: Result<Accepted, Fault>) {
        self.traces.accepted(msg_id);
        if let Some((_, askers)) = self.askers.remove(msg_id) {
            for reply_to in askers {
                self.publisher.answer(&reply_to, &answer.clone().into());
            }
        }
    }

    /// Starts Python at once, or after a pause if it failed before.
    fn launch_python_later(&mut self) {
        let pause = super::python_pause(self.python_failures);
        if pause.is_zero() {
            self.launch_python();
            return;
        }
        let me = self.me.clone();
        self.tasks.push(tokio::spawn(async move {
            tokio::time::sleep(pause).await;
            tell(&me, Internal::StartPython);
        }));
    }

    pub(super) fn launch_python(&mut self) {
        // Its start may have been called off while a pause after a failure lasted.
        if self.python.is_some() || self.executor.python() != PythonPhase::Starting {
            return;
        }
        self.python_life += 1;
        let life = self.python_life;
        let context = &self.args.context;
        let Taken { process, mut events, hello } = context.python.take();
        let limits = (self.limits(), context.confinement.cgroups.clone());
        process.configure(SessionConfig::of(&context.files, &self.args.spec, limits));
        self.python = Some(process);
        let me = self.me.clone();
        if let Some(hello) = hello {
            tell(&me, Internal::Python(life, Box::new(PythonEvent::Ready(hello))));
        }
        tokio::spawn(async move {
            while let Some(event) = events.recv().await {
                tell(&me, Internal::Python(life, Box::new(event)));
            }
        });
    }

    fn kill_python(&mut self) {
        // Events of a former life are not listened to.
        self.python_life += 1;
        self.python = None;
        self.forget_cells();
    }

    /// Drops what the Python process that is gone was doing.
    fn forget_cells(&mut self) {
        self.set_cell(None);
        self.held_replies.clear();
        self.traces.clear();
        self.abort_through = Seq::default();
        self.flush();
        if let Some(spreading) = self.spreading.take() {
            spreading.abort();
        }
    }

    /// Reads the state of the base and hands it to the Python process.
    fn restore(&mut self, term: Term) {
        let (group, context, me) = (self.group.clone(), self.args.context.clone(), self.me.clone());
        let (owner, peers) = (self.args.spec.owner.clone(), self.peers());
        self.tasks.push(tokio::spawn(async move {
            let named = group.read(|machine| state::chunks_of_state(machine.log()).collect());
            let read = super::chunks::read_all(&context, &owner, &peers, &named).await;
            let result = read.and_then(|bytes| {
                group.read(|machine| {
                    let log = machine.log();
                    state::restore_groups(log, |hash| bytes.get(hash).cloned())
                        .map(|groups| (groups, log.execution_count()))
                        .map_err(|_| "a part of its state cannot be read here".to_owned())
                })
            });
            tell(&me, Internal::RestoreRead(term, result));
        }));
    }

    pub(super) fn restore_read(&mut self, term: Term, result: Result<super::ReadState, String>) {
        if self.executor.python() != PythonPhase::Restoring(term) {
            return;
        }
        if let Ok((groups, _)) = &result {
            self.note_imported(groups.iter().map(|it| (it.group.as_str(), it.parts.as_slice())));
        }
        match (result, &self.python) {
            (Ok((groups, execution_count)), Some(python)) => {
                python.restore(groups, execution_count);
            }
            (Err(why), _) => {
                tracing::warn!(kernel = %self.args.spec.kernel, %why, "the state cannot be restored");
                self.python_life += 1;
                self.python = None;
                let node = &self.args.context.node;
                self.step(Input::PythonExited(format!("executor lost on {node}: {why}")));
            }
            (Ok(_), None) => {}
        }
    }

    fn run(&mut self, term: Term, cell: PendingCell) {
        let message = match JupyterMessage::decode(&cell.request) {
            Ok(message) => message,
            Err(error) => {
                // It was checked before it was accepted; a node of another version might differ.
                tracing::error!(%error, "an accepted request cannot be read");
                return;
            }
        };
        let is_execute =
            message.parse_header().is_ok_and(|header| header.msg_type == "execute_request");
        self.traces.started(&cell.msg_id, cell.seq);
        let (seq, msg_id) = (cell.seq, cell.msg_id.clone());
        let mut running = RunningCell::new(term, cell.seq, cell.msg_id, cell.level, is_execute);
        running.stops_on_error = is_execute && aborted::stops_on_error(&message);
        self.set_cell(Some(running));
        if is_execute && seq <= self.abort_through {
            let captured = self.read(|log| aborted::nothing_changed(log, msg_id));
            if let Some(cell) = &mut self.cell {
                cell.captured(captured);
            }
            for message in aborted::aborted(self.args.spec.kernel, &message) {
                self.heard(message);
            }
            return;
        }
        if let Some(python) = &self.python {
            python.send(message);
        }
    }

    fn publish_ended(&mut self, end: &CellEnd) {
        if let Some(PlacedOutput { place, message }) = self.held_replies.remove(&end.seq) {
            self.publisher.emitted(&message, Some(place));
        }
        self.publisher.ended(end);
        self.traces.ended(end.seq);
    }

    /// Sends a finished cell's large parts where a majority has them, then its entry to the log.
    pub(super) fn finish_cell(&mut self) {
        if !self.cell.as_ref().is_some_and(RunningCell::is_over) {
            return;
        }
        let Some(mut cell) = self.set_cell(None) else { return };
        self.traces.finished(&cell.msg_id, cell.seq);
        self.read(|log| cell.prune(|cursor| log.has_output(cursor)));
        let Some(mut cell) = cell.finish() else { return };
        if let Some(reply) = cell.reply.take() {
            let place = self.numbers.next(cell.term, cell.seq);
            let output = PlacedOutput { place, message: reply };
            self.held_replies.insert(cell.seq, output.clone());
            cell.outputs.push(output);
        }
        let mut packer = self.read(Packer::new);
        let (captured, outputs) = (cell.captured, cell.outputs);
        let is_large = captured.length() > HASHED_IN_PLACE_BYTES_MAX;
        let pack = || (packer.outputs(&outputs), packer.delta(captured));
        let (outputs, delta) = if is_large { tokio::task::block_in_place(pack) } else { pack() };
        let chunks = packer.into_chunks();
        if chunks.is_empty() {
            self.step(Input::Finished { term: cell.term, seq: cell.seq, outputs, delta });
            return;
        }
        let (context, me, peers) = (self.args.context.clone(), self.me.clone(), self.peers());
        let (owner, majority) = (self.args.spec.owner.clone(), self.majority());
        self.spreading = Some(tokio::spawn(async move {
            super::chunks::spread(&context, &owner, &peers, majority, chunks).await;
            tell(&me, Internal::Stored(cell.term, cell.seq, outputs, Box::new(delta)));
        }));
    }

    /// Puts outputs of a running cell in the log. Large ones wait for the cell's end.
    pub(super) fn log_outputs(&mut self, outputs: Vec<PlacedOutput>) {
        if outputs.is_empty() {
            return;
        }
        let Some(term) = outputs.first().map(|output| output.place.cursor.term) else { return };
        let mut packer = self.read(Packer::new);
        let logged = packer.outputs(&outputs);
        let chunks = packer.into_chunks();
        let entry = Entry::Emit { term, outputs: logged };
        if chunks.is_empty() {
            self.propose(entry);
            return;
        }
        if let Some(cell) = &mut self.cell {
            cell.put_back(outputs);
        }
    }

    /// Ends the process by hand; the machine learns of it as of any other end.
    pub(super) fn python_gone(&mut self, event: &PythonEvent) {
        self.python = None;
        self.forget_cells();
        let node = &self.args.context.node;
        let how = match event {
            PythonEvent::NotReady(error) => {
                self.python_failures += 1;
                tracing::warn!(kernel = %self.args.spec.kernel, %error, "Python did not come up");
                format!("the kernel's process on {node} did not come up: {error}")
            }
            PythonEvent::Exited { how } => format!("the kernel's process on {node} was {how}"),
            _ => return,
        };
        self.step(Input::PythonExited(how));
    }
}
