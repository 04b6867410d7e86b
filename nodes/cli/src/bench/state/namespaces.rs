//! Large sessions: what it costs to find a change of one KiB in them, and to replicate it.
//!
//! In one session by turns: a cell that changes one KiB, whose capture is timed by the Python side
//! itself, and a cell that pickles the whole namespace with cloudpickle.

use std::{
    collections::BTreeMap,
    fs, io,
    path::Path,
    time::{Duration, Instant},
};

use callboard_client::KernelClient;

use super::trial::{Ran, execute};
use crate::{
    bench::{
        local_cluster::LocalCluster,
        report::{Bar, Figure},
        stats::Samples,
    },
    output::say,
};

/// A quick run's namespaces are smaller by this.
const QUICK_DIVISOR: u64 = 20;
/// Turns in a full and in a quick run.
const ROUNDS: u64 = 7;
const ROUNDS_QUICK: u64 = 2;
/// How long a cell may take: the first one spreads half a gigabyte.
const CELL_WITHIN: Duration = Duration::from_secs(600);
/// How long all nodes may take to have what a majority has.
const EVERYWHERE_WITHIN: Duration = Duration::from_secs(60);
/// Pause between looks at the nodes' folders.
const POLL: Duration = Duration::from_millis(50);
/// Most bytes that a change of one KiB may send to the other nodes.
const REPLICATED_BYTES_MAX: f64 = 1_048_576.0;
/// Hexadecimal digits of a chunk's name.
const CHUNK_NAME_LENGTH: usize = 64;

/// A namespace that is measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Namespace {
    /// What figures and `--only` call it.
    pub(super) name: &'static str,
    /// Makes a variable of that name; `$n` stands for its size.
    setup: &'static str,
    size: u64,
    /// Changes one KiB; `$i` stands for the turn.
    change: &'static str,
    detect_ratio_max: f64,
    bounds_bytes: bool,
}

/// All of them.
pub(super) const ALL: [Namespace; 4] = [
    Namespace {
        name: "array",
        setup: "import numpy\narray = numpy.random.default_rng(0).random($n)",
        size: 62_500_000,
        change: "array[$n // 2 + $i * 5000:][:128] = $i",
        detect_ratio_max: 0.10,
        bounds_bytes: true,
    },
    Namespace {
        name: "objects",
        setup: "objects = [{'id': i, 'name': f'name{i}', 'pair': (i, i * 0.5)} for i in range($n)]",
        size: 1_000_000,
        change: "objects[$n // 2 + $i] = {'id': $i, 'name': 'x' * 1024, 'pair': ($i, 0.5)}",
        detect_ratio_max: 1.0,
        bounds_bytes: false,
    },
    Namespace {
        name: "frame",
        setup: "import pandas\nframe = pandas.DataFrame({'text': [f'string number {i}' for i in range($n)]}, dtype=object)",
        size: 1_000_000,
        change: "frame.iloc[$n // 2 + $i, 0] = 'x' * 1024",
        detect_ratio_max: 1.0,
        bounds_bytes: false,
    },
    Namespace {
        name: "model",
        setup: "import numpy, warnings\nfrom sklearn.neural_network import MLPRegressor\n\
                warnings.simplefilter('ignore')\n\
                seen = numpy.random.default_rng(0).random((8, $n))\n\
                model = MLPRegressor(hidden_layer_sizes=(3000, 2000), solver='sgd', max_iter=1).fit(seen, seen.sum(1))\n\
                del seen",
        size: 2_000,
        change: "model.coefs_[0][$i + 2, :128] = $i",
        detect_ratio_max: 0.15,
        bounds_bytes: true,
    },
];

/// What the turns gave.
#[derive(Debug, Default)]
struct Measured {
    detect_ms: Vec<f64>,
    pickle_ms: Vec<f64>,
    replicated: Vec<f64>,
}

impl Namespace {
    fn size(&self, quick: bool) -> u64 {
        if quick { self.size / QUICK_DIVISOR } else { self.size }
    }

    fn fill(&self, code: &str, quick: bool, turn: u64) -> String {
        code.replace("$n", &self.size(quick).to_string()).replace("$i", &turn.to_string())
    }

    /// Prints what the last capture took, then what cloudpickle takes, in milliseconds.
    fn measuring_cell(&self) -> String {
        let name = self.name;
        format!(
            "import cloudpickle, time\n_start = time.perf_counter()\n\
             _whole = cloudpickle.dumps({{'{name}': {name}}}, protocol=5)\n\
             print(get_ipython().kernel.tracker.elapsed_ms, (time.perf_counter() - _start) * 1000)\n\
             del _whole, _start"
        )
    }

    /// The figure of a namespace that failed: nothing was measured, which does not hold.
    pub(super) fn not_measured(&self) -> Figure {
        let name = format!("detect_over_pickle_{}", self.name);
        Figure::held(name, f64::NAN, "ratio", Bar::AtMost(self.detect_ratio_max))
    }

    fn figures(&self, measured: Measured, is_judged: bool) -> Vec<Figure> {
        let Measured { detect_ms, pickle_ms, replicated } = measured;
        let name = self.name;
        let median = |values| Samples::new(values).median();
        let (detect, pickle) = (median(detect_ms), median(pickle_ms));
        let held = |name: String, value, unit, bar: Option<f64>| match bar.filter(|_| is_judged) {
            Some(limit) => Figure::held(name, value, unit, Bar::AtMost(limit)),
            None => Figure::plain(name, value, unit),
        };
        let bytes_max = self.bounds_bytes.then_some(REPLICATED_BYTES_MAX);
        let ratio_max = Some(self.detect_ratio_max);
        vec![
            held(format!("replicated_bytes_{name}"), median(replicated), "bytes", bytes_max),
            held(format!("detect_over_pickle_{name}"), detect / pickle, "ratio", ratio_max),
            Figure::plain(format!("pickle_{name}_p50_ms"), pickle, "ms"),
        ]
    }
}

