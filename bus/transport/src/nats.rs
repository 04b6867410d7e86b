//! The bus over NATS.
//!
//! Owns one connection. Reconnects for ever with a short backoff; subscriptions survive that.
//! Never retries a message: what was published while the connection broke is gone, or arrives late.

mod grants;
mod headers;
mod requests;
mod subscribe;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_nats::{
    Client, ConnectErrorKind, ConnectOptions, Event, ServerError, StatusCode,
    client::PublishErrorKind, connection::State,
};
use async_trait::async_trait;
use bytes::Bytes;
use callboard_protocol::{Envelope, Subject, SubjectPattern, envelope::HEADERS_LENGTH_MAX};
use tokio::{
    sync::{broadcast, watch},
    time::{Instant, sleep, timeout},
};

use self::requests::Requests;
use crate::{
    bus::{
        Bus, BusError, BusHealth, Lanes, Losses, Message, ReplyTo, SUBSCRIPTION_CAPACITY,
        Subscription,
    },
    permissions::Credentials,
};

/// First pause before connecting again.
const RECONNECT_DELAY_MIN: Duration = Duration::from_millis(50);
/// Longest pause before connecting again: a broker that is back is found within this.
const RECONNECT_DELAY_MAX: Duration = Duration::from_secs(1);
/// How often a silent connection is probed, so that a cut cable is noticed within about three seconds.
const PING_INTERVAL: Duration = Duration::from_secs(1);
/// The same of a node's connections beside that of Raft, which is the one whose loss is acted upon: an
/// idle node wakes for little else.
const PING_INTERVAL_BESIDE: Duration = Duration::from_secs(5);
/// How long a message may wait for the connection's outgoing queue before it counts as not sent.
const ENQUEUE_TIMEOUT: Duration = Duration::from_secs(2);
/// Commands that may wait for the connection. Small: a full queue means that the broker does not
/// read, and the sender should learn that soon.
const OUTGOING_CAPACITY: usize = 1024;
/// Messages on their way from the connection to one subscription, which takes them at once; it is the
/// subscription's own queue that fills.
const HANDED_OVER_MAX: usize = 4 * SUBSCRIPTION_CAPACITY;
/// Refusals of the broker kept for whoever waits for them; more at once would be a storm.
const VIOLATIONS_CAPACITY: usize = 64;

/// How to reach the broker, and as whom.
#[derive(Clone)]
pub struct NatsOptions {
    /// Such as `nats://127.0.0.1:4222`.
    pub url: String,
    /// The user name.
    pub user: String,
    /// Its password.
    pub password: String,
    /// Where answers to this user arrive; it must begin with `_INBOX.`.
    pub inbox_prefix: String,
    /// What the broker shows for this connection.
    pub name: String,
    /// How long to try to connect at first.
    pub connect_timeout: Duration,
    /// How often the connection is probed while it is silent; it counts as lost after the third probe
    /// without an answer.
    pub ping_interval: Duration,
}

impl NatsOptions {
    /// The options that credentials imply.
    #[must_use]
    pub fn new(credentials: &Credentials, name: impl Into<String>) -> Self {
        Self {
            url: credentials.url.clone(),
            user: credentials.user.clone(),
            password: credentials.password.clone(),
            inbox_prefix: credentials.inbox_prefix.clone(),
            name: name.into(),
            connect_timeout: Duration::from_secs(5),
            ping_interval: PING_INTERVAL,
        }
    }
}

impl fmt::Debug for NatsOptions {
    /// Everything but the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NatsOptions")
            .field("url", &self.url)
            .field("user", &self.user)
            .field("inbox_prefix", &self.inbox_prefix)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// Why there is no connection to the broker at first.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// The broker does not accept the user name and password.
    #[error(
        "the broker at {url} refuses user '{user}': its name or password is wrong; take the credentials file that `callboard up` of this cluster wrote"
    )]
    Refused {
        /// Where.
        url: String,
        /// Who.
        user: String,
    },
    /// Nobody answers there.
    #[error("no broker answers at {url} ({why}): is the cluster up? try `callboard up`")]
    Unreachable {
        /// Where.
        url: String,
        /// What the last attempt said.
        why: String,
    },
    /// The options cannot work.
    #[error("cannot connect to {url}: {why}")]
    BadOptions {
        /// Where.
        url: String,
        /// What is wrong and what to write instead.
        why: String,
    },
}

impl From<ConnectError> for BusError {
    fn from(error: ConnectError) -> Self {
        Self::Disconnected(error.to_string())
    }
}

/// A refusal that the broker sent: it does not name the operation that caused it, but the subject.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Violation {
    subscription: bool,
    subject: String,
}

/// A connection to a NATS broker.
#[derive(Debug)]
pub struct NatsBus {
    client: Client,
    health: watch::Receiver<BusHealth>,
    violations: broadcast::Sender<Violation>,
    /// Messages that found no room on the way to their subscription.
    losses: Arc<AtomicU64>,
    requests: Requests,
}

