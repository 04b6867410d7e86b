//! The replicated machine: a kernel's log, applied.
//!
//! Deterministic: what an entry does depends on the entries before it and on nothing else. The
//! first of `Complete` and `Abandon` for a term's cell in the log wins; the other is ignored.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use callboard_protocol::{
    Incarnation, ReplicaId, Seq, Term,
    kernel::{CellEnd, CellOutcome, Level, OutputCursor, Refused},
};
use serde::{Deserialize, Serialize};

use super::{
    beginning::Beginning,
    entry::{Applied, Entry, Hash, LoggedOutput, StateDelta, StateGroup},
    history::{Ended, History, RewindTo, UndoRefusal, first_line},
};

/// Ended cells whose ids are remembered, so that a resent request is recognised.
pub const DEDUPE_CELLS_MAX: usize = 10_000;
/// Cells that may wait at once; a front-end that has more outstanding is out of control.
pub const QUEUE_DEPTH_MAX: usize = 1_000;
/// Bytes of outputs kept for clients that come back. However long one is, it counts as no more than
/// half of this: the last of them is always kept.
pub const OUTPUT_BYTES_MAX: u64 = 16 << 20;

/// An open executor term.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct OpenTerm {
    /// Its number.
    pub term: Term,
    /// The executor.
    pub replica: ReplicaId,
    /// The life of its node that opened it.
    pub incarnation: Incarnation,
}

/// A cell that was accepted and did not end.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PendingCell {
    /// Its place.
    pub seq: Seq,
    /// The Jupyter `msg_id`.
    pub msg_id: String,
    /// When it is to be answered.
    pub level: Level,
    /// The Jupyter message, v1 framing.
    pub request: Bytes,
    /// The term whose executor may start it.
    pub grant: Option<Term>,
}

/// What the log remembers of a request.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
struct Known {
    seq: Seq,
    hash: Hash,
    end: Option<CellEnd>,
}

/// Why a cell ended that a restart cut short.
const RESTARTED: &str = "the kernel was restarted";

/// A kernel's state as its log tells it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct KernelLog {
    open: Option<OpenTerm>,
    last_term: Term,
    last_executor: Option<ReplicaId>,
    pub(super) last_loss: Option<String>,
    accepted: Seq,
    pub(super) completed: Seq,
    pending: VecDeque<PendingCell>,
    known: BTreeMap<String, Known>,
    ended_order: VecDeque<String>,
    forgotten: Seq,
    pub(super) manifest: BTreeMap<String, StateGroup>,
    pub(super) refused: Vec<Refused>,
    pub(super) execution_count: u64,
    outputs: VecDeque<LoggedOutput>,
    output_bytes: u64,
    outputs_dropped: Option<OutputCursor>,
    #[serde(default)]
    parked: bool,
    #[serde(default)]
    pub(super) history: History,
    #[serde(default)]
    pub(super) beginning: Beginning,
}

impl KernelLog {
    /// Applies one entry.
    pub fn apply(&mut self, entry: Entry) -> Applied {
        match entry {
            Entry::Accept { msg_id, hash, level, request, horizon, grant } => {
                self.accept(msg_id, hash, level, request, horizon, grant)
            }
            Entry::Takeover { term, replica, incarnation, base } => {
                self.takeover(OpenTerm { term, replica, incarnation }, base)
            }
            Entry::Start { term, seq } => self.start(term, seq),
            Entry::Emit { term, outputs } => self.emit(term, outputs),
            Entry::Complete { term, seq, outputs, delta } => {
                self.complete(term, seq, outputs, delta)
            }
            Entry::Abandon { term, cause } => self.abandon(term, cause),
            Entry::Park { term } => self.park(term),
            Entry::Rewind { id, at, to } => self.rewind(id, at, &to),
            Entry::Checkpoint { name, at } => kept(self.keep(name, at)),
            Entry::DropCheckpoint { name } => kept(self.drop_checkpoint(&name)),
            Entry::Adopt { offset, bytes, total, cause } => self.adopt(offset, bytes, total, cause),
            Entry::Seed { skip, groups, end } => self.seed(skip, groups, end),
            Entry::Restart { id } => self.restart(id),
        }
    }

