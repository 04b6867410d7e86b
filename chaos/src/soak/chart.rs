//! The samples of a soak as a table and as a picture.

use std::{fmt::Write as _, fs, path::Path};

use super::sampler::Sample;
use crate::error::ChaosError;

const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 110.0;
const LEFT: f64 = 210.0;
const TOP: f64 = 14.0;

type Value = fn(&Sample) -> f64;

/// What is drawn, with the unit, one strip below the other.
const STRIPS: [(&str, Value); 8] = [
    ("nodes, MiB", |it| it.nodes_kib as f64 / 1024.0),
    ("spared node, MiB", |it| it.spared_kib as f64 / 1024.0),
    ("Python, MiB", |it| it.python_kib as f64 / 1024.0),
    ("Python processes", |it| it.pythons as f64),
    ("open files of nodes", |it| it.files_open as f64),
    ("disks, MiB", |it| it.disk_bytes as f64 / (1 << 20) as f64),
    ("logs, MiB", |it| it.log_bytes as f64 / (1 << 20) as f64),
    ("chunks", |it| it.chunks as f64),
];

/// Writes `samples.csv` and `samples.svg`. `faults` are the times faults struck at, in seconds.
///
/// # Errors
/// [`ChaosError::Io`].
pub(super) fn write(folder: &Path, samples: &[Sample], faults: &[f64]) -> Result<(), ChaosError> {
    for (name, text) in [("samples.csv", csv(samples)), ("samples.svg", svg(samples, faults))] {
        let path = folder.join(name);
        fs::write(&path, text).map_err(ChaosError::io("write", &path))?;
    }
    Ok(())
}

fn csv(samples: &[Sample]) -> String {
    let mut text = "at_s,nodes_kib,spared_kib,python_kib,pythons,files_open,disk_bytes,\
                    spared_disk_bytes,log_bytes,chunks\n"
        .to_owned();
    for it in samples {
        // A String takes everything.
        let _ = writeln!(
            text,
            "{:.1},{},{},{},{},{},{},{},{},{}",
            it.at_s,
            it.nodes_kib,
            it.spared_kib,
            it.python_kib,
            it.pythons,
            it.files_open,
            it.disk_bytes,
            it.spared_disk_bytes,
            it.log_bytes,
            it.chunks
        );
    }
    text
}

fn svg(samples: &[Sample], faults: &[f64]) -> String {
    let end = samples.last().map_or(1.0, |it| it.at_s.max(1.0));
    let x = |at: f64| LEFT + at / end * (WIDTH - LEFT - 10.0);
    let height = HEIGHT * STRIPS.len() as f64;
    let mut text = format!(
        "<svg xmlns='http://www.w3.org/2000/svg' width='{WIDTH}' height='{height}' \
         font-family='sans-serif' font-size='12'>\n<rect width='100%' height='100%' fill='white'/>\n"
    );
    for at in faults {
        let at = x(*at);
        let _ =
            writeln!(text, "<line x1='{at:.1}' y1='0' x2='{at:.1}' y2='{height}' stroke='#fcc'/>");
    }
    for (place, (name, value)) in STRIPS.iter().enumerate() {
        let top = place as f64 * HEIGHT + TOP;
        let most = samples.iter().map(value).fold(0.0, f64::max).max(1.0);
        let bottom = top + HEIGHT - TOP - 6.0;
        let y = |it: &Sample| bottom - value(it) / most * (bottom - top);
        let points: Vec<String> =
            samples.iter().map(|it| format!("{:.1},{:.1}", x(it.at_s), y(it))).collect();
        let _ = writeln!(
            text,
            "<text x='8' y='{:.0}'>{name}</text><text x='8' y='{:.0}' fill='#777'>up to {most:.0}</text>\
             <line x1='{LEFT}' y1='{bottom}' x2='{WIDTH}' y2='{bottom}' stroke='#ccc'/>\
             <polyline fill='none' stroke='#247' stroke-width='1.5' points='{}'/>",
            top + 14.0,
            top + 30.0,
            points.join(" ")
        );
    }
    text + "</svg>\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_and_picture_hold_every_sample() {
        let sample = |at_s| Sample { at_s, nodes_kib: 2048, chunks: 3, ..Sample::default() };
        let samples = [sample(0.0), sample(5.0)];
        let text = csv(&samples);
        assert_eq!(text.lines().count(), 3);
        assert!(text.ends_with("5.0,2048,0,0,0,0,0,0,0,3\n"), "{text}");
        let columns = |line: &str| line.split(',').count();
        assert!(text.lines().all(|line| columns(line) == 10), "{text}");
        let picture = svg(&samples, &[2.5]);
        assert_eq!(picture.matches("<polyline").count(), STRIPS.len());
        assert_eq!(picture.matches("#fcc").count(), 1);
    }
}
