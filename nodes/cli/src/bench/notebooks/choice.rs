//! Which notebooks a bench takes, and on what they run: what the benches of notebooks have in common.

use std::path::PathBuf;

use clap::Args;

use super::{
    environment::{self, Environment},
    library::{self, Notebook},
};
use crate::{bench::options::Options, exit::Failure};

/// Where Debian's python-sklearn-doc has its notebooks.
pub(super) const FOLDER_DEFAULT: &str = "/usr/share/doc/python-sklearn-doc/html/_downloads";

/// Arguments of every bench of notebooks.
#[derive(Debug, Args)]
pub(in crate::bench) struct Choice {
    /// The folder of the notebooks; files end in .ipynb or .ipynb.gz.
    #[arg(default_value = FOLDER_DEFAULT, value_name = "DIR")]
    pub(in crate::bench) folder: PathBuf,
    /// Only notebooks whose path contains this.
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// How many notebooks [default: as many as the bar asks for, fewer with --quick].
    #[arg(long, value_name = "N")]
    count: Option<usize>,
    /// Where the environment of the notebooks is made, once [default: below the user's cache].
    #[arg(long, value_name = "DIR", conflicts_with = "python")]
    env: Option<PathBuf>,
}

impl Choice {
    /// The environment, and the notebooks in the order in which they are tried.
    ///
    /// # Errors
    /// A [`Failure`] that says what is missing.
    pub(in crate::bench) async fn open(
        &self,
        options: &Options,
    ) -> Result<(Environment, Vec<Notebook>), Failure> {
        let environment =
            environment::prepare(options.python.as_deref(), self.env.as_deref()).await?;
        let mut notebooks = library::read(&environment.kernels, &self.folder).await?;
        notebooks.retain(|it| self.only.as_ref().is_none_or(|only| it.path.contains(only)));
        if notebooks.is_empty() {
            return Err(Failure::usage("no notebook has that in its path: choose another --only"));
        }
        Ok((environment, notebooks))
    }

    /// How many notebooks are taken, `usual` unless told otherwise.
    pub(in crate::bench) fn count(&self, usual: usize) -> usize {
        self.count.unwrap_or(usual)
    }

    /// Whether it is less than a whole run, which is not held to a count.
    pub(in crate::bench) fn is_partial(&self, options: &Options) -> bool {
        options.quick || self.only.is_some() || self.count.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::options::parse_as;

    #[derive(Debug, Args)]
    struct Both {
        #[command(flatten)]
        options: Options,
        #[command(flatten)]
        choice: Choice,
    }

    #[test]
    fn a_run_of_fewer_notebooks_is_partial() {
        let partial = |words: &[&str]| {
            let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            let both: Both = parse_as(&words);
            both.choice.is_partial(&both.options)
        };
        assert!(!partial(&[]) && !partial(&["/folder", "--seed", "2"]));
        assert!(partial(&["--quick"]) && partial(&["--count", "2"]));
        assert!(partial(&["--only", "x", "/folder"]));
    }
}
