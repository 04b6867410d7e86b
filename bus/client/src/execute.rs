//! Running a cell: the same request is sent again until the cell's end is known, through the loss
//! of messages, broker and nodes; outputs are shown once each, missing ones are fetched.
//!
//! Resending is safe because a kernel runs a msg_id at most once.

use std::{collections::VecDeque, fmt, time::Duration};

use bytes::Bytes;
use callboard_protocol::{
    Fault, FaultCode,
    jupyter::JupyterMessage,
    kernel::{Accepted, CellEnd, CellState, Level, OutputCursor, OutputPlace, Outputs},
};
use callboard_transport::{BusError, BusHealth, Message, Subscription, typed::bus_fault};
use futures::{FutureExt as _, future::BoxFuture};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use tracing::Span;
use uuid::Uuid;

use crate::{
    kernel::{KernelClient, exists},
    ledger::Ledger,
    request::execute_request,
};

/// Pause before outputs are asked for again that the log did not have yet.
const FETCH_PAUSE: Duration = Duration::from_millis(250);

/// When a request is sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resend {
    /// How long the first one may stay unanswered. Each further one waits twice as long: a kernel
    /// that is just starting has no leader yet, or no replica that listens.
    pub first_after: Duration,
    /// The longest of these times, and the pause between them once the request has its place.
    pub every: Duration,
}

impl Default for Resend {
    fn default() -> Self {
        Self { first_after: Duration::from_millis(200), every: Duration::from_secs(1) }
    }
}

impl Resend {
    /// How long to wait after so many that came to nothing.
    fn growing(&self, before: u32) -> Duration {
        self.first_after.saturating_mul(1 << before.min(16)).min(self.every)
    }
}

/// How a cell is run.
#[derive(Debug, Clone)]
pub struct ExecuteOptions {
    /// When it counts as done.
    pub level: Level,
    /// The request's id; one that was used before asks how that cell ended. `None` makes one.
    pub msg_id: Option<String>,
    /// How long to wait for the end. `None` waits for ever.
    pub timeout: Option<Duration>,
    /// When the request is sent again; `None` sends it once and then only listens.
    pub resend: Option<Resend>,
}

impl Default for ExecuteOptions {
    fn default() -> Self {
        let resend = Some(Resend::default());
        Self { level: Level::default(), msg_id: None, timeout: None, resend }
    }
}

/// What happens while a cell runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecuteEvent {
    /// The kernel put the cell in its order.
    Accepted(Accepted),
    /// An output of the cell, the `execute_reply` included.
    Output(JupyterMessage, OutputPlace),
    /// The cell ended; the last event.
    Ended(CellEnd),
    /// Something a waiting person should know, as a sentence.
    Notice(String),
}

enum Done {
    Subscribed(Result<Subscription, BusError>),
    Asked(Result<Result<Accepted, Fault>, BusError>),
    Found(Result<(), Fault>),
    Fetched(Result<Outputs, Fault>),
}

/// A cell on its way. It makes progress only while [`Execution::next`] is awaited.
pub struct Execution {
    kernel: KernelClient,
    msg_id: String,
    frame: Bytes,
    /// The root of the cell's trace.
    span: Span,
    resend: Option<Resend>,
    timeout: Option<Duration>,
    until: Option<Instant>,
    health: watch::Receiver<BusHealth>,
    events: Option<Subscription>,
    in_flight: Option<BoxFuture<'static, Done>>,
    ledger: Ledger,
    ready: VecDeque<ExecuteEvent>,
    end: Option<CellEnd>,
    accepted: bool,
    sends: u32,
    not_before: Instant,
    send_at: Instant,
    check_exists: bool,
    has_asked_again: bool,
    notice: Option<String>,
    finished: bool,
}

impl fmt::Debug for Execution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Execution").field("msg_id", &self.msg_id).finish_non_exhaustive()
    }
}

impl Execution {
    pub(crate) fn new(kernel: KernelClient, code: &str, options: ExecuteOptions) -> Self {
        let msg_id = options.msg_id.unwrap_or_else(|| Uuid::now_v7().to_string());
        let frame = execute_request(code, &msg_id, kernel.session(), options.level).encode();
        let now = Instant::now();
        let span = tracing::info_span!("cell", kernel = %kernel.id(), msg_id);
        Self {
            frame,
            span,
            resend: options.resend,
            timeout: options.timeout,
            until: options.timeout.map(|timeout| now + timeout),
            health: kernel.client().bus().health(),
            events: kernel.take_spare_events(),
            in_flight: None,
            ledger: Ledger::new(msg_id.clone(), kernel.mark()),
            ready: VecDeque::new(),
            end: None,
            accepted: false,
            sends: 0,
            not_before: now,
            send_at: now,
            check_exists: false,
            has_asked_again: false,
            notice: None,
            finished: false,
            msg_id,
            kernel,
        }
    }

    /// The request's id.
    #[must_use]
    pub fn msg_id(&self) -> &str {
        &self.msg_id
    }

