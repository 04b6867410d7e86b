//! The measure: a notebook in plain ipykernel, twice, each time in a fresh process and a fresh
//! folder. Only what both runs agree on can be held against Callboard.

use std::{fmt, path::Path, time::Duration};

use callboard_client::execute_request;
use callboard_kernel::python::PlainKernel;
use callboard_protocol::kernel::Level;
use tokio::time::{Instant, timeout};
use uuid::Uuid;

use super::{
    CLOSING,
    library::Notebook,
    outputs::{CellOutputs, Transcript},
};
use crate::exit::Failure;

/// Names of errors that a notebook ends with if it wants data from elsewhere.
const NETWORK_ERRORS: [&str; 6] =
    ["URLError", "HTTPError", "ConnectionError", "ProxyError", "gaierror", "RemoteDisconnected"];
/// Names of errors of a missing package.
const IMPORT_ERRORS: [&str; 2] = ["ModuleNotFoundError", "ImportError"];

/// Why a notebook is not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::bench) enum Exclusion {
    /// It has fewer than two code cells: there is no place between cells.
    OneCell,
    /// It wants data from elsewhere.
    NeedsNetwork,
    /// It imports what is not there.
    NeedsPackage(String),
    /// A cell raises in plain ipykernel.
    Raises(String),
    /// It runs too long.
    TooLong,
    /// Two plain runs differ.
    Unequal(String),
    /// Its process ended.
    Ended(String),
}

impl Exclusion {
    /// Every reason, as figures name it.
    pub(in crate::bench) const REASONS: [&str; 7] = [
        "one_cell",
        "needs_network",
        "needs_package",
        "raises",
        "too_long",
        "plain_runs_differ",
        "process_ended",
    ];

    /// Its reason, as figures name it.
    pub(in crate::bench) fn reason(&self) -> &'static str {
        Self::REASONS[match self {
            Self::OneCell => 0,
            Self::NeedsNetwork => 1,
            Self::NeedsPackage(_) => 2,
            Self::Raises(_) => 3,
            Self::TooLong => 4,
            Self::Unequal(_) => 5,
            Self::Ended(_) => 6,
        }]
    }

    fn of_error(name: &str, value: &str) -> Self {
        let text = format!("{name}: {value}");
        if NETWORK_ERRORS.contains(&name) || value.contains("urlopen error") {
            Self::NeedsNetwork
        } else if IMPORT_ERRORS.contains(&name) {
            Self::NeedsPackage(text)
        } else {
            Self::Raises(text)
        }
    }
}

impl fmt::Display for Exclusion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OneCell => f.write_str("it has fewer than two code cells"),
            Self::NeedsNetwork => f.write_str("it needs the network"),
            Self::NeedsPackage(why) => write!(f, "it needs a package: {why}"),
            Self::Raises(why) => write!(f, "it raises: {why}"),
            Self::TooLong => f.write_str("it runs too long"),
            Self::Unequal(why) => write!(f, "its two plain runs differ: {why}"),
            Self::Ended(why) => write!(f, "its process ended: {why}"),
        }
    }
}

/// What plain ipykernel shows.
#[derive(Debug)]
pub(in crate::bench) struct Measure {
    /// What both runs showed; of the session's names, those that both agree on.
    pub(in crate::bench) transcript: Transcript,
    /// How long the first run's cells took, in seconds.
    pub(super) seconds: f64,
}

/// Runs a small notebook of the kind that follows, so that a broken environment is told once and not
/// as the fault of each notebook.
///
/// # Errors
/// A [`Failure`] that says why it does not run.
pub(in crate::bench) async fn check(
    python: &Path,
    run_dir: &Path,
    within: Duration,
) -> Result<(), Failure> {
    let cells = ["%matplotlib inline", "import sklearn, matplotlib.pyplot as plt\nplt.plot([1]);"];
    let notebook = Notebook {
        path: "check".to_owned(),
        digest: String::new(),
        cells: cells.map(str::to_owned).to_vec(),
    };
    let ran = once(python, &notebook, run_dir, run_dir, within).await;
    let why = match ran {
        Ok((transcript, _)) if transcript.images() > 0 => return Ok(()),
        Ok(_) => "no figure was shown".to_owned(),
        Err(exclusion) => exclusion.to_string(),
    };
    let python = python.display();
    let text = format!("plain ipykernel on {python} cannot run notebooks: {why}");
    Err(Failure::environment(text))
}

