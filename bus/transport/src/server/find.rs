//! Which nats-server to run.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use super::{BrokerError, VERSION_MIN};

/// Environment variable with the path of nats-server.
const PROGRAM_VARIABLE: &str = "CALLBOARD_NATS_SERVER";

/// The nats-server to run: `explicit`, else the one `CALLBOARD_NATS_SERVER` names, else the first
/// that is new enough in a `.venv/bin` at or above the executable's or the current directory, else
/// on the `PATH`.
///
/// # Errors
/// [`BrokerError::NotFound`], [`BrokerError::TooOld`], [`BrokerError::NotRunnable`]. A program
/// named explicitly is never passed over.
pub fn find_server(explicit: Option<&Path>) -> Result<PathBuf, BrokerError> {
    let named = env::var_os(PROGRAM_VARIABLE).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(program) = explicit.map(Path::to_owned).or(named) {
        if !program.is_file() {
            let searched = format!("{} does not exist", program.display());
            return Err(BrokerError::NotFound { searched });
        }
        return new_enough(program);
    }
    let mut unfit = None;
    for candidate in candidates().into_iter().filter(|path| path.is_file()) {
        match new_enough(candidate) {
            Ok(program) => return Ok(program),
            Err(error) => unfit = unfit.or(Some(error)),
        }
    }
    Err(unfit.unwrap_or_else(|| BrokerError::NotFound {
        searched: "looked in .venv/bin here and above, and on the PATH".to_owned(),
    }))
}

fn candidates() -> Vec<PathBuf> {
    let starts = [env::current_exe().ok(), env::current_dir().ok()];
    let above = starts.iter().flatten().flat_map(|start| start.ancestors());
    let mut found: Vec<PathBuf> =
        above.map(|folder| folder.join(".venv/bin/nats-server")).collect();
    if let Some(path) = env::var_os("PATH") {
        found.extend(env::split_paths(&path).map(|folder| folder.join("nats-server")));
    }
    found
}

fn new_enough(program: PathBuf) -> Result<PathBuf, BrokerError> {
    let (version, text) = server_version(&program)?;
    if version < VERSION_MIN {
        return Err(BrokerError::TooOld { program, found: text });
    }
    Ok(program)
}

/// Asks a nats-server for its version: major and minor, and the whole text.
///
/// # Errors
/// [`BrokerError::NotRunnable`].
pub fn server_version(program: &Path) -> Result<((u64, u64), String), BrokerError> {
    let fail = |why: String| BrokerError::NotRunnable { program: program.to_owned(), why };
    let output =
        Command::new(program).arg("--version").output().map_err(|error| fail(error.to_string()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    parse_version(&text).ok_or_else(|| {
        fail(format!("`--version` printed '{}'", text.trim().chars().take(80).collect::<String>()))
    })
}

/// Reads `nats-server: v2.15.1`.
fn parse_version(text: &str) -> Option<((u64, u64), String)> {
    let version = text.trim().strip_prefix("nats-server:")?.trim().trim_start_matches('v');
    let mut numbers = version.split('.');
    let major = numbers.next()?.parse().ok()?;
    let minor = numbers.next()?.parse().ok()?;
    Some(((major, minor), version.to_owned()))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::*;

    #[test]
    fn versions_are_read_as_numbers() {
        assert_eq!(parse_version("nats-server: v2.15.1\n").unwrap().0, (2, 15));
        assert_eq!(parse_version("nats-server: v2.9.10").unwrap().0, (2, 9));
        assert!(parse_version("nats-server: v2.9.10").unwrap().0 < VERSION_MIN);
        assert_eq!(parse_version("nats: 1"), None);
    }

    #[test]
    fn an_unfit_program_is_refused_with_a_next_step() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("nats-server");
        let missing = find_server(Some(&program)).unwrap_err().to_string();
        assert!(missing.contains("make setup"), "{missing}");
        for (prints, expected) in
            [("nats-server: v2.9.10", "2.10 or newer"), ("hello", "cannot be run as nats-server")]
        {
            fs::write(&program, format!("#!/bin/sh\necho '{prints}'\n")).unwrap();
            fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
            let error = find_server(Some(&program)).unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains("make setup"), "{error}");
        }
    }
}
