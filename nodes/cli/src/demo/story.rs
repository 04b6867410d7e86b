//! How the demo tells what happens: one line each, with the seconds since its start.

use std::{
    io::{self, IsTerminal as _, Write as _},
    time::Duration,
};

use tokio::time::Instant;

const BOLD: &str = "1";
const DIM: &str = "2";
const RED: &str = "31";
const GREEN: &str = "32";

/// Tells the story on stdout.
#[derive(Debug, Clone, Copy)]
pub(super) struct Story {
    begun: Instant,
    color: bool,
}

impl Story {
    /// Begins now. Colour only if it is `wanted` and stdout is a terminal.
    pub(super) fn begin(wanted: bool) -> Self {
        Self { begun: Instant::now(), color: wanted && io::stdout().is_terminal() }
    }

    /// Time since the start.
    pub(super) fn elapsed(self) -> Duration {
        self.begun.elapsed()
    }

    /// A line without a time.
    pub(super) fn line(self, text: &str) {
        // A reader that went away does not keep the demo from its check.
        let _ = writeln!(io::stdout().lock(), "{text}");
    }

    /// The heading of an act.
    pub(super) fn act(self, text: &str) {
        self.line(&format!("\n{}", self.paint(BOLD, text)));
    }

    /// Something that happened.
    pub(super) fn tell(self, text: &str) {
        self.line(&format!("{}  {text}", self.clock()));
    }

    /// Something was destroyed.
    pub(super) fn blow(self, text: &str) {
        self.tell(&self.paint(RED, text));
    }

    /// A promise was kept.
    pub(super) fn good(self, text: &str) {
        self.tell(&self.paint(GREEN, text));
    }

    /// What a cell said: its first word in front of each line.
    pub(super) fn cell(self, name: &str, text: &str, took: Duration) {
        let mut lines = text.trim_end().lines();
        let first = lines.next().unwrap_or("(no output)");
        let took = self.paint(DIM, &format!("{:.2} s", took.as_secs_f32()));
        let name = self.paint(DIM, &format!("{name:<9}"));
        self.tell(&format!("{name} {first}  {took}"));
        for line in lines {
            self.line(&format!("{:20}{line}", ""));
        }
    }

    fn clock(self) -> String {
        self.paint(DIM, &format!("{:6.1} s", self.elapsed().as_secs_f32()))
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.color { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }
}
