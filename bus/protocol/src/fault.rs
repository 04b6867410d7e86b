//! How a request is refused or fails: one shape for every answer on the wire.

use serde::{Deserialize, Serialize};

/// What sort of failure, for programs. People read [`Fault::message`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultCode {
    /// The thing named does not exist.
    NotFound,
    /// The request itself is wrong; sending it again cannot help.
    BadRequest,
    /// The request is larger than the limit it meets.
    TooLarge,
    /// A limit of the owner, kernel or node is reached.
    Exhausted,
    /// The same id was used before for another request.
    Conflict,
    /// Nobody who could answer is reachable just now; a later try may succeed.
    Unavailable,
    /// The answer did not come in time.
    TimedOut,
    /// The sender's epoch or term is no longer the current one.
    Stale,
    /// A defect or an environment that does not work.
    Internal,
}

/// Whether the work of a failed request may have been done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Certainty {
    /// Nothing was done; the request may be sent again.
    NotExecuted,
    /// It may have been done, wholly or in part; never blindly send it again.
    MaybeExecuted,
}

/// A failed request, as told to whoever sent it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Fault {
    /// For programs.
    pub code: FaultCode,
    /// For people: what is wrong and what to do next, in a sentence.
    pub message: String,
    /// Whether the work may have been done.
    pub certainty: Certainty,
}

impl Fault {
    /// A failure before anything was done.
    #[must_use]
    pub fn new(code: FaultCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), certainty: Certainty::NotExecuted }
    }

    /// A failure after which the work may have been done.
    #[must_use]
    pub fn maybe_executed(code: FaultCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), certainty: Certainty::MaybeExecuted }
    }
}

/// An answer on the wire.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer<T> {
    /// The request was done or accepted.
    Ok(T),
    /// It was not.
    Err(Fault),
}

impl<T> From<Result<T, Fault>> for Answer<T> {
    fn from(result: Result<T, Fault>) -> Self {
        match result {
            Ok(value) => Self::Ok(value),
            Err(fault) => Self::Err(fault),
        }
    }
}

impl<T> From<Answer<T>> for Result<T, Fault> {
    fn from(answer: Answer<T>) -> Self {
        match answer {
            Answer::Ok(value) => Ok(value),
            Answer::Err(fault) => Err(fault),
        }
    }
}
