//! Whether a node's Python environment is what a kernel needs, and if not, what is missing.

use std::fmt::Write as _;

use callboard_protocol::environment::Environment;
use serde::{Deserialize, Serialize};

/// Differences named in a sentence; the rest is counted.
const NAMED_MAX: usize = 5;

/// How alike the environments of a kernel's nodes have to be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EnvironmentMatch {
    /// Same interpreter and every distribution in the same version.
    Exact,
    /// Same interpreter but for its patch version; of the distributions those that the session has
    /// imported.
    #[default]
    Imported,
    /// Not at all.
    Off,
}

/// What `has` lacks or has otherwise than `needs`, as a clause; `None` if it will do.
#[must_use]
pub fn differences(
    needs: &Environment,
    has: &Environment,
    alike: EnvironmentMatch,
) -> Option<String> {
    if alike == EnvironmentMatch::Off {
        return None;
    }
    let mut lacking = Vec::new();
    let mut other = Vec::new();
    let mut compare = |what: &str, needs: &str, has: &str| {
        if needs != has {
            other.push(format!("{what}{has} instead of {needs}"));
        }
    };
    compare("", &needs.implementation, &has.implementation);
    compare("platform ", &needs.platform, &has.platform);
    if alike == EnvironmentMatch::Exact || minor(&needs.python) != minor(&has.python) {
        compare("Python ", &needs.python, &has.python);
    }
    for (name, version) in &needs.distributions {
        match has.distributions.get(name) {
            None => lacking.push(format!("{name} {version}")),
            Some(found) => compare(&format!("{name} "), version, found),
        }
    }
    if alike == EnvironmentMatch::Exact {
        let extra = has.distributions.iter().filter(|it| !needs.distributions.contains_key(it.0));
        other.extend(
            extra.map(|(name, version)| format!("{name} {version}, which the first has not")),
        );
    }
    let clauses: Vec<String> = [("lacks", lacking), ("has", other)]
        .into_iter()
        .filter(|(_, items)| !items.is_empty())
        .map(|(verb, items)| format!("{verb} {}", listed(&items)))
        .collect();
    (!clauses.is_empty()).then(|| clauses.join(" and "))
}

/// `3.11` of `3.11.7`: what compiled code and pickles of code depend on.
fn minor(version: &str) -> &str {
    version.match_indices('.').nth(1).map_or(version, |(end, _)| &version[..end])
}

fn listed(items: &[String]) -> String {
    let mut text = items.iter().take(NAMED_MAX).cloned().collect::<Vec<_>>().join(", ");
    if let more @ 1.. = items.len().saturating_sub(NAMED_MAX) {
        // Writing to a string cannot fail.
        let _ = write!(text, " and {more} more");
    }
    text
}

#[cfg(test)]
mod tests {
    use EnvironmentMatch::{Exact, Imported, Off};

    use super::*;

    fn environment(python: &str, distributions: &[(&str, &str)]) -> Environment {
        Environment {
            python: python.to_owned(),
            implementation: "CPython".to_owned(),
            platform: "linux-x86_64".to_owned(),
            distributions: distributions
                .iter()
                .map(|(name, version)| ((*name).to_owned(), (*version).to_owned()))
                .collect(),
            ..Environment::default()
        }
    }

    #[test]
    fn what_is_lacking_and_what_is_other_is_said() {
        let needs = environment("3.11.7", &[("numpy", "2.4.6"), ("pandas", "3.1.1")]);
        let has = environment("3.11.9", &[("numpy", "2.3.0"), ("more", "1")]);
        let said = differences(&needs, &has, Imported).unwrap();
        assert_eq!(said, "lacks pandas 3.1.1 and has numpy 2.3.0 instead of 2.4.6");
        assert_eq!(differences(&needs, &has, Off), None);
        let said = differences(&needs, &has, Exact).unwrap();
        assert!(said.contains("Python 3.11.9 instead of 3.11.7"), "{said}");
        assert!(said.contains("more 1, which the first has not"), "{said}");
        let has = environment("3.11.9", &[("numpy", "2.4.6"), ("pandas", "3.1.1"), ("more", "1")]);
        assert_eq!(differences(&needs, &has, Imported), None);
    }

    #[test]
    fn the_interpreter_counts_up_to_its_minor_version() {
        let needs = environment("3.11.7", &[]);
        let said = differences(&needs, &environment("3.12.1", &[]), Imported).unwrap();
        assert_eq!(said, "has Python 3.12.1 instead of 3.11.7");
        assert_eq!(differences(&needs, &environment("3.11", &[]), Imported), None);
        let mut other = needs.clone();
        other.platform = "linux-aarch64".to_owned();
        assert!(differences(&needs, &other, Imported).unwrap().contains("platform linux-aarch64"));
    }

    #[test]
    fn a_long_list_is_cut() {
        let names: Vec<String> = (0..9).map(|n| format!("d{n}")).collect();
        let all: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "1")).collect();
        let said = differences(&environment("3.11.7", &all), &environment("3.11.7", &[]), Imported);
        assert_eq!(said.unwrap(), "lacks d0 1, d1 1, d2 1, d3 1, d4 1 and 4 more");
    }
}
