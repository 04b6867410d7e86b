//! A run's decisions as a file: what was told to the scheduler and what it said, line by line. The
//! file alone is enough to decide everything again.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::{self, BufRead, Write},
};

use callboard_policy::gpu::scheduler::{Effect, Input, Scheduler};
use callboard_protocol::KernelId;
use serde::{Deserialize, Serialize};

use crate::{compare::Kind, costs::Cluster, engine::Watch};

/// The first line: whose decisions they are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// Which scheduler.
    pub policy: Kind,
    /// What it drew from.
    pub seed: u64,
    /// What it decided about.
    pub cluster: Cluster,
}

/// Any other line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// When.
    pub at_ms: u64,
    /// What was told.
    pub input: Input,
    /// What it said.
    pub effects: Vec<Effect>,
}

/// Why a file of decisions cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum DecisionsError {
    /// It cannot be read.
    #[error("cannot read it: {0}")]
    Read(#[from] io::Error),
    /// A line is no decision.
    #[error(
        "line {line} is no decision: {why}; `callboard simulate --decisions` writes such files"
    )]
    Line {
        /// Which.
        line: usize,
        /// Why not.
        why: serde_json::Error,
    },
    /// There is no first line.
    #[error("it is empty; `callboard simulate --decisions` writes such files")]
    Empty,
}

/// Writes a run's decisions. Looks that led to nothing are kept too: they teach the scheduler.
pub struct Recorder<W: Write> {
    to: W,
    failure: Option<io::Error>,
}

impl<W: Write> Recorder<W> {
    /// Writes the header.
    ///
    /// # Errors
    /// If that cannot be written.
    pub fn new(mut to: W, header: &Header) -> io::Result<Self> {
        serde_json::to_writer(&mut to, header)?;
        to.write_all(b"\n")?;
        Ok(Self { to, failure: None })
    }

    /// Ends the file.
    ///
    /// # Errors
    /// The first line that could not be written.
    pub fn finish(mut self) -> io::Result<()> {
        self.failure.take().map_or(Ok(()), Err)?;
        self.to.flush()
    }
}

impl<W: Write> Watch for Recorder<W> {
    fn decided(&mut self, at_ms: u64, input: &Input, effects: &[Effect], _: &Scheduler) {
        if self.failure.is_some() {
            return;
        }
        let record = Record { at_ms, input: input.clone(), effects: effects.to_vec() };
        let written = serde_json::to_writer(&mut self.to, &record)
            .map_err(io::Error::from)
            .and_then(|()| self.to.write_all(b"\n"));
        self.failure = written.err();
    }
}

/// Reads a file: its header, then each record.
///
/// # Errors
/// [`DecisionsError`] if there is no header; each record is or is not one.
pub fn read<R: BufRead>(
    from: R,
) -> Result<(Header, impl Iterator<Item = Result<Record, DecisionsError>>), DecisionsError> {
    let mut lines = from.lines().enumerate();
    let (_, first) = lines.next().ok_or(DecisionsError::Empty)?;
    let header =
        serde_json::from_str(&first?).map_err(|why| DecisionsError::Line { line: 1, why })?;
    let records = lines.map(|(number, line)| {
        serde_json::from_str(&line?).map_err(|why| DecisionsError::Line { line: number + 1, why })
    });
    Ok((header, records))
}

/// What deciding again found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Replayed {
    /// Records.
    pub decisions: u64,
    /// Those for which the scheduler now says something else.
    pub differing: u64,
    /// When the first of them was made.
    pub first_differing_at_ms: Option<u64>,
}

/// Decides everything again.
///
/// # Errors
/// [`DecisionsError`] if a record cannot be read.
pub fn replay(
    header: &Header,
    records: impl Iterator<Item = Result<Record, DecisionsError>>,
) -> Result<Replayed, DecisionsError> {
    let policies = header.policy.policies(&header.cluster, header.seed);
    let Cluster { node, boot_ms, .. } = header.cluster;
    let mut scheduler = Scheduler::new(policies, node, boot_ms);
    let mut replayed = Replayed::default();
    for record in records {
        let Record { at_ms, input, effects } = record?;
        replayed.decisions += 1;
        if scheduler.handle(at_ms, &input) != effects {
            replayed.differing += 1;
            replayed.first_differing_at_ms.get_or_insert(at_ms);
        }
    }
    Ok(replayed)
}

/// Puts records into sentences: one for each effect that a person would ask about.
#[derive(Debug, Default)]
pub struct Explainer {
    submitted: BTreeMap<KernelId, u64>,
}

impl Explainer {
    /// What a record says, of one kernel or of all.
    pub fn explain(&mut self, record: &Record, only: Option<KernelId>) -> Vec<String> {
        if let Input::CellSubmitted { kernel, .. } = record.input {
            self.submitted.insert(kernel, record.at_ms);
        }
        let mut lines = Vec::new();
        for effect in &record.effects {
            if only.is_none_or(|kernel| of(effect) == Some(kernel)) {
                lines.extend(self.sentence(record.at_ms, effect));
            }
        }
        lines
    }

