//! Patches, dedupe and expansion, against what a fresh packing of the whole gives.

use std::collections::HashMap;

use super::*;
use crate::python::{CapturedGroup, PartPatch};

const CHUNK: usize = 256 << 10;

fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

fn captured(version: u64, base: Option<u64>, parts: Vec<CapturedPart>) -> Captured {
    let group = "variables:a".to_owned();
    let (names, kind) = (vec!["a".to_owned()], "variables".to_owned());
    let group = CapturedGroup { group, names, kind, version: Some(version), base, parts };
    Captured { upsert: vec![group], ..Captured::default() }
}

/// A stream and a buffer.
fn whole(version: u64, stream: &[u8], buffer: &[u8]) -> Captured {
    let part = |bytes: &[u8]| CapturedPart::Whole(Bytes::copy_from_slice(bytes));
    captured(version, None, vec![part(stream), part(buffer)])
}

fn patch(length: usize, changed: Vec<u32>, bytes: Vec<u8>) -> CapturedPart {
    let chunk = if length > 1 << 20 { CHUNK as u32 } else { 0 };
    CapturedPart::Patch(PartPatch { length: length as u64, chunk, changed, bytes: bytes.into() })
}

/// What a node keeps.
#[derive(Default)]
struct Node {
    store: HashMap<Hash, Bytes>,
    held: HeldState,
    stored_bytes: usize,
}

impl Node {
    fn take(&mut self, captured: Captured) -> Result<StateGroup, NotHeld> {
        let mut packer = Packer::new(&KernelLog::default());
        let delta = packer.delta(captured, &mut self.held)?;
        self.stored_bytes = 0;
        for chunk in packer.into_chunks() {
            self.stored_bytes += chunk.len();
            self.store.insert(*blake3::hash(&chunk).as_bytes(), chunk);
        }
        Ok(delta.upsert.into_iter().next().unwrap().1)
    }

    fn read(&self, part: &Part) -> Vec<u8> {
        pieces(part, |hash| self.store.get(hash).cloned()).unwrap().concat()
    }
}

#[test]
fn a_patched_buffer_is_the_buffer_packed_whole_and_costs_its_chunk_and_index() {
    let (mut node, mut buffer) = (Node::default(), noise(1, 40 * CHUNK + 99));
    node.take(whole(1, b"stream", &buffer)).unwrap();
    for (version, index) in [(2, 7), (3, 40), (4, 0)] {
        buffer[index * CHUNK + 5] ^= 1;
        let end = buffer.len().min((index + 1) * CHUNK);
        let changed = buffer[index * CHUNK..end].to_vec();
        let parts = vec![
            patch(b"stream".len(), vec![], vec![]),
            patch(buffer.len(), vec![index as u32], changed),
        ];
        let group = node.take(captured(version, Some(version - 1), parts)).unwrap();
        let fresh = Node::default().take(whole(1, b"stream", &buffer)).unwrap();
        assert_eq!(group, fresh);
        assert_eq!(node.read(&group.parts[1]), buffer);
        assert!(node.stored_bytes < CHUNK + 4096, "{} bytes stored", node.stored_bytes);
    }
}

#[test]
fn a_chunk_that_was_written_without_a_change_is_not_stored_again() {
    let (mut node, buffer) = (Node::default(), noise(2, 8 * CHUNK));
    let before = node.take(whole(1, b"s", &buffer)).unwrap();
    let same = buffer[3 * CHUNK..4 * CHUNK].to_vec();
    let parts = vec![patch(1, vec![], vec![]), patch(buffer.len(), vec![3], same)];
    assert_eq!(node.take(captured(2, Some(1), parts)).unwrap(), before);
    assert_eq!(node.stored_bytes, 0);
}

#[test]
fn a_stream_that_is_sent_whole_again_stores_what_is_new_in_it() {
    let (mut node, mut stream) = (Node::default(), noise(3, 16 << 20));
    node.take(whole(1, &stream, b"")).unwrap();
    stream.splice(1000..1000, *b"inserted");
    let group = node.take(whole(2, &stream, b"")).unwrap();
    assert_eq!(node.read(&group.parts[0]), stream);
    assert!(node.stored_bytes < 3 << 20, "{} bytes stored", node.stored_bytes);
}

#[test]
fn a_patch_for_something_else_is_refused() {
    let buffer = noise(4, 8 * CHUNK);
    let chunk = vec![0; CHUNK];
    let bad = |base, length, changed: Vec<u32>, bytes: Vec<u8>| {
        let mut node = Node::default();
        node.take(whole(1, b"s", &buffer)).unwrap();
        let parts = vec![patch(1, vec![], vec![]), patch(length, changed, bytes)];
        node.take(captured(2, base, parts)).unwrap_err()
    };
    let length = buffer.len();
    let refused = [
        bad(Some(9), length, vec![0], chunk.clone()),
        bad(None, length, vec![0], chunk.clone()),
        bad(Some(1), length + 1, vec![0], chunk.clone()),
        bad(Some(1), length, vec![8], chunk.clone()),
        bad(Some(1), length, vec![0], vec![0; CHUNK - 1]),
        bad(Some(1), length, vec![0], vec![0; CHUNK + 1]),
    ];
    assert!(refused.iter().all(|error| error.to_string().contains("variables:a")));
}

#[test]
fn every_chunk_of_a_log_is_found_through_its_indexes_or_the_missing_index_is_named() {
    let mut node = Node::default();
    let group = node.take(whole(1, &noise(5, 3 << 20), &noise(6, 2 << 20))).unwrap();
    let named = Named::of(&group.parts);
    assert_eq!((named.content.len(), named.indexes.len()), (0, 2));
    let all = named.expand(|index| listed_by(&node.store[index])).unwrap();
    assert_eq!(all, node.store.keys().copied().collect());
    let gone = *named.indexes.first().unwrap();
    let expanded = named.expand(|index| (*index != gone).then(Vec::new));
    assert_eq!(expanded, Err(gone));
}
