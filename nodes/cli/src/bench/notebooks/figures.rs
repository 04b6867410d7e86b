//! What a run found, as figures.

use std::collections::BTreeMap;

use super::{
    COUNT,
    kills::Plan,
    plain::{Exclusion, Measure},
    trial::Ran,
};
use crate::bench::{
    failover::Loss,
    report::{Bar, Figure},
    stats::Samples,
};

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Notebooks that ran on Callboard.
    pub(super) run: usize,
    differing: usize,
    cells: usize,
    kills: usize,
    nodes_lost: usize,
    images: usize,
    names: usize,
    refused: usize,
    /// Notebooks that were not taken, by reason.
    pub(super) excluded: BTreeMap<&'static str, usize>,
    plain_s: Vec<f64>,
    callboard_s: Vec<f64>,
}

impl Found {
    /// Counts a notebook that ran.
    pub(super) fn take(
        &mut self,
        plan: &Plan,
        measure: &Measure,
        ran: &Result<Ran, String>,
        differs: bool,
    ) {
        let plain = &measure.transcript;
        self.run += 1;
        self.cells += plain.cells.len();
        self.kills += plan.kills.len();
        self.nodes_lost += plan.kills.iter().filter(|kill| kill.loss == Loss::Node).count();
        self.images += plain.images();
        self.names += plain.names();
        self.plain_s.push(measure.seconds);
        if let Ok(ran) = ran {
            self.callboard_s.push(ran.seconds);
            self.refused += ran.refused.len();
        }
        self.differing += usize::from(differs);
    }

    /// The figures of the run. A partial one is not held to the count of a whole one.
    pub(super) fn figures(self, is_partial: bool) -> Vec<Figure> {
        let count = |name: &str, value: usize| Figure::plain(name, value as f64, "count");
        let run = self.run as f64;
        let mut figures = vec![
            if is_partial {
                Figure::plain("notebooks_run", run, "count")
            } else {
                Figure::held("notebooks_run", run, "count", Bar::AtLeast(COUNT as f64))
            },
            Figure::held(
                "notebooks_differing",
                if self.run == 0 { f64::NAN } else { self.differing as f64 },
                "count",
                Bar::AtMost(0.0),
            ),
            count("cells_run", self.cells),
            count("kills", self.kills),
            count("kills_of_nodes", self.nodes_lost),
            count("images_compared", self.images),
            count("names_compared", self.names),
            count("names_left_behind", self.refused),
        ];
        for reason in Exclusion::REASONS {
            let excluded = self.excluded.get(reason).copied().unwrap_or(0);
            figures.push(count(&format!("excluded_{reason}"), excluded));
        }
        for (name, seconds) in [("plain", self.plain_s), ("callboard", self.callboard_s)] {
            let samples = Samples::new(seconds);
            figures.push(Figure::plain(format!("{name}_cells_p50_s"), samples.median(), "s"));
        }
        figures
    }
}

/// What a run with losses shows that the plain one does not, and the other way round.
pub(super) fn differences(measure: &Measure, ran: &Result<Ran, String>) -> Vec<String> {
    match ran {
        Ok(ran) => {
            let plain = &measure.transcript;
            let mut told = plain.differences(&ran.transcript);
            told.extend(plain.names_differing(&ran.transcript));
            told.extend(ran.refused.iter().map(|name| format!("left behind: {name}")));
            told
        }
        Err(why) => vec![why.clone()],
    }
}

#[cfg(test)]
mod tests {
    use callboard_protocol::control::Standby;

    use super::*;

    fn plan() -> Plan {
        Plan { standby: Standby::Hot, kills: Vec::new() }
    }

    #[test]
    fn a_session_without_an_end_and_a_name_left_behind_are_differences() {
        let measure = Measure { transcript: Default::default(), seconds: 1.0 };
        let ran = |refused| Ok(Ran { transcript: Default::default(), seconds: 1.0, refused });
        let mut found = Found::default();
        let mut take = |ran| {
            let differences = differences(&measure, &ran);
            found.take(&plan(), &measure, &ran, !differences.is_empty());
            differences
        };
        assert!(take(ran(Vec::new())).is_empty());
        assert_eq!(take(Err("no end".to_owned())), ["no end"]);
        assert_eq!(take(ran(vec!["gen (why)".to_owned()])), ["left behind: gen (why)"]);
        assert_eq!((found.run, found.differing, found.refused), (3, 2, 1));
    }

    #[test]
    fn a_whole_run_is_held_to_twenty_and_a_partial_one_is_not() {
        let run = |is_partial| Found { run: 19, ..Found::default() }.figures(is_partial)[0].holds;
        assert_eq!((run(false), run(true)), (Some(false), None));
    }

    #[test]
    fn a_difference_misses_the_bar_and_so_does_a_run_of_nothing() {
        let differing = |found: Found| found.figures(false)[1].holds;
        assert_eq!(differing(Found { run: 20, ..Found::default() }), Some(true));
        assert_eq!(differing(Found { run: 20, differing: 1, ..Found::default() }), Some(false));
        assert_eq!(differing(Found::default()), Some(false));
    }

    #[test]
    fn each_reason_has_its_figure() {
        let excluded = BTreeMap::from([(Exclusion::TooLong.reason(), 2)]);
        let figures = Found { excluded, ..Found::default() }.figures(false);
        let of = |name: &str| figures.iter().find(|figure| figure.name == name).unwrap().value;
        assert_eq!(of("excluded_too_long"), 2.0);
        assert_eq!(of("excluded_needs_network"), 0.0);
    }
}