    fn sentence(&self, at_ms: u64, effect: &Effect) -> Option<String> {
        let mut line = clock(at_ms);
        let written = match effect {
            Effect::Grant { kernel, slot, gpus, start, reasons } => {
                let since_ms = self.submitted.get(kernel).copied().unwrap_or(at_ms);
                let waited_s = (at_ms - since_ms) as f64 / 1_000.0;
                write!(
                    line,
                    "{kernel} gets {gpus} GPUs of {slot} after {waited_s:.1} s, {}: {reasons}",
                    start_words(*start)
                )
            }
            Effect::Refuse { kernel, why } => write!(line, "{kernel} is refused: {why}"),
            Effect::CellLost { kernel } => write!(line, "{kernel} lost its cell with its node"),
            Effect::Reclaimed { kernel } => {
                write!(line, "{kernel} was idle for too long and lost its GPUs")
            }
            Effect::MoveMember { kernel, from, to } => {
                write!(line, "a member of {kernel} moves from {from} to {to}")
            }
            Effect::Prefetch { kernel, slot } => write!(
                line,
                "{kernel} will likely be back and find no room: its bytes go to {slot}"
            ),
            Effect::Boot { slot } => write!(line, "{slot} is asked for"),
            Effect::GiveBack { slot } => {
                write!(line, "{slot} is given back: nothing is left on it")
            }
            Effect::WakeAt { .. } => return None,
        };
        written.ok().map(|()| line)
    }
}

fn of(effect: &Effect) -> Option<KernelId> {
    match effect {
        Effect::Grant { kernel, .. }
        | Effect::Refuse { kernel, .. }
        | Effect::CellLost { kernel }
        | Effect::Reclaimed { kernel }
        | Effect::Prefetch { kernel, .. }
        | Effect::MoveMember { kernel, .. } => Some(*kernel),
        Effect::Boot { .. } | Effect::GiveBack { .. } | Effect::WakeAt { .. } => None,
    }
}

fn start_words(start: callboard_policy::gpu::costs::Start) -> &'static str {
    use callboard_policy::gpu::costs::Start;
    match start {
        Start::Resident => "which it holds still",
        Start::Warm => "where its process is",
        Start::Standby => "where it has a member",
        Start::FromPeer => "as a guest",
        Start::FromStorage => "in a started container",
        Start::Cold => "in a new container",
    }
}

/// Day and time of day.
fn clock(at_ms: u64) -> String {
    let s = at_ms / 1_000;
    let (day, hour, minute) = (s / 86_400 + 1, s / 3_600 % 24, s / 60 % 60);
    format!("day {day} {hour:02}:{minute:02}:{:02}.{:03}  ", s % 60, at_ms % 1_000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{compare, engine::Setting, metrics::Window, synthetic};

    /// The decisions of a drawn day.
    fn written(policy: Kind) -> Vec<u8> {
        let (trace, _) = synthetic::draw(30, 1, 5);
        let cluster = Cluster::default();
        let header = Header { policy, seed: 5, cluster: cluster.clone() };
        let mut bytes = Vec::new();
        let mut recorder = Recorder::new(&mut bytes, &header).unwrap();
        let windows = [Window { from_ms: 0, to_ms: trace.horizon_ms }];
        let setting = Setting {
            trace: &trace,
            cluster: &cluster,
            seed: 5,
            windows: &windows,
            nodes: 0,
            sample_every_ms: 3_600_000,
        };
        compare::run(policy, &setting, &mut recorder).unwrap();
        recorder.finish().unwrap();
        bytes
    }

    #[test]
    fn what_was_decided_is_decided_again_from_the_file_alone() {
        for policy in [Kind::Callboard, Kind::Notebookos] {
            let bytes = written(policy);
            let (header, records) = read(bytes.as_slice()).unwrap();
            let replayed = replay(&header, records).unwrap();
            assert!(replayed.decisions > 1_000, "{replayed:?}");
            assert_eq!(replayed.differing, 0, "{replayed:?}");
        }
    }

    #[test]
    fn a_decision_that_was_tampered_with_is_found() {
        let bytes = written(Kind::Callboard);
        let text = String::from_utf8(bytes).unwrap().replacen("\"from_peer\"", "\"warm\"", 1);
        let (header, records) = read(text.as_bytes()).unwrap();
        let replayed = replay(&header, records).unwrap();
        assert_eq!(replayed.differing, 1);
        assert!(replayed.first_differing_at_ms.is_some());
    }

    #[test]
    fn a_grant_is_explained_with_what_was_not_chosen() {
        let bytes = written(Kind::Callboard);
        let (_, records) = read(bytes.as_slice()).unwrap();
        let mut explainer = Explainer::default();
        let lines: Vec<String> = records
            .flat_map(|record| explainer.explain(&record.unwrap(), Some(KernelId::from_number(3))))
            .collect();
        assert!(lines.iter().all(|line| line.contains(&KernelId::from_number(3).to_string())));
        let grant = lines.iter().find(|line| line.contains("GPUs of node")).unwrap();
        for part in ["day 1 ", " after ", "cost ", "on view "] {
            assert!(grant.contains(part), "'{part}' is not in: {grant}");
        }
    }

    #[test]
    fn a_file_of_another_kind_is_said_to_be_none() {
        let error = |text: &'static str| match read(text.as_bytes()) {
            Ok((header, records)) => replay(&header, records).unwrap_err().to_string(),
            Err(error) => error.to_string(),
        };
        assert!(error("").contains("it is empty"));
        assert!(error("session,gpus\n").contains("line 1 is no decision"));
    }
}
