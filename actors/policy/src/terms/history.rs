//! What a kernel can go back to: the last steps of its state, and states kept by name.
//!
//! A step is what one completed cell, interrupted cell or rewind did to the state. Each holds what
//! stood there before, so that walking back from the present state gives every earlier one. A
//! rewind is a step like any other, which is why it can be undone. Positions count steps: the state
//! at position `n` is the one after the `n`th step, and a position is never used twice.
//!
//! Old steps are forgotten first; a state kept by name stays until its name is removed.

mod measure;
mod refusal;
mod view;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use callboard_protocol::{Seq, kernel::Refused};
use serde::{Deserialize, Serialize};

pub(super) use measure::first_line;
use measure::{chunks_lost, group_bytes, inline_bytes};
pub use refusal::UndoRefusal;

use super::{
    KernelLog,
    entry::{StateDelta, StateGroup},
};

/// Steps that can be undone; a long day at one notebook.
pub const HISTORY_STEPS_MAX: usize = 200;
/// Bytes that the steps may hold in the log itself: each snapshot carries them.
pub const HISTORY_INLINE_BYTES_MAX: u64 = 1 << 20;
/// Bytes of chunks that nothing but the steps may keep on the disks: a few states of a large
/// session.
pub const HISTORY_CHUNK_BYTES_MAX: u64 = 2 << 30;
/// States kept by name.
pub const CHECKPOINTS_MAX: usize = 16;
/// Bytes that named states may hold in the log itself.
const CHECKPOINTS_INLINE_BYTES_MAX: u64 = 4 << 20;
/// What the Python side calls state that is the session's and not its process's: its files, and
/// what was installed for it.
const OUTLIVES_RESTART: [&str; 2] = ["file", "environment"];

/// The state of a session at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Moment {
    /// Its groups, by id.
    pub manifest: BTreeMap<String, StateGroup>,
    /// Names that were not carried, and why.
    pub refused: Vec<Refused>,
    /// Number that Python gave the next cell.
    pub execution_count: u64,
}

/// Where to go back to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum RewindTo {
    /// The state after so many steps.
    Position(u64),
    /// A state kept by name.
    Checkpoint(String),
}

/// What a step was.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) enum StepKind {
    /// A cell that ran to its end.
    Completed,
    /// A cell whose executor was lost: it changed nothing.
    Interrupted,
    /// The state became an earlier one.
    Rewound {
        /// Who asked for it, so that asking again is recognised.
        id: String,
        /// The position whose state it became.
        position: u64,
        /// The cell that had left that state.
        seq: Seq,
        /// The name it was kept under, if it was.
        name: Option<String>,
    },
    /// The session began anew.
    Restarted {
        /// Who asked for it.
        id: String,
    },
}

impl StepKind {
    fn is_cell(&self) -> bool {
        matches!(self, Self::Completed | Self::Interrupted)
    }
}

/// What stood where a step changed something.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
struct Before {
    groups: Vec<(String, Option<StateGroup>)>,
    refused: Option<Vec<Refused>>,
    execution_count: u64,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct Step {
    kind: StepKind,
    /// The cell, or the one whose state a rewind brought back.
    seq: Seq,
    /// The number the cell bore in its notebook, if it bore one.
    number: Option<u64>,
    first_line: String,
    changed_bytes: u64,
    state_bytes: u64,
    before: Before,
    inline_bytes: u64,
    chunk_bytes: u64,
}

/// A state kept by name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct Checkpoint {
    position: u64,
    seq: Seq,
    moment: Moment,
}

/// The steps, and the states kept by name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct History {
    /// Steps ever taken.
    position: u64,
    steps: VecDeque<Step>,
    /// The step that left the oldest state that can be gone back to, its own way back forgotten;
    /// none if that state is the one the kernel began with.
    base: Option<Step>,
    checkpoints: BTreeMap<String, Checkpoint>,
    state_bytes: u64,
}

/// A cell that ended, as the history keeps it.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) seq: Seq,
    pub(super) first_line: String,
}

