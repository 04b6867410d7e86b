//! What arrives: the kernel's events, and the answers to what was asked.

use std::time::Duration;

use callboard_protocol::{
    Fault, FaultCode,
    jupyter::JupyterMessage,
    kernel::{Accepted, CellEnd, CellFate, OutputCursor, Outputs, SeenAnswer, SessionPlace},
};
use callboard_transport::{BusError, Message, Subscription, typed::bus_fault};
use futures::FutureExt as _;
use tokio::time::{Instant, sleep};

use super::{Channels, FETCH_PAUSE, followed::Follow, requests::Answered};

/// Something that was begun is done.
pub(super) enum Done {
    Subscribed(Result<Subscription, BusError>),
    Seen(Result<SeenAnswer, Fault>),
    Noted(Result<(), Fault>),
    Asked(String, Result<Result<Accepted, Fault>, BusError>),
    Found(String, Result<(), Fault>),
    Fetched(Result<Outputs, Fault>),
    Said(Vec<JupyterMessage>),
    Followed(Follow, Result<CellFate, Fault>),
}

impl Channels {
    pub(super) fn on_event(&mut self, message: Message) {
        match message.subject.last() {
            "emitted" => {
                let Ok(output) = JupyterMessage::decode(&message.payload) else { return };
                self.stream.on_emitted(message.envelope.cursor, message.envelope.after, output);
            }
            "ended" => {
                if let Ok(end) = serde_json::from_slice::<CellEnd>(&message.payload) {
                    self.stream.on_ended(end);
                }
            }
            "stored" => {
                if let Ok(last) = serde_json::from_slice::<OutputCursor>(&message.payload) {
                    self.stream.on_stored(last);
                }
            }
            "took_over" => {
                self.took_over = serde_json::from_slice(&message.payload).ok();
                self.requests.remind();
            }
            "stopped" => self.take_stop(),
            _ => {}
        }
    }

    pub(super) fn on_done(&mut self, done: Done) {
        match done {
            Done::Subscribed(Ok(events)) => {
                self.events = Some(events);
                if !self.has_begun {
                    self.ask_where_it_was(Duration::ZERO);
                }
            }
            // The connection is being made again, which is noticed by the bus's health.
            Done::Subscribed(Err(error)) => {
                tracing::debug!(%error, "the kernel's events cannot be followed yet");
                self.is_subscribing = false;
            }
            // Without this place a session that comes back would miss what it has not seen.
            Done::Seen(Err(fault))
                if matches!(fault.code, FaultCode::Unavailable | FaultCode::TimedOut) =>
            {
                self.ask_where_it_was(FETCH_PAUSE);
            }
            Done::Seen(seen) => self.begin(seen.unwrap_or_default()),
            Done::Noted(Ok(())) => {}
            Done::Noted(Err(fault)) => {
                tracing::debug!(%fault, "where a session begins could not be noted");
            }
            Done::Fetched(fetched) => self.on_fetched(fetched),
            Done::Asked(msg_id, answer) => self.on_answer(&msg_id, answer),
            Done::Said(messages) => messages.into_iter().for_each(|message| self.deliver(message)),
            Done::Followed(follow, fate) => self.follow(follow, fate),
            Done::Found(msg_id, Ok(())) => self.requests.again(&msg_id),
            Done::Found(msg_id, Err(fault)) => self.fail(&msg_id, &fault.message),
        }
    }

    fn ask_where_it_was(&mut self, pause: Duration) {
        let (kernel, session) = (self.kernel.clone(), self.session.clone());
        self.in_flight.push(
            async move {
                sleep(pause).await;
                Done::Seen(kernel.seen(&session).await)
            }
            .boxed(),
        );
    }

    /// The session begins where it was, or with what comes from now on.
    fn begin(&mut self, seen: SeenAnswer) {
        self.has_begun = true;
        if let Some(place) = seen.place {
            self.cells.go_on_from(place);
            self.stream.begin_after(place.replay_from, true);
            return;
        }
        if let Some(last) = seen.last {
            self.stream.begin_after(last, false);
        }
        // Should the front-end come back before anything else is noted, it goes on from here.
        let cursor = seen.last.unwrap_or_default();
        let (kernel, session) = (self.kernel.clone(), self.session.clone());
        self.in_flight.push(
            async move {
                let place = SessionPlace { cursor, replay_from: cursor };
                Done::Noted(kernel.note_seen(&session, place).await)
            }
            .boxed(),
        );
    }

    fn on_fetched(&mut self, fetched: Result<Outputs, Fault>) {
        self.is_fetching = false;
        let fell = std::mem::take(&mut self.fell_while_fetching);
        let (before, was_behind) = (self.stream.mark(), self.stream.is_behind());
        match fetched {
            Ok(outputs) => {
                self.stream.on_fetched(outputs);
                if fell {
                    self.stream.fall_behind();
                }
                if was_behind && !self.stream.is_behind() {
                    // Answers, and the ends of cells, may have been lost with the outputs.
                    self.requests.remind();
                }
            }
            Err(fault) => tracing::debug!(%fault, "missing outputs cannot be fetched yet"),
        }
        let pause = if self.stream.mark() == before { FETCH_PAUSE } else { Duration::ZERO };
        self.fetch_at = Instant::now() + pause;
    }

    fn on_answer(&mut self, msg_id: &str, answer: Result<Result<Accepted, Fault>, BusError>) {
        match self.requests.answered(msg_id, answer) {
            Answered::Nothing => {}
            Answered::Ended(end) => self.stream.on_ended(end),
            Answered::Failed(why) => self.fail(msg_id, &why),
            Answered::NotCarried(channel, error) => {
                let subject = self.kernel.subject(channel.as_str());
                self.fail(msg_id, &bus_fault(&subject, &error).message);
            }
        }
    }

    fn fail(&mut self, msg_id: &str, why: &str) {
        self.cells.forget(msg_id);
        if let Some(request) = self.requests.remove(msg_id) {
            self.say_failed(&request.header, request.asked_on, &request.msg_type, why);
        }
    }
}
