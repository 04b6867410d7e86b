//! Which cluster the command speaks to.

use std::{
    io::{self, IsTerminal as _, Write as _},
    path::{Path, PathBuf},
};

use callboard_client::Client;
use callboard_protocol::control::KernelSpec;
use callboard_transport::{ConnectError, Credentials};

use crate::{
    args::Global,
    exit::{Exit, Failure},
    output::{Printer, say},
};

/// Where `up` leaves the operator's credentials unless told otherwise.
pub const CONTEXT_DEFAULT: &str = ".callboard/credentials/operator.json";

/// The cluster and how to print.
#[derive(Debug)]
pub struct Context {
    /// How to print.
    pub printer: Printer,
    file: PathBuf,
    /// Whether the user named the file.
    is_named: bool,
}

impl Context {
    /// What the global options say. Nothing is read yet.
    #[must_use]
    pub fn new(global: &Global) -> Self {
        let is_named = global.context.is_some();
        let file = global.context.clone().unwrap_or_else(|| PathBuf::from(CONTEXT_DEFAULT));
        Self { printer: Printer::new(global.output, global.no_color), file, is_named }
    }

    /// The credentials file.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The credentials that programs are given which start kernels: those of the gateway, which may do
    /// less than the operator's, unless others are named.
    #[must_use]
    pub fn front_end_file(&self) -> PathBuf {
        let gateway = self.file.with_file_name("gateway.json");
        if self.is_named || !gateway.exists() { self.file.clone() } else { gateway }
    }

    /// The data directory of a local `up` that wrote the credentials, if that is where they are.
    #[must_use]
    pub fn data_dir(&self) -> Option<&Path> {
        let folder = self.file.parent()?;
        (folder.file_name()? == "credentials").then(|| folder.parent()).flatten()
    }

    /// Connects to the cluster.
    ///
    /// # Errors
    /// A [`Failure`] that says how to get a cluster.
    pub async fn connect(&self) -> Result<Client, Failure> {
        if !self.file.exists() {
            return Err(Failure::new(
                Exit::Unavailable,
                format!(
                    "found no cluster: there is no credentials file at {}. Start a cluster with `callboard up`, or name another file with --context or CALLBOARD_CONTEXT",
                    self.file.display()
                ),
            ));
        }
        let credentials = Credentials::load(&self.file).map_err(Failure::usage)?;
        Client::connect(&credentials).await.map_err(|error| {
            let exit = match error {
                ConnectError::Unreachable { .. } => Exit::Unavailable,
                ConnectError::Refused { .. } | ConnectError::BadOptions { .. } => Exit::Usage,
            };
            Failure::new(exit, error)
        })
    }

    /// Connects and finds a kernel.
    ///
    /// # Errors
    /// As [`Self::connect`]; also if there is no such kernel.
    pub async fn find(&self, kernel: &str) -> Result<(Client, KernelSpec), Failure> {
        let client = self.connect().await?;
        let spec = client.control().find_kernel(kernel).await?;
        Ok((client, spec))
    }
}

/// Says what will be done and asks, on a terminal. Elsewhere `--yes` is needed.
///
/// # Errors
/// A [`Failure`] if the answer is no or nobody can be asked.
pub fn confirm(plan: &str, yes: bool) -> Result<(), Failure> {
    say(plan);
    if yes {
        return Ok(());
    }
    if !io::stdin().is_terminal() {
        return Err(Failure::usage("not done: there is no terminal to ask on; add --yes"));
    }
    write!(io::stderr(), "Go on? [y/N] ")?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(Failure::new(Exit::Failed, "not done")),
    }
}
