//! Charts of the report as SVG, without scripts.
//!
//! Owns: the geometry. A mark (fault, change of leaders, abort) is a vertical line in every chart over time, with its text as
//! the tip that a browser shows.

use std::fmt::Write as _;

use super::super::faults::Mark;
use super::super::timeline::{Row, step_end_ms};
use super::{Lane, Time};

const WIDTH: f64 = 960.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 28.0;

/// Text for HTML and SVG.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c => out.push(c),
        }
    }
    out
}

/// A number with as many digits as one reads.
pub fn number(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 0.095 => format!("{value:.2}"),
        0.0 => "0".to_owned(),
        _ => format!("{value:.4}"),
    }
}

struct Chart {
    svg: String,
    height: f64,
    length_s: f64,
}

/// A line of a chart.
struct Line<'a> {
    name: &'a str,
    color: &'a str,
    points: Vec<(f64, f64)>,
}

impl Chart {
    fn new(height: f64, length_s: f64) -> Self {
        let svg = format!("<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\">");
        Self { svg, height, length_s: length_s.max(0.001) }
    }

    // Writing to a String cannot fail.
    fn put(&mut self, parts: std::fmt::Arguments<'_>) {
        let _ = self.svg.write_fmt(parts);
    }

    fn x(&self, at_s: f64) -> f64 {
        LEFT + (at_s / self.length_s).clamp(0.0, 1.0) * (WIDTH - LEFT - RIGHT)
    }

    /// `part` from 0 (bottom) to 1 (top).
    fn y(&self, part: f64) -> f64 {
        TOP + (1.0 - part.clamp(0.0, 1.0)) * (self.height - TOP - BOTTOM)
    }

    fn level(&mut self, part: f64, label: &str) {
        let y = self.y(part);
        let right = WIDTH - RIGHT;
        self.put(format_args!(
            "<line x1=\"{LEFT}\" x2=\"{right}\" y1=\"{y:.1}\" y2=\"{y:.1}\" class=\"grid\"/>"
        ));
        self.put(format_args!(
            "<text x=\"{}\" y=\"{:.1}\" class=\"end\">{label}</text>",
            LEFT - 6.0,
            y + 4.0
        ));
    }

    fn seconds(&mut self) {
        for at in 0..=6 {
            let at_s = self.length_s * f64::from(at) / 6.0;
            let (x, y) = (self.x(at_s), self.height - 8.0);
            self.put(format_args!("<text x=\"{x:.1}\" y=\"{y}\" class=\"mid\">{} s</text>", number(at_s)));
        }
    }

    fn marks(&mut self, marks: &[Mark]) {
        for mark in marks.iter().filter(|mark| mark.kind != "note") {
            let (x, bottom) = (self.x(mark.at_s), self.height - BOTTOM);
            let (kind, text) = (escape(&mark.kind), escape(&mark.text));
            self.put(format_args!(
                "<g class=\"mark {kind}\"><title>{:.1} s: {text}</title><line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" y2=\"{bottom}\"/><circle cx=\"{x:.1}\" cy=\"{TOP}\" r=\"4\"/></g>",
                mark.at_s
            ));
        }
    }

    fn line(&mut self, line: &Line<'_>, highest: f64) {
        let points: Vec<String> = line
            .points
            .iter()
            .map(|(at_s, value)| format!("{:.1},{:.1}", self.x(*at_s), self.y(value / highest)))
            .collect();
        self.put(format_args!(
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"1.6\"/>",
            points.join(" "),
            line.color
        ));
    }

