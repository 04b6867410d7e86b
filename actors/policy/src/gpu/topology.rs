//! Which of a node's free devices a cell gets: as close together as can be, and leaving what is close
//! together to others.
//!
//! An *island* is a set of devices with fast links between them (NVLink, one PCIe switch). A cell
//! that fits into one gets the island that it fills best; a wider one takes as few as it can.

use std::{cmp::Reverse, collections::BTreeMap};

/// A free device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct FreeDevice {
    /// Its index on the node.
    pub index: u32,
    /// The island it is on.
    pub island: u32,
}

/// `gpus` of the free devices, in order of index; none if there are too few.
#[must_use]
pub fn choose(free: &[FreeDevice], gpus: usize) -> Option<Vec<u32>> {
    if free.len() < gpus {
        return None;
    }
    let mut islands: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for device in free {
        islands.entry(device.island).or_default().push(device.index);
    }
    let mut islands: Vec<Vec<u32>> = islands.into_values().collect();
    let mut chosen = Vec::with_capacity(gpus);
    while chosen.len() < gpus {
        let lacking = gpus - chosen.len();
        // The island that is filled best, or else the one that gives the most.
        let best = islands
            .iter()
            .enumerate()
            .min_by_key(|(_, it)| {
                let fits = it.len() >= lacking;
                (!fits, if fits { it.len() } else { 0 }, Reverse(it.len()))
            })
            .map(|(place, _)| place)?;
        let mut island = islands.swap_remove(best);
        island.sort_unstable();
        chosen.extend(island.into_iter().take(lacking));
        islands.sort();
    }
    chosen.sort_unstable();
    Some(chosen)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn free(list: &[(u32, u32)]) -> Vec<FreeDevice> {
        list.iter().map(|(index, island)| FreeDevice { index: *index, island: *island }).collect()
    }

    #[test]
    fn a_narrow_cell_takes_the_fullest_island_that_has_room() {
        let free = free(&[(0, 0), (1, 0), (2, 0), (3, 0), (5, 1), (6, 1)]);
        assert_eq!(choose(&free, 2), Some(vec![5, 6]));
        assert_eq!(choose(&free, 1), Some(vec![5]));
        assert_eq!(choose(&free, 3), Some(vec![0, 1, 2]));
    }

    #[test]
    fn a_wide_cell_takes_whole_islands_first() {
        let free = free(&[(0, 0), (4, 1), (5, 1), (6, 1), (7, 1), (8, 2), (9, 2)]);
        assert_eq!(choose(&free, 5), Some(vec![0, 4, 5, 6, 7]));
        assert_eq!(choose(&free, 6), Some(vec![4, 5, 6, 7, 8, 9]));
        assert_eq!(choose(&free, 8), None);
        assert_eq!(choose(&free, 0), Some(vec![]));
    }

    proptest! {
        #[test]
        fn as_many_as_asked_for_each_free_and_none_twice(
            islands in prop::collection::vec(0_u32..4, 0..16),
            gpus in 0_usize..17,
        ) {
            let free: Vec<FreeDevice> = islands
                .iter()
                .enumerate()
                .map(|(index, island)| FreeDevice { index: index as u32, island: *island })
                .collect();
            match choose(&free, gpus) {
                None => prop_assert!(gpus > free.len()),
                Some(chosen) => {
                    prop_assert_eq!(chosen.len(), gpus);
                    prop_assert!(chosen.windows(2).all(|it| it[0] < it[1]));
                    prop_assert!(chosen.iter().all(|it| (*it as usize) < free.len()));
                }
            }
        }
    }
}
