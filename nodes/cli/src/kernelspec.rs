//! `callboard kernelspec …`: kernels of the cluster for programs that start kernels as processes.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
};

use callboard_client::Client;
use callboard_protocol::{KernelId, control::KernelSettings, environment::Kernelspec as Shown};
use callboard_proxy::{
    OnExit, Proxy, ProxyError, ProxyOptions, Which,
    spec::{self, Kernelspec},
};
use callboard_transport::Credentials;
use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;
use serde_json::Value;

use crate::{
    context::Context,
    exit::{Exit, Failure, Outcome},
    output::{say, table},
};

/// The folder of kernelspecs below a data folder of Jupyter.
const KERNELS: &str = "kernels";
/// Longest name of a kernelspec.
const NAME_LENGTH_MAX: usize = 64;

/// Names the kernel to use to a process whose arguments a kernelspec says.
const KERNEL_VARIABLE: &str = "CALLBOARD_KERNEL";

/// Verbs of kernelspecs.
#[derive(Debug, Subcommand)]
pub enum KernelspecVerb {
    /// Write a kernelspec, so that Jupyter programs find kernels of this cluster beside their own.
    Install(InstallArgs),
    /// Remove a kernelspec that `install` wrote. Kernels go on.
    Uninstall {
        /// Its name.
        #[arg(default_value = "callboard", value_parser = name)]
        name: String,
        /// Where it is.
        #[command(flatten)]
        place: PlaceArgs,
    },
    /// List the kernelspecs that `install` wrote.
    List,
    /// Be the process that a Jupyter program starts for a kernel. The kernelspec does this for you.
    Run(RunArgs),
}

/// Arguments of `kernelspec install`.
#[derive(Debug, Args)]
pub struct InstallArgs {
    /// Where to write it.
    #[command(flatten)]
    place: PlaceArgs,
    /// What programs know it by: letters, digits, '-', '.' or '_'.
    #[arg(long, default_value = "callboard", value_parser = name)]
    name: String,
    /// What people choose it by [default: that of the language, such as 'Python 3 (Callboard)'].
    #[arg(long, value_name = "TEXT")]
    display_name: Option<String>,
    /// What it passes on to each process.
    #[command(flatten)]
    kernel: KernelArgs,
}

/// Where a kernelspec is: for this user unless told otherwise.
#[derive(Debug, Args)]
#[group(multiple = false)]
pub struct PlaceArgs {
    /// For this user.
    #[arg(long)]
    user: bool,
    /// For the Python environment that is active: VIRTUAL_ENV or CONDA_PREFIX.
    #[arg(long)]
    sys_prefix: bool,
    /// Below DIR/share/jupyter.
    #[arg(long, value_name = "DIR")]
    prefix: Option<PathBuf>,
}

/// Which kernel, and what becomes of it.
#[derive(Debug, Args)]
pub struct KernelArgs {
    /// Use this kernel, by id or name, and do not start one. CALLBOARD_KERNEL does the same for `run`.
    #[arg(long, value_name = "ID|NAME")]
    kernel: Option<String>,
    /// What becomes of the kernel when it is shut down, or its process told to end [default: stop; with
    /// --kernel keep].
    #[arg(long, value_enum, value_name = "WHAT")]
    on_exit: Option<OnExitArg>,
    /// Start sessions in this directory of every node, whose files do not travel, and not in one of
    /// their own; '.' is the notebook's.
    #[arg(long, value_name = "PATH", conflicts_with = "kernel")]
    directory: Option<PathBuf>,
    /// Start kernels of this kernelspec, which Jupyter finds on the nodes, and not of Python. The state
    /// of their sessions is not replicated.
    #[arg(long, value_name = "NAME", conflicts_with = "kernel")]
    kernelspec: Option<String>,
}

/// Arguments of `kernelspec run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The connection file that the program wrote.
    #[arg(short = 'f', long, value_name = "FILE")]
    connection_file: PathBuf,
    /// The id of the kernel; it is started if there is none.
    #[arg(long, value_name = "UUID", env = "KERNEL_ID")]
    kernel_id: Option<KernelId>,
    /// The process that started this one; it ends when that does.
    #[arg(long, hide = true, env = "JPY_PARENT_PID")]
    parent: Option<String>,
    /// Which kernel, and what becomes of it.
    #[command(flatten)]
    kernel: KernelArgs,
}

/// What becomes of a kernel.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum OnExitArg {
    /// It goes on, and can be used again with --kernel.
    Keep,
    /// It is stopped for good.
    Stop,
}

impl From<OnExitArg> for OnExit {
    fn from(arg: OnExitArg) -> Self {
        match arg {
            OnExitArg::Keep => Self::Keep,
            OnExitArg::Stop => Self::Stop,
        }
    }
}

fn name(text: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    if text.is_empty()
        || text.len() > NAME_LENGTH_MAX
        || text.starts_with('.')
        || !text.chars().all(fits)
    {
        return Err(format!("use at most {NAME_LENGTH_MAX} letters, digits, '-', '.' or '_'"));
    }
    Ok(text.to_owned())
}

