//! Why a proxy could not serve, or ends.

use std::{io, path::PathBuf};

use callboard_protocol::Fault;

/// Why a proxy could not serve, or ends.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// The connection file is missing or says what no front-end would.
    #[error("the connection file {} cannot be used: {why}", path.display())]
    Connection {
        /// Which.
        path: PathBuf,
        /// What is wrong, and what to do.
        why: String,
    },
    /// A socket of the connection file cannot be had.
    #[error(
        "cannot listen on {endpoint}, which the connection file names: {why}. Is another kernel \
         running with the same file?"
    )]
    Listen {
        /// Where.
        endpoint: String,
        /// Why.
        why: String,
    },
    /// Signals cannot be listened for.
    #[error("cannot listen for signals: {0}")]
    Signals(io::Error),
    /// What the cluster said.
    #[error(transparent)]
    Cluster(#[from] Fault),
}
