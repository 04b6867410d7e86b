//! What goes: chunks that nobody names, for good.

use std::{collections::HashSet, sync::atomic::Ordering, time::Duration};

use callboard_protocol::OwnerId;

use super::{
    error::ChunkError,
    id::ChunkId,
    index::Patience,
    pins::{ChunkPins, Heard, Waiting},
    store::{ChunkStore, Collected, QUARANTINE, blocking, remove_file},
};

/// How long a receipt for chunks counts: the receiver keeps them for its grace period, which is
/// longer by all the time that their manifest may take into the log.
pub const RECEIPT_VALID: Duration = Duration::from_secs(20);
/// How often, and after what time, members that are behind are asked again in one round.
const LOOKS_MAX: u32 = 20;
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// The shortest grace period for chunks that somebody may have been promised.
pub const GRACE_MIN: Duration = RECEIPT_VALID.saturating_mul(3);

impl ChunkStore {
    /// The owner's chunks that nobody put or was promised within `grace`, and nothing under way
    /// needs. Of what a former life of the node put or promised, `grace` is [`GRACE_MIN`] at most.
    #[must_use]
    pub fn idle(&self, owner: &OwnerId, grace: Duration) -> Vec<ChunkId> {
        let patience = Patience::from_now(grace);
        self.index().owners.get(owner).map(|it| it.idle(patience)).unwrap_or_default()
    }

    /// Removes those of `ids` that are still idle for `grace`: the caller knows that nothing names
    /// them. Damaged chunks set aside as long ago go as well.
    ///
    /// # Errors
    /// [`ChunkError::Io`]; what was removed before stays removed.
    pub async fn remove_idle(
        &self,
        owner: &OwnerId,
        ids: Vec<ChunkId>,
        grace: Duration,
    ) -> Result<Collected, ChunkError> {
        let patience = Patience::from_now(grace);
        let (store, owner) = (self.clone(), owner.clone());
        blocking(move || {
            let mut collected = Collected::default();
            for id in ids {
                // Under the lock, so that nobody is promised a chunk between look and removal.
                let mut index = store.index();
                let of_owner = index.owner(&owner);
                if !of_owner.is_idle(id, patience) {
                    continue;
                }
                let path = store.path(&owner, id);
                remove_file(&path)?;
                collected.bytes += of_owner.remove(id).map_or(0, |entry| entry.length);
                collected.chunks += 1;
            }
            store.remove_damaged(&owner, patience)?;
            let counters = store.counters();
            counters.collected_chunks.fetch_add(collected.chunks, Ordering::Relaxed);
            counters.collected_bytes.fetch_add(collected.bytes, Ordering::Relaxed);
            Ok(collected)
        })
        .await
    }

    fn remove_damaged(&self, owner: &OwnerId, patience: Patience) -> Result<(), ChunkError> {
        let mut index = self.index();
        let damaged = &mut index.owner(owner).damaged;
        let old: Vec<_> = damaged
            .iter()
            .filter(|(_, it)| patience.is_over(it.since))
            .map(|(id, _)| *id)
            .collect();
        for id in old {
            let path = self.owner_directory(owner).join(format!("{QUARANTINE}{id}"));
            remove_file(&path)?;
            damaged.remove(&id);
        }
        Ok(())
    }

    /// Removes up to `most` of the owner's chunks that are idle for `grace` and that no member on
    /// this node names; or says for whom that has to wait.
    ///
    /// # Errors
    /// [`ChunkError::Io`].
    pub async fn collect_unnamed(
        &self,
        pins: &ChunkPins,
        owner: &OwnerId,
        grace: Duration,
        most: usize,
    ) -> Result<Result<Collected, Waiting>, ChunkError> {
        // In this order: what is named from here on was put, or promised, within the grace period.
        let idle = self.idle(owner, grace);
        let (mut heard, mut looks) = (Heard::default(), 0);
        let named = loop {
            match pins.hear(owner, &mut heard) {
                Ok(named) => break named,
                Err(_) if idle.is_empty() => return Ok(Ok(Collected::default())),
                Err(waiting) if looks == LOOKS_MAX => return Ok(Err(waiting)),
                // A member in the middle of a cell is behind for a moment only.
                Err(_) => tokio::time::sleep(LOOK_AGAIN).await,
            }
            looks += 1;
        };
        let garbage = idle.into_iter().filter(|id| !named.contains(id)).take(most).collect();
        self.remove_idle(owner, garbage, grace).await.map(Ok)
    }

    /// Removes the owner's chunks that are not in `live` and idle for `grace`, and damaged ones as
    /// old.
    ///
    /// # Errors
    /// [`ChunkError::Io`].
    pub async fn collect(
        &self,
        owner: &OwnerId,
        live: &HashSet<ChunkId>,
        grace: Duration,
    ) -> Result<Collected, ChunkError> {
        let garbage = self.idle(owner, grace).into_iter().filter(|id| !live.contains(id)).collect();
        self.remove_idle(owner, garbage, grace).await
    }
}