    fn end(mut self, legend: &[Line<'_>]) -> String {
        let mut x = LEFT + 8.0;
        for line in legend {
            self.put(format_args!(
                "<text x=\"{x}\" y=\"11\" style=\"fill:{}\" class=\"legend\">{}</text>",
                line.color,
                escape(line.name)
            ));
            x += 9.0 * line.name.len() as f64 + 24.0;
        }
        self.svg.push_str("</svg>");
        self.svg
    }
}

fn length_s(rows: &[Row]) -> f64 {
    rows.last().map_or(1.0, |row| row.from_s + row.length_s)
}

fn middle(row: &Row) -> f64 {
    row.from_s + row.length_s / 2.0
}

fn over_time(rows: &[Row], marks: &[Mark], lines: Vec<Line<'_>>, least: f64) -> String {
    let highest = lines.iter().flat_map(|line| &line.points).map(|(_, v)| *v).fold(least, f64::max) * 1.05;
    let mut chart = Chart::new(220.0, length_s(rows));
    for part in [0.0, 0.25, 0.5, 0.75, 1.0] {
        chart.level(part, &number(highest * part));
    }
    chart.seconds();
    lines.iter().for_each(|line| chart.line(line, highest));
    chart.marks(marks);
    chart.end(&lines)
}

fn per_s(row: &Row, count: f64) -> (f64, f64) {
    (middle(row), count / row.length_s.max(0.001))
}

/// Messages per second: asked, acknowledged, at the carrier.
pub fn throughput(rows: &[Row], marks: &[Mark]) -> String {
    let line = |name, color, value: fn(&Row) -> f64| Line {
        name,
        color,
        points: rows.iter().map(|row| per_s(row, value(row))).collect(),
    };
    let lines = vec![
        line("asked", "#8a94a6", |row| row.asked),
        line("acknowledged", "#1f6feb", |row| row.acknowledged as f64),
        line("carrier", "#2da44e", |row| row.carrier as f64),
        line("failed and missed", "#cf222e", |row| (row.failed + row.missed) as f64),
    ];
    over_time(rows, marks, lines, 1.0)
}

/// Acknowledged messages that are not at the carrier.
pub fn backlog(rows: &[Row], marks: &[Mark]) -> String {
    let points = rows.iter().map(|row| (row.from_s + row.length_s, row.backlog as f64)).collect();
    over_time(rows, marks, vec![Line { name: "backlog", color: "#9a6700", points }], 1.0)
}

/// Segments per second of one lane against its limit.
pub fn lane(rows: &[Row], marks: &[Mark], lane: &Lane) -> String {
    let segments = |row: &Row| row.lanes.get(&lane.name).copied().unwrap_or(0) as f64;
    let points = rows.iter().map(|row| per_s(row, segments(row))).collect();
    let mut lines = vec![Line { name: "segments/s", color: "#1f6feb", points }];
    let limit = lane.limit.map(|limit| f64::from(limit) * 1_000.0 / lane.window_ms.max(1) as f64);
    if let Some(limit) = limit {
        lines.push(Line {
            name: "limit",
            color: "#cf222e",
            points: vec![(0.0, limit), (length_s(rows), limit)],
        });
    }
    over_time(rows, marks, lines, 1.0)
}

/// Response times over time: the darker, the more messages of that stretch took so long.
pub fn heat(rows: &[Row], marks: &[Mark]) -> String {
    let steps = || rows.iter().flat_map(|row| row.heat.keys().copied());
    let (lowest, highest) = (steps().min().unwrap_or(0), steps().max().unwrap_or(0) + 1);
    let span = f64::from(highest - lowest);
    let mut chart = Chart::new(280.0, length_s(rows));
    for row in rows {
        let total: u64 = row.heat.values().sum();
        for (step, count) in &row.heat {
            let share = *count as f64 / total.max(1) as f64;
            // Also one message in a million must be seen.
            let shade = 0.18 + 0.82 * share.sqrt();
            let (x, y) = (chart.x(row.from_s), chart.y(f64::from(step + 1 - lowest) / span));
            let width = (chart.x(row.from_s + row.length_s) - x).max(0.6);
            let height = chart.y(f64::from(step - lowest) / span) - y;
            chart.put(format_args!(
                "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" fill-opacity=\"{shade:.2}\"/>"
            ));
        }
    }
    for part in [0.0, 0.25, 0.5, 0.75, 1.0] {
        let step = f64::from(lowest) + part * span;
        chart.level(part, &format!("{} ms", number(step_end_ms(0) * 2_f64.powf((step - 1.0) / 4.0))));
    }
    chart.seconds();
    let line = |name, color, q| Line {
        name,
        color,
        points: rows
            .iter()
            .filter_map(|row| {
                let ms = row.quantile_ms(q)?;
                Some((middle(row), (ms / step_end_ms(0)).max(1e-9).log2() * 4.0 + 1.0 - f64::from(lowest)))
            })
            .collect(),
    };
    let lines = [line("p50", "#0a3069", 0.5), line("p99", "#cf222e", 0.99)];
    lines.iter().for_each(|line| chart.line(line, span));
    chart.marks(marks);
    chart.end(&lines)
}

/// Percentiles on a scale of nines, up to 99.99.
pub fn spectrum(times: &[(&str, &Time)]) -> String {
    const COLORS: [&str; 6] = ["#1f6feb", "#2da44e", "#9a6700", "#8250df", "#cf222e", "#57606a"];
    const NINES: f64 = 4.0;
    let nines = |percentile: f64| -(1.0 - percentile / 100.0).max(1e-9).log10();
    let points = |time: &Time| -> Vec<(f64, f64)> {
        let shown = time.spectrum.iter().filter(|(p, _)| *p <= 99.99);
        shown.map(|(p, ms)| (nines(*p), ms.max(0.01).log10())).collect()
    };
    let all: Vec<f64> = times.iter().flat_map(|(_, time)| points(time)).map(|(_, y)| y).collect();
    let low = all.iter().copied().fold(f64::INFINITY, f64::min).floor().min(3.0);
    let high = all.iter().copied().fold(f64::NEG_INFINITY, f64::max).ceil().max(low + 1.0);
    let mut chart = Chart::new(280.0, NINES);
    for decade in (low as i32)..=(high as i32) {
        let ms = 10_f64.powi(decade);
        chart.level((f64::from(decade) - low) / (high - low), &format!("{} ms", number(ms)));
    }
    for percentile in [0.0, 50.0, 90.0, 99.0, 99.9, 99.99] {
        let (x, y) = (chart.x(nines(percentile)), chart.height - 8.0);
        chart.put(format_args!("<text x=\"{x:.1}\" y=\"{y}\" class=\"mid\">p{percentile}</text>"));
    }
    let lines: Vec<Line<'_>> = times
        .iter()
        .zip(COLORS)
        .map(|((name, time), color)| Line {
            name,
            color,
            points: points(time).into_iter().map(|(x, y)| (x, y - low)).collect(),
        })
        .collect();
    lines.iter().for_each(|line| chart.line(line, high - low));
    chart.end(&lines)
}
