//! Names in paths. They are read by name, since a token may stand in the path before them.

use serde::Deserialize;

/// `/{id}`.
#[derive(Debug, Deserialize)]
pub(crate) struct Id {
    pub(crate) id: String,
}

/// `/{name}`.
#[derive(Debug, Deserialize)]
pub(crate) struct Name {
    pub(crate) name: String,
}

/// `/{name}/{file}`.
#[derive(Debug, Deserialize)]
pub(crate) struct File {
    pub(crate) name: String,
    pub(crate) file: String,
}

/// `/…/{cursor}`.
#[derive(Debug, Deserialize)]
pub(crate) struct OutputOf {
    pub(crate) cursor: String,
}
