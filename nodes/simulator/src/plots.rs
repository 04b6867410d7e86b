//! A comparison as pictures.

use std::{ops::Range, path::Path};

use plotters::{
    coord::ranged1d::{AsRangedCoord, ValueFormatter},
    prelude::*,
};

use crate::compare::{Comparison, Kind, Row};

const SIZE: (u32, u32) = (960, 540);

/// What went wrong while drawing.
#[derive(Debug, thiserror::Error)]
#[error("cannot draw {file}: {why}")]
pub struct PlotError {
    file: String,
    why: String,
}

struct Line {
    name: &'static str,
    color: RGBColor,
    points: Vec<(f64, f64)>,
}

fn color(kind: Kind) -> RGBColor {
    match kind {
        Kind::Callboard => RGBColor(0x1f, 0x77, 0xb4),
        Kind::CallboardEqualHours => RGBColor(0x17, 0xbe, 0xcf),
        Kind::Notebookos => RGBColor(0xd6, 0x27, 0x28),
        Kind::FcfsBatch => RGBColor(0x8c, 0x56, 0x4b),
        Kind::Pooled => RGBColor(0xff, 0x7f, 0x0e),
        Kind::Reservation => RGBColor(0x55, 0x55, 0x55),
        Kind::Reservation180m => RGBColor(0x7f, 0x7f, 0x7f),
        Kind::Reservation60m => RGBColor(0xa0, 0xa0, 0xa0),
        Kind::Reservation30m => RGBColor(0xc0, 0xc0, 0xc0),
    }
}

/// Draws `delay.svg`, `gpus.svg` and `subscription.svg`.
///
/// # Errors
/// [`PlotError`] if a file cannot be written.
pub fn draw(comparison: &Comparison, folder: &Path) -> Result<(), PlotError> {
    let over_time = |row: &Row, value: &dyn Fn(&crate::engine::Sample) -> f64| {
        row.samples.iter().map(|it| (it.at_ms as f64 / 3_600_000.0, value(it))).collect()
    };
    let lines = |points: &dyn Fn(&Row) -> Vec<(f64, f64)>| -> Vec<Line> {
        let line =
            |row: &Row| Line { name: row.kind.name(), color: color(row.kind), points: points(row) };
        comparison.rows.iter().map(line).collect()
    };
    let delays = lines(&|row| row.delays.iter().map(|it| (it.0.max(DELAY_MIN_S), it.1)).collect());
    delay(&folder.join("delay.svg"), &delays)?;
    let mut gpus = lines(&|row| over_time(row, &|it| it.provisioned as f64));
    gpus.push(Line { name: "floor", color: BLACK, points: comparison.floor.clone() });
    time(&folder.join("gpus.svg"), "GPUs of all nodes", &gpus)?;
    let subscription = lines(&|row| over_time(row, &|it| it.subscription));
    time(&folder.join("subscription.svg"), "GPUs of all open sessions per GPU", &subscription)
}

/// Left end of the axis of delays.
const DELAY_MIN_S: f64 = 0.01;

fn delay(file: &Path, lines: &[Line]) -> Result<(), PlotError> {
    let max = lines.iter().flat_map(|it| &it.points).map(|it| it.0).fold(1.0, f64::max);
    let root = SVGBackend::new(file, SIZE).into_drawing_area();
    chart(
        &root,
        lines,
        (DELAY_MIN_S..max * 1.1).log_scale(),
        0.0..1.0,
        ("from submission to start, seconds", "part of the tasks"),
        SeriesLabelPosition::LowerLeft,
    )
    .map_err(|why| PlotError { file: file.display().to_string(), why })
}

fn time(file: &Path, what: &str, lines: &[Line]) -> Result<(), PlotError> {
    let points = || lines.iter().flat_map(|it| &it.points);
    let end = points().map(|it| it.0).fold(1.0, f64::max);
    let max = points().map(|it| it.1).fold(1.0, f64::max);
    let root = SVGBackend::new(file, SIZE).into_drawing_area();
    chart(&root, lines, 0.0..end, 0.0..max * 1.05, ("hours", what), SeriesLabelPosition::UpperLeft)
        .map_err(|why| PlotError { file: file.display().to_string(), why })
}

fn chart<X>(
    root: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
    lines: &[Line],
    x: X,
    y: Range<f64>,
    (x_name, y_name): (&str, &str),
    legend_at: SeriesLabelPosition,
) -> Result<(), String>
where
    X: AsRangedCoord<Value = f64>,
    X::CoordDescType: ValueFormatter<f64>,
{
    let text = |error: DrawingAreaErrorKind<_>| error.to_string();
    root.fill(&WHITE).map_err(text)?;
    let mut chart = ChartBuilder::on(root)
        .margin(16)
        .x_label_area_size(44)
        .y_label_area_size(60)
        .build_cartesian_2d(x, y)
        .map_err(text)?;
    chart
        .configure_mesh()
        .light_line_style(RGBColor(0xf2, 0xf2, 0xf2))
        .x_desc(x_name)
        .y_desc(y_name)
        .draw()
        .map_err(text)?;
    for line in lines {
        let style = line.color.stroke_width(2);
        chart
            .draw_series(LineSeries::new(line.points.iter().copied(), style))
            .map_err(text)?
            .label(line.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
    }
    chart
        .configure_series_labels()
        .position(legend_at)
        .background_style(WHITE.mix(0.85))
        .border_style(RGBColor(0xcc, 0xcc, 0xcc))
        .draw()
        .map_err(text)?;
    root.present().map_err(text)
}
