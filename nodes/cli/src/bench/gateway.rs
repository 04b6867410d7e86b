//! `callboard bench gateway`: what a front-end sees of the gateway, against Jupyter Kernel Gateway as it
//! ships and with TCP_NODELAY, side by side: the round trip of a small cell, a hundred thousand printed
//! lines, and the list of a thousand kernels.
//!
//! All sides run the same ipykernel on the same Python behind the same websocket client. Callboard's cells
//! ask for the level `received`.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddrV4,
    path::Path,
    time::{Duration, Instant},
};

use callboard_client::{Client, execute_request};
use callboard_protocol::{
    KernelId,
    control::{KernelOptions, StartKernel},
    jupyter::JupyterMessage,
    kernel::Level,
};
use clap::Args;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use rand::{SeedableRng as _, rngs::StdRng, seq::SliceRandom as _};
use serde_json::Value;
use uuid::Uuid;

use super::{
    kernel_gateway::{self, KernelGateway},
    local_cluster::LocalCluster,
    options::Options,
    report::{Bar, Figure, Machine, Report},
    stats::Samples,
    websocket::{KernelSocket, http},
};
use crate::{
    context::Context,
    exit::{Exit, Failure, Outcome},
    output::say,
    python::find_python,
};

/// Rounds of a full and of a quick run, and those before that do not count.
const ROUNDS: u32 = 60;
const ROUNDS_QUICK: u32 = 20;
const ROUNDS_WARM_UP: u32 = 5;
/// Cells per side and round.
const CELLS_PER_TURN: u32 = 5;
/// The lines that are printed, and how often.
const LINES: usize = 100_000;
const FLOODS: u32 = 7;
/// Kernels in the list, and how often it is asked for.
const KERNELS: usize = 1_000;
const KERNELS_QUICK: usize = 100;
const LISTS: u32 = 30;
/// Kernels that are started at a time.
const STARTS_AT_ONCE: usize = 16;

/// How long it takes on a small machine.
pub const TAKES: Duration = Duration::from_secs(300);

/// Arguments of the bench.
#[derive(Debug, Args)]
pub struct GatewayBenchArgs {
    #[command(flatten)]
    options: Options,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Side {
    Received,
    NoDelay,
    KernelGateway,
}

impl Side {
    const ALL: [Self; 3] = [Self::Received, Self::NoDelay, Self::KernelGateway];

    fn name(self) -> &'static str {
        match self {
            Self::Received => "received",
            Self::NoDelay => "kernel_gateway_nodelay",
            Self::KernelGateway => "kernel_gateway",
        }
    }
}

/// Milliseconds per side.
type Times = BTreeMap<Side, Vec<f64>>;

/// Measures.
///
/// # Errors
/// A [`Failure`] if something is missing on this machine, or a side could not be measured.
pub async fn run(context: &Context, args: &GatewayBenchArgs) -> Outcome {
    let options = &args.options;
    let python = find_python(options.python.as_deref().unwrap_or(Path::new("")))?;
    if cfg!(debug_assertions) {
        say("this is a debug build: the bars are meant for `cargo build --release`");
    }
    kernel_gateway::ensure_installed(&python).await?;
    let cluster = LocalCluster::start(3, options).await?;
    let mut sides = Sides::start(&cluster, &python).await?;
    let mut rng = StdRng::seed_from_u64(options.seed);
    let rounds = if options.quick { ROUNDS_QUICK } else { ROUNDS };
    say(&format!("{rounds} rounds of {CELLS_PER_TURN} cells per side, seed {}", options.seed));
    let mut cells = Times::new();
    for round in 0..ROUNDS_WARM_UP + rounds {
        let mut order = Side::ALL;
        order.shuffle(&mut rng);
        for side in order {
            for _ in 0..CELLS_PER_TURN {
                let ms = sides.round_trip(side).await?;
                if round >= ROUNDS_WARM_UP {
                    cells.entry(side).or_default().push(ms);
                }
            }
        }
    }
    say(&format!("{FLOODS} times {LINES} lines per side"));
    let mut floods = Times::new();
    for round in 0..=FLOODS {
        let mut order = Side::ALL;
        order.shuffle(&mut rng);
        for side in order {
            let ms = sides.flood(side).await?;
            if round > 0 {
                floods.entry(side).or_default().push(ms);
            }
        }
    }
    let kernels = if options.quick { KERNELS_QUICK } else { KERNELS };
    let lists = sides.lists(cluster.client(), kernels).await?;
    sides.kernel_gateway.stop().await;
    sides.nodelay.stop().await;
    cluster.stop().await;
    let report = Report {
        bench: "gateway",
        seed: options.seed,
        machine: Machine::here(),
        figures: figures(cells, floods, (kernels, lists)),
    };
    report.print(context.printer)
}

