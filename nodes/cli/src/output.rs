//! What is printed: tables or JSON to stdout, words to stderr.

use std::io::{self, IsTerminal as _, Write as _};

use clap::ValueEnum;
use comfy_table::{ContentArrangement, Table, presets::NOTHING};
use serde::Serialize;

use crate::exit::Failure;

/// How data is printed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For reading.
    #[default]
    Table,
    /// For programs: one JSON object.
    Json,
}

/// How this run prints.
#[derive(Debug, Clone, Copy)]
pub struct Printer {
    /// How data is printed.
    pub format: Format,
    /// Whether escape sequences for colour may be used.
    pub color: bool,
}

impl Printer {
    /// Colour only on a terminal, and neither with `--no-color` nor with `NO_COLOR`.
    #[must_use]
    pub fn new(format: Format, no_color: bool) -> Self {
        let refused = no_color || std::env::var_os("NO_COLOR").is_some_and(|text| !text.is_empty());
        Self { format, color: !refused && io::stderr().is_terminal() }
    }

    /// Whether data is printed as JSON.
    #[must_use]
    pub fn is_json(self) -> bool {
        self.format == Format::Json
    }

    /// Prints `value` as JSON, or what `text` makes of it.
    ///
    /// # Errors
    /// A [`Failure`] if stdout cannot be written.
    pub fn data<T: Serialize>(
        self,
        value: &T,
        text: impl FnOnce(&T) -> String,
    ) -> Result<(), Failure> {
        let line = match self.format {
            Format::Table => text(value),
            Format::Json => serde_json::to_string(value).map_err(io::Error::other)?,
        };
        stdout_line(&line)
    }

    /// `text` without its escape sequences, unless colour is wanted.
    #[must_use]
    pub fn plain(self, text: &str) -> String {
        if self.color { text.to_owned() } else { strip_escapes(text) }
    }
}

/// Writes a line to stdout at once.
///
/// # Errors
/// A [`Failure`] if stdout cannot be written.
pub fn stdout_line(line: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    if !line.is_empty() {
        writeln!(out, "{}", line.trim_end_matches('\n'))?;
    }
    out.flush()?;
    Ok(())
}

/// Says something to whoever watches, on stderr.
pub fn say(text: &str) {
    // Nobody to tell if stderr is closed.
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Rows under headings, aligned, without lines.
#[must_use]
pub fn table(headings: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_preset(NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(headings.iter().map(|heading| heading.to_uppercase()));
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

/// Removes ANSI control sequences, `ESC [ … letter`.
fn strip_escapes(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '\u{1b}' {
            out.push(c);
        } else if chars.next() == Some('[') {
            let _ = chars.find(|c| c.is_ascii_alphabetic());
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_removed_and_text_is_kept() {
        assert_eq!(strip_escapes("\u{1b}[0;31mValueError\u{1b}[0m: é"), "ValueError: é");
    }

    #[test]
    fn a_table_is_aligned_under_its_headings() {
        let rows = [vec!["a".to_owned(), "1".to_owned()], vec!["bcd".to_owned(), "2".to_owned()]];
        let lines: Vec<String> = table(&["id", "n"], rows).lines().map(str::to_owned).collect();
        assert_eq!(lines.len(), 3);
        let column = |line: &String| line.find(['N', '1', '2']);
        assert!(column(&lines[0]) == column(&lines[1]) && column(&lines[1]) == column(&lines[2]));
    }
}
