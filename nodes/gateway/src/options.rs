//! How a gateway is run.

use std::{net::SocketAddr, path::PathBuf};

use callboard_protocol::OwnerId;

/// How a gateway is run.
#[derive(Debug, Clone)]
pub struct GatewayOptions {
    /// Where it listens; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Certificate chain and private key, as PEM files; none is plain HTTP.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// Origins of pages whose scripts may use it, such as `https://lab.example.org`; `*` is any.
    pub allow_origins: Vec<String>,
    /// As whom requests without a token are let in; none refuses them.
    pub anonymous: Option<OwnerId>,
    /// How many replicas a kernel gets: 1, 3 or 5.
    pub replicas: u8,
    /// Longest message that is sent to a client as it is, in bytes; a longer one becomes a link.
    pub message_bytes_max: usize,
}

impl Default for GatewayOptions {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            tls: None,
            allow_origins: Vec::new(),
            anonymous: None,
            replicas: 3,
            message_bytes_max: 9 << 20,
        }
    }
}
