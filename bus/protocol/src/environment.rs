//! Python environments: what a node has, and what a kernel needs of one.
//!
//! Verb of `node.<id>`: `environment` takes nothing and answers an [`Environment`].

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A Python environment. As a kernel's needs, it lists what the session has imported. Stored: add
/// defaulted fields at the end only.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Environment {
    /// Digest of all that follows, as heartbeats carry it; empty in a kernel's needs.
    #[serde(default)]
    pub id: String,
    /// Version of the interpreter, such as `3.11.7`.
    pub python: String,
    /// Which interpreter, such as `CPython`.
    pub implementation: String,
    /// What it was built for, such as `linux-x86_64`.
    pub platform: String,
    /// Installed distributions: normal name to version.
    pub distributions: BTreeMap<String, String>,
    /// Kernelspecs of other languages that are installed, by name; none in a kernel's needs.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub kernelspecs: BTreeMap<String, Kernelspec>,
}

/// A kernelspec of another language than Python, as people choose it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kernelspec {
    /// What people know it by.
    pub display_name: String,
    /// Its language, as notebooks name it.
    pub language: String,
}
