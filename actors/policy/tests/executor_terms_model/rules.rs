//! The rules of the machine, and two wrong ones the model must tell from them.

use callboard_policy::terms::{Applied, KernelLog};

use super::proposal::Proposal;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rules {
    /// As built.
    AsBuilt,
    /// A closed term interrupts nothing: a cell its executor started is as free as any other, and
    /// the first claim of a later term that is committed may run it.
    FirstClaimWins,
    /// The end of a durable cell is told when its `Complete` is proposed.
    ReplyBeforeApply,
}

impl Rules {
    /// Applies the last of `entries` to `log`, which holds those before it.
    pub(crate) fn apply(self, log: &KernelLog, entries: &[Proposal]) -> (KernelLog, Applied) {
        let Some((last, before)) = entries.split_last() else {
            return (log.clone(), Applied::Ignored);
        };
        let mut log = match (self, last) {
            (Self::FirstClaimWins, Proposal::Abandon { .. }) => without_claims(before),
            _ => log.clone(),
        };
        let applied = log.apply(last.entry());
        (log, applied)
    }
}

/// The log as it were if no pending cell had been claimed in the open term or one before it.
fn without_claims(entries: &[Proposal]) -> KernelLog {
    let mut kept: Vec<Proposal> = Vec::new();
    let mut log = KernelLog::default();
    for entry in entries {
        if matches!(entry, Proposal::Abandon { .. }) {
            strip(&mut kept, &log);
            log = replay(&kept);
        }
        kept.push(entry.clone());
        log.apply(entry.entry());
    }
    strip(&mut kept, &log);
    replay(&kept)
}

fn strip(entries: &mut Vec<Proposal>, log: &KernelLog) {
    let is_pending = |msg_id: &str| log.pending().iter().any(|cell| cell.msg_id == msg_id);
    let is_pending_seq = |seq| log.pending().iter().any(|cell| cell.seq == seq);
    entries.retain(|entry| !matches!(entry, Proposal::Start { seq, .. } if is_pending_seq(*seq)));
    for entry in entries {
        if let Proposal::Accept { cell, grant, .. } = entry
            && is_pending(super::proposal::MSG_IDS[*cell])
        {
            *grant = None;
        }
    }
}

fn replay(entries: &[Proposal]) -> KernelLog {
    let mut log = KernelLog::default();
    for entry in entries {
        log.apply(entry.entry());
    }
    log
}
