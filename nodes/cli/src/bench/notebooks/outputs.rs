//! What a notebook showed, without what no two runs can agree on, and where two runs differ.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
};

use callboard_protocol::jupyter::JupyterMessage;
use serde_json::Value;

/// Most differences that are told of one notebook.
const TOLD_MAX: usize = 6;
/// Longest piece of text in a difference, in characters.
const TOLD_CHARACTERS_MAX: usize = 160;

/// What a run of a notebook showed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::bench) struct Transcript {
    /// The outputs of each cell.
    pub(in crate::bench) cells: Vec<CellOutputs>,
    /// The bench's own last cell: a line for each name of the session.
    pub(super) closing: CellOutputs,
    /// The same cell once more, after the last loss.
    pub(super) closing_again: CellOutputs,
}

/// What a cell showed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::bench) struct CellOutputs {
    /// Text by stream, its pieces joined: where they are cut is chance.
    streams: BTreeMap<String, String>,
    /// Results and displayed data, in order.
    shown: Vec<Shown>,
    /// Its error: name and value.
    error: Option<(String, String)>,
}

/// A result or displayed data.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Shown {
    /// The type of the message.
    kind: String,
    /// The number of a result.
    count: Option<u64>,
    /// Texts by MIME type.
    texts: BTreeMap<String, String>,
    /// MIME types of what is not text, such as `image/png`, and not empty.
    present: BTreeSet<String>,
}

impl CellOutputs {
    /// Takes a message of the cell.
    pub(super) fn take(&mut self, message: &JupyterMessage) {
        if let (Ok(header), Ok(content)) = (message.parse_header(), message.parse_content()) {
            self.add(&header.msg_type, &content);
        }
    }

    /// Takes an output as a message has it, or a notebook's file, where texts may be lists of lines.
    pub(in crate::bench) fn add(&mut self, kind: &str, content: &Value) {
        let text = |value: &Value| normalised(&whole(value));
        match kind {
            "stream" => {
                let name = content["name"].as_str().unwrap_or_default().to_owned();
                // Normalised when it is whole: a piece may end within an address.
                self.streams.entry(name).or_default().push_str(&whole(&content["text"]));
            }
            "error" => self.error = Some((text(&content["ename"]), text(&content["evalue"]))),
            "execute_result" | "display_data" | "update_display_data" | "clear_output" => {
                let mut shown = Shown {
                    kind: kind.to_owned(),
                    count: content["execution_count"].as_u64(),
                    ..Shown::default()
                };
                for (mime, value) in content["data"].as_object().into_iter().flatten() {
                    if mime.starts_with("text/") {
                        shown.texts.insert(mime.clone(), text(value));
                    } else if value.as_str() != Some("") {
                        shown.present.insert(mime.clone());
                    }
                }
                self.shown.push(shown);
            }
            _ => {}
        }
    }

    /// To be called when the cell is over.
    pub(in crate::bench) fn finish(mut self) -> Self {
        for text in self.streams.values_mut() {
            *text = normalised(text);
        }
        self.streams.retain(|_, text| !text.is_empty());
        self
    }

    /// The error's name and value.
    pub(in crate::bench) fn error(&self) -> Option<(&str, &str)> {
        self.error.as_ref().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// How many images it showed.
    pub(in crate::bench) fn images(&self) -> usize {
        let mimes = self.shown.iter().flat_map(|shown| &shown.present);
        mimes.filter(|mime| mime.starts_with("image/")).count()
    }

    fn stdout(&self) -> &str {
        self.streams.get("stdout").map_or("", String::as_str)
    }

    fn differences(&self, other: &Self) -> Vec<String> {
        let mut found = Vec::new();
        let names: BTreeSet<&String> = self.streams.keys().chain(other.streams.keys()).collect();
        for name in names {
            let of = |outputs: &Self| outputs.streams.get(name).cloned().unwrap_or_default();
            found.extend(text_difference(name, &of(self), &of(other)));
        }
        if self.error != other.error {
            found.push(format!("error: {:?} became {:?}", self.error, other.error));
        }
        for (place, (mine, others)) in self.shown.iter().zip(&other.shown).enumerate() {
            found.extend(mine.differences(others).map(|text| format!("output {place}: {text}")));
        }
        if self.shown.len() != other.shown.len() {
            let (mine, others) = (self.shown.len(), other.shown.len());
            found.push(format!("{mine} results and displays became {others}"));
        }
        found
    }
}

impl Shown {
    fn differences(&self, other: &Self) -> impl Iterator<Item = String> {
        let mut found = Vec::new();
        if (&self.kind, self.count) != (&other.kind, other.count) {
            let of = |shown: &Self| format!("{} {:?}", shown.kind, shown.count);
            found.push(format!("{} became {}", of(self), of(other)));
        }
        if self.present != other.present {
            found.push(format!("{:?} became {:?}", self.present, other.present));
        }
        let mimes: BTreeSet<&String> = self.texts.keys().chain(other.texts.keys()).collect();
        for mime in mimes {
            match (self.texts.get(mime), other.texts.get(mime)) {
                (Some(mine), Some(others)) => found.extend(text_difference(mime, mine, others)),
                (mine, _) => {
                    let what = if mine.is_some() { "is missing" } else { "was added" };
                    found.push(format!("{mime} {what}"));
                }
            }
        }
        found.into_iter()
    }
}

impl Transcript {
    /// Where the cells of `other` differ, in words, the first few; empty if they do not.
    pub(in crate::bench) fn differences(&self, other: &Self) -> Vec<String> {
        let mut found = Vec::new();
        for (number, (mine, others)) in self.cells.iter().zip(&other.cells).enumerate() {
            let told = mine.differences(others);
            found.extend(told.into_iter().map(|text| format!("cell {}: {text}", number + 1)));
        }
        if self.cells.len() != other.cells.len() {
            found.push(format!("{} cells became {}", self.cells.len(), other.cells.len()));
        }
        found.truncate(TOLD_MAX);
        found
    }