struct Sides {
    address: SocketAddrV4,
    token: String,
    received: KernelSocket,
    nodelay: KernelGateway,
    kernel_gateway: KernelGateway,
}

impl Sides {
    async fn start(cluster: &LocalCluster, python: &Path) -> Result<Self, Failure> {
        let fail = |why: String| Failure::new(Exit::Failed, format!("the gateway: {why}"));
        let file = cluster.path().join("credentials/jupyter.json");
        let text = fs::read(&file).map_err(|error| fail(error.to_string()))?;
        let access: Value =
            serde_json::from_slice(&text).map_err(|error| fail(error.to_string()))?;
        let field = |name: &str| access[name].as_str().unwrap_or_default().to_owned();
        let address = field("address").parse().map_err(|_| fail("has no address".to_owned()))?;
        let token = field("token");
        let kernel = cluster.kernel(3).await?.id().to_string();
        let received = KernelSocket::connect(address, Some(&token), &kernel).await.map_err(fail)?;
        let nodelay = KernelGateway::start(python, cluster.path(), true).await?;
        let kernel_gateway = KernelGateway::start(python, cluster.path(), false).await?;
        Ok(Self { address, token, received, nodelay, kernel_gateway })
    }

    fn socket(&mut self, side: Side) -> &mut KernelSocket {
        match side {
            Side::Received => &mut self.received,
            Side::NoDelay => &mut self.nodelay.socket,
            Side::KernelGateway => &mut self.kernel_gateway.socket,
        }
    }

    /// Milliseconds of a small cell.
    async fn round_trip(&mut self, side: Side) -> Result<f64, Failure> {
        let (request, msg_id) = request("x = 1");
        let start = Instant::now();
        let reply = self.socket(side).round_trip(&request, &msg_id).await;
        let ms = ms_since(start);
        let content: Value = reply
            .map_err(|why| failed(side, &why))?
            .parse_content()
            .map_err(|error| failed(side, &error.to_string()))?;
        if content["status"] == "ok" { Ok(ms) } else { Err(failed(side, &content.to_string())) }
    }

    /// Milliseconds until all lines are there.
    async fn flood(&mut self, side: Side) -> Result<f64, Failure> {
        let (request, msg_id) = request(&format!("for i in range({LINES}): print(i)"));
        let start = Instant::now();
        let text = self.socket(side).printed(&request, &msg_id).await;
        let ms = ms_since(start);
        let text = text.map_err(|why| failed(side, &why))?;
        let lines = text.lines().count();
        let is_whole = lines == LINES && text.lines().last() == Some(&(LINES - 1).to_string());
        if is_whole { Ok(ms) } else { Err(failed(side, &format!("{lines} lines came"))) }
    }

