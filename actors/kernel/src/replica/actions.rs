//! Carries out what the local machine wants.

use callboard_policy::terms::{
    Action, Entry, Input, LoggedOutput, PendingCell, PythonPhase, StateDelta,
};
use callboard_protocol::{
    Fault, Seq, Term,
    jupyter::JupyterMessage,
    kernel::{Accepted, CellEnd},
};

use super::{Internal, ReplicaState, Stored, tell};
use crate::{
    aborted,
    held::{HeldState, NotHeld},
    python::{PythonEvent, Taken},
    refusal::WithoutRoom,
    running_cell::{PlacedOutput, RunningCell},
    state::{self, Named, Packer},
};

/// More bytes than this are hashed out of the runtime's way: Raft's heartbeats would wait for it.
const HASHED_IN_PLACE_BYTES_MAX: usize = 1 << 20;

/// Outputs whose bytes are on their way to a majority.
#[derive(Debug)]
pub struct StoredOutputs {
    entry: Entry,
    outputs: Vec<PlacedOutput>,
    /// Why there was no room for them, if so.
    no_room: Option<String>,
}

/// A finished cell as it goes to the log.
#[derive(Debug)]
pub struct Packed {
    term: Term,
    seq: Seq,
    outputs: Vec<LoggedOutput>,
    delta: Result<StateDelta, NotHeld>,
    held: HeldState,
    chunks: Vec<bytes::Bytes>,
}

