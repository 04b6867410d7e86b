//! Tells the control plane what the session needs of a node's Python environment.
//!
//! The Python side says what it has imported, as a group of the state; the executor passes it on
//! when it changes. A restart loses nothing: the next restore reads the group again.

use std::time::{Duration, Instant};

use bytes::Bytes;
use callboard_policy::environment::EnvironmentMatch;
use callboard_protocol::{
    ActorKind, Envelope, Subject,
    control::{KernelSpec, NoteNeeds},
    environment::Environment,
};
use callboard_transport::typed;

use super::{Internal, ReplicaState, tell};

/// The group in which the Python side says what it has imported.
const IMPORTED_GROUP: &str = "environment:imported";
/// How long the control plane may take to note it, and the pause before it is told again.
const REPORT_WITHIN: Duration = Duration::from_secs(2);

/// What the session needs, and whether the control plane knows.
#[derive(Debug, Default)]
pub(super) struct Needs {
    now: Option<Environment>,
    noted: Option<Environment>,
    told: Option<Instant>,
}

impl Needs {
    /// What is to be told at this moment.
    fn due(&self, spec: &KernelSpec) -> Option<Environment> {
        let now = self.now.as_ref()?;
        let is_known = spec.needs.as_ref() == Some(now) || self.noted.as_ref() == Some(now);
        let is_paused = self.told.is_some_and(|told| told.elapsed() < REPORT_WITHIN);
        (!is_known && !is_paused).then(|| now.clone())
    }
}

impl ReplicaState {
    /// Takes note of what the session has imported, if it is in one of these groups, each given
    /// with its first part.
    pub(super) fn note_imported<'a>(
        &mut self,
        mut groups: impl Iterator<Item = (&'a str, Option<&'a Bytes>)>,
    ) {
        let found = groups.find(|(group, _)| *group == IMPORTED_GROUP);
        let Some(part) = found.and_then(|(_, part)| part) else { return };
        let context = &self.args.context;
        let needs = match context.environment_match {
            EnvironmentMatch::Off => None,
            EnvironmentMatch::Exact => context
                .environment
                .borrow()
                .clone()
                .map(|here| Environment { kernelspecs: Default::default(), ..here }),
            EnvironmentMatch::Imported => serde_json::from_slice(part)
                .inspect_err(|error| tracing::warn!(%error, "what was imported cannot be read"))
                .ok(),
        };
        if needs != self.needs.now {
            self.needs = Needs { now: needs, ..Needs::default() };
        }
        self.report_needs();
    }

    /// Tells the control plane what it does not know yet; said again until it answers.
    pub(super) fn report_needs(&mut self) {
        let Some(needs) = self.needs.due(&self.args.spec) else { return };
        self.needs.told = Some(Instant::now());
        let (context, me) = (self.args.context.clone(), self.me.clone());
        let report = NoteNeeds { kernel: self.args.spec.kernel, needs };
        self.tasks.push(tokio::spawn(async move {
            let bus = &*context.lanes.control;
            let subject =
                Subject::actor(&context.cluster, ActorKind::Control, "main", "note_needs");
            let envelope = Envelope::default();
            let noted: Result<serde::de::IgnoredAny, _> =
                typed::ask(bus, &subject, &envelope, &report, REPORT_WITHIN).await;
            match noted {
                Ok(_) => tell(&me, Internal::NeedsNoted(Box::new(report.needs))),
                Err(error) => tracing::debug!(%error, "what a session needs is not noted yet"),
            }
        }));
    }

    pub(super) fn needs_noted(&mut self, needs: Environment) {
        self.needs.noted = Some(needs);
    }
}
