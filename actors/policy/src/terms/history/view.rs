//! The history as people see it: the table of steps, what a text means, what a rewind would do.

use std::collections::{BTreeMap, BTreeSet};

use callboard_protocol::{
    Seq, Term,
    history::{CellShown, KernelHistory, NamedState, RewindPlan, StepOutcome, StepShown},
};

use super::{Moment, RewindTo, Step, StepKind, UndoRefusal};
use crate::terms::KernelLog;

/// What the Python side calls groups of a user's own variables.
const VARIABLES: &str = "variables";

impl KernelLog {
    /// The table of steps.
    #[must_use]
    pub fn history(&self) -> KernelHistory {
        let history = &self.history;
        let undone = self.undone_from(history.position);
        let oldest = history.oldest();
        let mut names: BTreeMap<u64, Vec<String>> = BTreeMap::new();
        for (name, kept) in &history.checkpoints {
            names.entry(kept.position).or_default().push(name.clone());
        }
        let base = history.base.as_ref().map(|step| (oldest, step));
        let steps = base
            .into_iter()
            .chain((oldest + 1..).zip(&history.steps))
            .map(|(position, step)| {
                let checkpoints = names.get(&position).cloned().unwrap_or_default();
                step.shown(position, undone.contains(&position), checkpoints)
            })
            .collect();
        let checkpoints = history
            .checkpoints
            .iter()
            .map(|(name, kept)| NamedState {
                name: name.clone(),
                cell: kept.seq,
                state_bytes: kept.moment.manifest.values().map(super::group_bytes).sum(),
            })
            .collect();
        KernelHistory {
            position: history.position,
            steps,
            checkpoints,
            reaches_start: oldest == 0 && history.base.is_none(),
        }
    }

    /// Whether a process that was started for `term`, and was given no state, lacks what cells have
    /// done: some ran before, and no restart was wished for since.
    #[must_use]
    pub fn has_outlived_its_process(&self, term: Term) -> bool {
        let last = self.last_ended().and_then(|msg_id| self.request(msg_id)?.2);
        let step = self.history.steps.back().or(self.history.base.as_ref());
        let is_anew = step.is_some_and(|step| matches!(step.kind, StepKind::Restarted { .. }));
        last.is_some_and(|end| end.term < term) && !is_anew
    }

    /// Positions of steps whose effect is not in the state at `position`.
    fn undone_from(&self, position: u64) -> BTreeSet<u64> {
        let oldest = self.history.oldest();
        let mut undone: BTreeSet<u64> = (oldest..=self.history.position).collect();
        let mut at = position;
        while at >= oldest {
            undone.remove(&at);
            match self.history.at(at).map(|step| &step.kind) {
                Some(StepKind::Rewound { position, .. }) if *position < at => at = *position,
                Some(StepKind::Restarted { .. }) => break,
                _ if at == 0 => break,
                _ => at -= 1,
            }
        }
        undone
    }

    /// What a person means: a checkpoint's name, the place of a cell (`7`; `0` is the start), the
    /// number in front of one (`In[7]`: the last that bore it), or a position (`@12`).
    ///
    /// # Errors
    /// A sentence if there is no such state any more.
    pub fn find_state(&self, text: &str) -> Result<RewindTo, UndoRefusal> {
        let text = text.trim();
        if self.history.checkpoints.contains_key(text) {
            return Ok(RewindTo::Checkpoint(text.to_owned()));
        }
        if let Some(position) = text.strip_prefix('@').and_then(|it| it.parse().ok()) {
            let to = RewindTo::Position(position);
            return self.moment_at(&to).map(|_| to);
        }
        if let Ok(seq) = text.parse::<u64>() {
            return self.find_cell(Seq(seq));
        }
        let number = text.strip_prefix("In[").and_then(|rest| rest.strip_suffix(']'));
        if let Some(number) = number.and_then(|number| number.trim().parse::<u64>().ok()) {
            let found = self.find_step(|step| step.number == Some(number));
            return found.ok_or_else(|| self.not_kept(format!("the state after In[{number}]")));
        }
        Err(self.no_checkpoint(text))
    }

    fn find_cell(&self, seq: Seq) -> Result<RewindTo, UndoRefusal> {
        let history = &self.history;
        if seq == Seq::default() && history.oldest() == 0 && history.base.is_none() {
            return Ok(RewindTo::Position(0));
        }
        if let Some(found) = self.find_step(|step| step.seq == seq && step.kind.is_cell()) {
            return Ok(found);
        }
        if seq > self.accepted() {
            let what = format!("there is no cell {seq} yet");
            return Err(UndoRefusal::Unknown { what, kept: self.what_is_kept() });
        }
        if self.pending().iter().any(|cell| cell.seq == seq) {
            return Err(UndoRefusal::Busy { first: seq });
        }
        Err(self.not_kept(format!("the state after cell {seq}")))
    }

