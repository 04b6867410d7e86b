//! Traces: what sessions ran when. A file is checked as a whole before anything runs; after that only
//! the tasks of sessions that are open are in memory.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufReader, Seek as _, SeekFrom},
    path::{Path, PathBuf},
};

use csv::{ByteRecord, Reader, ReaderBuilder};

/// Milliseconds of a minute.
pub const MINUTE_MS: u64 = 60_000;
/// Bad rows that are named; a file of another kind has as many as it has lines.
const BAD_ROWS_NAMED_MAX: usize = 20;
const COLUMNS: [&str; 4] = ["session", "gpus", "submit_min", "duration_min"];

/// One task of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Task {
    /// When it was submitted.
    pub submit_ms: u64,
    /// How long it ran.
    pub duration_ms: u64,
    /// On how many GPUs.
    pub gpus: u32,
}

/// What is known of a session before it opens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionIndex {
    /// Its number in the trace.
    pub session: u64,
    /// The widest of its tasks.
    pub gpus: u32,
    /// When the first was submitted.
    pub first_ms: u64,
    /// When the last ended.
    pub last_ms: u64,
    tasks: Tasks,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Tasks {
    /// Where rows begin, and how many follow.
    At(Vec<(u64, u32)>),
    Here(Vec<Task>),
}

/// A trace.
#[derive(Debug, Clone)]
pub struct Trace {
    /// In order of their first task.
    pub sessions: Vec<SessionIndex>,
    /// All tasks.
    pub tasks: u64,
    /// Rows left out.
    pub skipped: u64,
    /// Where time ends: durations are cut there.
    pub horizon_ms: u64,
    file: Option<PathBuf>,
}

/// Why a trace cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// It cannot be read.
    #[error("cannot read {}: {source}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// Why not.
        source: csv::Error,
    },
    /// It lacks a column.
    #[error(
        "{} has no column '{column}': the first line must name session,gpus,submit_min,duration_min",
        file.display()
    )]
    Column {
        /// The file.
        file: PathBuf,
        /// The column.
        column: &'static str,
    },
    /// Rows make no sense.
    #[error(
        "{} has {count} bad rows ({}): correct them, or leave them out with --skip-bad",
        file.display(), named.join("; ")
    )]
    Rows {
        /// The file.
        file: PathBuf,
        /// How many.
        count: usize,
        /// Line numbers and what is wrong.
        named: Vec<String>,
    },
    /// Nothing is left.
    #[error("{} has no task: it needs at least one row", file.display())]
    Empty {
        /// The file.
        file: PathBuf,
    },
}

/// What rows must be like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceLimits {
    /// GPUs of a node: no task can have more.
    pub gpus_max: u32,
    /// Leave bad rows out.
    pub skip_bad: bool,
    /// Where time ends; the last submission if nothing is said.
    pub horizon_min: Option<u64>,
}

impl Trace {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// [`TraceError`].
    pub fn open(file: &Path, limits: TraceLimits) -> Result<Self, TraceError> {
        let fail = |source| TraceError::Read { file: file.to_owned(), source };
        let mut reader = open(file).map_err(fail)?;
        let columns = Columns::of(&mut reader, file)?;
        let mut index: BTreeMap<u64, SessionIndex> = BTreeMap::new();
        let (mut bad, mut last, mut tasks, mut last_submit_ms) = (Vec::new(), None, 0, 0);
        let mut record = ByteRecord::new();
        loop {
            let at = reader.position().clone();
            match reader.read_byte_record(&mut record) {
                Ok(true) => {}
                Ok(false) => break,
                Err(source) if source.is_io_error() => return Err(fail(source)),
                Err(_) => {
                    bad.push((at.line(), "not as many fields as the first line".to_owned()));
                    last = None;
                    continue;
                }
            }
            let line = record.position().map_or(0, csv::Position::line);
            match columns.parse(&record, limits.gpus_max) {
                Ok((session, task)) => {
                    let byte = record.position().map_or(0, csv::Position::byte);
                    let follows = last == Some(session);
                    add(&mut index, session, task, byte, follows);
                    last = Some(session);
                    tasks += 1;
                    last_submit_ms = last_submit_ms.max(task.submit_ms);
                }
                Err(what) => {
                    bad.push((line, what));
                    last = None;
                }
            }
        }
        if !bad.is_empty() && !limits.skip_bad {
            return Err(bad_rows(file, bad));
        }
        if tasks == 0 {
            return Err(TraceError::Empty { file: file.to_owned() });
        }
        let mut sessions: Vec<_> = index.into_values().collect();
        sessions.sort_by_key(|it| (it.first_ms, it.session));
        let horizon_ms = limits
            .horizon_min
            .map_or_else(|| last_submit_ms.div_ceil(DAY_MS).max(1) * DAY_MS, |min| min * MINUTE_MS);
        let skipped = bad.len() as u64;
        Ok(Self { sessions, tasks, skipped, horizon_ms, file: Some(file.to_owned()) })
    }

    /// A trace that was made here.
    #[must_use]
    pub fn of(sessions: Vec<(u64, Vec<Task>)>, horizon_ms: u64) -> Self {
        let mut all = Vec::new();
        let mut count = 0;
        for (session, mut tasks) in sessions {
            tasks.sort_unstable();
            count += tasks.len() as u64;
            let Some(first) = tasks.first() else { continue };
            all.push(SessionIndex {
                session,
                gpus: tasks.iter().map(|it| it.gpus).max().unwrap_or(0),
                first_ms: first.submit_ms,
                last_ms: tasks.iter().map(|it| it.submit_ms + it.duration_ms).max().unwrap_or(0),
                tasks: Tasks::Here(tasks),
            });
        }
        all.sort_by_key(|it| (it.first_ms, it.session));
        Self { sessions: all, tasks: count, skipped: 0, horizon_ms, file: None }
    }

