//! `/api/kernels`: list, start, look at, interrupt, restart, stop.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use actix_web::{
    HttpResponse, delete, get,
    http::{StatusCode, header},
    post, web,
};
use callboard_client::{Client, own};
use callboard_protocol::{
    Fault, KernelId,
    control::{KernelOptions, KernelSettings, KernelSpec, StartKernel},
    date::iso8601,
    jupyter::JupyterMessage,
    kernel::{KernelPhase, OutputCursor},
};
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{DeserializeOwned, Error as _},
};
use tokio::time::{sleep, timeout};

use crate::{
    auth::Caller,
    errors::ApiError,
    found::{Changing, Found},
    paths::OutputOf,
    specs,
    state::GatewayState,
};

/// How long a start is held open: clients give up after 42 s and do not ask again.
const START_WITHIN: Duration = Duration::from_secs(38);
/// Pause between looks at a kernel that is starting.
const START_LOOK_EVERY: Duration = Duration::from_millis(50);
/// How long a kernel may take to say how it is before its last known state is told instead.
const LOOK_WITHIN: Duration = Duration::from_secs(1);

/// A kernel as Jupyter's REST interface shows it.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct KernelModel {
    pub(crate) id: KernelId,
    name: String,
    last_activity: String,
    execution_state: &'static str,
    connections: usize,
}

/// The body of `POST /api/kernels`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct StartBody {
    pub(crate) name: Option<String>,
    pub(crate) env: BTreeMap<String, String>,
}

impl KernelModel {
    /// What is known without asking the kernel.
    pub(crate) fn of(state: &GatewayState, spec: &KernelSpec) -> Self {
        let known = state.activity.of(spec.kernel);
        Self {
            id: spec.kernel,
            name: spec.settings.kernelspec.as_deref().unwrap_or(specs::DEFAULT_SPEC).to_owned(),
            last_activity: iso8601(known.last),
            execution_state: if known.is_busy() { "busy" } else { "idle" },
            connections: known.connections,
        }
    }

    /// The same with what the kernel itself says, if it says it soon; else with `otherwise`.
    pub(crate) async fn asked(
        state: &GatewayState,
        client: &Client,
        spec: &KernelSpec,
        otherwise: Option<&'static str>,
    ) -> Self {
        let mut model = Self::of(state, spec);
        let asked = timeout(LOOK_WITHIN, client.kernel(spec.kernel).show()).await;
        model.execution_state = match asked.ok().and_then(Result::ok).map(|it| it.phase) {
            Some(KernelPhase::Running) => "busy",
            Some(KernelPhase::Idle | KernelPhase::Parked | KernelPhase::Hibernating) => "idle",
            Some(KernelPhase::Starting) => "starting",
            None => otherwise.unwrap_or(model.execution_state),
        };
        model
    }
}

#[get("/api/kernels")]
pub(crate) async fn list(
    state: web::Data<GatewayState>,
    caller: Caller,
) -> Result<HttpResponse, ApiError> {
    let all = state.list(&caller).await?;
    let seen = all.iter().filter(|spec| caller.sees(&spec.owner));
    let models: Vec<KernelModel> = seen.map(|spec| KernelModel::of(&state, spec)).collect();
    Ok(HttpResponse::Ok().json(models))
}

/// The kernels a caller may see: all of them, or an error.
pub(crate) async fn list_of(
    state: &GatewayState,
    caller: &Caller,
) -> Result<Vec<KernelSpec>, ApiError> {
    let all = state.list(caller).await?;
    Ok(all.iter().filter(|spec| caller.sees(&spec.owner)).cloned().collect())
}

#[post("/api/kernels")]
pub(crate) async fn start(
    state: web::Data<GatewayState>,
    caller: Caller,
    body: web::Bytes,
) -> Result<HttpResponse, ApiError> {
    let body: StartBody = parse_body(&body)?;
    let model = start_one(&state, &caller, &body).await?;
    Ok(HttpResponse::Created()
        .insert_header((header::LOCATION, format!("/api/kernels/{}", model.id)))
        .json(model))
}

/// Reads a JSON object; nothing at all counts as an empty one.
pub(crate) fn parse_body<T: Default + DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    if body.iter().all(u8::is_ascii_whitespace) {
        return Ok(T::default());
    }
    match serde_json::from_slice(body) {
        Ok(Object(body)) => Ok(body),
        Err(error) => {
            Err(ApiError::bad_request(format!("the body is no JSON object of this kind: {error}")))
        }
    }
}

