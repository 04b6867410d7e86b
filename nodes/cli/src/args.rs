//! The command line's shape.

use std::{path::PathBuf, time::Duration};

use callboard_protocol::{
    OwnerId,
    control::Standby,
    users::{TokenId, UserRole},
};
use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::{
    bench::BenchArgs,
    demo::DemoArgs,
    gateway::GatewayArgs,
    kernelspec::KernelspecVerb,
    node::NodeArgs,
    output::Format,
    simulate::{ExplainArgs, SimulateArgs},
    up::UpArgs,
};

/// Notebook kernels that outlive their machines.
#[derive(Debug, Parser)]
#[command(name = "callboard", version, arg_required_else_help = true)]
#[command(after_help = "Exit codes: 0 done · 1 the cell raised or the operation failed · 2 wrong \
usage or configuration · 3 not found · 4 no cluster answers · 5 interrupted or maybe executed · \
6 conflict · 7 this machine lacks something · 70 defect. See docs/cli.md.")]
pub struct Cli {
    /// Options of every verb.
    #[command(flatten)]
    pub global: Global,
    /// The verb.
    #[command(subcommand)]
    pub verb: Verb,
}

/// Options of every verb.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// How data is printed on stdout.
    #[arg(long, global = true, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: Format,
    /// Credentials of the cluster to speak to [default: .callboard/credentials/operator.json].
    #[arg(long, global = true, env = "CALLBOARD_CONTEXT", value_name = "FILE")]
    pub context: Option<PathBuf>,
    /// No colour, even on a terminal. NO_COLOR does the same.
    #[arg(long, global = true)]
    pub no_color: bool,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Run a whole cluster on this machine: a broker and node processes.
    Up(UpArgs),
    /// Run one node process. `up` does this for you.
    Node(NodeArgs),
    /// Run a gateway: Jupyter's REST and websocket interface for JupyterLab, VS Code and others. `up`
    /// has one.
    Gateway(GatewayArgs),
    /// Start, look at, use and stop kernels.
    #[command(subcommand)]
    Kernel(KernelVerb),
    /// Have Jupyter programs start kernels of the cluster as if they were processes of this machine.
    #[command(subcommand)]
    Kernelspec(KernelspecVerb),
    /// Say who may use a gateway's kernels, and with which access tokens.
    #[command(subcommand)]
    User(UserVerb),
    /// Show the outputs of a kernel.
    Outputs(OutputsArgs),
    /// Show the nodes.
    Nodes,
    /// Show what lies on the nodes' disks: chunks per owner, what moved, what is damaged.
    Storage,
    /// Show what happens in the cluster.
    Events(EventsArgs),
    /// End an actor by force, to see the others carry on.
    Kill(KillArgs),
    /// Say what this machine can and cannot do, and what to do about it.
    Doctor(DoctorArgs),
    /// Lose machines under a notebook session, on a cluster of its own, and check that nothing is lost.
    Demo(DemoArgs),
    /// Replay a trace of sessions through GPU schedulers on a virtual clock: a simulation.
    Simulate(SimulateArgs),
    /// Say why a simulated scheduler decided as it did.
    Explain(ExplainArgs),
    /// Measure.
    Bench(BenchArgs),
    /// Print a completion script for a shell.
    Completion {
        /// Which shell.
        shell: Shell,
    },
}

/// Verbs of kernels. KERNEL is an id, a name, or an unambiguous start of an id.
#[derive(Debug, Subcommand)]
pub enum KernelVerb {
    /// Create a kernel and print its id.
    Start(StartArgs),
    /// List the kernels.
    List,
    /// Show a kernel, its replicas and variables.
    Show {
        /// Which.
        kernel: String,
    },
    /// Run a cell and show its outputs as they come.
    Exec(ExecArgs),
    /// Interrupt the cell that runs, as Ctrl-C would.
    Interrupt {
        /// Which.
        kernel: String,
    },
    /// Show the cells a kernel can go back to, and the states kept by name.
    Log {
        /// Which.
        kernel: String,
    },
    /// Keep the present state under a name, until the name is removed.
    Checkpoint {
        /// Of which kernel.
        kernel: String,
        /// The name.
        name: String,
        /// Remove the name.
        #[arg(long)]
        drop: bool,
    },
    /// Make an earlier state the present one. It runs nothing, and can itself be undone.
    Rewind {
        /// Which kernel.
        kernel: String,
        /// The state after this cell: its place in `kernel log`, In[N], or a checkpoint's name.
        /// 0 is the start.
        #[arg(value_name = "CELL|NAME")]
        to: String,
        /// Do not ask.
        #[arg(long, short)]
        yes: bool,
    },
    /// Start a new kernel with a state of another one.
    Branch {
        /// The other one.
        kernel: String,
        /// Which of its states, as for `rewind` [default: the present one].
        #[arg(long, value_name = "CELL|NAME")]
        at: Option<String>,
        /// A name for the new one.
        #[arg(long)]
        name: Option<String>,
    },
    /// Write a state of a kernel to a file.
    Backup {
        /// Which kernel.
        kernel: String,
        /// The file; it must not exist.
        file: PathBuf,
        /// Which of its states, as for `rewind` [default: the present one].
        #[arg(long, value_name = "CELL|NAME")]
        at: Option<String>,
    },
    /// Start a new kernel with the state in a file that `backup` wrote.
    Restore {
        /// The file.
        file: PathBuf,
        /// A name for the new kernel.
        #[arg(long)]
        name: Option<String>,
        /// How many replicas: 1, 3 or 5.
        #[arg(long, default_value_t = 3, value_parser = replicas)]
        replicas: u8,
    },
    /// After most of a kernel's replicas are lost for good: go on with one that is not.
    Recover {
        /// Which kernel.
        kernel: String,
        /// The survivor, by its number in `kernel list --output json`.
        #[arg(long, value_name = "REPLICA")]
        from: u64,
        /// Do not ask.
        #[arg(long, short)]
        yes: bool,
    },
    /// End a kernel for good: its variables and outputs are deleted.
    Stop {
        /// Which.
        kernel: String,
        /// Remove its chunks at once, not within the grace period.
        #[arg(long)]
        purge: bool,
        /// Do not ask.
        #[arg(long, short)]
        yes: bool,
    },
}

