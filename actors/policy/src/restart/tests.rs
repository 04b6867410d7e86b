use proptest::{
    prelude::{prop, prop_assert, prop_assert_eq, proptest},
    strategy::Strategy as Generator,
};

use super::{RestartDecision, RestartHistory, RestartPolicy, Strategy};

fn policies() -> impl Generator<Value = RestartPolicy> {
    (0_u32..8, 1_u64..20_000, 0_u64..500, 0_u64..10_000).prop_map(
        |(intensity, period_ms, backoff_min_ms, extra)| RestartPolicy {
            intensity,
            period_ms,
            backoff_min_ms,
            backoff_max_ms: backoff_min_ms + extra,
        },
    )
}

proptest! {
    #[test]
    fn never_more_restarts_than_the_intensity_in_any_period(
        policy in policies(), seed: u64, gaps in prop::collection::vec(0_u64..5_000, 1..60),
    ) {
        let mut history = RestartHistory::new(policy, seed);
        let mut now_ms = 0;
        let mut restarts: Vec<u64> = Vec::new();
        for gap in gaps {
            now_ms += gap;
            let recent = restarts.iter().filter(|at| now_ms - **at < policy.period_ms).count();
            match history.on_exit(now_ms) {
                RestartDecision::Restart { after_ms } => {
                    prop_assert!(after_ms <= policy.backoff_max_ms);
                    prop_assert!((recent as u32) < policy.intensity);
                    restarts.push(now_ms);
                }
                RestartDecision::Escalate { .. } => prop_assert_eq!(recent as u32, policy.intensity),
            }
        }
    }

    #[test]
    fn same_seed_same_delays(policy in policies(), seed: u64) {
        let run = || {
            let mut history = RestartHistory::new(policy, seed);
            (0..10).map(|at| history.on_exit(at)).collect::<Vec<_>>()
        };
        prop_assert_eq!(run(), run());
    }
}

#[test]
fn delays_grow_up_to_the_limit() {
    let policy =
        RestartPolicy { intensity: 20, period_ms: 1_000, backoff_min_ms: 100, backoff_max_ms: 900 };
    let mut history = RestartHistory::new(policy, 7);
    for longest in [100, 200, 400, 800, 900, 900] {
        let RestartDecision::Restart { after_ms } = history.on_exit(0) else {
            panic!("escalated too early")
        };
        assert!((longest / 2..=longest).contains(&after_ms), "{after_ms} is not near {longest}");
    }
}

#[test]
fn a_quiet_period_is_forgiven() {
    let policy = RestartPolicy { intensity: 1, period_ms: 1_000, ..RestartPolicy::default() };
    let mut history = RestartHistory::new(policy, 1);
    assert!(matches!(history.on_exit(0), RestartDecision::Restart { .. }));
    assert!(matches!(history.on_exit(999), RestartDecision::Escalate { .. }));
    assert!(matches!(history.on_exit(1_000), RestartDecision::Restart { .. }));
}

#[test]
fn strategies_name_whom_they_restart() {
    assert_eq!(Strategy::OneForOne.affected(1, 4), 1..2);
    assert_eq!(Strategy::OneForAll.affected(1, 4), 0..4);
    assert_eq!(Strategy::RestForOne.affected(1, 4), 1..4);
}
