//! Verbs of one kernel.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use callboard_protocol::{
    ActorKind, Answer, Fault, FaultCode, KernelId, Subject, SubjectPattern,
    history::{GetManifest, KeepState, KernelHistory, Manifest, Rewind, RewindPlan},
    kernel::{Accepted, GetOutputs, KernelStatus, OutputCursor, Outputs},
};
use callboard_transport::{
    BusError, Subscription,
    telemetry::inject_from,
    typed::{ask, bus_fault},
};
use tokio::time::Instant;
use tracing::Span;
use uuid::Uuid;

use crate::{
    client::Client,
    execute::{ExecuteOptions, Execution},
    request::control_request,
};

/// How long a query of a kernel waits for its answer.
const QUERY_DEADLINE: Duration = Duration::from_secs(5);
/// When `show` is asked again at first.
const SHOW_AGAIN_AFTER: Duration = Duration::from_millis(150);

/// How often a rewind is sent before its fate is left to the user: longer than an election takes.
const REWIND_TRIES_MAX: u32 = 3;

/// Verbs of one kernel. Clones share a session.
#[derive(Debug, Clone)]
pub struct KernelClient {
    client: Client,
    kernel: KernelId,
    session: Arc<str>,
    /// Up to where the kernel's outputs are known from earlier cells of this client.
    mark: Arc<Mutex<Option<OutputCursor>>>,
    /// A subscription that an earlier cell no longer needs: to make one costs as much as a cell.
    spare_events: Arc<Mutex<Option<Subscription>>>,
}

impl KernelClient {
    pub(crate) fn new(client: Client, kernel: KernelId) -> Self {
        let session = Uuid::now_v7().to_string().into();
        Self { client, kernel, session, mark: Arc::default(), spare_events: Arc::default() }
    }

    /// Which kernel.
    #[must_use]
    pub fn id(&self) -> KernelId {
        self.kernel
    }

    /// Runs `code`. Nothing is sent before [`Execution::next`] is first awaited.
    #[must_use]
    pub fn execute(&self, code: &str, options: ExecuteOptions) -> Execution {
        Execution::new(self.clone(), code, options)
    }

    /// Interrupts the cell that runs, as Ctrl-C would.
    ///
    /// # Errors
    /// The kernel's refusal, or a [`Fault`] if no replica answers.
    pub async fn interrupt(&self) -> Result<Accepted, Fault> {
        let msg_id = Uuid::now_v7().to_string();
        let request = control_request("interrupt_request", &msg_id, &self.session);
        let subject = self.subject("control");
        self.send(&subject, request.encode(), QUERY_DEADLINE, &Span::current())
            .await
            .map_err(|error| bus_fault(&subject, &error))?
    }

    /// Outputs after `since`, as many as fit in one message.
    ///
    /// # Errors
    /// The kernel's refusal, or a [`Fault`] if no replica answers.
    pub async fn outputs(&self, since: OutputCursor) -> Result<Outputs, Fault> {
        self.query("outputs", &GetOutputs { since }).await
    }

