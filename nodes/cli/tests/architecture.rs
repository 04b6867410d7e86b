//! ARCHITECTURE.md lists who may depend on whom; this test holds the workspace to it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    process::Command,
};

use serde_json::Value;

/// Crate → crates it uses; those of dev-dependencies end in ` (dev)`.
type Edges = BTreeMap<String, BTreeSet<String>>;

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

fn listed() -> Edges {
    let text = std::fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let (_, section) = text.split_once("## Who may depend on whom").unwrap();
    let section = section.split("\n## ").next().unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| callboard-"));
    rows.map(|row| {
        let mut cells = row.trim_matches('|').split('|').map(str::trim);
        let name = cells.next().unwrap().to_owned();
        let uses = cells.next().unwrap().split(',').map(str::trim).filter(|it| !it.is_empty());
        (name, uses.map(str::to_owned).collect())
    })
    .collect()
}

fn real() -> Edges {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let ours = |name: &&str| name.starts_with("callboard-");
    let packages = metadata["packages"].as_array().unwrap().iter();
    packages
        .map(|package| {
            let dependencies = package["dependencies"].as_array().unwrap();
            let names = |dev: bool| {
                let of_kind = move |it: &&Value| (it["kind"] == "dev") == dev;
                dependencies
                    .iter()
                    .filter(of_kind)
                    .filter_map(|it| it["name"].as_str())
                    .filter(ours)
            };
            let normal: BTreeSet<String> = names(false).map(str::to_owned).collect();
            // One that is used anyway is no edge of its own in the tests.
            let dev = names(true).filter(|name| !normal.contains(*name));
            let dev: BTreeSet<String> = dev.map(|name| format!("{name} (dev)")).collect();
            (package["name"].as_str().unwrap().to_owned(), &normal | &dev)
        })
        .collect()
}

#[test]
fn every_edge_between_crates_is_listed_in_the_architecture() {
    let (listed, real) = (listed(), real());
    for (name, uses) in &real {
        let allowed = listed.get(name);
        let allowed = allowed.unwrap_or_else(|| panic!("ARCHITECTURE.md does not list {name}"));
        let unlisted: Vec<&String> = uses.difference(allowed).collect();
        assert!(
            unlisted.is_empty(),
            "{name} uses {unlisted:?}, which ARCHITECTURE.md does not list"
        );
        let gone: Vec<&String> = allowed.difference(uses).collect();
        assert!(gone.is_empty(), "ARCHITECTURE.md lets {name} use {gone:?}, but it does not");
    }
    assert_eq!(listed.keys().collect::<Vec<_>>(), real.keys().collect::<Vec<_>>());
}

#[test]
fn every_file_that_the_architecture_names_with_its_folder_exists() {
    let text = std::fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let words = text.split('`').skip(1).step_by(2);
    let roots = ["bus/", "actors/", "nodes/", "chaos/", "configs/", "docs/"];
    for path in words.filter(|word| roots.iter().any(|root| word.starts_with(root))) {
        assert!(root().join(path).exists(), "ARCHITECTURE.md names {path}, which does not exist");
    }
}