    fn is_open(&self, term: Term) -> bool {
        self.open.is_some_and(|open| open.term == term)
    }

    fn accept(
        &mut self,
        msg_id: String,
        hash: Hash,
        level: Level,
        request: Bytes,
        horizon: Option<Seq>,
        grant: Option<Term>,
    ) -> Applied {
        let grant = grant.filter(|term| self.is_open(*term));
        if let Some(known) = self.known.get(&msg_id) {
            if known.hash != hash {
                return Applied::Conflict;
            }
            let seq = known.seq;
            if let Some(cell) = self.pending.iter_mut().find(|cell| cell.seq == seq) {
                cell.grant = grant.or(cell.grant);
            }
            return Applied::Accepted { seq, duplicate: true };
        }
        if horizon.is_some_and(|horizon| horizon < self.forgotten) {
            return Applied::Expired;
        }
        if self.pending.len() >= QUEUE_DEPTH_MAX || self.beginning.is_adopting() {
            return Applied::QueueFull;
        }
        self.accepted = self.accepted.next();
        let seq = self.accepted;
        self.known.insert(msg_id.clone(), Known { seq, hash, end: None });
        self.pending.push_back(PendingCell { seq, msg_id, level, request, grant });
        Applied::Accepted { seq, duplicate: false }
    }

    fn takeover(&mut self, opening: OpenTerm, base: Seq) -> Applied {
        let is_due = opening.term == self.last_term.next() && base == self.completed;
        if self.open.is_some() || !is_due || self.beginning.is_under_way() {
            return Applied::Ignored;
        }
        self.open = Some(opening);
        self.last_term = opening.term;
        self.last_executor = Some(opening.replica);
        self.parked = false;
        Applied::Opened(opening.term)
    }

    fn start(&mut self, term: Term, seq: Seq) -> Applied {
        if !self.is_open(term) {
            return Applied::Ignored;
        }
        match self.pending.iter_mut().find(|cell| cell.seq == seq) {
            Some(cell) => {
                cell.grant = Some(term);
                Applied::Granted(seq)
            }
            None => Applied::Ignored,
        }
    }

    fn emit(&mut self, term: Term, outputs: Vec<LoggedOutput>) -> Applied {
        if !self.is_open(term) {
            return Applied::Ignored;
        }
        self.keep_outputs(outputs);
        Applied::Emitted
    }

    fn complete(
        &mut self,
        term: Term,
        seq: Seq,
        outputs: Vec<LoggedOutput>,
        delta: StateDelta,
    ) -> Applied {
        let is_head =
            self.pending.front().is_some_and(|cell| cell.seq == seq && cell.grant == Some(term));
        if !self.is_open(term) || !is_head {
            return Applied::Ignored;
        }
        self.keep_outputs(outputs);
        let last_output = self.last_output_of(seq);
        if let Some(ended) = self.head_ended() {
            self.note_completed(ended, &delta);
        }
        for (id, group) in delta.upsert {
            self.manifest.insert(id, group);
        }
        for id in delta.removed {
            self.manifest.remove(&id);
        }
        self.refused = delta.refused;
        self.execution_count = delta.execution_count;
        self.completed = seq;
        match self.end_head(term, CellOutcome::Completed, last_output) {
            Some(end) => Applied::Completed(end),
            None => Applied::Ignored,
        }
    }

    pub(super) fn abandon(&mut self, term: Term, cause: String) -> Applied {
        let Some(open) = self.open.filter(|open| open.term == term) else {
            return Applied::Ignored;
        };
        self.open = None;
        let mut interrupted = Vec::new();
        // The executor starts a cell after a durable one only once that one's Complete applied, so
        // nothing behind the first durable cell can have been started.
        while let Some(&PendingCell { seq, level, grant, .. }) = self.pending.front() {
            if grant != Some(term) {
                break;
            }
            let last_output = self.last_output_of(seq);
            let outcome = CellOutcome::Interrupted { cause: cause.clone() };
            if let Some(ended) = self.head_ended() {
                self.note_interrupted(ended);
            }
            interrupted.extend(self.end_head(term, outcome, last_output));
            if level == Level::Durable {
                break;
            }
        }
        self.last_loss = Some(cause);
        Applied::Closed { term, replica: open.replica, interrupted }
    }

