//! What an executed notebook shows: its file, read.

use std::{fs, path::Path};

use serde::Deserialize;
use serde_json::Value;

use crate::bench::notebooks::outputs::{CellOutputs, Transcript};

/// What a program left of a notebook that it ran.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Executed {
    /// The outputs of each cell that has code.
    pub(super) transcript: Transcript,
    /// The number of each of them.
    numbers: Vec<u64>,
}

#[derive(Debug, Deserialize)]
struct Document {
    cells: Vec<Cell>,
}

#[derive(Debug, Deserialize)]
struct Cell {
    cell_type: String,
    #[serde(default)]
    source: Source,
    #[serde(default)]
    execution_count: Option<u64>,
    #[serde(default)]
    outputs: Vec<Value>,
}

/// A text, or its lines.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Source {
    Text(String),
    Lines(Vec<String>),
}

impl Default for Source {
    fn default() -> Self {
        Self::Text(String::new())
    }
}

impl Source {
    fn is_blank(&self) -> bool {
        match self {
            Self::Text(text) => text.trim().is_empty(),
            Self::Lines(lines) => lines.iter().all(|line| line.trim().is_empty()),
        }
    }
}

impl Executed {
    /// Reads a file that has `cells` cells with code, all of them run.
    ///
    /// # Errors
    /// A sentence if it cannot be read, or a cell was left out: nothing shown is not what was run.
    pub(super) fn read(file: &Path, cells: usize) -> Result<Self, String> {
        let bytes = fs::read(file).map_err(|error| format!("it left no notebook ({error})"))?;
        Self::parse(&bytes, cells)
    }

    fn parse(bytes: &[u8], cells: usize) -> Result<Self, String> {
        let document: Document = serde_json::from_slice(bytes)
            .map_err(|error| format!("the notebook that it left cannot be read: {error}"))?;
        let mut executed = Self::default();
        let is_run = |cell: &Cell| cell.cell_type == "code" && !cell.source.is_blank();
        for (place, cell) in document.cells.into_iter().filter(is_run).enumerate() {
            let number = cell.execution_count;
            executed.numbers.push(number.ok_or(format!("cell {} was not run", place + 1))?);
            let mut outputs = CellOutputs::default();
            for output in &cell.outputs {
                outputs.add(output["output_type"].as_str().unwrap_or_default(), output);
            }
            executed.transcript.cells.push(outputs.finish());
        }
        match executed.numbers.len() {
            ran if ran == cells => Ok(executed),
            ran => Err(format!("it ran {ran} of {cells} cells")),
        }
    }

    /// Where `other` differs, in words, the first few; empty if it does not.
    pub(super) fn differences(&self, other: &Self) -> Vec<String> {
        let mut found = self.transcript.differences(&other.transcript);
        let pairs = self.numbers.iter().zip(&other.numbers).enumerate();
        let renumbered = pairs.filter(|(_, (mine, others))| mine != others);
        found.extend(renumbered.map(|(place, (mine, others))| {
            format!("cell {}: number {mine} became {others}", place + 1)
        }));
        found
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn code(number: Option<u64>, outputs: &Value) -> Value {
        json!({ "cell_type": "code", "source": ["x = 1\n", "x"], "metadata": {},
                "execution_count": number, "outputs": outputs })
    }

    fn executed(cells: &[Value], count: usize) -> Result<Executed, String> {
        Executed::parse(json!({ "cells": cells }).to_string().as_bytes(), count)
    }

    #[test]
    fn texts_are_the_same_in_one_piece_and_in_lines_and_blank_cells_are_none() {
        let lines = json!([{ "output_type": "stream", "name": "stdout", "text": ["a\n", "b\n"] }]);
        let piece = json!([{ "output_type": "stream", "name": "stdout", "text": "a\n" },
                           { "output_type": "stream", "name": "stdout", "text": "b\n" }]);
        let blank = json!({ "cell_type": "code", "source": [" \n"], "outputs": [] });
        let prose = json!({ "cell_type": "markdown", "source": "prose" });
        let left = executed(&[prose, blank, code(Some(1), &lines)], 1).unwrap();
        assert_eq!(left, executed(&[code(Some(1), &piece)], 1).unwrap());
        assert!(!left.differences(&executed(&[code(Some(1), &json!([]))], 1).unwrap()).is_empty());
    }

    #[test]
    fn images_errors_results_and_numbers_are_held_against_each_other() {
        let of = |output: Value| executed(&[code(Some(2), &json!([output]))], 1).unwrap();
        let shown = |data| of(json!({ "output_type": "display_data", "data": data }));
        let figure = |png| shown(json!({ "image/png": png, "text/plain": ["<Figure>"] }));
        assert_eq!(figure("AAAA").differences(&figure("BBBB")), [""; 0]);
        assert_eq!(figure("AAAA").transcript.images(), 1);
        let bare = shown(json!({ "text/plain": "<Figure>" }));
        assert_eq!(figure("AAAA").differences(&bare).len(), 1);
        let error = |text| of(json!({ "output_type": "error", "ename": "E", "evalue": text }));
        assert_eq!(error("a").differences(&error("b")).len(), 1);
        let renumbered = executed(&[code(Some(3), &json!([]))], 1).unwrap();
        let plain = executed(&[code(Some(2), &json!([]))], 1).unwrap();
        assert_eq!(plain.differences(&renumbered), ["cell 1: number 2 became 3"]);
    }

    #[test]
    fn a_cell_that_was_not_run_is_told_however_little_it_shows() {
        let cells = [code(Some(1), &json!([])), code(None, &json!([]))];
        assert_eq!(executed(&cells, 2).unwrap_err(), "cell 2 was not run");
        assert_eq!(executed(&cells[..1], 2).unwrap_err(), "it ran 1 of 2 cells");
        let none = Executed::read(Path::new("/nonexistent"), 1).unwrap_err();
        assert!(none.starts_with("it left no notebook"), "{none}");
    }
}
