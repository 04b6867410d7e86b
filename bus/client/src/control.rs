//! The control plane's verbs, asked again until a leader answers: all of them are idempotent.

use std::{collections::BTreeMap, time::Duration};

use callboard_protocol::{
    ActorKind, Fault, FaultCode, KernelId, NodeId, Subject,
    control::{
        FindKernel, KernelList, KernelSpec, KernelspecList, LabelKernel, ListKernels, NodeList,
        RecoverKernel, RecoveryPlan, StartKernel, StopKernel,
    },
    node::Kill,
    storage::{NodeStorage, Purge, Purged},
};
use callboard_transport::typed::ask;
use serde::{Serialize, de::DeserializeOwned};
use tokio::time::{Instant, sleep};

use crate::client::Client;

/// How long a verb is tried unless told otherwise: longer than an election of a new leader takes.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long one try waits. Members that do not lead stay silent, so a lost leader costs this much.
const TRY_DEADLINE: Duration = Duration::from_millis(750);
/// How long a node may take to say what lies on its disk: a round of its collector may run.
const STORAGE_DEADLINE: Duration = Duration::from_secs(5);
/// How long a purge may take: the kernel's members have to end first.
const PURGE_DEADLINE: Duration = Duration::from_secs(30);
/// How long a recovery may take to be looked at and ordered.
const RECOVER_DEADLINE: Duration = Duration::from_secs(15);
/// Pause between tries.
const TRY_PAUSE: Duration = Duration::from_millis(200);

/// Verbs of the control plane and of nodes.
#[derive(Debug, Clone)]
pub struct ControlClient {
    client: Client,
    patience: Duration,
}

impl ControlClient {
    pub(crate) fn new(client: Client) -> Self {
        Self { client, patience: PATIENCE }
    }

    /// The same with another limit on how long a verb is tried.
    #[must_use]
    pub fn with_patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// Creates a kernel.
    ///
    /// # Errors
    /// The control plane's refusal, or [`FaultCode::Unavailable`] if nobody leads.
    pub async fn start_kernel(&self, request: &StartKernel) -> Result<KernelSpec, Fault> {
        if request.settings.kernelspec.is_some() {
            // A leader of the version before would not see it, and start Python.
            self.list_kernelspecs().await.map_err(only_python)?;
        }
        self.verb("start_kernel", request).await
    }

    /// Ends a kernel for good.
    ///
    /// # Errors
    /// As [`Self::start_kernel`].
    pub async fn stop_kernel(&self, kernel: KernelId) -> Result<KernelSpec, Fault> {
        self.verb("stop_kernel", &StopKernel { kernel }).await
    }

    /// Makes a kernel's group anew from one survivor of a lost majority, or says what that would
    /// do. Sent once: the control plane first waits whether the group is alive after all.
    ///
    /// # Errors
    /// The control plane's refusal, or [`FaultCode::Unavailable`] if nobody leads.
    pub async fn recover_kernel(&self, request: &RecoverKernel) -> Result<RecoveryPlan, Fault> {
        let subject =
            Subject::actor(self.client.cluster(), ActorKind::Control, "main", "recover_kernel");
        let envelope = self.client.envelope();
        ask(self.client.bus().as_ref(), &subject, &envelope, request, RECOVER_DEADLINE).await
    }

    /// Replaces what front-ends note about a kernel.
    ///
    /// # Errors
    /// As [`Self::start_kernel`].
    pub async fn label_kernel(
        &self,
        kernel: KernelId,
        labels: BTreeMap<String, String>,
    ) -> Result<KernelSpec, Fault> {
        self.verb("label_kernel", &LabelKernel { kernel, labels }).await
    }

    /// Every kernel that should exist.
    ///
    /// # Errors
    /// As [`Self::start_kernel`].
    pub async fn list_kernels(&self) -> Result<KernelList, Fault> {
        self.list_kernels_unless(None).await
    }

    /// The same, unless the list is still of the version that is known: then it is empty, and says
    /// that it is `unchanged`. It has a version only if all its pages were of one.
    ///
    /// # Errors
    /// As [`Self::start_kernel`].
    pub async fn list_kernels_unless(&self, known: Option<u64>) -> Result<KernelList, Fault> {
        let mut all = KernelList::default();
        let mut asked = ListKernels { after: None, known };
        loop {
            let page: KernelList = self.verb("list_kernels", &asked).await?;
            if page.unchanged && asked.after.is_none() {
                return Ok(page);
            }
            all.version =
                page.version.filter(|_| asked.after.is_none() || page.version == all.version);
            all.kernels.extend(page.kernels);
            // A page that does not lead on would be asked for again and again.
            match page.next.filter(|next| Some(*next) > asked.after) {
                Some(next) => asked = ListKernels { after: Some(next), known: None },
                None => return Ok(all),
            }
        }
    }

