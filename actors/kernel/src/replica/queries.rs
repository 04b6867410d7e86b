//! Requests that do not go through the log: status, outputs, interrupts, completions.

use std::sync::Arc;

use callboard_policy::terms::{Input, KernelLog, LoggedOutput, Part, PythonPhase};
use callboard_protocol::{
    Answer, Fault, FaultCode, Seq,
    control::NodeHealth,
    jupyter::JupyterMessage,
    kernel::{
        Accepted, AskFate, CellFate, CellState, GetOutputs, KernelPhase, KernelStatus, Output,
        OutputPart, Outputs, ReplicaRole, ReplicaStatus, Seen, SeenAnswer,
    },
};
use callboard_transport::{Message, typed};

use super::ReplicaState;
use crate::{
    NodeContext,
    state::{Named, pieces},
};

/// Bytes of outputs in one answer. In base64 and with JSON around it, it stays under the broker's
/// usual limit of 1 MiB.
const ANSWER_BYTES_MAX: u64 = 512 << 10;
/// The same of a part of one output.
const PART_BYTES_MAX: usize = 512 << 10;

const PASSED_ON: Accepted = Accepted { seq: Seq(0), state: CellState::Pending };

impl ReplicaState {
    /// Whether the executor is this replica and can be talked to.
    fn is_serving(&self) -> bool {
        matches!(self.executor.python(), PythonPhase::Serving(_))
    }

    /// Passes a request that runs no user code to the Python process.
    pub(super) fn direct(&mut self, message: &Message, jupyter: JupyterMessage) {
        if self.is_serving() {
            if let Some(python) = &self.python {
                python.send(jupyter);
            }
            self.answer_with(message, Ok(PASSED_ON));
        } else {
            self.refuse_if_nobody_serves(message);
        }
        self.step(Input::Wanted);
    }

    /// Interrupts the cell that runs, if it runs here.
    pub(super) fn interrupt(&mut self, message: &Message, _request: &JupyterMessage) {
        if self.is_serving() {
            if let Some(python) = &self.python {
                python.interrupt();
            }
            self.answer_with(message, Ok(PASSED_ON));
        } else {
            self.refuse_if_nobody_serves(message);
        }
    }

    fn refuse_if_nobody_serves(&self, message: &Message) {
        if self.group.is_leader() && self.read(|log| log.open_term().is_none()) {
            let why = "no replica of the kernel is ready to run cells just now: try again in a \
                       moment, or look at `callboard kernel show`";
            self.answer_with::<Accepted>(message, Err(Fault::new(FaultCode::Unavailable, why)));
        }
    }

    pub(super) fn answer_with<T: serde::Serialize>(
        &self,
        message: &Message,
        result: Result<T, Fault>,
    ) {
        if let Some(reply_to) = &message.reply_to {
            self.publisher.answer(reply_to, &Answer::from(result));
        }
    }

    /// Says whether this member has every chunk the log names: the leader asks before it makes a
    /// learner a voter.
    pub(super) fn answer_readiness(&self, message: &Message) {
        self.answer_with(message, Ok(self.chunks_complete));
    }

    pub(super) fn refuse(&self, message: &Message, fault: Fault) {
        self.answer_with::<Accepted>(message, Err(fault));
    }

    /// Whether a new cell has to be turned away as the executor's disk is too full; then only the
    /// executor answers, and nobody else takes the cell.
    pub(super) fn lacks_disk(&self, message: &Message) -> bool {
        let executor = self.read(|log| log.open_term().map(|open| open.replica));
        let is_me = executor.map_or(self.group.is_leader(), |it| it == self.args.replica);
        if is_me {
            let why = self.args.context.disk.borrow().clone();
            if let Some(why) = &why {
                self.refuse(message, Fault::new(FaultCode::Exhausted, why.as_str()));
            }
            return why.is_some();
        }
        let members = self.group.members();
        let Some(node) = executor.and_then(|executor| members.voters.get(&executor)) else {
            return false;
        };
        let nodes = self.args.context.nodes.borrow();
        nodes.nodes.get(node).is_some_and(|view| {
            let beat = view.last_beat.as_ref().and_then(|beat| beat.disk_level.as_ref());
            view.health == NodeHealth::Up && beat.is_some_and(|disk| disk.is_high)
        })
    }

