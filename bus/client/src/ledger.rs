//! Which outputs of a cell were shown, and which are missing: a state machine without I/O.
//!
//! Outputs arrive as events that may be lost, doubled or late, and from the kernel's log, which is
//! authoritative but may lag behind the events. Shown are the cell's own, each once, in the order
//! of their places. A kernel's first output for a cell is its `status: busy`, and the first one with
//! a place in the log its `execute_input`; so whoever sees one of these has missed nothing of the
//! cell. Every later output has the number after the one before.

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
    /// The last of the cell's own that was shown.
    last_shown: Option<OutputCursor>,
    expired: bool,
}

impl Ledger {
    /// The ledger of the cell that `msg_id` asks for. `mark` is a place before its first output, if
    /// one is known.
    #[must_use]
    pub fn new(msg_id: String, mark: Option<OutputCursor>) -> Self {
        let (held, shown) = (BTreeMap::new(), VecDeque::new());
        Self { msg_id, cell: None, mark, held, shown, last_shown: None, expired: false }
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
        if self.is_ours(&place, &message) && is_first(&message) {
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

    /// Whether the cell's output at `last` was passed by: its executor said so and was lost before
    /// the log had it.
    #[must_use]
    pub fn has_lost(&self, last: Option<OutputCursor>) -> bool {
        self.last_shown < last
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
            self.last_shown = Some(place.cursor);
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

fn is_first(message: &JupyterMessage) -> bool {
    let Ok(header) = message.parse_header() else { return false };
    let is_busy =
        |content: Value| header.msg_type == "status" && content["execution_state"] == "busy";
    header.msg_type == "execute_input" || message.parse_content::<Value>().is_ok_and(is_busy)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use callboard_protocol::jupyter::Channel;

    use super::*;

    fn output(number: u64, msg_type: &str) -> (OutputPlace, JupyterMessage) {
        let cursor = OutputCursor { term: Term(1), number };
        let json = |text: String| Bytes::from(text);
        let message = JupyterMessage {
            channel: Channel::Iopub,
            header: json(format!(r#"{{"msg_id":"o{number}","msg_type":"{msg_type}"}}"#)),
            parent_header: json(r#"{"msg_id":"m","msg_type":"execute_request"}"#.to_owned()),
            metadata: json("{}".to_owned()),
            content: json("{}".to_owned()),
            buffers: Vec::new(),
        };
        (OutputPlace { cursor, cell: Seq(4) }, message)
    }

    #[test]
    fn a_client_that_knows_no_earlier_place_shows_a_cell_from_its_first_output_on() {
        let mut ledger = Ledger::new("m".to_owned(), None);
        let (place, stream) = output(8, "stream");
        ledger.on_emitted(place, stream);
        assert!(ledger.pop().is_none() && ledger.missing_since().is_some());
        let (place, first) = output(7, "execute_input");
        ledger.on_emitted(place, first);
        let shown: Vec<u64> =
            std::iter::from_fn(|| ledger.pop()).map(|(_, place)| place.cursor.number).collect();
        assert_eq!(shown, [7, 8]);
        assert_eq!(ledger.missing_since(), None);
    }
}
