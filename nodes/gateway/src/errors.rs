//! What a client is told when something does not work: a status, and a JSON body whose `reason` and
//! `message` `jupyter_server` shows to the user.

use actix_web::{
    HttpResponse, ResponseError,
    body::{BoxBody, MessageBody},
    dev::{ServiceRequest, ServiceResponse},
    http::{Method, StatusCode, header},
    middleware::Next,
};
use callboard_protocol::{Fault, FaultCode};
use serde_json::{Value, json};

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
        response.json(body(self.status, &self.message))
    }
}

fn body(status: StatusCode, message: &str) -> Value {
    let reason = status.canonical_reason().unwrap_or("Error");
    json!({ "reason": reason, "message": message })
}

/// Has `HEAD` answered as `GET` is, and gives refusals that the server or a layer of it makes itself
/// the body that ours have.
pub(crate) async fn uniform(
    mut request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<BoxBody>, actix_web::Error> {
    if request.method() == Method::HEAD {
        // The body is left out when the answer is written.
        request.head_mut().method = Method::GET;
    }
    let response = match next.call(request).await {
        Ok(response) => response.map_into_boxed_body(),
        Err(error) => {
            let status = error.as_response_error().status_code();
            return Err(ApiError::new(status, error.to_string()).into());
        }
    };
    let status = response.status();
    let is_ours = response
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|it| it.as_bytes().starts_with(b"application/json"));
    if is_ours || !(status.is_client_error() || status.is_server_error()) {
        return Ok(response);
    }
    let message = match response.response().error() {
        Some(error) => error.to_string(),
        None => "the request is refused: see /api/openapi.json for what is answered".to_owned(),
    };
    let mut response = response.map_body(|_, _| BoxBody::new(body(status, &message).to_string()));
    let json = header::HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    Ok(response)
}
