//! The table of Python sessions, shared with the tests of the Python package.

use serde::Deserialize;

/// The table, as text.
const TABLE: &str = include_str!("../../../../../actors/kernel/python/tests/snippets.toml");

/// A session that must survive the loss of its machine.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Snippet {
    /// What it shows.
    pub(super) name: String,
    /// Its cells, run one after the other.
    pub(super) cells: Vec<String>,
    /// A cell that must not raise after the failover.
    pub(super) check: String,
    /// Names that cannot be carried and have to be refused by name.
    #[serde(default)]
    pub(super) refuses: Vec<String>,
    /// Places of the cells that have to raise.
    #[serde(default)]
    pub(super) raises: Vec<usize>,
}

#[derive(Debug, Deserialize)]
struct Table {
    snippet: Vec<Snippet>,
}

/// Every snippet.
///
/// # Errors
/// What the TOML parser says.
pub(super) fn all() -> Result<Vec<Snippet>, toml::de::Error> {
    toml::from_str::<Table>(TABLE).map(|table| table.snippet)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_at_least_sixty_snippets() {
        let snippets = all().unwrap();
        assert!(snippets.len() >= 60, "{} snippets", snippets.len());
        assert!(snippets.iter().all(|s| s.raises.iter().all(|cell| *cell < s.cells.len())));
    }
}