/// A JSON object. Otherwise an array would be taken for one, too.
#[derive(Debug, Default)]
pub(crate) struct Object<T>(pub(crate) T);

impl<'de, T: DeserializeOwned> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let object = serde_json::Map::deserialize(deserializer)?;
        serde_json::from_value(object.into()).map(Self).map_err(D::Error::custom)
    }
}

/// Starts a kernel and waits until it can run cells.
pub(crate) async fn start_one(
    state: &GatewayState,
    caller: &Caller,
    body: &StartBody,
) -> Result<KernelModel, ApiError> {
    caller.may_change()?;
    let client = state.client_of(caller);
    let kernelspec = specs::resolve(&client, body.name.as_deref(), StatusCode::NOT_FOUND).await?;
    let kernel = match body.env.get("KERNEL_ID") {
        None => KernelId::generate(),
        Some(id) => id
            .parse()
            .map_err(|_| ApiError::bad_request("KERNEL_ID has to be a UUID, or to be left out"))?,
    };
    let began = Instant::now();
    let request = StartKernel {
        kernel,
        name: None,
        replicas: state.options.replicas,
        options: KernelOptions::default(),
        origin: None,
        settings: KernelSettings { kernelspec, ..KernelSettings::default() },
    };
    let spec = client.control().start_kernel(&request).await?;
    let model = loop {
        let model = KernelModel::asked(state, &client, &spec, Some("starting")).await;
        // Whoever waits for it longer than this has given up: it is started all the same.
        if model.execution_state != "starting" || began.elapsed() > START_WITHIN {
            break model;
        }
        sleep(START_LOOK_EVERY).await;
    };
    state.metrics.start_seconds.observe(began.elapsed().as_secs_f64());
    Ok(model)
}

#[get("/api/kernels/{id}")]
pub(crate) async fn show(state: web::Data<GatewayState>, found: Found) -> HttpResponse {
    let model = KernelModel::asked(&state, &found.client, &found.spec, None).await;
    HttpResponse::Ok().json(model)
}

#[delete("/api/kernels/{id}")]
pub(crate) async fn stop(
    state: web::Data<GatewayState>,
    Changing(found): Changing,
) -> Result<HttpResponse, ApiError> {
    stop_one(&state, &found.spec).await?;
    Ok(HttpResponse::NoContent().finish())
}

pub(crate) async fn stop_one(state: &GatewayState, spec: &KernelSpec) -> Result<(), Fault> {
    state.client_for_owner_of(spec).control().stop_kernel(spec.kernel).await.map(drop)
}

#[post("/api/kernels/{id}/interrupt")]
pub(crate) async fn interrupt(Changing(found): Changing) -> Result<HttpResponse, ApiError> {
    own::interrupt(&found.kernel()).await?;
    Ok(HttpResponse::NoContent().finish())
}

#[post("/api/kernels/{id}/restart")]
pub(crate) async fn restart(
    state: web::Data<GatewayState>,
    Changing(found): Changing,
) -> Result<HttpResponse, ApiError> {
    found.kernel().restart().await?;
    let model = KernelModel::asked(&state, &found.client, &found.spec, Some("starting")).await;
    Ok(HttpResponse::Ok().json(model))
}

/// One output, for links to those that are too large for a websocket.
#[get("/api/kernels/{id}/outputs/{cursor}")]
pub(crate) async fn output(
    found: Found,
    path: web::Path<OutputOf>,
) -> Result<HttpResponse, ApiError> {
    let cursor: OutputCursor =
        path.cursor.parse().map_err(|error| ApiError::bad_request(format!("{error}")))?;
    let before = OutputCursor { number: cursor.number.saturating_sub(1), ..cursor };
    let outputs = found.kernel().outputs(before).await?.outputs;
    let kept = outputs.iter().find(|output| output.place.cursor == cursor);
    let message = kept.and_then(|output| JupyterMessage::decode(&output.message).ok());
    match message {
        Some(message) => {
            Ok(HttpResponse::Ok().content_type("application/json").body(message.content))
        }
        None => Err(ApiError::not_found(format!(
            "the kernel does not keep its output {cursor} any more: run the cell again"
        ))),
    }
}
