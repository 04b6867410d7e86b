//! A cell that asks for an earlier state of its own session: `%callboard rewind`.
//!
//! What will happen, or why not, is an output of the cell. The rewind follows the cell's completion
//! in the log, before anybody is told of it: the next request finds the earlier state.

use bytes::Bytes;
use callboard_policy::terms::{Applied, Entry, KernelLog, RewindTo, UndoRefusal};
use callboard_protocol::{Seq, history::RewindPlan, jupyter::JupyterMessage};

use super::ReplicaState;
use crate::said;

/// Cells named in the output; `callboard kernel log` shows all.
const CELLS_SHOWN: usize = 10;

/// What a cell that still runs has asked for.
#[derive(Debug, Clone)]
pub(super) struct Wish {
    cell: Seq,
    /// Header of the cell's request, which outputs name.
    header: Bytes,
    to: RewindTo,
}

impl ReplicaState {
    /// The running cell asks for an earlier state.
    pub(super) fn wish_rewind(&mut self, to: &str) {
        let Some(cell) = self.cell.as_ref().map(|cell| cell.seq) else { return };
        let (header, found) = self.read(|log| (header_of(log, cell), find(log, cell, to)));
        let Some(header) = header else { return };
        let (stream, text) = match found {
            Ok((to, plan)) => {
                self.wish = Some(Wish { cell, header: header.clone(), to });
                ("stdout", explain(&plan))
            }
            Err(why) => ("stderr", format!("callboard: not rewound: {why}\n")),
        };
        self.heard(said::stream(self.args.spec.kernel, header, stream, &text));
    }

    /// A cell completed: if it asked for an earlier state, that follows at once.
    pub(super) fn grant_wish(&mut self, completed: Seq) {
        let Some(Wish { header, to, .. }) = self.wish.take_if(|wish| wish.cell == completed) else {
            return;
        };
        self.flush();
        let (at, id) = (self.read(KernelLog::position), format!("cell-{completed}"));
        let (group, publisher) = (self.group.clone(), self.publisher.clone());
        let kernel = self.args.spec.kernel;
        let proposal = group.propose(Entry::Rewind { id, at, to });
        tokio::spawn(async move {
            let why = match proposal.await {
                Ok(Applied::Declined(refusal)) => refusal.to_string(),
                Ok(_) => return,
                Err(error) => error.to_string(),
            };
            let text = format!("callboard: not rewound: {why}\n");
            publisher.emitted(&said::stream(kernel, header, "stderr", &text), None);
        });
    }
}

fn header_of(log: &KernelLog, cell: Seq) -> Option<Bytes> {
    let pending = log.pending().iter().find(|pending| pending.seq == cell)?;
    JupyterMessage::decode(&pending.request).ok().map(|message| message.header)
}

fn find(log: &KernelLog, cell: Seq, to: &str) -> Result<(RewindTo, RewindPlan), String> {
    if let Some(next) = log.pending().iter().find(|pending| pending.seq > cell) {
        return Err(format!(
            "cell {} waits behind this one and was sent to the state as it is: run the rewind by \
             itself",
            next.seq
        ));
    }
    let found = log.find_state(to).and_then(|to| log.effect_of(&to).map(|plan| (to, plan)));
    found.map_err(|refusal: UndoRefusal| refusal.to_string())
}

fn explain(plan: &RewindPlan) -> String {
    let cells: Vec<String> =
        plan.undone.iter().take(CELLS_SHOWN).map(|cell| cell.cell.to_string()).collect();
    let mut text = format!("callboard: the next cell finds the state after cell {}", plan.cell);
    if !cells.is_empty() {
        let more = plan.undone.len().saturating_sub(CELLS_SHOWN);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        text.push_str(&format!("; undone: {}{more}, and this cell", cells.join(", ")));
    }
    text.push_str(". A rewind to a later cell brings it back.\n");
    text
}
