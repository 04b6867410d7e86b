//! `callboard kernel backup` and `restore`: one state of one kernel as a file.
//!
//! The file is a gzipped tar archive: `backup.json` says what it is, `groups` what the state
//! consists of (as in the kernel's log), `chunks/<hash>` holds the bytes. Everything is named by its
//! hash; a file is read to its end and checked before anything is started from it.

mod file;
mod restore;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use callboard_client::KernelClient;
use callboard_policy::terms::{Hash, Part, StateGroup};
use callboard_protocol::history::{GetChunk, GetManifest};
use serde_json::json;

use crate::{
    context::Context,
    exit::{Exit, Failure, Outcome},
    output::say,
};
use file::{About, Writer};
pub use restore::restore;

/// Runs `kernel backup`.
///
/// # Errors
/// A [`Failure`] if there is no such kernel or state, or the file cannot be written.
pub async fn backup(context: &Context, kernel: &str, path: &Path, at: Option<String>) -> Outcome {
    if path.exists() {
        let text = format!("{} exists already: choose another name, or remove it", path.display());
        return Err(Failure::usage(text));
    }
    let (client, spec) = context.find(kernel).await?;
    let client = client.kernel(spec.kernel);
    let (mut about, groups) = manifest(&client, at).await?;
    about.kernel = spec.kernel.to_string();
    about.name.clone_from(&spec.name);
    let beside = part_of(path);
    let written = write(&client, &beside, about, &groups).await;
    let about = match written {
        Ok(about) => about,
        Err(failure) => {
            let _ = std::fs::remove_file(&beside);
            return Err(failure);
        }
    };
    std::fs::rename(&beside, path).map_err(|error| unwritable(path, &error))?;
    say(&format!("the state after cell {} of kernel {} is in {}", about.cell, spec.kernel, path.display()));
    let bytes = std::fs::metadata(path).map(|it| it.len()).unwrap_or_default();
    let data = json!({ "kernel": about.kernel, "cell": about.cell, "file": path, "bytes": bytes });
    context.printer.data(&data, |_| path.display().to_string())?;
    Ok(Exit::Ok)
}

fn part_of(path: &Path) -> PathBuf {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".part");
    PathBuf::from(beside)
}

fn unwritable(path: &Path, error: &dyn std::fmt::Display) -> Failure {
    Failure::new(Exit::Failed, format!("cannot write {}: {error}", path.display()))
}

/// What a state consists of, all pages of it.
async fn manifest(
    client: &KernelClient,
    at: Option<String>,
) -> Result<(About, Vec<(String, StateGroup)>), Failure> {
    let mut groups: Vec<(String, StateGroup)> = Vec::new();
    let mut at = at;
    loop {
        let asked = GetManifest { at, skip: groups.len() as u64 };
        let page = client.manifest(&asked).await?;
        let more: Vec<(String, StateGroup)> = rmp_serde::from_slice(&page.groups)
            .map_err(|error| Failure::new(Exit::Internal, format!("a page cannot be read: {error}")))?;
        groups.extend(more);
        if !page.more {
            let about = About::new(page.cell, page.refused, page.execution_count);
            return Ok((about, groups));
        }
        at = Some(page.at);
    }
}

async fn write(
    client: &KernelClient,
    path: &Path,
    about: About,
    groups: &[(String, StateGroup)],
) -> Result<About, Failure> {
    let mut writer = Writer::create(path, about, groups)?;
    let mut written = BTreeSet::new();
    for (hash, is_index) in named(groups) {
        let bytes = fetch(client, hash).await?;
        let listed = if is_index { listed(hash, &bytes)? } else { Vec::new() };
        if written.insert(hash) {
            writer.chunk(hash, &bytes)?;
        }
        for hash in listed {
            if written.insert(hash) {
                writer.chunk(hash, &fetch(client, hash).await?)?;
            }
        }
    }
    writer.finish()
}

/// The chunks that groups name, and whether each is an index of more.
fn named(groups: &[(String, StateGroup)]) -> BTreeSet<(Hash, bool)> {
    let parts = groups.iter().flat_map(|(_, group)| &group.parts);
    parts
        .filter_map(|part| match part {
            Part::Inline(_) => None,
            Part::Chunk { hash, .. } => Some((*hash, false)),
            Part::Chunked { index, .. } => Some((*index, true)),
        })
        .collect()
}

/// What an index lists.
fn listed(hash: Hash, bytes: &[u8]) -> Result<Vec<Hash>, Failure> {
    callboard_kernel::listed_by(bytes).ok_or_else(|| {
        let name = hex(&hash);
        Failure::new(Exit::Failed, format!("chunk {name} is no list of chunks this version can read"))
    })
}

fn hex(hash: &Hash) -> String {
    blake3::Hash::from_bytes(*hash).to_hex().to_string()
}

/// A chunk from the kernel's leader, checked.
async fn fetch(client: &KernelClient, hash: Hash) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    loop {
        let asked = GetChunk { hash: hex(&hash), offset: bytes.len() as u64 };
        let piece = client.chunk(&asked).await?;
        bytes.extend_from_slice(&piece.bytes);
        if bytes.len() as u64 >= piece.length {
            break;
        }
        if piece.bytes.is_empty() {
            let text = format!("chunk {} ended early: try again", hex(&hash));
            return Err(Failure::new(Exit::Failed, text));
        }
    }
    if *blake3::hash(&bytes).as_bytes() == hash {
        return Ok(bytes);
    }
    let text = format!("chunk {} came damaged: try again", hex(&hash));
    Err(Failure::new(Exit::Failed, text))
}
