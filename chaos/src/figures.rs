//! What a run's trials come to.

use serde::Serialize;

use crate::{
    plan::{Fault, Moment},
    run::TrialReport,
};

/// The run's numbers. A number is `None` where nothing, or not everything, could be measured.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Figures {
    /// Cells acknowledged at `durable` that are gone.
    pub acknowledged_cells_lost: Option<u64>,
    /// Cells that ran twice.
    pub cells_run_twice: Option<u64>,
    /// Cells without an end.
    pub interrupted_without_answer: Option<u64>,
    /// 95th percentile of the time to the next result after an idle SIGKILL, in seconds.
    pub idle_failover_kill_p95_s: Option<f64>,
    /// The same after an idle SIGSTOP or partition, in seconds.
    pub idle_failover_stop_p95_s: Option<f64>,
}

impl Figures {
    /// Sums up. `refused` faults could not be tried on this machine.
    #[must_use]
    pub fn of(trials: &[TrialReport], refused: &[Fault]) -> Self {
        let count = |findings: fn(&TrialReport) -> Option<usize>| -> Option<u64> {
            if trials.is_empty() || !refused.is_empty() {
                return None;
            }
            trials.iter().map(findings).sum::<Option<usize>>().map(|sum| sum as u64)
        };
        let idle = |kill: bool| {
            let of_kind = |fault: Fault| if kill { fault.is_kill() } else { fault.is_hold() };
            if refused.iter().copied().any(of_kind) {
                return None;
            }
            let times: Option<Vec<f64>> = trials
                .iter()
                .filter(|it| it.trial.moment == Moment::Idle && of_kind(it.trial.fault))
                .filter(|it| it.trial.second.is_none())
                .map(|it| it.next_result_s)
                .collect();
            percentile_95(times?)
        };
        Self {
            acknowledged_cells_lost: count(|it| it.verdict.as_ref().map(|v| v.lost.len())),
            cells_run_twice: count(|it| it.verdict.as_ref().map(|v| v.run_twice.len())),
            interrupted_without_answer: count(|it| it.verdict.as_ref().map(|v| v.unanswered.len())),
            idle_failover_kill_p95_s: idle(true),
            idle_failover_stop_p95_s: idle(false),
        }
    }
}

/// The 95th percentile by nearest rank; of few samples, the largest.
fn percentile_95(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let rank = (values.len() * 95).div_ceil(100);
    values.get(rank.checked_sub(1)?).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{checker::Verdict, plan::Trial};

    fn report(fault: Fault, next_result_s: Option<f64>, verdict: Option<Verdict>) -> TrialReport {
        let trial = Trial { seed: 1, moment: Moment::Idle, fault, second: None };
        TrialReport { next_result_s, verdict, ..TrialReport::new(1, trial) }
    }

    #[test]
    fn the_percentile_is_by_nearest_rank() {
        let values: Vec<f64> = (1..=20).map(f64::from).collect();
        assert_eq!(percentile_95(values), Some(19.0));
        assert_eq!(percentile_95(vec![3.0, 1.0]), Some(3.0));
        assert_eq!(percentile_95(Vec::new()), None);
    }

    #[test]
    fn findings_are_counted_over_all_trials() {
        let lost = Verdict { lost: vec!["a".to_owned(), "b".to_owned()], ..Verdict::default() };
        let trials = [
            report(Fault::KillNode, Some(1.0), Some(lost)),
            report(Fault::Partition, Some(3.0), Some(Verdict::default())),
        ];
        let figures = Figures::of(&trials, &[]);
        assert_eq!(figures.acknowledged_cells_lost, Some(2));
        assert_eq!(figures.cells_run_twice, Some(0));
        assert_eq!(figures.idle_failover_kill_p95_s, Some(1.0));
        assert_eq!(figures.idle_failover_stop_p95_s, Some(3.0));
    }

    #[test]
    fn a_trial_that_was_not_judged_or_a_refused_fault_leaves_no_figure() {
        let judged = || report(Fault::KillNode, Some(1.0), Some(Verdict::default()));
        let unjudged = report(Fault::KillNode, None, None);
        let figures = Figures::of(&[judged(), unjudged], &[]);
        assert_eq!(figures, Figures::default());
        let figures = Figures::of(&[judged()], &[Fault::Partition]);
        assert_eq!(figures.acknowledged_cells_lost, None);
        assert_eq!(figures.idle_failover_kill_p95_s, Some(1.0));
    }
}
