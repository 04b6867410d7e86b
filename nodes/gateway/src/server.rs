//! Binds, serves, and follows what changes in the cluster.

use std::{
    any::Any,
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use actix_cors::Cors;
use actix_web::{
    App, HttpRequest, HttpResponse, HttpServer, ResponseError as _, Scope, dev,
    dev::Server,
    http::{Method, StatusCode, header},
    middleware, rt, web,
};
use callboard_client::Client;
use callboard_protocol::ActorKind;
use futures::future::{Either, select};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::time::{interval, sleep};

use crate::{
    activity::{Activity, TELLING},
    auth::Users,
    document,
    errors::{self, ApiError},
    kernels,
    metrics::Metrics,
    options::GatewayOptions,
    sessions, specs,
    state::GatewayState,
    status, websocket,
};

/// How often the users are read again, should the event of a change be lost.
const USERS_EVERY: Duration = Duration::from_secs(5);
/// Pause before events are followed again after the bus was gone.
const FOLLOW_PAUSE: Duration = Duration::from_secs(1);
/// Largest body of a request.
const BODY_BYTES_MAX: usize = 1 << 20;
/// How long requests may go on once the gateway is asked to end.
const END_WITHIN_S: u64 = 5;
/// Time to send a request's head.
const HEAD_WITHIN: Duration = Duration::from_secs(10);
/// How long a client may leave what it is sent unread before the connection is cut.
const UNREAD_MAX_MS: u32 = 30_000;
/// Connections per thread; more wait to be accepted.
const CONNECTIONS_MAX: usize = 10_000;
/// Threads that serve, on half of the cores at most: the work is little, and the bus is the bottleneck.
const WORKERS_MAX: usize = 2;

/// Why a gateway does not run.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// Its address cannot be had.
    #[error("cannot listen on {address}: {source}; name another address with --listen")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// Its certificate or key cannot be used.
    #[error("cannot use {path}: {why}; name PEM files with --tls-cert and --tls-key")]
    Tls {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// Serving failed.
    #[error("the gateway ended: {0}")]
    Serving(#[from] io::Error),
    /// A defect in its own figures.
    #[error("a defect: {0}; please report it")]
    Metrics(#[from] prometheus::Error),
}

/// A gateway that is bound and not served yet.
pub struct Gateway {
    address: SocketAddr,
    server: Server,
    state: web::Data<GatewayState>,
}

impl std::fmt::Debug for Gateway {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gateway").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Gateway {
    /// Binds to the address that `options` name.
    ///
    /// # Errors
    /// [`GatewayError`] if the address, certificate or key cannot be had.
    pub fn bind(client: Client, options: GatewayOptions) -> Result<Self, GatewayError> {
        let state = web::Data::new(GatewayState {
            users: Users::new(options.anonymous.clone()),
            activity: Arc::new(Activity::new()),
            metrics: Metrics::new()?,
            listed: Mutex::default(),
            client,
            options: options.clone(),
        });
        let tls = options.tls.as_ref().map(tls_config).transpose()?;
        let (shared, origins) = (state.clone(), options.allow_origins.clone());
        let server = HttpServer::new(move || {
            App::new()
                .app_data(shared.clone())
                .app_data(web::PayloadConfig::new(BODY_BYTES_MAX))
                .wrap(middleware::from_fn(count))
                .wrap(cors(&origins))
                .wrap(middleware::from_fn(errors::uniform))
                .wrap(middleware::NormalizePath::new(middleware::TrailingSlash::Trim))
                // A token in the path, for clients that send no header with a websocket.
                .service(routes(web::scope("/t/{path_token}")))
                .service(routes(web::scope("")))
        })
        .workers(workers())
        .max_connections(CONNECTIONS_MAX)
        .client_request_timeout(HEAD_WITHIN)
        .shutdown_timeout(END_WITHIN_S)
        .disable_signals()
        .on_connect(|connection: &dyn Any, _| prepare(connection));
        let listen = |source| GatewayError::Listen { address: options.listen, source };
        let server = match tls {
            Some(tls) => server.bind_rustls_0_23(options.listen, tls),
            None => server.bind(options.listen),
        }
        .map_err(listen)?;
        let address = server.addrs().first().copied().unwrap_or(options.listen);
        Ok(Self { address, server: server.run(), state })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `end` comes, then closes what is open.
    ///
    /// # Errors
    /// [`GatewayError::Serving`].
    pub async fn serve(self, end: impl Future<Output = ()>) -> Result<(), GatewayError> {
        let followers = [
            tokio::spawn(follow_users(self.state.clone())),
            tokio::spawn(follow_events(self.state.clone())),
        ];
        let handle = self.server.handle();
        let result = match select(Box::pin(end), self.server).await {
            Either::Left(((), server)) => {
                let stopping = handle.stop(true);
                let (result, ()) = futures::future::join(server, stopping).await;
                result
            }
            Either::Right((result, _)) => result,
        };
        followers.iter().for_each(tokio::task::JoinHandle::abort);
        Ok(result?)
    }
}

fn routes(scope: Scope) -> Scope {
    scope
        .service(status::version)
        .service(status::status)
        .service(status::me)
        .service(status::openapi)
        .service(status::swagger)
        .service(status::swagger_yaml)
        .service(status::healthz)
        .service(status::metrics)
        .service(specs::list)
        .service(specs::one)
        .service(specs::file)
        .service(kernels::list)
        .service(kernels::start)
        .service(kernels::interrupt)
        .service(kernels::restart)
        .service(kernels::output)
        .service(websocket::channels)
        .service(sessions::list)
        .service(sessions::create)
        .service(sessions::one)
        .service(sessions::change)
        .service(sessions::end)
        .service(kernels::show)
        .service(kernels::stop)
        .default_service(web::to(nothing_here))
}

/// What no handler takes: `OPTIONS`, methods that a path does not have, and unknown paths.
async fn nothing_here(request: HttpRequest) -> HttpResponse {
    let allowed = document::methods_of(request.path());
    let mut response = match (&allowed, request.method()) {
        (_, &Method::OPTIONS) => HttpResponse::Ok().finish(),
        (Some(allowed), method) => {
            let text = format!("there is no {method} here, only {allowed}");
            ApiError::new(StatusCode::METHOD_NOT_ALLOWED, text).error_response()
        }
        (None, _) => {
            ApiError::not_found("there is nothing here: see /api/openapi.json").error_response()
        }
    };
    if let Some(Ok(allowed)) = allowed.map(header::HeaderValue::try_from) {
        response.headers_mut().insert(header::ALLOW, allowed);
    }
    response
}

fn cors(origins: &[String]) -> Cors {
    let cors =
        Cors::default().allow_any_method().allow_any_header().expose_any_header().max_age(3600);
    if origins.iter().any(|origin| origin == "*") {
        return cors.allow_any_origin();
    }
    origins.iter().fold(cors, |cors, origin| cors.allowed_origin(origin))
}

/// Counts requests by method and status.
async fn count(
    request: dev::ServiceRequest,
    next: middleware::Next<impl actix_web::body::MessageBody>,
) -> Result<dev::ServiceResponse<impl actix_web::body::MessageBody>, actix_web::Error> {
    let method = request.method().to_string();
    let state = request.app_data::<web::Data<GatewayState>>().cloned();
    let response = next.call(request).await;
    let status = match &response {
        Ok(response) => response.status(),
        Err(error) => error.as_response_error().status_code(),
    };
    if let Some(state) = state {
        state.metrics.requests.with_label_values(&[&method, status.as_str()]).inc();
    }
    response
}

fn prepare(connection: &dyn Any) {
    type Tls = actix_tls::accept::rustls_0_23::TlsStream<rt::net::TcpStream>;
    let stream = match connection.downcast_ref::<Tls>() {
        Some(stream) => Some(stream.get_ref().0),
        None => connection.downcast_ref::<rt::net::TcpStream>(),
    };
    if let Some(stream) = stream {
        // Small messages in both directions: waiting for company costs 40 ms each.
        let _ = stream.set_nodelay(true);
        let _ = rustix::net::sockopt::set_tcp_user_timeout(stream, UNREAD_MAX_MS);
    }
}

/// Knows the users: at first, whenever they change, and now and then.
async fn follow_users(state: web::Data<GatewayState>) {
    let mut again = interval(USERS_EVERY);
    let mut events = None;
    loop {
        if events.is_none() {
            events = state.client.events_named(ActorKind::Control, &["users_changed"]).await.ok();
        }
        match state.client.control().list_users().await {
            Ok(users) => state.users.replace(users),
            Err(fault) => tracing::warn!(%fault, "the users cannot be read"),
        }
        loop {
            tokio::select! {
                _ = again.tick() => break,
                event = async { match &mut events {
                    Some(events) => events.next().await,
                    None => std::future::pending().await,
                } } => match event {
                    Some(_) => break,
                    None => events = None,
                }
            }
        }
    }
}

/// Knows what the kernels do.
async fn follow_events(state: web::Data<GatewayState>) {
    loop {
        if let Ok(mut events) = state.client.events_named(ActorKind::Kernel, &TELLING).await {
            while let Some(event) = events.next().await {
                state.activity.heard(&event);
            }
        }
        sleep(FOLLOW_PAUSE).await;
    }
}

fn tls_config((cert, key): &(PathBuf, PathBuf)) -> Result<rustls::ServerConfig, GatewayError> {
    let open = |path: &PathBuf| {
        std::fs::File::open(path)
            .map(io::BufReader::new)
            .map_err(|error| GatewayError::Tls { path: path.clone(), why: error.to_string() })
    };
    let fail = |path: &PathBuf, why: String| GatewayError::Tls { path: path.clone(), why };
    let chain: Vec<CertificateDer<'static>> = rustls_pemfile::certs(&mut open(cert)?)
        .collect::<Result<_, _>>()
        .map_err(|error| fail(cert, error.to_string()))?;
    let key_der: PrivateKeyDer<'static> = rustls_pemfile::private_key(&mut open(key)?)
        .map_err(|error| fail(key, error.to_string()))?
        .ok_or_else(|| fail(key, "it holds no private key".to_owned()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| fail(cert, error.to_string()))?
        .with_no_client_auth()
        .with_single_cert(chain, key_der)
        .map_err(|error| fail(cert, error.to_string()))
}
fn workers() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    (cores / 2).clamp(1, WORKERS_MAX)
}
