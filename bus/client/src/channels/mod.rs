//! A kernel's channels as a Jupyter front-end has them: requests go in, replies and outputs come
//! out, through the loss of messages, broker, executors and nodes, and after a front-end that went
//! away comes back.
//!
//! Requests that may run user code are sent until the kernel has put them in its order, one after
//! the other; the kernel runs each at most once. Others are sent again only when the executor is
//! another one. What was missed on the bus is fetched from the kernel's log. A cell that its
//! executor did not survive ends with an error, a reply and `idle`, which nobody else would say.
//!
//! A request waits in `requests.rs` until it is sent; what the kernel says arrives in
//! `arriving.rs`, is put in order by [`crate::stream`], and is passed on by `passing.rs`, which
//! notes in `cells.rs` what the front-end knows.

mod arriving;
mod cells;
mod followed;
mod passing;
mod requests;

use std::{
    collections::{HashSet, VecDeque},
    fmt,
    time::Duration,
};

use callboard_protocol::{
    Fault, FaultCode, Term,
    jupyter::{Channel, JupyterError, JupyterMessage},
    kernel::{OutputCursor, SessionPlace, TookOver},
};
use callboard_transport::{BusHealth, Message, Subscription};
use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use tracing::Span;

use self::{
    arriving::Done,
    cells::Cells,
    followed::Followed,
    requests::{ANSWER_WITHIN, Due, Need, REQUESTS_MAX, Requests, need},
};
use crate::{
    kernel::{KernelClient, exists},
    own::{self, Own},
    stream::Stream,
};

/// Pause before the log is read again that did not have what is missing.
const FETCH_PAUSE: Duration = Duration::from_millis(250);
/// Names under which one front-end may send requests; it has one, or a few if it opens anew.
const SESSIONS_MAX: usize = 64;
/// Messages for the front-end before no more should be taken from it.
const READY_MAX: usize = 1_000;

/// Something for the front-end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// The message.
    pub message: JupyterMessage,
    /// How far the session is once the front-end has it.
    pub place: Option<SessionPlace>,
}

/// A front-end's channels to a kernel. They make progress only while [`Channels::next`] is awaited.
pub struct Channels {
    kernel: KernelClient,
    session: String,
    /// Names under which this front-end's requests go: replies to others are not for it.
    sessions: HashSet<String>,
    health: watch::Receiver<BusHealth>,
    events: Option<Subscription>,
    in_flight: FuturesUnordered<BoxFuture<'static, Done>>,
    is_subscribing: bool,
    /// Whether it is known where the session begins.
    has_begun: bool,
    stream: Stream,
    is_fetching: bool,
    /// What is being fetched began before the last messages were lost.
    fell_while_fetching: bool,
    fetch_at: Instant,
    requests: Requests,
    /// When something is due that was planned, and whether that may be otherwise by now.
    wake: Option<Instant>,
    has_news: bool,
    cells: Cells,
    term: Term,
    ready: VecDeque<Delivery>,
    took_over: Option<TookOver>,
    is_stopped: bool,
    followed: Followed,
    /// Only what belongs to this request is of interest, and is from another front-end.
    only: Option<String>,
}

impl fmt::Debug for Channels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Channels")
            .field("kernel", &self.kernel.id())
            .field("session", &self.session)
            .finish_non_exhaustive()
    }
}

impl Channels {
    pub(crate) fn new(kernel: KernelClient, session: &str) -> Self {
        Self {
            health: kernel.client().bus().health(),
            session: session.to_owned(),
            sessions: HashSet::from([session.to_owned()]),
            events: None,
            in_flight: FuturesUnordered::new(),
            is_subscribing: false,
            has_begun: false,
            stream: Stream::default(),
            is_fetching: false,
            fell_while_fetching: false,
            fetch_at: Instant::now(),
            requests: Requests::default(),
            wake: None,
            has_news: true,
            cells: Cells::default(),
            term: Term::default(),
            ready: VecDeque::new(),
            took_over: None,
            is_stopped: false,
            followed: Followed::default(),
            only: None,
            kernel,
        }
    }