    /// Answers with the outputs after a cursor, as many as fit.
    pub(super) fn answer_outputs(&self, message: &Message) {
        if !self.group.is_leader() {
            return;
        }
        let asked = if message.payload.is_empty() {
            Ok(GetOutputs::default())
        } else {
            typed::decode::<GetOutputs>(message)
        };
        let GetOutputs { since, offset } = match asked {
            Ok(asked) => asked,
            Err(fault) => return self.refuse(message, fault),
        };
        let (picked, gap, more, ended) = self.read(|log| {
            let (outputs, gap) = log.outputs_since(since);
            let (mut picked, mut bytes, mut more) = (Vec::new(), 0, false);
            for output in outputs {
                bytes += output.message.length();
                if bytes > ANSWER_BYTES_MAX && !picked.is_empty() {
                    more = true;
                    break;
                }
                picked.push(LoggedOutput::clone(output));
            }
            let cells = || picked.iter().map(|output| output.place.cell).filter(|it| *it != Seq(0));
            let ended = match (cells().min(), cells().max()) {
                (Some(first), Some(last)) => log.ends_between(first, last),
                _ => Vec::new(),
            };
            (picked, gap, more, ended)
        });
        let Some(reply_to) = message.reply_to.clone() else { return };
        let (context, owner) = (self.args.context.clone(), self.args.spec.owner.clone());
        let (publisher, peers) = (self.publisher.clone(), self.peers());
        tokio::spawn(async move {
            let (outputs, lost) = load(&context, &owner, &peers, picked).await;
            let gap = gap || lost;
            let mut answer = Outputs { outputs, gap, more, ended, part: None };
            cut(&mut answer, offset);
            let answer = Answer::Ok(answer);
            publisher.answer(&reply_to, &answer);
        });
    }

    /// Answers with what the leader knows of the kernel.
    pub(super) fn answer_show(&self, message: &Message) {
        if self.group.is_leader() {
            self.answer_with(message, Ok(self.status()));
        }
    }

    /// Notes how far a session is, or says how far it was.
    pub(super) fn seen(&self, message: &Message) {
        let (context, kernel) = (&self.args.context, self.args.spec.kernel);
        match typed::decode::<Seen>(message) {
            Ok(Seen { session, place: Some(place) }) => {
                context.cursors.note(kernel, session, place);
            }
            Ok(Seen { session, place: None }) if self.group.is_leader() => {
                let place = context.cursors.of(kernel, &session);
                let last = self.read(KernelLog::last_output);
                self.answer_with(message, Ok(SeenAnswer { place, last }));
            }
            Err(fault) if self.group.is_leader() => self.refuse(message, fault),
            Ok(_) | Err(_) => {}
        }
    }

    /// Says what became of a request, if this replica leads.
    pub(super) fn answer_fate(&self, message: &Message) {
        if !self.group.is_leader() {
            return;
        }
        let fate = typed::decode::<AskFate>(message).map(|AskFate { msg_id }| {
            self.read(|log| {
                let accepted = log.request(&msg_id).map(|(seq, _, end)| Accepted {
                    seq,
                    state: end.map_or(CellState::Pending, |end| CellState::Ended(end.clone())),
                });
                CellFate { accepted }
            })
        });
        self.answer_with(message, fate);
    }

    fn phase(&self, log: &KernelLog) -> KernelPhase {
        if !log.pending().is_empty() {
            KernelPhase::Running
        } else if log.open_term().is_some() {
            KernelPhase::Idle
        } else if self.executor.is_resting(log) {
            KernelPhase::Parked
        } else {
            KernelPhase::Starting
        }
    }

