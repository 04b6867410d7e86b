//! Puts entries in the log: in their order, and the completions of answered cells in company.

use std::time::Duration;

use callboard_policy::terms::{Applied, Entry, Input};
use callboard_protocol::{Seq, kernel::Level};
use callboard_replicated::ProposeError;
use futures::{FutureExt as _, future::join_all};

use super::{Internal, ReplicaState, tell};

/// How long the completion of a cell that was answered already waits for a request, so that one
/// commit carries both. The next one comes while the state of this one is still captured, so it is
/// as a rule the one after it: two of the quickest cells.
const COMMIT_LINGER: Duration = Duration::from_millis(15);
/// How long a replica that is stopped waits for the commit of what it still had to say.
const LAST_COMMIT_WITHIN: Duration = Duration::from_millis(500);

impl ReplicaState {
    /// Puts an entry in the log; entries go in the order of the calls. The completion of a cell
    /// that was answered already waits a moment, so that one commit carries it and the next request;
    /// not if it asked for a rewind, which comes before that.
    pub(super) fn propose(&mut self, entry: Entry) {
        if self.wish.is_none()
            && let Some(seq) = self.answered_by(&entry)
        {
            self.lingering.push((seq, entry));
            let me = self.me.clone();
            tokio::spawn(async move {
                tokio::time::sleep(COMMIT_LINGER).await;
                tell(&me, Internal::Lingered(seq));
            });
            return;
        }
        self.flush();
        self.propose_now(entry);
    }

    /// Puts the entries in the log that waited for company.
    pub(super) fn flush(&mut self) {
        for (_, entry) in std::mem::take(&mut self.lingering) {
            self.propose_now(entry);
        }
    }

    /// The completion of a cell found no company, unless it is gone already. What came after it goes
    /// along.
    pub(super) fn lingered(&mut self, seq: Seq) {
        if self.lingering.first().is_some_and(|(first, _)| *first == seq) {
            self.flush();
        }
    }

    /// The cell of level `received` that an entry completes.
    fn answered_by(&self, entry: &Entry) -> Option<Seq> {
        let Entry::Complete { seq, .. } = entry else { return None };
        self.read(|log| {
            let cell = log.pending().iter().find(|cell| cell.seq == *seq)?;
            (cell.level == Level::Received).then_some(*seq)
        })
    }

    fn propose_now(&self, entry: Entry) {
        let msg_id = match &entry {
            Entry::Accept { msg_id, .. } => Some(msg_id.clone()),
            _ => None,
        };
        let (group, me) = (self.group.clone(), self.me.clone());
        let mut proposal = Box::pin(async move { group.propose(entry).await });
        // The first poll puts the entry in the group's queue: here, so that the order is kept.
        if let Some(result) = proposal.as_mut().now_or_never() {
            tell(&me, Internal::Proposed(msg_id, result));
            return;
        }
        tokio::spawn(async move {
            let result = proposal.await;
            tell(&me, Internal::Proposed(msg_id, result));
        });
    }

    pub(super) fn proposed(
        &mut self,
        msg_id: Option<String>,
        result: Result<Applied, ProposeError>,
    ) {
        match (msg_id, result) {
            (
                Some(msg_id),
                Ok(applied @ (Applied::Conflict | Applied::Expired | Applied::QueueFull)),
            ) => self.step(Input::Refused { msg_id, applied }),
            (_, Err(error @ ProposeError::TooLarge { .. })) => {
                tracing::error!(kernel = %self.args.spec.kernel, %error, "a defect; please report it");
            }
            (_, Err(error)) => {
                tracing::debug!(kernel = %self.args.spec.kernel, %error, "a proposal failed");
            }
            _ => {}
        }
    }

    /// Puts the entries in the log that waited for company, and waits for their commit. Without a
    /// majority it does not come.
    pub(super) async fn finish_lingering(&mut self) {
        // In this order: the first poll of each puts its entry in the group's queue.
        let entries = std::mem::take(&mut self.lingering).into_iter();
        let proposals = entries.map(|(_, entry)| self.group.propose(entry));
        let _late = tokio::time::timeout(LAST_COMMIT_WITHIN, join_all(proposals)).await;
    }
}