    fn park(&mut self, term: Term) -> Applied {
        // A cell that waits may have been started on its acceptance.
        if !self.is_open(term) || !self.pending.is_empty() {
            return Applied::Ignored;
        }
        self.open = None;
        self.parked = true;
        Applied::Parked(term)
    }

    /// Makes an earlier state the present one and closes the term in order, so that the next
    /// executor starts from that state. Places, terms and what was acknowledged only ever grow.
    fn rewind(&mut self, id: String, at: u64, to: &RewindTo) -> Applied {
        if let Some(first) = self.pending.front() {
            return Applied::Declined(UndoRefusal::Busy { first: first.seq });
        }
        match self.go_back(id, at, to) {
            Ok(to) => Applied::Rewound { closed: self.open.take().map(|open| open.term), to },
            Err(refusal) => Applied::Declined(refusal),
        }
    }

    /// Ends every cell that has not ended, closes the term, and leaves a session without variables.
    /// The state before it can be gone back to, as before a rewind.
    fn restart(&mut self, id: String) -> Applied {
        if self.rewound_by(&id).is_some() || self.beginning.is_under_way() {
            return Applied::Ignored;
        }
        self.open = None;
        let mut interrupted = Vec::new();
        while let Some(seq) = self.pending.front().map(|cell| cell.seq) {
            let last_output = self.last_output_of(seq);
            let outcome = CellOutcome::Interrupted { cause: RESTARTED.to_owned() };
            if let Some(ended) = self.head_ended() {
                self.note_interrupted(ended);
            }
            interrupted.extend(self.end_head(self.last_term, outcome, last_output));
        }
        self.begin_anew(id);
        Applied::Restarted { interrupted }
    }

    /// What the history keeps of the first pending cell.
    fn head_ended(&self) -> Option<Ended> {
        let cell = self.pending.front()?;
        Some(Ended { seq: cell.seq, first_line: first_line(&cell.request) })
    }

    fn end_head(
        &mut self,
        term: Term,
        outcome: CellOutcome,
        last_output: Option<OutputCursor>,
    ) -> Option<CellEnd> {
        let cell = self.pending.pop_front()?;
        let end =
            CellEnd { seq: cell.seq, msg_id: cell.msg_id.clone(), term, outcome, last_output };
        if let Some(known) = self.known.get_mut(&cell.msg_id) {
            known.end = Some(end.clone());
        }
        self.ended_order.push_back(cell.msg_id);
        while self.ended_order.len() > DEDUPE_CELLS_MAX {
            if let Some(known) =
                self.ended_order.pop_front().and_then(|msg_id| self.known.remove(&msg_id))
            {
                self.forgotten = self.forgotten.max(known.seq);
            }
        }
        Some(end)
    }

    fn last_output_of(&self, seq: Seq) -> Option<OutputCursor> {
        let of_cell = |output: &&LoggedOutput| output.place.cell == seq;
        self.outputs.iter().rev().find(of_cell).map(|output| output.place.cursor)
    }

    /// Keeps outputs in the order of their cursors, each once: proposals arrive late and twice.
    fn keep_outputs(&mut self, outputs: Vec<LoggedOutput>) {
        for output in outputs {
            let cursor = output.place.cursor;
            let index = self.outputs.partition_point(|kept| kept.place.cursor < cursor);
            let is_kept = self.outputs.get(index).is_some_and(|kept| kept.place.cursor == cursor);
            if is_kept || self.outputs_dropped.is_some_and(|dropped| cursor <= dropped) {
                continue;
            }
            self.output_bytes += output.message.length();
            self.outputs.insert(index, output);
        }
        if self.output_bytes <= OUTPUT_BYTES_MAX {
            return;
        }
        let mut beyond: u64 = self.outputs.iter().map(uncounted).sum();
        while self.output_bytes > OUTPUT_BYTES_MAX + beyond {
            let Some(dropped) = self.outputs.pop_front() else { break };
            self.output_bytes -= dropped.message.length();
            beyond -= uncounted(&dropped);
            self.outputs_dropped = Some(dropped.place.cursor);
        }
    }

