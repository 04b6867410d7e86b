//! Verbs of one kernel.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use callboard_protocol::{
    ActorKind, Answer, Fault, FaultCode, KernelId, Subject, SubjectPattern,
    history::{
        ChunkPiece, ChunkProgress, GetChunk, GetManifest, KeepState, KernelHistory, Manifest,
        PutChunk, Restart, Rewind, RewindPlan, SeedPage, SeedProgress,
    },
    kernel::{
        Accepted, AskFate, CellFate, GetOutputs, KernelStatus, OutputCursor, Outputs, Seen,
        SeenAnswer, SessionPlace,
    },
};
use callboard_transport::{
    BusError, Subscription,
    telemetry::inject_from,
    typed::{announce, ask, bus_fault},
};
use tokio::time::Instant;
use tracing::Span;
use uuid::Uuid;

use crate::{
    channels::Channels,
    client::Client,
    execute::{ExecuteOptions, Execution},
    request::control_request,
};

/// How long a query of a kernel waits for its answer.
const QUERY_DEADLINE: Duration = Duration::from_secs(5);
/// How long the control plane is asked whether a kernel exists of which nobody answers.
const FIND_PATIENCE: Duration = Duration::from_secs(2);
/// When a look that nobody answered is tried again at first.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(150);

/// How often a wish is sent before its fate is left to the user: longer than an election takes.
const WISH_TRIES_MAX: u32 = 3;

