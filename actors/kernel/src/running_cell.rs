//! The cell that runs: its outputs on the way to the log, and whether it is over.
//!
//! A cell is over when three things have arrived, in any order: its reply, the `idle` status that
//! follows its last output, and what it changed. An `idle` before the capture will do if the capture
//! had nothing to say.

use std::time::{Duration, Instant};

use callboard_protocol::{
    Seq, Term,
    jupyter::{Channel, JupyterMessage},
    kernel::{Level, OutputCursor, OutputPlace},
};

use crate::{
    python::Captured,
    state::{INLINE_ENTRY_MAX, INLINE_PART_MAX},
};

/// Bytes of outputs after which a running cell's outputs go to the log.
const UNLOGGED_BYTES_MAX: usize = 64 << 10;
/// Bytes of outputs in one entry of the log: all of them have room in it, so that a flood of small ones
/// does not become one chunk each.
const ENTRY_BYTES_MAX: usize = INLINE_ENTRY_MAX / 2;
/// A longer output than a part may be is a chunk, of which an entry has the name.
const CHUNK_NAME_BYTES: usize = 128;
/// How long a cell that is over waits for its outputs to arrive in the log before they are sent again:
/// a proposal that has not succeeded by then is lost.
const PROPOSED_AGAIN_AFTER: Duration = Duration::from_secs(6);

/// An output with its place.
#[derive(Debug, Clone)]
pub(crate) struct PlacedOutput {
    pub(crate) place: OutputPlace,
    pub(crate) message: JupyterMessage,
}

impl PlacedOutput {
    fn length(&self) -> usize {
        let JupyterMessage { header, parent_header, metadata, content, buffers, .. } =
            &self.message;
        let parts = [header, parent_header, metadata, content];
        parts.into_iter().chain(buffers).map(bytes::Bytes::len).sum()
    }

    /// Bytes that it takes in an entry of the log.
    fn length_in_entry(&self) -> usize {
        Some(self.length()).filter(|it| *it <= INLINE_PART_MAX).unwrap_or(CHUNK_NAME_BYTES)
    }
}

/// Numbers the outputs of a term.
#[derive(Debug, Default)]
pub(crate) struct OutputNumbers {
    last: OutputCursor,
}

impl OutputNumbers {
    /// The place of the next output of `cell` in `term`.
    pub(crate) fn next(&mut self, term: Term, cell: Seq) -> OutputPlace {
        if self.last.term != term {
            self.last = OutputCursor { term, number: 0 };
        }
        self.last.number += 1;
        OutputPlace { cursor: self.last, cell }
    }
}

/// The cell that runs.
#[derive(Debug)]
pub(crate) struct RunningCell {
    pub(crate) term: Term,
    pub(crate) seq: Seq,
    pub(crate) msg_id: String,
    pub(crate) level: Level,
    /// Whether the cells behind it are to be aborted if it raises.
    pub(crate) stops_on_error: bool,
    /// What it says on its standard error beside what it writes there, once it has begun.
    pub(crate) notice: Option<String>,
    /// When it was given to the process.
    pub(crate) began: Instant,
    /// When it was interrupted because it ran for too long.
    pub(crate) interrupted: Option<Instant>,
    expects_reply: bool,
    has_replied: bool,
    reply: Option<JupyterMessage>,
    is_idle: bool,
    /// Front-ends were told that it is idle, though its state was still to be captured.
    pub(crate) is_told_idle: bool,
    captured: Option<Captured>,
    /// On their way to the log, not known to have arrived. A proposal may be lost without a word.
    proposed: Vec<PlacedOutput>,
    unlogged: Vec<PlacedOutput>,
    unlogged_bytes: usize,
    /// Since when it is over but for outputs that have to arrive in the log first.
    over_since: Option<Instant>,
    /// Whether outputs are being stored on a majority; those after them wait.
    is_storing: bool,
}

/// A cell that is over, with what is not in the log yet.
#[derive(Debug)]
pub(crate) struct FinishedCell {
    pub(crate) term: Term,
    pub(crate) seq: Seq,
    pub(crate) outputs: Vec<PlacedOutput>,
    pub(crate) reply: Option<JupyterMessage>,
    pub(crate) captured: Captured,
}

