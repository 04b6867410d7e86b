//! Logs and traces: set up once per process, carried across the bus in envelopes.
//!
//! Logs go to standard error, filtered by `CALLBOARD_LOG`. Traces go to an OpenTelemetry collector
//! if one is configured; without one, or without the feature `otlp`, a trace context that arrives is
//! passed on unchanged, so that a hop without tracing does not cut a trace in two.

#[cfg(feature = "otlp")]
mod http_client;
#[cfg(feature = "otlp")]
mod otlp;

use callboard_protocol::Envelope;
use tracing::Span;
use tracing_subscriber::{EnvFilter, layer::SubscriberExt as _, util::SubscriberInitExt as _};

/// Environment variable with the filter of what is logged, such as `info,callboard_transport=debug`.
pub const LOG_VARIABLE: &str = "CALLBOARD_LOG";

/// Why there is no telemetry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TelemetryError {
    /// The filter cannot be read.
    #[error(
        "{LOG_VARIABLE} is not a log filter: {0}; write for example `info` or `warn,callboard_transport=debug`"
    )]
    BadFilter(String),
    /// The collector's address cannot be used.
    #[error(
        "cannot send traces to '{endpoint}': {why}; expected an address such as http://127.0.0.1:4318"
    )]
    BadEndpoint {
        /// The address.
        endpoint: String,
        /// What is wrong with it.
        why: String,
    },
    /// Somebody set up logging before.
    #[error("logging was already set up in this process: {0}")]
    AlreadySet(String),
}

/// What is logged unless [`LOG_VARIABLE`] says otherwise. openraft reports every message to a member
/// that is away as an error; what follows from it is logged by ourselves.
const DEFAULT_FILTER: &str = "warn,openraft=off";

/// Keeps telemetry running; dropping it sends what is left of the traces.
#[derive(Debug)]
#[must_use = "dropping the guard ends tracing"]
pub struct TelemetryGuard {
    #[cfg(feature = "otlp")]
    provider: Option<opentelemetry_sdk::trace::SdkTracerProvider>,
}

impl Drop for TelemetryGuard {
    fn drop(&mut self) {
        #[cfg(feature = "otlp")]
        if let Some(provider) = self.provider.take()
            && let Err(error) = provider.shutdown()
        {
            tracing::warn!(%error, "the last traces could not be sent");
        }
    }
}

/// Sets up logging for the process, and tracing if an OTLP/HTTP collector is given.
///
/// # Errors
/// Any [`TelemetryError`].
pub fn init(service: &str, otlp_endpoint: Option<&str>) -> Result<TelemetryGuard, TelemetryError> {
    let filter = match std::env::var(LOG_VARIABLE) {
        Ok(text) => EnvFilter::try_new(&text)
            .map_err(|error| TelemetryError::BadFilter(error.to_string()))?,
        Err(_) => EnvFilter::new(DEFAULT_FILTER),
    };
    let already = |error: tracing_subscriber::util::TryInitError| {
        TelemetryError::AlreadySet(error.to_string())
    };
    let logs = {
        use tracing_subscriber::Layer as _;
        let is_terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
        tracing_subscriber::fmt::layer()
            .with_ansi(is_terminal)
            .with_writer(std::io::stderr)
            .with_filter(filter)
    };
    let registry = tracing_subscriber::registry().with(logs);
    #[cfg(feature = "otlp")]
    {
        let provider = otlp_endpoint.map(|url| otlp::provider(service, url)).transpose()?;
        registry.with(provider.as_ref().map(otlp::layer)).try_init().map_err(already)?;
        Ok(TelemetryGuard { provider })
    }
    #[cfg(not(feature = "otlp"))]
    {
        let _ = service;
        if let Some(endpoint) = otlp_endpoint {
            let why = "this build has no tracing; build with the feature `otlp`".to_owned();
            return Err(TelemetryError::BadEndpoint { endpoint: endpoint.to_owned(), why });
        }
        registry.try_init().map_err(already)?;
        Ok(TelemetryGuard {})
    }
}

/// Puts the current span's trace context into an envelope; without one, the envelope keeps its own.
pub fn inject(envelope: &mut Envelope) {
    inject_from(&Span::current(), envelope);
}

/// Puts a span's trace context into an envelope; without one, the envelope keeps its own.
pub fn inject_from(span: &Span, envelope: &mut Envelope) {
    #[cfg(feature = "otlp")]
    if let Some(traceparent) = otlp::traceparent(span) {
        envelope.traceparent = Some(traceparent);
    }
    #[cfg(not(feature = "otlp"))]
    let _ = (span, envelope);
}

/// Makes `span` a child of the trace that the envelope carries, if it carries one.
#[must_use]
pub fn continued(span: Span, envelope: &Envelope) -> Span {
    #[cfg(feature = "otlp")]
    if let Some(parent) = envelope.traceparent.as_deref().and_then(otlp::parse_traceparent) {
        otlp::set_parent(&span, parent);
    }
    #[cfg(not(feature = "otlp"))]
    let _ = envelope;
    span
}
