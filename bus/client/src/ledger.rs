//! Which outputs of a cell were shown, and which are missing: a state machine without I/O.
//!
//! Outputs arrive as events that may be lost, doubled or late, and from the kernel's log, which is
//! authoritative but may lag behind the events. Shown are the cell's own, each once, in the order
//! of their places. A kernel's first output for a cell is its `status: busy`, so whoever sees that
//! one has missed nothing of the cell; every later output has the number after the one before.

use std::collections::{BTreeMap, VecDeque};

use callboard_protocol::{
    Seq, Term,
    jupyter::JupyterMessage,
    kernel::{OutputCursor, OutputPlace, Outputs},
};
use serde_json::Value;

/// Outputs held back behind a missing one; beyond that the missing ones are given up, since the
/// log has them anyway once the cell ended.
const HELD_BACK_MAX: usize = 10_000;

/// An output to be shown.
pub type Shown = (JupyterMessage, OutputPlace);

/// The outputs of one cell.
#[derive(Debug)]
pub struct Ledger {
    msg_id: String,
    cell: Option<Seq>,
    /// Everything up to here was shown or is not the cell's.
    mark: Option<OutputCursor>,
    held: BTreeMap<OutputCursor, (JupyterMessage, OutputPlace)>,
    shown: VecDeque<Shown>,
    expired: bool,
}

impl Ledger {
    /// The ledger of the cell that `msg_id` asks for. `mark` is a place before its first output, if
    /// one is known.
    #[must_use]
    pub fn new(msg_id: String, mark: Option<OutputCursor>) -> Self {
        let (held, shown) = (BTreeMap::new(), VecDeque::new());
        Self { msg_id, cell: None, mark, held, shown, expired: false }
    }

    /// The cell got its place in the kernel's order.
    pub fn on_accepted(&mut self, cell: Seq) {
        self.cell = Some(cell);
    }

    /// An output was announced.
    pub fn on_emitted(&mut self, place: OutputPlace, message: JupyterMessage) {
        if self.mark.is_some_and(|mark| place.cursor <= mark) {
            return;
        }
        if self.is_ours(&place, &message) && is_busy(&message) {
            self.held.retain(|cursor, _| *cursor > place.cursor);
            self.advance(place, message);
        } else if self.held.len() < HELD_BACK_MAX {
            self.held.insert(place.cursor, (message, place));
        }
        self.release();
    }

    /// The log was read from [`Self::missing_since`].
    pub fn on_fetched(&mut self, outputs: Outputs) {
        self.expired |= outputs.gap;
        for output in outputs.outputs {
            if self.mark.is_some_and(|mark| output.place.cursor <= mark) {
                continue;
            }
            self.held.remove(&output.place.cursor);
            match JupyterMessage::decode(&output.message) {
                Ok(message) => self.advance(output.place, message),
                Err(_) => self.mark = Some(output.place.cursor),
            }
        }
        self.held.retain(|cursor, _| Some(*cursor) > self.mark);
        self.release();
    }

    /// The next output to show.
    pub fn pop(&mut self) -> Option<Shown> {
        self.shown.pop_front()
    }

    /// From where the log should be read to fill a gap before outputs that are held back.
    #[must_use]
    pub fn missing_since(&self) -> Option<OutputCursor> {
        let ours = self.held.values().find(|(message, place)| self.is_ours(place, message));
        ours.map(|(_, place)| self.since(place.cursor.term))
    }

    /// From where the log should be read to have everything up to `last`; `None` if nothing misses.
    #[must_use]
    pub fn missing_until(&self, last: Option<OutputCursor>) -> Option<OutputCursor> {
        let last = last?;
        (self.mark < Some(last)).then(|| self.since(last.term))
    }

    /// Shows what is still held back: the log holds nothing that belongs before it.
    pub fn finish(&mut self) {
        for (_, (message, place)) in std::mem::take(&mut self.held) {
            self.advance(place, message);
        }
    }

    /// Whether outputs were asked for that the kernel no longer keeps. Told once.
    pub fn take_expired(&mut self) -> bool {
        std::mem::take(&mut self.expired)
    }

    /// The place up to which everything is known.
    #[must_use]
    pub fn mark(&self) -> Option<OutputCursor> {
        self.mark
    }

    fn since(&self, term: Term) -> OutputCursor {
        self.mark.unwrap_or(OutputCursor { term, number: 0 })
    }

    fn is_ours(&self, place: &OutputPlace, message: &JupyterMessage) -> bool {
        self.cell == Some(place.cell) || message.parent_msg_id().as_ref() == Some(&self.msg_id)
    }

    fn advance(&mut self, place: OutputPlace, message: JupyterMessage) {
        self.mark = self.mark.max(Some(place.cursor));
        if self.is_ours(&place, &message) {
            self.shown.push_back((message, place));
        }
    }

    fn release(&mut self) {
        while let (Some(mark), Some(first)) = (self.mark, self.held.first_entry()) {
            let next = OutputCursor { term: mark.term, number: mark.number + 1 };
            if *first.key() != next {
                return;
            }
            let (message, place) = first.remove();
            self.advance(place, message);
        }
    }
}

fn is_busy(message: &JupyterMessage) -> bool {
    message.parse_header().is_ok_and(|header| header.msg_type == "status")
        && message
            .parse_content::<Value>()
            .is_ok_and(|content| content["execution_state"] == "busy")
}
