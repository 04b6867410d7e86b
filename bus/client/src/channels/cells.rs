//! What the front-end was told of the kernel's cells, and how far its session is by that.
//!
//! A front-end that comes back may have had an output whose acknowledgement was lost, so the cell
//! whose outputs were coming is cleared and said whole: a session's place holds where its last
//! output was, and where to begin again.

use std::collections::HashMap;

use bytes::Bytes;
use callboard_protocol::{
    Seq,
    kernel::{CellEnd, OutputCursor, OutputPlace, SessionPlace},
};

/// What front-ends have been told of a cell that has not ended.
#[derive(Debug)]
pub(super) struct Cell {
    pub(super) parent: Bytes,
    pub(super) is_idle: bool,
    pub(super) has_reply: bool,
}

/// What becomes of an output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The front-end has it already.
    Known,
    /// It is passed on.
    New,
    /// It is passed on, once what its cell showed so far is cleared.
    NewAfterClearing,
}

/// An output as [`Cells::output`] has to know it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen<'a> {
    pub(super) place: OutputPlace,
    /// The header of its cell's request, and the id in it.
    pub(super) parent: &'a Bytes,
    pub(super) msg_id: Option<&'a str>,
    /// Whether it begins a cell of another connection.
    pub(super) begins_elsewhere: bool,
}

/// What one front-end was told.
#[derive(Debug, Default)]
pub(super) struct Cells {
    by_request: HashMap<String, Cell>,
    /// Outputs up to here were seen by the front-end before it went away.
    acknowledged: Option<OutputCursor>,
    cleared: Option<Seq>,
    /// The cell whose outputs have begun, and the place before the first of them.
    open: Option<(Seq, OutputCursor)>,
    /// The last cell of which the front-end was told everything, but for what threads say later.
    closed: Seq,
    place: Option<SessionPlace>,
}

impl Cells {
    /// The session goes on from where it was.
    pub(super) fn go_on_from(&mut self, place: SessionPlace) {
        self.acknowledged = Some(place.cursor);
        self.place = Some(place);
    }

    /// How far the session is once the front-end has what it was sent.
    pub(super) fn place(&self) -> Option<SessionPlace> {
        self.place
    }

    /// Whether the front-end was away and came back.
    pub(super) fn has_come_back(&self) -> bool {
        self.acknowledged.is_some()
    }

    /// The front-end asks for a cell. Only an `execute_request` is replied to.
    pub(super) fn expect(&mut self, msg_id: String, parent: Bytes, expects_reply: bool) {
        let cell = Cell { parent, is_idle: false, has_reply: !expects_reply };
        self.by_request.insert(msg_id, cell);
    }

    /// A request failed: there is no such cell.
    pub(super) fn forget(&mut self, msg_id: &str) {
        self.by_request.remove(msg_id);
    }

    /// Takes an output in that is in the log.
    pub(super) fn output(&mut self, seen: Seen<'_>) -> Verdict {
        let OutputPlace { cursor, cell } = seen.place;
        let is_repeated = self.acknowledged.is_some_and(|acknowledged| cursor <= acknowledged);
        if cell == Seq(0) {
            self.settle(seen.place);
            return if is_repeated { Verdict::Known } else { Verdict::New };
        }
        if cell > self.closed && self.open.is_none_or(|(open, _)| open != cell) {
            let before = OutputCursor { number: cursor.number.saturating_sub(1), ..cursor };
            self.open = Some((cell, before));
        }
        let mut verdict = Verdict::New;
        if (is_repeated || seen.begins_elsewhere) && self.cleared != Some(cell) {
            // It may have seen the beginning of this cell: all of it comes again.
            self.cleared = Some(cell);
            verdict = Verdict::NewAfterClearing;
        }
        if let Some(msg_id) = seen.msg_id
            && !self.by_request.contains_key(msg_id)
        {
            self.expect(msg_id.to_owned(), seen.parent.clone(), true);
        }
        self.settle(seen.place);
        verdict
    }

    /// The cell of a request is idle.
    pub(super) fn idle(&mut self, msg_id: &str, place: Option<OutputPlace>) {
        if let Some(cell) = self.by_request.get_mut(msg_id) {
            cell.is_idle = true;
            self.close(msg_id, place);
        }
    }

    /// A reply came. Whether it is the first one; `None` if it is no cell's.
    pub(super) fn reply(&mut self, msg_id: &str, place: Option<OutputPlace>) -> Option<bool> {
        let cell = self.by_request.get_mut(msg_id)?;
        if std::mem::replace(&mut cell.has_reply, true) {
            return Some(false);
        }
        self.close(msg_id, place);
        Some(true)
    }

    /// A cell ended: what was told of it so far, if anything was.
    pub(super) fn end(&mut self, end: &CellEnd) -> Option<Cell> {
        (self.closed, self.open) = (self.closed.max(end.seq), None);
        if let Some(cursor) = end.last_output {
            self.settle(OutputPlace { cursor, cell: end.seq });
        }
        self.by_request.remove(&end.msg_id)
    }

    /// The front-end is about to have what is at `place`.
    fn settle(&mut self, place: OutputPlace) {
        let cursor = place.cursor;
        let replay_from = self.open.map_or(cursor, |(_, before)| before);
        self.place = Some(SessionPlace { cursor, replay_from });
    }

    /// Nothing of a cell has to come again that has its reply and is idle.
    fn close(&mut self, msg_id: &str, place: Option<OutputPlace>) {
        let is_done = self.by_request.get(msg_id).is_some_and(|it| it.is_idle && it.has_reply);
        if let Some(place) = place
            && is_done
        {
            (self.closed, self.open) = (self.closed.max(place.cell), None);
            self.settle(place);
        }
    }
}