impl From<ProxyError> for Failure {
    fn from(error: ProxyError) -> Self {
        let exit = match error {
            ProxyError::Connection { .. } => Exit::Usage,
            ProxyError::Listen { .. } | ProxyError::Signals(_) => Exit::Environment,
            ProxyError::Cluster(fault) => return fault.into(),
        };
        Self::new(exit, error)
    }
}

/// Runs a verb.
///
/// # Errors
/// A [`Failure`] that says what to do.
pub async fn run(context: &Context, verb: KernelspecVerb) -> Outcome {
    match verb {
        KernelspecVerb::Install(args) => install(context, &args).await,
        KernelspecVerb::Uninstall { name, place } => uninstall(context, &name, &place),
        KernelspecVerb::List => list(context),
        KernelspecVerb::Run(args) => serve(context, args).await,
    }
}

/// Serves one front-end's kernel until it is shut down.
async fn serve(context: &Context, args: RunArgs) -> Outcome {
    let KernelArgs { kernel, on_exit, directory, kernelspec } = args.kernel;
    let asked_for = || env::var(KERNEL_VARIABLE).ok().filter(|text| !text.is_empty());
    let which = match (kernel.or_else(asked_for), args.kernel_id) {
        (Some(text), _) => Which::Existing(text),
        (None, Some(id)) => Which::Id(id),
        (None, None) => Which::Own,
    };
    let on_exit = on_exit.map_or_else(|| which.on_exit(), OnExit::from);
    // Front-ends start the process in the notebook's directory.
    let directory = match directory.map(|path| env::current_dir().map(|here| here.join(path))) {
        Some(path) => Some(path?.components().collect::<PathBuf>().to_string_lossy().into_owned()),
        None => None,
    };
    let follows_parent = args.parent.is_some();
    let settings = KernelSettings { directory, kernelspec, ..KernelSettings::default() };
    let options = ProxyOptions { which, on_exit, settings, follows_parent };
    let proxy = Proxy::bind(&args.connection_file, options).await?;
    proxy.serve(context.connect().await?).await?;
    Ok(Exit::Ok)
}

/// A kernelspec of ours, as it is listed.
#[derive(Debug, Serialize)]
struct Installed {
    name: String,
    display_name: String,
    context: String,
    directory: PathBuf,
}

impl Installed {
    /// The kernelspec in `directory`, if `install` wrote it.
    fn read(directory: &Path) -> Option<Self> {
        let json: Value =
            serde_json::from_slice(&fs::read(directory.join("kernel.json")).ok()?).ok()?;
        Some(Self {
            name: directory.file_name()?.to_string_lossy().into_owned(),
            display_name: json["display_name"].as_str().unwrap_or_default().to_owned(),
            context: spec::context_of(&json)?.to_owned(),
            directory: directory.to_owned(),
        })
    }
}

async fn install(context: &Context, args: &InstallArgs) -> Outcome {
    let credentials = context.front_end_file();
    // Whoever starts a kernel later does not see what is wrong with it.
    let access = Credentials::load(&credentials).map_err(Failure::usage)?;
    let (language, default_name) = match &args.kernel.kernelspec {
        None => (spec::PYTHON.to_owned(), "Python 3 (Callboard)".to_owned()),
        Some(name) => {
            let Shown { language, display_name } = of_the_nodes(&access, name).await?;
            (language, format!("{display_name} (Callboard, not replicated)"))
        }
    };
    let display_name = args.display_name.clone().unwrap_or(default_name);
    let credentials = fs::canonicalize(&credentials)?;
    let program = env::current_exe().map_err(Failure::environment)?;
    let mut arguments = Vec::new();
    if let Some(kernel) = &args.kernel.kernel {
        arguments.extend(["--kernel".to_owned(), kernel.clone()]);
    }
    if let Some(on_exit) = args.kernel.on_exit.and_then(|it| it.to_possible_value()) {
        arguments.extend(["--on-exit".to_owned(), on_exit.get_name().to_owned()]);
    }
    if let Some(directory) = &args.kernel.directory {
        arguments.extend(["--directory".to_owned(), directory.display().to_string()]);
    }
    if let Some(kernelspec) = &args.kernel.kernelspec {
        arguments.extend(["--kernelspec".to_owned(), kernelspec.clone()]);
    }
    let directory = args.place.folder()?.join(&args.name);
    refuse_foreign(&directory)?;
    let spec = Kernelspec {
        display_name: &display_name,
        language: &language,
        program: &program,
        context: &credentials,
        arguments: &arguments,
    };
    let cannot = |error: io::Error| {
        Failure::environment(format!(
            "cannot write the kernelspec in {}: {error}; name another place with --prefix",
            directory.display()
        ))
    };
    fs::create_dir_all(&directory).map_err(cannot)?;
    let json = serde_json::to_vec_pretty(&spec.to_json()).map_err(io::Error::other)?;
    fs::write(directory.join(spec::LOGO_FILE), spec::LOGO).map_err(cannot)?;
    fs::write(directory.join("kernel.json"), json).map_err(cannot)?;
    say(&format!(
        "next: choose '{display_name}' in Jupyter, or jupyter console --kernel {}",
        args.name
    ));
    context.printer.data(&Installed::read(&directory), |_| directory.display().to_string())?;
    Ok(Exit::Ok)
}