/// Verbs of users.
#[derive(Debug, Subcommand)]
pub enum UserVerb {
    /// Add a user, or change the role of one that exists.
    Add {
        /// Who: letters, digits, '-' or '_'. It owns the kernels it starts.
        #[arg(value_name = "NAME")]
        user: OwnerId,
        /// What it may do.
        #[arg(long, value_enum, default_value_t)]
        role: RoleArg,
    },
    /// Remove a user that owns no kernels, and with it its tokens.
    Remove {
        /// Who.
        #[arg(value_name = "NAME")]
        user: OwnerId,
    },
    /// List the users and their tokens.
    List,
    /// Make an access token for a user and print it, this once.
    Token {
        /// For whom.
        #[arg(value_name = "NAME")]
        user: OwnerId,
        /// What it is for, shown in the list.
        #[arg(long, value_name = "TEXT")]
        label: Option<String>,
        /// How long it is valid, such as 30d, 12h or 45m [default: until it is revoked].
        #[arg(long, value_name = "TIME", value_parser = lifetime)]
        expires_in: Option<Duration>,
    },
    /// Make an access token invalid.
    Revoke {
        /// Which: the part after 'cb_' in the token, as `user list` shows it.
        #[arg(value_name = "TOKEN_ID")]
        id: TokenId,
    },
}

/// What a user may do.
#[derive(Debug, Clone, Copy, Default, ValueEnum)]
pub enum RoleArg {
    /// Look at its kernels and their outputs.
    Viewer,
    /// Have kernels of its own.
    #[default]
    User,
    /// See and manage everyone's kernels, and the users.
    Admin,
}

impl From<RoleArg> for UserRole {
    fn from(arg: RoleArg) -> Self {
        match arg {
            RoleArg::Viewer => Self::Viewer,
            RoleArg::User => Self::User,
            RoleArg::Admin => Self::Admin,
        }
    }
}

/// Longest lifetime of a token, in days: ten years. Whoever means longer means for ever.
const LIFETIME_MAX_DAYS: u64 = 3_650;

fn lifetime(text: &str) -> Result<Duration, String> {
    let refusal = || {
        format!(
            "use a whole number above 0 and s, m, h, d or w, such as 30d, of at most \
             {LIFETIME_MAX_DAYS} days; without --expires-in the token is valid until it is revoked"
        )
    };
    let unit = text.chars().last().ok_or_else(refusal)?;
    let unit_s = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3_600,
        'd' => 86_400,
        'w' => 7 * 86_400,
        _ => return Err(refusal()),
    };
    let number = text[..text.len() - unit.len_utf8()].parse::<u64>().map_err(|_| refusal())?;
    match number.checked_mul(unit_s) {
        Some(seconds) if (1..=LIFETIME_MAX_DAYS * 86_400).contains(&seconds) => {
            Ok(Duration::from_secs(seconds))
        }
        _ => Err(refusal()),
    }
}

