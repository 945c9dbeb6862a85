//! The report as one HTML file: opens without a network, without scripts, verdict first.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::charts::{self, escape, number};
use super::write::HTML;
use super::{Report, Time};
use crate::ledger::Finding;

const STYLE: &str = include_str!("style.css");

/// Grows the page.
struct Page(String);

impl Page {
    // Writing to a String cannot fail.
    fn put(&mut self, parts: std::fmt::Arguments<'_>) {
        let _ = self.0.write_fmt(parts);
    }

    fn section(&mut self, title: &str, about: &str) {
        self.put(format_args!("<h2>{}</h2>", escape(title)));
        if !about.is_empty() {
            self.put(format_args!("<p class=\"about\">{}</p>", escape(about)));
        }
    }

    /// Rows of cells; cells are escaped.
    fn table(&mut self, head: &[&str], rows: &[Vec<String>]) {
        self.0.push_str("<table>");
        if !head.is_empty() {
            self.0.push_str("<tr>");
            head.iter().for_each(|cell| self.put(format_args!("<th>{}</th>", escape(cell))));
            self.0.push_str("</tr>");
        }
        for row in rows {
            let class = match row.first().map(String::as_str) {
                Some("FAILED") => " class=\"bad\"",
                Some("held") => " class=\"good\"",
                _ => "",
            };
            self.put(format_args!("<tr{class}>"));
            row.iter().for_each(|cell| self.put(format_args!("<td>{}</td>", escape(cell))));
            self.0.push_str("</tr>");
        }
        self.0.push_str("</table>");
    }
}

fn verdict(page: &mut Page, report: &Report) {
    let (verdict, scenario) = (&report.verdict, &report.scenario);
    let word = verdict.outcome.word();
    page.put(format_args!(
        "<header class=\"{}\"><h1>{word}: {}</h1>",
        word.to_lowercase(),
        escape(&scenario.name)
    ));
    page.put(format_args!("<p>{}</p>", escape(&scenario.about)));
    for why in &verdict.why {
        page.put(format_args!("<p class=\"why\">{}</p>", escape(why)));
    }
    page.0.push_str("</header>");
}

fn thresholds(page: &mut Page, report: &Report) {
    page.section("Thresholds", "What had to hold; times in milliseconds.");
    let rows: Vec<Vec<String>> = report
        .thresholds
        .iter()
        .map(|judged| {
            let measured = judged.measured.iter().map(|(name, value)| match judged.measured.len() {
                1 => number(*value),
                _ => format!("{name} {}", number(*value)),
            });
            let measured = judged.why.clone().unwrap_or_else(|| measured.collect::<Vec<_>>().join(", "));
            let note = if judged.aborted { "stopped the run" } else { "" };
            let state = if judged.held { "held" } else { "FAILED" };
            vec![state.to_owned(), judged.check.clone(), measured, note.to_owned()]
        })
        .collect();
    page.table(&["", "threshold", "measured", ""], &rows);
}

fn environment(page: &mut Page, report: &Report) {
    let (environment, scenario) = (&report.environment, &report.scenario);
    page.section("Environment", "");
    let launched = if environment.launched { " (started for this run)" } else { "" };
    let shared = "the cluster shares this machine with the generator and the carrier simulator";
    let rows = [
        ("program", format!("carillon-loadtest {}", environment.version)),
        ("command line", environment.command_line.clone()),
        ("started", environment.started.clone()),
        ("scenario", format!("{} digest {} seed {}", scenario.name, scenario.digest, scenario.seed)),
        ("loop", format!("{} loop", scenario.pacing)),
        ("target", format!("{}{launched}", environment.target)),
        ("machine", format!("{}, kernel {}", environment.host, environment.kernel)),
        (
            "processor",
            format!(
                "{}, {} cores, {} MiB",
                environment.processor,
                environment.cores,
                environment.memory_bytes >> 20
            ),
        ),
        ("note", if environment.shared_machine { shared.to_owned() } else { String::new() }),
    ];
    let rows: Vec<Vec<String>> =
        rows.into_iter().filter(|(_, v)| !v.is_empty()).map(|(k, v)| vec![k.to_owned(), v]).collect();
    page.table(&[], &rows);
    for mark in report.marks.iter().filter(|mark| mark.kind == "note") {
        page.put(format_args!("<p class=\"about\">{}</p>", escape(&mark.text)));
    }
}

