//! Why a node does not start.

use std::path::PathBuf;

use callboard_kernel::python::PackageError;
use callboard_protocol::NodeId;
use callboard_replicated::{ChunkError, OpenError};
use callboard_runtime::StartError;
use callboard_transport::{BusError, ConnectError};

use crate::data_dir::DataDirError;

/// Why a node does not start, as a sentence with a next step.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The data directory cannot be used.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// Leftovers of a former life could not be removed.
    #[error("cannot clear {}: {source}; remove what is in it", path.display())]
    Sweep {
        /// The run directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The broker refuses the credentials, or they make no sense.
    #[error(transparent)]
    Connect(ConnectError),
    /// The broker did not answer for as long as the node waits.
    #[error("{last}; waited {waited_s} s")]
    NoBroker {
        /// What the last attempt said, with a next step.
        last: ConnectError,
        /// How long was waited, in seconds.
        waited_s: u64,
    },
    /// The bus refused something that a node needs.
    #[error("the bus does not let this node work: {0}; give it the credentials file of a node")]
    Bus(#[from] BusError),
    /// The log or a group could not be opened.
    #[error("cannot open the node's log: {0}")]
    Log(#[from] OpenError),
    /// The chunks could not be opened.
    #[error("cannot open the node's chunks: {0}")]
    Chunks(#[from] ChunkError),
    /// The kernels' Python package could not be written.
    #[error(transparent)]
    Package(#[from] PackageError),
    /// Another process runs under this node's id.
    #[error("{0}")]
    Double(String),
    /// The others founded the cluster without this node, though they named it.
    #[error(
        "the recorded founders do not name {0}: start it with an empty data directory and it joins"
    )]
    NotAFounder(NodeId),
    /// An actor did not start.
    #[error("an actor of this node did not start: {0}")]
    Start(#[from] StartError),
    /// The process cannot receive signals.
    #[error("cannot listen for signals: {0}")]
    Signals(std::io::Error),
}
