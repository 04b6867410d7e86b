//! The detector itself: beats, exits, the bus and time in; a view out.

use std::collections::BTreeMap;

use callboard_protocol::{
    DiskId, Incarnation, NodeId,
    control::NodeHealth,
    node::{Beat, NodeExited},
};

use super::{FailureConfig, NodeView, NodesView};

/// Judges nodes by what is heard. Times are milliseconds on a clock that never goes back and that
/// goes on while the process is stopped.
#[derive(Debug, Clone)]
pub struct FailureDetector {
    config: FailureConfig,
    own: NodeId,
    nodes: BTreeMap<NodeId, Track>,
    connected: bool,
    ticked_ms: u64,
    outage: Option<Outage>,
}

#[derive(Debug, Clone)]
struct Outage {
    cause: String,
    healthy_since_ms: Option<u64>,
}

#[derive(Debug, Clone)]
struct Track {
    health: NodeHealth,
    incarnation: Incarnation,
    disk: DiskId,
    last_beat: Option<Beat>,
    heard_ms: u64,
    /// Start of the clock towards suspicion; later than `heard_ms` after we could not hear.
    suspicion_from_ms: u64,
    /// Start of the clock towards gone.
    gone_from_ms: u64,
    exit: Option<Exit>,
}

#[derive(Debug, Clone)]
struct Exit {
    how: String,
    /// Whether the report named the life that ended. If not, it may have been an earlier one.
    certain: bool,
}

impl Track {
    fn new(disk: DiskId, now_ms: u64) -> Self {
        Self {
            health: NodeHealth::Up,
            incarnation: Incarnation(0),
            disk,
            last_beat: None,
            heard_ms: now_ms,
            suspicion_from_ms: now_ms,
            gone_from_ms: now_ms,
            exit: None,
        }
    }

    fn hear(&mut self, beat: &Beat, now_ms: u64) {
        *self = Self::new(beat.disk, now_ms);
        self.incarnation = beat.incarnation;
        self.last_beat = Some(beat.clone());
    }

    /// Whether the beat comes from the node's present life, or from a newer one.
    fn accepts(&self, beat: &Beat, silent: bool) -> bool {
        if beat.disk != self.disk {
            // Lives on different disks are numbered independently: only a node that is not heard
            // on its present disk can have moved.
            return silent || self.exit.is_some() || self.last_beat.is_none();
        }
        if beat.incarnation != self.incarnation {
            return beat.incarnation > self.incarnation;
        }
        let number = self.last_beat.as_ref().map_or(0, |last| last.number);
        match &self.exit {
            None => beat.number >= number,
            Some(Exit { certain: true, .. }) => false,
            // One beat may have been on its way when the process ended; two were not.
            Some(Exit { certain: false, .. }) => beat.number > number + 1,
        }
    }
}

impl FailureDetector {
    /// Knows nobody yet. `own` is the node this process is; it never suspects itself.
    #[must_use]
    pub fn new(config: FailureConfig, own: NodeId, now_ms: u64) -> Self {
        Self {
            config,
            own,
            nodes: BTreeMap::new(),
            connected: true,
            ticked_ms: now_ms,
            outage: None,
        }
    }

    /// A node that should exist; its silence counts from now if it was never heard.
    pub fn expect(&mut self, now_ms: u64, node: NodeId, disk: DiskId) {
        self.nodes.entry(node).or_insert_with(|| Track::new(disk, now_ms));
    }

    /// A node that should not exist any more; nothing may be placed on it.
    pub fn forget(&mut self, node: &NodeId) {
        self.nodes.remove(node);
    }

    /// A node was heard; our own beats, too: that they come back shows that the bus works.
    pub fn on_beat(&mut self, now_ms: u64, beat: &Beat) {
        let suspect_after_ms = self.config.suspect_after_ms;
        let track =
            self.nodes.entry(beat.node.clone()).or_insert_with(|| Track::new(beat.disk, now_ms));
        let silent = now_ms.saturating_sub(track.heard_ms) >= suspect_after_ms;
        if track.accepts(beat, silent) {
            track.hear(beat, now_ms);
        }
    }