impl KernelLog {
    /// How many steps the state has taken. Changes with every completed or interrupted cell and
    /// with every rewind.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.history.position
    }

    /// Every group that a step or a named state could bring back.
    pub fn kept_groups(&self) -> impl Iterator<Item = &StateGroup> {
        let steps = self.history.steps.iter().flat_map(|step| &step.before.groups);
        let named = self.history.checkpoints.values();
        steps
            .filter_map(|(_, group)| group.as_ref())
            .chain(named.flat_map(|checkpoint| checkpoint.moment.manifest.values()))
    }

    /// The present state.
    #[must_use]
    pub fn moment(&self) -> Moment {
        Moment {
            manifest: self.manifest.clone(),
            refused: self.refused.clone(),
            execution_count: self.execution_count,
        }
    }

    /// The state at an earlier place.
    ///
    /// # Errors
    /// A sentence if it is no longer kept.
    pub fn moment_at(&self, to: &RewindTo) -> Result<Moment, UndoRefusal> {
        let position = match to {
            RewindTo::Checkpoint(name) => {
                let checkpoint = self.history.checkpoints.get(name);
                let moment = checkpoint.map(|checkpoint| checkpoint.moment.clone());
                return moment.ok_or_else(|| self.no_checkpoint(name));
            }
            RewindTo::Position(position) => *position,
        };
        let behind = self.history.position.checked_sub(position);
        let behind = behind.and_then(|behind| usize::try_from(behind).ok());
        let Some(behind) = behind.filter(|behind| *behind <= self.history.steps.len()) else {
            return Err(self.not_kept(format!("the state at position {position}")));
        };
        let mut moment = self.moment();
        for step in self.history.steps.iter().rev().take(behind) {
            step.before.put_back(&mut moment);
        }
        Ok(moment)
    }

    /// Notes a completed cell, before `delta` is applied.
    pub(super) fn note_completed(&mut self, ended: Ended, delta: &StateDelta) {
        let mut before = Before {
            refused: (self.refused != delta.refused).then(|| self.refused.clone()),
            execution_count: self.execution_count,
            ..Before::default()
        };
        let (mut gone, mut come) = (0, 0);
        for (id, new) in &delta.upsert {
            let old = self.manifest.get(id);
            come += group_bytes(new);
            gone += old.map_or(0, group_bytes);
            if old != Some(new) {
                before.groups.push((id.clone(), old.cloned()));
            }
        }
        for id in &delta.removed {
            if let Some(old) = self.manifest.get(id) {
                gone += group_bytes(old);
                before.groups.push((id.clone(), Some(old.clone())));
            }
        }
        self.begin_history();
        let history = &mut self.history;
        history.state_bytes = (history.state_bytes + come).saturating_sub(gone);
        let number = self.execution_count.max(1);
        let replaced = chunks_lost(&before, delta.upsert.iter().map(|(_, group)| group));
        history.push(Step {
            kind: StepKind::Completed,
            seq: ended.seq,
            number: (delta.execution_count > number).then_some(number),
            first_line: ended.first_line,
            changed_bytes: come,
            state_bytes: history.state_bytes,
            inline_bytes: before.inline_bytes(),
            chunk_bytes: replaced,
            before,
        });
    }

    /// Notes an interrupted cell.
    pub(super) fn note_interrupted(&mut self, ended: Ended) {
        self.begin_history();
        let execution_count = self.execution_count;
        self.history.push(Step {
            kind: StepKind::Interrupted,
            seq: ended.seq,
            number: None,
            first_line: ended.first_line,
            changed_bytes: 0,
            state_bytes: self.history.state_bytes,
            before: Before { execution_count, ..Before::default() },
            inline_bytes: 0,
            chunk_bytes: 0,
        });
    }

    /// A log from before there was a history does not know how its state came about.
    fn begin_history(&mut self) {
        let history = &mut self.history;
        if history.position > 0 || history.base.is_some() {
            return;
        }
        history.state_bytes = self.manifest.values().map(group_bytes).sum();
        if self.completed > Seq::default() {
            history.base = Some(Step {
                kind: StepKind::Completed,
                seq: self.completed,
                number: None,
                first_line: String::new(),
                changed_bytes: 0,
                state_bytes: history.state_bytes,
                before: Before::default(),
                inline_bytes: 0,
                chunk_bytes: 0,
            });
        }
    }

    /// Makes an earlier state the present one. The caller has seen that no cell is pending.
    pub(super) fn go_back(
        &mut self,
        id: String,
        at: u64,
        to: &RewindTo,
    ) -> Result<Seq, UndoRefusal> {
        if self.rewound_by(&id).is_some() || at != self.history.position {
            return Err(UndoRefusal::Moved);
        }
        let target = self.moment_at(to)?;
        let (position, seq, name) = self.place_of(to);
        self.become_state(target, seq, StepKind::Rewound { id, position, seq, name });
        Ok(seq)
    }

    /// Makes a session of its files alone the present one, as a restarted process has it.
    pub(super) fn begin_anew(&mut self, id: String) {
        self.begin_history();
        let mut target = Moment::default();
        let lasting = self
            .manifest
            .iter()
            .filter(|(_, group)| OUTLIVES_RESTART.contains(&group.kind.as_str()));
        target.manifest = lasting.map(|(id, group)| (id.clone(), group.clone())).collect();
        self.become_state(target, Seq::default(), StepKind::Restarted { id });
    }

    /// Makes `target` the present state, as one step that can be undone.
    fn become_state(&mut self, target: Moment, seq: Seq, kind: StepKind) {
        let now = self.moment();
        let ids: BTreeSet<&String> = now.manifest.keys().chain(target.manifest.keys()).collect();
        let groups = ids
            .into_iter()
            .filter(|id| now.manifest.get(*id) != target.manifest.get(*id))
            .map(|id| (id.clone(), now.manifest.get(id).cloned()))
            .collect();
        let before = Before {
            groups,
            refused: (now.refused != target.refused).then_some(now.refused),
            execution_count: now.execution_count,
        };
        let brought: Vec<&StateGroup> =
            before.groups.iter().filter_map(|(id, _)| target.manifest.get(id)).collect();
        let changed_bytes = brought.iter().map(|group| group_bytes(group)).sum();
        let chunk_bytes = chunks_lost(&before, brought.into_iter());
        Moment {
            manifest: self.manifest,
            refused: self.refused,
            execution_count: self.execution_count,
        } = target;
        self.history.state_bytes = self.manifest.values().map(group_bytes).sum();
        self.history.push(Step {
            kind,
            seq,
            number: None,
            first_line: String::new(),
            changed_bytes,
            state_bytes: self.history.state_bytes,
            inline_bytes: before.inline_bytes(),
            chunk_bytes,
            before,
        });
    }

    /// The cell whose state a rewind of this id brought back, if there was one; 0 for a restart.
    #[must_use]
    pub fn rewound_by(&self, id: &str) -> Option<Seq> {
        self.history.steps.iter().chain(&self.history.base).find_map(|step| match &step.kind {
            StepKind::Rewound { id: known, seq, .. } if known == id => Some(*seq),
            StepKind::Restarted { id: known } if known == id => Some(Seq::default()),
            _ => None,
        })
    }

    /// Keeps the present state under a name.
    pub(super) fn keep(&mut self, name: String, at: u64) -> Result<(), UndoRefusal> {
        check_name(&name)?;
        if let Some(kept) = self.history.checkpoints.get(&name) {
            let is_same = kept.position == at;
            return if is_same {
                Ok(())
            } else {
                Err(UndoRefusal::NameTaken { name, cell: kept.seq })
            };
        }
        if at != self.history.position {
            return Err(UndoRefusal::Moved);
        }
        let moment = self.moment();
        let held: u64 =
            self.history.checkpoints.values().map(|kept| kept.moment.inline_bytes()).sum();
        if self.history.checkpoints.len() >= CHECKPOINTS_MAX
            || held + moment.inline_bytes() > CHECKPOINTS_INLINE_BYTES_MAX
        {
            let names = self.history.checkpoints.keys().cloned().collect();
            return Err(UndoRefusal::TooManyCheckpoints { names });
        }
        self.begin_history();
        let (position, seq) = (self.history.position, self.present_cell());
        self.history.checkpoints.insert(name, Checkpoint { position, seq, moment });
        Ok(())
    }

    /// Forgets a name.
    pub(super) fn drop_checkpoint(&mut self, name: &str) -> Result<(), UndoRefusal> {
        let dropped = self.history.checkpoints.remove(name);
        dropped.map(drop).ok_or_else(|| self.no_checkpoint(name))
    }

    /// The cell that left the present state.
    fn present_cell(&self) -> Seq {
        self.history
            .steps
            .back()
            .or(self.history.base.as_ref())
            .map_or(Seq::default(), |step| step.seq)
    }

    /// The cell that left a state; 0 if none did.
    #[must_use]
    pub fn cell_of(&self, to: &RewindTo) -> Seq {
        self.place_of(to).1
    }

    /// Position, cell and name of a state that is known to be kept.
    fn place_of(&self, to: &RewindTo) -> (u64, Seq, Option<String>) {
        match to {
            RewindTo::Checkpoint(name) => {
                let kept = self.history.checkpoints.get(name);
                let (position, seq) =
                    kept.map_or_else(Default::default, |it| (it.position, it.seq));
                (position, seq, Some(name.clone()))
            }
            RewindTo::Position(position) => {
                let step = self.history.at(*position);
                (*position, step.map_or(Seq::default(), |step| step.seq), None)
            }
        }
    }
}

