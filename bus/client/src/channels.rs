//! A kernel's channels as a Jupyter front-end has them: requests go in, replies and outputs come
//! out, through the loss of messages, broker, executors and nodes, and after a front-end that went
//! away comes back.
//!
//! Requests that may run user code are sent until the kernel has put them in its order, one after
//! the other; the kernel runs each at most once. Others are sent again only when the executor is
//! another one. What was missed on the bus is fetched from the kernel's log. A cell that its
//! executor did not survive ends with an error, a reply and `idle`, which nobody else would say.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    fmt,
    time::Duration,
};

use bytes::Bytes;
use callboard_protocol::{
    Fault, FaultCode, Seq, Term,
    jupyter::{Channel, Header, JupyterError, JupyterMessage},
    kernel::{
        Accepted, CellEnd, CellFate, CellOutcome, CellState, OutputCursor, OutputPlace, Outputs,
        SeenAnswer, SessionPlace, TookOver,
    },
};
use callboard_transport::{BusError, BusHealth, Message, Subscription, typed::bus_fault};
use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};
use tracing::Span;

use crate::{
    kernel::{KernelClient, exists},
    own::{self, Own},
    said::Said,
    stream::{Next, Stream},
};

/// Pause before the log is read again that did not have what is missing.
const FETCH_PAUSE: Duration = Duration::from_millis(250);
/// Longest wait for one answer of the kernel, and the first pause before a request is sent again.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);
const RETRY_FIRST: Duration = Duration::from_millis(50);
/// How often a request is sent again whose answer, or end, may have been lost.
const REMIND_EVERY: Duration = Duration::from_secs(15);
/// How long a reply is waited for that may never come.
const REPLY_WITHIN: Duration = Duration::from_secs(600);
/// Tries without anybody listening after which the control plane is asked whether there is such a
/// kernel.
const UNHEARD_MAX: u32 = 4;
/// Requests of one front-end that may be under way, and the bytes of all of them together.
const REQUESTS_MAX: usize = 1_000;
const REQUESTS_BYTES_MAX: usize = 64 << 20;
/// Names under which one front-end may send requests; it has one, or a few if it opens anew.
const SESSIONS_MAX: usize = 64;
/// Cells whose outputs one front-end may have said again at a time.
const FOLLOWED_MAX: usize = 100;
/// Messages for the front-end before no more should be taken from it.
const READY_MAX: usize = 1_000;

/// What is said of a cell whose executor said that it completed, and whose reply is nowhere.
const REPLY_LOST: &str = "the cell ran, but its reply is lost with its executor: what it changed may be \
                          lost, too. Look at its variables before you run it again";
/// What asks for a cell's outputs.
const OUTPUTS_REQUEST: &str = "callboard_outputs_request";

/// What a request needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Need {
    /// A place in the kernel's order, and to end.
    Order,
    /// A reply; asking twice does no harm.
    Reply,
    /// To be passed on once; a reply may come.
    Passing,
}

#[derive(Debug)]
struct Request {
    number: u64,
    channel: Channel,
    /// Where its reply is expected.
    asked_on: Channel,
    header: Bytes,
    msg_type: String,
    need: Need,
    frame: Bytes,
    began: Instant,
    send_at: Instant,
    tries: u32,
    unheard: u32,
    is_sending: bool,
    /// The kernel has it.
    is_taken: bool,
}

/// What front-ends have been told of a cell that has not ended.
#[derive(Debug)]
struct Cell {
    parent: Bytes,
    is_idle: bool,
    has_reply: bool,
}

enum Done {
    Subscribed(Result<Subscription, BusError>),
    Seen(Result<SeenAnswer, Fault>),
    Noted(Result<(), Fault>),
    Asked(String, Result<Result<Accepted, Fault>, BusError>),
    Found(String, Result<(), Fault>),
    Fetched(Result<Outputs, Fault>),
    Said(Vec<JupyterMessage>),
    Followed(Follow, Result<CellFate, Fault>),
}

