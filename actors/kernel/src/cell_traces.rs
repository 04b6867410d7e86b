//! The spans of cells on their way through this replica.
//!
//! One trace per cell: the client's span is the parent; `accept` lasts until the request has its
//! place in the log, `run` while Python is at it, `commit` until the completion is applied.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use callboard_protocol::{Envelope, Seq};
use callboard_transport::telemetry;
use tracing::{Span, info_span};

/// Cells traced at once. More wait only when requests arrive faster than cells run.
const CELLS_TRACED_MAX: usize = 1_000;

#[derive(Debug)]
struct Traced {
    envelope: Envelope,
    since: Instant,
    span: Span,
}

/// The spans of cells on their way through this replica.
#[derive(Debug, Default)]
pub(crate) struct CellTraces {
    cells: HashMap<String, Traced>,
    commits: HashMap<Seq, Span>,
}

impl CellTraces {
    /// A request arrived.
    pub(crate) fn asked(&mut self, msg_id: &str, envelope: &Envelope) {
        if envelope.traceparent.is_some() && self.cells.len() < CELLS_TRACED_MAX {
            let span = telemetry::continued(info_span!("callboard.accept", msg_id), envelope);
            let (envelope, since) = (envelope.clone(), Instant::now());
            self.cells.insert(msg_id.to_owned(), Traced { envelope, since, span });
        }
    }

    /// The request has its place in the log.
    pub(crate) fn accepted(&mut self, msg_id: &str) {
        if let Some(traced) = self.cells.get_mut(msg_id) {
            traced.span = Span::none();
        }
    }

    /// The cell starts to run.
    pub(crate) fn started(&mut self, msg_id: &str, seq: Seq) {
        if let Some(Traced { envelope, span, .. }) = self.cells.get_mut(msg_id) {
            let run = info_span!("callboard.run", msg_id, seq = seq.0);
            *span = telemetry::continued(run, envelope);
        }
    }

    /// The cell ran to its end; its completion goes to the log.
    pub(crate) fn finished(&mut self, msg_id: &str, seq: Seq) {
        if let Some(Traced { envelope, .. }) = self.cells.remove(msg_id) {
            let span = info_span!("callboard.commit", msg_id, seq = seq.0);
            self.commits.insert(seq, telemetry::continued(span, &envelope));
        }
    }

    /// The cell's end is known. What is behind it will not be committed here.
    pub(crate) fn ended(&mut self, seq: Seq) {
        self.commits.retain(|committing, _| *committing > seq);
    }

    /// Keeps what `keep` says of a request's id and age.
    pub(crate) fn retain(&mut self, keep: impl Fn(&str, Duration) -> bool) {
        self.cells.retain(|msg_id, traced| keep(msg_id, traced.since.elapsed()));
    }

    /// The executor's work here is over.
    pub(crate) fn clear(&mut self) {
        self.cells.clear();
        self.commits.clear();
    }
}
