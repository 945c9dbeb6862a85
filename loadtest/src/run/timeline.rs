//! The run over time, in at most [`ROWS_MAX`] rows: when there are more, neighbours are put together and rows get longer, so
//! a week takes as much memory as a minute.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::engine::interval::Interval;
use crate::bench::measure::Latency;

/// Even, so that rows come in pairs.
pub const ROWS_MAX: usize = 600;
/// Steps of the heat strip to a doubling of the time.
const STEPS: f64 = 4.0;
/// Where the strip begins, in ms.
const LOWEST_MS: f64 = 0.1;
const HIGHEST_STEP: u32 = 92;

/// A stretch of time.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Row {
    /// Seconds after the first send.
    pub from_s: f64,
    pub length_s: f64,
    /// Messages that the schedule asked for; 0 in a closed loop.
    pub asked: f64,
    pub submitted: u64,
    pub acknowledged: u64,
    pub failed: u64,
    pub missed: u64,
    /// Messages that the carrier accepted.
    pub carrier: u64,
    /// Segments that arrived at the carrier, by lane.
    pub lanes: BTreeMap<String, u64>,
    /// Acknowledged and not at the carrier at the end of the row, if that was to be.
    pub backlog: u64,
    /// Response times: messages by step; step k reaches to `0.1 ms * 2^((k + 1) / 4)`.
    pub heat: BTreeMap<u32, u64>,
    /// The longest response time, in ms.
    pub max_ms: f64,
}

/// The step of a time.
fn step(ms: f64) -> u32 {
    let above = (ms / LOWEST_MS).max(1.0).log2() * STEPS;
    (above.floor() as u32).min(HIGHEST_STEP)
}

/// Where a step ends, in ms.
pub fn step_end_ms(step: u32) -> f64 {
    LOWEST_MS * 2_f64.powf(f64::from(step + 1) / STEPS)
}

fn heat(latency: &Latency) -> BTreeMap<u32, u64> {
    let mut heat = BTreeMap::new();
    for value in latency.histogram().iter_recorded() {
        *heat.entry(step(value.value_iterated_to() as f64 / 1_000.0)).or_insert(0) += value.count_at_value();
    }
    heat
}

impl Row {
    fn add(&mut self, other: Self) {
        self.length_s += other.length_s;
        self.asked += other.asked;
        self.submitted += other.submitted;
        self.acknowledged += other.acknowledged;
        self.failed += other.failed;
        self.missed += other.missed;
        self.carrier += other.carrier;
        self.backlog = other.backlog;
        self.max_ms = self.max_ms.max(other.max_ms);
        for (lane, segments) in other.lanes {
            *self.lanes.entry(lane).or_insert(0) += segments;
        }
        for (step, count) in other.heat {
            *self.heat.entry(step).or_insert(0) += count;
        }
    }

    /// The time below which this part of the messages was answered, to a step; `None` without answers.
    pub fn quantile_ms(&self, q: f64) -> Option<f64> {
        let count: u64 = self.heat.values().sum();
        let mut left = (count as f64 * q).ceil() as u64;
        for (step, count) in &self.heat {
            if left <= *count {
                return Some(step_end_ms(*step).min(self.max_ms));
            }
            left -= count;
        }
        None
    }
}

/// What the carrier did in a second.
#[derive(Clone, Debug, Default)]
pub struct CarrierSecond {
    pub messages: u64,
    pub lanes: BTreeMap<String, u64>,
    pub backlog: u64,
}

/// All rows.
#[derive(Clone, Debug)]
pub struct Timeline {
    rows: Vec<Row>,
    /// Seconds in a row.
    seconds: u64,
}

impl Default for Timeline {
    fn default() -> Self {
        Self { rows: Vec::new(), seconds: 1 }
    }
}

impl Timeline {
    fn row(&mut self, second: u64) -> &mut Row {
        let at = |second: u64, seconds: u64| (second / seconds) as usize;
        while at(second, self.seconds) >= ROWS_MAX {
            self.seconds *= 2;
            let mut pairs = std::mem::take(&mut self.rows).into_iter();
            while let Some(mut row) = pairs.next() {
                if let Some(next) = pairs.next() {
                    row.add(next);
                }
                self.rows.push(row);
            }
        }
        while self.rows.len() <= at(second, self.seconds) {
            let from_s = (self.rows.len() as u64 * self.seconds) as f64;
            self.rows.push(Row { from_s, length_s: self.seconds as f64, ..Row::default() });
        }
        let here = at(second, self.seconds);
        &mut self.rows[here]
    }

    /// Adds what one generator did in one second.
    pub fn add(&mut self, interval: &Interval) {
        let row = self.row(interval.second);
        row.submitted += interval.submitted;
        row.acknowledged += interval.acknowledged;
        row.failed += interval.errors();
        row.missed += interval.missed;
        for (step, count) in heat(&interval.response) {
            *row.heat.entry(step).or_insert(0) += count;
        }
        row.max_ms = row.max_ms.max(interval.response.summary().max_ms);
    }

    pub fn asked(&mut self, second: u64, messages: f64) {
        self.row(second).asked += messages;
    }

    pub fn carrier(&mut self, second: u64, seen: CarrierSecond) {
        let row = self.row(second);
        row.carrier += seen.messages;
        row.backlog = seen.backlog;
        for (lane, segments) in seen.lanes {
            *row.lanes.entry(lane).or_insert(0) += segments;
        }
    }

    pub fn rows(&self) -> &[Row] {
        &self.rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_long_run_keeps_its_sums_in_a_bounded_number_of_rows() {
        let mut timeline = Timeline::default();
        let mut interval = Interval { acknowledged: 3, ..Interval::default() };
        interval.response.record(Duration::from_millis(10), 3);
        for second in 0..5_000 {
            interval.second = second;
            timeline.add(&interval);
        }
        let rows = timeline.rows();
        assert!(rows.len() <= ROWS_MAX && rows.len() > ROWS_MAX / 2);
        assert_eq!(rows.iter().map(|row| row.acknowledged).sum::<u64>(), 15_000);
        assert!(rows.iter().enumerate().all(|(at, row)| row.from_s == at as f64 * rows[0].length_s));
    }

    #[test]
    fn quantiles_of_a_row_are_right_to_a_step() {
        let mut timeline = Timeline::default();
        let mut interval = Interval::default();
        (1..=100).for_each(|ms| interval.response.record(Duration::from_millis(ms), 1));
        timeline.add(&interval);
        let row = &timeline.rows()[0];
        let (p50, p99) = (row.quantile_ms(0.5).unwrap(), row.quantile_ms(0.99).unwrap());
        assert!((50.0..60.0).contains(&p50) && (99.0..100.1).contains(&p99), "{p50} {p99}");
        assert_eq!(Row::default().quantile_ms(0.5), None);
    }
}
