//! What a bench says at its end: figures, each with the bar it is held against.

use std::{fmt, fs, thread};

use serde::Serialize;

use crate::{
    exit::{Exit, Outcome},
    output::{Printer, table},
};

/// What a figure must reach.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Bar {
    /// At most this.
    AtMost(f64),
    /// At least this.
    AtLeast(f64),
}

impl Bar {
    fn holds(self, value: f64) -> bool {
        match self {
            Self::AtMost(limit) => value <= limit,
            Self::AtLeast(limit) => value >= limit,
        }
    }
}

impl fmt::Display for Bar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtMost(limit) => write!(f, "<= {limit}"),
            Self::AtLeast(limit) => write!(f, ">= {limit}"),
        }
    }
}

/// One number.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figure {
    /// Its name; the unit stands at its end where there is one.
    pub name: String,
    /// The number; none if nothing was measured.
    pub value: f64,
    /// Its unit; `ratio` and `count` are units too.
    pub unit: &'static str,
    /// What it must reach, such as `<= 2`.
    pub bar: Option<String>,
    /// Whether it does.
    pub holds: Option<bool>,
}

impl Figure {
    /// A figure without a bar.
    #[must_use]
    pub fn plain(name: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Self { name: name.into(), value: rounded(value), unit, bar: None, holds: None }
    }

    /// A figure with a bar. What could not be measured does not hold.
    #[must_use]
    pub fn held(name: impl Into<String>, value: f64, unit: &'static str, bar: Bar) -> Self {
        let figure = Self::plain(name, value, unit);
        Self { bar: Some(bar.to_string()), holds: Some(bar.holds(value)), ..figure }
    }
}

fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

/// The machine that was measured on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Machine {
    /// Model of its processor.
    pub cpu: String,
    /// Processors this process may use.
    pub cpus: usize,
    /// Its operating system.
    pub os: String,
    /// `release` or `debug`. Bars are meant for `release`.
    pub build: &'static str,
}

impl Machine {
    /// This machine.
    #[must_use]
    pub fn here() -> Self {
        let line = |file: &str| fs::read_to_string(file).unwrap_or_default();
        let cpu = line("/proc/cpuinfo")
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
            .map_or_else(|| "unknown".to_owned(), |(_, model)| model.trim().to_owned());
        Self {
            cpu,
            cpus: thread::available_parallelism().map_or(1, usize::from),
            os: format!("Linux {}", line("/proc/sys/kernel/osrelease").trim()),
            build: if cfg!(debug_assertions) { "debug" } else { "release" },
        }
    }
}

/// What a bench found.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The bench.
    pub bench: &'static str,
    /// What its random choices were drawn from.
    pub seed: u64,
    /// Where it ran.
    pub machine: Machine,
    /// What it found.
    pub figures: Vec<Figure>,
}

impl Report {
    /// Prints the report. Ends the command with 1 if a bar does not hold.
    ///
    /// # Errors
    /// A [`crate::exit::Failure`] if stdout cannot be written.
    pub fn print(&self, printer: Printer) -> Outcome {
        printer.data(self, Self::text)?;
        let fails = self.figures.iter().any(|figure| figure.holds == Some(false));
        Ok(if fails { Exit::Failed } else { Exit::Ok })
    }

    fn text(&self) -> String {
        let Machine { cpu, cpus, os, build } = &self.machine;
        let head = format!(
            "{} · seed {} · {cpus} x {cpu} · {os} · {build} build\n\n",
            self.bench, self.seed
        );
        let row = |figure: &Figure| {
            let verdict = match figure.holds {
                None => "",
                Some(true) => "holds",
                Some(false) => "MISSED",
            };
            vec![
                figure.name.clone(),
                format!("{:.3}", figure.value),
                figure.unit.to_owned(),
                figure.bar.clone().unwrap_or_default(),
                verdict.to_owned(),
            ]
        };
        head + &table(&["figure", "value", "unit", "bar", ""], self.figures.iter().map(row))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn the_json_object_has_the_documented_shape() {
        let figures = vec![
            Figure::held("roundtrip_received_over_zmq", 1.23456, "ratio", Bar::AtMost(2.0)),
            Figure::plain("fsync_p50_ms", 0.25, "ms"),
        ];
        let machine =
            Machine { cpu: "c".to_owned(), cpus: 2, os: "Linux 6".to_owned(), build: "release" };
        let report = Report { bench: "cells", seed: 7, machine, figures };
        let expected = json!({
            "bench": "cells", "seed": 7,
            "machine": { "cpu": "c", "cpus": 2, "os": "Linux 6", "build": "release" },
            "figures": [
                { "name": "roundtrip_received_over_zmq", "value": 1.235, "unit": "ratio",
                  "bar": "<= 2", "holds": true },
                { "name": "fsync_p50_ms", "value": 0.25, "unit": "ms", "bar": null, "holds": null },
            ],
        });
        assert_eq!(serde_json::to_value(&report).unwrap(), expected);
    }

    #[test]
    fn a_bar_is_judged_by_the_exact_value_and_nothing_measured_does_not_hold() {
        let held = |value, bar| Figure::held("f", value, "ratio", bar).holds;
        assert_eq!(held(2.0, Bar::AtMost(2.0)), Some(true));
        assert_eq!(held(2.0001, Bar::AtMost(2.0)), Some(false));
        assert_eq!(held(2.9999, Bar::AtLeast(3.0)), Some(false));
        assert_eq!(held(f64::NAN, Bar::AtLeast(3.0)), Some(false));
        let nothing = serde_json::to_value(Figure::plain("f", f64::NAN, "ms")).unwrap();
        assert_eq!(nothing["value"], Value::Null);
    }
}
