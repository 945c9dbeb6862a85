//! What a lane may carry, and what happens when it stops.
mod common;

use carillon_core::DueEntry;
use carillon_delivery::{BeginResult, SchedulerConfig};
use common::*;
use std::time::Duration;

fn rig(rows: u64) -> Rig {
    let mut rig = Rig::new(SchedulerConfig::default());
    for n in 0..rows {
        rig.due(&row(n, T0 - 1_000 + n));
    }
    rig
}

fn begun(rig: &mut Rig, n: u64) {
    rig.scheduler.on_begun(PARTITION, id(n), BeginResult::Ok);
    rig.gone(&row(n, T0 - 1_000 + n));
}

#[test]
fn segments_begun_but_not_sent_stay_within_what_the_share_sends_in_100_ms() {
    let mut rig = rig(500);
    rig.scheduler.set_lane(lane(CARRIER, 300, 1_000));
    assert_eq!(rig.begin(), (0..30).collect::<Vec<_>>());
    assert!(rig.begin().is_empty());
    begun(&mut rig, 0);
    assert!(rig.begin().is_empty(), "begun is not sent");
    rig.scheduler.on_sent(PARTITION, id(0));
    rig.scheduler.on_sent(PARTITION, id(0));
    assert_eq!(rig.begin(), [30], "told twice, counted once");
    // An outcome without a word about sending frees the place as well.
    begun(&mut rig, 1);
    rig.scheduler.on_finished(PARTITION, id(1));
    assert_eq!(rig.begin(), [31]);
    assert_eq!(rig.scheduler.stats(T0, rig.mono()).lanes[0].unsent_segments, 30);
}

#[test]
fn a_slow_lane_prefetches_a_few_and_a_fast_one_at_most_1024() {
    let mut rig = rig(0);
    (0..2_000).for_each(|n| rig.due(&row(n, T0 - 2_000 + n)));
    rig.scheduler.set_lane(lane(CARRIER, 1, 5_000));
    assert_eq!(rig.begin().len(), 1, "half a second of a very slow lane");
    rig.scheduler.set_lane(lane(CARRIER, 30, 5_000));
    assert_eq!(rig.begin().len(), 7);
    rig.scheduler.set_lane(lane(CARRIER, 50_000, 5_000));
    assert_eq!(rig.begin().len(), 1_016);
    assert_eq!(rig.scheduler.stats(T0, rig.mono()).in_flight_attempts, 1_024);
}

#[test]
fn in_flight_attempts_stay_within_the_connector() {
    let mut rig = rig(50);
    rig.scheduler.set_lane(lane(CARRIER, 10_000, 5));
    assert_eq!(rig.begin(), [0, 1, 2, 3, 4]);
    for n in 0..5 {
        begun(&mut rig, n);
        rig.scheduler.on_sent(PARTITION, id(n));
    }
    assert!(rig.begin().is_empty(), "sent, but without an outcome");
    rig.scheduler.on_finished(PARTITION, id(2));
    assert_eq!(rig.begin(), [5]);
    rig.scheduler.on_begun(PARTITION, id(5), BeginResult::Refused);
    assert_eq!(rig.begin(), [6], "a refused attempt occupies nothing");
}

#[test]
fn a_long_message_keeps_its_place_and_goes_when_nothing_else_is_unsent() {
    let mut rig = rig(0);
    rig.scheduler.set_lane(lane(CARRIER, 10, 100));
    rig.due(&DueEntry { segments: 3, ..row(0, T0 - 1_000) });
    rig.due(&DueEntry { segments: 12, ..row(1, T0 - 999) });
    rig.due(&row(2, T0 - 998));
    assert_eq!(rig.begin(), [0]);
    rig.scheduler.on_sent(PARTITION, id(0));
    assert_eq!(rig.begin(), [1]);
    rig.scheduler.on_sent(PARTITION, id(1));
    assert_eq!(rig.begin(), [2]);
}

#[test]
fn a_pause_stops_one_lane_keeps_its_order_and_ends_by_itself() {
    let mut rig = rig(4);
    rig.scheduler.set_lane(lane(8, 1_000, 100));
    rig.due(&DueEntry { carrier_no: 8, ..row(90, T0) });
    rig.scheduler.pause_lane(CARRIER, rig.mono() + Duration::from_micros(2_000_500));
    let decision = rig.decide();
    assert_eq!(numbers(&decision.begin), [90]);
    assert_eq!(decision.next_wake_ms, Some(T0 + 2_001), "rounded up: not a millisecond too early");
    rig.due(&DueEntry { deadline_ms: T0 + 5_000, ..row(50, T0) });
    assert!(rig.at(T0 + 2_000).begin().is_empty());
    let stats = rig.scheduler.stats(rig.now_ms, rig.mono());
    assert!(stats.lanes[0].paused && !stats.lanes[1].paused);
    assert_eq!(rig.at(T0 + 2_001).begin(), [50, 0, 1, 2, 3]);
}

