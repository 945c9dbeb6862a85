//! Hours in the scheduler: what it does when a window ends, when other rules come into force, and when a window opens for many.
mod common;

use carillon_core::DueEntry;
use carillon_delivery::hours::Stamps;
use carillon_delivery::{BeginResult, SchedulerConfig};
use common::*;
use std::time::Duration;

const STAMP: u32 = 5;

fn stamps(rules: u32) -> Stamps {
    Stamps { rules, ..Stamps::default() }
}

fn rig(config: SchedulerConfig) -> Rig {
    let mut rig = Rig::new(config);
    rig.scheduler.set_hours(stamps(STAMP));
    rig
}

fn open(n: u64, due_ms: u64, until_ms: u64) -> DueEntry {
    DueEntry { open_until_ms: until_ms, hours_stamp: STAMP, ..row(n, due_ms) }
}

#[test]
fn a_message_that_waited_past_the_end_of_its_hours_is_not_begun() {
    let mut rig = rig(SchedulerConfig::default());
    let entry = open(1, T0, T0 + 1_000);
    rig.scheduler.pause_lane(CARRIER, rig.mono() + Duration::from_secs(600));
    rig.due(&entry);
    let decision = rig.decide();
    assert_eq!((decision.begin.len(), decision.closed.len()), (0, 0));
    assert_eq!(
        decision.next_wake_ms,
        Some(T0 + 1_000),
        "the end is seen in time although the lane is paused"
    );
    rig.scheduler.pause_lane(CARRIER, Duration::ZERO);
    let decision = rig.at(T0 + 1_000).decide();
    assert_eq!((decision.begin.len(), decision.closed), (0, vec![(PARTITION, id(1))]));
    assert_eq!(rig.at(T0 + 1_001).decide().closed, [], "once, while the proposal is under way");
    assert_eq!(rig.at(T0 + 6_000).decide().closed, [(PARTITION, id(1))], "again when it was lost");
    // It comes back with the next window.
    rig.gone(&entry);
    rig.due(&open(1, T0 + 9_000, T0 + 20_000));
    rig.at(T0 + 8_999).fill();
    assert!(rig.at(T0 + 8_999).begin().is_empty());
    assert_eq!(rig.at(T0 + 9_000).begin(), [1]);
    assert_eq!(rig.scheduler.stats(rig.now_ms, rig.mono()).closed_total, 2);
}

#[test]
fn inside_its_hours_a_message_goes_and_without_hours_at_any_time() {
    let mut rig = rig(SchedulerConfig::default());
    rig.due(&open(1, T0, T0 + 1_000));
    rig.due(&open(2, T0, 0));
    assert_eq!(rig.at(T0 + 999).begin(), [1, 2]);
}

/// What other rules said counts for nothing, also for a message that stands in its lane's queue.
#[test]
fn other_rules_close_what_was_computed_by_the_old_ones() {
    let mut rig = rig(SchedulerConfig::default());
    rig.scheduler.pause_lane(CARRIER, rig.mono() + Duration::from_secs(5));
    rig.due(&open(1, T0, 0));
    rig.due(&open(2, T0 + 100, 0));
    rig.due(&DueEntry { practice_no: 8, hours_stamp: 77, ..open(3, T0, 0) });
    assert_eq!(rig.decide().closed, [(PARTITION, id(3))], "the practice has hours of its own");
    rig.scheduler.set_hours(Stamps { rules: STAMP, practices: [(8, 77)].into() });
    rig.scheduler.set_hours(Stamps { rules: STAMP + 1, practices: [(8, 77)].into() });
    assert_eq!(rig.decide().closed, [(PARTITION, id(1))]);
    assert_eq!(rig.at(T0 + 100).decide().closed, [(PARTITION, id(2))]);
    // The answer: open under the new rules, due as before.
    let renewed = DueEntry { hours_stamp: STAMP + 1, ..open(1, T0, T0 + 60_000) };
    rig.due(&renewed);
    assert_eq!(rig.at(T0 + 10_000).begin(), [1, 3]);
}

#[test]
fn below_the_feature_level_nothing_is_asked() {
    let mut rig = Rig::new(SchedulerConfig::default());
    rig.due(&row(1, T0));
    rig.due(&open(2, T0, T0 - 1));
    assert_eq!(rig.begin(), [1, 2]);
    // The level rises: messages of before are looked at first.
    rig.due(&row(3, T0 + 10));
    rig.scheduler.set_hours(stamps(STAMP));
    let decision = rig.at(T0 + 10).decide();
    assert_eq!((decision.begin.len(), decision.closed), (0, vec![(PARTITION, id(3))]));
}

#[test]
fn many_closings_come_in_bounded_decisions_and_none_is_forgotten() {
    let mut rig = rig(SchedulerConfig { closed_max: 10, ..SchedulerConfig::default() });
    (0..95).for_each(|n| rig.due(&open(n, T0, T0)));
    let mut closed = Vec::new();
    for _ in 0..10 {
        let decision = rig.decide();
        assert!(decision.closed.len() <= 10 && decision.begin.is_empty());
        closed.extend(decision.closed.into_iter().map(|(_, id)| number(id)));
        rig.now_ms = decision.next_wake_ms.unwrap();
    }
    closed.sort_unstable();
    assert_eq!(closed, (0..95).collect::<Vec<_>>());
}

/// 100,000 messages that wait for the same morning: no memory until it comes, a bounded one then, and the urgent ones first.
#[test]
fn a_morning_for_which_many_wait_costs_little_and_keeps_the_order() {
    const MANY: u64 = 100_000;
    let config = SchedulerConfig::default();
    let rows_max = 4 * config.window_entries_max;
    let mut rig = rig(config);
    let morning = T0 + 10 * 3_600_000;
    for n in 0..MANY {
        let entry = open(n, morning, morning + 3_600_000);
        rig.table.put(&DueEntry { priority: 1 + (n % 4) as u8, expires_at_ms: morning + 7_200_000, ..entry });
    }
    // A new leader finds them in the table: nobody has told it of them.
    rig.scheduler.lead(PARTITION, T0 + 3_600_000);
    rig.at(T0 + 3_600_000).fill();
    assert_eq!(rig.decide().begin.len(), 0);
    assert_eq!(rig.scheduler.stats(rig.now_ms, rig.mono()).rows, 0, "the night costs nothing");
    rig.now_ms = morning;
    let (mut begun, mut last) = (0, 0);
    while begun < MANY {
        assert!(rig.now_ms < morning + 10_000, "{begun} begun");
        rig.fill();
        let rows = rig.scheduler.stats(rig.now_ms, rig.mono()).rows;
        assert!(rows <= rows_max, "{rows} rows in memory");
        let decision = rig.decide();
        assert!(decision.closed.is_empty());
        for begin in decision.begin {
            assert!(begin.priority >= last, "priority {} after {last}", begin.priority);
            last = begin.priority;
            begun += 1;
            let row = open(number(begin.message_id), morning, morning + 3_600_000);
            rig.gone(&DueEntry { priority: begin.priority, ..row });
            rig.scheduler.on_begun(PARTITION, begin.message_id, BeginResult::Ok);
            rig.scheduler.on_finished(PARTITION, begin.message_id);
        }
        rig.now_ms += 1;
    }
}
