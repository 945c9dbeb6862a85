//! The contract alarm: exact sliding windows over the arrival of submits.
//!
//! Owns: [`SlidingWindow`], which counts every submit (one segment each) that
//! arrived within the last window, and remembers how far and how often the
//! count passed the limit.
//! Invariants: the window of an arrival at t is (t - length, t], so two
//! arrivals exactly one length apart are in different windows; the count is
//! exact up to [`ENTRIES_MAX`] arrivals in a window and stays at it above.
//! The window is keyed by account today; a limit by destination network is
//! another map of these, fed with another key.

use std::collections::VecDeque;

use serde::Serialize;

/// Arrivals remembered in one window at most (8 octets each: 32 MiB).
pub const ENTRIES_MAX: usize = 4_000_000;

/// What a contract says: at most `limit` segments in any window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Contract {
    /// Segments in a window at most; `u32::MAX` for no limit.
    pub limit: u32,
    pub window_ms: u64,
    /// The window is shortened by this much before a violation is declared, to
    /// forgive the delay between a sender's socket and this one. 0 is exact.
    pub slack_ms: u64,
}

impl Default for Contract {
    fn default() -> Self {
        Self { limit: u32::MAX, window_ms: 1_000, slack_ms: 0 }
    }
}

/// What the alarm has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Alarm {
    pub arrivals: u64,
    /// The most arrivals seen in any window.
    pub window_max: u64,
    /// Submits that arrived while the window was full already.
    pub violations: u64,
    /// When the first of them came, microseconds since the epoch.
    pub first_violation_at_us: Option<u64>,
}

/// A sliding window over times in microseconds that never go back.
pub struct SlidingWindow {
    length_us: u64,
    times: VecDeque<u64>,
}

impl SlidingWindow {
    pub fn new(contract: &Contract) -> Self {
        let length_ms = contract.window_ms.saturating_sub(contract.slack_ms).max(1);
        Self { length_us: length_ms * 1000, times: VecDeque::new() }
    }

    fn expire(&mut self, now_us: u64) {
        while self.times.front().is_some_and(|t| t + self.length_us <= now_us) {
            self.times.pop_front();
        }
    }

    /// Adds one and returns the count of the window that ends now.
    pub fn add(&mut self, now_us: u64) -> u64 {
        self.expire(now_us);
        if self.times.len() >= ENTRIES_MAX {
            self.times.pop_front();
        }
        self.times.push_back(now_us);
        self.times.len() as u64
    }

    /// The count of the window that ends now.
    pub fn count(&mut self, now_us: u64) -> u64 {
        self.expire(now_us);
        self.times.len() as u64
    }
}

/// The two windows of one account: what arrived (the alarm) and what was
/// accepted (what the carrier itself throttles by).
pub struct Meter {
    pub contract: Contract,
    pub alarm: Alarm,
    arrived: SlidingWindow,
    accepted: SlidingWindow,
}

impl Meter {
    pub fn new(contract: Contract) -> Self {
        Self {
            contract,
            alarm: Alarm::default(),
            arrived: SlidingWindow::new(&contract),
            accepted: SlidingWindow::new(&Contract { slack_ms: 0, ..contract }),
        }
    }

    /// Counts an arrival; true when it violates the contract.
    pub fn arrived(&mut self, now_us: u64, wall_us: u64) -> bool {
        let count = self.arrived.add(now_us);
        self.alarm.arrivals += 1;
        self.alarm.window_max = self.alarm.window_max.max(count);
        let violates = count > u64::from(self.contract.limit);
        if violates {
            self.alarm.violations += 1;
            self.alarm.first_violation_at_us.get_or_insert(wall_us);
        }
        violates
    }

    /// True when accepting one more now would exceed the contract.
    pub fn is_full(&mut self, now_us: u64) -> bool {
        self.accepted.count(now_us) >= u64::from(self.contract.limit)
    }

    pub fn accepted(&mut self, now_us: u64) {
        self.accepted.add(now_us);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meter(limit: u32) -> Meter {
        Meter::new(Contract { limit, window_ms: 1_000, slack_ms: 0 })
    }

    #[test]
    fn the_limit_is_allowed_and_one_more_is_not() {
        let mut meter = meter(3);
        assert!(!meter.arrived(0, 10) && !meter.arrived(1, 11) && !meter.arrived(999_999, 12));
        assert!(!meter.arrived(1_000_000, 13), "the first left the window at exactly its length");
        assert!(meter.arrived(1_000_000, 14));
        let alarm = Alarm { arrivals: 5, window_max: 4, violations: 1, first_violation_at_us: Some(14) };
        assert_eq!(meter.alarm, alarm);
    }

    #[test]
    fn a_burst_across_the_tick_of_a_second_is_seen() {
        let mut meter = meter(100);
        let times = (0..100).map(|i| 900_000 + i * 1_000).chain((0..100).map(|i| 1_000_000 + i * 1_000));
        let violations = times.filter(|t| meter.arrived(*t, *t)).count();
        assert_eq!((violations, meter.alarm.window_max), (100, 200));
    }

    #[test]
    fn the_carrier_throttles_by_what_it_accepted() {
        let mut meter = meter(2);
        for t in 0..10 {
            meter.arrived(t, t);
        }
        assert!(!meter.is_full(10));
        meter.accepted(10);
        meter.accepted(11);
        assert!(meter.is_full(12));
        assert!(!meter.is_full(1_000_010));
    }
}
