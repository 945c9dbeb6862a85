//! Estimates against what then happens: a steady backlog runs through the scheduler and the gate under a clock of its own, and
//! every message that waited at the start leaves about when the forecast said.
mod common;

use carillon_delivery::forecast::{Capacity, Forecast, Waiting, forecast};
use carillon_delivery::{BeginResult, GateSettings, LaneGate, SchedulerConfig, WaitUntil};
use common::*;
use std::collections::{BTreeMap, VecDeque};
use std::num::NonZeroU32;
use std::time::Duration;

/// Messages that wait at the start.
const BACKLOG: u64 = 3_000;
/// One more comes in each time this passes: a fifth of what leaves.
const ARRIVAL_MS: u64 = 100;
const ANSWER_MS: u64 = 40;

struct Lane {
    gate: LaneGate,
    /// Begun attempts in order: number, segments that are still to leave, whether one has left.
    queue: VecDeque<(u64, u32, bool)>,
    answers: VecDeque<(u64, u64)>,
    left_ms: BTreeMap<u64, u64>,
}

impl Lane {
    fn pump(&mut self, rig: &mut Rig) {
        while let Some((n, segments, begun)) = self.queue.front_mut() {
            match self.gate.try_acquire(rig.mono()) {
                Err(WaitUntil(_)) => return,
                Ok(()) => {
                    if !std::mem::replace(begun, true) {
                        self.left_ms.insert(*n, rig.now_ms);
                    }
                    *segments -= 1;
                }
            }
            if *segments == 0 {
                let n = *n;
                self.queue.pop_front();
                rig.scheduler.on_sent(PARTITION, id(n));
                self.answers.push_back((rig.now_ms + ANSWER_MS, n));
            }
        }
    }
}

fn rows() -> Vec<carillon_core::DueEntry> {
    (0..BACKLOG)
        .map(|n| {
            let mut entry = row(n, T0 - 1 - n % 977);
            entry.priority = [2, 3, 3, 3, 4][(n % 5) as usize];
            // One practice has most of it.
            entry.practice_no = [1, 1, 1, 1, 2, 1, 3][(n % 7) as usize];
            entry.flow = entry.practice_no;
            entry.segments = [1, 1, 2, 1, 3][(n % 7 % 5) as usize];
            entry.expires_at_ms = T0 + 6 * 3_600_000;
            entry.deadline_ms = if n % 3 == 0 { T0 + 60_000 + n * 7 % 900_000 } else { 0 };
            entry
        })
        .collect()
}

fn foreseen(rows: &[carillon_core::DueEntry], share: u32, ageing_ms: u64) -> Forecast {
    let waiting = rows.iter().map(|entry| Waiting {
        message_id: entry.message_id,
        practice_no: entry.practice_no,
        weight: 1,
        priority: entry.priority,
        due_ms: entry.due_ms,
        expires_at_ms: entry.expires_at_ms,
        deadline_ms: entry.deadline_ms,
        segments: entry.segments,
    });
    let capacity = Capacity { segments_per_second: share, ageing_ms, ..Capacity::default() };
    forecast(waiting.collect(), capacity, T0)
}

/// Runs the backlog out; gives when each message left.
fn run(
    rows: &[carillon_core::DueEntry],
    share: u32,
    config: SchedulerConfig,
    more_come: bool,
) -> BTreeMap<u64, u64> {
    let mut rig = Rig::new(config);
    rig.scheduler.set_lane(lane(CARRIER, share, 200));
    let gate = LaneGate::new(NonZeroU32::new(share).unwrap(), GateSettings::default(), Duration::ZERO);
    let mut lane = Lane { gate, queue: VecDeque::new(), answers: VecDeque::new(), left_ms: BTreeMap::new() };
    rows.iter().for_each(|entry| rig.due(entry));
    let segments: BTreeMap<u64, u32> = rows.iter().map(|e| (number(e.message_id), e.segments)).collect();
    let mut coming = BACKLOG;
    while lane.left_ms.range(..BACKLOG).count() < rows.len() {
        if more_come && rig.now_ms >= T0 + (coming - BACKLOG + 1) * ARRIVAL_MS {
            let entry = row(coming, rig.now_ms);
            rig.due(&carillon_core::DueEntry { expires_at_ms: T0 + 12 * 3_600_000, ..entry });
            coming += 1;
        }
        rig.fill();
        for begin in rig.decide().begin {
            rig.scheduler.on_begun(PARTITION, begin.message_id, BeginResult::Ok);
            let n = number(begin.message_id);
            lane.queue.push_back((n, segments.get(&n).copied().unwrap_or(1), false));
        }
        lane.pump(&mut rig);
        while let Some((_, n)) = lane.answers.pop_front_if(|(at_ms, _)| *at_ms <= rig.now_ms) {
            rig.scheduler.on_finished(PARTITION, id(n));
        }
        rig.now_ms += 2;
        assert!(rig.now_ms < T0 + 24 * 3_600_000, "the backlog never ends");
    }
    lane.left_ms
}

#[test]
fn the_median_estimate_in_a_steady_backlog_is_within_a_tenth() {
    for (share, more_come) in [(50, true), (200, true), (50, false)] {
        let config = SchedulerConfig::default();
        let rows = rows();
        let seen = foreseen(&rows, share, config.ageing_ms);
        let left_ms = run(&rows, share, config, more_come);
        let mut errors: Vec<u64> = seen
            .departures
            .iter()
            .filter_map(|departure| {
                let (estimate, truth) = (departure.at_ms? - T0, left_ms[&number(departure.message_id)] - T0);
                // Of what leaves within the first second nobody asks when.
                (truth > 1_000).then(|| estimate.abs_diff(truth) * 1_000 / truth)
            })
            .collect();
        errors.sort_unstable();
        let (median, p95) = (errors[errors.len() / 2], errors[errors.len() * 95 / 100]);
        let end_ms = left_ms.range(..BACKLOG).map(|(_, at)| *at).max().unwrap() - T0;
        let ends_ms = seen.backlog_ends_ms.unwrap() - T0;
        println!("share {share}: median {median}, p95 {p95} thousandths; end {ends_ms} said, {end_ms} true");
        assert!(errors.len() > 2_500, "{}", errors.len());
        assert!(median < 100, "the median error is {median} thousandths at {share} segments/s");
        // Messages of the ordinary kind that come later pass those of bulk: then the end comes later, too.
        assert!(
            more_come || ends_ms.abs_diff(end_ms) * 10 < end_ms,
            "the end was said to be {ends_ms} and is {end_ms}"
        );
    }
}
