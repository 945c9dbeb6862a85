//! A scenario: what load to put on, of which messages, with which accidents, and what must hold.
//!
//! Owns: the TOML form and its errors, which name key and line. Unknown keys and values out of range are errors.
//! Invariant: a [`Scenario`] that [`Scenario::parse`] returned can be run: its thresholds parse, its phases last, its mix
//! submits something, its faults name nodes that exist.

mod check;
mod ranges;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};
use toml::Table;

use super::threshold::Threshold;

/// A scenario that cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum ScenarioError {
    #[error("{name}: {why}")]
    Parse { name: String, why: String },
    #[error("{name}: line {line}: {key}: {why}")]
    Wrong { name: String, line: usize, key: String, why: String },
    #[error("there is no preset or file {0}; see `run --list`")]
    Unknown(String),
    #[error("{path}: {why}")]
    Read { path: String, why: String },
}

/// Whether sending waits for answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Loop {
    /// The times of sending are fixed in advance, whatever the answers do.
    #[default]
    Open,
    /// The next request follows an answer: a slow cluster is asked less.
    Closed,
}

/// How the times of an open loop lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Arrivals {
    /// Equal gaps.
    #[default]
    Even,
    /// Random gaps from the seed, as independent callers make them.
    Poisson,
}

/// How messages are handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// StreamMessages: batches on one stream for each connection.
    #[default]
    Stream,
    /// SubmitMessages with many messages.
    Batch,
    /// SubmitMessages with one message.
    Unary,
}

/// A part of the run with its rate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Phase {
    #[serde(default)]
    pub name: String,
    /// Seconds, 0.001 to 604800.
    #[serde(deserialize_with = "ranges::duration_s")]
    pub duration_s: f64,
    /// Messages per second (at its end if it is a ramp, at the curve's highest point if it has one), 0 to 10000000.
    #[serde(deserialize_with = "ranges::rate")]
    pub rate_per_s: f64,
    /// Makes it a ramp from this rate.
    #[serde(default, deserialize_with = "some_rate", skip_serializing_if = "Option::is_none")]
    pub from_per_s: Option<f64>,
    /// Makes it a curve: points at equal distances, joined by straight lines; the highest one is `rate_per_s`.
    #[serde(default, deserialize_with = "some_curve", skip_serializing_if = "Option::is_none")]
    pub curve: Option<Vec<f64>>,
}

fn some_rate<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<f64>, D::Error> {
    ranges::rate(from).map(Some)
}

fn some_curve<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<Vec<f64>>, D::Error> {
    ranges::curve(from).map(Some)
}

/// The generator.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Generator {
    pub kind: Kind,
    /// TLS connections of each process, 1 to 256.
    #[serde(deserialize_with = "ranges::connections")]
    pub connections: u16,
    /// Messages in a request, 1 to 1000; always 1 for `unary`.
    #[serde(deserialize_with = "ranges::batch")]
    pub batch: u16,
    /// Requests in flight on a connection at most, 1 to 4096 (32 for `stream`).
    #[serde(deserialize_with = "ranges::window")]
    pub window: u16,
    /// Processes that share the load, 1 to 64.
    #[serde(deserialize_with = "ranges::processes")]
    pub processes: u16,
    /// Of one call, 100 to 600000.
    #[serde(deserialize_with = "ranges::deadline_ms")]
    pub deadline_ms: u64,
    /// A message is repeated with its own key for this long before it counts as failed, 0 to 86400.
    #[serde(deserialize_with = "ranges::wait_s")]
    pub patience_s: u64,
}

impl Default for Generator {
    fn default() -> Self {
        Self {
            kind: Kind::Stream,
            connections: 4,
            batch: 20,
            window: 8,
            processes: 1,
            deadline_ms: 10_000,
            patience_s: 60,
        }
    }
}

impl Generator {
    /// Messages in one request.
    pub fn batch(&self) -> u64 {
        if self.kind == Kind::Unary { 1 } else { u64::from(self.batch) }
    }
}

/// Who sends.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Practices {
    /// The 40 of the sample day, and generated ones beyond; 1 to 200000.
    #[serde(deserialize_with = "ranges::practices")]
    pub count: u32,
    /// The practice of rank r has a part of the messages like 1 / r^skew; 0 makes all equal; 0 to 3.
    #[serde(deserialize_with = "ranges::skew")]
    pub skew: f64,
}

