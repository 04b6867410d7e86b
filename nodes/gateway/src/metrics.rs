//! What Prometheus sees at `/metrics`.

use prometheus::{
    Encoder, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
    TextEncoder,
};

/// Upper bounds of the histogram of starts, in seconds.
const START_BUCKETS_S: [f64; 8] = [0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 40.0];

/// The gateway's own figures.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    pub(crate) requests: IntCounterVec,
    pub(crate) websockets: IntGauge,
    pub(crate) messages: IntCounterVec,
    pub(crate) refused_logins: IntCounter,
    pub(crate) start_seconds: Histogram,
}

impl Metrics {
    /// # Errors
    /// If two figures have one name, which is a defect.
    pub(crate) fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let counter = |name: &str, help: &str| {
            let counter = IntCounter::new(name, help)?;
            registry.register(Box::new(counter.clone()))?;
            Ok::<_, prometheus::Error>(counter)
        };
        let counters = |name: &str, help: &str, labels: &[&str]| {
            let counters = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(counters.clone()))?;
            Ok::<_, prometheus::Error>(counters)
        };
        let requests = counters(
            "callboard_gateway_requests_total",
            "HTTP requests by method and status",
            &["method", "status"],
        )?;
        let messages = counters(
            "callboard_gateway_messages_total",
            "Jupyter messages by direction and channel",
            &["direction", "channel"],
        )?;
        let refused_logins =
            counter("callboard_gateway_refused_logins_total", "Requests without a valid token")?;
        let websockets = IntGauge::new("callboard_gateway_websockets", "Open websockets")?;
        registry.register(Box::new(websockets.clone()))?;
        let options = HistogramOpts::new(
            "callboard_gateway_kernel_start_seconds",
            "From POST /api/kernels to a kernel that answers",
        );
        let start_seconds = Histogram::with_opts(options.buckets(START_BUCKETS_S.to_vec()))?;
        registry.register(Box::new(start_seconds.clone()))?;
        Ok(Self { registry, requests, websockets, messages, refused_logins, start_seconds })
    }

    /// The figures in Prometheus's text format.
    pub(crate) fn text(&self) -> Result<Vec<u8>, prometheus::Error> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}
