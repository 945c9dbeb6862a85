//! The run while it goes on: takes in the generators' intervals, asks the carrier simulator and the nodes once a second, and
//! says one line.
//!
//! Owns: [`Live`], everything that is known of a run so far. Bounds: sums, one timeline of bounded length, marks up to
//! [`MARKS_MAX`].

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::engine::interval::Interval;
use super::faults::Mark;
use super::report::{Lane, Totals};
use super::scenario::{Loop, Scenario};
use super::shape::Shape;
use super::threshold::Values;
use super::timeline::{CarrierSecond, Timeline};
use super::values;
use crate::smsc::Stats;

pub const MARKS_MAX: usize = 1_000;

/// The use of a lane while more waited than a second can take.
#[derive(Clone, Copy, Default)]
struct Busy {
    segments: u64,
    seconds: f64,
}

/// What is known so far.
pub struct Live {
    pub sum: Interval,
    pub timeline: Timeline,
    pub marks: Vec<Mark>,
    pub lanes: Vec<Lane>,
    shape: Option<Shape>,
    /// Part of the arrivals that are submits.
    submits: f64,
    stay: bool,
    length_s: f64,
    /// Intervals that are not complete: by second, the number of workers that told theirs.
    pending: BTreeMap<u64, (u64, Interval)>,
    workers: u64,
    first: Option<Stats>,
    before: Option<(Instant, Stats)>,
    busy: BTreeMap<String, Busy>,
    seen: CarrierSecond,
}

/// Segments of each lane.
fn arrivals(stats: &Stats) -> BTreeMap<String, u64> {
    stats.accounts.iter().map(|account| (account.system_id.clone(), account.arrivals)).collect()
}

impl Live {
    pub fn new(scenario: &Scenario, workers: u64, first: Option<Stats>) -> Self {
        Self {
            sum: Interval::default(),
            timeline: Timeline::default(),
            marks: Vec::new(),
            lanes: Vec::new(),
            shape: (scenario.pacing == Loop::Open).then(|| Shape::new(&scenario.phases)),
            submits: scenario.mix.submit_share(),
            stay: scenario.messages.stay(),
            length_s: scenario.length_s(),
            pending: BTreeMap::new(),
            workers,
            before: first.clone().map(|stats| (Instant::now(), stats)),
            first,
            busy: BTreeMap::new(),
            seen: CarrierSecond::default(),
        }
    }

    /// Takes in an interval; gives the whole second back when every worker has told it.
    pub fn interval(&mut self, interval: &Interval) -> Option<Interval> {
        self.timeline.add(interval);
        self.sum.add(interval);
        let (told, sum) = self.pending.entry(interval.second).or_default();
        *told += 1;
        sum.add(interval);
        sum.second = interval.second;
        if *told < self.workers {
            return None;
        }
        self.pending.remove(&interval.second).map(|(_, sum)| sum)
    }

    pub fn mark(&mut self, mark: Mark) {
        if self.marks.len() < MARKS_MAX {
            self.marks.push(mark);
        }
    }

    /// Messages that the schedule asks for from one moment to another, without the arrivals that are other calls.
    pub fn asked(&self, from_s: f64, until_s: f64) -> f64 {
        let until = |at_s: f64| {
            self.shape.as_ref().map_or(0.0, |shape| shape.messages_until(at_s.min(self.length_s)))
        };
        (until(until_s) - until(from_s)) * self.submits
    }

    /// Acknowledged and not at the carrier, as far as one can tell.
    fn backlog(&self, stats: &Stats) -> u64 {
        let first = self.first.as_ref().map_or(0, |first| first.messages.messages);
        let new = self.sum.acknowledged.saturating_sub(self.sum.repeated);
        if self.stay { 0 } else { new.saturating_sub(stats.messages.messages.saturating_sub(first)) }
    }

