//! Variables whose bytes found no room: left out of the state by name, the rest of the cell stands.

use std::collections::{BTreeMap, HashSet};

use bytes::Bytes;
use callboard_policy::terms::{Hash, LoggedOutput, Part, StateDelta};
use callboard_protocol::kernel::Refused;

/// The groups that were refused and still live in the Python process, which hands a group over only
/// when it changes: their refusal goes with every cell until then.
///
/// The bytes are kept as long: the process sends only what changes, so what it takes to be stored has
/// to be stored with the next change.
#[derive(Debug, Default)]
pub(crate) struct WithoutRoom {
    groups: BTreeMap<String, Owed>,
}

#[derive(Debug)]
struct Owed {
    refused: Vec<Refused>,
    chunks: Vec<Bytes>,
}

impl WithoutRoom {
    /// Adds to what a cell changed the refusals of earlier cells that still hold, and to the `chunks`
    /// to be stored what is owed of the groups that changed.
    pub(crate) fn carry_on(&mut self, delta: &mut StateDelta, chunks: &mut Vec<Bytes>) {
        for (id, _) in &delta.upsert {
            if let Some(owed) = self.groups.remove(id) {
                chunks.extend(owed.chunks);
            }
        }
        for id in &delta.removed {
            self.groups.remove(id);
        }
        delta.refused.extend(self.groups.values().flat_map(|owed| &owed.refused).cloned());
    }

    /// Takes the groups and outputs that need `chunks` out of what a cell changed.
    pub(crate) fn refuse(
        &mut self,
        outputs: &mut Vec<LoggedOutput>,
        delta: &mut StateDelta,
        chunks: &[Bytes],
        why: &str,
    ) {
        let lost: HashSet<Hash> =
            chunks.iter().map(|bytes| *blake3::hash(bytes).as_bytes()).collect();
        let is_lost = |part: &Part| match part {
            Part::Inline(_) => false,
            Part::Chunk { hash, .. } | Part::Chunked { index: hash, .. } => lost.contains(hash),
        };
        outputs.retain(|output| !is_lost(&output.message));
        let (gone, kept): (Vec<_>, Vec<_>) = std::mem::take(&mut delta.upsert)
            .into_iter()
            .partition(|(_, group)| group.parts.iter().any(is_lost));
        delta.upsert = kept;
        for (id, group) in gone {
            let reason = format!("{why}; then assign it again to have it kept");
            let refused: Vec<Refused> = group
                .names
                .into_iter()
                .map(|name| Refused { name, reason: reason.clone() })
                .collect();
            delta.refused.extend(refused.iter().cloned());
            // An older value must not come back in its place.
            delta.removed.push(id.clone());
            self.groups.insert(id, Owed { refused, chunks: chunks.to_vec() });
        }
    }
}

#[cfg(test)]
mod tests {
    use callboard_policy::terms::StateGroup;

    use super::*;

    fn chunk(bytes: &'static [u8]) -> Part {
        Part::Chunk { hash: *blake3::hash(bytes).as_bytes(), length: bytes.len() as u64 }
    }

    fn group(name: &str, parts: Vec<Part>) -> (String, StateGroup) {
        let names = vec![name.to_owned()];
        (format!("g-{name}"), StateGroup { names, kind: "variables".to_owned(), parts })
    }

    fn names(delta: &StateDelta) -> Vec<&str> {
        delta.refused.iter().map(|it| it.name.as_str()).collect()
    }

    #[test]
    fn what_found_no_room_is_refused_by_name_until_it_changes_and_the_rest_is_kept() {
        let mut without_room = WithoutRoom::default();
        let small = Part::Inline(Bytes::from_static(b"small"));
        let mut delta = StateDelta {
            upsert: vec![
                group("big", vec![small.clone(), chunk(b"new")]),
                group("small", vec![small.clone()]),
                group("known", vec![chunk(b"old")]),
            ],
            ..StateDelta::default()
        };
        let chunks = [Bytes::from_static(b"new")];
        without_room.refuse(&mut Vec::new(), &mut delta, &chunks, "no room: free some");
        let kept: Vec<_> = delta.upsert.iter().map(|(id, _)| id.as_str()).collect();
        assert_eq!(kept, ["g-small", "g-known"]);
        assert_eq!((names(&delta), &delta.removed), (vec!["big"], &vec!["g-big".to_owned()]));
        assert!(delta.refused[0].reason.contains("free some; then assign it again"));
        let (mut next, mut owed) = (StateDelta::default(), Vec::new());
        without_room.carry_on(&mut next, &mut owed);
        assert_eq!((names(&next), owed.len()), (vec!["big"], 0));
        let mut changed =
            StateDelta { upsert: vec![group("big", vec![small])], ..StateDelta::default() };
        without_room.carry_on(&mut changed, &mut owed);
        assert!(changed.refused.is_empty());
        assert_eq!(owed, chunks, "the process takes them to be stored");
    }
}