    /// The outputs of one cell from its beginning, with its reply.
    fn of_cell(kernel: KernelClient, msg_id: &str) -> Self {
        let mut channels = Self::new(kernel, "");
        channels.only = Some(msg_id.to_owned());
        channels.has_begun = true;
        channels.stream.begin_after(OutputCursor::default(), true);
        channels
    }

    /// Takes a message of the front-end. What the kernel refuses is answered as a failed request.
    ///
    /// # Errors
    /// [`JupyterError`] if it has no readable header, or belongs on no channel of a front-end.
    pub fn send(&mut self, mut message: JupyterMessage) -> Result<(), JupyterError> {
        let header = message.parse_header()?;
        match Own::of(&message, &header) {
            Some(Own::Outputs { msg_id }) => {
                self.wish_to_follow(message.header, msg_id);
                return Ok(());
            }
            Some(own) => {
                let (kernel, took_over) = (self.kernel.clone(), self.took_over.clone());
                let answer = own::answer(kernel, message, header, own, took_over);
                self.in_flight.push(answer.map(Done::Said).boxed());
                return Ok(());
            }
            None => {}
        }
        if message.channel == Channel::Iopub {
            return Err(JupyterError::Framing("nothing is sent on iopub"));
        }
        if !header.session.is_empty() && self.sessions.len() < SESSIONS_MAX {
            self.sessions.insert(header.session.clone());
        }
        if !self.requests.has_room() {
            let why = "too many requests wait for this kernel: wait until some have ended";
            self.refuse(&message, why);
            return Ok(());
        }
        if self.requests.contains(&header.msg_id) {
            return Ok(());
        }
        let asked_on = message.channel;
        let need = need(asked_on, &header.msg_type);
        if header.msg_type == "kernel_info_request" {
            // What a kernel is does not depend on the cell that runs: its control channel answers at once.
            message.channel = Channel::Control;
        }
        if need == Need::Order {
            let expects_reply = header.msg_type == "execute_request";
            self.cells.expect(header.msg_id.clone(), message.header.clone(), expects_reply);
        }
        self.requests.insert(&message, asked_on, header, need);
        self.has_news = true;
        Ok(())
    }

    /// Answers a message of the front-end as a failed request.
    pub fn refuse(&mut self, message: &JupyterMessage, why: &str) {
        if let Ok(header) = message.parse_header() {
            self.say_failed(&message.header, message.channel, &header.msg_type, why);
        }
    }

