//! NotebookOS's placement: the hosts with the most idle GPUs, unless their subscription would reach
//! a limit that follows the load. Read in its released code (`ClusterGateway`, August 2025).

use std::collections::VecDeque;

use super::{MemberPlacement, MemberPlaces, MemberRequest};
use crate::gpu::{
    decision::{Reasons, Refusal},
    fleet::{Fleet, FleetNode},
};

/// The limit while fewer than [`SAMPLES`] were taken, and where nothing runs.
pub const RATIO_MAX: f64 = 7.0;
/// How many samples the limit is the mean of.
const SAMPLES: usize = 5;

/// Least loaded hosts first.
#[derive(Debug, Clone)]
pub struct LeastLoaded {
    /// Members of each kernel.
    replicas: u32,
    samples: VecDeque<f64>,
}

impl LeastLoaded {
    /// For kernels of so many members.
    #[must_use]
    pub fn new(replicas: u32) -> Self {
        Self { replicas, samples: VecDeque::new() }
    }

    /// What the subscription ratio of a host must stay below.
    #[must_use]
    pub fn limit(&self) -> f64 {
        if self.samples.len() < SAMPLES {
            return RATIO_MAX;
        }
        self.samples.iter().sum::<f64>() / SAMPLES as f64
    }

    /// A host's subscription ratio with `gpus` more.
    #[must_use]
    pub fn ratio(&self, node: &FleetNode, gpus: u32) -> f64 {
        let all = f64::from(node.shape.gpus.max(1)) * f64::from(self.replicas.max(1));
        f64::from(node.subscribed + gpus) / all
    }
}

impl MemberPlacement for LeastLoaded {
    fn place(&self, fleet: &Fleet, request: &MemberRequest) -> MemberPlaces {
        let mut reasons = Reasons::on(fleet.version());
        let limit = self.limit();
        reasons.refuse(Refusal::Closed, fleet.len() - fleet.count_open(request.vram_mib));
        let mut slots = Vec::new();
        for bucket in fleet.least_loaded(request.vram_mib) {
            for slot in bucket {
                if slots.len() == request.count {
                    return MemberPlaces { slots, reasons };
                }
                let Some(node) = fleet.get(slot) else { continue };
                if request.present.contains(&slot) {
                    reasons.refuse(Refusal::HasMember, 1);
                } else if self.ratio(node, request.gpus) >= limit {
                    // All that follow in this bucket are subscribed more.
                    reasons.refuse(Refusal::Oversubscribed, 1);
                    break;
                } else {
                    slots.push(slot);
                }
            }
        }
        MemberPlaces { slots, reasons }
    }

    fn observe(&mut self, subscribed: u64, running: u64) {
        let sample = match (subscribed, running) {
            (_, 0) => RATIO_MAX,
            (subscribed, running) if subscribed < running => 1.0,
            (subscribed, running) => subscribed as f64 / running as f64,
        };
        self.samples.push_back(sample);
        if self.samples.len() > SAMPLES {
            self.samples.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::fleet::{NodeShape, Slot};

    const SHAPE: NodeShape = NodeShape { gpus: 8, vram_mib: 16_384 };

    fn request(gpus: u32) -> MemberRequest {
        MemberRequest { gpus, vram_mib: 0, count: 3, present: Vec::new() }
    }

    #[test]
    fn most_idle_gpus_first_then_the_least_subscribed() {
        let mut fleet = Fleet::default();
        (0..4).for_each(|slot| fleet.add(Slot(slot), SHAPE, 0));
        assert!(fleet.hold(Slot(0), 4));
        fleet.subscribe(Slot(1), 8);
        let places = LeastLoaded::new(3).place(&fleet, &request(4));
        assert_eq!(places.slots, [Slot(2), Slot(3), Slot(1)]);
    }

    #[test]
    fn with_a_quarter_of_the_demand_busy_a_host_takes_less_than_four_times_its_gpus() {
        let mut placement = LeastLoaded::new(3);
        assert!((placement.limit() - 7.0).abs() < f64::EPSILON);
        (0..5).for_each(|_| placement.observe(400, 100));
        assert!((placement.limit() - 4.0).abs() < f64::EPSILON);
        let mut fleet = Fleet::default();
        fleet.add(Slot(0), SHAPE, 0);
        (0..11).for_each(|_| fleet.subscribe(Slot(0), 8));
        // 88 + 8 of 24 is the limit itself.
        let places = placement.place(&fleet, &request(8));
        assert!(places.slots.is_empty());
        assert_eq!(places.reasons.refused[&Refusal::Oversubscribed], 1);
        assert_eq!(placement.place(&fleet, &request(4)).slots, [Slot(0)]);
    }

    #[test]
    fn nothing_running_and_less_demand_than_runs_have_their_own_samples() {
        let mut placement = LeastLoaded::new(3);
        (0..5).for_each(|_| placement.observe(4, 0));
        assert!((placement.limit() - RATIO_MAX).abs() < f64::EPSILON);
        (0..5).for_each(|_| placement.observe(4, 8));
        assert!((placement.limit() - 1.0).abs() < f64::EPSILON);
    }
}
