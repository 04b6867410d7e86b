//! When a notebook's executor is lost, and how: a function of the seed and of the notebook's path,
//! so that one notebook alone meets the same losses as in a whole run.

use callboard_protocol::control::Standby;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use sha2::{Digest as _, Sha256};

use crate::bench::failover::Loss;

/// Fewest losses of a notebook's session before its last cell.
const LOSSES_MIN: usize = 2;
/// One more loss for each so many places between cells.
const PLACES_PER_LOSS: usize = 4;
/// Of so many losses, one is a node's, the others a Python process's.
const NODE_IS_LOST_ONE_OF: u32 = 5;

/// A loss before a cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kill {
    /// The place of the cell that follows; the number of cells if it is the bench's own last one.
    pub(super) before: usize,
    /// What is lost.
    pub(super) loss: Loss,
}

/// What happens to a notebook's session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Plan {
    /// Whether its standbys have Python processes; then another replica takes over from a lost
    /// process, else as a rule the same one, on a fresh process.
    pub(super) standby: Standby,
    /// The losses, in their order.
    pub(super) kills: Vec<Kill>,
}

/// The losses of a notebook of `cells` cells, in their order. One is in the first half, the last one
/// after the notebook's last cell. Several may fall between the same two cells.
pub(super) fn plan(seed: u64, path: &str, cells: usize) -> Plan {
    let digest = Sha256::new().chain_update(seed.to_be_bytes()).chain_update(path).finalize();
    let mut rng = StdRng::from_seed(digest.into());
    let mut places = Vec::new();
    if cells >= 2 {
        places.push(rng.random_range(1..=cells / 2));
        let more = LOSSES_MIN.max((cells - 1) / PLACES_PER_LOSS) - 1;
        places.extend((0..more).map(|_| rng.random_range(1..cells)));
    }
    places.push(cells);
    places.sort_unstable();
    let kill = |before| {
        let is_node = rng.random_range(0..NODE_IS_LOST_ONE_OF) == 0;
        Kill { before, loss: if is_node { Loss::Node } else { Loss::Python } }
    };
    let kills = places.into_iter().map(kill).collect();
    Plan { standby: if rng.random() { Standby::Hot } else { Standby::Thin }, kills }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seed_and_the_path_fix_the_losses() {
        assert_eq!(plan(1, "a", 9), plan(1, "a", 9));
        assert!((0..9).any(|seed| plan(seed, "a", 9) != plan(seed + 1, "a", 9)));
        assert!((0..9).any(|seed| plan(seed, "a", 9) != plan(seed, "b", 9)));
    }

    #[test]
    fn two_losses_at_least_lie_between_cells_one_in_the_first_half_one_at_the_end() {
        for cells in 2..40 {
            for seed in 0..20 {
                let kills = plan(seed, "a", cells).kills;
                let between = kills.iter().filter(|kill| kill.before < cells).count();
                assert!(between >= LOSSES_MIN.max((cells - 1) / PLACES_PER_LOSS));
                assert!((1..=cells / 2).contains(&kills[0].before), "{kills:?}");
                assert_eq!(kills.last().map(|kill| kill.before), Some(cells));
                assert!(kills.is_sorted_by_key(|kill| kill.before));
            }
        }
    }

    #[test]
    fn some_nodes_are_lost_but_fewer_than_processes() {
        let kills: Vec<Kill> = (0..200).flat_map(|seed| plan(seed, "a", 5).kills).collect();
        let nodes = kills.iter().filter(|kill| kill.loss == Loss::Node).count();
        assert!(nodes > 0 && nodes * 3 < kills.len(), "{nodes} of {}", kills.len());
    }
}
