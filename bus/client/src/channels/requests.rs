//! Requests on their way to the kernel: what each needs, when it is sent, and again.
//!
//! Those that run user code go one after the other, each until it has its place in the kernel's
//! order. Nothing is sent here: [`Requests::due`] says what is to be.

use std::{collections::HashMap, time::Duration};

use bytes::Bytes;
use callboard_protocol::{
    Fault, FaultCode,
    jupyter::{Channel, Header, JupyterMessage},
    kernel::{Accepted, CellEnd, CellState},
};
use callboard_transport::BusError;
use tokio::time::Instant;

/// Longest wait for one answer of the kernel, and the first pause before a request is sent again.
pub(super) const ANSWER_WITHIN: Duration = Duration::from_secs(1);
const RETRY_FIRST: Duration = Duration::from_millis(50);
/// How often a request is sent again whose answer, or end, may have been lost.
const REMIND_EVERY: Duration = Duration::from_secs(15);
/// How long a reply is waited for that may never come.
const REPLY_WITHIN: Duration = Duration::from_secs(600);
/// Tries without anybody listening after which the control plane is asked whether there is such a
/// kernel.
const UNHEARD_MAX: u32 = 4;
/// Requests of one front-end that may be under way, and the bytes of all of them together.
pub(super) const REQUESTS_MAX: usize = 1_000;
const REQUESTS_BYTES_MAX: usize = 64 << 20;

/// What a request needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Need {
    /// A place in the kernel's order, and to end.
    Order,
    /// A reply; asking twice does no harm.
    Reply,
    /// To be passed on once; a reply may come.
    Passing,
}

#[derive(Debug)]
pub(super) struct Request {
    number: u64,
    channel: Channel,
    /// Where its reply is expected.
    pub(super) asked_on: Channel,
    pub(super) header: Bytes,
    pub(super) msg_type: String,
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

/// What is to be done about a request.
#[derive(Debug)]
pub(super) enum Due {
    /// The request of this id is to be sent on a channel.
    Send(String, Channel, Bytes),
    /// Nobody listens to it: is there such a kernel?
    Find(String),
}

/// What the kernel's answer to a request means for whoever waits.
#[derive(Debug)]
pub(super) enum Answered {
    /// It is under way, or will be sent again.
    Nothing,
    /// The cell that it asks for has ended already.
    Ended(CellEnd),
    /// It cannot be carried out.
    Failed(String),
    /// The bus does not carry it on its channel.
    NotCarried(Channel, BusError),
}

/// The requests of one front-end, by their ids.
#[derive(Debug, Default)]
pub(super) struct Requests {
    by_id: HashMap<String, Request>,
    ever: u64,
}

impl Requests {
    /// Whether there is room for another one.
    pub(super) fn has_room(&self) -> bool {
        let bytes = || self.by_id.values().map(|request| request.frame.len()).sum::<usize>();
        self.by_id.len() < REQUESTS_MAX && bytes() < REQUESTS_BYTES_MAX
    }

    pub(super) fn contains(&self, msg_id: &str) -> bool {
        self.by_id.contains_key(msg_id)
    }

    /// Takes a request in, to be sent on the channel of `message`; its reply is expected on
    /// `asked_on`.
    pub(super) fn insert(
        &mut self,
        message: &JupyterMessage,
        asked_on: Channel,
        header: Header,
        need: Need,
    ) {
        self.ever += 1;
        let now = Instant::now();
        let request = Request {
            number: self.ever,
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
        };
        self.by_id.insert(header.msg_id, request);
    }

    /// Takes a request out that was answered, or failed.
    pub(super) fn remove(&mut self, msg_id: &str) -> Option<Request> {
        self.by_id.remove(msg_id)
    }