fn totals(page: &mut Page, report: &Report) {
    let totals = &report.totals;
    page.section("Asked and achieved", "");
    let optional =
        |value: Option<f64>, unit: &str| value.map_or("-".to_owned(), |v| format!("{}{unit}", number(v)));
    let rows = [
        ("seconds of sending", number(totals.sending_s)),
        ("messages asked for", number(totals.asked)),
        ("messages submitted", totals.submitted.to_string()),
        ("acknowledged", format!("{} ({}/s)", totals.acknowledged, number(totals.acknowledged_per_s))),
        ("of them repeated keys", totals.repeated.to_string()),
        (
            "at the carrier",
            format!("{} ({})", totals.carrier_messages.unwrap_or(0), optional(totals.carrier_per_s, "/s")),
        ),
        ("other calls", totals.calls.to_string()),
        ("failed for good", totals.failed.to_string()),
        ("sends that never left (missed)", totals.missed.to_string()),
        ("sends late because of the generator", totals.late.to_string()),
        ("without an answer", totals.in_doubt.to_string()),
        ("at rest after the last send", optional(totals.drained_s, " s")),
        ("generator", report.generator.to_string()),
    ];
    page.table(&[], &rows.map(|(k, v)| vec![k.to_owned(), v]));
    if !totals.errors.is_empty() {
        let rows: Vec<_> = totals.errors.iter().map(|(r, n)| vec![r.clone(), n.to_string()]).collect();
        page.table(&["error", "count"], &rows);
    }
}

fn times(page: &mut Page, report: &Report) {
    page.section(
        "Times",
        "Response time counts from the moment at which the schedule intended to send, so a stalled cluster cannot hide its stall; service time counts from sending. Milliseconds.",
    );
    let shown: Vec<(&str, &Time)> =
        report.times.iter().filter(|(_, t)| t.summary.count > 0).map(|(n, t)| (n.as_str(), t)).collect();
    let at = |time: &Time, wanted: f64| {
        time.spectrum.iter().find(|(p, _)| *p == wanted).map_or("-".to_owned(), |(_, ms)| number(*ms))
    };
    let percentiles = [50.0, 90.0, 99.0, 99.9, 99.99, 100.0];
    let rows: Vec<Vec<String>> = shown
        .iter()
        .map(|(name, time)| {
            let mut row = vec![(*name).to_owned(), time.summary.count.to_string(), number(time.mean_ms)];
            row.extend(percentiles.iter().map(|p| at(time, *p)));
            row.push(time.about.clone());
            row
        })
        .collect();
    page.table(&["", "count", "mean", "p50", "p90", "p99", "p99.9", "p99.99", "max", ""], &rows);
    let drawn = |wanted: &&str| shown.iter().copied().find(|(name, _)| name == wanted);
    let main =
        ["response_time", "service_time", "due_to_carrier", "carrier_to_receipt", "op.get", "op.cancel"];
    let lines: Vec<(&str, &Time)> = main.iter().filter_map(drawn).collect();
    page.0.push_str(&charts::spectrum(&lines));
}

