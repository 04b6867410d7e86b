//! `/api/kernels/{id}/channels`: a front-end's websocket, and the kernel's channels behind it.
//!
//! One task serves a websocket. What the front-end has is known by pings: each carries a number,
//! and the pong that brings it back says that everything sent before has arrived. That place is
//! noted on the bus, so that any gateway goes on from there when the front-end comes back.

use std::{collections::VecDeque, pin::pin, sync::Arc, time::Duration};

use actix_web::{HttpRequest, HttpResponse, get, web};
use actix_ws::{
    AggregatedMessage, AggregatedMessageStream, CloseCode, CloseReason, Closed, Session,
};
use bytes::Bytes;
use callboard_client::{Channels, Delivery, said::Said};
use callboard_protocol::{
    FaultCode,
    control::KernelSpec,
    jupyter::{Channel, Header, JupyterMessage},
    kernel::SessionPlace,
    users::UserRole,
};
use serde::Deserialize;
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout},
};
use uuid::Uuid;

use crate::{
    auth::{self, Caller, Known},
    errors::ApiError,
    found::Found,
    frames::{self, FrameError, V1_PROTOCOL},
    large,
    state::GatewayState,
};

/// How often a silent websocket is pinged, and how long it may stay silent. Source: `jupyter_server`.
const PING_EVERY: Duration = Duration::from_secs(30);
const SILENT_MAX: Duration = Duration::from_secs(90);
/// Pause between two notes of how far a session is.
const NOTE_EVERY: Duration = Duration::from_millis(100);
/// Largest frame of a front-end. What a kernel takes is less, and said by it.
const FRAME_BYTES_MAX: usize = 4 << 20;
/// Longest name of a session; front-ends take a UUID.
const SESSION_ID_BYTES_MAX: usize = 256;
/// How long a front-end may keep us waiting before its kernel's outputs are left in the log.
const READ_WITHIN: Duration = Duration::from_secs(1);
/// Bad frames after which a websocket is closed.
const BAD_FRAMES_MAX: u32 = 10;

#[derive(Debug, Deserialize)]
struct Query {
    #[serde(default)]
    session_id: Option<String>,
}

/// How messages are framed on a websocket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    V1,
    /// Legacy, of a browser: it reads binary frames.
    Browser,
    /// Legacy, of another program, such as `jupyter_server`'s gateway client, which a binary frame
    /// ends for good.
    TextOnly,
}

#[get("/api/kernels/{id}/channels")]
pub(crate) async fn channels(
    request: HttpRequest,
    body: web::Payload,
    state: web::Data<GatewayState>,
    found: Found,
) -> Result<HttpResponse, actix_web::Error> {
    let query = web::Query::<Query>::from_query(request.query_string())
        .map_err(|error| ApiError::bad_request(error.to_string()))?;
    let session = query.into_inner().session_id.filter(|id| !id.is_empty());
    if session.as_ref().is_some_and(|id| id.len() > SESSION_ID_BYTES_MAX) {
        let text =
            format!("session_id is longer than {SESSION_ID_BYTES_MAX} bytes: use a shorter one");
        return Err(ApiError::bad_request(text).into());
    }
    let (response, socket, messages) =
        actix_ws::handle_with_protocols(&request, body, &[V1_PROTOCOL])?;
    let framing = if response.headers().contains_key("sec-websocket-protocol") {
        Framing::V1
    } else if request.headers().contains_key("origin") {
        Framing::Browser
    } else {
        Framing::TextOnly
    };
    let messages = messages
        .max_frame_size(FRAME_BYTES_MAX)
        .aggregate_continuations()
        .max_continuation_size(FRAME_BYTES_MAX);
    let session = session.unwrap_or_else(|| Uuid::new_v4().to_string());
    let channels = found.kernel().channels(&session);
    let connection = Connection {
        users: state.users.changes(),
        state,
        token: auth::presented(&request),
        caller: found.caller,
        spec: found.spec,
        framing,
        socket,
        channels,
        pings: VecDeque::new(),
        pings_ever: 0,
        place: None,
        pinged: None,
        acknowledged: None,
        note_at: Instant::now(),
        bad_frames: 0,
        told_of_binary: false,
    };
    actix_web::rt::spawn(connection.serve(messages));
    Ok(response)
}

struct Connection {
    state: web::Data<GatewayState>,
    /// Marked whenever a user or a token changes.
    users: watch::Receiver<Option<Arc<Known>>>,
    caller: Caller,
    token: Option<String>,
    spec: KernelSpec,
    framing: Framing,
    socket: Session,
    channels: Channels,
    /// Pings under way, each with how far the session is once it is answered.
    pings: VecDeque<(u64, Option<SessionPlace>)>,
    pings_ever: u64,
    /// How far the session is once it has all that was sent, and what the last ping stands for.
    place: Option<SessionPlace>,
    pinged: Option<SessionPlace>,
    /// How far it is known to be, if that is not noted on the bus yet.
    acknowledged: Option<SessionPlace>,
    note_at: Instant,
    bad_frames: u32,
    told_of_binary: bool,
}

