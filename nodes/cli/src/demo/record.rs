//! What the demo writes down for the independent check.

use std::{fs, path::Path};

use serde::Serialize;

use crate::{exit::Failure, up::state::cannot};

/// The content of `record.json`.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Record {
    /// Credentials file of the cluster.
    pub(super) credentials: String,
    /// The kernel.
    pub(super) kernel: String,
    /// Every cell, in order.
    pub(super) cells: Vec<CellRecord>,
    /// Name that only the cell that was cut off would have bound.
    pub(super) never_bound: &'static str,
    /// Checksum of model and scores before everything was killed.
    pub(super) fingerprint: String,
    /// What took how long.
    pub(super) seconds: Vec<(String, f32)>,
}

/// A cell as its client saw it.
#[derive(Debug, Clone, Serialize)]
pub(super) struct CellRecord {
    /// Its name in the session.
    pub(super) name: String,
    /// Its request.
    pub(super) msg_id: String,
    /// Whether it was acknowledged; else it was interrupted.
    pub(super) completed: bool,
    /// Its outputs: place, and SHA-256 of the whole message.
    pub(super) outputs: Vec<(String, String)>,
}

impl Record {
    /// Writes it.
    ///
    /// # Errors
    /// A [`Failure`] if the folder cannot be written.
    pub(super) fn save(&self, path: &Path) -> Result<(), Failure> {
        let text = serde_json::to_vec_pretty(self).map_err(std::io::Error::other)?;
        fs::write(path, text).map_err(|error| cannot("write", path, &error))
    }
}