impl RunningCell {
    pub(crate) fn new(
        term: Term,
        seq: Seq,
        msg_id: String,
        level: Level,
        expects_reply: bool,
    ) -> Self {
        Self {
            expects_reply,
            term,
            seq,
            msg_id,
            level,
            stops_on_error: false,
            notice: None,
            began: Instant::now(),
            interrupted: None,
            has_replied: false,
            reply: None,
            is_idle: false,
            is_told_idle: false,
            captured: None,
            proposed: Vec::new(),
            unlogged: Vec::new(),
            unlogged_bytes: 0,
            over_since: None,
            is_storing: false,
        }
    }

    /// Whether `message` answers this cell's request.
    pub(crate) fn caused(&self, message: &JupyterMessage) -> bool {
        message.parent_msg_id().as_deref() == Some(self.msg_id.as_str())
    }

    /// Takes an output that goes to the log.
    pub(crate) fn output(&mut self, output: PlacedOutput) {
        self.unlogged_bytes += output.length();
        self.unlogged.push(output);
    }

    /// Notes that the reply came; it is given if it is to be held back until the cell is durable.
    pub(crate) fn replied(&mut self, held: Option<JupyterMessage>) {
        self.has_replied = true;
        self.reply = held;
    }

    /// Notes that no more output follows.
    pub(crate) fn idle(&mut self) {
        self.is_idle = true;
    }

    /// Takes what the cell changed.
    pub(crate) fn captured(&mut self, captured: Captured) {
        self.captured = Some(captured);
    }

    /// Outputs that should go to the log while the cell runs on, as many as an entry takes.
    pub(crate) fn take_unlogged(&mut self, is_due: bool) -> Vec<PlacedOutput> {
        if self.is_storing || !(is_due || self.unlogged_bytes >= UNLOGGED_BYTES_MAX) {
            return Vec::new();
        }
        let mut length = 0;
        let fits = |output: &&PlacedOutput| {
            length += output.length_in_entry();
            length <= ENTRY_BYTES_MAX
        };
        let count = self.unlogged.iter().take_while(fits).count();
        let due: Vec<PlacedOutput> = self.unlogged.drain(..count).collect();
        self.unlogged_bytes -= due.iter().map(PlacedOutput::length).sum::<usize>();
        self.proposed.extend(due.iter().cloned());
        due
    }

    /// Holds later outputs back while large ones are stored, so that the log has all in order.
    pub(crate) fn storing(&mut self, is_storing: bool) {
        self.is_storing = is_storing;
    }

    /// Takes outputs back that could not go to the log yet.
    pub(crate) fn put_back(&mut self, mut outputs: Vec<PlacedOutput>) {
        let taken = |it: &PlacedOutput| outputs.iter().any(|o| o.place.cursor == it.place.cursor);
        self.proposed.retain(|output| !taken(output));
        self.unlogged_bytes += outputs.iter().map(PlacedOutput::length).sum::<usize>();
        outputs.append(&mut self.unlogged);
        self.unlogged = outputs;
    }

    /// Whether the outputs that have not arrived in the log are more than the cell's last entry takes: then
    /// it ends once they have. Those of which nothing was heard for long are to be logged again.
    pub(crate) fn waits_for_outputs(&mut self) -> bool {
        let left = self.proposed.iter().chain(&self.unlogged);
        if left.map(PlacedOutput::length_in_entry).sum::<usize>() <= ENTRY_BYTES_MAX {
            return false;
        }
        let since = *self.over_since.get_or_insert_with(Instant::now);
        if since.elapsed() >= PROPOSED_AGAIN_AFTER && !self.is_storing {
            self.over_since = None;
            let again = std::mem::take(&mut self.proposed);
            self.put_back(again);
        }
        true
    }

    /// Forgets outputs that have arrived in the log.
    pub(crate) fn prune(&mut self, is_logged: impl Fn(OutputCursor) -> bool) {
        self.proposed.retain(|output| !is_logged(output.place.cursor));
    }

    /// Whether reply, end of output and state are all there.
    pub(crate) fn is_over(&self) -> bool {
        let Some(captured) = &self.captured else { return false };
        let is_idle = self.is_idle || (self.is_told_idle && captured.is_told);
        (self.has_replied || !self.expects_reply) && is_idle
    }

    /// What is to go to the log, once the cell is over.
    pub(crate) fn finish(mut self) -> Option<FinishedCell> {
        // Those that arrive twice are kept once.
        self.proposed.append(&mut self.unlogged);
        Some(FinishedCell {
            term: self.term,
            seq: self.seq,
            outputs: self.proposed,
            reply: self.reply,
            captured: self.captured?,
        })
    }
}