    /// Keeps of the closing cell only the names that `other`'s has too, with the same type: their
    /// values may be drawn at random.
    pub(super) fn keep_common_names(&mut self, other: &Self) {
        let common: BTreeSet<&str> = other.closing.stdout().lines().map(head).collect();
        let kept: Vec<&str> =
            self.closing.stdout().lines().map(head).filter(|head| common.contains(head)).collect();
        let text = kept.join("\n");
        self.closing = CellOutputs::default();
        self.closing.streams.insert("stdout".to_owned(), text);
    }

    /// Names that `other` lacks or has with another type, and names that the last loss changed in
    /// `other`: the first few of them, in words.
    pub(super) fn names_differing(&self, other: &Self) -> Vec<String> {
        let (before, after) = (other.closing.stdout(), other.closing_again.stdout());
        let mut found = lines_differing(self.closing.stdout().lines(), before.lines().map(head));
        found.extend(lines_differing(before.lines(), after.lines()));
        found.truncate(TOLD_MAX);
        found
    }

    /// How many names the closing cell lists.
    pub(super) fn names(&self) -> usize {
        self.closing.stdout().lines().count()
    }

    /// How many images its cells showed.
    pub(in crate::bench) fn images(&self) -> usize {
        self.cells.iter().map(CellOutputs::images).sum()
    }
}

/// A closing cell's line without the value: name and type.
fn head(line: &str) -> &str {
    line.split(" = ").next().unwrap_or(line)
}

/// Lines of the names on the left that are other ones on the right, or missing there.
fn lines_differing<'a>(
    left: impl Iterator<Item = &'a str>,
    right: impl Iterator<Item = &'a str>,
) -> Vec<String> {
    let name_of = |line: &'a str| line.split(':').next().unwrap_or(line);
    let right: BTreeMap<&str, &str> = right.map(|line| (name_of(line), line)).collect();
    left.filter_map(|line| match right.get(name_of(line)) {
        Some(same) if *same == line => None,
        Some(changed) => Some(format!("{} became {}", short(line), short(changed))),
        None => Some(format!("{} is missing", short(line))),
    })
    .collect()
}

/// The first line in which two texts differ.
fn text_difference(name: &str, left: &str, right: &str) -> Option<String> {
    if left == right {
        return None;
    }
    let (mut lefts, mut rights) = (left.split('\n'), right.split('\n'));
    let mut number = 1;
    loop {
        match (lefts.next(), rights.next()) {
            (Some(left), Some(right)) if left == right => number += 1,
            (left, right) => {
                let of = |line: Option<&str>| line.map_or_else(|| "nothing".to_owned(), short);
                return Some(format!("{name} line {number}: {} became {}", of(left), of(right)));
            }
        }
    }
}

fn short(text: &str) -> String {
    let mut cut: String = text.chars().take(TOLD_CHARACTERS_MAX).collect();
    if cut.len() < text.len() {
        cut.push('…');
    }
    format!("{cut:?}")
}

/// A text, or the lines of one.
fn whole(value: &Value) -> Cow<'_, str> {
    match value {
        Value::String(text) => text.into(),
        Value::Array(lines) => lines.iter().filter_map(Value::as_str).collect::<String>().into(),
        _ => "".into(),
    }
}

/// `text` without what no two processes agree on: the address of an object (`0x7f…`), and the
/// process's id in the folder that ipykernel names as a cell's source (`/tmp/ipykernel_123/`).
fn normalised(text: &str) -> String {
    let without = without_run(text, "ipykernel_", |c| c.is_ascii_digit());
    without_run(&without, "0x", |c| c.is_ascii_digit() || ('a'..='f').contains(&c))
}

/// `text` without the characters that are `dropped`, directly behind each `mark`.
fn without_run(text: &str, mark: &str, dropped: impl Fn(char) -> bool) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(mark) {
        let (before, behind) = rest.split_at(at + mark.len());
        out.push_str(before);
        rest = behind.trim_start_matches(&dropped);
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests;
