//! What the history costs, and what it shows of a cell.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use callboard_protocol::jupyter::JupyterMessage;
use serde::Deserialize;

use super::Before;
use crate::terms::entry::{Hash, Part, StateGroup};

/// Characters kept of a cell's first line.
const FIRST_LINE_CHARS_MAX: usize = 120;
/// What a chunk's name costs where it is written down.
const CHUNK_NAME_BYTES: u64 = 40;

/// The first line of a request's code that says something; what it is instead, if it has no code.
pub(in crate::terms) fn first_line(request: &Bytes) -> String {
    #[derive(Deserialize)]
    struct Code {
        code: String,
    }
    let Ok(message) = JupyterMessage::decode(request) else { return String::new() };
    let text = match (message.parse_content::<Code>(), message.parse_header()) {
        (Ok(Code { code }), _) => code,
        (Err(_), Ok(header)) => format!("({})", header.msg_type),
        (Err(_), Err(_)) => String::new(),
    };
    let line = text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
    line.chars().take(FIRST_LINE_CHARS_MAX).collect()
}

/// Bytes of a group's state.
pub(super) fn group_bytes(group: &StateGroup) -> u64 {
    group.parts.iter().map(Part::length).sum()
}

/// Bytes that a group costs where it is written down.
pub(super) fn inline_bytes(group: &StateGroup) -> u64 {
    let names: u64 = group.names.iter().map(|name| name.len() as u64).sum();
    let parts = group.parts.iter().map(|part| match part {
        Part::Inline(bytes) => bytes.len() as u64,
        Part::Chunk { .. } | Part::Chunked { .. } => CHUNK_NAME_BYTES,
    });
    names + parts.sum::<u64>()
}

/// Bytes of chunks that only the way back names: what was replaced less what stayed.
pub(super) fn chunks_lost<'a>(before: &Before, now: impl Iterator<Item = &'a StateGroup>) -> u64 {
    let kept: BTreeSet<Hash> = now.flat_map(StateGroup::chunks).map(|(hash, _)| hash).collect();
    let old = before.groups.iter().filter_map(|(_, group)| group.as_ref());
    let lost: BTreeMap<Hash, u64> =
        old.flat_map(StateGroup::chunks).filter(|(hash, _)| !kept.contains(hash)).collect();
    lost.values().sum()
}