impl History {
    /// The position of the oldest state that can be gone back to.
    fn oldest(&self) -> u64 {
        self.position - self.steps.len() as u64
    }

    /// The step that left the state at a position.
    fn at(&self, position: u64) -> Option<&Step> {
        match position.checked_sub(self.oldest())? {
            0 => self.base.as_ref(),
            index => self.steps.get(usize::try_from(index).ok()? - 1),
        }
    }

    /// Adds a step and forgets the oldest ones that no longer fit.
    fn push(&mut self, step: Step) {
        self.position += 1;
        self.steps.push_back(step);
        let total = |bytes: fn(&Step) -> u64| self.steps.iter().map(bytes).sum::<u64>();
        let (mut inline, mut chunks) =
            (total(|step| step.inline_bytes), total(|step| step.chunk_bytes));
        while self.steps.len() > HISTORY_STEPS_MAX
            || inline > HISTORY_INLINE_BYTES_MAX
            || chunks > HISTORY_CHUNK_BYTES_MAX
        {
            let Some(oldest) = self.steps.pop_front() else { return };
            inline -= oldest.inline_bytes;
            chunks -= oldest.chunk_bytes;
            let before = Before::default();
            self.base = Some(Step { before, inline_bytes: 0, chunk_bytes: 0, ..oldest });
        }
    }
}

