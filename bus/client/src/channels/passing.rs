//! What of the kernel's outputs goes to the front-end, and what it is told that nobody else says.

use bytes::Bytes;
use callboard_protocol::{
    Term,
    jupyter::{Channel, Header, JupyterMessage},
    kernel::{CellEnd, CellOutcome, OutputPlace},
};
use serde_json::{Value, json};

use super::{
    Channels, Delivery,
    cells::{Seen, Verdict},
    is_status,
};
use crate::{said::Said, stream::Next};

/// What is said of a cell whose executor said that it completed, and whose reply is nowhere.
const REPLY_LOST: &str = "the cell ran, but its reply is lost with its executor: what it changed may be \
                          lost, too. Look at its variables before you run it again";
/// The parent of what belongs to no request.
static NOBODY: Bytes = Bytes::from_static(b"{}");

impl Channels {
    /// Takes what comes next in the kernel's stream.
    pub(super) fn take(&mut self, next: Next) {
        match next {
            Next::Message(message, place) => self.take_message(message, place),
            Next::Ended(end) => self.take_end(&end),
            Next::Gap => {
                let text =
                    "[some outputs of this kernel are no longer kept and are missing here]\n";
                let notice = self.said(&NOBODY).notice(text);
                self.deliver(notice);
            }
        }
    }

    fn take_message(&mut self, message: JupyterMessage, place: Option<OutputPlace>) {
        let parent = serde_json::from_slice::<Header>(&message.parent_header).ok();
        if let Some(place) = place {
            self.note_term(place.cursor.term);
            if !self.take_output(&message, place, parent.as_ref()) {
                return;
            }
        }
        let Some(parent) = parent else { return self.deliver(message) };
        match message.channel {
            Channel::Iopub => {
                if is_status(&message, "idle") {
                    self.cells.idle(&parent.msg_id, place);
                }
                self.deliver(message);
            }
            Channel::Stdin => {
                if self.is_mine(&parent) {
                    self.deliver(message);
                }
            }
            Channel::Shell | Channel::Control => self.take_reply(message, &parent, place),
        }
    }

    /// Another executor may not have heard what was said to the one before it.
    fn note_term(&mut self, term: Term) {
        if term > self.term {
            if self.term > Term::default() {
                self.requests.remind();
            }
            self.term = term;
        }
    }

    /// Notes an output of a cell. False if the front-end has it, or has had it.
    fn take_output(
        &mut self,
        message: &JupyterMessage,
        place: OutputPlace,
        parent: Option<&Header>,
    ) -> bool {
        // Whether the front-end saw some of it is known only of what it sent here.
        let begins_elsewhere = self.cells.has_come_back()
            && is_status(message, "busy")
            && parent.is_none_or(|parent| !self.requests.contains(&parent.msg_id));
        let before = self.cells.place();
        let msg_id = parent.map(|parent| parent.msg_id.as_str());
        let seen = Seen { place, parent: &message.parent_header, msg_id, begins_elsewhere };
        let verdict = self.cells.output(seen);
        if verdict == Verdict::NewAfterClearing {
            let said = self.said(&message.parent_header);
            for message in [said.status("busy"), said.clear_output()] {
                self.ready.push_back(Delivery { message, place: before });
            }
        }
        verdict != Verdict::Known
    }

    fn take_reply(&mut self, message: JupyterMessage, parent: &Header, place: Option<OutputPlace>) {
        match self.cells.reply(&parent.msg_id, place) {
            Some(is_first) => {
                if is_first && self.is_mine(parent) {
                    self.deliver(message);
                }
            }
            None => {
                if let Some(request) = self.requests.remove(&parent.msg_id) {
                    let message = JupyterMessage { channel: request.asked_on, ..message };
                    self.deliver(with_callboard(message));
                }
            }
        }
    }

    /// Says what is still unsaid when a cell has ended.
    fn take_end(&mut self, end: &CellEnd) {
        let cell = self.cells.end(end);
        let request = self.requests.remove(&end.msg_id);
        let Some(cell) = cell else { return };
        let said = self.said(&cell.parent);
        let header = serde_json::from_slice::<Header>(&cell.parent).ok();
        let is_mine = request.is_some() || header.as_ref().is_some_and(|it| self.is_mine(it));
        let mut messages = Vec::new();
        let lost = match &end.outcome {
            CellOutcome::Interrupted { cause } => Some(cause.as_str()),
            // It is not in the log, or is not kept there any more.
            CellOutcome::Completed => (!cell.has_reply).then_some(REPLY_LOST),
        };
        if let Some(why) = lost {
            messages.push(said.error(why));
            if is_mine && !cell.has_reply {
                messages.push(said.failed(Channel::Shell, "execute_request", why));
            }
        }
        if !cell.is_idle {
            messages.push(said.status("idle"));
        }
        messages.into_iter().for_each(|message| self.deliver(message));
    }

    /// The kernel is no more.
    pub(super) fn take_stop(&mut self) {
        self.is_stopped = true;
        let dead = self.said(&NOBODY).status("dead");
        self.deliver(dead);
    }

    /// Answers a request as failed.
    pub(super) fn say_failed(
        &mut self,
        parent: &Bytes,
        channel: Channel,
        msg_type: &str,
        why: &str,
    ) {
        let said = self.said(parent);
        let mut messages = vec![said.status("busy")];
        if msg_type == "execute_request" {
            messages.push(said.error(why));
        }
        if msg_type.ends_with("_request") {
            messages.push(said.failed(channel, msg_type, why));
        }
        messages.push(said.status("idle"));
        messages.into_iter().for_each(|message| self.deliver(message));
    }

    fn is_mine(&self, parent: &Header) -> bool {
        self.requests.contains(&parent.msg_id)
            || self.sessions.contains(&parent.session)
            || self.only.as_ref() == Some(&parent.msg_id)
    }

    pub(super) fn said<'a>(&self, parent: &'a Bytes) -> Said<'a> {
        Said { kernel: self.kernel.id(), parent }
    }

    pub(super) fn deliver(&mut self, message: JupyterMessage) {
        self.ready.push_back(Delivery { message, place: self.cells.place() });
    }
}

/// Tells front-ends, in a `kernel_info_reply`, that this kernel is Callboard's.
fn with_callboard(mut message: JupyterMessage) -> JupyterMessage {
    let is_info = message.parse_header().is_ok_and(|it| it.msg_type == "kernel_info_reply");
    if is_info && let Ok(mut content) = message.parse_content::<Value>() {
        content["callboard"] = json!({ "version": env!("CARGO_PKG_VERSION") });
        message.content = Bytes::from(content.to_string());
    }
    message
}
