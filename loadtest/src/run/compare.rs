//! `compare`: two runs of the same scenario side by side, and a gate for what got worse.
//!
//! Owns: which way each metric is better, and when a difference counts. With one run on each side a difference beyond the gate
//! counts. With repeated runs the medians are compared, and it counts only if the ranges do not overlap either: a single bad
//! run proves nothing.
//! Invariant: runs of different scenarios, and runs that were invalid, are not compared.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;

use super::report::{Outcome, Report, write};
use super::threshold::{Kind, kind_of};

/// What of the metrics the gate looks at, if nothing else is said.
const GATED: [&str; 8] = [
    "response_time.p50",
    "response_time.p99",
    "due_to_carrier.p99",
    "carrier_to_receipt.p99",
    "accepted.rate",
    "carrier.rate",
    "lost",
    "duplicates",
];

/// Compare two runs of the same scenario.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The run to compare with: its directory, or its report.json.
    pub base: PathBuf,
    /// The run in question.
    pub new: PathBuf,
    /// More runs like the first; may be given several times.
    #[arg(long)]
    pub base_also: Vec<PathBuf>,
    /// More runs like the second.
    #[arg(long)]
    pub new_also: Vec<PathBuf>,
    /// How much worse a metric may get, in percent.
    #[arg(long, default_value_t = 10.0)]
    pub gate: f64,
    /// Metrics of the gate; may be given several times. Default: times at p50 and p99, rates, losses.
    #[arg(long = "metric")]
    pub metrics: Vec<String>,
    /// Compare runs of different scenarios all the same.
    #[arg(long)]
    pub any_scenario: bool,
    /// Show every metric, not only those of the gate.
    #[arg(long)]
    pub all: bool,
    /// Write the comparison to this file as JSON.
    #[arg(long)]
    pub json: Option<PathBuf>,
}

/// One metric on both sides; medians, times in milliseconds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Difference {
    pub metric: String,
    pub base: f64,
    pub new: f64,
    /// In percent of the base; positive is more.
    pub change_percent: f64,
    /// The gate looks at it.
    pub gated: bool,
    pub worse: bool,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    pub base_runs: usize,
    pub new_runs: usize,
    pub gate_percent: f64,
    pub differences: Vec<Difference>,
}

/// More of it is better.
fn more_is_better(metric: &str) -> bool {
    let kind = kind_of(metric);
    kind == Some(Kind::Rate)
        || matches!(metric, "fairness.jain" | "achieved.ratio")
        || metric.ends_with(".used")
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len().is_multiple_of(2) { (values[middle - 1] + values[middle]) / 2.0 } else { values[middle] }
}

fn difference(metric: &str, base: &[f64], new: &[f64], gate_percent: f64, gated: bool) -> Difference {
    let (from, to) = (median(base.to_vec()), median(new.to_vec()));
    let change_percent = if from == to {
        0.0
    } else if from == 0.0 {
        f64::from(if to > 0.0 { 1_000_000 } else { -1_000_000 })
    } else {
        (to - from) / from * 100.0
    };
    let sign = if more_is_better(metric) { -1.0 } else { 1.0 };
    let beyond = change_percent * sign > gate_percent;
    let low = |list: &[f64]| list.iter().map(|v| v * sign).fold(f64::INFINITY, f64::min);
    let high = |list: &[f64]| list.iter().map(|v| v * sign).fold(f64::NEG_INFINITY, f64::max);
    let apart = base.len() + new.len() == 2 || low(new) > high(base);
    Difference {
        metric: metric.to_owned(),
        base: from,
        new: to,
        change_percent,
        gated,
        worse: beyond && apart,
    }
}

/// Compares two sides. Each has at least one run.
pub fn compare(base: &[Report], new: &[Report], gate_percent: f64, gated: &[String]) -> Comparison {
    let values = |side: &[Report], metric: &str| -> Vec<f64> {
        side.iter().filter_map(|report| report.metrics.get(metric).copied()).collect()
    };
    let names: BTreeMap<&String, ()> = base.iter().flat_map(|r| r.metrics.keys()).map(|k| (k, ())).collect();
    let differences = names
        .into_keys()
        .filter_map(|metric| {
            let (a, b) = (values(base, metric), values(new, metric));
            let known = !a.is_empty() && !b.is_empty();
            known.then(|| difference(metric, &a, &b, gate_percent, gated.contains(metric)))
        })
        .collect();
    Comparison { base_runs: base.len(), new_runs: new.len(), gate_percent, differences }
}

