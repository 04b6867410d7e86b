//! What nodes say to each other about chunks, as MessagePack arrays: new fields go to the end, with
//! a default.

use bytes::{BufMut as _, Bytes, BytesMut};
use callboard_protocol::OwnerId;
use serde::{Deserialize, Serialize};

use crate::chunks::ChunkId;

pub(super) const VERB_GET: &str = "chunk-get";
pub(super) const VERB_PUT: &str = "chunk-put";
pub(super) const VERB_LACK: &str = "chunk-lack";
pub(super) const VERB_SEND: &str = "chunk-send";
pub(super) const VERB_SEAL: &str = "chunk-seal";
pub(super) const VERB_FETCH: &str = "chunk-fetch";

/// `chunk-get`: one piece of one chunk. Kept for nodes of the version before `chunk-fetch`.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Get {
    pub owner: OwnerId,
    pub id: ChunkId,
    pub offset: u64,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum GetAnswer {
    Piece { length: u64, bytes: Bytes },
    Missing,
}

/// `chunk-put`: one piece of one chunk. Kept for nodes of the version before `chunk-send`.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Put {
    pub owner: OwnerId,
    pub id: ChunkId,
    pub length: u64,
    pub offset: u64,
    pub bytes: Bytes,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum PutAnswer {
    /// Go on from this offset.
    Continue(u64),
    /// The chunk is there and durable.
    Durable,
    Refused(String),
}

/// `chunk-lack`: which of these are not here?
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Lack {
    pub owner: OwnerId,
    pub ids: Ids,
    /// Whether the bytes are to be checked, and the chunks kept for the asker: it is going to name
    /// them.
    pub verify: bool,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct LackAnswer {
    /// Positions in the list asked for.
    pub lacking: Vec<u32>,
    /// Whether some of the others have arrived and are not durable yet.
    pub unsealed: bool,
}

/// A part of a chunk, often the whole.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Piece {
    pub id: Ids,
    pub length: u64,
    pub offset: u64,
    pub bytes: Bytes,
}

/// `chunk-send`: pieces in any order.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Send {
    pub owner: OwnerId,
    pub pieces: Vec<Piece>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum SendAnswer {
    Taken,
    /// There is too much on its way: try again in a moment.
    Busy,
    Refused(String),
    /// The disk is full.
    NoRoom(String),
}

/// `chunk-seal`: make what arrived of these durable.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Seal {
    pub owner: OwnerId,
    pub ids: Ids,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum SealAnswer {
    /// All of them are there and durable.
    Durable,
    /// These positions did not arrive.
    Lacking(Vec<u32>),
    Refused(String),
    /// The disk is full.
    NoRoom(String),
}

/// `chunk-fetch`: as many of these as fit into the answer; the first from an offset on.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Fetch {
    pub owner: OwnerId,
    pub ids: Ids,
    pub offset: u64,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct FetchAnswer {
    pub pieces: Vec<Piece>,
    /// Positions of chunks that are not here.
    pub missing: Vec<u32>,
}

/// Chunk ids, 32 bytes each, one after the other.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Ids(Bytes);

const ID_LENGTH: usize = 32;

impl Ids {
    pub(super) fn new(ids: &[ChunkId]) -> Self {
        let mut bytes = BytesMut::with_capacity(ids.len() * ID_LENGTH);
        ids.iter().for_each(|id| bytes.put_slice(id.as_bytes()));
        Self(bytes.freeze())
    }

    pub(super) fn to_vec(&self) -> Vec<ChunkId> {
        let (ids, _) = self.0.as_chunks::<ID_LENGTH>();
        ids.iter().map(|id| ChunkId::from(*id)).collect()
    }

    /// The only id of a piece.
    pub(super) fn one(&self) -> Option<ChunkId> {
        self.0.as_ref().try_into().ok().map(|id: [u8; ID_LENGTH]| ChunkId::from(id))
    }
}

/// Positions in a list of those for which `is_wanted` holds.
pub(super) fn positions(ids: &[ChunkId], is_wanted: impl Fn(&ChunkId) -> bool) -> Vec<u32> {
    (0..).zip(ids).filter(|(_, id)| is_wanted(id)).map(|(position, _)| position).collect()
}

/// The ids at these positions.
pub(super) fn at(ids: &[ChunkId], positions: &[u32]) -> Vec<ChunkId> {
    positions.iter().filter_map(|at| ids.get(*at as usize).copied()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::types::{decode, encode};

    #[test]
    fn messages_keep_their_first_version() {
        let (owner, id) = (OwnerId::default(), ChunkId::from([0x11; 32]));
        let (name, ids) = (hex::encode("default"), "11".repeat(32));
        let is = |bytes: Vec<u8>, golden: String| assert_eq!(hex::encode(bytes), golden);
        let lack = Lack { owner: owner.clone(), ids: Ids::new(&[id]), verify: true };
        is(encode(&lack).unwrap(), format!("93a7{name}c420{ids}c3"));
        let lacking = LackAnswer { lacking: vec![3], unsealed: false };
        is(encode(&lacking).unwrap(), "929103c2".to_owned());
        let bytes = Bytes::from_static(b"ab");
        let piece = Piece { id: Ids::new(&[id]), length: 5, offset: 2, bytes };
        let send = Send { owner: owner.clone(), pieces: vec![piece] };
        is(encode(&send).unwrap(), format!("92a7{name}9194c420{ids}0502c4026162"));
        let no_room = SendAnswer::NoRoom("x".to_owned());
        is(encode(&no_room).unwrap(), format!("81a6{}a178", hex::encode("NoRoom")));
        is(encode(&SealAnswer::Durable).unwrap(), format!("a7{}", hex::encode("Durable")));
        let fetch = Fetch { owner, ids: Ids::new(&[id]), offset: 7 };
        is(encode(&fetch).unwrap(), format!("93a7{name}c420{ids}07"));
        let read: Fetch = decode(&encode(&fetch).unwrap()).unwrap();
        assert_eq!((read.ids.to_vec(), read.ids.one(), read.offset), (vec![id], Some(id), 7));
    }
}
