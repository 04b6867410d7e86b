//! Why a data directory cannot be used.

use std::{
    io,
    path::{Path, PathBuf},
};

use callboard_protocol::NodeId;

/// Why a data directory cannot be used, as a sentence with a next step.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// A running node uses it.
    #[error(
        "{} is in use by {holder}: stop that node first, or give this one another --data",
        root.display()
    )]
    InUse {
        /// The directory.
        root: PathBuf,
        /// Who uses it, such as `process 4711`.
        holder: String,
    },
    /// It belongs to another node.
    #[error(
        "{} belongs to {owner}, not to {asked}: use --id {owner}, or give {asked} a directory of its own",
        root.display()
    )]
    OtherNode {
        /// The directory.
        root: PathBuf,
        /// Whose it is.
        owner: NodeId,
        /// Who wanted to use it.
        asked: NodeId,
    },
    /// It was made on another machine.
    #[error(
        "{} was made on another machine. If it was moved here for good and the node over there will \
         never run again, start once with --adopt-directory; if it is a copy, start with an empty \
         directory instead: two nodes on one log lose data",
        root.display()
    )]
    OtherMachine {
        /// The directory.
        root: PathBuf,
    },
    /// It was written by another version.
    #[error(
        "{} has format {found}, this version of Callboard reads format {known}: \
         start it with the version that wrote it",
        path.display()
    )]
    Format {
        /// The file that says so.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// Ours.
        known: u32,
    },
    /// A file does not hold what it should.
    #[error(
        "{} cannot be used: {why}; restore it from a copy, or start with an empty directory, and the \
         node's members are rebuilt from the others",
        path.display()
    )]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The file system refused.
    #[error("cannot {what} {}: {source}; check its owner, mode and free space", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl DataDirError {
    pub(super) fn io(what: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { what, path: path.to_owned(), source }
    }
}
