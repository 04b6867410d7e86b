//! Chunks of a kernel's state by way of its leader, for a client that speaks to no node: a backup
//! reads them, a restore brings them.
//!
//! A chunk that is brought is durable on a majority before it is acknowledged, like one that a cell
//! made; only then may it be named.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use callboard_policy::terms::Hash;
use callboard_protocol::{
    Answer, Fault, FaultCode,
    control::Origin,
    history::{ChunkPiece, ChunkProgress, GetChunk, PutChunk},
};
use callboard_replicated::{CHUNK_LENGTH_MAX, ChunkId};
use callboard_transport::{Message, typed};

use super::{ReplicaState, chunks};

/// Bytes of a chunk in one answer. In base64 it stays under the broker's usual limit of 1 MiB.
const PIECE_BYTES: usize = 512 << 10;
/// Chunks that may arrive at once; each is held in memory until it is whole.
const ARRIVING_MAX: usize = 4;
/// How long a whole chunk may take to reach a majority: less than clients wait.
const STORE_WITHIN: Duration = Duration::from_secs(4);

/// Chunks on their way through the leader.
#[derive(Debug, Default)]
pub(super) struct Transfers {
    /// The one that was read last, so that its next piece needs no second reading.
    served: Arc<Mutex<Option<(Hash, Bytes)>>>,
    arriving: BTreeMap<ChunkId, Vec<u8>>,
}

fn bad(why: impl Into<String>) -> Fault {
    Fault::new(FaultCode::BadRequest, why)
}

fn hash_of(text: &str) -> Result<Hash, Fault> {
    let hash = blake3::Hash::from_hex(text);
    hash.map(|hash| *hash.as_bytes())
        .map_err(|_| bad(format!("'{text}' names no chunk: give 64 hexadecimal digits")))
}

impl ReplicaState {
    /// Answers with a piece of a chunk.
    pub(super) fn give_chunk(&self, message: &Message) {
        let asked = typed::decode::<GetChunk>(message)
            .and_then(|asked| Ok((hash_of(&asked.hash)?, asked.offset)));
        let (hash, offset) = match asked {
            Ok(asked) => asked,
            Err(fault) => return self.refuse(message, fault),
        };
        let Some(reply_to) = message.reply_to.clone() else { return };
        let (context, owner) = (self.args.context.clone(), self.args.spec.owner.clone());
        let (publisher, peers) = (self.publisher.clone(), self.peers());
        let served = self.transfers.served.clone();
        tokio::spawn(async move {
            let known = {
                let served = served.lock().unwrap_or_else(PoisonError::into_inner);
                served.as_ref().filter(|(last, _)| *last == hash).map(|(_, bytes)| bytes.clone())
            };
            let read = match known {
                Some(bytes) => Ok(bytes),
                None => {
                    let wanted = BTreeSet::from([hash]);
                    let read = chunks::read_all(&context, &owner, &peers, &wanted).await;
                    read.map(|bytes| bytes.into_values().next().unwrap_or_default())
                }
            };
            let answer = read.map_err(|why| Fault::new(FaultCode::NotFound, why)).map(|bytes| {
                let start = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
                let piece = bytes.slice(start..bytes.len().min(start + PIECE_BYTES));
                let length = bytes.len() as u64;
                *served.lock().unwrap_or_else(PoisonError::into_inner) = Some((hash, bytes));
                ChunkPiece { length, bytes: piece }
            });
            publisher.answer(&reply_to, &Answer::from(answer));
        });
    }

    /// Takes a piece of a chunk that an awaited state is going to name.
    pub(super) fn take_chunk(&mut self, message: &Message) {
        let taken = typed::decode::<PutChunk>(message).and_then(|piece| self.collect(piece));
        let (id, whole) = match taken {
            Ok((id, Some(whole))) => (id, whole),
            Ok((id, None)) => {
                let held = self.transfers.arriving.get(&id).map_or(0, Vec::len) as u64;
                return self.answer_with(message, Ok(ChunkProgress { held, is_durable: false }));
            }
            Err(fault) => return self.refuse(message, fault),
        };
        let Some(reply_to) = message.reply_to.clone() else { return };
        let (context, owner) = (self.args.context.clone(), self.args.spec.owner.clone());
        let (peers, majority) = (self.peers(), self.majority());
        let publisher = self.publisher.clone();
        tokio::spawn(async move {
            let held = whole.len() as u64;
            let spread = chunks::spread(&context, &owner, &peers, majority, vec![whole]);
            let answer = match tokio::time::timeout(STORE_WITHIN, spread).await {
                Ok(()) => Ok(ChunkProgress { held, is_durable: true }),
                Err(_) => Err(Fault::maybe_executed(
                    FaultCode::Unavailable,
                    format!(
                        "chunk {id} did not reach a majority of the kernel's nodes in time: see \
                         `callboard nodes`, then restore again"
                    ),
                )),
            };
            publisher.answer(&reply_to, &Answer::from(answer));
        });
    }

    /// Adds a piece; gives the chunk once it is whole and what its name says.
    fn collect(&mut self, piece: PutChunk) -> Result<(ChunkId, Option<Bytes>), Fault> {
        let PutChunk { hash, length, offset, bytes } = piece;
        let id = ChunkId::from(hash_of(&hash)?);
        if self.args.spec.origin != Some(Origin::Upload) || !self.is_beginning() {
            let why = "this kernel does not wait for a state: start one with \
                       `callboard kernel restore`";
            return Err(Fault::new(FaultCode::Conflict, why));
        }
        if length > CHUNK_LENGTH_MAX as u64 {
            let why = format!("a chunk of {length} bytes is over the limit of {CHUNK_LENGTH_MAX}");
            return Err(Fault::new(FaultCode::TooLarge, why));
        }
        let arriving = &mut self.transfers.arriving;
        if arriving.len() >= ARRIVING_MAX && !arriving.contains_key(&id) {
            arriving.pop_first();
        }
        let held = arriving.entry(id).or_default();
        if offset == held.len() as u64 && (held.len() + bytes.len()) as u64 <= length {
            held.extend_from_slice(&bytes);
        }
        if (held.len() as u64) < length {
            return Ok((id, None));
        }
        let whole = Bytes::from(arriving.remove(&id).unwrap_or_default());
        if ChunkId::of(&whole) == id {
            Ok((id, Some(whole)))
        } else {
            Err(bad(format!("the bytes are not those of chunk {id}: send it again")))
        }
    }
}