/// Arguments of `kernel start`.
#[derive(Debug, Args)]
pub struct StartArgs {
    /// A name, unique among the kernels.
    #[arg(long)]
    pub name: Option<String>,
    /// How many replicas: 1, 3 or 5.
    #[arg(long, default_value_t = 3, value_parser = replicas)]
    pub replicas: u8,
    /// Most memory of the kernel's processes, in MiB.
    #[arg(long, value_name = "MIB")]
    pub memory_max_mib: Option<u64>,
    /// Most processor time, in percent of one processor.
    #[arg(long, value_name = "PERCENT")]
    pub cpu_max_percent: Option<u32>,
    /// How long a cell may run, in seconds.
    #[arg(long, value_name = "SECONDS")]
    pub cell_wall_time_max_s: Option<u64>,
    /// Most processes and threads.
    #[arg(long, value_name = "N")]
    pub processes_max: Option<u64>,
    /// Start the session in this directory of every node, whose files do not travel, and not in
    /// its own.
    #[arg(long, value_name = "PATH")]
    pub directory: Option<String>,
    /// Run this kernelspec, which Jupyter finds on the nodes, and not Python. The state of its sessions
    /// is not replicated.
    #[arg(long, value_name = "NAME")]
    pub kernelspec: Option<String>,
    /// Return once the kernel can run cells.
    #[arg(long)]
    pub wait: bool,
    /// Whether replicas that do not execute have a warm Python process; without it, as the cluster
    /// is configured.
    #[arg(long, value_enum)]
    pub standby: Option<StandbyArg>,
    /// Give it a Python process at the first request only.
    #[arg(long)]
    pub parked: bool,
}

/// What a replica that does not execute has ready.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum StandbyArg {
    /// Log and state only.
    Thin,
    /// A warm Python process, too: takeovers take one less step, at the cost of memory.
    Hot,
}

impl From<StandbyArg> for Standby {
    fn from(arg: StandbyArg) -> Self {
        match arg {
            StandbyArg::Thin => Self::Thin,
            StandbyArg::Hot => Self::Hot,
        }
    }
}

pub(crate) fn replicas(text: &str) -> Result<u8, String> {
    match text {
        "1" => Ok(1),
        "3" => Ok(3),
        "5" => Ok(5),
        _ => Err("use 1, 3 or 5: an even number survives no more losses".to_owned()),
    }
}

/// When a cell counts as done.
#[derive(Debug, Clone, Copy, Default, ValueEnum)]
pub enum LevelArg {
    /// Once it ran.
    Received,
    /// Once its state is on the disks of a majority.
    #[default]
    Durable,
}

/// Arguments of `kernel exec`.
#[derive(Debug, Args)]
pub struct ExecArgs {
    /// In which kernel.
    pub kernel: String,
    /// The code.
    #[arg(required_unless_present = "file", conflicts_with = "file")]
    pub code: Option<String>,
    /// Read the code from a file, or from stdin with '-'.
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// When the cell counts as done.
    #[arg(long, value_enum, default_value_t)]
    pub level: LevelArg,
    /// Stop waiting after this many seconds; the cell may go on.
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub timeout: Option<f64>,
    /// The request's id. One used before asks how that cell ended.
    #[arg(long, value_name = "ID")]
    pub msg_id: Option<String>,
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if seconds > 0.0 && seconds < 1e9 => Ok(seconds),
        _ => Err("use a number of seconds above 0".to_owned()),
    }
}

/// Arguments of `outputs`.
#[derive(Debug, Args)]
pub struct OutputsArgs {
    /// Of which kernel.
    pub kernel: String,
    /// Only those after this place, TERM.NUMBER.
    #[arg(long, default_value = "0.0", value_name = "T.N")]
    pub since: callboard_protocol::kernel::OutputCursor,
    /// Go on as new ones come.
    #[arg(long, short)]
    pub follow: bool,
}

/// Arguments of `events`.
#[derive(Debug, Args)]
pub struct EventsArgs {
    /// Go on until interrupted; without it, show two seconds of events.
    #[arg(long, short)]
    pub follow: bool,
    /// Show heartbeats too.
    #[arg(long)]
    pub beats: bool,
}

/// Arguments of `kill`.
#[derive(Debug, Args)]
pub struct KillArgs {
    /// node-2, KERNEL/REPLICA, KERNEL/REPLICA/python, or broker.
    pub actor: String,
    /// Do not ask.
    #[arg(long, short)]
    pub yes: bool,
}

/// Arguments of `doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// The data directory to look at.
    #[arg(long, default_value = ".callboard", value_name = "DIR")]
    pub data: PathBuf,
    /// A configuration file.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The Python to check.
    #[arg(long, value_name = "PROGRAM")]
    pub python: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lifetime_is_a_number_and_a_unit() {
        let seconds = |text: &str| lifetime(text).map(|lifetime| lifetime.as_secs());
        assert_eq!(seconds("90s"), Ok(90));
        assert_eq!(seconds("45m"), Ok(45 * 60));
        assert_eq!(seconds("12h"), Ok(12 * 3_600));
        assert_eq!(seconds("30d"), Ok(30 * 86_400));
        assert_eq!(seconds("2w"), Ok(14 * 86_400));
        let bad = [
            "",
            "d",
            "30",
            "0d",
            "-1d",
            "1.5d",
            "30 d",
            "30D",
            "3651d",
            "99999999999999999w",
            "1é",
        ];
        for text in bad {
            assert!(lifetime(text).unwrap_err().contains("such as 30d"), "{text}");
        }
    }
}