/// Plain runs of a notebook that differed with losses, besides the first two.
pub(in crate::bench) const RUNS_MORE: u32 = 4;

/// Runs the notebook twice. `run_dir` is for sockets, `scratch` for the notebook's files.
pub(in crate::bench) async fn twice(
    python: &Path,
    notebook: &Notebook,
    run_dir: &Path,
    scratch: &Path,
    within: Duration,
) -> Result<Measure, Exclusion> {
    if notebook.cells.len() < 2 {
        return Err(Exclusion::OneCell);
    }
    let (mut transcript, seconds) =
        once(python, notebook, run_dir, &scratch.join("plain-1"), within).await?;
    let (second, _) = once(python, notebook, run_dir, &scratch.join("plain-2"), within).await?;
    if let Some(difference) = transcript.differences(&second).into_iter().next() {
        return Err(Exclusion::Unequal(difference));
    }
    transcript.keep_common_names(&second);
    Ok(Measure { transcript, seconds })
}

/// Runs a notebook that differed with losses more often: two plain runs may have agreed by chance. Says
/// so if they did.
pub(super) async fn agreed_by_chance(
    python: &Path,
    notebook: &Notebook,
    run_dir: &Path,
    scratch: &Path,
    (measure, within): (&Measure, Duration),
) -> Option<Exclusion> {
    for number in 3..3 + RUNS_MORE {
        let folder = scratch.join(format!("plain-{number}"));
        match once(python, notebook, run_dir, &folder, within).await {
            Ok((transcript, _)) => {
                let difference = measure.transcript.differences(&transcript).into_iter().next();
                if let Some(difference) = difference {
                    return Some(Exclusion::Unequal(difference));
                }
            }
            Err(exclusion) => return Some(exclusion),
        }
    }
    None
}

async fn once(
    python: &Path,
    notebook: &Notebook,
    run_dir: &Path,
    scratch: &Path,
    within: Duration,
) -> Result<(Transcript, f64), Exclusion> {
    let ended = |why: String| Exclusion::Ended(why);
    std::fs::create_dir_all(scratch).map_err(|error| ended(error.to_string()))?;
    let running = async {
        let launched = PlainKernel::launch(python, run_dir).await;
        let mut kernel = launched.map_err(|error| ended(error.to_string()))?;
        let mut transcript = Transcript::default();
        cell(&mut kernel, &super::enter(scratch)).await?;
        let start = Instant::now();
        for code in &notebook.cells {
            let outputs = cell(&mut kernel, code).await?;
            if let Some((name, value)) = outputs.error() {
                return Err(Exclusion::of_error(name, value));
            }
            transcript.cells.push(outputs);
        }
        let seconds = start.elapsed().as_secs_f64();
        transcript.closing = cell(&mut kernel, CLOSING).await?;
        Ok((transcript, seconds))
    };
    timeout(within, running).await.unwrap_or(Err(Exclusion::TooLong))
}

async fn cell(kernel: &mut PlainKernel, code: &str) -> Result<CellOutputs, Exclusion> {
    let msg_id = Uuid::now_v7().to_string();
    let request = execute_request(code, &msg_id, "bench", Level::Durable);
    let mut outputs = CellOutputs::default();
    let ran = kernel.run(request, &msg_id, |message| outputs.take(&message)).await;
    ran.map_err(|error| Exclusion::Ended(error.to_string()))?;
    Ok(outputs.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_sorted_by_what_is_missing() {
        let of = |name, value| Exclusion::of_error(name, value).reason();
        assert_eq!(of("URLError", "<urlopen error [Errno 101]>"), "needs_network");
        assert_eq!(of("OSError", "<urlopen error no route>"), "needs_network");
        assert_eq!(of("ModuleNotFoundError", "No module named 'annoy'"), "needs_package");
        assert_eq!(of("ValueError", "x"), "raises");
    }

    #[tokio::test]
    async fn a_notebook_with_one_cell_is_not_started() {
        let notebook = Notebook {
            path: "a.ipynb".to_owned(),
            digest: "0".repeat(64),
            cells: vec!["x = 1".to_owned()],
        };
        let nowhere = Path::new("/nonexistent");
        let within = Duration::from_secs(1);
        let found = twice(nowhere, &notebook, nowhere, nowhere, within).await;
        assert_eq!(found.unwrap_err(), Exclusion::OneCell);
    }
}