impl NatsBus {
    /// Connects, trying again until `connect_timeout` is over.
    ///
    /// # Errors
    /// Any [`ConnectError`]; a refusal is not tried again.
    pub async fn connect(options: NatsOptions) -> Result<Arc<dyn Bus>, ConnectError> {
        let url = options.url.clone();
        if ReplyTo::inbox(&options.inbox_prefix).is_none() {
            let why = format!(
                "the inbox prefix '{}' does not begin with '_INBOX.'; take the credentials file that `callboard up` wrote",
                options.inbox_prefix
            );
            return Err(ConnectError::BadOptions { url, why });
        }
        let until = Instant::now() + options.connect_timeout;
        let mut pause = RECONNECT_DELAY_MIN;
        loop {
            let error = match Self::connect_once(&options).await {
                Ok(bus) => return Ok(Arc::new(bus)),
                Err(error) => error,
            };
            match error.kind() {
                ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication => {
                    return Err(ConnectError::Refused { url, user: options.user });
                }
                ConnectErrorKind::ServerParse => {
                    let why = "expected an address such as nats://127.0.0.1:4222".to_owned();
                    return Err(ConnectError::BadOptions { url, why });
                }
                _ if Instant::now() + pause >= until => {
                    return Err(ConnectError::Unreachable { url, why: error.to_string() });
                }
                _ => {
                    sleep(pause).await;
                    pause = (pause * 2).min(RECONNECT_DELAY_MAX);
                }
            }
        }
    }

    /// Connects three times, one connection for each lane.
    ///
    /// # Errors
    /// As [`NatsBus::connect`].
    pub async fn connect_lanes(options: &NatsOptions) -> Result<Lanes, ConnectError> {
        let lane = |what: &str, ping_interval| {
            let name = format!("{}/{what}", options.name);
            Self::connect(NatsOptions { name, ping_interval, ..options.clone() })
        };
        Ok(Lanes {
            control: lane("control", PING_INTERVAL_BESIDE).await?,
            raft: lane("raft", options.ping_interval).await?,
            bulk: lane("bulk", PING_INTERVAL_BESIDE).await?,
        })
    }

    async fn connect_once(options: &NatsOptions) -> Result<Self, async_nats::ConnectError> {
        let (health_sender, health) = watch::channel(BusHealth::Connected);
        let losses = Arc::<AtomicU64>::default();
        let (violations, _) = broadcast::channel(VIOLATIONS_CAPACITY);
        let (name, violation_sender) = (options.name.clone(), violations.clone());
        let lost = losses.clone();
        let client =
            ConnectOptions::with_user_and_password(options.user.clone(), options.password.clone())
                .name(&options.name)
                .custom_inbox_prefix(&options.inbox_prefix)
                .connection_timeout(options.connect_timeout.min(Duration::from_secs(2)))
                .ping_interval(options.ping_interval)
                .subscription_capacity(HANDED_OVER_MAX)
                .client_capacity(OUTGOING_CAPACITY)
                .max_reconnects(None)
                .reconnect_delay_callback(reconnect_delay)
                .event_callback(move |event| {
                    if matches!(event, Event::SlowConsumer(_)) {
                        lost.fetch_add(1, Ordering::Release);
                    }
                    on_event(&name, event, &health_sender, &violation_sender);
                    async {}
                })
                .connect(&options.url)
                .await?;
        let requests = Requests::subscribe(&client).await.map_err(|_| ConnectErrorKind::Io)?;
        Ok(Self { client, health, violations, losses, requests })
    }

    fn check(&self, payload: &Bytes) -> Result<(), BusError> {
        if self.client.connection_state() != State::Connected {
            return Err(disconnected());
        }
        let (length, limit) = (payload.len(), self.payload_max());
        if length > limit { Err(BusError::TooLarge { length, limit }) } else { Ok(()) }
    }

    async fn send(
        &self,
        subject: String,
        reply_to: Option<&str>,
        envelope: &Envelope,
        payload: Bytes,
    ) -> Result<(), BusError> {
        self.check(&payload)?;
        let length = payload.len();
        let (to, headers) = (subject.clone(), headers::from_envelope(envelope));
        let publishing = async {
            match reply_to.map(str::to_owned) {
                Some(inbox) => {
                    self.client.publish_with_reply_and_headers(to, inbox, headers, payload).await
                }
                None => self.client.publish_with_headers(to, headers, payload).await,
            }
        };
        match timeout(ENQUEUE_TIMEOUT, publishing).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(match error.kind() {
                PublishErrorKind::MaxPayloadExceeded => {
                    BusError::TooLarge { length, limit: self.payload_max() }
                }
                PublishErrorKind::InvalidSubject => BusError::Forbidden(subject),
                PublishErrorKind::Send => disconnected(),
            }),
            Err(_) => Err(BusError::Disconnected("the broker does not read".to_owned())),
        }
    }
}

#[async_trait]
impl Bus for NatsBus {
    async fn publish(
        &self,
        subject: &Subject,
        envelope: &Envelope,
        payload: Bytes,
    ) -> Result<(), BusError> {
        self.send(subject.to_string(), None, envelope, payload).await
    }