    /// The latest step that passes.
    fn find_step(&self, passes: impl Fn(&Step) -> bool) -> Option<RewindTo> {
        let history = &self.history;
        let at = history.steps.iter().rposition(&passes).map(|index| index as u64 + 1);
        let at = at.or_else(|| history.base.as_ref().filter(|step| passes(step)).map(|_| 0));
        at.map(|at| RewindTo::Position(history.oldest() + at))
    }

    /// What a rewind would do.
    ///
    /// # Errors
    /// A sentence if it cannot be done.
    pub fn plan_rewind(&self, to: &RewindTo) -> Result<RewindPlan, UndoRefusal> {
        match self.pending().front() {
            Some(first) => Err(UndoRefusal::Busy { first: first.seq }),
            None => self.effect_of(to),
        }
    }

    /// What a rewind would do if no cell were pending.
    ///
    /// # Errors
    /// A sentence if the state is no longer kept.
    pub fn effect_of(&self, to: &RewindTo) -> Result<RewindPlan, UndoRefusal> {
        let target = self.moment_at(to)?;
        let (position, seq, checkpoint) = self.place_of(to);
        let undone = self.undone_from(position);
        let undone_before = self.undone_from(self.history.position);
        let cells = |positions: BTreeSet<u64>| -> Vec<CellShown> {
            let steps = positions.into_iter().filter_map(|at| self.history.at(at));
            steps.filter(|step| step.kind == StepKind::Completed).map(Step::cell).collect()
        };
        let present = self.moment();
        let (now, then) = (names(&present), names(&target));
        let changed = |name: &&String| now.get(*name) != then.get(*name);
        let both = now.keys().filter(|name| then.contains_key(*name));
        Ok(RewindPlan {
            position: self.history.position,
            cell: seq,
            checkpoint,
            execution_count: target.execution_count.max(1),
            changed: both.filter(changed).cloned().collect(),
            removed: now.keys().filter(|name| !then.contains_key(*name)).cloned().collect(),
            restored: then.keys().filter(|name| !now.contains_key(*name)).cloned().collect(),
            undone: cells(&undone - &undone_before),
            redone: cells(&undone_before - &undone),
        })
    }

    pub(super) fn not_kept(&self, what: String) -> UndoRefusal {
        UndoRefusal::NotKept { what, kept: self.what_is_kept() }
    }

    pub(super) fn no_checkpoint(&self, name: &str) -> UndoRefusal {
        let what = format!("there is no checkpoint '{name}'");
        UndoRefusal::Unknown { what, kept: self.what_is_kept() }
    }

    /// What can be gone back to, as a clause.
    fn what_is_kept(&self) -> String {
        let history = &self.history;
        let all = history.base.iter().chain(&history.steps);
        let mut cells = all.filter(|step| step.kind.is_cell());
        let (first, last) =
            (cells.next().map(|step| step.seq), cells.next_back().map(|step| step.seq));
        let cells = match (first, last) {
            (None, _) => "no cell has run yet".to_owned(),
            (Some(only), None) => format!("cell {only} can be gone back to"),
            (Some(first), Some(last)) => format!("cells {first} to {last} can be gone back to"),
        };
        let names: Vec<&str> = history.checkpoints.keys().map(String::as_str).collect();
        let names = match names[..] {
            [] => String::new(),
            _ => format!(", and the checkpoints {}", names.join(", ")),
        };
        format!("{cells}{names} (see `callboard kernel log`)")
    }
}

impl Step {
    fn cell(&self) -> CellShown {
        let Self { seq, number, first_line, .. } = self;
        CellShown { cell: *seq, number: *number, first_line: first_line.clone() }
    }

    fn shown(&self, position: u64, is_undone: bool, checkpoints: Vec<String>) -> StepShown {
        let outcome = match &self.kind {
            StepKind::Completed => StepOutcome::Completed,
            StepKind::Interrupted => StepOutcome::Interrupted,
            StepKind::Rewound { name, .. } => StepOutcome::Rewound { checkpoint: name.clone() },
            StepKind::Restarted { .. } => StepOutcome::Restarted,
        };
        StepShown {
            position,
            cell: self.cell(),
            outcome,
            is_undone,
            changed_bytes: self.changed_bytes,
            state_bytes: self.state_bytes,
            checkpoints,
        }
    }
}

/// The user's variables in a state, each with what tells one value from another.
fn names(moment: &Moment) -> BTreeMap<String, &super::StateGroup> {
    let groups = moment.manifest.values().filter(|group| group.kind == VARIABLES);
    groups.flat_map(|group| group.names.iter().map(move |name| (name.clone(), group))).collect()
}
