//! What a generator counts, a second at a time.
//!
//! Owns: [`Interval`], which is all that leaves a generator while it runs, and [`Recorder`], which fills the current one.
//! Invariant: an interval holds what was answered in its second; the sum of all intervals is the run. Memory is that of one
//! interval, however long the run is.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::bench::measure::{LATE, Latency};

/// Different reasons that are counted apart; the rest is "other".
const REASONS_MAX: usize = 64;

/// What happened in one second.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Interval {
    /// Which worker.
    pub worker: u64,
    /// Which second of the run, from 0.
    pub second: u64,
    /// Requests that left.
    pub sent: u64,
    /// Messages in them.
    pub submitted: u64,
    /// Messages that were acknowledged, those that repeat a key included.
    pub acknowledged: u64,
    /// Of these, the ones whose key was known.
    pub repeated: u64,
    /// Calls besides submits that were answered.
    pub calls: u64,
    /// Failed for good, by reason: messages and calls.
    pub errors: BTreeMap<String, u64>,
    /// Requests of the schedule that never left.
    pub missed: u64,
    /// Requests that left late because of the generator.
    pub late: u64,
    /// Acknowledgements whose planned time of sending lies outside of the permitted hours, or before the due time.
    pub planned_wrong: u64,
    /// Events that watchers read.
    pub events: u64,
    /// The longest time without an acknowledgement that ended in this second, in ms.
    pub ack_gap_ms: u64,
    /// From the intended moment, by message.
    pub response: Latency,
    /// From sending, by message.
    pub service: Latency,
    /// Response time of other calls.
    pub operations: BTreeMap<String, Latency>,
    /// How late the pacer was.
    pub lag: Latency,
    /// Processor time of the generator in this second, in us.
    pub cpu_us: u64,
}

fn add(sum: &mut BTreeMap<String, u64>, reason: &str, count: u64) {
    let known = sum.contains_key(reason) || sum.len() < REASONS_MAX;
    *sum.entry(if known { reason } else { "other" }.to_owned()).or_insert(0) += count;
}

impl Interval {
    /// Adds another one, of another worker or another second.
    pub fn add(&mut self, other: &Self) {
        self.sent += other.sent;
        self.submitted += other.submitted;
        self.acknowledged += other.acknowledged;
        self.repeated += other.repeated;
        self.calls += other.calls;
        self.missed += other.missed;
        self.late += other.late;
        self.planned_wrong += other.planned_wrong;
        self.events += other.events;
        self.ack_gap_ms = self.ack_gap_ms.max(other.ack_gap_ms);
        self.cpu_us += other.cpu_us;
        self.response.add(&other.response);
        self.service.add(&other.service);
        self.lag.add(&other.lag);
        for (reason, count) in &other.errors {
            add(&mut self.errors, reason, *count);
        }
        for (name, latency) in &other.operations {
            self.operations.entry(name.clone()).or_default().add(latency);
        }
    }

    pub fn errors(&self) -> u64 {
        self.errors.values().sum()
    }
}

struct Current {
    interval: Interval,
    last_ack: Instant,
}

/// Fills the current interval; shared by everything in a generator.
pub struct Recorder {
    current: Mutex<Current>,
    /// What was intended earlier has no times.
    measure_from: Instant,
}

impl Recorder {
    pub fn new(start: Instant, measure_from: Instant) -> Self {
        let current = Current { interval: Interval::default(), last_ack: start };
        Self { current: Mutex::new(current), measure_from }
    }

    pub fn sent(&self, messages: u64) {
        let mut current = self.current.lock();
        current.interval.sent += 1;
        current.interval.submitted += messages;
    }

    /// What the pacer did with one send of the schedule: left with this lag, or was skipped.
    pub fn paced(&self, lag: Option<Duration>) {
        let mut current = self.current.lock();
        match lag {
            None => current.interval.missed += 1,
            Some(lag) => {
                current.interval.late += u64::from(lag > LATE);
                current.interval.lag.record(lag, 1);
            }
        }
    }

    /// Messages of one request that were acknowledged.
    pub fn acknowledged(&self, intended: Instant, sent: Instant, messages: u64, repeated: u64) {
        let (now, mut current) = (Instant::now(), self.current.lock());
        let gap_ms = now.saturating_duration_since(current.last_ack).as_millis() as u64;
        current.last_ack = now;
        let interval = &mut current.interval;
        interval.ack_gap_ms = interval.ack_gap_ms.max(gap_ms);
        interval.acknowledged += messages;
        interval.repeated += repeated;
        if intended >= self.measure_from {
            interval.response.record(now - intended, messages);
            interval.service.record(now - sent, messages);
        }
    }

    /// Another call that was answered.
    pub fn called(&self, what: &str, intended: Instant) {
        let mut current = self.current.lock();
        current.interval.calls += 1;
        if intended >= self.measure_from {
            let took = intended.elapsed();
            current.interval.operations.entry(what.to_owned()).or_default().record(took, 1);
        }
    }

    pub fn failed(&self, reason: &str, count: u64) {
        add(&mut self.current.lock().interval.errors, reason, count);
    }

    pub fn planned_wrong(&self) {
        self.current.lock().interval.planned_wrong += 1;
    }

    pub fn events(&self, count: u64) {
        self.current.lock().interval.events += count;
    }

    /// Takes the current interval out and begins the next one. A silence that goes on shows up while it does.
    pub fn take(&self, worker: u64, second: u64, cpu_us: u64, sending: bool) -> Interval {
        let mut current = self.current.lock();
        let silent_ms = current.last_ack.elapsed().as_millis() as u64;
        let mut interval = std::mem::take(&mut current.interval);
        if sending {
            interval.ack_gap_ms = interval.ack_gap_ms.max(silent_ms);
        }
        Interval { worker, second, cpu_us, ..interval }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_add_up_and_survive_their_json_form() {
        let start = Instant::now();
        let recorder = Recorder::new(start, start);
        recorder.sent(10);
        recorder.acknowledged(start, start, 9, 2);
        recorder.failed("OVERLOADED", 1);
        recorder.paced(None);
        recorder.paced(Some(Duration::from_millis(2)));
        recorder.called("get", start);
        let first = recorder.take(0, 0, 5, true);
        let second = recorder.take(0, 1, 5, false);
        assert_eq!((second.sent, second.acknowledged, second.response.count()), (0, 0, 0));
        let mut sum: Interval = serde_json::from_str(&serde_json::to_string(&first).unwrap()).unwrap();
        sum.add(&first);
        assert_eq!((sum.submitted, sum.acknowledged, sum.repeated, sum.missed, sum.late), (20, 18, 4, 2, 2));
        assert_eq!((sum.errors(), sum.response.count(), sum.operations["get"].count()), (2, 18, 2));
    }

    #[test]
    fn what_was_intended_before_the_measured_time_has_no_times() {
        let start = Instant::now();
        let recorder = Recorder::new(start, start + Duration::from_secs(60));
        recorder.acknowledged(start, start, 9, 0);
        recorder.called("get", start);
        let interval = recorder.take(0, 0, 0, true);
        assert_eq!((interval.acknowledged, interval.response.count(), interval.calls), (9, 0, 1));
        assert!(interval.operations.is_empty());
    }

    #[test]
    fn reasons_are_bounded() {
        let recorder = Recorder::new(Instant::now(), Instant::now());
        (0..200).for_each(|n| recorder.failed(&format!("reason {n}"), 1));
        let interval = recorder.take(0, 0, 0, true);
        assert_eq!((interval.errors(), interval.errors.len()), (200, REASONS_MAX + 1));
    }
}
