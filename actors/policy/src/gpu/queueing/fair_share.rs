//! Ours: what is overdue, then by priority, by deadline, by who holds least, by arrival.

use super::{QueueView, Queueing, Waiting};

/// Fair between owners.
#[derive(Debug, Clone, Copy)]
pub struct FairShare {
    /// A cell that has waited this long comes before all that have not.
    pub bound_ms: u64,
}

impl Queueing for FairShare {
    fn order(&self, view: &QueueView<'_>, waiting: &mut [Waiting]) {
        waiting.sort_by_cached_key(|it| {
            let is_overdue = view.now_ms.saturating_sub(it.since_ms) >= self.bound_ms;
            let rank = if is_overdue {
                (0, 0, 0)
            } else {
                let deadline_ms = it.deadline_ms.unwrap_or(u64::MAX);
                (
                    i32::from(i8::MAX) + 1 - i32::from(it.priority),
                    deadline_ms,
                    (view.held_by)(it.owner),
                )
            };
            (!is_overdue, rank, it.since_ms, it.kernel)
        });
    }

    fn bound_ms(&self) -> Option<u64> {
        Some(self.bound_ms)
    }
}

#[cfg(test)]
mod tests {
    use callboard_protocol::KernelId;

    use super::*;

    fn waiting(owner: u64, since_ms: u64, priority: i8, deadline_ms: Option<u64>) -> Waiting {
        let kernel = KernelId::from_number(u128::from(since_ms));
        Waiting { kernel, owner, gpus: 1, since_ms, priority, deadline_ms }
    }

    #[test]
    fn overdue_then_priority_then_deadline_then_share_then_arrival() {
        let held = |owner: u64| if owner == 1 { 8 } else { 0 };
        let mut list = [
            waiting(1, 100, 0, None),
            waiting(2, 101, 0, None),
            waiting(1, 102, 0, Some(500)),
            waiting(1, 103, 5, None),
            waiting(1, 3, 0, None),
            waiting(2, 104, 0, None),
        ];
        let view = QueueView { now_ms: 110, held_by: &held };
        FairShare { bound_ms: 100 }.order(&view, &mut list);
        let order: Vec<_> = list.iter().map(|it| it.since_ms).collect();
        assert_eq!(order, [3, 103, 102, 101, 104, 100]);
    }
}
