//! What is neither kernel nor kernelspec: versions, the user, the gateway itself.

use actix_web::{HttpResponse, get, web};
use callboard_protocol::date::iso8601;
use serde_json::json;

use crate::{auth::Caller, document::OPENAPI, errors::ApiError, kernels, state::GatewayState};

#[get("/api")]
pub(crate) async fn version(_: Caller) -> HttpResponse {
    HttpResponse::Ok().json(json!({ "version": env!("CARGO_PKG_VERSION") }))
}

#[get("/api/status")]
pub(crate) async fn status(
    state: web::Data<GatewayState>,
    caller: Caller,
) -> Result<HttpResponse, ApiError> {
    let kernels = kernels::list_of(&state, &caller).await?.len();
    Ok(HttpResponse::Ok().json(json!({
        "started": iso8601(state.activity.started()),
        "last_activity": iso8601(state.activity.last()),
        "connections": state.activity.connections(),
        "kernels": kernels,
    })))
}

#[get("/api/me")]
pub(crate) async fn me(caller: Caller) -> HttpResponse {
    let user = caller.user.to_string();
    let initials: String = user.chars().take(2).collect();
    HttpResponse::Ok().json(json!({
        "identity": {
            "username": user,
            "name": user,
            "display_name": user,
            "initials": initials,
            "avatar_url": null,
            "color": null,
        },
        "permissions": {},
    }))
}

#[get("/api/openapi.json")]
pub(crate) async fn openapi() -> HttpResponse {
    HttpResponse::Ok().content_type("application/json").body(OPENAPI)
}

/// The same under the names that Kernel Gateway has it.
#[get("/api/swagger.json")]
pub(crate) async fn swagger() -> HttpResponse {
    HttpResponse::Ok().content_type("application/json").body(OPENAPI)
}

#[get("/api/swagger.yaml")]
pub(crate) async fn swagger_yaml() -> HttpResponse {
    // JSON is YAML, too.
    HttpResponse::Ok().content_type("application/yaml").body(OPENAPI)
}

/// For load balancers: this gateway answers.
#[get("/healthz")]
pub(crate) async fn healthz() -> HttpResponse {
    HttpResponse::Ok().content_type("text/plain").body("ok\n")
}

#[get("/metrics")]
pub(crate) async fn metrics(state: web::Data<GatewayState>) -> Result<HttpResponse, ApiError> {
    let text = state.metrics.text().map_err(|error| {
        ApiError::new(actix_web::http::StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
    })?;
    Ok(HttpResponse::Ok().content_type("text/plain; version=0.0.4").body(text))
}