/// What a message from the kernel's iopub channel is, as far as the log is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum IopubKind {
    /// Nothing follows for the request.
    Idle,
    /// The same for front-ends; its state is still captured.
    IdleEarly,
    /// Other status, of use only while it is fresh.
    Status,
    /// An output to keep.
    Output,
}

/// Sorts a message from iopub.
pub(crate) fn classify(message: &JupyterMessage) -> IopubKind {
    #[derive(serde::Deserialize)]
    struct Status {
        execution_state: String,
    }
    debug_assert_eq!(message.channel, Channel::Iopub);
    let is_status = message
        .parse_header()
        .is_ok_and(|header| header.msg_type == "status" || header.msg_type == "iopub_welcome");
    if !is_status {
        return IopubKind::Output;
    }
    match message.parse_content::<Status>() {
        Ok(status) if status.execution_state == "idle" && is_capturing(message) => {
            IopubKind::IdleEarly
        }
        Ok(status) if status.execution_state == "idle" => IopubKind::Idle,
        _ => IopubKind::Status,
    }
}

/// Whether the kernel marked its message as one before the capture of its cell.
fn is_capturing(message: &JupyterMessage) -> bool {
    #[derive(Default, serde::Deserialize)]
    #[serde(default)]
    struct Metadata {
        callboard: Marks,
    }
    #[derive(Default, serde::Deserialize)]
    #[serde(default)]
    struct Marks {
        capturing: bool,
    }
    serde_json::from_slice::<Metadata>(&message.metadata).is_ok_and(|it| it.callboard.capturing)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn output(numbers: &mut OutputNumbers) -> PlacedOutput {
        let empty = Bytes::from_static(b"{}");
        let message = JupyterMessage {
            channel: Channel::Iopub,
            header: empty.clone(),
            parent_header: empty.clone(),
            metadata: empty.clone(),
            content: empty,
            buffers: Vec::new(),
        };
        PlacedOutput { place: numbers.next(Term(1), Seq(1)), message }
    }

    #[test]
    fn an_output_whose_proposal_was_lost_goes_to_the_log_with_the_cells_end() {
        let mut numbers = OutputNumbers::default();
        let mut cell = RunningCell::new(Term(1), Seq(1), "id".to_owned(), Level::Durable, true);
        cell.output(output(&mut numbers));
        cell.output(output(&mut numbers));
        assert_eq!(cell.take_unlogged(true).len(), 2);
        cell.prune(|cursor| cursor.number == 1);
        cell.output(output(&mut numbers));
        let back = cell.take_unlogged(true);
        cell.put_back(back);
        cell.captured(Captured::default());
        let finished = cell.finish().unwrap();
        let numbers: Vec<u64> = finished.outputs.iter().map(|o| o.place.cursor.number).collect();
        assert_eq!(numbers, [2, 3]);
    }

    #[test]
    fn an_idle_before_the_capture_ends_a_cell_whose_capture_has_nothing_to_say() {
        for (is_told, is_over) in [(true, true), (false, false)] {
            let mut cell =
                RunningCell::new(Term(1), Seq(1), "id".to_owned(), Level::Received, true);
            cell.replied(None);
            cell.captured(Captured { is_told, ..Captured::default() });
            assert!(!cell.is_over(), "outputs may be on their way");
            cell.is_told_idle = true;
            assert_eq!(cell.is_over(), is_over);
            cell.idle();
            assert!(cell.is_over());
        }
    }

    #[test]
    fn a_flood_goes_to_the_log_in_pieces_and_the_cell_ends_once_it_has_arrived() {
        let mut numbers = OutputNumbers::default();
        let mut cell = RunningCell::new(Term(1), Seq(1), "id".to_owned(), Level::Durable, true);
        for _ in 0..1000 {
            let mut small = output(&mut numbers);
            small.message.header = Bytes::from(vec![b' '; 500]);
            cell.output(small);
        }
        assert!(cell.waits_for_outputs());
        let mut logged = 0;
        while let due = cell.take_unlogged(true)
            && !due.is_empty()
        {
            let length: usize = due.iter().map(PlacedOutput::length_in_entry).sum();
            assert!(length <= ENTRY_BYTES_MAX, "{length} bytes in an entry");
            logged += due.len();
        }
        assert_eq!(logged, 1000);
        assert!(cell.waits_for_outputs(), "none has arrived");
        cell.prune(|cursor| cursor.number <= 900);
        assert!(!cell.waits_for_outputs(), "the last entry takes the rest");
        cell.captured(Captured::default());
        assert_eq!(cell.finish().unwrap().outputs.len(), 100);
    }
}
