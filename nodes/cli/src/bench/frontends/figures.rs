//! What a run found, as figures.

use std::collections::BTreeMap;

use super::{
    COUNT,
    executed::Executed,
    programs::{Program, Side},
};
use crate::bench::{
    notebooks::plain::Exclusion,
    report::{Bar, Figure},
    stats::Samples,
};

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Notebooks that every program ran on every side.
    pub(super) notebooks: usize,
    runs: usize,
    differing: usize,
    cells: usize,
    images: usize,
    /// Notebooks that were not taken, by reason.
    pub(super) excluded: BTreeMap<&'static str, usize>,
    seconds: BTreeMap<(Program, Side), Vec<f64>>,
}

impl Found {
    /// Counts a run on one of Callboard's sides: of what plain ipykernel shows there.
    pub(super) fn take(&mut self, plain: &Executed, differs: bool) {
        self.runs += 1;
        self.differing += usize::from(differs);
        self.cells += plain.transcript.cells.len();
        self.images += plain.transcript.images();
    }

    /// Counts the time of a run.
    pub(super) fn took(&mut self, how: (Program, Side), seconds: f64) {
        self.seconds.entry(how).or_default().push(seconds);
    }

    /// The figures of the run. A partial one is not held to the count of a whole one.
    pub(super) fn figures(mut self, is_partial: bool, kernels_left: usize) -> Vec<Figure> {
        let count = |name: &str, value: usize| Figure::plain(name, value as f64, "count");
        let notebooks = self.notebooks as f64;
        let differing = if self.runs == 0 { f64::NAN } else { self.differing as f64 };
        let mut figures = vec![
            if is_partial {
                Figure::plain("notebooks_run", notebooks, "count")
            } else {
                Figure::held("notebooks_run", notebooks, "count", Bar::AtLeast(COUNT as f64))
            },
            Figure::held("outputs_differing", differing, "count", Bar::AtMost(0.0)),
            Figure::held("kernels_left", kernels_left as f64, "count", Bar::AtMost(0.0)),
            count("runs", self.runs),
            count("cells_compared", self.cells),
            count("images_compared", self.images),
        ];
        for reason in Exclusion::REASONS {
            let excluded = self.excluded.get(reason).copied().unwrap_or(0);
            figures.push(count(&format!("excluded_{reason}"), excluded));
        }
        for program in Program::ALL {
            for side in Side::ALL {
                let times = Samples::new(self.seconds.remove(&(program, side)).unwrap_or_default());
                let name = format!("{}_{}_p50_s", program.name(), side.name());
                figures.push(Figure::plain(name, times.median(), "s"));
            }
        }
        figures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holds(figures: &[Figure], name: &str) -> Option<bool> {
        figures.iter().find(|figure| figure.name == name).unwrap().holds
    }

    #[test]
    fn a_whole_run_is_held_to_ten_and_a_partial_one_is_not() {
        let nine = |is_partial| Found { notebooks: 9, ..Found::default() }.figures(is_partial, 0);
        assert_eq!(holds(&nine(false), "notebooks_run"), Some(false));
        assert_eq!(holds(&nine(true), "notebooks_run"), None);
    }

    #[test]
    fn a_difference_a_run_of_nothing_and_a_kernel_that_is_left_miss_their_bars() {
        let of = |differs: &[bool], left| {
            let mut found = Found::default();
            differs.iter().for_each(|differs| found.take(&Executed::default(), *differs));
            let figures = found.figures(true, left);
            (holds(&figures, "outputs_differing"), holds(&figures, "kernels_left"))
        };
        assert_eq!(of(&[false, false], 0), (Some(true), Some(true)));
        assert_eq!(of(&[false, true], 1), (Some(false), Some(false)));
        assert_eq!(of(&[], 0).0, Some(false));
    }

    #[test]
    fn each_program_and_side_has_its_time() {
        let mut found = Found::default();
        found.took((Program::Papermill, Side::Gateway), 2.0);
        let figures = found.figures(true, 0);
        let of = |name: &str| figures.iter().find(|figure| figure.name == name).unwrap().value;
        assert_eq!(of("papermill_gateway_p50_s"), 2.0);
        assert!(of("nbconvert_plain_p50_s").is_nan());
    }
}
