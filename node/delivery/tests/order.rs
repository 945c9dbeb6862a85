//! In which order messages begin, and when.
mod common;

use carillon_core::DueEntry;
use carillon_delivery::{BeginResult, SchedulerConfig};
use common::*;
use std::time::Duration;

fn rig() -> Rig {
    Rig::new(SchedulerConfig::default())
}

#[test]
fn priority_goes_first_then_deadline_then_acceptance() {
    let mut rig = rig();
    let soon = T0 + 60_000;
    let rows = [
        DueEntry { priority: 4, ..row(1, T0 - 900) },
        DueEntry { priority: 3, ..row(2, T0 - 100) },
        // An expiry is a deadline for those that have none.
        DueEntry { priority: 3, expires_at_ms: soon, ..row(3, T0 - 50) },
        DueEntry { priority: 3, deadline_ms: soon - 1, ..row(4, T0 - 10) },
        DueEntry { priority: 2, ..row(5, T0 - 1) },
        DueEntry { priority: 1, ..row(6, T0) },
        // The same deadline: id, which is the order of acceptance; whatever came back from the carrier is due later.
        DueEntry { priority: 4, expires_at_ms: soon, ..row(9, T0 - 5) },
        DueEntry { priority: 4, expires_at_ms: soon, ..row(8, T0 - 5) },
        DueEntry { priority: 4, expires_at_ms: soon, ..row(10, T0 - 6) },
    ];
    for entry in &rows {
        rig.due(entry);
    }
    assert_eq!(rig.begin(), [6, 5, 4, 3, 2, 8, 9, 10, 1]);
    assert!(rig.begin().is_empty(), "each is chosen once");
}

/// A backlog of each of these priorities, aged or fresh, on a lane that takes one segment at a time; what goes first.
fn begun_of(backlog: &[(u8, u64)], count: usize) -> Vec<u8> {
    let config = SchedulerConfig { prefetch_segments_min: 1, prefetch_ms: 0, ..SchedulerConfig::default() };
    let mut rig = Rig::new(config);
    let hours = T0 + 10 * 3_600_000;
    for (priority, due_ms) in backlog {
        for n in 0..500 {
            let n = u64::from(*priority) * 1_000 + n;
            rig.due(&DueEntry { priority: *priority, expires_at_ms: hours, ..row(n, *due_ms) });
        }
    }
    let mut begun = Vec::new();
    while begun.len() < count {
        let begin = rig.decide().begin;
        assert_eq!(begin.len(), 1);
        rig.scheduler.on_sent(PARTITION, begin[0].message_id);
        begun.push(begin[0].priority);
    }
    begun
}

#[test]
fn no_priority_starves_under_one_that_never_ends_and_aged_ones_take_a_small_share() {
    let old = T0 - 300_000;
    let count = |begun: &[u8], priority| begun.iter().filter(|p| **p == priority).count();
    assert_eq!(begun_of(&[(2, T0), (4, T0)], 400), [2; 400], "nothing has aged");
    let begun = begun_of(&[(2, T0), (4, old)], 450);
    assert_eq!((count(&begun, 2), count(&begun, 4)), (400, 50), "one in nine");
    let begun = begun_of(&[(1, T0), (3, old), (4, old)], 450);
    assert!((350..=370).contains(&count(&begun, 1)), "{}", count(&begun, 1));
    assert!(count(&begun, 3) >= 40 && count(&begun, 4) >= 35);
}

#[test]
fn aged_messages_do_not_stand_before_new_ones_of_a_higher_priority() {
    let mut rig = rig();
    rig.scheduler.remove_lane(CARRIER);
    let hours = T0 + 10 * 3_600_000;
    (0..1_000)
        .for_each(|n| rig.due(&DueEntry { priority: 4, expires_at_ms: T0 + 400_000 + n, ..row(n, T0) }));
    rig.decide();
    rig.at(T0 + 300_000).fill();
    rig.decide();
    rig.due(&DueEntry { priority: 3, expires_at_ms: hours, ..row(2_000, T0 + 300_000) });
    rig.scheduler.set_lane(lane(CARRIER, 1_000, 100));
    assert_eq!(rig.begin()[0], 2_000);
}

#[test]
fn nothing_begins_early_and_the_wake_up_is_the_next_due_time() {
    let mut rig = rig();
    rig.due(&row(1, T0 + 40));
    rig.due(&row(2, T0 + 90));
    let decision = rig.decide();
    assert_eq!((decision.begin.len(), decision.next_wake_ms), (0, Some(T0 + 40)));
    assert!(rig.at(T0 + 39).begin().is_empty());
    let decision = rig.at(T0 + 40).decide();
    assert_eq!((numbers(&decision.begin), decision.next_wake_ms), (vec![1], Some(T0 + 90)));
    assert_eq!(rig.at(T0 + 95).begin(), [2]);
}

