//! What the disk below the data directory can do.

use std::{
    fs,
    io::{self, Write as _},
    path::Path,
    time::{Duration, Instant},
};

use super::{Finding, Verdict};

/// Syncs measured; the median of this many moves little from run to run.
const SYNCS: usize = 51;
/// Bytes written before each sync: about one cell's log record.
const SYNC_BYTES: usize = 4096;
/// A median above this makes every durable cell feel slow.
const SYNC_SLOW: Duration = Duration::from_millis(20);
/// Less free space than this will not last a session with data.
const SPACE_LOW_MIB: u64 = 1024;
/// Less free space than this ends the work soon.
const SPACE_NONE_MIB: u64 = 64;

/// How much space is free.
pub(super) fn space(data: &Path) -> Finding {
    let check = "disk space";
    let stat = match nix::sys::statvfs::statvfs(existing(data)) {
        Ok(stat) => stat,
        Err(errno) => {
            let text = format!("cannot look at {}: {errno}", data.display());
            return Finding::new(check, Verdict::Warn, text);
        }
    };
    let free_mib = stat.blocks_available().saturating_mul(stat.fragment_size()) / (1 << 20);
    let text = format!("{free_mib} MiB free");
    match free_mib {
        0..SPACE_NONE_MIB => {
            Finding::new(check, Verdict::Fail, text + ": free some, or choose another --data")
        }
        SPACE_NONE_MIB..SPACE_LOW_MIB => {
            Finding::new(check, Verdict::Warn, text + ": enough for small sessions only")
        }
        _ => Finding::new(check, Verdict::Ok, text),
    }
}

/// How long a durable write takes: the floor under every durable cell.
pub(super) fn sync_latency(data: &Path) -> Finding {
    let check = "fsync";
    match median_sync(existing(data)) {
        Ok(median) => {
            let text = format!(
                "{:.2} ms median of {SYNCS}, the least a durable cell can take",
                median.as_secs_f64() * 1000.0
            );
            if median > SYNC_SLOW {
                let hint = ": slow; put --data on a faster disk, or use `--level received`";
                Finding::new(check, Verdict::Warn, text + hint)
            } else {
                Finding::new(check, Verdict::Ok, text)
            }
        }
        Err(error) => {
            let text = format!(
                "cannot sync a file in {}: {error}; choose a writable --data",
                existing(data).display()
            );
            Finding::new(check, Verdict::Fail, text)
        }
    }
}

/// The folder itself, or the nearest one above it that exists.
fn existing(data: &Path) -> &Path {
    let here = Path::new(".");
    data.ancestors()
        .map(|folder| if folder.as_os_str().is_empty() { here } else { folder })
        .find(|folder| folder.is_dir())
        .unwrap_or(here)
}

fn median_sync(folder: &Path) -> io::Result<Duration> {
    let path = folder.join(format!(".callboard-doctor-{}", std::process::id()));
    let result = time_syncs(&path);
    let removed = fs::remove_file(&path);
    let mut times = result?;
    removed?;
    times.sort_unstable();
    Ok(times[times.len() / 2])
}

fn time_syncs(path: &Path) -> io::Result<Vec<Duration>> {
    let mut file = fs::OpenOptions::new().write(true).create_new(true).open(path)?;
    let record = [0x5a_u8; SYNC_BYTES];
    (0..SYNCS)
        .map(|_| {
            file.write_all(&record)?;
            let begun = Instant::now();
            file.sync_data()?;
            Ok(begun.elapsed())
        })
        .collect()
}