enum Frame {
    Text(String),
    Binary(Bytes),
}

/// Why a websocket ends.
enum End {
    /// The front-end is gone.
    Gone,
    /// It is closed from here.
    Close(CloseCode, String),
}

impl End {
    fn not_let_in() -> Self {
        Self::Close(CloseCode::Policy, "the access token is not valid any more".to_owned())
    }
}

impl From<Closed> for End {
    fn from(_: Closed) -> Self {
        Self::Gone
    }
}

impl Connection {
    async fn serve(mut self, mut messages: AggregatedMessageStream) {
        let _counted = self.state.activity.clone().connect(self.spec.kernel);
        self.state.metrics.websockets.inc();
        let end = self.run(&mut messages).await;
        self.state.metrics.websockets.dec();
        if let Some(place) = self.acknowledged.take() {
            let _ = self.channels.note_seen(place).await;
        }
        if let End::Close(code, why) = end {
            // A close frame holds at most 123 bytes of reason.
            let why: String = why.chars().take(40).collect();
            let _ = self.socket.close(Some(CloseReason { code, description: Some(why) })).await;
        }
    }

    async fn run(&mut self, messages: &mut AggregatedMessageStream) -> End {
        let mut heard = Instant::now();
        let expires = self.state.users.valid_for(self.token.as_deref());
        let mut expired = pin!(async {
            match expires {
                Some(left) => sleep(left).await,
                None => std::future::pending().await,
            }
        });
        let mut ping = interval(PING_EVERY);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let step = tokio::select! {
                message = messages.recv(), if self.channels.has_room() => {
                    heard = Instant::now();
                    match message {
                        Some(Ok(message)) => self.heard(message).await,
                        Some(Err(error)) => Err(End::Close(CloseCode::Size, error.to_string())),
                        None => Err(End::Gone),
                    }
                }
                delivery = self.channels.next() => match delivery {
                    Ok(delivery) => self.deliver(delivery).await,
                    Err(fault) if fault.code == FaultCode::NotFound => {
                        Err(End::Close(CloseCode::Normal, fault.message))
                    }
                    Err(fault) => Err(End::Close(CloseCode::Restart, fault.message)),
                },
                () = sleep_until(self.note_at), if self.acknowledged.is_some() => {
                    self.note().await;
                    Ok(())
                }
                Ok(()) = self.users.changed() => self.check_token(),
                () = &mut expired => return End::not_let_in(),
                _ = ping.tick() => {
                    if heard.elapsed() > SILENT_MAX {
                        Err(End::Close(CloseCode::Away, "no answer to pings".to_owned()))
                    } else {
                        match self.check_token() {
                            Ok(()) => self.ping(self.place).await,
                            end => end,
                        }
                    }
                }
            };
            if let Err(end) = step {
                return end;
            }
        }
    }

    /// Takes a frame of the front-end in.
    async fn heard(&mut self, frame: AggregatedMessage) -> Result<(), End> {
        let parsed = match frame {
            AggregatedMessage::Text(text) => frames::parse_text(text.as_bytes()),
            AggregatedMessage::Binary(frame) if self.framing == Framing::V1 => {
                JupyterMessage::decode(&frame).map_err(FrameError::from)
            }
            AggregatedMessage::Binary(frame) => frames::parse_binary(&frame),
            AggregatedMessage::Ping(bytes) => return Ok(self.socket.pong(&bytes).await?),
            AggregatedMessage::Pong(bytes) => return self.heard_pong(&bytes).await,
            AggregatedMessage::Close(_) => return Err(End::Gone),
        };
        let result = parsed.and_then(|message| self.take(message).map_err(FrameError::from));
        let Err(error) = result else { return Ok(()) };
        self.bad_frames += 1;
        if self.bad_frames >= BAD_FRAMES_MAX {
            return Err(End::Close(CloseCode::Protocol, error.to_string()));
        }
        let parent = Bytes::from_static(b"{}");
        let said = Said { kernel: self.spec.kernel, parent: &parent };
        self.send(&said.notice(&format!("[callboard] {error}\n"))).await
    }

    fn take(
        &mut self,
        message: JupyterMessage,
    ) -> Result<(), callboard_protocol::jupyter::JupyterError> {
        let channel = message.channel.as_str();
        self.state.metrics.messages.with_label_values(&["in", channel]).inc();
        if self.caller.role == UserRole::Viewer && !is_look(&message) {
            self.channels.refuse(&message, "you may only look at this kernel");
            return Ok(());
        }
        self.channels.send(message)
    }

    /// Everything sent before the ping that this answers has arrived.
    async fn heard_pong(&mut self, bytes: &[u8]) -> Result<(), End> {
        let Ok(number) = <[u8; 8]>::try_from(bytes).map(u64::from_be_bytes) else { return Ok(()) };
        while let Some((sent, place)) = self.pings.front().copied().filter(|it| it.0 <= number) {
            debug_assert!(sent <= number);
            self.pings.pop_front();
            self.acknowledged = place.or(self.acknowledged);
        }
        if self.acknowledged.is_some() && Instant::now() >= self.note_at {
            self.note().await;
        }
        if self.pings.is_empty() && self.place != self.pinged {
            return self.ping(self.place).await;
        }
        Ok(())
    }

    async fn note(&mut self) {
        if let Some(place) = self.acknowledged.take() {
            self.note_at = Instant::now() + NOTE_EVERY;
            if let Err(fault) = self.channels.note_seen(place).await {
                tracing::debug!(%fault, "how far a session is could not be noted");
            }
        }
    }

    async fn ping(&mut self, place: Option<SessionPlace>) -> Result<(), End> {
        self.pings_ever += 1;
        self.pings.push_back((self.pings_ever, place));
        self.pinged = place;
        Ok(self.socket.ping(&self.pings_ever.to_be_bytes()).await?)
    }

    /// Hands a message to the front-end.
    async fn deliver(&mut self, delivery: Delivery) -> Result<(), End> {
        let Delivery { message, place } = delivery;
        let limit = self.state.options.message_bytes_max;
        for message in large::fit(self.spec.kernel, message, place, limit) {
            self.send(&message).await?;
        }
        self.place = place.or(self.place);
        if self.pings.is_empty() && self.place != self.pinged {
            self.ping(self.place).await?;
        }
        Ok(())
    }

    async fn send(&mut self, message: &JupyterMessage) -> Result<(), End> {
        let channel = message.channel.as_str();
        self.state.metrics.messages.with_label_values(&["out", channel]).inc();
        if self.framing == Framing::V1 {
            return self.hand_over(Frame::Binary(message.encode())).await;
        }
        let Ok(header) = message.parse_header() else { return Ok(()) };
        if message.buffers.is_empty() {
            return self.hand_over(Frame::Text(frames::write_text(message, &header))).await;
        }
        if self.framing == Framing::Browser {
            return match frames::write_binary(message, &header) {
                Some(frame) => self.hand_over(Frame::Binary(frame)).await,
                None => Ok(()),
            };
        }
        self.tell_of_binary(message, &header).await
    }

    /// Waits until there is room for a frame. Meanwhile nothing else of this front-end is taken in,
    /// and before long nothing of its kernel either. The connection of a front-end that goes on
    /// not to read is cut, which ends the waiting.
    async fn hand_over(&mut self, frame: Frame) -> Result<(), End> {
        let mut sending = pin!(async {
            match frame {
                Frame::Text(text) => self.socket.text(text).await,
                Frame::Binary(bytes) => self.socket.binary(bytes).await,
            }
        });
        match timeout(READ_WITHIN, &mut sending).await {
            Ok(sent) => Ok(sent?),
            Err(_) => {
                self.channels.pause();
                Ok(sending.await?)
            }
        }
    }

    /// Says, once, that binary data cannot be sent to a front-end that would not survive it.
    async fn tell_of_binary(
        &mut self,
        message: &JupyterMessage,
        header: &Header,
    ) -> Result<(), End> {
        if std::mem::replace(&mut self.told_of_binary, true) {
            return Ok(());
        }
        let said = Said { kernel: self.spec.kernel, parent: &message.parent_header };
        let notice = said.notice(&format!(
            "[callboard] a {} with binary data is left out: jupyter_server's gateway client ends its \
             connection at binary frames. Install the Python package 'callboard' beside \
             jupyter_server, or start the kernel with `callboard kernelspec install`.\n",
            header.msg_type
        ));
        let Ok(header) = notice.parse_header() else { return Ok(()) };
        self.hand_over(Frame::Text(frames::write_text(&notice, &header))).await
    }

    /// Ends the websocket of whoever is not let in any more, or in another role.
    fn check_token(&self) -> Result<(), End> {
        match self.state.users.identify(self.token.as_deref()) {
            Ok(caller) if caller == self.caller => Ok(()),
            _ => Err(End::not_let_in()),
        }
    }
}

/// Whether a message changes nothing.
fn is_look(message: &JupyterMessage) -> bool {
    message.channel == Channel::Shell
        && message.parse_header().is_ok_and(|header| {
            matches!(
                header.msg_type.as_str(),
                "kernel_info_request"
                    | "comm_info_request"
                    | "history_request"
                    | "is_complete_request"
                    | "callboard_status_request"
                    | "callboard_outputs_request"
            )
        })
}
