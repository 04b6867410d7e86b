//! The Python package, carried in the binary and unpacked by every node that runs kernels.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use include_dir::{Dir, include_dir};

static PACKAGE: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/python/callboard_kernel");

/// The Python package could not be written.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot write the kernel's Python package to {path}: {source}; check that the directory is writable and has space"
)]
pub struct PackageError {
    path: PathBuf,
    source: io::Error,
}

/// Writes the package below `directory` and returns what belongs in `PYTHONPATH`. The files of a
/// former version are replaced.
///
/// # Errors
/// [`PackageError`] if a file cannot be written.
pub fn unpack_package(directory: &Path) -> Result<PathBuf, PackageError> {
    let target = directory.join("callboard_kernel");
    let fail = |source| PackageError { path: target.clone(), source };
    if target.exists() {
        fs::remove_dir_all(&target).map_err(fail)?;
    }
    fs::create_dir_all(&target).map_err(fail)?;
    fs::set_permissions(&target, readable(0o755)).map_err(fail)?;
    write_sources(&PACKAGE, &target).map_err(fail)?;
    Ok(directory.to_owned())
}

/// Kernels may run under other uids than the node, whatever its umask is.
fn readable(mode: u32) -> fs::Permissions {
    fs::Permissions::from_mode(mode)
}

fn write_sources(from: &Dir<'_>, to: &Path) -> io::Result<()> {
    for file in from.files() {
        if file.path().extension().is_some_and(|extension| extension == "py") {
            let path = to.join(file.path());
            fs::write(&path, file.contents())?;
            fs::set_permissions(&path, readable(0o644))?;
        }
    }
    for directory in from.dirs() {
        if !directory.path().ends_with("__pycache__") {
            let path = to.join(directory.path());
            fs::create_dir_all(&path)?;
            fs::set_permissions(&path, readable(0o755))?;
            write_sources(directory, to)?;
        }
    }
    Ok(())
}