    /// The tasks of one session before the horizon, in order of submission; durations are cut there.
    ///
    /// # Errors
    /// [`TraceError::Read`] if the file has gone since.
    pub fn tasks_of(&self, session: &SessionIndex) -> Result<Vec<Task>, TraceError> {
        let mut tasks = match (&session.tasks, &self.file) {
            (Tasks::Here(tasks), _) => tasks.clone(),
            (Tasks::At(_), None) => Vec::new(),
            (Tasks::At(places), Some(file)) => read(file, places)
                .map_err(|source| TraceError::Read { file: file.clone(), source })?,
        };
        tasks.retain(|it| it.submit_ms < self.horizon_ms);
        for task in &mut tasks {
            task.duration_ms = task.duration_ms.min(self.horizon_ms - task.submit_ms);
        }
        tasks.sort_unstable();
        Ok(tasks)
    }
}

const DAY_MS: u64 = 24 * 60 * MINUTE_MS;

fn open(file: &Path) -> Result<Reader<BufReader<File>>, csv::Error> {
    let reader = BufReader::new(File::open(file)?);
    Ok(ReaderBuilder::new().trim(csv::Trim::All).from_reader(reader))
}

fn add(
    index: &mut BTreeMap<u64, SessionIndex>,
    session: u64,
    task: Task,
    byte: u64,
    follows: bool,
) {
    let end_ms = task.submit_ms + task.duration_ms;
    let entry = index.entry(session).or_insert_with(|| SessionIndex {
        session,
        gpus: 0,
        first_ms: u64::MAX,
        last_ms: 0,
        tasks: Tasks::At(Vec::new()),
    });
    entry.gpus = entry.gpus.max(task.gpus);
    entry.first_ms = entry.first_ms.min(task.submit_ms);
    entry.last_ms = entry.last_ms.max(end_ms);
    let Tasks::At(places) = &mut entry.tasks else { return };
    match places.last_mut() {
        Some(place) if follows => place.1 += 1,
        _ => places.push((byte, 1)),
    }
}

fn read(file: &Path, places: &[(u64, u32)]) -> Result<Vec<Task>, csv::Error> {
    let mut columns_reader = open(file)?;
    let Ok(columns) = Columns::of(&mut columns_reader, file) else { return Ok(Vec::new()) };
    let mut source = columns_reader.into_inner();
    let (mut tasks, mut record) = (Vec::new(), ByteRecord::new());
    for (byte, rows) in places {
        source.seek(SeekFrom::Start(*byte))?;
        let mut reader =
            ReaderBuilder::new().has_headers(false).trim(csv::Trim::All).from_reader(&mut source);
        for _ in 0..*rows {
            reader.read_byte_record(&mut record)?;
            if let Ok((_, task)) = columns.parse(&record, u32::MAX) {
                tasks.push(task);
            }
        }
    }
    Ok(tasks)
}

fn bad_rows(file: &Path, bad: Vec<(u64, String)>) -> TraceError {
    let count = bad.len();
    let mut named: Vec<String> = bad
        .iter()
        .take(BAD_ROWS_NAMED_MAX)
        .map(|(line, what)| format!("line {line}: {what}"))
        .collect();
    if count > BAD_ROWS_NAMED_MAX {
        let lines: Vec<String> =
            bad.iter().skip(BAD_ROWS_NAMED_MAX).map(|(line, _)| line.to_string()).collect();
        named.push(format!("and lines {}", lines.join(", ")));
    }
    TraceError::Rows { file: file.to_owned(), count, named }
}

/// Where each column is.
struct Columns([usize; 4]);

impl Columns {
    fn of(reader: &mut Reader<BufReader<File>>, file: &Path) -> Result<Self, TraceError> {
        let headers = reader
            .byte_headers()
            .map_err(|source| TraceError::Read { file: file.to_owned(), source })?;
        let mut places = [0; 4];
        for (place, column) in places.iter_mut().zip(COLUMNS) {
            *place = headers
                .iter()
                .position(|it| it == column.as_bytes())
                .ok_or_else(|| TraceError::Column { file: file.to_owned(), column })?;
        }
        Ok(Self(places))
    }

    fn parse(&self, record: &ByteRecord, gpus_max: u32) -> Result<(u64, Task), String> {
        let mut numbers = [0; 4];
        for ((number, place), column) in numbers.iter_mut().zip(self.0).zip(COLUMNS) {
            let text = record.get(place).unwrap_or_default();
            let text = std::str::from_utf8(text).unwrap_or("(not UTF-8)");
            // A century in minutes: no number beyond it is one.
            *number = text
                .parse::<u64>()
                .ok()
                .filter(|it| *it <= 100 * 366 * 24 * 60)
                .ok_or_else(|| format!("{column} is '{text}', and not a whole number"))?;
        }
        let [session, gpus, submit_min, duration_min] = numbers;
        if gpus == 0 {
            return Err("gpus is 0".to_owned());
        }
        let gpus = u32::try_from(gpus).unwrap_or(u32::MAX);
        if gpus > gpus_max {
            return Err(format!("{gpus} GPUs, and a node has {gpus_max}"));
        }
        let task =
            Task { submit_ms: submit_min * MINUTE_MS, duration_ms: duration_min * MINUTE_MS, gpus };
        Ok((session, task))
    }
}

#[cfg(test)]
mod tests;
