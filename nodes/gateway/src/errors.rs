//! What a client is told when something does not work: a status, and a JSON body whose `reason` and
//! `message` `jupyter_server` shows to the user.

use actix_web::{HttpResponse, ResponseError, http::StatusCode};
use callboard_protocol::{Fault, FaultCode};
use serde_json::json;

/// A refused or failed request.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct ApiError {
    status: StatusCode,
    message: String,
}

impl ApiError {
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }

    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }
}

impl From<Fault> for ApiError {
    fn from(fault: Fault) -> Self {
        let status = match fault.code {
            FaultCode::NotFound => StatusCode::NOT_FOUND,
            FaultCode::BadRequest => StatusCode::BAD_REQUEST,
            FaultCode::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            FaultCode::Exhausted => StatusCode::FORBIDDEN,
            FaultCode::Conflict => StatusCode::CONFLICT,
            FaultCode::Unavailable | FaultCode::TimedOut | FaultCode::Stale => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            FaultCode::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, fault.message)
    }
}

impl ResponseError for ApiError {
    fn status_code(&self) -> StatusCode {
        self.status
    }

    fn error_response(&self) -> HttpResponse {
        let mut response = HttpResponse::build(self.status);
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            response.insert_header(("Retry-After", "1"));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response.insert_header(("WWW-Authenticate", "token"));
        }
        let reason = self.status.canonical_reason().unwrap_or("Error");
        response.json(json!({ "reason": reason, "message": self.message }))
    }
}
