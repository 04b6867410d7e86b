//! The replica actor.
//!
//! Owns: one member of the kernel's Raft group, one Python process, the cell that runs in it.
//! Never: decides who executes (`terms::Executor` does), places replicas (control does).
//! Supervised by the node's replica supervisor. A restart loses the Python process and the
//! requests not yet in the log: the log closes the lost term, clients resend.
//! Talks to: its Raft group, the kernel's subjects on the bus, its Python process.

mod actions;
mod asleep;
mod beginning;
mod branch;
mod chunks;
mod hibernating;
mod language;
mod life;
mod limits;
mod membership;
mod needs;
mod parking;
mod proposing;
mod python_events;
mod queries;
mod starting;
mod transfer;
mod undo;
mod wish;

use std::{
    collections::{BTreeMap, HashMap},
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use callboard_policy::{
    hibernation::{self, Hibernation},
    terms::{Applied, Entry, Executor, Input, KernelLog, LoggedOutput, StateDelta},
};
use callboard_protocol::{
    ReplicaId, Seq, Term, control::KernelSpec, environment::Environment, kernel::SleepOffer,
};
use callboard_replicated::{Applied as GroupEvent, Group, ProposeError};
use callboard_transport::{Message, ReplyTo};
use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use tokio::task::JoinHandle;

pub(crate) use hibernating::{VERB_OFFER, VERB_SLEEP};
use life::Life;
use starting::Tasks;

use crate::{
    KernelMachine, ReplicaArgs,
    cell_traces::CellTraces,
    held::HeldState,
    publisher::Publisher,
    python::{PythonEvent, PythonProcess, RestoreGroup},
    refusal::WithoutRoom,
    requests::{self, Asked},
    running_cell::{OutputNumbers, PlacedOutput, RunningCell},
    said,
};

/// Shortest and longest pause between failed starts of Python.
const PYTHON_PAUSE_MIN: Duration = Duration::from_millis(250);
const PYTHON_PAUSE_MAX: Duration = Duration::from_secs(15);
/// Askers remembered per request; a front-end that resends leaves one each time.
const ASKERS_PER_REQUEST_MAX: usize = 8;

/// What a replica is told.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "a box would cost an allocation for each message, to save memory that few of them take"
)]
pub enum ReplicaMsg {
    /// The kernel's entry in the desired state changed.
    SpecChanged(KernelSpec),
    /// End; with `purge`, for good: the log of this member is removed.
    Stop {
        /// Whether the kernel or this member is gone for good.
        purge: bool,
        /// Told when it is done.
        done: RpcReplyPort<()>,
    },
    /// Kill the Python process, for chaos tests and operators.
    KillPython,
    /// From this replica's own tasks.
    Internal(Internal),
}

/// The groups of a state with their bytes, and the execution count.
pub(crate) type ReadState = (Vec<RestoreGroup>, u64);

/// What a replica's own tasks tell it.
#[derive(Debug)]
pub enum Internal {
    /// A message on one of the kernel's subjects.
    Bus(Box<Message>),
    /// A message on this replica's own subjects.
    OwnBus(Box<Message>),
    /// The Raft group moved on.
    Group(GroupEvent<KernelMachine>),
    /// The Python process of the given life did something.
    Python(u64, Box<PythonEvent>),
    /// The log answered a proposal.
    Proposed(Option<String>, Result<Applied, ProposeError>),
    /// A finished cell of the given life of Python is packed; its bytes can be stored.
    Packed(u64, Box<actions::Packed>),
    /// A finished cell's bytes are stored, or there is no room for them; it can go to the log.
    Stored(Box<Stored>),
    /// Large outputs of the given life of Python are stored, or there is no room for them.
    OutputsStored(u64, Box<actions::StoredOutputs>),
    /// Whether all chunks of the state can be read here, and whether all that the log names can.
    BaseReadable(bool, bool),
    /// The state of a term could be read and was handed to Python, or not.
    RestoreRead(Term, Result<ReadState, String>),
    /// The control plane knows what the session needs.
    NeedsNoted(Box<Environment>),
    /// The nodes' health changed.
    Nodes,
    /// The group's leader or members changed.
    Membership,
    /// A change of the group's members is over.
    MembershipChanged,
    /// A member said whether it may sleep.
    SleepAnswered {
        /// The question.
        attempt: u64,
        /// Who.
        from: ReplicaId,
        /// Whether it may.
        agreed: bool,
    },
    /// A Raft message asks for this replica, which sleeps.
    Called,
    /// The time to park the kernel has come.
    ParkDue,
    /// The time to wake for a lost executor has come, unless it is back.
    WakeDue,
    /// It is time to start Python again.
    StartPython,
    /// The completion of a cell has waited long enough for company.
    Lingered(Seq),
    /// Time passed.
    Tick,
}