fn over_time(page: &mut Page, report: &Report) {
    let (rows, marks) = (&report.timeline, &report.marks);
    page.section(
        "Response time over time",
        "Each column is a stretch of time; the darker, the more of its messages took so long. Vertical lines: faults (red), changes of leaders (violet), an abort (black).",
    );
    page.0.push_str(&charts::heat(rows, marks));
    page.section("Throughput", "Messages per second.");
    page.0.push_str(&charts::throughput(rows, marks));
    if rows.iter().any(|row| row.backlog > 0) {
        page.section("Backlog", "Acknowledged and not at the carrier.");
        page.0.push_str(&charts::backlog(rows, marks));
    }
    for lane in &report.lanes {
        let limit = lane.limit.map_or("no limit".to_owned(), |limit| {
            format!("limit {limit} segments in {} ms", lane.window_ms)
        });
        let used =
            lane.used.map_or(String::new(), |used| format!(", {:.1} % used under backlog", used * 100.0));
        page.section(
            &format!("Lane {}", lane.name),
            &format!(
                "{limit}; {} segments, {} in the fullest window, {} over the limit{used}.",
                lane.segments, lane.window_max, lane.over_limit
            ),
        );
        page.0.push_str(&charts::lane(rows, marks, lane));
    }
    let list: Vec<Vec<String>> = marks
        .iter()
        .filter(|mark| mark.kind != "note")
        .map(|mark| vec![format!("{:.1} s", mark.at_s), mark.kind.clone(), mark.text.clone()])
        .collect();
    if !list.is_empty() {
        page.section("What happened", "");
        page.table(&["at", "", ""], &list);
    }
}

fn ledger(page: &mut Page, report: &Report) {
    page.section(
        "Ledger",
        "Every acknowledged message against ListMessages and against what the carrier really received.",
    );
    let Some(ledger) = &report.ledger else {
        page.0.push_str("<p>The ledger could not be made.</p>");
        return;
    };
    let count = |finding: Finding| ledger.count(finding).to_string();
    let rows = [
        ("lost", ledger.lost().to_string()),
        ("duplicates", ledger.duplicates().to_string()),
        ("possible duplicates (lost answers)", report.possible_duplicates.values().sum::<u64>().to_string()),
        ("over the limit", ledger.over_limit.to_string()),
        (
            "out of window",
            format!("{} early, {} planned wrong", count(Finding::SentBeforeDue), report.totals.planned_wrong),
        ),
        ("out of order", count(Finding::OutOfOrder)),
        ("after expiry", count(Finding::SentAfterExpiry)),
        ("unsettled", count(Finding::Unsettled)),
    ];
    page.table(&[], &rows.map(|(k, v)| vec![k.to_owned(), v]));
    page.put(format_args!("<pre>{}</pre>", escape(&ledger.to_string())));
    if !report.possible_duplicates.is_empty() {
        let rows: Vec<_> =
            report.possible_duplicates.iter().map(|(why, n)| vec![why.clone(), n.to_string()]).collect();
        page.table(&["possible duplicates: state and reason", "count"], &rows);
    }
    let fairness = &report.fairness;
    if fairness.practices > 0 {
        page.section(
            "Fairness",
            "What each practice got, compared with the most even way to share out what the carrier took. 1 is fair.",
        );
        page.put(format_args!(
            "<p>Jain's index {:.4} over {} practices.</p>",
            fairness.jain, fairness.practices
        ));
        let rows: Vec<_> = fairness
            .worst
            .iter()
            .map(|p| vec![p.practice.clone(), p.messages.to_string(), number(p.mean_ms), number(p.max_ms)])
            .collect();
        page.table(&["waited longest", "messages", "mean ms", "max ms"], &rows);
    }
}

/// The page.
pub fn page(report: &Report) -> String {
    let mut page = Page(String::with_capacity(1 << 20));
    page.put(format_args!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>{} {}</title><style>{STYLE}</style></head><body>",
        report.verdict.outcome.word(),
        escape(&report.scenario.name)
    ));
    verdict(&mut page, report);
    thresholds(&mut page, report);
    environment(&mut page, report);
    totals(&mut page, report);
    times(&mut page, report);
    over_time(&mut page, report);
    ledger(&mut page, report);
    page.section("Scenario", "With everything that the command line changed.");
    page.put(format_args!("<pre>{}</pre></body></html>\n", escape(&report.scenario.toml)));
    page.0
}

/// Writes `report.html`.
pub fn write(dir: &Path, report: &Report) -> anyhow::Result<PathBuf> {
    let path = dir.join(HTML);
    fs_err::write(&path, page(report))?;
    Ok(path)
}
