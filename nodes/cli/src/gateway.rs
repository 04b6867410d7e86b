//! `callboard gateway`, and the gateway of `up`.

use std::{net::SocketAddr, path::PathBuf};

use callboard_gateway::{Gateway, GatewayError, GatewayOptions};
use callboard_protocol::OwnerId;
use clap::Args;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    context::Context,
    exit::{Exit, Failure, Outcome},
};

/// Arguments of `gateway`.
#[derive(Debug, Args)]
pub struct GatewayArgs {
    /// Where to listen.
    #[arg(long, default_value = "127.0.0.1:8989", value_name = "ADDRESS")]
    pub listen: SocketAddr,
    /// Serve TLS with this certificate chain, a PEM file.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// The certificate's private key, a PEM file.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Let pages of this origin use it, such as https://lab.example.org; '*' is any. May be repeated.
    #[arg(long, value_name = "ORIGIN")]
    pub allow_origin: Vec<String>,
    /// Let whoever presents no token in, as this user.
    #[arg(long, value_name = "USER", value_parser = owner)]
    pub anonymous: Option<OwnerId>,
    /// How many replicas the kernels get: 1, 3 or 5.
    #[arg(long, default_value_t = 3, value_parser = crate::args::replicas)]
    pub replicas: u8,
}

fn owner(text: &str) -> Result<OwnerId, String> {
    OwnerId::new(text).map_err(|error| error.to_string())
}

impl From<GatewayError> for Failure {
    fn from(error: GatewayError) -> Self {
        let exit = match error {
            GatewayError::Listen { .. } => Exit::Environment,
            GatewayError::Tls { .. } => Exit::Usage,
            GatewayError::Serving(_) => Exit::Failed,
            GatewayError::Metrics(_) => Exit::Internal,
        };
        Self::new(exit, error)
    }
}

/// Serves until SIGINT or SIGTERM.
///
/// # Errors
/// A [`Failure`] if there is no cluster, or the address cannot be had.
pub async fn run(context: &Context, args: GatewayArgs) -> Outcome {
    let fail = |error| Failure::environment(format!("cannot listen for signals: {error}"));
    let mut interrupt = signal(SignalKind::interrupt()).map_err(fail)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(fail)?;
    let client = context.connect().await?;
    let scheme = if args.tls_cert.is_some() { "https" } else { "http" };
    let gateway = Gateway::bind(
        client,
        GatewayOptions {
            listen: args.listen,
            tls: args.tls_cert.zip(args.tls_key),
            allow_origins: args.allow_origin,
            anonymous: args.anonymous,
            replicas: args.replicas,
            ..GatewayOptions::default()
        },
    )?;
    let url = format!("{scheme}://{}", gateway.address());
    context.printer.data(&json!({ "ready": true, "url": url }), |_| {
        format!(
            "ready: {url}; next: jupyter lab --gateway-url={url} --GatewayClient.auth_token=TOKEN, with a \
             token from `callboard user token NAME`"
        )
    })?;
    gateway
        .serve(async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        })
        .await?;
    Ok(Exit::Ok)
}