    /// Takes in what the carrier says; it counts for the second in the middle between two looks.
    pub fn carrier(&mut self, start: Instant, stats: Stats) {
        let Some((at, before)) = self.before.replace((Instant::now(), stats.clone())) else { return };
        let middle = at + at.elapsed() / 2;
        let second = middle.saturating_duration_since(start).as_secs();
        let (earlier, now, length_s) = (arrivals(&before), arrivals(&stats), at.elapsed().as_secs_f64());
        let backlog = self.backlog(&stats);
        let lanes: BTreeMap<String, u64> = now
            .iter()
            .map(|(name, count)| {
                (name.clone(), count.saturating_sub(earlier.get(name).copied().unwrap_or(0)))
            })
            .collect();
        let first = self.first.as_ref().map(arrivals).unwrap_or_default();
        let violations = |name: &str| {
            let of = |stats: &Stats| {
                stats.accounts.iter().find(|a| a.system_id == name).map_or(0, |a| a.violations)
            };
            of(&stats).saturating_sub(self.first.as_ref().map_or(0, of))
        };
        let mut list = Vec::new();
        for account in &stats.accounts {
            let name = account.system_id.clone();
            let limit = account.limit.unwrap_or(u32::MAX);
            let per_s = f64::from(limit) * 1_000.0 / account.window_ms.max(1) as f64;
            let busy = self.busy.entry(name.clone()).or_default();
            if backlog as f64 > per_s {
                busy.segments += lanes.get(&name).copied().unwrap_or(0);
                busy.seconds += length_s;
            }
            let used = (busy.seconds >= 2.0).then(|| busy.segments as f64 / (per_s * busy.seconds));
            list.push(Lane {
                limit: account.limit,
                window_ms: account.window_ms,
                segments: account.arrivals.saturating_sub(first.get(&name).copied().unwrap_or(0)),
                window_max: account.window_max,
                over_limit: violations(&name),
                used,
                name,
            });
        }
        self.lanes = list;
        let messages = stats.messages.messages.saturating_sub(before.messages.messages);
        self.seen = CarrierSecond { messages, lanes, backlog };
        self.timeline.carrier(second, self.seen.clone());
    }

    /// What the carrier did in the second before.
    pub fn seen(&self) -> &CarrierSecond {
        &self.seen
    }

    /// Messages that the carrier accepted in this run.
    pub fn carrier_messages(&self) -> Option<u64> {
        let (_, now) = self.before.as_ref()?;
        let first = self.first.as_ref()?;
        Some(now.messages.messages.saturating_sub(first.messages.messages))
    }

    /// Sums after so many seconds of sending.
    pub fn totals(&self, sending_s: f64) -> Totals {
        let sum = &self.sum;
        let per_s = |count: u64| count as f64 / sending_s.max(0.001);
        let carrier_messages = self.carrier_messages();
        Totals {
            sending_s,
            asked: self.asked(0.0, sending_s),
            requests: sum.sent,
            submitted: sum.submitted,
            acknowledged: sum.acknowledged,
            repeated: sum.repeated,
            calls: sum.calls,
            failed: sum.errors(),
            errors: sum.errors.clone(),
            missed: sum.missed,
            late: sum.late,
            events: sum.events,
            acknowledged_per_s: per_s(sum.acknowledged),
            carrier_messages,
            carrier_per_s: carrier_messages.map(per_s),
            planned_wrong: sum.planned_wrong,
            ..Totals::default()
        }
    }

    /// The values of metrics so far.
    pub fn values(&self, at_s: f64) -> Values {
        values::live(&self.sum, &self.totals(at_s.min(self.length_s)), &self.lanes)
    }

    /// One line for people.
    pub fn line(&self, second: &Interval, asked: f64) -> String {
        let summary = second.response.summary();
        let times = if summary.count == 0 {
            "p50      -  p99      -  max      - ms".to_owned()
        } else {
            let (p50, p99, max) = (summary.p50_ms, summary.p99_ms, summary.max_ms);
            format!("p50 {p50:>6.1}  p99 {p99:>6.1}  max {max:>6.0} ms")
        };
        let mut line = format!(
            "{:>5}s  asked {asked:>6.0}  acked {:>6}  {times}  carrier {:>6}  backlog {:>7}",
            second.second + 1,
            second.acknowledged,
            self.seen.messages,
            self.seen.backlog
        );
        for (name, count) in [("failed", second.errors()), ("missed", second.missed), ("late", second.late)] {
            if count > 0 {
                line.push_str(&format!("  {name} {count}"));
            }
        }
        line
    }
}

/// How long the run has gone on.
pub fn since(start: Instant) -> Duration {
    Instant::now().saturating_duration_since(start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_is_said_when_every_worker_has_told_it() {
        let text = "name = \"x\"\n[[phase]]\nduration_s = 10\nrate_per_s = 100\n";
        let mut live = Live::new(&Scenario::parse("x", text).unwrap(), 2, None);
        let interval = |worker, second| Interval { worker, second, acknowledged: 50, ..Interval::default() };
        assert!(live.interval(&interval(0, 0)).is_none());
        assert!(live.interval(&interval(0, 1)).is_none());
        let whole = live.interval(&interval(1, 0)).unwrap();
        assert_eq!((whole.second, whole.acknowledged), (0, 100));
        assert_eq!((live.asked(0.0, 1.0).round(), live.asked(9.0, 99.0).round()), (100.0, 100.0));
        let totals = live.totals(1.5);
        assert_eq!((totals.acknowledged, totals.acknowledged_per_s), (150, 100.0));
        assert!(live.line(&whole, 100.0).contains("acked    100"));
    }
}