#[test]
fn the_scheduler_wakes_up_to_read_pages_before_the_messages_are_due() {
    let mut rig = rig();
    let far = row(1, T0 + 20_000);
    rig.due(&far);
    assert_eq!(rig.scheduler.stats(T0, rig.mono()).rows, 0, "no memory for the far future");
    // The driver does nothing but sleep until it is woken: the message goes at its due time exactly.
    for _ in 0..100 {
        let decision = rig.decide();
        if !decision.begin.is_empty() {
            assert_eq!((numbers(&decision.begin), rig.now_ms), (vec![1], T0 + 20_000));
            return;
        }
        rig.now_ms = decision.next_wake_ms.expect("something is still to come");
        rig.fill();
    }
    panic!("the message was never begun");
}

#[test]
fn with_nothing_to_do_the_scheduler_sleeps() {
    let mut rig = rig();
    let mut wakes = 0;
    while rig.now_ms < T0 + 60_000 {
        rig.now_ms = rig.decide().next_wake_ms.unwrap_or(u64::MAX).min(T0 + 60_000);
        rig.fill();
        wakes += 1;
    }
    assert!(wakes <= 30, "{wakes} wake-ups in an idle minute");
}

#[test]
fn an_expired_message_is_expired_and_never_begun() {
    let mut rig = rig();
    let entry = DueEntry { expires_at_ms: T0 + 100, ..row(1, T0) };
    rig.scheduler.pause_lane(CARRIER, rig.mono() + Duration::from_secs(60));
    rig.due(&entry);
    let decision = rig.decide();
    assert_eq!((decision.begin.len(), decision.expire.len()), (0, 0));
    assert_eq!(
        decision.next_wake_ms,
        Some(T0 + 100),
        "the expiry is seen in time although the lane is paused"
    );
    let decision = rig.at(T0 + 100).decide();
    assert_eq!(decision.expire, [(PARTITION, id(1))]);
    assert_eq!(rig.at(T0 + 101).decide().expire, [], "once, while the proposal is under way");
    // The proposal was lost: it is decided again.
    assert_eq!(rig.at(T0 + 5_100).decide().expire, [(PARTITION, id(1))]);
    rig.gone(&entry);
    rig.scheduler.pause_lane(CARRIER, Duration::ZERO);
    let decision = rig.at(T0 + 20_000).decide();
    assert_eq!((decision.begin.len(), decision.expire.len()), (0, 0));
    assert_eq!(rig.scheduler.stats(rig.now_ms, rig.mono()).messages, 0);
}

#[test]
fn many_expiries_come_in_bounded_decisions_and_none_is_forgotten() {
    let mut rig = Rig::new(SchedulerConfig { expire_max: 10, ..SchedulerConfig::default() });
    let rows: Vec<DueEntry> = (0..95).map(|n| DueEntry { expires_at_ms: T0 + 5, ..row(n, T0) }).collect();
    rows.iter().for_each(|entry| rig.due(entry));
    rig.at(T0 + 10);
    let mut expired = Vec::new();
    for _ in 0..10 {
        let decision = rig.decide();
        assert!(decision.expire.len() <= 10 && decision.begin.is_empty());
        expired.extend(decision.expire.into_iter().map(|(_, id)| number(id)));
        rig.now_ms = decision.next_wake_ms.unwrap();
    }
    expired.sort_unstable();
    assert_eq!(expired, (0..95).collect::<Vec<_>>());
}

#[test]
fn a_refused_message_that_still_waits_is_offered_again_later() {
    let mut rig = rig();
    rig.due(&row(1, T0));
    assert_eq!(rig.begin(), [1]);
    rig.scheduler.on_begun(PARTITION, id(1), BeginResult::Refused);
    let decision = rig.at(T0 + 10).decide();
    assert_eq!((decision.begin.len(), decision.next_wake_ms), (0, Some(T0 + 100)));
    assert_eq!(rig.at(T0 + 100).begin(), [1]);
    assert_eq!(rig.scheduler.stats(rig.now_ms, rig.mono()).refused_total, 1);
}

/// An ordered message is refused because another one is before it, and in the same entry that one is handed over.
#[test]
fn a_refused_message_whose_turn_has_come_since_goes_at_once() {
    let mut rig = rig();
    rig.due(&row(1, T0));
    assert_eq!(rig.begin(), [1]);
    rig.at(T0 + 20).gone(&row(1, T0));
    rig.due(&row(1, T0 + 20));
    rig.scheduler.on_begun(PARTITION, id(1), BeginResult::Refused);
    assert_eq!(rig.begin(), [1]);
}

#[test]
fn a_refused_message_that_is_gone_stays_gone() {
    let mut rig = rig();
    for gone_first in [true, false] {
        let entry = row(1, T0);
        rig.due(&entry);
        assert_eq!(rig.begin(), [1]);
        if gone_first {
            rig.gone(&entry);
        }
        rig.scheduler.on_begun(PARTITION, id(1), BeginResult::Refused);
        if !gone_first {
            rig.gone(&entry);
        }
        rig.now_ms += 10_000;
        assert!(rig.begin().is_empty());
        let stats = rig.scheduler.stats(rig.now_ms, rig.mono());
        assert_eq!((stats.messages, stats.in_flight_attempts), (0, 0));
    }
}

#[test]
fn an_impossible_priority_is_counted() {
    let mut rig = rig();
    rig.due(&DueEntry { priority: 9, ..row(1, T0) });
    assert!(rig.begin().is_empty());
    assert_eq!(rig.scheduler.stats(T0, rig.mono()).misfits_total, 1);
}