impl Default for Practices {
    fn default() -> Self {
        Self { count: 40, skew: 1.0 }
    }
}

/// A length of bodies and how many have it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Size {
    /// Octets, 60 to 1500.
    #[serde(deserialize_with = "ranges::body_bytes")]
    pub bytes: usize,
    #[serde(deserialize_with = "ranges::weight")]
    pub weight: f64,
}

/// What the messages are like.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Messages {
    pub sizes: Vec<Size>,
    /// Part of the messages with a character outside of GSM 7 bit.
    #[serde(deserialize_with = "ranges::share")]
    pub unicode_share: f64,
    /// Class (lower case) to weight.
    pub classes: std::collections::BTreeMap<String, f64>,
    /// Due so long after the intended time of sending; 0 is at once.
    #[serde(deserialize_with = "ranges::offset_s")]
    pub due_after_s: f64,
    /// And up to so much later, evenly spread.
    #[serde(deserialize_with = "ranges::offset_s")]
    pub due_spread_s: f64,
    /// Due in 300 days: nothing is delivered, and nothing must be.
    pub far: bool,
    /// Due at this wall-clock time where the practice is, as `MessageSpec.not_before_local` (empty = not); nothing is delivered
    /// before, and the planned time of sending is checked.
    pub due_local: Vec<String>,
    /// Expire so long after they are due; 0 is the class's own.
    #[serde(deserialize_with = "ranges::offset_s")]
    pub expires_after_s: f64,
    /// Part of the messages that repeat an earlier one with its key.
    #[serde(deserialize_with = "ranges::share")]
    pub repeat_share: f64,
    /// Part of the messages that must keep their order for the recipient.
    #[serde(deserialize_with = "ranges::share")]
    pub ordered_share: f64,
    /// Messages of one practice in a row: the size of a batch makes each batch a practice's own upload.
    #[serde(deserialize_with = "ranges::row")]
    pub row: u64,
    /// Recipients of each practice, 1 to 400.
    pub recipients: u32,
}

impl Default for Messages {
    fn default() -> Self {
        Self {
            sizes: vec![Size { bytes: 120, weight: 1.0 }],
            unicode_share: 0.0,
            classes: [("reminder".to_owned(), 1.0)].into(),
            due_after_s: 0.0,
            due_spread_s: 0.0,
            far: false,
            due_local: Vec::new(),
            expires_after_s: 0.0,
            repeat_share: 0.0,
            ordered_share: 0.0,
            row: 1,
            recipients: 100,
        }
    }
}

impl Messages {
    /// Nothing is to reach the carrier while the run lasts.
    pub fn stay(&self) -> bool {
        self.far || !self.due_local.is_empty()
    }
}

/// What is asked, by weight. An arrival that is not a submit is one call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Mix {
    #[serde(deserialize_with = "ranges::weight")]
    pub submit: f64,
    /// GetMessage of a message that was acknowledged a moment ago.
    #[serde(deserialize_with = "ranges::weight")]
    pub get: f64,
    /// A page of 50 of a practice.
    #[serde(deserialize_with = "ranges::weight")]
    pub list: f64,
    /// CancelMessages of one message that was acknowledged a moment ago.
    #[serde(deserialize_with = "ranges::weight")]
    pub cancel: f64,
    /// Streams of WatchEvents, 0 to 64.
    #[serde(deserialize_with = "ranges::watchers")]
    pub watchers: u16,
}

impl Default for Mix {
    fn default() -> Self {
        Self { submit: 1.0, get: 0.0, list: 0.0, cancel: 0.0, watchers: 0 }
    }
}

impl Mix {
    /// Part of the arrivals that are submits.
    pub fn submit_share(&self) -> f64 {
        self.submit / (self.submit + self.get + self.list + self.cancel)
    }
}

/// What `--launch` starts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Launch {
    /// 1, 3, 5 or 7; `--launch N` is stronger.
    #[serde(deserialize_with = "ranges::nodes")]
    pub nodes: u64,
    #[serde(deserialize_with = "ranges::partitions")]
    pub partitions: u32,
    /// Segments per second: limit of the lane and contract of the carrier simulator.
    #[serde(deserialize_with = "ranges::lane_limit")]
    pub lane_limit: u32,
    /// `any`, `built-in` or the path of rules (TOML).
    pub hours: String,
    /// More tables of the nodes' configuration (TOML).
    pub node_config: String,
}

