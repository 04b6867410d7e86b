use callboard_policy::failure::NodeView;
use callboard_protocol::{DiskId, Incarnation};
use proptest::prelude::*;
use uuid::Uuid;

use super::{MembershipStep::*, *};

fn node(n: u64) -> NodeId {
    NodeId::new(format!("node-{n}")).unwrap()
}

/// Nodes by (number, present member).
fn nodes(entries: &[(u64, u64)]) -> BTreeMap<NodeId, NodeEntry> {
    let disk = DiskId(Uuid::nil());
    entries.iter().map(|(n, m)| (node(*n), NodeEntry { disk, member: ReplicaId(*m) })).collect()
}

fn members(voters: &[(u64, u64)], learners: &[(u64, u64)]) -> Members {
    let map = |list: &[(u64, u64)]| list.iter().map(|(n, m)| (ReplicaId(*m), node(*n))).collect();
    Members { voters: map(voters), learners: map(learners) }
}

fn ids(list: &[u64]) -> BTreeSet<ReplicaId> {
    list.iter().map(|n| ReplicaId(*n)).collect()
}

fn view(healths: &[(u64, NodeHealth)]) -> NodesView {
    let seen = healths.iter().map(|(n, health)| {
        let view = NodeView {
            health: *health,
            incarnation: Incarnation(1),
            disk: DiskId(Uuid::nil()),
            silent_ms: 0,
            how: None,
            last_beat: None,
        };
        (node(*n), view)
    });
    NodesView { outage: None, nodes: seen.collect() }
}

fn up(count: u64) -> NodesView {
    view(&(1..=count).map(|n| (n, NodeHealth::Up)).collect::<Vec<_>>())
}

const THREE: [(u64, u64); 3] = [(1, 1), (2, 2), (3, 3)];

#[test]
fn a_whole_group_of_three_stays_as_it_is() {
    assert_eq!(plan_membership(&nodes(&THREE), &members(&THREE, &[]), &ids(&[]), &up(3)), None);
}

#[test]
fn a_new_node_learns_and_votes_only_when_the_number_stays_odd() {
    let four = nodes(&[(1, 1), (2, 2), (3, 3), (4, 4)]);
    let step = plan_membership(&four, &members(&THREE, &[]), &ids(&[]), &up(4));
    assert_eq!(step, Some(AddLearner(ReplicaId(4), node(4))));
    let learning = members(&THREE, &[(4, 4)]);
    assert_eq!(plan_membership(&four, &learning, &ids(&[4]), &up(4)), None);
    let five = nodes(&[(1, 1), (2, 2), (3, 3), (4, 4), (5, 5)]);
    let learning = members(&THREE, &[(4, 4), (5, 5)]);
    assert_eq!(plan_membership(&five, &learning, &ids(&[4]), &up(5)), None);
    let step = plan_membership(&five, &learning, &ids(&[4, 5]), &up(5));
    assert_eq!(step, Some(SetVoters(ids(&[1, 2, 3, 4, 5]))));
}

#[test]
fn a_node_with_a_new_disk_takes_its_own_place_under_a_new_id() {
    let nodes = nodes(&[(1, 1), (2, 2), (3, 4)]);
    let step = plan_membership(&nodes, &members(&THREE, &[]), &ids(&[]), &up(3));
    assert_eq!(step, Some(AddLearner(ReplicaId(4), node(3))));
    let learning = members(&THREE, &[(3, 4)]);
    assert_eq!(plan_membership(&nodes, &learning, &ids(&[]), &up(3)), None);
    let step = plan_membership(&nodes, &learning, &ids(&[4]), &up(3));
    assert_eq!(step, Some(SetVoters(ids(&[1, 2, 4]))));
    let swapped = members(&[(1, 1), (2, 2), (3, 4)], &[(3, 3)]);
    let step = plan_membership(&nodes, &swapped, &ids(&[4]), &up(3));
    assert_eq!(step, Some(RemoveLearner(ReplicaId(3))));
}

#[test]
fn a_voter_on_a_gone_node_is_exchanged_but_never_in_an_outage() {
    use NodeHealth::{Gone, Up};
    let four = nodes(&[(1, 1), (2, 2), (3, 3), (4, 4)]);
    let learning = members(&THREE, &[(4, 4)]);
    let mut seen = view(&[(1, Up), (2, Up), (3, Gone), (4, Up)]);
    let step = plan_membership(&four, &learning, &ids(&[4]), &seen);
    assert_eq!(step, Some(SetVoters(ids(&[1, 2, 4]))));
    seen.outage = Some("the broker is down".to_owned());
    assert_eq!(plan_membership(&four, &learning, &ids(&[4]), &seen), None);
}

proptest! {
    /// Whatever the view, a step never shrinks the voters and exchanges one at most.
    #[test]
    fn a_step_never_makes_the_group_weaker(
        voters in 1_u64..=5,
        learners in 0_u64..=4,
        healths in prop::collection::vec(0_u8..3, 9),
        caught in prop::collection::btree_set(1_u64..=9, 0..9),
    ) {
        let total = voters + learners;
        let pairs: Vec<(u64, u64)> = (1..=total).map(|n| (n, n)).collect();
        let (v, l) = pairs.split_at(voters as usize);
        let seen: Vec<(u64, NodeHealth)> = (1..=total)
            .zip(&healths)
            .map(|(n, h)| (n, [NodeHealth::Up, NodeHealth::Suspected, NodeHealth::Gone][*h as usize]))
            .collect();
        let caught_up: BTreeSet<ReplicaId> = caught.iter().map(|n| ReplicaId(*n)).collect();
        let step = plan_membership(&nodes(&pairs), &members(v, l), &caught_up, &view(&seen));
        if let Some(SetVoters(next)) = step {
            let now: BTreeSet<ReplicaId> = v.iter().map(|(_, m)| ReplicaId(*m)).collect();
            prop_assert!(next.len() >= now.len());
            prop_assert!(now.difference(&next).count() <= 1);
            prop_assert!(next.difference(&now).all(|id| caught_up.contains(id)));
            prop_assert!(next.len() <= 5);
        }
    }
}