    /// The open executor term.
    #[must_use]
    pub fn open_term(&self) -> Option<OpenTerm> {
        self.open
    }

    /// The last term that was opened.
    #[must_use]
    pub fn last_term(&self) -> Term {
        self.last_term
    }

    /// Who executed in the last term.
    #[must_use]
    pub fn last_executor(&self) -> Option<ReplicaId> {
        self.last_executor
    }

    /// Why the last term that was closed was closed.
    #[must_use]
    pub fn last_loss(&self) -> Option<&str> {
        self.last_loss.as_deref()
    }

    /// Whether the last term was closed for want of work.
    #[must_use]
    pub fn is_parked(&self) -> bool {
        self.parked
    }

    /// The last request with a place.
    #[must_use]
    pub fn accepted(&self) -> Seq {
        self.accepted
    }

    /// The last cell whose state is kept: the base of a takeover.
    #[must_use]
    pub fn completed(&self) -> Seq {
        self.completed
    }

    /// Cells accepted and not ended, in order.
    #[must_use]
    pub fn pending(&self) -> &VecDeque<PendingCell> {
        &self.pending
    }

    /// Place and end of a request by its id; the hash tells whether it is the same request.
    #[must_use]
    pub fn request(&self, msg_id: &str) -> Option<(Seq, &Hash, Option<&CellEnd>)> {
        self.known.get(msg_id).map(|known| (known.seq, &known.hash, known.end.as_ref()))
    }

    /// The state after the last completed cell, by group id.
    #[must_use]
    pub fn manifest(&self) -> &BTreeMap<String, StateGroup> {
        &self.manifest
    }

    /// Names that are not carried, and why.
    #[must_use]
    pub fn refused(&self) -> &[Refused] {
        &self.refused
    }

    /// Number that Python gives the next cell; a session that has run none starts at 1.
    #[must_use]
    pub fn execution_count(&self) -> u64 {
        self.execution_count.max(1)
    }

    /// Whether an output came to the log: it is kept, or was dropped since.
    #[must_use]
    pub fn has_output(&self, cursor: OutputCursor) -> bool {
        self.outputs_dropped.is_some_and(|dropped| cursor <= dropped)
            || self.outputs.binary_search_by_key(&cursor, |kept| kept.place.cursor).is_ok()
    }

    /// The outputs still kept after `since`, and whether some between were dropped.
    pub fn outputs_since(
        &self,
        since: OutputCursor,
    ) -> (impl Iterator<Item = &LoggedOutput>, bool) {
        let gap = self.outputs_dropped.is_some_and(|dropped| dropped > since);
        let first = self.outputs.partition_point(|output| output.place.cursor <= since);
        (self.outputs.range(first..), gap)
    }

    /// The place of the last output that was kept, if there was one.
    #[must_use]
    pub fn last_output(&self) -> Option<OutputCursor> {
        self.outputs.back().map(|output| output.place.cursor).or(self.outputs_dropped)
    }

    /// The request that ended last, by its `msg_id`.
    #[must_use]
    pub fn last_ended(&self) -> Option<&str> {
        self.ended_order.back().map(String::as_str)
    }

    /// How the cells from `first` to `last` ended, those that did and are remembered, in order.
    #[must_use]
    pub fn ends_between(&self, first: Seq, last: Seq) -> Vec<CellEnd> {
        let known = self.ended_order.iter().rev().filter_map(|id| self.known.get(id)?.end.as_ref());
        let mut ends: Vec<CellEnd> = known
            .skip_while(|end| end.seq > last)
            .take_while(|end| end.seq >= first)
            .cloned()
            .collect();
        ends.reverse();
        ends
    }
}

fn kept(result: Result<(), UndoRefusal>) -> Applied {
    result.map_or_else(Applied::Declined, |()| Applied::Kept)
}

/// The bytes of an output that do not count in [`OUTPUT_BYTES_MAX`].
fn uncounted(output: &LoggedOutput) -> u64 {
    output.message.length().saturating_sub(OUTPUT_BYTES_MAX / 2)
}

#[cfg(test)]
mod tests;
