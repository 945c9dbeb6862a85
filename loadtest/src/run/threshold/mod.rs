//! Thresholds: `response_time.p99 < 250ms`, `lost == 0`, `lane.*.over_limit == 0`.
//!
//! Owns: the grammar (metric, comparison, number with unit), which metrics there are with their units, and the judgement.
//! Invariants: a metric that does not exist, and a unit that does not fit its metric, are refused when a scenario is read;
//! a metric without a value (nothing was counted, or nobody could look) fails its threshold, because nothing was shown.

mod parse;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::de::{self, Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};

/// What the value of a metric is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Milliseconds; written with us, ms or s.
    Time,
    /// A whole number.
    Count,
    /// 0 to 1; may be written with %.
    Ratio,
    /// Per second; may be written with /s.
    Rate,
}

/// Statistics of a time: `response_time.p99`.
pub const STATISTICS: [&str; 8] = ["mean", "p50", "p90", "p95", "p99", "p999", "p9999", "max"];

/// All metrics; `*` in a name stands for one that the run brings, `%` for a statistic.
pub const METRICS: &[(&str, Kind, &str)] = &[
    ("response_time.%", Kind::Time, "from the intended moment of sending to the acknowledgement"),
    ("service_time.%", Kind::Time, "from sending to the acknowledgement"),
    ("op.*.%", Kind::Time, "response time of get, list and cancel"),
    ("accept_to_carrier.%", Kind::Time, "from acceptance to the carrier's socket"),
    ("due_to_carrier.%", Kind::Time, "from the due time to the carrier's socket"),
    ("carrier_to_receipt.%", Kind::Time, "from the carrier's socket to the recorded receipt"),
    ("pacer_lag.%", Kind::Time, "how late the generator itself was"),
    ("ack_gap.max", Kind::Time, "longest time without an acknowledgement"),
    (
        "fairness.worst_delay",
        Kind::Time,
        "mean delay from due to carrier of the practice that waited longest",
    ),
    ("fairness.jain", Kind::Ratio, "Jain's index over the practices; 1 is fair"),
    ("errors.rate", Kind::Ratio, "calls and messages that failed for good, of all"),
    ("errors.count", Kind::Count, "calls and messages that failed for good"),
    ("missed.rate", Kind::Ratio, "sends of the schedule that never left"),
    ("missed.count", Kind::Count, "sends of the schedule that never left"),
    ("late.rate", Kind::Ratio, "sends that left over 1 ms late because of the generator"),
    ("accepted.rate", Kind::Rate, "acknowledged messages per second"),
    ("carrier.rate", Kind::Rate, "messages per second that the carrier accepted"),
    ("achieved.ratio", Kind::Ratio, "acknowledged messages of those that the schedule asked for"),
    ("lane.*.over_limit", Kind::Count, "submits beyond the limit in some window, by the carrier's own count"),
    ("lane.*.used", Kind::Ratio, "segments of what the limit allows, while there was a backlog"),
    ("lane.*.window_max", Kind::Count, "segments in the fullest window"),
    ("lost", Kind::Count, "acknowledged and not to be found, or said to be handed over and never received"),
    ("duplicates", Kind::Count, "messages that the carrier accepted more than once"),
    ("possible_duplicates", Kind::Count, "messages held or ended after a lost answer: nobody knows"),
    ("unsettled", Kind::Count, "neither final nor held at the end"),
    ("out_of_order", Kind::Count, "ordered messages that overtook an earlier one to the same recipient"),
    ("out_of_window", Kind::Count, "sent before the due time, or planned outside of the permitted hours"),
    ("after_expiry", Kind::Count, "received by the carrier after the expiry"),
    ("findings", Kind::Count, "everything that contradicts a promise"),
];

/// How two numbers are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    Less,
    AtMost,
    More,
    AtLeast,
    Equal,
    Different,
}

impl Comparison {
    pub fn holds(self, measured: f64, wanted: f64) -> bool {
        match self {
            Self::Less => measured < wanted,
            Self::AtMost => measured <= wanted,
            Self::More => measured > wanted,
            Self::AtLeast => measured >= wanted,
            Self::Equal => measured == wanted,
            Self::Different => measured != wanted,
        }
    }