impl Before {
    fn put_back(&self, moment: &mut Moment) {
        for (id, group) in &self.groups {
            match group {
                Some(group) => moment.manifest.insert(id.clone(), group.clone()),
                None => moment.manifest.remove(id),
            };
        }
        if let Some(refused) = &self.refused {
            moment.refused.clone_from(refused);
        }
        moment.execution_count = self.execution_count;
    }

    fn inline_bytes(&self) -> u64 {
        let groups = self
            .groups
            .iter()
            .map(|(id, group)| id.len() as u64 + group.as_ref().map_or(0, inline_bytes));
        let refused = self.refused.iter().flatten();
        groups.sum::<u64>()
            + refused.map(|it| (it.name.len() + it.reason.len()) as u64).sum::<u64>()
    }
}

impl Moment {
    fn inline_bytes(&self) -> u64 {
        self.manifest.iter().map(|(id, group)| id.len() as u64 + inline_bytes(group)).sum()
    }
}

/// Whether a state can be kept under this name: it must not be mistaken for a cell.
fn check_name(name: &str) -> Result<(), UndoRefusal> {
    let is_number = name.bytes().all(|byte| byte.is_ascii_digit());
    if callboard_protocol::ids::is_token(name) && !is_number {
        Ok(())
    } else {
        Err(UndoRefusal::BadName { name: name.to_owned() })
    }
}

#[cfg(test)]
mod tests;