impl Comparison {
    /// Nothing that the gate looks at got worse.
    pub fn held(&self) -> bool {
        self.differences.iter().all(|difference| !difference.gated || !difference.worse)
    }

    fn show(&self, all: bool) {
        println!("{:<32} {:>12} {:>12} {:>9}", "metric (median, times in ms)", "base", "new", "change");
        for difference in self.differences.iter().filter(|difference| all || difference.gated) {
            let change = match difference.change_percent {
                c if c.abs() >= 1_000_000.0 => "new".to_owned(),
                c => format!("{c:+.1} %"),
            };
            let verdict = match (difference.gated, difference.worse) {
                (true, true) => "WORSE",
                (false, true) => "worse (no gate)",
                _ => "",
            };
            println!(
                "{:<32} {:>12.3} {:>12.3} {change:>9}  {verdict}",
                difference.metric, difference.base, difference.new
            );
        }
    }
}

/// The command; the exit code.
pub fn run(args: &Args) -> anyhow::Result<u8> {
    let side = |first: &PathBuf, more: &[PathBuf]| -> anyhow::Result<Vec<Report>> {
        std::iter::once(first).chain(more).map(|path| write::read(path)).collect()
    };
    let (base, new) = (side(&args.base, &args.base_also)?, side(&args.new, &args.new_also)?);
    let digest = &base[0].scenario.digest;
    if !args.any_scenario
        && let Some(other) = base.iter().chain(&new).find(|report| report.scenario.digest != *digest)
    {
        eprintln!(
            "the runs are of different scenarios: {} {digest} and {} {}; --any-scenario compares them all the same",
            base[0].scenario.name, other.scenario.name, other.scenario.digest
        );
        return Ok(2);
    }
    if base.iter().chain(&new).any(|report| report.verdict.outcome == Outcome::Invalid) {
        eprintln!("a run is INVALID: its figures say nothing");
        return Ok(Outcome::Invalid.exit_code());
    }
    let gated: Vec<String> = match args.metrics.as_slice() {
        [] => GATED.iter().map(|metric| (*metric).to_owned()).collect(),
        metrics => metrics.to_vec(),
    };
    if let Some(unknown) = gated.iter().find(|metric| kind_of(metric).is_none()) {
        eprintln!("there is no metric {unknown}; see `run --metrics`");
        return Ok(2);
    }
    let comparison = compare(&base, &new, args.gate, &gated);
    comparison.show(args.all);
    if let Some(path) = &args.json {
        fs_err::write(path, serde_json::to_vec_pretty(&comparison)?)?;
    }
    let held = comparison.held();
    println!(
        "{}",
        if held { "PASS: nothing got worse by more than the gate" } else { "FAIL: see WORSE above" }
    );
    Ok(if held { 0 } else { Outcome::Fail.exit_code() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_counts_in_the_direction_that_is_worse() {
        let worse = |metric, base: &[f64], new: &[f64]| difference(metric, base, new, 10.0, true).worse;
        assert!(worse("response_time.p99", &[100.0], &[111.0]));
        assert!(!worse("response_time.p99", &[100.0], &[109.0]));
        assert!(!worse("response_time.p99", &[100.0], &[50.0]));
        assert!(worse("accepted.rate", &[100.0], &[89.0]));
        assert!(!worse("accepted.rate", &[100.0], &[150.0]));
        assert!(worse("lost", &[0.0], &[1.0]));
        assert!(!worse("lost", &[0.0], &[0.0]));
        assert!(worse("fairness.jain", &[1.0], &[0.8]));
    }

    #[test]
    fn with_repeated_runs_ranges_that_overlap_prove_nothing() {
        let worse = |base: &[f64], new: &[f64]| difference("response_time.p99", base, new, 10.0, true).worse;
        assert!(!worse(&[100.0, 130.0, 101.0], &[125.0, 126.0, 140.0]));
        assert!(worse(&[100.0, 110.0, 101.0], &[125.0, 126.0, 140.0]));
        assert!(!worse(&[100.0, 100.0], &[105.0, 106.0]));
        assert_eq!(median(vec![3.0, 1.0, 2.0, 10.0]), 2.5);
    }
}