    /// True when more of the metric is worse.
    pub fn is_upper_bound(self) -> bool {
        matches!(self, Self::Less | Self::AtMost)
    }
}

/// What must hold.
#[derive(Clone, Debug, PartialEq)]
pub struct Threshold {
    /// As it was written.
    pub text: String,
    pub metric: String,
    pub kind: Kind,
    pub comparison: Comparison,
    /// In milliseconds if it is a time.
    pub wanted: f64,
    /// The run is stopped when it fails after this many seconds.
    pub abort_after_s: Option<f64>,
}

/// A threshold after a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Judged {
    /// As the scenario says it.
    pub check: String,
    /// What was measured, for every name that a `*` stood for; times in milliseconds.
    pub measured: BTreeMap<String, f64>,
    pub held: bool,
    /// Why it was not, if there is nothing to compare.
    pub why: Option<String>,
    /// It stopped the run.
    pub aborted: bool,
}

/// Names with values; times in milliseconds.
pub type Values = BTreeMap<String, f64>;

fn matches(pattern: &str, name: &str) -> bool {
    let (mut pattern, mut name) = (pattern.split('.'), name.split('.'));
    loop {
        match (pattern.next(), name.next()) {
            (None, None) => return true,
            (Some(p), Some(n)) if p == "*" || p == n || (p == "%" && STATISTICS.contains(&n)) => {}
            _ => return false,
        }
    }
}

/// What a metric of a threshold is; `*` in it matches any name.
pub fn kind_of(metric: &str) -> Option<Kind> {
    METRICS.iter().find(|(pattern, ..)| matches(pattern, metric)).map(|(_, kind, _)| *kind)
}

impl Threshold {
    pub fn judge(&self, values: &Values) -> Judged {
        let measured: Values = values
            .iter()
            .filter(|(name, _)| matches(&self.metric, name))
            .map(|(name, value)| (name.clone(), *value))
            .collect();
        let why = measured.is_empty().then(|| "nothing was measured".to_owned());
        let held = why.is_none() && measured.values().all(|v| self.comparison.holds(*v, self.wanted));
        Judged { check: self.text.clone(), measured, held, why, aborted: false }
    }

    /// True when the run should stop: it fails now, it may stop the run, and there is something to compare.
    pub fn aborts(&self, values: &Values, at_s: f64) -> bool {
        let due = self.abort_after_s.is_some_and(|after_s| at_s >= after_s);
        let judged = self.judge(values);
        due && !judged.held && judged.why.is_none()
    }
}

impl Serialize for Threshold {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeMap as _;
        let Some(after_s) = self.abort_after_s else { return to.serialize_str(&self.text) };
        let mut map = to.serialize_map(Some(3))?;
        map.serialize_entry("check", &self.text)?;
        map.serialize_entry("abort_on_fail", &true)?;
        map.serialize_entry("after_s", &after_s)?;
        map.end()
    }
}

struct Reader;

impl<'de> Visitor<'de> for Reader {
    type Value = Threshold;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(
            "a check such as \"response_time.p99 < 250ms\", or a table with check, abort_on_fail and after_s",
        )
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Threshold, E> {
        parse::parse(text).map_err(|why| E::custom(format!("{text:?}: {why}")))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Threshold, A::Error> {
        let (mut check, mut abort, mut after_s) = (None, false, 0.0);
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "check" => check = Some(map.next_value::<String>()?),
                "abort_on_fail" => abort = map.next_value()?,
                "after_s" => after_s = map.next_value()?,
                other => return Err(de::Error::unknown_field(other, &["check", "abort_on_fail", "after_s"])),
            }
        }
        let check = check.ok_or_else(|| de::Error::missing_field("check"))?;
        if !(0.0..=604_800.0).contains(&after_s) {
            return Err(de::Error::custom(format!("after_s: {after_s} is not in 0 to 604800")));
        }
        let threshold = self.visit_str::<A::Error>(&check)?;
        Ok(Threshold { abort_after_s: abort.then_some(after_s), ..threshold })
    }
}

impl<'de> Deserialize<'de> for Threshold {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(Reader)
    }
}

impl std::str::FromStr for Threshold {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        parse::parse(text)
    }
}