impl ReplicaState {
    pub(super) fn carry_out(&mut self, action: Action) {
        match action {
            Action::Propose(entry) => {
                if matches!(entry, Entry::Park { .. }) {
                    self.tell_of_parking();
                }
                self.propose(entry);
            }
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
        self.held = HeldState::default();
        let life = self.python_life;
        let Taken { process, mut events, hello } = self.take_process();
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
        self.without_room = WithoutRoom::default();
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
            let named = group.read(|machine| Named::by_state(machine.log()));
            let read = super::chunks::read_named(&context, &owner, &peers, &named).await;
            let result = read.and_then(|bytes| {
                group.read(|machine| {
                    let log = machine.log();
                    state::restore_groups(log.manifest(), |hash| bytes.get(hash).cloned())
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
            self.note_imported(groups.iter().map(|it| (it.group.as_str(), it.first_piece())));
        }
        match (result, &self.python) {
            (Ok((groups, execution_count)), Some(python)) => {
                self.held = HeldState::default();
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
        self.notices.begin_anew();
        self.publisher.began(cell.seq);
        let (seq, msg_id) = (cell.seq, cell.msg_id.clone());
        let mut running = RunningCell::new(term, seq, msg_id.clone(), cell.level, is_execute);
        running.stops_on_error = is_execute && aborted::stops_on_error(&message);
        running.notice = self.lost_state(term, seq).filter(|_| is_execute);
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
        self.prune_outputs();
        if self.cell.as_mut().is_some_and(RunningCell::waits_for_outputs) {
            return self.log_unlogged();
        }
        let Some(cell) = self.set_cell(None) else { return };
        self.traces.finished(&cell.msg_id, cell.seq);
        let Some(mut cell) = cell.finish() else { return };
        if let Some(reply) = cell.reply.take() {
            let place = self.numbers.next(cell.term, cell.seq);
            let output = PlacedOutput { place, message: reply };
            self.held_replies.insert(cell.seq, output.clone());
            cell.outputs.push(output);
        }
        let (mut packer, mut held) = (self.read(Packer::new), std::mem::take(&mut self.held));
        let (term, seq, captured) = (cell.term, cell.seq, cell.captured);
        let is_large = captured.length() > HASHED_IN_PLACE_BYTES_MAX;
        let pack = move || {
            let outputs = packer.outputs(&cell.outputs);
            let delta = packer.delta(captured, &mut held);
            Packed { term, seq, outputs, delta, held, chunks: packer.into_chunks() }
        };
        if !is_large {
            return self.packed(pack());
        }
        let (me, life) = (self.me.clone(), self.python_life);
        self.spreading = Some(tokio::spawn(async move {
            // Not `block_in_place`: it ends the thread it is called on some time later, and with it
            // the processes that this thread has started.
            if let Ok(packed) = tokio::task::spawn_blocking(pack).await {
                tell(&me, Internal::Packed(life, Box::new(packed)));
            }
        }));
    }

    /// Sends the chunks of a finished cell where a majority has them, then its entry to the log.
    pub(super) fn packed(&mut self, packed: Packed) {
        let Packed { term, seq, outputs, delta, held, mut chunks } = packed;
        self.held = held;
        let mut delta = match delta {
            Ok(delta) => delta,
            Err(error) => {
                // A fresh process begins with what the log has; the cell ends interrupted.
                tracing::error!(kernel = %self.args.spec.kernel, %error, "a defect; please report it");
                if let Some(python) = &self.python {
                    python.kill();
                }
                return;
            }
        };
        self.without_room.carry_on(&mut delta, &mut chunks);
        if chunks.is_empty() {
            self.step(Input::Finished { term, seq, outputs, delta });
            return;
        }
        let (context, me, voters) = (self.args.context.clone(), self.me.clone(), self.voters());
        let (owner, majority) = (self.args.spec.owner.clone(), self.majority());
        self.spreading = Some(tokio::spawn(async move {
            let spread =
                super::chunks::spread(&context, &owner, &voters, majority, chunks.clone()).await;
            let stored = Stored { term, seq, outputs, delta, no_room: None };
            let stored = match spread {
                Ok(()) => stored,
                Err(why) => Stored { no_room: Some((chunks, why)), ..stored },
            };
            tell(&me, Internal::Stored(Box::new(stored)));
        }));
    }

    /// A finished cell's bytes are where they have to be, or there is no room for them: then it
    /// ends without them, and with the reason.
    pub(super) fn stored(&mut self, stored: Stored) {
        let Stored { term, seq, mut outputs, mut delta, no_room } = stored;
        if let Some((chunks, why)) = no_room {
            tracing::warn!(kernel = %self.args.spec.kernel, %why, "there is no room for the state");
            self.without_room.refuse(&mut outputs, &mut delta, &chunks, &why);
        }
        self.step(Input::Finished { term, seq, outputs, delta });
    }

    /// Forgets outputs of the running cell that have arrived in the log.
    pub(super) fn prune_outputs(&mut self) {
        if let Some(cell) = &mut self.cell {
            self.group.read(|machine| cell.prune(|cursor| machine.log().has_output(cursor)));
        }
    }

    /// Puts all outputs of the running cell in the log, unless some have to be stored first.
    pub(super) fn log_unlogged(&mut self) {
        while let Some(due) = self.cell.as_mut().map(|cell| cell.take_unlogged(true))
            && !due.is_empty()
        {
            self.log_outputs(due);
        }
    }

    /// Puts outputs in the log; large ones once a majority has their bytes.
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
            cell.storing(true);
        }
        let (context, me, voters) = (self.args.context.clone(), self.me.clone(), self.voters());
        let (owner, majority) = (self.args.spec.owner.clone(), self.majority());
        let life = self.python_life;
        self.tasks.push(tokio::spawn(async move {
            let stored = super::chunks::spread(&context, &owner, &voters, majority, chunks).await;
            let stored = StoredOutputs { entry, outputs, no_room: stored.err() };
            tell(&me, Internal::OutputsStored(life, Box::new(stored)));
        }));
    }

    /// Large outputs are stored on a majority, or there is no room for them before their cell ends.
    pub(super) fn outputs_stored(&mut self, stored: StoredOutputs) {
        let StoredOutputs { entry, outputs, no_room } = stored;
        if let Some(cell) = &mut self.cell {
            cell.storing(false);
        }
        let Some(why) = no_room else {
            if let Some(last) = outputs.last() {
                self.publisher.stored(last.place.cursor);
            }
            return self.propose(entry);
        };
        tracing::warn!(kernel = %self.args.spec.kernel, %why, "outputs are not stored yet");
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