    /// What the kernel and its replicas are doing.
    ///
    /// # Errors
    /// As [`Self::outputs`].
    pub async fn show(&self) -> Result<KernelStatus, Fault> {
        // Only the leader answers. A replica that just started hears the question and stays silent
        // until one is elected, which takes less than a second: ask again soon, then with patience.
        let until = Instant::now() + QUERY_DEADLINE;
        let mut patience = SHOW_AGAIN_AFTER;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.query_within("show", &(), patience.min(left)).await {
                Err(fault) if fault.code == FaultCode::TimedOut && Instant::now() < until => {
                    patience *= 2;
                }
                answer => return answer,
            }
        }
    }

    /// What the kernel can go back to.
    ///
    /// # Errors
    /// As [`Self::outputs`].
    pub async fn history(&self) -> Result<KernelHistory, Fault> {
        self.query("log", &()).await
    }

    /// Keeps the present state under a name, or forgets one.
    ///
    /// # Errors
    /// As [`Self::outputs`]; the kernel's refusal.
    pub async fn keep_state(&self, wish: &KeepState) -> Result<KernelHistory, Fault> {
        self.query("checkpoint", wish).await
    }

    /// Makes an earlier state the present one, or says what that would do. A wish whose answer was
    /// lost is sent again under its id; it is carried out once.
    ///
    /// # Errors
    /// As [`Self::outputs`]; the kernel's refusal.
    pub async fn rewind(&self, wish: &Rewind) -> Result<RewindPlan, Fault> {
        let mut tries = 0;
        loop {
            tries += 1;
            match self.query("rewind", wish).await {
                Err(fault) if tries < REWIND_TRIES_MAX && is_passing(&fault) => {}
                result => return result,
            }
        }
    }

    /// A page of a state's manifest.
    ///
    /// # Errors
    /// As [`Self::outputs`]; [`FaultCode::NotFound`] if the state is no longer kept.
    pub async fn manifest(&self, asked: &GetManifest) -> Result<Manifest, Fault> {
        self.query("manifest", asked).await
    }

    /// Follows the kernel's events: outputs and ends of cells.
    ///
    /// # Errors
    /// Any [`BusError`] of a subscription.
    pub async fn events(&self) -> Result<Subscription, BusError> {
        let pattern = SubjectPattern::EventsOf {
            cluster: self.client.cluster().clone(),
            kind: ActorKind::Kernel,
            id: self.kernel.to_string(),
        };
        self.client.bus().subscribe(&pattern).await
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    pub(crate) fn session(&self) -> &str {
        &self.session
    }

    pub(crate) fn subject(&self, verb: &str) -> Subject {
        Subject::actor(self.client.cluster(), ActorKind::Kernel, self.kernel, verb)
    }

    pub(crate) fn mark(&self) -> Option<OutputCursor> {
        *self.mark.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_mark(&self, mark: Option<OutputCursor>) {
        let mut known = self.mark.lock().unwrap_or_else(PoisonError::into_inner);
        *known = (*known).max(mark);
    }

    /// The subscription an earlier cell left, with what arrived on it since, if there is one.
    pub(crate) fn take_spare_events(&self) -> Option<Subscription> {
        self.spare_events.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Leaves a subscription to the next cell.
    pub(crate) fn leave_spare_events(&self, events: Subscription) {
        *self.spare_events.lock().unwrap_or_else(PoisonError::into_inner) = Some(events);
    }

    /// Sends a Jupyter message once and reads its acceptance.
    pub(crate) async fn send(
        &self,
        subject: &Subject,
        frame: Bytes,
        deadline: Duration,
        span: &Span,
    ) -> Result<Result<Accepted, Fault>, BusError> {
        let mut envelope = self.client.envelope();
        inject_from(span, &mut envelope);
        envelope.deadline_ms = Some(u32::try_from(deadline.as_millis()).unwrap_or(u32::MAX));
        let reply = self.client.bus().request(subject, &envelope, frame, deadline).await?;
        let answer = serde_json::from_slice::<Answer<Accepted>>(&reply.payload);
        Ok(answer.map_err(|error| unreadable(&error)).and_then(Result::from))
    }

    async fn query<Req, Rep>(&self, verb: &str, request: &Req) -> Result<Rep, Fault>
    where
        Req: serde::Serialize + Sync,
        Rep: serde::de::DeserializeOwned,
    {
        self.query_within(verb, request, QUERY_DEADLINE).await
    }

    async fn query_within<Req, Rep>(
        &self,
        verb: &str,
        request: &Req,
        deadline: Duration,
    ) -> Result<Rep, Fault>
    where
        Req: serde::Serialize + Sync,
        Rep: serde::de::DeserializeOwned,
    {
        let (subject, envelope) = (self.subject(verb), self.client.envelope());
        ask(self.client.bus().as_ref(), &subject, &envelope, request, deadline).await
    }
}

/// Whether the same request may succeed a moment later.
fn is_passing(fault: &Fault) -> bool {
    matches!(fault.code, FaultCode::Unavailable | FaultCode::TimedOut)
}

fn unreadable(error: &serde_json::Error) -> Fault {
    let text = format!(
        "the kernel's answer cannot be read ({error}): do client and cluster run the same version of Callboard?"
    );
    Fault::maybe_executed(FaultCode::Internal, text)
}
