//! Which process the time of a cell goes to.

use std::collections::BTreeMap;

use crate::bench::process::{self, Tree};

/// Less than this per cell is not worth a figure, in milliseconds.
const SHOWN_FROM_MS: f64 = 0.02;

/// Watches this process and everything it started.
#[derive(Debug)]
pub(super) struct Meter {
    names: BTreeMap<u32, String>,
}

impl Meter {
    /// Those that run now.
    pub(super) fn new() -> Self {
        let me = std::process::id();
        let name = |pid| if pid == me { "client".to_owned() } else { process::name(pid) };
        let family = Tree::now().family(me);
        Self { names: family.into_iter().map(|pid| (pid, name(pid))).collect() }
    }

    /// Milliseconds of processor time that each has used.
    pub(super) fn read(&self) -> BTreeMap<u32, f64> {
        self.names.keys().filter_map(|pid| Some((*pid, process::cpu_ms(*pid)?))).collect()
    }
}

/// Processor time of one side's cells, by process.
#[derive(Debug, Default)]
pub(super) struct Spent {
    by_name_ms: BTreeMap<String, f64>,
    cells: u32,
}

impl Spent {
    /// Adds what was used between two readings, during which so many cells ran.
    pub(super) fn add(
        &mut self,
        meter: &Meter,
        (before, after): (&BTreeMap<u32, f64>, &BTreeMap<u32, f64>),
        cells: u32,
    ) {
        for (pid, now) in after {
            let name = meter.names.get(pid).cloned().unwrap_or_default();
            *self.by_name_ms.entry(name).or_default() += now - before.get(pid).unwrap_or(now);
        }
        self.cells += cells;
    }

    /// Milliseconds per cell of each process that had a part in it.
    pub(super) fn per_cell(&self) -> impl Iterator<Item = (&str, f64)> {
        let cells = f64::from(self.cells.max(1));
        let per_cell = self.by_name_ms.iter().map(move |(name, ms)| (name.as_str(), ms / cells));
        per_cell.filter(|(_, ms)| *ms >= SHOWN_FROM_MS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_told_per_process_and_cell_and_little_of_it_is_left_out() {
        let meter = Meter { names: [(1, "a".to_owned()), (2, "b".to_owned())].into() };
        let mut spent = Spent::default();
        let (before, after) = ([(1, 5.0), (2, 7.0)].into(), [(1, 9.0), (2, 7.1)].into());
        spent.add(&meter, (&before, &after), 10);
        assert_eq!(spent.per_cell().collect::<Vec<_>>(), [("a", 0.4)]);
    }

    #[test]
    fn this_process_is_the_client_and_has_used_time() {
        let meter = Meter::new();
        let me = std::process::id();
        assert_eq!(meter.names[&me], "client");
        assert!(meter.read()[&me] > 0.0);
    }
}
