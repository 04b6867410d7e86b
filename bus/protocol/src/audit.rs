//! Who did what: the event `audited` of `control.main`.
//!
//! The control plane tells what it did; a gateway tells on the same subject what it let through or
//! refused. Like every event it is sent at most once: whoever needs a record writes it down.

use serde::{Deserialize, Serialize};

/// Name of the event.
pub const AUDITED: &str = "audited";

/// Something that somebody did or tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Audit {
    /// When, in milliseconds since 1970, by the clock of whoever tells it.
    pub at_ms: u64,
    /// Who, as far as it is known.
    pub by: String,
    /// What, as `<noun>_<past tense>`, such as `user_added` or `login_refused`.
    pub action: String,
    /// To whom or what: a user, a kernel.
    pub subject: String,
    /// What else there is to know, for people.
    pub detail: String,
}
