//! Answers to other nodes.

use std::collections::HashSet;

use callboard_transport::{Message, Subscription};
use serde::{Serialize, de::DeserializeOwned};
use tokio::task::JoinSet;

use super::{
    ChunkExchange, PIECE_OVERHEAD,
    arrivals::Taken,
    wire::{
        Fetch, FetchAnswer, Get, Ids, Lack, LackAnswer, Piece, Put, Seal, SealAnswer, Send,
        SendAnswer, VERB_FETCH, VERB_GET, VERB_LACK, VERB_PUT, VERB_SEAL, VERB_SEND, positions,
    },
};
use crate::{
    chunks::{ChunkCounters, ChunkError, ChunkId},
    raft::types::{decode, encode},
};

/// What a node of this version answers.
pub(super) const VERBS: [&str; 6] =
    [VERB_GET, VERB_PUT, VERB_LACK, VERB_SEND, VERB_SEAL, VERB_FETCH];
/// Requests of one verb answered at once; the others wait in the subscription.
const ANSWERING_MAX: usize = 32;

impl ChunkExchange {
    pub(super) async fn answer_all(self, mut messages: Subscription) {
        let mut running = JoinSet::new();
        loop {
            tokio::select! {
                message = messages.next(), if running.len() < ANSWERING_MAX => {
                    let Some(message) = message else { return };
                    let exchange = self.clone();
                    running.spawn(async move { exchange.answer(message).await });
                }
                Some(_) = running.join_next() => {}
            }
        }
    }

    async fn answer(&self, message: Message) {
        let body = &message.payload;
        let verb = message.subject.last();
        let answer = match verb {
            VERB_GET => reply(body, async |get: Get| self.answer_get(get).await).await,
            VERB_PUT => reply(body, async |put: Put| self.answer_put(put).await).await,
            VERB_LACK => reply(body, async |lack: Lack| self.answer_lack(lack).await).await,
            VERB_SEND => reply(body, async |send: Send| self.answer_send(send).await).await,
            VERB_SEAL => reply(body, async |seal: Seal| self.answer_seal(seal).await).await,
            _ => reply(body, async |fetch: Fetch| self.answer_fetch(fetch).await).await,
        };
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => return tracing::warn!(%error, verb, "dropped a garbled request"),
        };
        if let Some(reply_to) = &message.reply_to {
            let envelope = message.envelope.causing();
            if let Err(error) = self.inner.bus.respond(reply_to, &envelope, answer.into()).await {
                tracing::debug!(%error, "an answer could not be sent");
            }
        }
    }

    async fn answer_lack(&self, lack: Lack) -> LackAnswer {
        let ids = lack.ids.to_vec();
        let (store, owner, verify) = (self.inner.store.clone(), lack.owner.clone(), lack.verify);
        let asked = ids.clone();
        let present = move || store.present(&owner, &asked, verify);
        let present = tokio::task::spawn_blocking(present).await.unwrap_or_default();
        let present: HashSet<ChunkId> = present.into_iter().collect();
        let unsealed = self.inner.arrivals.unsealed(&lack.owner, &ids);
        LackAnswer {
            lacking: positions(&ids, |id| !present.contains(id) && !unsealed.contains(id)),
            unsealed: unsealed.iter().any(|id| !present.contains(id)),
        }
    }

    async fn answer_send(&self, send: Send) -> SendAnswer {
        for piece in send.pieces {
            ChunkCounters::add(&self.inner.store.counters().received_bytes, piece.bytes.len());
            match self.inner.arrivals.take(&send.owner, piece) {
                Taken::Waits => {}
                Taken::Busy => return SendAnswer::Busy,
                Taken::Refused(why) => return SendAnswer::Refused(why),
                Taken::Whole(id, bytes) => {
                    let (store, owner) = (self.inner.store.clone(), send.owner.clone());
                    let staged = tokio::task::spawn_blocking(move || {
                        if ChunkId::of(&bytes) != id {
                            return Err(ChunkError::Corrupt(id));
                        }
                        store.stage(&owner, id, &bytes)
                    });
                    match staged.await {
                        Ok(Ok(staged)) => self.inner.arrivals.staged(&send.owner, id, staged),
                        Ok(Err(ChunkError::Corrupt(_))) => {
                            let why = format!("the bytes do not match the hash {id}");
                            return SendAnswer::Refused(why);
                        }
                        Ok(Err(error)) if error.is_no_room() => {
                            return SendAnswer::NoRoom(error.to_string());
                        }
                        Ok(Err(error)) => return SendAnswer::Refused(error.to_string()),
                        Err(_) => return SendAnswer::Refused(ChunkError::Stopped.to_string()),
                    }
                }
            }
        }
        SendAnswer::Taken
    }

    async fn answer_seal(&self, seal: Seal) -> SealAnswer {
        self.inner.arrivals.seal(&self.inner.store, &seal.owner, seal.ids.to_vec()).await
    }

    async fn answer_fetch(&self, fetch: Fetch) -> FetchAnswer {
        let mut answer = FetchAnswer { pieces: Vec::new(), missing: Vec::new() };
        let mut left = self.batch_length();
        let mut offset = usize::try_from(fetch.offset).unwrap_or(usize::MAX);
        for (position, id) in (0..).zip(fetch.ids.to_vec()) {
            let Some(chunk) = self.read_to_serve(&fetch.owner, id, offset).await else {
                answer.missing.push(position);
                continue;
            };
            let from = std::mem::take(&mut offset).min(chunk.len());
            let room = left.saturating_sub(PIECE_OVERHEAD);
            // Only the first may come in part: the asker goes on with it.
            if chunk.len() - from > room && !answer.pieces.is_empty() {
                break;
            }
            let to = chunk.len().min(from + room.max(1));
            let bytes = chunk.slice(from..to);
            left = left.saturating_sub(bytes.len() + PIECE_OVERHEAD);
            ChunkCounters::add(&self.inner.store.counters().sent_bytes, bytes.len());
            let (length, offset) = (chunk.len() as u64, from as u64);
            self.remember_rest(&fetch.owner, id, &chunk, to);
            answer.pieces.push(Piece { id: Ids::new(&[id]), length, offset, bytes });
            if to < chunk.len() {
                break;
            }
        }
        answer
    }
}

async fn reply<T: DeserializeOwned, R: Serialize>(
    body: &[u8],
    answer: impl AsyncFnOnce(T) -> R,
) -> Result<Vec<u8>, String> {
    let asked = decode(body).map_err(|error| error.to_string())?;
    encode(&answer(asked).await).map_err(|error| error.to_string())
}
