//! Latencies and the health of the generator.
//!
//! Owns: [`Latency`] (an HDR histogram in microseconds and its summary) and [`Health`], the verdict on whether the
//! generator itself was the bottleneck: then its figures say nothing about the cluster.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Deserializer as HdrReader, Serializer as _, V2DeflateSerializer};
use schemars::JsonSchema;
use serde::de::Error as _;
use serde::ser::Error as _;
use serde::{Deserialize, Serialize};

/// Longer is counted as this.
const LONGEST_US: u64 = 600_000_000;
/// Above this share of the one thread that the generator has, it was the bottleneck.
const CPU_SHARE_MAX: f64 = 0.9;
/// Sends that leave this much after their time are late.
pub const LATE: Duration = Duration::from_millis(1);

/// A histogram of durations with three digits of precision.
#[derive(Clone)]
pub struct Latency(Histogram<u64>);

impl Default for Latency {
    fn default() -> Self {
        Self(Histogram::new_with_bounds(1, LONGEST_US, 3).expect("the bounds are valid"))
    }
}

/// Some quantiles, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Summary {
    pub count: u64,
    pub p50_ms: f64,
    pub p90_ms: f64,
    pub p99_ms: f64,
    pub p999_ms: f64,
    pub max_ms: f64,
}

impl Latency {
    /// Counts `times` events that took `duration` each.
    pub fn record(&mut self, duration: Duration, times: u64) {
        let us = (duration.as_micros() as u64).clamp(1, LONGEST_US);
        self.0.saturating_record_n(us, times);
    }

    pub fn add(&mut self, other: &Self) {
        self.0.add(&other.0).expect("all histograms have the same bounds");
    }

    pub fn quantile_ms(&self, q: f64) -> f64 {
        self.0.value_at_quantile(q) as f64 / 1000.0
    }

    pub fn count(&self) -> u64 {
        self.0.len()
    }

    pub fn mean_ms(&self) -> f64 {
        self.0.mean() / 1000.0
    }

    /// Values in microseconds, as they are counted.
    pub fn histogram(&self) -> &Histogram<u64> {
        &self.0
    }

    pub fn summary(&self) -> Summary {
        if self.0.is_empty() {
            return Summary::default();
        }
        Summary {
            count: self.0.len(),
            p50_ms: self.quantile_ms(0.5),
            p90_ms: self.quantile_ms(0.9),
            p99_ms: self.quantile_ms(0.99),
            p999_ms: self.quantile_ms(0.999),
            max_ms: self.0.max() as f64 / 1000.0,
        }
    }
}

/// As base64 of HdrHistogram's compressed form, so that other tools read it, too.
impl Serialize for Latency {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut octets = Vec::new();
        V2DeflateSerializer::new().serialize(&self.0, &mut octets).map_err(S::Error::custom)?;
        to.serialize_str(&BASE64.encode(octets))
    }
}

impl<'de> Deserialize<'de> for Latency {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let octets = BASE64.decode(String::deserialize(from)?).map_err(D::Error::custom)?;
        let read: Histogram<u64> =
            HdrReader::new().deserialize(&mut octets.as_slice()).map_err(D::Error::custom)?;
        let mut latency = Self::default();
        // One with other bounds would not be ours.
        latency.0.add(&read).map_err(D::Error::custom)?;
        Ok(latency)
    }
}

impl std::fmt::Display for Summary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { p50_ms, p90_ms, p99_ms, p999_ms, max_ms, .. } = self;
        write!(f, "p50 {p50_ms:.2}  p90 {p90_ms:.2}  p99 {p99_ms:.2}  p99.9 {p999_ms:.2}  max {max_ms:.2} ms")
    }
}

/// How the generator itself did.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Health {
    /// Cores used by the generator's process.
    pub cpu_cores: f64,
    pub cpu_us_per_message: f64,
    /// How late the pacer woke up, when there was room to send.
    pub lag_p99_ms: f64,
    /// Batches that left more than [`LATE`] after their time though there was room.
    pub late: u64,
    /// Batches that never left, because the cluster was over a second behind.
    pub skipped: u64,
    /// Why the run says nothing about the cluster.
    pub invalid: Option<String>,
}

impl Health {
    /// Sets the verdict. `response_p99_ms` is what the run measured, if it was paced.
    pub fn judge(mut self, response_p99_ms: Option<f64>) -> Self {
        let lag_max_ms = response_p99_ms.map_or(f64::INFINITY, |p99_ms| (p99_ms * 0.2).max(1.0));
        self.invalid = if self.cpu_cores > CPU_SHARE_MAX {
            Some(format!("the generator used {:.2} of its one core", self.cpu_cores))
        } else if self.lag_p99_ms > lag_max_ms {
            Some(format!("the pacer's p99 lag of {:.2} ms is over {lag_max_ms:.2} ms", self.lag_p99_ms))
        } else {
            None
        };
        self
    }
}

impl std::fmt::Display for Health {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:.2} cores, {:.1} us per message, pacer lag p99 {:.2} ms, late {}, skipped {}",
            self.cpu_cores, self.cpu_us_per_message, self.lag_p99_ms, self.late, self.skipped
        )?;
        match &self.invalid {
            Some(why) => write!(f, "; INVALID: the generator was the bottleneck: {why}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_within_a_thousandth() {
        let mut latency = Latency::default();
        for ms in 1..=1_000 {
            latency.record(Duration::from_millis(ms), 3);
        }
        let summary = latency.summary();
        assert_eq!(summary.count, 3_000);
        assert!((summary.p50_ms - 500.0).abs() < 1.0 && (summary.p99_ms - 990.0).abs() < 2.0, "{summary}");
        let mut sum = Latency::default();
        assert_eq!(sum.summary(), Summary::default());
        sum.add(&latency);
        sum.record(Duration::from_secs(9_999), 1);
        assert_eq!(sum.count(), 3_001);
        assert!(sum.summary().max_ms >= 599_000.0);
        sum.record(Duration::ZERO, 1);
        assert!(sum.quantile_ms(0.0) > 0.0);
    }

    #[test]
    fn a_histogram_survives_being_written_down() {
        let mut latency = Latency::default();
        (1..=100).for_each(|ms| latency.record(Duration::from_millis(ms * ms), ms));
        let text = serde_json::to_string(&latency).unwrap();
        let back: Latency = serde_json::from_str(&text).unwrap();
        assert_eq!(back.summary(), latency.summary());
        assert!(serde_json::from_str::<Latency>("\"AAAA\"").is_err());
    }

    #[test]
    fn a_generator_at_its_limit_makes_the_run_invalid() {
        let fine = Health { cpu_cores: 0.5, lag_p99_ms: 0.9, ..Health::default() };
        assert_eq!(fine.clone().judge(Some(2.0)).invalid, None);
        assert!(Health { cpu_cores: 0.95, ..fine.clone() }.judge(None).invalid.is_some());
        let lagging = Health { lag_p99_ms: 3.0, ..fine };
        assert!(lagging.clone().judge(Some(10.0)).invalid.is_some());
        assert_eq!(lagging.clone().judge(Some(20.0)).invalid, None);
        assert_eq!(lagging.judge(None).invalid, None);
    }
}