    /// Whether another message of the front-end should be taken: not while so much is for it that it
    /// has to read first.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.ready.len() < READY_MAX && self.in_flight.len() < REQUESTS_MAX
    }

    /// Stops listening to the kernel until [`Self::next`] is awaited again, which reads from the
    /// kernel's log what was said meanwhile: for a front-end that does not take what it is sent.
    pub fn pause(&mut self) {
        if self.events.take().is_some() {
            self.has_news = true;
            self.is_subscribing = false;
            self.fall_behind();
            self.requests.remind();
        }
    }

    /// The next message for the front-end. May be dropped while it waits and called again: nothing
    /// is lost.
    ///
    /// # Errors
    /// [`FaultCode::NotFound`] once the kernel was stopped; another [`Fault`] if the connection to the
    /// broker is closed for good.
    pub async fn next(&mut self) -> Result<Delivery, Fault> {
        loop {
            if let Some(delivery) = self.ready.pop_front() {
                return Ok(delivery);
            }
            if self.is_stopped {
                return Err(Fault::new(FaultCode::NotFound, "the kernel was stopped"));
            }
            self.step().await?;
            if self.has_begun {
                while let Some(next) = self.stream.pop() {
                    self.take(next);
                }
            }
        }
    }

    /// Notes on the bus how far the front-end is, as a [`Delivery`] said it.
    ///
    /// # Errors
    /// A [`Fault`] if the broker is unreachable.
    pub async fn note_seen(&self, place: SessionPlace) -> Result<(), Fault> {
        self.kernel.note_seen(&self.session, place).await
    }

    async fn step(&mut self) -> Result<(), Fault> {
        // Often nothing has happened: the wait before was given up for a message that was refused.
        if std::mem::take(&mut self.has_news) || self.wake.is_some_and(|at| at <= Instant::now()) {
            self.plan();
            self.wake = self.wake_at();
        }
        let wake = self.wake;
        tokio::select! {
            biased;
            message = next_event(&mut self.events) => match message {
                Some(message) => self.on_event(message),
                None => return Err(closed()),
            },
            Some(done) = self.in_flight.next() => self.on_done(done),
            (index, delivery) = self.followed.next() => self.on_followed(index, delivery),
            Ok(()) = self.health.changed() => {
                if *self.health.borrow() == BusHealth::Connected {
                    self.requests.remind();
                }
            }
            () = at(wake) => {}
        }
        self.look_for_losses();
        self.has_news = true;
        Ok(())
    }

    /// Has what the bus had no room for read from the kernel's log.
    fn look_for_losses(&mut self) {
        if self.events.as_mut().is_some_and(Subscription::has_lost) {
            self.fall_behind();
        }
    }

    fn fall_behind(&mut self) {
        self.stream.fall_behind();
        self.fell_while_fetching |= self.is_fetching;
    }

    /// Begins what is due.
    fn plan(&mut self) {
        let kernel = &self.kernel;
        if self.events.is_none() {
            if !self.is_subscribing {
                self.is_subscribing = true;
                let kernel = kernel.clone();
                self.in_flight.push(async move { Done::Subscribed(kernel.events().await) }.boxed());
            }
            return;
        }
        if let Some(since) = self.lacks()
            && Instant::now() >= self.fetch_at
        {
            self.is_fetching = true;
            let kernel = kernel.clone();
            self.in_flight.push(async move { Done::Fetched(kernel.outputs(since).await) }.boxed());
        }
        for due in self.requests.due() {
            let kernel = kernel.clone();
            self.in_flight.push(match due {
                Due::Find(msg_id) => {
                    async move { Done::Found(msg_id, exists(&kernel).await) }.boxed()
                }
                Due::Send(msg_id, channel, frame) => async move {
                    let subject = kernel.subject(channel.as_str());
                    let sent = kernel.send(&subject, frame, ANSWER_WITHIN, &Span::current()).await;
                    Done::Asked(msg_id, sent)
                }
                .boxed(),
            });
        }
    }

    fn wake_at(&self) -> Option<Instant> {
        self.events.as_ref()?;
        self.requests.wake_at().into_iter().chain(self.lacks().map(|_| self.fetch_at)).min()
    }

    /// From where the kernel's log is to be read, if something is missing that nobody fetches yet.
    fn lacks(&self) -> Option<OutputCursor> {
        if self.has_begun && !self.is_fetching { self.stream.missing_since() } else { None }
    }
}

fn is_status(message: &JupyterMessage, state: &str) -> bool {
    message.parse_header().is_ok_and(|header| header.msg_type == "status")
        && message
            .parse_content::<serde_json::Value>()
            .is_ok_and(|content| content["execution_state"] == state)
}

fn closed() -> Fault {
    let text = "the connection to the broker was closed for good; connect again";
    Fault::maybe_executed(FaultCode::Unavailable, text)
}

async fn next_event(events: &mut Option<Subscription>) -> Option<Message> {
    match events {
        Some(events) => events.next().await,
        None => std::future::pending().await,
    }
}

async fn at(when: Option<Instant>) {
    match when {
        Some(when) => sleep_until(when).await,
        None => std::future::pending().await,
    }
}