/// How often a kernel that was just started is asked, and the pause between: its group has to form.
const NEW_KERNEL_TRIES_MAX: u32 = 20;
const NEW_KERNEL_PAUSE: Duration = Duration::from_millis(500);

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

    /// The kernel's channels as a Jupyter front-end has them. Nothing is sent before
    /// [`Channels::next`] is first awaited.
    #[must_use]
    pub fn channels(&self, session: &str) -> Channels {
        Channels::new(self.clone(), session)
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
        let mut page: Outputs = self.query("outputs", &GetOutputs { since, offset: 0 }).await?;
        let mut pieces = Vec::new();
        while let (Some(part), Some(output)) = (page.part, page.outputs.first_mut()) {
            pieces.push(std::mem::take(&mut output.message));
            let offset = pieces.iter().map(|piece| piece.len() as u64).sum();
            if offset >= part.length {
                output.message = pieces.concat().into();
                page.part = None;
                break;
            }
            page = self.query("outputs", &GetOutputs { since, offset }).await?;
            if page.part.is_none_or(|part| part.offset != offset) {
                let text = "the output changed while it was read: ask again";
                return Err(Fault::new(FaultCode::Unavailable, text));
            }
        }
        Ok(page)
    }

    /// How far a session was when its last front-end went, and the last output there is.
    ///
    /// # Errors
    /// As [`Self::outputs`].
    pub async fn seen(&self, session: &str) -> Result<SeenAnswer, Fault> {
        self.look("seen", &Seen { session: session.to_owned(), place: None }).await
    }

    /// What became of a request that was put in order.
    ///
    /// # Errors
    /// As [`Self::outputs`].
    pub async fn fate(&self, msg_id: &str) -> Result<CellFate, Fault> {
        self.look("fate", &AskFate { msg_id: msg_id.to_owned() }).await
    }

    /// Tells the kernel's replicas how far a session is. Not answered.
    ///
    /// # Errors
    /// A [`Fault`] if the broker is unreachable or does not permit it.
    pub async fn note_seen(&self, session: &str, place: SessionPlace) -> Result<(), Fault> {
        let (subject, envelope) = (self.subject("seen"), self.client.envelope());
        let seen = Seen { session: session.to_owned(), place: Some(place) };
        announce(self.client.bus().as_ref(), &subject, &envelope, &seen).await
    }

    /// Ends what runs and waits, and has the session begin anew: its variables go, its files stay.
    /// Sent again under the same id until it is answered.
    ///
    /// # Errors
    /// As [`Self::outputs`].
    pub async fn restart(&self) -> Result<(), Fault> {
        let wish = Restart { id: Uuid::now_v7().to_string() };
        self.carried_out("restart", &wish).await
    }

    /// What the kernel and its replicas are doing.
    ///
    /// # Errors
    /// As [`Self::outputs`].
    pub async fn show(&self) -> Result<KernelStatus, Fault> {
        self.look("show", &()).await
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
        self.carried_out("rewind", wish).await
    }

    /// A page of a state's manifest.
    ///
    /// # Errors
    /// As [`Self::outputs`]; [`FaultCode::NotFound`] if the state is no longer kept.
    pub async fn manifest(&self, asked: &GetManifest) -> Result<Manifest, Fault> {
        self.query("manifest", asked).await
    }

    /// A piece of a chunk of the kernel's state, by way of its leader.
    ///
    /// # Errors
    /// As [`Self::outputs`]; [`FaultCode::NotFound`] if no node has it.
    pub async fn chunk(&self, asked: &GetChunk) -> Result<ChunkPiece, Fault> {
        self.query("chunk", asked).await
    }

    /// Brings a piece of a chunk that the kernel is to begin with.
    ///
    /// # Errors
    /// As [`Self::outputs`]; the kernel's refusal.
    pub async fn put_chunk(&self, piece: &PutChunk) -> Result<ChunkProgress, Fault> {
        self.query_again("put_chunk", piece).await
    }

    /// Brings a page of the state that the kernel is to begin with.
    ///
    /// # Errors
    /// As [`Self::outputs`]; the kernel's refusal.
    pub async fn seed(&self, page: &SeedPage) -> Result<SeedProgress, Fault> {
        self.query_again("seed", page).await
    }

    /// Asks what costs nothing to answer.
    async fn look<Req, Rep>(&self, verb: &str, request: &Req) -> Result<Rep, Fault>
    where
        Req: serde::Serialize + Sync,
        Rep: serde::de::DeserializeOwned,
    {
        // Only the leader answers. A replica that just started hears the question and stays silent
        // until one is elected, which takes less than a second: ask again soon, then with patience.
        let until = Instant::now() + QUERY_DEADLINE;
        let mut patience = LOOK_AGAIN_AFTER;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.query_within(verb, request, patience.min(left)).await {
                Err(fault) if fault.code == FaultCode::TimedOut && Instant::now() < until => {
                    patience *= 2;
                }
                answer => return answer,
            }
        }
    }

    /// Sends a wish that is carried out once per id, again if its answer is lost.
    async fn carried_out<Req, Rep>(&self, verb: &str, wish: &Req) -> Result<Rep, Fault>
    where
        Req: serde::Serialize + Sync,
        Rep: serde::de::DeserializeOwned,
    {
        let mut tries = 0;
        loop {
            tries += 1;
            match self.query(verb, wish).await {
                Err(fault) if tries < WISH_TRIES_MAX && is_passing(&fault) => {}
                result => return result,
            }
        }
    }

    /// Asks a kernel that has just been started, and may have no leader yet. Saying it twice is
    /// saying it once.
    async fn query_again<Req, Rep>(&self, verb: &str, request: &Req) -> Result<Rep, Fault>
    where
        Req: serde::Serialize + Sync,
        Rep: serde::de::DeserializeOwned,
    {
        let mut tries = 0;
        loop {
            tries += 1;
            match self.query(verb, request).await {
                Err(fault) if tries < NEW_KERNEL_TRIES_MAX && is_passing(&fault) => {
                    tokio::time::sleep(NEW_KERNEL_PAUSE).await;
                }
                result => return result,
            }
        }
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

/// Asks the control plane whether a kernel of which nobody answers exists at all.
pub(crate) async fn exists(kernel: &KernelClient) -> Result<(), Fault> {
    let control = kernel.client().control().with_patience(FIND_PATIENCE);
    match control.find_kernel(&kernel.id().to_string()).await {
        Err(fault) if fault.code == FaultCode::NotFound => Err(fault),
        Ok(_) | Err(_) => Ok(()),
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