    /// A node's process was seen to end.
    pub fn on_exited(&mut self, now_ms: u64, exited: &NodeExited) {
        if exited.node == self.own {
            return;
        }
        let Some(track) = self.nodes.get_mut(&exited.node) else { return };
        if exited.incarnation.is_some_and(|ended| ended < track.incarnation) {
            return;
        }
        if let Some(ended) = exited.incarnation {
            track.incarnation = ended;
        }
        track.exit = Some(Exit { how: exited.how.clone(), certain: exited.incarnation.is_some() });
        if track.health == NodeHealth::Up {
            track.health = NodeHealth::Suspected;
            track.gone_from_ms = now_ms;
        }
    }

    /// Our own connection to the bus came or went.
    pub fn on_bus(&mut self, now_ms: u64, connected: bool) {
        if connected && !self.connected {
            self.restart_suspicion(now_ms);
        }
        self.connected = connected;
        if !connected {
            self.freeze("this node has lost its connection to the bus".to_owned());
        }
    }

    /// Time has passed; call several times per `suspect_after_ms`.
    pub fn tick(&mut self, now_ms: u64) -> NodesView {
        let gap_ms = now_ms.saturating_sub(self.ticked_ms);
        self.ticked_ms = now_ms;
        if gap_ms > self.config.tick_gap_max_ms {
            self.restart_suspicion(now_ms);
            self.freeze(format!("this node's process was stopped for {gap_ms} ms"));
        }
        if self.connected {
            self.suspect(now_ms);
        }
        match self.trouble(now_ms) {
            Some(cause) => self.freeze(cause),
            None => self.thaw(now_ms),
        }
        if self.outage.is_none() {
            self.give_up(now_ms);
        }
        self.view(now_ms)
    }

    fn freeze(&mut self, cause: String) {
        self.outage = Some(Outage { cause, healthy_since_ms: None });
    }

    fn thaw(&mut self, now_ms: u64) {
        let Some(outage) = &mut self.outage else { return };
        let since_ms = *outage.healthy_since_ms.get_or_insert(now_ms);
        if now_ms.saturating_sub(since_ms) >= self.config.thaw_after_ms {
            self.outage = None;
            for track in self.nodes.values_mut() {
                track.gone_from_ms = now_ms;
            }
        }
    }

    /// We could not hear: whoever was up gets the full time again.
    fn restart_suspicion(&mut self, now_ms: u64) {
        for track in self.nodes.values_mut() {
            track.suspicion_from_ms = now_ms;
        }
    }

    fn suspect(&mut self, now_ms: u64) {
        for (node, track) in &mut self.nodes {
            let silent_ms = now_ms.saturating_sub(track.suspicion_from_ms);
            if track.health == NodeHealth::Up
                && *node != self.own
                && silent_ms >= self.config.suspect_after_ms
            {
                track.health = NodeHealth::Suspected;
            }
        }
    }

    fn give_up(&mut self, now_ms: u64) {
        for track in self.nodes.values_mut() {
            let silent_ms = now_ms.saturating_sub(track.gone_from_ms);
            if track.health == NodeHealth::Suspected && silent_ms >= self.config.gone_after_ms {
                track.health = NodeHealth::Gone;
            }
        }
    }

    /// Why silence proves nothing at this moment, if so.
    fn trouble(&self, now_ms: u64) -> Option<String> {
        if !self.connected {
            return Some("this node has lost its connection to the bus".to_owned());
        }
        let deaf = self.nodes.get(&self.own).is_some_and(|own| {
            own.last_beat.is_some()
                && now_ms.saturating_sub(own.suspicion_from_ms) >= self.config.suspect_after_ms
        });
        if deaf {
            return Some("this node does not hear its own heartbeats over the bus".to_owned());
        }
        self.view(now_ms).too_many_silent()
    }

    fn view(&self, now_ms: u64) -> NodesView {
        let outage = self.outage.as_ref().map(|outage| match outage.healthy_since_ms {
            None => outage.cause.clone(),
            Some(_) => format!("{}; well again, waiting whether it stays so", outage.cause),
        });
        let nodes = self.nodes.iter().map(|(node, track)| {
            let view = NodeView {
                health: track.health,
                incarnation: track.incarnation,
                disk: track.disk,
                silent_ms: now_ms.saturating_sub(track.heard_ms),
                how: track.exit.as_ref().map(|exit| exit.how.clone()),
                last_beat: track.last_beat.clone(),
            };
            (node.clone(), view)
        });
        NodesView { outage, nodes: nodes.collect() }
    }
}
