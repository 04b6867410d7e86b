//! `/api/kernelspecs`: what kernels can be started.

use std::collections::BTreeMap;

use actix_web::{HttpResponse, get, http::StatusCode, web};
use callboard_client::Client;
use callboard_protocol::{Fault, FaultCode, control::KernelspecStatus, environment::Kernelspec};
use serde_json::{Value, json};

use crate::{
    auth::Caller,
    errors::ApiError,
    paths::{File, Name},
    state::GatewayState,
};

/// The kernelspec that a request without a name means.
pub(crate) const DEFAULT_SPEC: &str = "python3";

/// Kernelspecs named in a refusal; the list has all.
const NAMED_MAX: usize = 10;
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

/// A kernelspec of another language, as a node has it. What people choose by says what they get.
fn foreign(name: &str, spec: &Kernelspec) -> Value {
    json!({
        "name": name,
        "spec": {
            "argv": [],
            "env": {},
            "display_name": format!("{} (Callboard, not replicated)", spec.display_name),
            "language": spec.language,
            "interrupt_mode": "message",
            "metadata": { "callboard": { "state_replicated": false } },
        },
        "resources": {},
    })
}

/// Whether a name means Python: `python` is what `jupyter_client` calls Python of whatever version.
fn is_python(name: &str) -> bool {
    [DEFAULT_SPEC, "python"].contains(&name)
}

/// The kernelspecs of other languages that nodes have.
async fn known(client: &Client) -> Result<BTreeMap<String, KernelspecStatus>, Fault> {
    match client.control().list_kernelspecs().await {
        Ok(found) => Ok(found.kernelspecs),
        Err(fault) if fault.code == FaultCode::Unavailable => Err(fault),
        Err(fault) => {
            // The control plane, or what the broker lets a gateway ask, is of the version before.
            tracing::debug!(%fault, "only Python is known");
            Ok(BTreeMap::new())
        }
    }
}

/// The kernelspec of another language that a name means; `None` is Python.
///
/// # Errors
/// `otherwise`, with the names there are, if there is none.
pub(crate) async fn resolve(
    client: &Client,
    name: Option<&str>,
    otherwise: StatusCode,
) -> Result<Option<String>, ApiError> {
    let Some(name) = name.filter(|name| !name.is_empty() && !is_python(name)) else {
        return Ok(None);
    };
    let known = known(client).await?;
    match known.contains_key(name) {
        true => Ok(Some(name.to_owned())),
        false => Err(unknown(otherwise, name, known.keys())),
    }
}

#[get("/api/kernelspecs")]
pub(crate) async fn list(
    state: web::Data<GatewayState>,
    caller: Caller,
) -> Result<HttpResponse, ApiError> {
    let known = known(&state.client_of(&caller)).await?;
    let mut all: BTreeMap<&str, Value> =
        known.iter().map(|(name, status)| (&**name, foreign(name, &status.spec))).collect();
    all.insert(DEFAULT_SPEC, python3());
    Ok(HttpResponse::Ok().json(json!({ "default": DEFAULT_SPEC, "kernelspecs": all })))
}

#[get("/api/kernelspecs/{name}")]
pub(crate) async fn one(
    state: web::Data<GatewayState>,
    caller: Caller,
    path: web::Path<Name>,
) -> Result<HttpResponse, ApiError> {
    let name = &path.name;
    if is_python(name) {
        return Ok(HttpResponse::Ok().json(python3()));
    }
    let known = known(&state.client_of(&caller)).await?;
    match known.get(name) {
        Some(status) => Ok(HttpResponse::Ok().json(foreign(name, &status.spec))),
        None => Err(unknown(StatusCode::NOT_FOUND, name, known.keys())),
    }
}

/// Files of a kernelspec, which pages load without a token.
#[get("/kernelspecs/{name}/{file}")]
pub(crate) async fn file(path: web::Path<File>) -> Result<HttpResponse, ApiError> {
    let File { name, file } = path.into_inner();
    if is_python(&name) && file == "logo-svg.svg" {
        return Ok(HttpResponse::Ok().content_type("image/svg+xml").body(LOGO));
    }
    let short = |text: &str| text.chars().take(64).collect::<String>();
    let (name, file) = (short(&name), short(&file));
    Err(ApiError::not_found(format!("the kernelspec '{name}' has no file '{file}'")))
}

fn unknown<'a>(
    status: StatusCode,
    name: &str,
    known: impl Iterator<Item = &'a String>,
) -> ApiError {
    let name: String = name.chars().take(64).collect();
    let names: Vec<&str> =
        [DEFAULT_SPEC].into_iter().chain(known.take(NAMED_MAX).map(String::as_str)).collect();
    let names = names.join("', '");
    ApiError::new(status, format!("there is no kernelspec '{name}': there are '{names}'"))
}
