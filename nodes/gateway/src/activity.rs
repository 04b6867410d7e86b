//! What the kernels of the cluster are doing, as far as their events tell: for lists, which must
//! not ask a thousand kernels.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use callboard_client::ClusterEvent;
use callboard_protocol::{ActorKind, KernelId, NodeId, kernel::TookOver};

/// What is known of one kernel.
#[derive(Debug, Clone)]
pub(crate) struct KernelActivity {
    /// When something was last heard of it.
    pub(crate) last: SystemTime,
    /// Whether a cell runs.
    pub(crate) is_busy: bool,
    /// Websockets here.
    pub(crate) connections: usize,
    /// When its executor last became another one, and which.
    pub(crate) took_over: Option<(SystemTime, TookOver)>,
    /// Where its executor was before.
    pub(crate) executor_before: Option<NodeId>,
}

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
        let is_busy = match event.event.as_str() {
            "began" => Some(true),
            "ended" => Some(false),
            "took_over" | "started" => None,
            _ => return,
        };
        let mut kernels = self.kernels();
        let known = kernels.entry(kernel).or_insert_with(|| self.unknown());
        known.last = SystemTime::now();
        known.is_busy = is_busy.unwrap_or(known.is_busy);
        if let Ok(took_over) = serde_json::from_slice::<TookOver>(&event.payload)
            && event.event == "took_over"
        {
            let now = took_over.node.clone();
            let before = known.took_over.replace((known.last, took_over));
            known.executor_before =
                before.map(|(_, before)| before.node).filter(|before| *before != now);
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
            is_busy: false,
            connections: 0,
            took_over: None,
            executor_before: None,
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