    async fn request(
        &self,
        subject: &Subject,
        envelope: &Envelope,
        payload: Bytes,
        deadline: Duration,
    ) -> Result<Message, BusError> {
        let text = subject.to_string();
        let mut violations = self.violations.subscribe();
        let mut expected = self.requests.expect();
        let inbox = expected.reply_to().to_owned();
        let request = async {
            self.send(text.clone(), Some(&inbox), envelope, payload).await?;
            expected.answer().await.ok_or_else(disconnected)
        };
        let forbidden = async {
            let wanted = Violation { subscription: false, subject: text.clone() };
            loop {
                match violations.recv().await {
                    Ok(violation) if violation == wanted => return,
                    Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
                }
            }
        };
        let answer = tokio::select! {
            answer = timeout(deadline, request) => answer,
            () = forbidden => return Err(BusError::Forbidden(text)),
        };
        match answer {
            Ok(Ok(message)) if message.status == Some(StatusCode::NO_RESPONDERS) => {
                Err(BusError::NoResponders(text))
            }
            Ok(Ok(message)) => Ok(headers::to_message(subject.clone(), message)),
            Ok(Err(error)) => Err(error),
            Err(_) => {
                let waited_ms = u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX);
                Err(BusError::TimedOut { subject: text, waited_ms })
            }
        }
    }

    async fn respond(
        &self,
        reply_to: &ReplyTo,
        envelope: &Envelope,
        payload: Bytes,
    ) -> Result<(), BusError> {
        self.send(reply_to.0.clone(), None, envelope, payload).await
    }

    async fn subscribe(&self, pattern: &SubjectPattern) -> Result<Subscription, BusError> {
        let losses = Losses::of_connection(self.losses.clone());
        subscribe::confirmed(&self.client, self.violations.subscribe(), pattern, losses).await
    }

    /// What the broker takes, less the room for the envelope's headers.
    fn payload_max(&self) -> usize {
        self.client.max_payload().saturating_sub(HEADERS_LENGTH_MAX)
    }

    fn health(&self) -> watch::Receiver<BusHealth> {
        self.health.clone()
    }
}

fn disconnected() -> BusError {
    BusError::Disconnected("the connection is down and is being made again".to_owned())
}

fn reconnect_delay(attempts: usize) -> Duration {
    let doublings = u32::try_from(attempts.saturating_sub(1)).unwrap_or(u32::MAX).min(16);
    RECONNECT_DELAY_MIN.saturating_mul(1 << doublings).min(RECONNECT_DELAY_MAX)
}

fn on_event(
    name: &str,
    event: Event,
    health: &watch::Sender<BusHealth>,
    violations: &broadcast::Sender<Violation>,
) {
    match event {
        Event::Connected => {
            let _ = health.send_replace(BusHealth::Connected);
        }
        Event::Disconnected | Event::Closed => {
            let _ = health.send_replace(BusHealth::Disconnected);
            tracing::debug!(connection = name, "the connection to the broker is down");
        }
        Event::SlowConsumer(_) => {
            tracing::warn!(connection = name, "a subscription falls behind; messages are lost");
        }
        Event::ServerError(ServerError::Other(text)) => match violation(&text) {
            Some(violation) => {
                tracing::warn!(
                    connection = name,
                    subject = violation.subject,
                    subscription = violation.subscription,
                    "the broker's permissions forbid a subject"
                );
                let _ = violations.send(violation);
            }
            None => tracing::warn!(connection = name, error = text, "the broker reports an error"),
        },
        Event::ServerError(error) => {
            tracing::warn!(connection = name, %error, "the broker reports an error");
        }
        event => tracing::debug!(connection = name, %event, "bus event"),
    }
}

/// Reads `Permissions Violation for Publish to "subject"` and its twin for subscriptions.
fn violation(text: &str) -> Option<Violation> {
    let (before, quoted) = text.split_once('"')?;
    let (subject, _) = quoted.split_once('"')?;
    let before = before.to_ascii_lowercase();
    before.contains("permissions violation").then(|| Violation {
        subscription: before.contains("subscription"),
        subject: subject.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reconnect_delays_grow_to_their_bound() {
        let delays: Vec<u128> = (0..8).map(|n| reconnect_delay(n).as_millis()).collect();
        assert_eq!(delays, [50, 50, 100, 200, 400, 800, 1000, 1000]);
        assert_eq!(reconnect_delay(usize::MAX), RECONNECT_DELAY_MAX);
    }

    #[test]
    fn a_violation_names_its_subject_and_kind() {
        let read =
            violation("Permissions Violation for Subscription to \"cb.v1.c.raft.>\"").unwrap();
        assert_eq!(read, Violation { subscription: true, subject: "cb.v1.c.raft.>".to_owned() });
        assert!(!violation("Permissions Violation for Publish to \"a\"").unwrap().subscription);
        assert_eq!(violation("Unknown Protocol Operation"), None);
    }
}