impl Default for Launch {
    fn default() -> Self {
        Self {
            nodes: 3,
            partitions: 16,
            lane_limit: 600,
            hours: "any".to_owned(),
            node_config: String::new(),
        }
    }
}

/// What a fault does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// SIGKILL.
    Kill,
    /// After `kill` or `stop`; waits until the node is ready.
    Start,
    /// SIGSTOP.
    Pause,
    /// SIGCONT.
    Resume,
    /// SIGTERM: hands over what it leads first.
    Stop,
    /// `stop`, then `start`.
    Restart,
    /// `restart` of every node, one after the other.
    RollingRestart,
    /// The carrier behaves like `profile` from now on.
    CarrierProfile,
    /// The carrier drops every connection.
    CarrierDisconnect,
}

/// An accident, for runs that launched their cluster. A change of the carrier works with any simulator that can be reached.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// Seconds after the first message is due to be sent.
    #[serde(deserialize_with = "ranges::offset_s")]
    pub at_s: f64,
    pub action: Action,
    /// Which node; 0 is the last one of the cluster.
    #[serde(default)]
    pub node: u64,
    /// For `carrier_profile`: a profile with `base` and what differs.
    #[serde(default)]
    pub profile: Table,
}

/// A whole scenario.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    pub name: String,
    #[serde(default)]
    pub about: String,
    /// Another run for another seed: practices, recipients, gaps, everything.
    #[serde(default = "one")]
    pub seed: u64,
    #[serde(default, rename = "loop")]
    pub pacing: Loop,
    #[serde(default)]
    pub arrivals: Arrivals,
    /// Seconds at the beginning that do not count.
    #[serde(default, deserialize_with = "ranges::offset_s")]
    pub warm_up_s: f64,
    /// How long everything may take to come to rest after the last send.
    #[serde(default = "drain_s", deserialize_with = "ranges::wait_s")]
    pub drain_s: u64,
    #[serde(default)]
    pub thresholds: Vec<Threshold>,
    #[serde(rename = "phase")]
    pub phases: Vec<Phase>,
    #[serde(default)]
    pub generator: Generator,
    #[serde(default)]
    pub practices: Practices,
    #[serde(default)]
    pub messages: Messages,
    #[serde(default)]
    pub mix: Mix,
    #[serde(default)]
    pub launch: Launch,
    /// The profile of the carrier simulator: `base` and what differs.
    #[serde(default)]
    pub carrier: Table,
    #[serde(default, rename = "fault")]
    pub faults: Vec<Fault>,
}

fn one() -> u64 {
    1
}

fn drain_s() -> u64 {
    120
}

impl Scenario {
    /// Reads a scenario; `name` is what errors call the text.
    pub fn parse(name: &str, text: &str) -> Result<Self, ScenarioError> {
        let wrong = |e: toml::de::Error| ScenarioError::Parse {
            name: name.to_owned(),
            why: e.to_string().trim_end().to_owned(),
        };
        let scenario: Self = toml::from_str(text).map_err(wrong)?;
        scenario.check(name, text)?;
        Ok(scenario)
    }

    /// Seconds from the first send to the last.
    pub fn length_s(&self) -> f64 {
        self.phases.iter().map(|phase| phase.duration_s).sum()
    }

    /// Names the scenario: two runs of the same digest may be compared.
    pub fn digest(&self) -> String {
        let text = toml::to_string(self).unwrap_or_default();
        blake3::hash(text.as_bytes()).to_hex()[..16].to_owned()
    }
}

impl Scenario {
    /// Scales all phases so that the highest rate is this.
    pub fn scale_rate(&mut self, highest_per_s: f64) {
        let highest = |phase: &Phase| phase.rate_per_s.max(phase.from_per_s.unwrap_or(0.0));
        let before = self.phases.iter().map(highest).fold(0.0, f64::max);
        let scale = highest_per_s / before.max(1e-9);
        for phase in &mut self.phases {
            phase.rate_per_s *= scale;
            phase.from_per_s = phase.from_per_s.map(|rate| rate * scale);
        }
    }

    /// Scales phases and faults so that sending takes this long; the warm-up gets shorter if it must.
    pub fn scale_time(&mut self, length_s: f64) {
        let scale = length_s / self.length_s();
        self.phases.iter_mut().for_each(|phase| phase.duration_s *= scale);
        self.faults.iter_mut().for_each(|fault| fault.at_s *= scale);
        self.warm_up_s = self.warm_up_s.min(length_s / 4.0);
    }
}
