//! The notebooks of a folder, in the order in which they are tried.

use std::path::Path;

use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use tokio::process::Command;

use crate::exit::Failure;

/// Reads every notebook of a folder, packed ones too.
const READ: &str = include_str!("read.py");
/// Hexadecimal digits of a digest shown to people.
const DIGEST_SHOWN: usize = 8;

/// A notebook's code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::bench) struct Notebook {
    /// Its path below the folder, as it is stored there.
    pub(in crate::bench) path: String,
    /// SHA-256 of the path, in hexadecimal.
    pub(in crate::bench) digest: String,
    /// Its code cells that are not blank.
    pub(in crate::bench) cells: Vec<String>,
}

impl Notebook {
    fn new(read: Read) -> Self {
        let digest = hex::encode(Sha256::digest(read.path.as_bytes()));
        Self { path: read.path, digest, cells: read.cells }
    }

    /// The file's name behind the start of the digest.
    pub(in crate::bench) fn label(&self) -> String {
        let name = self.path.rsplit('/').next().unwrap_or(&self.path);
        format!("{} {name}", &self.digest[..DIGEST_SHOWN])
    }
}

#[derive(Debug, Deserialize)]
struct Read {
    path: String,
    cells: Vec<String>,
}

/// Every notebook below `folder`, ordered by the digest of its path.
///
/// # Errors
/// A [`Failure`] if there is none or one cannot be read.
pub(in crate::bench) async fn read(python: &Path, folder: &Path) -> Result<Vec<Notebook>, Failure> {
    let shown = folder.display();
    let fail =
        |why: String| Failure::environment(format!("cannot read the notebooks of {shown}: {why}"));
    let read = Command::new(python).args(["-c", READ]).arg(folder).output().await;
    let read = read.map_err(|error| fail(error.to_string()))?;
    let parsed: Result<Vec<Read>, _> = serde_json::from_slice(&read.stdout);
    let found = parsed.map_err(|_| {
        let said = String::from_utf8_lossy(&read.stderr);
        fail(said.lines().last().unwrap_or("Python said nothing").to_owned())
    })?;
    if found.is_empty() {
        return Err(Failure::usage(format!(
            "there are no notebooks below {shown}: name a folder that has some; Debian's python-sklearn-doc has them in {}",
            super::choice::FOLDER_DEFAULT
        )));
    }
    Ok(in_order(found.into_iter().map(Notebook::new).collect()))
}

fn in_order(mut notebooks: Vec<Notebook>) -> Vec<Notebook> {
    notebooks.sort_by(|left, right| left.digest.cmp(&right.digest));
    notebooks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_is_that_of_the_digests_of_the_paths() {
        let notebook =
            |path: &str| Notebook::new(Read { path: path.to_owned(), cells: Vec::new() });
        let ordered = in_order(vec![notebook("a.ipynb"), notebook("b.ipynb"), notebook("c.ipynb")]);
        // As `printf %s b.ipynb | sha256sum` has them.
        let labels: Vec<String> = ordered.iter().map(Notebook::label).collect();
        assert_eq!(labels, ["40425fef b.ipynb", "c9e6b8c1 c.ipynb", "d1e52b21 a.ipynb"]);
    }

    #[tokio::test]
    async fn packed_notebooks_are_read_blank_cells_and_prose_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let text = r#"{"cells": [{"cell_type": "markdown", "source": ["prose"]},
            {"cell_type": "code", "source": ["x = 1\n", "x"]}, {"cell_type": "code", "source": " "}]}"#;
        std::fs::write(folder.path().join("a.ipynb"), text).unwrap();
        std::fs::create_dir(folder.path().join("b")).unwrap();
        std::fs::write(folder.path().join("b/b.ipynb"), text).unwrap();
        let gzip = std::process::Command::new("gzip").arg(folder.path().join("b/b.ipynb")).status();
        assert!(gzip.unwrap().success());
        let found = read(Path::new("python3"), folder.path()).await.unwrap();
        let mut paths: Vec<&str> = found.iter().map(|notebook| notebook.path.as_str()).collect();
        paths.sort_unstable();
        assert_eq!(paths, ["a.ipynb", "b/b.ipynb.gz"]);
        assert!(found.iter().all(|notebook| notebook.cells == ["x = 1\nx"]));
    }

    #[tokio::test]
    async fn an_empty_folder_and_a_broken_notebook_are_told() {
        let folder = tempfile::tempdir().unwrap();
        let none = read(Path::new("python3"), folder.path()).await.unwrap_err();
        assert!(none.message.contains("there are no notebooks"), "{}", none.message);
        std::fs::write(folder.path().join("a.ipynb"), "{").unwrap();
        let broken = read(Path::new("python3"), folder.path()).await.unwrap_err();
        assert!(broken.message.contains("JSONDecodeError"), "{}", broken.message);
    }
}
