//! Spans to an OTLP/HTTP collector, and W3C trace contexts.

use std::time::Duration;

use opentelemetry::{
    Context, KeyValue,
    trace::{
        SpanContext, SpanId, TraceContextExt as _, TraceFlags, TraceId, TraceState,
        TracerProvider as _,
    },
};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::{Resource, trace::SdkTracerProvider};
use tracing::{Span, Subscriber};
use tracing_opentelemetry::{OpenTelemetryLayer, OpenTelemetrySpanExt as _};
use tracing_subscriber::{
    Layer,
    filter::{LevelFilter, Targets},
    registry::LookupSpan,
};

use super::{TelemetryError, http_client::PlainHttp};

/// How long one export may take; a collector that is slower loses spans, never cells.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(2);

pub(super) fn provider(service: &str, url: &str) -> Result<SdkTracerProvider, TelemetryError> {
    let bad = |why: String| TelemetryError::BadEndpoint { endpoint: url.to_owned(), why };
    let parsed: http::Uri = url.parse().map_err(|error| bad(format!("{error}")))?;
    if parsed.scheme_str() != Some("http") {
        return Err(bad("only http is spoken; a collector on this machine can encrypt".to_owned()));
    }
    let endpoint = if parsed.path() == "/" {
        format!("{}/v1/traces", url.trim_end_matches('/'))
    } else {
        url.to_owned()
    };
    let exporter = SpanExporter::builder()
        .with_http()
        .with_http_client(PlainHttp::new(EXPORT_TIMEOUT))
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(endpoint)
        .with_timeout(EXPORT_TIMEOUT)
        .build()
        .map_err(|error| bad(error.to_string()))?;
    let resource = Resource::builder_empty()
        .with_attribute(KeyValue::new("service.name", service.to_owned()))
        .build();
    Ok(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build())
}

/// The layer that turns Callboard's spans of level `info` and above into trace spans.
pub(super) fn layer<S>(provider: &SdkTracerProvider) -> impl Layer<S> + use<S>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    // The exporter's own spans and those of the libraries would be traced without end.
    let ours = Targets::new().with_target("callboard", LevelFilter::INFO);
    OpenTelemetryLayer::new(provider.tracer("callboard")).with_filter(ours)
}

pub(super) fn traceparent(span: &Span) -> Option<String> {
    let context = span.context();
    let span = context.span();
    let span = span.span_context();
    span.is_valid().then(|| {
        let (trace, id, flags) = (span.trace_id(), span.span_id(), span.trace_flags().to_u8());
        format!("00-{trace}-{id}-{flags:02x}")
    })
}

/// Reads `<version>-<trace>-<span>-<flags>`; see <https://www.w3.org/TR/trace-context/>.
pub(super) fn parse_traceparent(text: &str) -> Option<SpanContext> {
    let mut parts = text.split('-');
    let (version, trace, span, flags) =
        (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let hex = |text: &str, length: usize| {
        text.len() == length && text.bytes().all(|b| b.is_ascii_hexdigit())
    };
    if !(hex(version, 2) && hex(trace, 32) && hex(span, 16) && hex(flags, 2))
        || version == "ff"
        || (version == "00" && parts.next().is_some())
    {
        return None;
    }
    let context = SpanContext::new(
        TraceId::from_hex(trace).ok()?,
        SpanId::from_hex(span).ok()?,
        TraceFlags::new(u8::from_str_radix(flags, 16).ok()?),
        true,
        TraceState::NONE,
    );
    context.is_valid().then_some(context)
}

pub(super) fn set_parent(span: &Span, parent: SpanContext) {
    // Fails where the span is not traced, and then there is nothing to do.
    let _ = span.set_parent(Context::new().with_remote_span_context(parent));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_valid_traceparent_is_read() {
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let read = parse_traceparent(good).unwrap();
        assert!(read.is_sampled() && read.is_remote());
        assert_eq!(read.trace_id().to_string(), "0af7651916cd43dd8448eb211c80319c");
        for bad in [
            "",
            "00-0-0-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x",
        ] {
            assert!(parse_traceparent(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn an_endpoint_that_cannot_work_is_refused_with_an_example() {
        for bad in ["", "127.0.0.1:4318", "https://collector:4318", "http://"] {
            let error = provider("test", bad).unwrap_err().to_string();
            assert!(error.contains("http://127.0.0.1:4318"), "{error}");
        }
    }
}