/// Measures one namespace on a kernel of its own.
///
/// # Errors
/// What failed; its figures are missing then.
pub(super) async fn run(
    cluster: &LocalCluster,
    namespace: &Namespace,
    quick: bool,
) -> Result<Vec<Figure>, String> {
    let kernel = cluster.kernel(3).await.map_err(|failure| failure.message)?;
    let measured = measure(cluster, &kernel, namespace, quick).await;
    let stopped = cluster.client().control().stop_kernel(kernel.id()).await;
    let measured = measured?;
    stopped.map_err(|fault| format!("the kernel did not stop: {fault}"))?;
    Ok(namespace.figures(measured, !quick))
}

async fn measure(
    cluster: &LocalCluster,
    kernel: &KernelClient,
    namespace: &Namespace,
    quick: bool,
) -> Result<Measured, String> {
    let cell = async |code: &str| -> Result<Ran, String> {
        let ran = execute(kernel, code, CELL_WITHIN).await?;
        if ran.raised { Err(format!("a cell raised:\n{}", ran.text)) } else { Ok(ran) }
    };
    let start = Instant::now();
    cell(&namespace.fill(namespace.setup, quick, 0)).await?;
    say(&format!("{}: in place after {:.1} s", namespace.name, start.elapsed().as_secs_f64()));
    cell(&namespace.measuring_cell()).await?;
    let mut before = everywhere(cluster.path()).await?;
    let mut measured = Measured::default();
    for turn in 1..=if quick { ROUNDS_QUICK } else { ROUNDS } {
        cell(&namespace.fill(namespace.change, quick, turn)).await?;
        let after = everywhere(cluster.path()).await?;
        let new = after.iter().filter(|(name, _)| !before.contains_key(*name));
        // One copy was written where the cell ran; the others travelled.
        let sent: u64 = new.map(|(_, (length, copies))| length * copies.saturating_sub(1)).sum();
        let ran = cell(&namespace.measuring_cell()).await?;
        let mut times = ran.text.split_whitespace().map(str::parse::<f64>);
        let (Some(Ok(detect)), Some(Ok(pickle))) = (times.next(), times.next()) else {
            return Err(format!("no times in '{}'", ran.text));
        };
        say(&format!(
            "{}: found in {detect:.1} ms, cloudpickle {pickle:.1} ms, {sent} bytes sent",
            namespace.name
        ));
        measured.detect_ms.push(detect);
        measured.pickle_ms.push(pickle);
        measured.replicated.push(sent as f64);
        before = everywhere(cluster.path()).await?;
    }
    Ok(measured)
}

/// Every chunk in the nodes' folders: its length, and how many nodes have it.
type Chunks = BTreeMap<String, (u64, u64)>;

/// The chunks, once every node has all of them.
async fn everywhere(data: &Path) -> Result<Chunks, String> {
    let until = Instant::now() + EVERYWHERE_WITHIN;
    loop {
        let mut chunks = Chunks::new();
        let read = count(data, &mut chunks);
        let most = chunks.values().map(|(_, copies)| *copies).max().unwrap_or(0);
        if read.is_ok() && chunks.values().all(|(_, copies)| *copies == most) {
            return Ok(chunks);
        }
        if Instant::now() >= until {
            return Err("the nodes do not have the same chunks".to_owned());
        }
        tokio::time::sleep(POLL).await;
    }
}

fn count(folder: &Path, chunks: &mut Chunks) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type()?.is_dir() {
            count(&entry.path(), chunks)?;
        } else if name.len() == CHUNK_NAME_LENGTH && name.bytes().all(|b| b.is_ascii_hexdigit()) {
            let length = entry.metadata()?.len();
            let (_, copies) = chunks.entry(name).or_insert((length, 0));
            *copies += 1;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_their_bars_in_a_full_run_only() {
        let measured = || Measured {
            detect_ms: vec![1.0, 2.0, 30.0],
            pickle_ms: vec![10.0, 20.0, 30.0],
            replicated: vec![2e6],
        };
        let array = &ALL[0];
        let figures = array.figures(measured(), true);
        let short: Vec<_> = figures.iter().map(|f| (f.name.as_str(), f.value, f.holds)).collect();
        assert_eq!(
            short,
            [
                ("replicated_bytes_array", 2e6, Some(false)),
                ("detect_over_pickle_array", 0.1, Some(true)),
                ("pickle_array_p50_ms", 20.0, None),
            ]
        );
        assert!(array.figures(measured(), false).iter().all(|figure| figure.holds.is_none()));
    }

    #[test]
    fn chunks_are_counted_per_node_by_their_names() {
        let folder = tempfile::tempdir().unwrap();
        let name = "ab".repeat(32);
        for node in ["n1", "n2"] {
            let owner = folder.path().join(node).join("chunks").join("owner");
            fs::create_dir_all(&owner).unwrap();
            fs::write(owner.join(&name), b"12345").unwrap();
            fs::write(owner.join(format!("tmp-1-{name}")), b"x").unwrap();
        }
        let mut chunks = Chunks::new();
        count(folder.path(), &mut chunks).unwrap();
        assert_eq!(chunks, Chunks::from([(name, (5, 2))]));
    }
}