/// A kernelspec of the nodes, as it is shown.
async fn of_the_nodes(access: &Credentials, name: &str) -> Result<Shown, Failure> {
    let client = Client::connect(access).await.map_err(|it| Failure::new(Exit::Unavailable, it))?;
    let known = client.control().list_kernelspecs().await?.kernelspecs;
    match known.get(name) {
        Some(status) => Ok(status.spec.clone()),
        None => {
            let names: Vec<&str> = known.keys().map(String::as_str).collect();
            let text = format!(
                "no node has a kernelspec '{name}': there are {}; install it for Jupyter on the nodes",
                if names.is_empty() { "none but Python's".to_owned() } else { names.join(", ") }
            );
            Err(Failure::new(Exit::NotFound, text))
        }
    }
}

fn uninstall(context: &Context, name: &str, place: &PlaceArgs) -> Outcome {
    let directory = place.folder()?.join(name);
    refuse_foreign(&directory)?;
    let Some(installed) = Installed::read(&directory) else {
        let text = format!(
            "there is no kernelspec at {}: `callboard kernelspec list` shows those there are",
            directory.display()
        );
        return Err(Failure::new(Exit::NotFound, text));
    };
    fs::remove_dir_all(&directory).map_err(|error| {
        Failure::environment(format!("cannot remove {}: {error}", directory.display()))
    })?;
    context.printer.data(&installed, |it| it.directory.display().to_string())?;
    Ok(Exit::Ok)
}

/// Refuses to touch a kernelspec that something else wrote.
fn refuse_foreign(directory: &Path) -> Result<(), Failure> {
    if !directory.join("kernel.json").exists() || Installed::read(directory).is_some() {
        return Ok(());
    }
    let text = format!(
        "the kernelspec at {} is not one of `callboard kernelspec install`: choose another --name",
        directory.display()
    );
    Err(Failure::new(Exit::Conflict, text))
}

fn list(context: &Context) -> Outcome {
    let mut found: Vec<Installed> = Vec::new();
    for folder in data_folders() {
        let entries = fs::read_dir(folder.join(KERNELS)).into_iter().flatten().flatten();
        found.extend(entries.filter_map(|entry| Installed::read(&entry.path())));
    }
    context.printer.data(&found, |found| {
        let rows = found.iter().map(|it| {
            let directory = it.directory.display().to_string();
            vec![it.name.clone(), it.display_name.clone(), it.context.clone(), directory]
        });
        table(&["name", "display name", "context", "directory"], rows)
    })?;
    Ok(Exit::Ok)
}

impl PlaceArgs {
    /// The folder of kernelspecs.
    fn folder(&self) -> Result<PathBuf, Failure> {
        let data = if let Some(prefix) = &self.prefix {
            std::path::absolute(prefix)?.join("share/jupyter")
        } else if self.sys_prefix {
            let active = environment_folder().ok_or_else(|| {
                Failure::usage(
                    "no Python environment is active: activate one, or name it with --prefix",
                )
            })?;
            active.join("share/jupyter")
        } else {
            user_folder().ok_or_else(|| {
                Failure::environment("this user has no home directory: name a place with --prefix")
            })?
        };
        Ok(data.join(KERNELS))
    }
}

fn folder_of(variable: &str) -> Option<PathBuf> {
    env::var_os(variable).filter(|it| !it.is_empty()).map(PathBuf::from)
}

fn environment_folder() -> Option<PathBuf> {
    folder_of("VIRTUAL_ENV").or_else(|| folder_of("CONDA_PREFIX"))
}

/// The user's data folder. Source: `jupyter_core.paths.jupyter_data_dir`.
fn user_folder() -> Option<PathBuf> {
    folder_of("JUPYTER_DATA_DIR").or_else(|| {
        let home = || folder_of("HOME").map(|home| home.join(".local/share"));
        Some(folder_of("XDG_DATA_HOME").or_else(home)?.join("jupyter"))
    })
}

/// Where Jupyter programs look for kernelspecs, without what is listed twice.
fn data_folders() -> Vec<PathBuf> {
    let path = env::var_os("JUPYTER_PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> =
        env::split_paths(&path).filter(|it| !it.as_os_str().is_empty()).collect();
    folders.extend(user_folder());
    folders.extend(environment_folder().map(|it| it.join("share/jupyter")));
    folders.extend(["/usr/local/share/jupyter", "/usr/share/jupyter"].map(PathBuf::from));
    let mut unique = Vec::new();
    for folder in folders {
        if !unique.contains(&folder) {
            unique.push(folder);
        }
    }
    unique
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_that_jupyter_finds_and_no_path() {
        assert!(name("callboard-3.11_x").is_ok());
        for bad in ["", "..", "a/b", "a b", ".hidden", &"a".repeat(65)] {
            assert!(name(bad).is_err(), "{bad}");
        }
    }
}
