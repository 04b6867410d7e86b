//! Who had the control plane do what, told to whoever listens.

use std::time::{SystemTime, UNIX_EPOCH};

use callboard_protocol::{
    Envelope,
    audit::{AUDITED, Audit},
    control::KernelSpec,
};

use crate::actor::Context;

impl Context {
    /// Tells that whoever sent `envelope` did `action` to `subject`.
    pub(crate) async fn audit(
        &self,
        envelope: &Envelope,
        action: &str,
        subject: impl ToString,
        detail: String,
    ) {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let audit = Audit {
            at_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
            by: envelope.owner.to_string(),
            action: action.to_owned(),
            subject: subject.to_string(),
            detail,
        };
        self.announce(AUDITED, &audit).await;
    }

    /// The same of a kernel.
    pub(crate) async fn audit_kernel(&self, envelope: &Envelope, action: &str, spec: &KernelSpec) {
        let name = spec.name.as_deref().unwrap_or("without a name");
        let detail = format!("{name}, of {}", spec.owner);
        self.audit(envelope, action, spec.kernel, detail).await;
    }
}