/// A finished cell after its bytes went to the disks.
#[derive(Debug)]
pub struct Stored {
    term: Term,
    seq: Seq,
    outputs: Vec<LoggedOutput>,
    delta: StateDelta,
    /// The bytes that found no room, and why.
    no_room: Option<(Vec<bytes::Bytes>, String)>,
}

/// How long a request that nobody ordered is remembered; its sender has resent it by then.
const REQUEST_KEPT: Duration = Duration::from_secs(15);

/// The replica actor.
#[derive(Debug)]
pub struct Replica;

/// A replica at work.
#[derive(Debug)]
pub struct ReplicaState {
    args: ReplicaArgs,
    me: ActorRef<ReplicaMsg>,
    group: Group<KernelMachine>,
    executor: Executor,
    started: Instant,
    publisher: Publisher,
    python: Option<PythonProcess>,
    python_life: u64,
    python_failures: u32,
    cell: Option<RunningCell>,
    held: HeldState,
    numbers: OutputNumbers,
    held_replies: BTreeMap<Seq, PlacedOutput>,
    abort_through: Seq,
    /// Completions that wait for company, each with its cell.
    lingering: Vec<(Seq, Entry)>,
    spreading: Option<JoinHandle<()>>,
    without_room: WithoutRoom,
    askers: HashMap<String, (Instant, Vec<ReplyTo>)>,
    traces: CellTraces,
    chunk_keeper: chunks::ChunkKeeper,
    chunks_complete: bool,
    needs: needs::Needs,
    changing_members: bool,
    told_generation: Option<Instant>,
    trouble: beginning::Trouble,
    transfers: transfer::Transfers,
    wish: Option<wish::Wish>,
    hibernation: Hibernation,
    notices: parking::Notices,
    /// It sleeps after this message; whom it tells then.
    sleep_due: Option<(SleepOffer, Vec<ReplicaId>)>,
    /// Tasks of this waking.
    tasks: Tasks,
    /// Tasks that feed the mailbox, also in its sleep.
    feeds: Tasks,
}

#[ractor::async_trait]
impl Actor for Replica {
    type Msg = ReplicaMsg;
    type State = Life;
    type Arguments = ReplicaArgs;

    async fn pre_start(
        &self,
        me: ActorRef<ReplicaMsg>,
        args: ReplicaArgs,
    ) -> Result<Life, ActorProcessingErr> {
        Ok(Life::start(me, args).await?)
    }

    async fn handle(
        &self,
        me: ActorRef<ReplicaMsg>,
        message: ReplicaMsg,
        life: &mut Life,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            ReplicaMsg::SpecChanged(spec) => life.spec_changed(spec).await?,
            ReplicaMsg::Stop { purge, done } => {
                life.stop(purge).await;
                let _ = done.send(());
                me.stop(None);
            }
            ReplicaMsg::KillPython => life.kill_python(),
            ReplicaMsg::Internal(internal) => life.take(internal).await?,
        }
        Ok(())
    }

    async fn post_stop(
        &self,
        _me: ActorRef<ReplicaMsg>,
        life: &mut Life,
    ) -> Result<(), ActorProcessingErr> {
        life.stop(false).await;
        Ok(())
    }
}

