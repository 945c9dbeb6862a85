//! The report of a run: one structure, written as JSON (with a published schema), as `.hlog` histograms, and as one HTML
//! file that opens without a network.
//!
//! Invariant: nothing in it names a number or a text of a message.

pub mod charts;
pub mod html;
#[cfg(test)]
mod tests;
pub mod write;

pub use charts::number as number_text;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::fairness::Fairness;
use super::faults::Mark;
use super::scenario::Scenario;
use super::threshold::Judged;
use super::timeline::Row;
use crate::bench::measure::{Health, Latency, Summary};
use crate::ledger::Ledger;

/// Changes when a reader of older reports would be wrong.
pub const FORMAT: &str = "carillon-loadtest-report/1";

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Pass,
    /// A threshold failed.
    Fail,
    /// The generator was the bottleneck, or the evidence is incomplete: the figures say nothing.
    Invalid,
    Interrupted,
}

impl Outcome {
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Pass => 0,
            Self::Fail => 99,
            Self::Invalid => 98,
            Self::Interrupted => 130,
        }
    }

    pub fn word(self) -> &'static str {
        match self {
            Self::Pass => "PASS",
            Self::Fail => "FAIL",
            Self::Invalid => "INVALID",
            Self::Interrupted => "INTERRUPTED",
        }
    }
}

/// The verdict and its reasons.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Verdict {
    pub outcome: Outcome,
    pub exit_code: u8,
    pub why: Vec<String>,
}

/// What was run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Ran {
    pub name: String,
    pub about: String,
    /// Two runs of the same digest may be compared.
    pub digest: String,
    pub seed: u64,
    /// `open` or `closed`.
    #[serde(rename = "loop")]
    pub pacing: String,
    /// The scenario with everything that the command line changed (TOML).
    pub toml: String,
}

impl Ran {
    pub fn new(scenario: &Scenario) -> Self {
        let pacing = match scenario.pacing {
            super::scenario::Loop::Open => "open",
            super::scenario::Loop::Closed => "closed",
        };
        Self {
            name: scenario.name.clone(),
            about: scenario.about.clone(),
            digest: scenario.digest(),
            seed: scenario.seed,
            pacing: pacing.to_owned(),
            toml: toml::to_string(scenario).unwrap_or_default(),
        }
    }
}

/// Where it was run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Environment {
    pub version: String,
    pub command_line: String,
    /// RFC 3339.
    pub started: String,
    pub host: String,
    pub kernel: String,
    pub processor: String,
    pub cores: u64,
    pub memory_bytes: u64,
    pub target: String,
    /// The cluster was started for this run.
    pub launched: bool,
    /// Generator, cluster and carrier shared one machine.
    pub shared_machine: bool,
}

/// Sums over the run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Totals {
    /// Seconds from the first send to the last.
    pub sending_s: f64,
    /// Messages that the schedule asked for; 0 in a closed loop.
    pub asked: f64,
    pub requests: u64,
    pub submitted: u64,
    /// Messages acknowledged, repetitions included.
    pub acknowledged: u64,
    pub repeated: u64,
    pub calls: u64,
    pub failed: u64,
    pub errors: BTreeMap<String, u64>,
    /// Requests of the schedule that never left.
    pub missed: u64,
    /// Requests that left over 1 ms late because of the generator.
    pub late: u64,
    /// Messages whose answer never came.
    pub in_doubt: u64,
    pub events: u64,
    pub acknowledged_per_s: f64,
    pub carrier_messages: Option<u64>,
    pub carrier_per_s: Option<f64>,
    /// Seconds from the last send until everything was at rest; none if it did not come to rest.
    pub drained_s: Option<f64>,
    /// Acknowledgements with a planned time outside of the permitted hours.
    pub planned_wrong: u64,
}

/// A lane, as the carrier saw it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Lane {
    pub name: String,
    pub limit: Option<u32>,
    pub window_ms: u64,
    pub segments: u64,
    /// Segments in the fullest window.
    pub window_max: u64,
    /// Submits that arrived while the window was full.
    pub over_limit: u64,
    /// Part of the limit that was used while more waited than a second can take.
    pub used: Option<f64>,
}

/// A time: what it is, and its distribution.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Time {
    pub about: String,
    pub summary: Summary,
    pub mean_ms: f64,
    /// Percentile and milliseconds, up to 99.99 and 100.
    pub spectrum: Vec<(f64, f64)>,
}

/// The percentiles of a spectrum.
pub const PERCENTILES: [f64; 16] =
    [0.0, 10.0, 25.0, 50.0, 75.0, 80.0, 85.0, 90.0, 95.0, 97.5, 99.0, 99.5, 99.9, 99.95, 99.99, 100.0];

impl Time {
    pub fn new(about: &str, latency: &Latency) -> Self {
        let spectrum = match latency.count() {
            0 => Vec::new(),
            _ => PERCENTILES.iter().map(|p| (*p, latency.quantile_ms(p / 100.0))).collect(),
        };
        let mean_ms = latency.mean_ms();
        Self { about: about.to_owned(), summary: latency.summary(), mean_ms, spectrum }
    }
}

/// Everything.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Report {
    /// `carillon-loadtest-report/1`.
    pub format: String,
    pub verdict: Verdict,
    pub scenario: Ran,
    pub environment: Environment,
    pub thresholds: Vec<Judged>,
    pub totals: Totals,
    /// By name: `response_time`, `service_time`, ...
    pub times: BTreeMap<String, Time>,
    pub generator: Health,
    pub timeline: Vec<Row>,
    pub marks: Vec<Mark>,
    pub lanes: Vec<Lane>,
    /// None if the ledger could not be made.
    pub ledger: Option<Ledger>,
    pub possible_duplicates: BTreeMap<String, u64>,
    pub fairness: Fairness,
    /// Every metric that thresholds can name; times in milliseconds.
    pub metrics: BTreeMap<String, f64>,
}

/// The published schema.
pub fn schema() -> String {
    let schema = schemars::schema_for!(Report);
    let mut text = serde_json::to_string_pretty(&schema).unwrap_or_default();
    text.push('\n');
    text
}
