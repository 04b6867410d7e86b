//! A kernel's outputs in order, each once: a state machine without I/O.
//!
//! Events may be lost, doubled or late; the kernel's log is authoritative and may lag behind them.
//! What arrives waits in a queue; its front is let through if nothing is missing before it. If
//! something is, the log is to be read from [`Stream::missing_since`].

use std::collections::VecDeque;

use callboard_protocol::{
    Seq,
    jupyter::JupyterMessage,
    kernel::{CellEnd, CellOutcome, OutputCursor, OutputPlace, Outputs},
};

/// Events that wait behind a missing output. What comes after them is read from the log.
const WAITING_MAX: usize = 10_000;
/// Complete readings of the log without the missing output after which it is given up, though nothing says
/// that its executor is lost: with the pause of [`crate::Channels`], a minute.
const FRUITLESS_MAX: u32 = 240;

/// What comes next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// A message, and its place if it is kept in the log.
    Message(JupyterMessage, Option<OutputPlace>),
    /// A cell ended; all its outputs came before.
    Ended(CellEnd),
    /// Outputs before the next message are lost, or no longer kept.
    Gap,
}

#[derive(Debug)]
enum Waiting {
    Output(OutputPlace, JupyterMessage),
    Passing(Option<OutputCursor>, JupyterMessage),
    /// The log has everything up to here, or is about to.
    Logged(OutputCursor),
    End(CellEnd),
}

/// The outputs of one kernel.
#[derive(Debug, Default)]
pub struct Stream {
    /// Everything up to here was let through.
    mark: Option<OutputCursor>,
    waiting: VecDeque<Waiting>,
    ready: VecDeque<Next>,
    /// The last cell whose end was let through.
    ended: Seq,
    /// Whether something was dropped since it found no room.
    behind: bool,
    fruitless: u32,
}

impl Stream {
    /// Has the stream begin after `mark`, with what the log has already if `replays`. Without this
    /// it begins with the first event.
    pub fn begin_after(&mut self, mark: OutputCursor, replays: bool) {
        self.mark = Some(mark);
        self.behind |= replays;
    }

    /// The place up to which everything was let through.
    #[must_use]
    pub fn mark(&self) -> Option<OutputCursor> {
        self.mark
    }

    /// A message was announced: with its place, or with that of the output before it.
    pub fn on_emitted(
        &mut self,
        place: Option<OutputPlace>,
        after: Option<OutputCursor>,
        message: JupyterMessage,
    ) {
        self.wait(match place {
            Some(place) => Waiting::Output(place, message),
            None => Waiting::Passing(after, message),
        });
    }

    /// The log has all outputs up to `last`, some of which were not announced.
    pub fn on_stored(&mut self, last: OutputCursor) {
        self.wait(Waiting::Logged(last));
    }

    /// A cell ended.
    pub fn on_ended(&mut self, end: CellEnd) {
        self.wait(Waiting::End(end));
    }

    /// The log was read from [`Self::missing_since`].
    pub fn on_fetched(&mut self, outputs: Outputs) {
        if outputs.gap {
            self.ready.push_back(Next::Gap);
        }
        let before = self.mark;
        let mut ends = outputs.ended.into_iter().peekable();
        for output in outputs.outputs {
            let place = output.place;
            if self.mark.is_some_and(|mark| place.cursor <= mark) {
                continue;
            }
            while let Some(end) = ends.next_if(|end| end.last_output < Some(place.cursor)) {
                self.end(end);
            }
            self.mark = Some(place.cursor);
            if let Ok(message) = JupyterMessage::decode(&output.message) {
                self.ready.push_back(Next::Message(message, Some(place)));
            }
        }
        // The last cell's outputs may go on in the next page.
        let mark = self.mark;
        ends.filter(|end| end.last_output <= mark).for_each(|end| self.end(end));
        if outputs.more {
            return;
        }
        self.behind = false;
        self.enter_next_term();
        self.fruitless = if self.mark == before { self.fruitless + 1 } else { 0 };
        // Whoever leads may be a moment behind the executor that has the next term.
        if self.fruitless > 1
            && let Some(gate) = self.gate()
            && (self.fruitless >= FRUITLESS_MAX || self.is_past_hope(gate))
        {
            self.fruitless = 0;
            self.mark = Some(gate);
            self.ready.push_back(Next::Gap);
        }
    }