#[test]
fn messages_of_a_missing_lane_wait_and_are_counted() {
    let mut rig = rig(2);
    rig.due(&DueEntry { carrier_no: 99, ..row(5, T0 - 4_000) });
    assert_eq!(rig.begin(), [0, 1]);
    let stats = rig.scheduler.stats(T0, rig.mono());
    assert_eq!((stats.without_lane, stats.oldest_due_age_ms), (1, Some(4_000)));
    rig.scheduler.set_lane(lane(99, 10, 10));
    assert_eq!(rig.begin(), [5]);
    assert_eq!(rig.scheduler.stats(T0, rig.mono()).without_lane, 0);
}

#[test]
fn a_removed_lane_lets_its_attempts_finish() {
    let mut rig = rig(20);
    rig.scheduler.set_lane(lane(CARRIER, 50, 100));
    assert_eq!(rig.begin().len(), 8);
    rig.scheduler.remove_lane(CARRIER);
    for n in 0..8 {
        begun(&mut rig, n);
        rig.scheduler.on_finished(PARTITION, id(n));
    }
    assert!(rig.begin().is_empty());
    let stats = rig.scheduler.stats(T0, rig.mono());
    assert_eq!((stats.in_flight_attempts, stats.without_lane), (0, 12));
}

#[test]
fn gone_while_in_flight_and_waiting_again_is_chosen_after_the_attempt_has_ended() {
    let mut rig = rig(1);
    let first = row(0, T0 - 1_000);
    assert_eq!(rig.begin(), [0]);
    rig.gone(&first);
    rig.scheduler.on_begun(PARTITION, id(0), BeginResult::Ok);
    assert!(rig.begin().is_empty());
    // The outcome was applied before the driver said that the attempt has ended.
    let again = DueEntry { attempt_no: 2, ..row(0, T0 - 10) };
    rig.due(&again);
    assert!(rig.begin().is_empty(), "the first attempt still occupies the lane");
    rig.scheduler.on_finished(PARTITION, id(0));
    let decision = rig.decide();
    assert_eq!((decision.begin[0].attempt_no, decision.begin.len()), (2, 1));
}

#[test]
fn waiting_again_at_the_same_time_is_not_taken_for_the_row_that_was_begun() {
    let mut rig = rig(1);
    assert_eq!(rig.begin(), [0]);
    rig.gone(&row(0, T0 - 1_000));
    rig.due(&DueEntry { attempt_no: 2, ..row(0, T0 - 1_000) });
    rig.scheduler.on_begun(PARTITION, id(0), BeginResult::Ok);
    assert!(rig.begin().is_empty());
    rig.scheduler.on_finished(PARTITION, id(0));
    assert_eq!(rig.decide().begin[0].attempt_no, 2);
}

#[test]
fn an_outcome_that_overtakes_the_change_does_not_choose_the_message_again() {
    let mut rig = rig(1);
    assert_eq!(rig.begin(), [0]);
    rig.scheduler.on_begun(PARTITION, id(0), BeginResult::Ok);
    rig.scheduler.on_finished(PARTITION, id(0));
    assert!(rig.at(T0 + 10_000).begin().is_empty());
    rig.gone(&row(0, T0 - 1_000));
    assert_eq!(rig.scheduler.stats(rig.now_ms, rig.mono()).messages, 0);
}

#[test]
fn losing_the_partition_frees_the_lane_and_leading_again_reads_everything_anew() {
    let mut rig = rig(40);
    rig.scheduler.set_lane(lane(CARRIER, 200, 20));
    assert_eq!(rig.begin().len(), 20);
    (0..10).for_each(|n| begun(&mut rig, n));
    rig.scheduler.unlead(PARTITION, T0);
    let stats = rig.scheduler.stats(T0, rig.mono());
    assert_eq!((stats.messages, stats.in_flight_attempts, stats.partitions), (0, 0, 0));
    assert_eq!(stats.lanes[0].unsent_segments, 0);
    // Late answers and changes of the lost partition are ignored.
    rig.scheduler.on_finished(PARTITION, id(3));
    rig.due(&row(77, T0 - 1));
    let decision = rig.decide();
    assert_eq!((decision.begin.len(), decision.next_wake_ms), (0, None));
    // Those that were begun are not in table D; the others are chosen, with the new one last.
    rig.scheduler.lead(PARTITION, T0);
    assert!(rig.begin().is_empty());
    rig.fill();
    assert_eq!(rig.begin(), (10..30).collect::<Vec<_>>());
}

#[test]
fn nothing_begins_without_a_share_and_little_before_its_permit() {
    let mut rig = rig(0);
    (0..3).for_each(|n| rig.due(&row(n, T0 - 2_000 + n)));
    rig.scheduler.set_lane(lane(CARRIER, 0, 100));
    assert!(rig.begin().is_empty());
    rig.scheduler.set_lane(lane(CARRIER, 1, 100));
    let opens = rig.mono() + Duration::from_millis(900);
    rig.scheduler.lane_opens(CARRIER, opens);
    let decision = rig.scheduler.decide(T0, rig.mono());
    assert!(decision.begin.is_empty());
    assert_eq!(decision.next_wake_ms, Some(T0 + 700), "200 ms before its permit");
    rig.scheduler.lane_opens(CARRIER, rig.mono() + Duration::from_millis(200));
    assert_eq!(rig.begin(), [0]);
}