    /// The next thing that happens; `None` after [`ExecuteEvent::Ended`] or an error. May be
    /// dropped while it waits and called again: nothing is lost.
    ///
    /// # Errors
    /// The last item: the kernel's refusal, or [`FaultCode::TimedOut`].
    pub async fn next(&mut self) -> Option<Result<ExecuteEvent, Fault>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(Ok(event));
            }
            if self.finished {
                return None;
            }
            if let Err(fault) = self.step().await {
                self.finished = true;
                return Some(Err(fault));
            }
            self.collect();
        }
    }

    /// Waits for one thing to happen and takes it in.
    async fn step(&mut self) -> Result<(), Fault> {
        if self.in_flight.is_none() && Instant::now() >= self.not_before {
            self.in_flight = self.plan();
        }
        let wake = self.wake_at();
        tokio::select! {
            biased;
            message = next_event(&mut self.events) => match message {
                Some(message) => self.on_event(message),
                None => return Err(closed()),
            },
            done = in_flight(&mut self.in_flight) => {
                self.in_flight = None;
                return self.on_done(done);
            }
            Ok(()) = self.health.changed() => self.on_health(),
            () = at(self.until) => return Err(self.timed_out()),
            () = at(wake) => {}
        }
        Ok(())
    }

    /// What to do next on the bus, if anything is due.
    fn plan(&mut self) -> Option<BoxFuture<'static, Done>> {
        let kernel = self.kernel.clone();
        if self.events.is_none() {
            return Some(async move { Done::Subscribed(kernel.events().await) }.boxed());
        }
        let sends = self.end.is_none()
            && Instant::now() >= self.send_at
            && (self.resend.is_some() || self.sends == 0);
        if !sends {
            let since = self.fetch_since()?;
            return Some(async move { Done::Fetched(kernel.outputs(since).await) }.boxed());
        }
        if std::mem::take(&mut self.check_exists) {
            return Some(async move { Done::Found(exists(&kernel).await) }.boxed());
        }
        let times = self.resend.unwrap_or_default();
        let wait = if self.accepted { times.every } else { times.growing(self.sends) };
        self.sends += 1;
        self.send_at = Instant::now() + wait;
        let (frame, span) = (self.frame.clone(), self.span.clone());
        let subject = self.kernel.subject("shell");
        Some(async move { Done::Asked(kernel.send(&subject, frame, wait, &span).await) }.boxed())
    }

    fn fetch_since(&self) -> Option<OutputCursor> {
        match &self.end {
            Some(end) => self.ledger.missing_until(end.last_output),
            None => self.ledger.missing_since(),
        }
    }

    fn wake_at(&self) -> Option<Instant> {
        if self.in_flight.is_some() {
            return None;
        }
        let sends_again = self.resend.is_some() || self.sends == 0;
        let due = if self.end.is_none() && sends_again { self.send_at } else { self.not_before };
        let fetches = self.events.is_none() || self.fetch_since().is_some();
        let wake = if fetches { self.not_before } else { due.max(self.not_before) };
        (fetches || sends_again).then_some(wake)
    }

    fn on_event(&mut self, message: Message) {
        match message.subject.last() {
            "emitted" => {
                let Ok(output) = JupyterMessage::decode(&message.payload) else { return };
                if let Some(place) = message.envelope.cursor {
                    self.ledger.on_emitted(place, output);
                }
            }
            "ended" => {
                if let Ok(end) = serde_json::from_slice::<CellEnd>(&message.payload)
                    && end.msg_id == self.msg_id
                {
                    self.on_end(end);
                }
            }
            _ => {}
        }
    }

    fn on_end(&mut self, end: CellEnd) {
        if self.end.is_none() {
            self.ledger.on_accepted(end.seq);
            self.end = Some(end);
            // A request under way has nothing more to tell.
            self.in_flight = None;
            self.not_before = Instant::now();
        }
    }

    fn on_health(&mut self) {
        let health = *self.health.borrow();
        match health {
            BusHealth::Connected => {
                let now = Instant::now();
                (self.send_at, self.not_before) = (now, now);
            }
            BusHealth::Disconnected => {
                self.tell("waiting: the connection to the broker is lost; it is being made again");
            }
        }
    }

    fn on_done(&mut self, done: Done) -> Result<(), Fault> {
        match done {
            Done::Subscribed(Ok(events)) => self.events = Some(events),
            Done::Subscribed(Err(error)) => self.on_trouble("shell", &error)?,
            Done::Asked(Ok(Ok(accepted))) => self.on_accepted(accepted),
            Done::Asked(Ok(Err(fault))) => self.on_refusal(fault)?,
            Done::Asked(Err(error)) => {
                self.check_exists = matches!(error, BusError::NoResponders(_));
                self.on_trouble("shell", &error)?;
            }
            Done::Found(found) => found?,
            Done::Fetched(Ok(outputs)) => self.on_fetched(outputs),
            Done::Fetched(Err(fault)) => self.on_refusal(fault)?,
        }
        Ok(())
    }

    fn on_accepted(&mut self, accepted: Accepted) {
        self.notice = None;
        self.ledger.on_accepted(accepted.seq);
        if !self.accepted {
            self.accepted = true;
            self.ready.push_back(ExecuteEvent::Accepted(accepted.clone()));
        }
        match accepted.state {
            CellState::Pending => {
                let every = self.resend.unwrap_or_default().every;
                self.send_at = Instant::now() + every;
            }
            CellState::Ended(end) => self.on_end(end),
        }
    }

    fn on_fetched(&mut self, outputs: Outputs) {
        self.notice = None;
        let (before, more, gap) = (self.ledger.mark(), outputs.more, outputs.gap);
        let empty = outputs.outputs.is_empty();
        self.ledger.on_fetched(outputs);
        if self.ledger.take_expired() {
            let text =
                "some outputs of this cell are no longer kept by the kernel and are missing here";
            self.ready.push_back(ExecuteEvent::Notice(text.to_owned()));
        }
        if gap
            && empty
            && let Some(end) = &mut self.end
        {
            end.last_output = self.ledger.mark().filter(|mark| Some(*mark) < end.last_output);
        }
        if !more && self.ledger.mark() == before {
            self.not_before = Instant::now() + FETCH_PAUSE;
        }
    }

    /// A passing refusal is waited out; any other is final.
    fn on_refusal(&mut self, fault: Fault) -> Result<(), Fault> {
        match fault.code {
            FaultCode::Unavailable | FaultCode::TimedOut | FaultCode::Stale => {
                self.pause();
                self.tell(&format!("waiting: {fault}"));
                Ok(())
            }
            _ => Err(fault),
        }
    }

    fn on_trouble(&mut self, verb: &str, error: &BusError) -> Result<(), Fault> {
        match error {
            BusError::TooLarge { .. } | BusError::Forbidden(_) => {
                return Err(bus_fault(&self.kernel.subject(verb), error));
            }
            BusError::Disconnected(why) => {
                self.tell(&format!("waiting: no connection to the broker ({why})"));
                self.pause();
            }
            BusError::NoResponders(_) => {
                self.tell("waiting: no replica of the kernel answers yet; are its nodes up?");
                self.pause();
            }
            // Nobody leads just now, or the answer was lost; an accepted cell is simply long.
            BusError::TimedOut { .. } => {
                self.send_at = Instant::now();
                if !self.accepted {
                    self.tell(
                        "waiting: the kernel does not answer yet; it may be electing a leader",
                    );
                }
            }
        }
        Ok(())
    }

    fn pause(&mut self) {
        // A refusal comes at once, and may be over in a moment.
        let times = self.resend.unwrap_or_default();
        let first_after = times.first_after / 4;
        let pause = Resend { first_after, ..times }.growing(self.sends.saturating_sub(1));
        self.not_before = Instant::now() + pause;
        self.send_at = self.not_before;
        if self.sends == 1 && self.resend.is_none() && !self.accepted {
            self.sends = 0;
        }
    }

    /// Says something once.
    fn tell(&mut self, text: &str) {
        if self.notice.as_deref() != Some(text) {
            self.notice = Some(text.to_owned());
            self.ready.push_back(ExecuteEvent::Notice(text.to_owned()));
        }
    }

    /// Hands over what became showable, and the end once nothing is missing.
    fn collect(&mut self) {
        let ended = self
            .end
            .as_ref()
            .is_some_and(|end| self.ledger.missing_until(end.last_output).is_none());
        if ended {
            self.ledger.finish();
            let last = self.end.as_ref().and_then(|end| end.last_output);
            if self.resend.is_some() && !self.has_asked_again && self.ledger.has_lost(last) {
                // The log alone knows how the cell ended: perhaps not as its executor said.
                self.has_asked_again = true;
                self.end = None;
                self.send_at = Instant::now();
                return;
            }
        }
        while let Some((message, place)) = self.ledger.pop() {
            self.ready.push_back(ExecuteEvent::Output(message, place));
        }
        if ended && let Some(end) = self.end.clone() {
            self.kernel.set_mark(self.ledger.mark());
            if let Some(events) = self.events.take() {
                self.kernel.leave_spare_events(events);
            }
            self.ready.push_back(ExecuteEvent::Ended(end));
            self.finished = true;
            self.in_flight = None;
        }
    }

    fn timed_out(&self) -> Fault {
        let waited = self.timeout.unwrap_or_default().as_secs_f32();
        let text = format!(
            "the cell did not end within {waited} s; it may still run or have run. Ask again with its message id, {}, to learn how it ended",
            self.msg_id
        );
        Fault::maybe_executed(FaultCode::TimedOut, text)
    }
}

fn closed() -> Fault {
    let text = "the connection to the broker was closed for good; connect again and ask with the same message id";
    Fault::maybe_executed(FaultCode::Unavailable, text)
}

async fn next_event(events: &mut Option<Subscription>) -> Option<Message> {
    match events {
        Some(events) => events.next().await,
        None => std::future::pending().await,
    }
}

async fn in_flight(future: &mut Option<BoxFuture<'static, Done>>) -> Done {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

async fn at(when: Option<Instant>) {
    match when {
        Some(when) => sleep_until(when).await,
        None => std::future::pending().await,
    }
}