impl ReplicaState {
    fn internal(&mut self, internal: Internal) {
        match internal {
            Internal::Bus(message) => self.asked(*message),
            Internal::OwnBus(message) => self.own_bus(&message),
            Internal::Group(event) => self.group_event(event),
            Internal::Python(life, event) if life == self.python_life => {
                self.active();
                self.python_event(*event);
            }
            Internal::Python(..) => {}
            Internal::Proposed(msg_id, result) => self.proposed(msg_id, result),
            Internal::Packed(life, packed) if life == self.python_life => self.packed(*packed),
            Internal::Packed(..) => {}
            Internal::Stored(stored) => self.stored(*stored),
            Internal::OutputsStored(life, stored) if life == self.python_life => {
                self.outputs_stored(*stored);
            }
            Internal::OutputsStored(..) => {}
            Internal::BaseReadable(readable, complete) => {
                self.chunks_complete = complete;
                let readable = readable && !self.is_beginning();
                self.step(Input::BaseReadable(readable));
            }
            Internal::RestoreRead(term, result) => self.restore_read(term, result),
            Internal::NeedsNoted(needs) => self.needs_noted(*needs),
            Internal::Nodes => self.nodes_changed(),
            Internal::Membership => {
                // Another leader copies to the object store.
                self.chunk_keeper.look();
                self.membership_changed();
            }
            Internal::MembershipChanged => {
                // The next step is looked for at the next tick.
                self.changing_members = false;
                self.membership_changed();
            }
            Internal::SleepAnswered { attempt, from, agreed } => {
                self.hibernate(hibernation::Input::Answered { attempt, from, agreed });
            }
            // It woke for this, or was awake already.
            Internal::Called | Internal::WakeDue | Internal::ParkDue => {}
            Internal::StartPython => self.launch_python(),
            Internal::Lingered(seq) => self.lingered(seq),
            Internal::Tick => self.tick(),
        }
    }