    /// From where the log should be read, if something is missing.
    #[must_use]
    pub fn missing_since(&self) -> Option<OutputCursor> {
        let blocked = self.behind || (self.ready.is_empty() && self.gate() > self.mark);
        (blocked && self.mark.is_some()).then(|| self.mark.unwrap_or_default())
    }

    /// What comes next, if nothing is missing before it.
    pub fn pop(&mut self) -> Option<Next> {
        loop {
            if let Some(next) = self.ready.pop_front() {
                return Some(next);
            }
            if self.mark.is_some() && (self.behind || self.gate() > self.mark) {
                return None;
            }
            match self.waiting.pop_front()? {
                Waiting::Output(place, _) if self.mark >= Some(place.cursor) => {}
                Waiting::Output(place, message) => {
                    self.mark = Some(place.cursor);
                    self.ready.push_back(Next::Message(message, Some(place)));
                }
                Waiting::Passing(after, message) => {
                    self.mark = self.mark.max(after);
                    self.ready.push_back(Next::Message(message, None));
                }
                Waiting::Logged(last) => self.mark = self.mark.max(Some(last)),
                Waiting::End(end) => {
                    self.mark = self.mark.max(end.last_output);
                    self.end(end);
                }
            }
        }
    }

    /// Whether the log is to be read as far as it goes.
    #[must_use]
    pub fn is_behind(&self) -> bool {
        self.behind
    }

    /// Drops what waits: the log has the outputs, and how their cells ended. A stream that has not
    /// begun goes on from the beginning of the log, which was empty.
    pub fn fall_behind(&mut self) {
        self.mark.get_or_insert_default();
        self.behind = true;
        self.waiting.clear();
    }

    fn wait(&mut self, it: Waiting) {
        if self.waiting.len() >= WAITING_MAX {
            self.fall_behind();
        }
        self.waiting.push_back(it);
    }

    fn end(&mut self, end: CellEnd) {
        if end.seq > self.ended {
            self.ended = end.seq;
            self.ready.push_back(Next::Ended(end));
        }
    }

    /// What the mark has to have reached for the front of the queue to be let through.
    fn gate(&self) -> Option<OutputCursor> {
        match self.waiting.front()? {
            Waiting::Output(OutputPlace { cursor, .. }, _) => {
                Some(OutputCursor { number: cursor.number.saturating_sub(1), ..*cursor })
            }
            Waiting::Passing(after, _) => *after,
            Waiting::Logged(last) => Some(*last),
            Waiting::End(end) => end.last_output,
        }
    }

    /// Whether the executor is lost that alone could still log what is missing.
    fn is_past_hope(&self, gate: OutputCursor) -> bool {
        self.waiting.iter().any(|it| match it {
            Waiting::End(end) => {
                let is_lost = matches!(end.outcome, CellOutcome::Interrupted { .. });
                end.term > gate.term || (end.term == gate.term && is_lost)
            }
            Waiting::Output(place, _) => place.cursor.term > gate.term,
            Waiting::Passing(..) | Waiting::Logged(_) => false,
        })
    }

    /// The log holds nothing more of the term of the mark: what waits may be of the next one.
    fn enter_next_term(&mut self) {
        let Some(gate) = self.gate() else { return };
        if self.mark.is_some_and(|mark| mark.term < gate.term) {
            self.mark = Some(OutputCursor { term: gate.term, number: 0 });
        }
    }
}

#[cfg(test)]
mod tests;