    pub(super) fn status(&self) -> KernelStatus {
        let metrics = self.group.metrics().borrow().clone();
        let nodes = self.args.context.nodes.borrow().clone();
        let executor = self.read(|log| log.open_term().map(|open| open.replica));
        let last = metrics.last_log.unwrap_or(0);
        let replica = |id, node, is_voter| {
            let matched = if id == self.args.replica {
                Some(last)
            } else {
                metrics.matched.get(&id).copied().flatten()
            };
            let is_up = nodes.nodes.get(&node).is_none_or(|view| view.health == NodeHealth::Up);
            let role = match (is_up, executor == Some(id), is_voter) {
                (false, ..) => ReplicaRole::Unreachable,
                (true, true, _) => ReplicaRole::Executor,
                (true, false, true) => ReplicaRole::Standby,
                (true, false, false) => ReplicaRole::Learner,
            };
            ReplicaStatus {
                replica: id,
                node,
                role,
                lag_entries: matched.map(|matched| last.saturating_sub(matched)),
            }
        };
        let members = metrics.members;
        let voters = members.voters.len() as u64;
        let mut replicas: Vec<ReplicaStatus> =
            members.voters.into_iter().map(|(id, node)| replica(id, node, true)).collect();
        replicas.extend(members.learners.into_iter().map(|(id, node)| replica(id, node, false)));
        let healthy = replicas
            .iter()
            .filter(|r| matches!(r.role, ReplicaRole::Executor | ReplicaRole::Standby))
            .count() as u64;
        let waits_for = self.waits_for();
        let limits = self.limits();
        self.read(|log| KernelStatus {
            term: log.open_term().map(|open| open.term),
            accepted: log.accepted(),
            ended: Seq(log.accepted().0 - log.pending().len() as u64),
            queue_depth: log.pending().len() as u64,
            raft_leader: Some(self.args.replica),
            losses_survivable: healthy.saturating_sub(voters / 2 + 1),
            replicas,
            names: names_of(log, "variables"),
            files: names_of(log, "file"),
            limits,
            unenforced: self.args.context.confinement.cgroups.unenforced(&limits),
            refused: log.refused().to_vec(),
            state_bytes: log
                .manifest()
                .values()
                .flat_map(|group| &group.parts)
                .map(Part::length)
                .sum(),
            last_loss: log.last_loss().map(str::to_owned),
            waits_for,
            phase: self.phase(log),
            not_replicated: self.args.spec.settings.kernelspec.is_some(),
        })
    }
}

/// The names in all groups of one kind, in order.
fn names_of(log: &KernelLog, kind: &str) -> Vec<String> {
    let groups = log.manifest().values().filter(|group| group.kind == kind);
    let mut names: Vec<String> = groups.flat_map(|group| group.names.iter().cloned()).collect();
    names.sort_unstable();
    names
}

/// Leaves of an output that is too large for one answer the part from `offset` on.
fn cut(answer: &mut Outputs, offset: u64) {
    let [output] = &mut answer.outputs[..] else { return };
    let length = output.message.len();
    let begin = usize::try_from(offset).map_or(length, |offset| offset.min(length));
    let end = length.min(begin + PART_BYTES_MAX);
    if (begin, end) != (0, length) {
        output.message = output.message.slice(begin..end);
        answer.part = Some(OutputPart { offset: begin as u64, length: length as u64 });
        answer.more |= end < length;
    }
}

/// Reads logged outputs back; an output whose bytes can be had nowhere is left out.
async fn load(
    context: &Arc<NodeContext>,
    owner: &callboard_protocol::OwnerId,
    peers: &[callboard_protocol::NodeId],
    logged: Vec<LoggedOutput>,
) -> (Vec<Output>, bool) {
    let (mut outputs, mut lost) = (Vec::with_capacity(logged.len()), false);
    for LoggedOutput { place, message } in logged {
        let named = Named::of([&message]);
        let read = super::chunks::read_named(context, owner, peers, &named).await;
        let pieces =
            read.ok().and_then(|read| pieces(&message, |hash| read.get(hash).cloned()).ok());
        let message = pieces.map(|pieces| match &pieces[..] {
            [whole] => whole.clone(),
            pieces => pieces.concat().into(),
        });
        match message {
            Some(message) => outputs.push(Output { place, message }),
            None => {
                tracing::warn!(%place, "an output is lost");
                lost = true;
            }
        }
    }
    (outputs, lost)
}