    /// What is to be done now, in the order in which the requests came. Each counts as under way
    /// until [`Self::answered`] or [`Self::again`].
    pub(super) fn due(&mut self) -> Vec<Due> {
        let now = Instant::now();
        let overdue = |request: &Request| {
            request.is_taken && now.duration_since(request.began) > REPLY_WITHIN
        };
        self.by_id.retain(|_, request| request.need == Need::Order || !overdue(request));
        let first = self.first_to_order();
        let mut due: Vec<(&String, &mut Request)> = self
            .by_id
            .iter_mut()
            .filter(|(_, request)| request.may_go(first) && request.send_at <= now)
            .collect();
        due.sort_by_key(|(_, request)| request.number);
        due.into_iter().map(|(msg_id, request)| request.go(msg_id)).collect()
    }

    /// When something is due next.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        let first = self.first_to_order();
        let waiting = self.by_id.values().filter(|request| request.may_go(first));
        waiting.map(|request| request.send_at).min()
    }

    /// The request whose turn it is to be put in order: those behind it wait, as one that is sent
    /// again could be overtaken.
    fn first_to_order(&self) -> Option<u64> {
        let waiting = self.by_id.values().filter(|it| it.need == Need::Order && !it.is_taken);
        waiting.map(|request| request.number).min()
    }

    /// Whatever was said may have been lost.
    pub(super) fn remind(&mut self) {
        let now = Instant::now();
        for request in self.by_id.values_mut() {
            if request.need != Need::Passing || !request.is_taken {
                request.send_at = now;
            }
        }
    }

    /// Takes the answer to a request in.
    pub(super) fn answered(
        &mut self,
        msg_id: &str,
        answer: Result<Result<Accepted, Fault>, BusError>,
    ) -> Answered {
        let Some(request) = self.by_id.get_mut(msg_id) else { return Answered::Nothing };
        match answer {
            Ok(Ok(accepted)) => return self.taken(msg_id, accepted.state),
            Ok(Err(fault)) => match fault.code {
                FaultCode::Unavailable | FaultCode::TimedOut | FaultCode::Stale => {}
                _ => return Answered::Failed(fault.message),
            },
            Err(error @ (BusError::TooLarge { .. } | BusError::Forbidden(_))) => {
                return Answered::NotCarried(request.channel, error);
            }
            Err(error) => request.unheard += u32::from(matches!(error, BusError::NoResponders(_))),
        }
        self.again(msg_id);
        Answered::Nothing
    }

    /// The kernel has a request.
    fn taken(&mut self, msg_id: &str, state: CellState) -> Answered {
        let Some(request) = self.by_id.get_mut(msg_id) else { return Answered::Nothing };
        request.is_sending = false;
        request.is_taken = true;
        request.unheard = 0;
        request.send_at = Instant::now() + REMIND_EVERY * (1 << request.tries.min(4));
        request.tries += 1;
        match (request.need, state) {
            (Need::Order, CellState::Ended(end)) => return Answered::Ended(end),
            (Need::Passing, _) if request.channel == Channel::Stdin => drop(self.remove(msg_id)),
            (Need::Passing, _) => request.send_at = Instant::now() + REPLY_WITHIN,
            _ => {}
        }
        Answered::Nothing
    }

    /// Sends a request again, after a pause that grows.
    pub(super) fn again(&mut self, msg_id: &str) {
        let Some(request) = self.by_id.get_mut(msg_id) else { return };
        request.is_sending = false;
        let pause = RETRY_FIRST.saturating_mul(1 << request.tries.min(5)).min(ANSWER_WITHIN);
        request.tries += 1;
        request.send_at = Instant::now() + pause;
    }
}

impl Request {
    /// Whether it is not under way, and its turn if it has to be put in order after `first`.
    fn may_go(&self, first: Option<u64>) -> bool {
        let is_its_turn = self.need != Need::Order || self.is_taken || Some(self.number) == first;
        !self.is_sending && is_its_turn
    }

    fn go(&mut self, msg_id: &str) -> Due {
        self.is_sending = true;
        if self.unheard >= UNHEARD_MAX {
            self.unheard = 0;
            return Due::Find(msg_id.to_owned());
        }
        Due::Send(msg_id.to_owned(), self.channel, self.frame.clone())
    }
}

/// What a request needs, by its type. Source of the types: Jupyter messaging specification 5.5.
pub(super) fn need(channel: Channel, msg_type: &str) -> Need {
    match (channel, msg_type) {
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
