//! `/api/kernelspecs`: what kernels can be started.

use actix_web::{HttpResponse, get, http::StatusCode, web};
use serde_json::{Value, json};

use crate::{
    auth::Caller,
    errors::ApiError,
    paths::{File, Name},
};

/// The kernelspec that a request without a name means.
pub(crate) const DEFAULT_SPEC: &str = "python3";

const LOGO: &[u8] = include_bytes!("../assets/logo-svg.svg");

fn python3() -> Value {
    json!({
        "name": DEFAULT_SPEC,
        "spec": {
            "argv": [],
            "env": {},
            "display_name": "Python 3 (Callboard)",
            "language": "python",
            "interrupt_mode": "message",
            "metadata": { "debugger": true },
        },
        "resources": { "logo-svg": format!("/kernelspecs/{DEFAULT_SPEC}/logo-svg.svg") },
    })
}

/// Whether kernels of this spec can be started. `python` is what `jupyter_client` calls Python of
/// whatever version.
pub(crate) fn exists(name: &str) -> bool {
    [DEFAULT_SPEC, "python"].contains(&name)
}

#[get("/api/kernelspecs")]
pub(crate) async fn list(_: Caller) -> HttpResponse {
    HttpResponse::Ok().json(json!({
        "default": DEFAULT_SPEC,
        "kernelspecs": { DEFAULT_SPEC: python3() },
    }))
}

#[get("/api/kernelspecs/{name}")]
pub(crate) async fn one(_: Caller, path: web::Path<Name>) -> Result<HttpResponse, ApiError> {
    if exists(&path.name) {
        return Ok(HttpResponse::Ok().json(python3()));
    }
    Err(unknown(StatusCode::NOT_FOUND, &path.name))
}

/// Files of a kernelspec, which pages load without a token.
#[get("/kernelspecs/{name}/{file}")]
pub(crate) async fn file(path: web::Path<File>) -> Result<HttpResponse, ApiError> {
    let File { name, file } = path.into_inner();
    if exists(&name) && file == "logo-svg.svg" {
        return Ok(HttpResponse::Ok().content_type("image/svg+xml").body(LOGO));
    }
    let short = |text: &str| text.chars().take(64).collect::<String>();
    let (name, file) = (short(&name), short(&file));
    Err(ApiError::not_found(format!("the kernelspec '{name}' has no file '{file}'")))
}

pub(crate) fn unknown(status: StatusCode, name: &str) -> ApiError {
    let name: String = name.chars().take(64).collect();
    ApiError::new(status, format!("there is no kernelspec '{name}': use '{DEFAULT_SPEC}'"))
}