    /// Lets the local machine see `input`, then carries out what it wants.
    fn step(&mut self, input: Input) {
        let now_ms = self.now_ms();
        let executor = &mut self.executor;
        let actions = self.group.read(|machine| executor.step(machine.log(), input, now_ms));
        for action in actions {
            self.carry_out(action);
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn read<R>(&self, look: impl FnOnce(&KernelLog) -> R) -> R {
        self.group.read(|machine| look(machine.log()))
    }

    fn asked(&mut self, message: Message) {
        // A look at a kernel does not keep it awake.
        let is_look = requests::is_show(&message) || requests::is_seen(&message);
        if !is_look && !requests::is_generation(&message) {
            self.active();
        }
        match requests::parse(&message) {
            Ok(Asked::Cell(_)) if self.lacks_disk(&message) => {}
            // Whoever sent it sends it again, and by then there is a log to put it in.
            Ok(Asked::Cell(_)) if self.is_recovering() => {}
            Ok(Asked::Cell(request)) => {
                if let Some(reply_to) = message.reply_to {
                    let (_, askers) = self
                        .askers
                        .entry(request.msg_id.clone())
                        .or_insert_with(|| (Instant::now(), Vec::new()));
                    if askers.len() < ASKERS_PER_REQUEST_MAX {
                        askers.push(reply_to);
                    }
                }
                self.traces.asked(&request.msg_id, &message.envelope);
                self.step(Input::Requested(request));
            }
            Ok(Asked::Direct(jupyter)) => self.direct(&message, jupyter),
            Ok(Asked::Interrupt(jupyter)) => self.interrupt(&message, &jupyter),
            Ok(Asked::Outputs) => self.answer_outputs(&message),
            Ok(Asked::Show) => self.answer_show(&message),
            Ok(Asked::Seen) => self.seen(&message),
            Ok(Asked::Fate) => self.answer_fate(&message),
            Ok(Asked::Undo) => self.undo_verb(&message),
            Ok(Asked::GetChunk | Asked::PutChunk) if !self.group.is_leader() => {}
            Ok(Asked::GetChunk) => self.give_chunk(&message),
            Ok(Asked::PutChunk) => self.take_chunk(&message),
            Ok(Asked::Alive) => self.answer_alive(&message),
            Ok(Asked::Generation(generation)) => self.heard_generation(generation),
            Err(fault) if self.group.is_leader() => {
                self.refuse(&message, fault);
            }
            Err(_) => {}
        }
    }

    fn group_event(&mut self, event: GroupEvent<KernelMachine>) {
        match event {
            GroupEvent::Command { output, .. } => {
                self.active();
                if matches!(
                    output,
                    Applied::Completed(_)
                        | Applied::Emitted
                        | Applied::Rewound { .. }
                        | Applied::Restarted { .. }
                        | Applied::Begun
                        | Applied::Closed { .. }
                ) {
                    self.chunk_keeper.look();
                }
                if matches!(output, Applied::Restarted { .. }) && self.group.is_leader() {
                    // Not `restarting`: front-ends take that for a kernel that died.
                    let starting = said::status(self.args.spec.kernel, "starting");
                    self.publisher.emitted(&starting, None);
                }
                if matches!(output, Applied::Emitted) {
                    // It may have waited for that.
                    self.finish_cell();
                }
                if let Applied::Completed(end) = &output {
                    self.grant_wish(end.seq);
                }
                self.step(Input::Applied(output));
            }
            GroupEvent::Installed { .. } => {
                self.chunk_keeper.look();
                self.step(Input::Tick);
            }
            GroupEvent::Membership { .. } => {
                self.active();
                self.membership_changed();
            }
        }
    }

    fn tick(&mut self) {
        self.prune_outputs();
        self.log_unlogged();
        self.finish_cell();
        self.watch_wall_time();
        self.warn_of_parking();
        self.step(Input::Tick);
        self.drive_membership();
        self.tell_generation();
        self.report_needs();
        self.hibernate(hibernation::Input::Look);
        self.tasks.tidy();
        self.askers.retain(|_, (since, _)| since.elapsed() < REQUEST_KEPT);
        let group = &self.group;
        self.traces.retain(|msg_id, age| {
            age < REQUEST_KEPT
                || group.read(|machine| {
                    machine.log().request(msg_id).is_some_and(|(.., end)| end.is_none())
                })
        });
    }

    async fn stop(&mut self, purge: bool) {
        if !purge {
            self.finish_lingering().await;
        }
        self.tasks.abort();
        self.feeds.abort();
        if let Some(spreading) = self.spreading.take() {
            spreading.abort();
        }
        self.set_cell(None);
        self.python = None;
        if purge {
            if let Err(error) = self.group.clone().remove().await {
                tracing::warn!(%error, "a member's log could not be removed");
            }
        } else {
            self.group.shutdown().await;
        }
    }

    /// Replaces the running cell, keeps the node's count of running cells right, and returns the
    /// former one.
    fn set_cell(&mut self, cell: Option<RunningCell>) -> Option<RunningCell> {
        let running = &self.args.context.stats.running_cells;
        match (self.cell.is_some(), cell.is_some()) {
            (false, true) => drop(running.fetch_add(1, Ordering::Relaxed)),
            (true, false) => drop(running.fetch_sub(1, Ordering::Relaxed)),
            _ => {}
        }
        std::mem::replace(&mut self.cell, cell)
    }
}

/// How long to wait before Python is started again after it failed to come up.
fn python_pause(failures: u32) -> Duration {
    match failures {
        0 => Duration::ZERO,
        n => PYTHON_PAUSE_MIN.saturating_mul(1 << n.min(6)).min(PYTHON_PAUSE_MAX),
    }
}

/// Tells a replica something from one of its tasks; a replica that is gone needs nothing.
fn tell(me: &ActorRef<ReplicaMsg>, internal: Internal) {
    let _ = me.send_message(ReplicaMsg::Internal(internal));
}
