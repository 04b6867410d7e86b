//! What the kernels of the cluster are doing, as far as their events tell: for lists, which must
//! not ask a thousand kernels.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use callboard_client::ClusterEvent;
use callboard_protocol::{ActorKind, KernelId, Seq, kernel::CellEnd};

/// What is known of one kernel.
#[derive(Debug, Clone)]
pub(crate) struct KernelActivity {
    /// When something was last heard of it.
    pub(crate) last: SystemTime,
    /// Websockets here.
    pub(crate) connections: usize,
    /// The last cell that began, and the last one that ended.
    began: Seq,
    ended: Seq,
}

impl KernelActivity {
    /// Whether a cell runs. Its beginning and its end are told apart by its place, since news of
    /// them may come in the other order.
    pub(crate) fn is_busy(&self) -> bool {
        self.began > self.ended
    }
}

/// The events of kernels that tell what they are doing.
pub(crate) const TELLING: [&str; 5] = ["began", "ended", "took_over", "started", "stopped"];

/// What the kernels are doing.
#[derive(Debug)]
pub(crate) struct Activity {
    started: SystemTime,
    kernels: Mutex<HashMap<KernelId, KernelActivity>>,
}

impl Activity {
    pub(crate) fn new() -> Self {
        Self { started: SystemTime::now(), kernels: Mutex::default() }
    }

    /// When the gateway started.
    pub(crate) fn started(&self) -> SystemTime {
        self.started
    }

    /// When something was last heard of any kernel.
    pub(crate) fn last(&self) -> SystemTime {
        let last = self.kernels().values().map(|kernel| kernel.last).max();
        last.unwrap_or(self.started)
    }

    /// All websockets here.
    pub(crate) fn connections(&self) -> usize {
        self.kernels().values().map(|kernel| kernel.connections).sum()
    }

    pub(crate) fn of(&self, kernel: KernelId) -> KernelActivity {
        self.kernels().get(&kernel).cloned().unwrap_or_else(|| self.unknown())
    }

    /// Takes an event of the cluster in.
    pub(crate) fn heard(&self, event: &ClusterEvent) {
        let (ActorKind::Kernel, Ok(kernel)) = (event.kind, event.id.parse::<KernelId>()) else {
            return;
        };
        if event.event == "stopped" {
            self.kernels().remove(&kernel);
            return;
        }
        let mut kernels = self.kernels();
        let known = kernels.entry(kernel).or_insert_with(|| self.unknown());
        known.last = SystemTime::now();
        match event.event.as_str() {
            "began" => {
                let cell = serde_json::from_slice(&event.payload).unwrap_or_default();
                known.began = known.began.max(cell);
            }
            "ended" => {
                if let Ok(CellEnd { seq, .. }) = serde_json::from_slice(&event.payload) {
                    known.ended = known.ended.max(seq);
                }
            }
            _ => {}
        }
    }

    /// Counts a websocket for as long as the answer lives.
    pub(crate) fn connect(self: &std::sync::Arc<Self>, kernel: KernelId) -> Connected {
        self.kernels().entry(kernel).or_insert_with(|| self.unknown()).connections += 1;
        Connected { activity: self.clone(), kernel }
    }

    fn unknown(&self) -> KernelActivity {
        KernelActivity {
            last: self.started,
            connections: 0,
            began: Seq::default(),
            ended: Seq::default(),
        }
    }

    fn kernels(&self) -> MutexGuard<'_, HashMap<KernelId, KernelActivity>> {
        self.kernels.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A websocket that is counted.
#[derive(Debug)]
pub(crate) struct Connected {
    activity: std::sync::Arc<Activity>,
    kernel: KernelId,
}

impl Drop for Connected {
    fn drop(&mut self) {
        if let Some(kernel) = self.activity.kernels().get_mut(&self.kernel) {
            kernel.connections = kernel.connections.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use callboard_protocol::{Envelope, Term, kernel::CellOutcome};

    use super::*;

    #[test]
    fn a_cell_whose_end_is_heard_before_its_beginning_does_not_count_as_running() {
        let (activity, kernel) = (Activity::new(), KernelId::generate());
        let hear = |event: &str, payload: String| {
            activity.heard(&ClusterEvent {
                kind: ActorKind::Kernel,
                id: kernel.to_string(),
                event: event.to_owned(),
                envelope: Envelope::default(),
                payload: Bytes::from(payload),
            });
            activity.of(kernel).is_busy()
        };
        let end = |seq| {
            let (msg_id, term) = ("m".to_owned(), Term(1));
            let (outcome, last_output) = (CellOutcome::Completed, None);
            let end = CellEnd { seq: Seq(seq), msg_id, term, outcome, last_output };
            serde_json::to_string(&end).unwrap()
        };
        assert!(hear("began", "1".to_owned()));
        assert!(!hear("ended", end(1)));
        assert!(!hear("ended", end(2)));
        assert!(!hear("began", "2".to_owned()));
        assert!(hear("began", "3".to_owned()));
    }
}
