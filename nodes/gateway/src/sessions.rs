//! `/api/sessions`: which notebook a kernel belongs to. That is noted as labels of the kernel, so that
//! every gateway knows it.

use std::collections::BTreeMap;

use actix_web::{
    HttpResponse, delete, get,
    http::{StatusCode, header},
    patch, post, web,
};
use callboard_protocol::control::KernelSpec;
use serde::{Deserialize, Serialize};
use serde_json::json;
use uuid::Uuid;

use crate::{
    auth::Caller,
    errors::ApiError,
    kernels::{self, KernelModel, Object, StartBody, parse_body},
    paths::Id,
    specs,
    state::GatewayState,
};

const SESSION: &str = "session";
const PATH: &str = "session-path";
const NAME: &str = "session-name";
const TYPE: &str = "session-type";
/// Longest path, name and type together, in bytes; a kernel's labels have 4 KiB.
const TEXTS_BYTES_MAX: usize = 3_000;

/// A session as Jupyter's REST interface shows it.
#[derive(Debug, Clone, Serialize)]
struct SessionModel {
    id: String,
    path: String,
    name: String,
    #[serde(rename = "type")]
    kind: String,
    kernel: KernelModel,
    /// The same for clients of before 2017.
    notebook: serde_json::Value,
}

/// The body of `POST` and `PATCH`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct SessionBody {
    path: Option<String>,
    name: Option<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
    kernel: Option<Object<KernelBody>>,
    /// Where clients of before 2017 have the path.
    notebook: Option<Object<NotebookBody>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct NotebookBody {
    path: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct KernelBody {
    id: Option<String>,
    name: Option<String>,
}

impl SessionModel {
    /// The session that a kernel belongs to, if it belongs to one.
    fn of(state: &GatewayState, spec: &KernelSpec) -> Option<Self> {
        let label = |key: &str| spec.labels.get(key).cloned();
        let (path, name) = (label(PATH)?, label(NAME).unwrap_or_default());
        Some(Self {
            id: label(SESSION)?,
            notebook: json!({ "path": path, "name": name }),
            path,
            name,
            kind: label(TYPE).unwrap_or_else(|| "notebook".to_owned()),
            kernel: KernelModel::of(state, spec),
        })
    }

    fn labels(&self) -> BTreeMap<String, String> {
        let label = |key: &str, value: &String| (key.to_owned(), value.clone());
        BTreeMap::from([
            label(SESSION, &self.id),
            label(PATH, &self.path),
            label(NAME, &self.name),
            label(TYPE, &self.kind),
        ])
    }
}

/// The sessions of a caller, each with its kernel's entry.
async fn all(
    state: &GatewayState,
    caller: &Caller,
) -> Result<Vec<(SessionModel, KernelSpec)>, ApiError> {
    let kernels = kernels::list_of(state, caller).await?;
    let sessions = kernels.into_iter().filter_map(|it| Some((SessionModel::of(state, &it)?, it)));
    Ok(sessions.collect())
}

async fn find(
    state: &GatewayState,
    caller: &Caller,
    id: &str,
) -> Result<(SessionModel, KernelSpec), ApiError> {
    let found = all(state, caller).await?.into_iter().find(|(session, _)| session.id == id);
    found.ok_or_else(|| {
        let id: String = id.chars().take(64).collect();
        ApiError::not_found(format!("there is no session {id}"))
    })
}

#[get("/api/sessions")]
pub(crate) async fn list(
    state: web::Data<GatewayState>,
    caller: Caller,
) -> Result<HttpResponse, ApiError> {
    let sessions: Vec<SessionModel> =
        all(&state, &caller).await?.into_iter().map(|(session, _)| session).collect();
    Ok(HttpResponse::Ok().json(sessions))
}

#[get("/api/sessions/{id}")]
pub(crate) async fn one(
    state: web::Data<GatewayState>,
    caller: Caller,
    path: web::Path<Id>,
) -> Result<HttpResponse, ApiError> {
    let (session, _) = find(&state, &caller, &path.id).await?;
    Ok(HttpResponse::Ok().json(session))
}

#[post("/api/sessions")]
pub(crate) async fn create(
    state: web::Data<GatewayState>,
    caller: Caller,
    body: web::Bytes,
) -> Result<HttpResponse, ApiError> {
    caller.may_change()?;
    let body: SessionBody = parse_body(&body)?;
    let missing = |what: &str| ApiError::bad_request(format!("a session needs a {what}"));
    let (path, kind) = match body.notebook {
        Some(Object(notebook)) if body.path.is_none() => {
            (notebook.path, body.kind.or(Some("notebook".to_owned())))
        }
        _ => (body.path, body.kind),
    };
    let path = path.filter(|path| !path.is_empty()).ok_or_else(|| missing("path"))?;
    let kind = kind.filter(|kind| !kind.is_empty()).ok_or_else(|| missing("type"))?;
    check_length(&[&path, &kind, body.name.as_deref().unwrap_or_default()])?;
    let known = all(&state, &caller).await?;
    if let Some((session, _)) = known.into_iter().find(|(it, _)| it.path == path && it.kind == kind)
    {
        return Ok(created(&session));
    }
    let spec = kernel_for(&state, &caller, body.kernel.unwrap_or_default().0).await?;
    let session = SessionModel {
        id: Uuid::new_v4().to_string(),
        name: body.name.unwrap_or_default(),
        notebook: json!({ "path": path }),
        path,
        kind,
        kernel: KernelModel::of(&state, &spec),
    };
    note(&state, &caller, &spec, session.labels()).await?;
    Ok(created(&session))
}

/// Before a kernel is started that nobody would know of.
fn check_length(texts: &[&str]) -> Result<(), ApiError> {
    if texts.iter().map(|text| text.len()).sum::<usize>() > TEXTS_BYTES_MAX {
        return Err(ApiError::bad_request(format!(
            "path, name and type have more than {TEXTS_BYTES_MAX} bytes together: use shorter ones"
        )));
    }
    Ok(())
}

fn created(session: &SessionModel) -> HttpResponse {
    HttpResponse::Created()
        .insert_header((header::LOCATION, format!("/api/sessions/{}", session.id)))
        .json(session)
}

/// The kernel that a session names, or a new one.
async fn kernel_for(
    state: &GatewayState,
    caller: &Caller,
    wanted: KernelBody,
) -> Result<KernelSpec, ApiError> {
    if let Some(id) = wanted.id.filter(|id| !id.is_empty()) {
        return state.find(caller, &id).await;
    }
    let client = state.client_of(caller);
    specs::resolve(&client, wanted.name.as_deref(), StatusCode::NOT_IMPLEMENTED).await?;
    let body = StartBody { name: wanted.name, ..StartBody::default() };
    let model = kernels::start_one(state, caller, &body).await?;
    state.find(caller, &model.id.to_string()).await
}

#[patch("/api/sessions/{id}")]
pub(crate) async fn change(
    state: web::Data<GatewayState>,
    caller: Caller,
    path: web::Path<Id>,
    body: web::Bytes,
) -> Result<HttpResponse, ApiError> {
    caller.may_change()?;
    let body: SessionBody = parse_body(&body)?;
    let (mut session, before) = find(&state, &caller, &path.id).await?;
    session.path = body.path.unwrap_or(session.path);
    session.name = body.name.unwrap_or(session.name);
    session.kind = body.kind.unwrap_or(session.kind);
    check_length(&[&session.path, &session.kind, &session.name])?;
    let spec = match body.kernel {
        Some(Object(wanted)) if wanted.id.is_some() || wanted.name.is_some() => {
            kernel_for(&state, &caller, wanted).await?
        }
        _ => before.clone(),
    };
    note(&state, &caller, &spec, session.labels()).await?;
    if spec.kernel != before.kernel {
        note(&state, &caller, &before, BTreeMap::new()).await?;
    }
    session.kernel = KernelModel::of(&state, &spec);
    session.notebook = json!({ "path": session.path, "name": session.name });
    Ok(HttpResponse::Ok().json(session))
}

/// Ends a session and its kernel.
#[delete("/api/sessions/{id}")]
pub(crate) async fn end(
    state: web::Data<GatewayState>,
    caller: Caller,
    path: web::Path<Id>,
) -> Result<HttpResponse, ApiError> {
    caller.may_change()?;
    let (_, spec) = find(&state, &caller, &path.id).await?;
    kernels::stop_one(&state, &spec).await?;
    Ok(HttpResponse::NoContent().finish())
}

async fn note(
    state: &GatewayState,
    caller: &Caller,
    spec: &KernelSpec,
    labels: BTreeMap<String, String>,
) -> Result<(), ApiError> {
    state.client_of(caller).control().label_kernel(spec.kernel, labels).await?;
    Ok(())
}