#[test]
fn a_practice_whose_own_limit_is_used_up_does_not_hold_up_the_others() {
    let mut rig = Rig::new(SchedulerConfig::default());
    rig.scheduler.set_lane(lane(CARRIER, 80, 1_000));
    let of = |n: u64, practice_no| DueEntry { practice_no, ..row(n, T0 - 5_000 + n) };
    // Two practices of a slow campaign have many messages, all of them older than those of the third.
    (0..40).for_each(|n| rig.due(&of(n, 1 + (n % 2) as u32)));
    (100..120).for_each(|n| rig.due(&of(n, 3)));
    rig.scheduler.group_practices(CARRIER, vec![vec![1, 2]]);
    rig.scheduler.set_group_room(CARRIER, 0, 2, 2);
    let begun = rig.begin();
    assert_eq!(begun.iter().filter(|n| **n < 100).count(), 2, "{begun:?}");
    assert_eq!(begun.len(), 8, "the rest of the lane is for the third one: {begun:?}");
    let slow: Vec<u64> = begun.iter().copied().filter(|n| *n < 100).collect();
    let finish = |rig: &mut Rig, n: u64, practice_no| {
        rig.scheduler.on_begun(PARTITION, id(n), BeginResult::Ok);
        rig.gone(&of(n, practice_no));
        rig.scheduler.on_sent(PARTITION, id(n));
    };
    for n in begun.iter().filter(|n| **n >= 100) {
        finish(&mut rig, *n, 3);
    }
    let more = rig.begin();
    assert!(more.len() == 6 && more.iter().all(|n| *n >= 100), "the campaign has no room: {more:?}");
    finish(&mut rig, slow[0], 1 + (slow[0] % 2) as u32);
    let next = rig.begin();
    assert_eq!(next.iter().filter(|n| **n < 100).count(), 1, "{next:?}");
    // A cap that is used up stops it, and an operator's stop stays when it opens again.
    rig.scheduler.set_group_room(CARRIER, 0, 0, 0);
    rig.scheduler.pause_practice(CARRIER, 1, true);
    rig.scheduler.set_group_room(CARRIER, 0, 50, 50);
    more.iter().for_each(|n| finish(&mut rig, *n, 3));
    let open = rig.begin();
    assert!(open.iter().any(|n| *n < 100), "{open:?}");
    assert!(open.iter().all(|n| *n >= 100 || n % 2 == 1), "practice 1 is stopped: {open:?}");
    // Without groups everything is as before.
    rig.scheduler.group_practices(CARRIER, Vec::new());
    rig.scheduler.pause_practice(CARRIER, 1, false);
    rig.scheduler.set_lane(lane(CARRIER, 10_000, 1_000));
    assert!(rig.begin().iter().any(|n| n % 2 == 0 && *n < 100));
}

#[test]
fn a_sender_whose_limit_is_used_up_holds_up_no_other_of_the_same_practice() {
    let mut rig = Rig::new(SchedulerConfig::default());
    rig.scheduler.set_lane(lane(CARRIER, 80, 1_000));
    let of = |n: u64, sender_no| DueEntry { sender_no, ..row(n, T0 - 5_000 + n) };
    // The messages of the slow sender are the older ones.
    (0..40).for_each(|n| rig.due(&of(n, 7)));
    (100..120).for_each(|n| rig.due(&of(n, 8)));
    rig.scheduler.set_senders(CARRIER, &[0, 7, 8]);
    rig.scheduler.set_sender_room(CARRIER, 1, 2, 2);
    let decided = rig.decide().begin;
    let slow = decided.iter().filter(|begin| begin.sender_no == 7).count();
    assert_eq!((slow, decided.len()), (2, 8), "the rest of the lane is for the other one");
    let finish = |rig: &mut Rig, n: u64, sender_no| {
        rig.scheduler.on_begun(PARTITION, id(n), BeginResult::Ok);
        rig.gone(&of(n, sender_no));
        rig.scheduler.on_sent(PARTITION, id(n));
    };
    numbers(&decided).into_iter().filter(|n| *n >= 100).for_each(|n| finish(&mut rig, n, 8));
    let more = rig.begin();
    assert!(more.len() == 6 && more.iter().all(|n| *n >= 100), "{more:?}");
    // One that is paused has no room at all, until it goes on.
    rig.scheduler.set_sender_room(CARRIER, 2, 0, 0);
    more.iter().for_each(|n| finish(&mut rig, *n, 8));
    assert!(rig.begin().is_empty());
    rig.scheduler.set_sender_room(CARRIER, 2, 50, 50);
    assert!(rig.begin().iter().all(|n| *n >= 100));
    rig.scheduler.set_senders(CARRIER, &[]);
    rig.scheduler.set_lane(lane(CARRIER, 10_000, 1_000));
    assert!(rig.begin().iter().any(|n| *n < 40), "without senders everything is as before");
}