    /// One kernel, by id, name or unambiguous start of an id.
    ///
    /// # Errors
    /// As [`Self::start_kernel`]; [`FaultCode::NotFound`] if there is none.
    pub async fn find_kernel(&self, text: &str) -> Result<KernelSpec, Fault> {
        self.verb("find_kernel", &FindKernel { text: text.to_owned() }).await
    }

    /// Every node.
    ///
    /// # Errors
    /// As [`Self::start_kernel`].
    pub async fn list_nodes(&self) -> Result<NodeList, Fault> {
        self.verb("list_nodes", &()).await
    }

    /// The kernelspecs of other languages that nodes have.
    ///
    /// # Errors
    /// As [`Self::start_kernel`].
    pub async fn list_kernelspecs(&self) -> Result<KernelspecList, Fault> {
        self.verb("list_kernelspecs", &()).await
    }

    /// Ends something on a node. Sent once: killing twice is not killing once.
    ///
    /// # Errors
    /// The node's refusal, or [`FaultCode::Unavailable`] if it does not answer.
    pub async fn kill(&self, node: &NodeId, what: Kill) -> Result<(), Fault> {
        let subject = Subject::actor(self.client.cluster(), ActorKind::Node, node, "kill");
        let envelope = self.client.envelope();
        ask(self.client.bus().as_ref(), &subject, &envelope, &what, TRY_DEADLINE).await
    }

    /// What lies on a node's disk.
    ///
    /// # Errors
    /// [`FaultCode::Unavailable`] if the node does not answer.
    pub async fn storage(&self, node: &NodeId) -> Result<NodeStorage, Fault> {
        let subject = Subject::actor(self.client.cluster(), ActorKind::Node, node, "storage");
        let (bus, envelope) = (self.client.bus(), self.client.envelope());
        ask(bus.as_ref(), &subject, &envelope, &(), STORAGE_DEADLINE).await
    }

    /// Has a node remove what only a kernel that was stopped had there.
    ///
    /// # Errors
    /// [`FaultCode::Unavailable`] if the node does not answer, or the kernel still runs on it.
    pub async fn purge(&self, node: &NodeId, kernel: KernelId) -> Result<Purged, Fault> {
        let subject = Subject::actor(self.client.cluster(), ActorKind::Node, node, "purge");
        let (bus, envelope) = (self.client.bus(), self.client.envelope());
        ask(bus.as_ref(), &subject, &envelope, &Purge { kernel }, PURGE_DEADLINE).await
    }

    pub(crate) async fn verb<Req, Rep>(&self, verb: &str, request: &Req) -> Result<Rep, Fault>
    where
        Req: Serialize + Sync,
        Rep: DeserializeOwned,
    {
        let subject = Subject::actor(self.client.cluster(), ActorKind::Control, "main", verb);
        let envelope = self.client.envelope();
        let until = Instant::now() + self.patience;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let deadline = TRY_DEADLINE.min(left).max(Duration::from_millis(1));
            let bus = self.client.bus().as_ref();
            let fault = match ask(bus, &subject, &envelope, request, deadline).await {
                Ok(answer) => return Ok(answer),
                Err(fault) => fault,
            };
            let passing = matches!(
                fault.code,
                FaultCode::Unavailable | FaultCode::TimedOut | FaultCode::Stale
            );
            if !passing {
                return Err(fault);
            }
            if Instant::now() + TRY_PAUSE >= until {
                return Err(self.nobody(&fault));
            }
            sleep(TRY_PAUSE).await;
        }
    }

    fn nobody(&self, last: &Fault) -> Fault {
        let text = format!(
            "the control plane did not answer for {} s ({last}): are most of its nodes up? see `callboard doctor`",
            self.patience.as_secs_f32()
        );
        Fault { code: FaultCode::Unavailable, message: text, certainty: last.certainty }
    }
}

/// A control plane that has no such verb.
fn only_python(fault: Fault) -> Fault {
    if fault.code != FaultCode::BadRequest {
        return fault;
    }
    Fault::new(
        FaultCode::Conflict,
        "the control plane runs a version of callboard that knows Python only: restart all nodes in \
         this version first (docs/operations.md, Upgrades)",
    )
}