    /// Milliseconds of each list of `count` kernels.
    async fn lists(&self, client: &Client, count: usize) -> Result<Vec<f64>, Failure> {
        say(&format!("starting {count} kernels, parked, and listing them"));
        let options = KernelOptions { parked: true, ..KernelOptions::default() };
        let starts = (0..count - 1).map(|_| StartKernel {
            kernel: KernelId::generate(),
            name: None,
            replicas: 3,
            options,
            origin: None,
            settings: Default::default(),
        });
        stream::iter(starts)
            .map(|request| async move { client.control().start_kernel(&request).await.map(drop) })
            .buffer_unordered(STARTS_AT_ONCE)
            .try_collect::<()>()
            .await?;
        let mut times = Vec::new();
        for _ in 0..LISTS {
            let start = Instant::now();
            let list = http(self.address, Some(&self.token), "GET", "/api/kernels").await;
            times.push(ms_since(start));
            let list = list.map_err(|why| failed(Side::Received, &why))?;
            let listed = list.as_array().map_or(0, Vec::len);
            if listed != count {
                let why = format!("{listed} of {count} kernels are listed");
                return Err(failed(Side::Received, &why));
            }
        }
        Ok(times)
    }
}

fn request(code: &str) -> (JupyterMessage, String) {
    let msg_id = Uuid::now_v7().to_string();
    (execute_request(code, &msg_id, "bench", Level::Received), msg_id)
}

fn failed(side: Side, why: &str) -> Failure {
    Failure::new(Exit::Failed, format!("{} failed: {why}", side.name()))
}

fn ms_since(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1000.0
}

fn figures(cells: Times, floods: Times, (kernels, lists): (usize, Vec<f64>)) -> Vec<Figure> {
    let samples = |times: Times| -> BTreeMap<Side, Samples> {
        times.into_iter().map(|(side, times)| (side, Samples::new(times))).collect()
    };
    let (cells, floods, lists) = (samples(cells), samples(floods), Samples::new(lists));
    let median =
        |of: &BTreeMap<Side, Samples>, side| of.get(&side).map_or(f64::NAN, Samples::median);
    let over = |of, above, below| median(of, above) / median(of, below);
    let list = format!("list_{kernels}_kernels_ms");
    let mut figures = vec![
        Figure::held(
            "received_over_kernel_gateway_nodelay",
            over(&cells, Side::Received, Side::NoDelay),
            "ratio",
            Bar::AtMost(1.15),
        ),
        Figure::held(
            "kernel_gateway_over_received",
            over(&cells, Side::KernelGateway, Side::Received),
            "ratio",
            Bar::AtLeast(8.0),
        ),
        Figure::held(
            "print_100k_over_kernel_gateway",
            over(&floods, Side::Received, Side::KernelGateway),
            "ratio",
            Bar::AtMost(1.0),
        ),
        Figure::held(list, lists.median(), "ms", Bar::AtMost(20.0)),
        Figure::plain("list_p95_ms", lists.percentile(95.0), "ms"),
    ];
    for (what, times) in [("cell", &cells), ("print_100k", &floods)] {
        for (side, samples) in times {
            for (percentile, percent) in
                [("p25", 25.0), ("p50", 50.0), ("p75", 75.0), ("p95", 95.0)]
            {
                let name = format!("{}_{what}_{percentile}_ms", side.name());
                figures.push(Figure::plain(name, samples.percentile(percent), "ms"));
            }
        }
    }
    figures
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_of_medians_and_each_has_its_bar() {
        let times = |ms: [f64; 3]| -> Times {
            Side::ALL.into_iter().zip(ms).map(|(side, ms)| (side, vec![ms, ms, 99.0])).collect()
        };
        let figures =
            figures(times([5.0, 4.0, 45.0]), times([300.0, 240.0, 250.0]), (1_000, vec![15.0]));
        let figure = |name: &str| figures.iter().find(|f| f.name == name).unwrap().clone();
        let held = |name: &str| (figure(name).value, figure(name).holds);
        assert_eq!(held("received_over_kernel_gateway_nodelay"), (1.25, Some(false)));
        assert_eq!(held("kernel_gateway_over_received"), (9.0, Some(true)));
        assert_eq!(held("print_100k_over_kernel_gateway"), (1.2, Some(false)));
        assert_eq!(held("list_1000_kernels_ms"), (15.0, Some(true)));
        assert_eq!(figure("received_cell_p50_ms").value, 5.0);
    }
}