/// A front-end's wish to see a cell's outputs again, and those that follow.
#[derive(Debug, Clone)]
struct Follow {
    /// The header of the wish: the outputs are said in its name.
    wish: Bytes,
    /// The cell's request.
    msg_id: String,
}

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
    fetch_at: Instant,
    requests: HashMap<String, Request>,
    requests_ever: u64,
    /// When something is due that was planned, and whether that may be otherwise by now.
    wake: Option<Instant>,
    has_news: bool,
    cells: HashMap<String, Cell>,
    term: Term,
    /// Outputs up to here were seen by the front-end before it went away.
    acknowledged: Option<OutputCursor>,
    cleared: Option<Seq>,
    /// The cell whose outputs have begun, and the place before the first of them.
    open: Option<(Seq, OutputCursor)>,
    /// The last cell of which the front-end was told everything, but for what threads say later.
    closed: Seq,
    place: Option<SessionPlace>,
    ready: VecDeque<Delivery>,
    took_over: Option<TookOver>,
    is_stopped: bool,
    /// Cells whose outputs are said again.
    followed: Vec<(Follow, Box<Channels>)>,
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
            fetch_at: Instant::now(),
            requests: HashMap::new(),
            requests_ever: 0,
            wake: None,
            has_news: true,
            cells: HashMap::new(),
            term: Term::default(),
            acknowledged: None,
            cleared: None,
            open: None,
            closed: Seq::default(),
            place: None,
            ready: VecDeque::new(),
            took_over: None,
            is_stopped: false,
            followed: Vec::new(),
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

    /// The kernel.
    #[must_use]
    pub fn kernel(&self) -> &KernelClient {
        &self.kernel
    }

    /// Takes a message of the front-end. What the kernel refuses is answered as a failed request.
    ///
    /// # Errors
    /// [`JupyterError`] if it has no readable header, or belongs on no channel of a front-end.
    pub fn send(&mut self, message: JupyterMessage) -> Result<(), JupyterError> {
        let header = message.parse_header()?;
        if let Some(own) = Own::of(&message, &header) {
            self.answer_own(message, header, own);
            return Ok(());
        }
        if message.channel == Channel::Iopub {
            return Err(JupyterError::Framing("nothing is sent on iopub"));
        }
        if !header.session.is_empty() && self.sessions.len() < SESSIONS_MAX {
            self.sessions.insert(header.session.clone());
        }
        let bytes = || self.requests.values().map(|request| request.frame.len()).sum::<usize>();
        if self.requests.len() >= REQUESTS_MAX || bytes() >= REQUESTS_BYTES_MAX {
            self.refuse(
                &message,
                "too many requests wait for this kernel: wait until some have ended",
            );
            return Ok(());
        }
        if self.requests.contains_key(&header.msg_id) {
            return Ok(());
        }
        let need = need(message.channel, &header);
        let asked_on = message.channel;
        let mut message = message;
        if header.msg_type == "kernel_info_request" {
            // What a kernel is does not depend on the cell that runs: its control channel answers at once.
            message.channel = Channel::Control;
        }
        if need == Need::Order {
            let parent = message.header.clone();
            let cell =
                Cell { parent, is_idle: false, has_reply: header.msg_type != "execute_request" };
            self.cells.insert(header.msg_id.clone(), cell);
        }
        self.has_news = true;
        self.requests_ever += 1;
        let now = Instant::now();
        self.requests.insert(
            header.msg_id,
            Request {
                number: self.requests_ever,
                channel: message.channel,
                asked_on,
                header: message.header.clone(),
                msg_type: header.msg_type,
                need,
                frame: message.encode(),
                began: now,
                send_at: now,
                tries: 0,
                unheard: 0,
                is_sending: false,
                is_taken: false,
            },
        );
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
            self.stream.fall_behind();
            self.remind();
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
            (index, delivery) = next_followed(&mut self.followed) => {
                self.on_followed(index, delivery);
            }
            Ok(()) = self.health.changed() => self.on_health(),
            () = at(wake) => {}
        }
        self.has_news = true;
        Ok(())
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
        let now = Instant::now();
        if self.has_begun
            && !self.is_fetching
            && now >= self.fetch_at
            && let Some(since) = self.stream.missing_since()
        {
            self.is_fetching = true;
            let kernel = kernel.clone();
            self.in_flight.push(async move { Done::Fetched(kernel.outputs(since).await) }.boxed());
        }
        let first = self.first_to_order();
        let overdue = |request: &Request| {
            request.is_taken && now.duration_since(request.began) > REPLY_WITHIN
        };
        self.requests.retain(|_, request| request.need == Need::Order || !overdue(request));
        let mut due: Vec<(&String, &mut Request)> = self
            .requests
            .iter_mut()
            .filter(|(_, it)| !it.is_sending && it.send_at <= now)
            .filter(|(_, it)| it.need != Need::Order || it.is_taken || Some(it.number) == first)
            .collect();
        due.sort_by_key(|(_, request)| request.number);
        for (msg_id, request) in due {
            request.is_sending = true;
            let (kernel, msg_id) = (kernel.clone(), msg_id.clone());
            if request.unheard >= UNHEARD_MAX {
                request.unheard = 0;
                self.in_flight
                    .push(async move { Done::Found(msg_id, exists(&kernel).await) }.boxed());
                continue;
            }
            let (subject, frame) =
                (kernel.subject(request.channel.as_str()), request.frame.clone());
            self.in_flight.push(
                async move {
                    let sent = kernel.send(&subject, frame, ANSWER_WITHIN, &Span::current()).await;
                    Done::Asked(msg_id, sent)
                }
                .boxed(),
            );
        }
    }

    /// The request whose turn it is to be put in order: those behind it wait, as one that is sent
    /// again could be overtaken.
    fn first_to_order(&self) -> Option<u64> {
        let waiting = self.requests.values().filter(|it| it.need == Need::Order && !it.is_taken);
        waiting.map(|request| request.number).min()
    }

    fn wake_at(&self) -> Option<Instant> {
        self.events.as_ref()?;
        let first = self.first_to_order();
        let sends = self
            .requests
            .values()
            .filter(|it| !it.is_sending)
            .filter(|it| it.need != Need::Order || it.is_taken || Some(it.number) == first)
            .map(|request| request.send_at);
        let fetches = self.has_begun && !self.is_fetching && self.stream.missing_since().is_some();
        sends.chain(fetches.then_some(self.fetch_at)).min()
    }

    fn on_health(&mut self) {
        if *self.health.borrow() == BusHealth::Connected {
            self.remind();
        }
    }

    /// Whatever was said may have been lost.
    fn remind(&mut self) {
        let now = Instant::now();
        for request in self.requests.values_mut() {
            if request.need != Need::Passing || !request.is_taken {
                request.send_at = now;
            }
        }
    }

    fn on_event(&mut self, message: Message) {
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
                self.remind();
            }
            "stopped" => {
                self.is_stopped = true;
                let said = Said { kernel: self.kernel.id(), parent: &Bytes::from_static(b"{}") };
                let dead = said.status("dead");
                self.deliver(dead);
            }
            _ => {}
        }
    }

    fn on_done(&mut self, done: Done) {
        match done {
            Done::Subscribed(Ok(events)) => {
                self.events = Some(events);
                if self.has_begun {
                    return;
                }
                self.ask_where_it_was(Duration::ZERO);
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
            Done::Fetched(fetched) => {
                self.is_fetching = false;
                let before = self.stream.mark();
                match fetched {
                    Ok(outputs) => self.stream.on_fetched(outputs),
                    Err(fault) => tracing::debug!(%fault, "missing outputs cannot be fetched yet"),
                }
                let pause = if self.stream.mark() == before { FETCH_PAUSE } else { Duration::ZERO };
                self.fetch_at = Instant::now() + pause;
            }
            Done::Asked(msg_id, answer) => self.on_answer(&msg_id, answer),
            Done::Said(messages) => messages.into_iter().for_each(|message| self.deliver(message)),
            Done::Followed(follow, fate) => self.follow(follow, fate),
            Done::Found(msg_id, found) => match found {
                Ok(()) => self.again(&msg_id),
                Err(fault) => self.fail(&msg_id, &fault.message),
            },
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
            self.acknowledged = Some(place.cursor);
            self.place = Some(place);
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

    fn on_answer(&mut self, msg_id: &str, answer: Result<Result<Accepted, Fault>, BusError>) {
        let Some(request) = self.requests.get_mut(msg_id) else { return };
        match answer {
            Ok(Ok(accepted)) => {
                request.is_sending = false;
                request.is_taken = true;
                request.unheard = 0;
                request.send_at = Instant::now() + REMIND_EVERY * (1 << request.tries.min(4));
                request.tries += 1;
                match (request.need, accepted.state) {
                    (Need::Order, CellState::Ended(end)) => self.stream.on_ended(end),
                    (Need::Passing, _) if request.channel == Channel::Stdin => {
                        self.requests.remove(msg_id);
                    }
                    (Need::Passing, _) => request.send_at = Instant::now() + REPLY_WITHIN,
                    _ => {}
                }
            }
            Ok(Err(fault)) => match fault.code {
                FaultCode::Unavailable | FaultCode::TimedOut | FaultCode::Stale => {
                    self.again(msg_id)
                }
                _ => self.fail(msg_id, &fault.message),
            },
            Err(error @ (BusError::TooLarge { .. } | BusError::Forbidden(_))) => {
                let subject = self.kernel.subject(request.channel.as_str());
                let why = bus_fault(&subject, &error).message;
                self.fail(msg_id, &why);
            }
            Err(error) => {
                request.unheard += u32::from(matches!(error, BusError::NoResponders(_)));
                self.again(msg_id);
            }
        }
    }

    /// Sends a request again, after a pause that grows.
    fn again(&mut self, msg_id: &str) {
        let Some(request) = self.requests.get_mut(msg_id) else { return };
        request.is_sending = false;
        let pause = RETRY_FIRST.saturating_mul(1 << request.tries.min(5)).min(ANSWER_WITHIN);
        request.tries += 1;
        request.send_at = Instant::now() + pause;
    }

    fn fail(&mut self, msg_id: &str, why: &str) {
        self.cells.remove(msg_id);
        if let Some(request) = self.requests.remove(msg_id) {
            self.say_failed(&request.header, request.asked_on, &request.msg_type, why);
        }
    }

    fn answer_own(&mut self, message: JupyterMessage, header: Header, own: Own) {
        let kernel = self.kernel.clone();
        if let Own::Outputs { msg_id } = own {
            let follow = Follow { wish: message.header, msg_id };
            self.in_flight.push(
                async move {
                    let fate = kernel.fate(&follow.msg_id).await;
                    Done::Followed(follow, fate)
                }
                .boxed(),
            );
            return;
        }
        let took_over = self.took_over.clone();
        let answer = own::answer(kernel, message, header, own, took_over);
        self.in_flight.push(answer.map(Done::Said).boxed());
    }

    /// Begins to say a cell's outputs again, if there is such a cell.
    fn follow(&mut self, follow: Follow, fate: Result<CellFate, Fault>) {
        match fate {
            Ok(CellFate { accepted: Some(_) }) if self.followed.len() >= FOLLOWED_MAX => {
                let why = "too many cells are followed: wait until some have ended";
                self.say_failed(&follow.wish, Channel::Shell, OUTPUTS_REQUEST, why);
            }
            Ok(CellFate { accepted: Some(_) }) => {
                let said = Said { kernel: self.kernel.id(), parent: &follow.wish };
                let busy = said.status("busy");
                self.deliver(busy);
                let cell = Box::new(Self::of_cell(self.kernel.clone(), &follow.msg_id));
                self.followed.push((follow, cell));
            }
            Ok(CellFate { accepted: None }) => self.followed_to_the_end(&follow, "unknown", None),
            Err(fault) => {
                self.say_failed(&follow.wish, Channel::Shell, OUTPUTS_REQUEST, &fault.message);
            }
        }
    }

    fn on_followed(&mut self, index: usize, delivery: Result<Delivery, Fault>) {
        let Some((follow, _)) = self.followed.get(index) else { return };
        let mut message = match delivery {
            Ok(delivery) => delivery.message,
            Err(fault) => {
                let (follow, _) = self.followed.swap_remove(index);
                self.say_failed(&follow.wish, Channel::Shell, OUTPUTS_REQUEST, &fault.message);
                return;
            }
        };
        if message.parent_msg_id().as_ref() != Some(&follow.msg_id) || is_idle(&message) {
            return;
        }
        if message.channel == Channel::Shell {
            let (follow, _) = self.followed.swap_remove(index);
            let reply: serde_json::Value = message.parse_content().unwrap_or_default();
            let is_lost = reply["ename"] == crate::said::ERROR_NAME;
            let cell = if is_lost { "interrupted" } else { "ended" };
            self.followed_to_the_end(&follow, cell, reply["execution_count"].as_u64());
            return;
        }
        message.parent_header = follow.wish.clone();
        self.deliver(message);
    }

    fn followed_to_the_end(&mut self, follow: &Follow, cell: &str, execution_count: Option<u64>) {
        let said = Said { kernel: self.kernel.id(), parent: &follow.wish };
        let content = serde_json::json!({
            "status": "ok", "cell": cell, "execution_count": execution_count,
        });
        let reply = said.reply(Channel::Shell, OUTPUTS_REQUEST, &content);
        let idle = said.status("idle");
        self.deliver(reply);
        self.deliver(idle);
    }

    fn say_failed(&mut self, parent: &Bytes, channel: Channel, msg_type: &str, why: &str) {
        let said = Said { kernel: self.kernel.id(), parent };
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

    fn take(&mut self, next: Next) {
        match next {
            Next::Message(message, place) => self.take_message(message, place),
            Next::Ended(end) => self.take_end(&end),
            Next::Gap => {
                let text =
                    "[some outputs of this kernel are no longer kept and are missing here]\n";
                let said = Said { kernel: self.kernel.id(), parent: &Bytes::from_static(b"{}") };
                let notice = said.notice(text);
                self.deliver(notice);
            }
        }
    }

    fn take_message(&mut self, message: JupyterMessage, place: Option<OutputPlace>) {
        let parent = serde_json::from_slice::<Header>(&message.parent_header).ok();
        if let Some(place) = place {
            if place.cursor.term > self.term {
                if self.term > Term::default() {
                    self.remind();
                }
                self.term = place.cursor.term;
            }
            if !self.follow_cell(&message, place, parent.as_ref()) {
                return;
            }
        }
        let Some(parent) = parent else { return self.deliver(message) };
        match message.channel {
            Channel::Iopub => {
                if is_idle(&message)
                    && let Some(cell) = self.cells.get_mut(&parent.msg_id)
                {
                    cell.is_idle = true;
                    self.close(&parent.msg_id, place);
                }
                self.deliver(message);
            }
            Channel::Stdin => {
                if self.is_mine(&parent) {
                    self.deliver(message);
                }
            }
            Channel::Shell | Channel::Control => {
                if let Some(cell) = self.cells.get_mut(&parent.msg_id) {
                    if std::mem::replace(&mut cell.has_reply, true) {
                        return;
                    }
                    self.close(&parent.msg_id, place);
                    if self.is_mine(&parent) {
                        self.deliver(message);
                    }
                } else if let Some(request) = self.requests.remove(&parent.msg_id) {
                    let message = JupyterMessage { channel: request.asked_on, ..message };
                    self.deliver(with_callboard(message));
                }
            }
        }
    }

    /// Notes an output of a cell. False if the front-end has it, or has had it.
    fn follow_cell(
        &mut self,
        message: &JupyterMessage,
        place: OutputPlace,
        parent: Option<&Header>,
    ) -> bool {
        let OutputPlace { cursor, cell } = place;
        let is_repeated = self.acknowledged.is_some_and(|seen| cursor <= seen);
        // Whether the front-end saw some of it is known only of what it sent here.
        let may_be_repeated = self.acknowledged.is_some()
            && is_status(message, "busy")
            && parent.is_none_or(|parent| !self.requests.contains_key(&parent.msg_id));
        if cell == Seq(0) {
            self.settle(Some(place));
            return !is_repeated;
        }
        if cell > self.closed && self.open.is_none_or(|(open, _)| open != cell) {
            let before = OutputCursor { number: cursor.number.saturating_sub(1), ..cursor };
            self.open = Some((cell, before));
        }
        if (is_repeated || may_be_repeated) && self.cleared != Some(cell) {
            // It may have seen the beginning of this cell: all of it comes again.
            self.cleared = Some(cell);
            let said = Said { kernel: self.kernel.id(), parent: &message.parent_header };
            let messages = [said.status("busy"), said.clear_output()];
            messages.into_iter().for_each(|message| self.deliver(message));
        }
        if let Some(parent) = parent
            && !self.cells.contains_key(&parent.msg_id)
        {
            let cell =
                Cell { parent: message.parent_header.clone(), is_idle: false, has_reply: false };
            self.cells.insert(parent.msg_id.clone(), cell);
        }
        self.settle(Some(place));
        true
    }

    /// Nothing of a cell has to come again that has its reply and is idle.
    fn close(&mut self, msg_id: &str, place: Option<OutputPlace>) {
        let is_done = self.cells.get(msg_id).is_some_and(|cell| cell.is_idle && cell.has_reply);
        if let Some(place) = place
            && is_done
        {
            (self.closed, self.open) = (self.closed.max(place.cell), None);
            self.settle(Some(place));
        }
    }

    fn settle(&mut self, place: Option<OutputPlace>) {
        let Some(OutputPlace { cursor, .. }) = place else { return };
        let replay_from = self.open.map_or(cursor, |(_, before)| before);
        self.place = Some(SessionPlace { cursor, replay_from });
    }

    /// Says what is still unsaid when a cell has ended.
    fn take_end(&mut self, end: &CellEnd) {
        (self.closed, self.open) = (self.closed.max(end.seq), None);
        if let Some(cursor) = end.last_output {
            self.settle(Some(OutputPlace { cursor, cell: end.seq }));
        }
        let request = self.requests.remove(&end.msg_id);
        let Some(cell) = self.cells.remove(&end.msg_id) else { return };
        let said = Said { kernel: self.kernel.id(), parent: &cell.parent };
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

    fn is_mine(&self, parent: &Header) -> bool {
        self.requests.contains_key(&parent.msg_id)
            || self.sessions.contains(&parent.session)
            || self.only.as_ref() == Some(&parent.msg_id)
    }

    fn deliver(&mut self, message: JupyterMessage) {
        self.ready.push_back(Delivery { message, place: self.place });
    }
}

/// What a request needs, by its type. Source of the types: Jupyter messaging specification 5.5.
fn need(channel: Channel, header: &Header) -> Need {
    match (channel, header.msg_type.as_str()) {
        (Channel::Shell, "execute_request" | "comm_open" | "comm_msg" | "comm_close") => {
            Need::Order
        }
        (
            Channel::Shell | Channel::Control,
            "complete_request"
            | "inspect_request"
            | "history_request"
            | "is_complete_request"
            | "comm_info_request"
            | "kernel_info_request",
        ) => Need::Reply,
        _ => Need::Passing,
    }
}

/// Tells front-ends, in a `kernel_info_reply`, that this kernel is Callboard's.
fn with_callboard(mut message: JupyterMessage) -> JupyterMessage {
    let is_info = message.parse_header().is_ok_and(|it| it.msg_type == "kernel_info_reply");
    if is_info && let Ok(mut content) = message.parse_content::<serde_json::Value>() {
        content["callboard"] = serde_json::json!({ "version": env!("CARGO_PKG_VERSION") });
        message.content = Bytes::from(content.to_string());
    }
    message
}

/// The next message of any of the cells that are followed.
fn next_followed(
    followed: &mut [(Follow, Box<Channels>)],
) -> BoxFuture<'_, (usize, Result<Delivery, Fault>)> {
    if followed.is_empty() {
        return futures::future::pending().boxed();
    }
    let nexts = followed.iter_mut().map(|(_, cell)| cell.next().boxed());
    futures::future::select_all(nexts).map(|(delivery, index, _)| (index, delivery)).boxed()
}

fn is_idle(message: &JupyterMessage) -> bool {
    is_status(message, "idle")
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
