//! Fairness between practices, with backlogs that do not fit into memory.
mod common;

use carillon_core::{DueEntry, ScheduleChange};
use carillon_delivery::{BeginResult, SchedulerConfig};
use common::*;

const BACKLOG: u64 = 100_000;

/// Practice 1 has a backlog of minutes before anybody leads; the lane takes 100 segments a second.
fn flooded(config: SchedulerConfig) -> Rig {
    let mut rig = Rig::new(config);
    rig.scheduler.unlead(PARTITION, T0);
    (0..BACKLOG).for_each(|n| rig.table.put(&row_of(1, n, T0 - 600_000 + n / 1_000)));
    rig.scheduler.set_lane(lane(CARRIER, 100, 1_000));
    rig.pages_read = 0;
    rig
}

/// One round of pages, as many as may be read at one moment.
fn read_once(rig: &mut Rig) {
    for request in rig.scheduler.wants_pages(rig.now_ms) {
        let page = rig.table.page(&request);
        rig.pages_read += 1;
        rig.scheduler.on_page(request.partition, request.request_id, page);
    }
}

fn finish(rig: &mut Rig, entry: &DueEntry) {
    rig.scheduler.on_begun(PARTITION, entry.message_id, BeginResult::Ok);
    rig.gone(entry);
    rig.scheduler.on_sent(PARTITION, entry.message_id);
    rig.scheduler.on_finished(PARTITION, entry.message_id);
}

/// Sends what was decided; gives (practice, number) in order.
fn send(rig: &mut Rig) -> Vec<(u32, u64)> {
    let begin = rig.decide().begin;
    for begun in &begin {
        let entry = DueEntry {
            priority: begun.priority,
            ..row_of(begun.practice_no, number(begun.message_id), begun.due_ms)
        };
        finish(rig, &entry);
    }
    begin.iter().map(|begun| (begun.practice_no, number(begun.message_id))).collect()
}

#[test]
fn a_new_leader_sees_a_single_message_behind_a_huge_backlog_at_once() {
    let mut rig = flooded(SchedulerConfig::default());
    // Due long after everything of practice 1.
    rig.table.put(&row_of(2, 900_000, T0));
    rig.scheduler.lead(PARTITION, T0);
    read_once(&mut rig);
    read_once(&mut rig);
    assert!(rig.pages_read <= 3, "one page of flows, one of each flow: {}", rig.pages_read);
    let begun = send(&mut rig);
    assert_eq!(begun.iter().position(|(practice_no, _)| *practice_no == 2), Some(1), "{begun:?}");
    let rows = rig.scheduler.stats(T0, rig.mono()).rows;
    assert!(rows <= SchedulerConfig::default().window_entries_max, "{rows}");
}

#[test]
fn a_message_that_comes_while_another_practice_floods_the_lane_goes_next() {
    let mut rig = flooded(SchedulerConfig::default());
    rig.scheduler.lead(PARTITION, T0);
    rig.fill();
    (0..300).for_each(|_| drop((send(&mut rig), read_once(&mut rig))));
    for n in 0..50 {
        let entry = row_of(2, 900_000 + n, rig.now_ms);
        rig.due(&entry);
        assert_eq!(send(&mut rig)[0], (2, 900_000 + n), "message {n}");
        read_once(&mut rig);
        rig.now_ms += 7;
    }
}

#[test]
fn many_backlogs_of_different_sizes_get_shares_by_weight() {
    // A window that holds a hundredth of what waits.
    let config = SchedulerConfig { window_entries_max: 300, page_entries_max: 64, ..Default::default() };
    let mut rig = Rig::new(config);
    rig.scheduler.unlead(PARTITION, T0);
    let sizes = [(1, 20_000), (2, 5_000), (3, 4_000), (4, 4_000)];
    for (practice_no, size) in sizes {
        for n in 0..size {
            rig.table.put(&row_of(practice_no, u64::from(practice_no) * 100_000 + n, T0 - 1_000));
        }
    }
    rig.scheduler.set_weight(4, 3);
    rig.scheduler.set_lane(lane(CARRIER, 100, 1_000));
    rig.scheduler.lead(PARTITION, T0);
    let mut sent = [0u64; 5];
    while sent.iter().sum::<u64>() < 6_000 {
        rig.fill();
        send(&mut rig).iter().for_each(|(practice_no, _)| sent[*practice_no as usize] += 1);
        assert!(rig.scheduler.stats(T0, rig.mono()).rows <= 300);
    }
    assert!((1..=3).all(|p| sent[p].abs_diff(1_000) <= 12) && sent[4].abs_diff(3_000) <= 24, "{sent:?}");
    let index = rig.scheduler.take_fairness().unwrap();
    assert!(index > 0.99, "{index}");
}

#[test]
fn what_comes_back_from_the_carrier_keeps_its_place_before_a_backlog() {
    let mut rig =
        flooded(SchedulerConfig { window_entries_max: 64, page_entries_max: 16, ..Default::default() });
    rig.scheduler.lead(PARTITION, T0);
    rig.fill();
    let begun = rig.decide().begin;
    let first: Vec<u64> = numbers(&begun);
    assert_eq!(first, (0..10).collect::<Vec<_>>());
    // All are throttled: they wait again, a second later than now, and so after the whole backlog in table D.
    for begin in &begun {
        let before = row_of(1, number(begin.message_id), begin.due_ms);
        rig.scheduler.on_begun(PARTITION, begin.message_id, BeginResult::Ok);
        rig.gone(&before);
        let again = DueEntry { due_ms: T0 + 1_000, attempt_no: 2, ..before };
        rig.table.put(&again);
        rig.scheduler.on_change(PARTITION, &ScheduleChange::Due(again));
        rig.scheduler.on_finished(PARTITION, begin.message_id);
    }
    rig.at(T0 + 1_000).fill();
    assert_eq!(rig.begin(), first, "the same ones, in the same order");
}

#[test]
fn a_near_deadline_is_not_hidden_behind_the_backlog_of_its_own_practice() {
    let mut rig =
        flooded(SchedulerConfig { window_entries_max: 64, page_entries_max: 16, ..Default::default() });
    rig.scheduler.lead(PARTITION, T0);
    rig.fill();
    send(&mut rig);
    let entry = DueEntry { deadline_ms: T0 + 120_000, ..row_of(1, 900_000, T0) };
    rig.due(&entry);
    assert_eq!(send(&mut rig)[0], (1, 900_000));
}

#[test]
fn rows_from_before_the_flows_share_the_lane_by_practice_too() {
    let mut rig = flooded(SchedulerConfig::default());
    for n in 0..200 {
        rig.table.put(&DueEntry { flow: 0, ..row_of(3, 800_000 + n, T0 - 1_000) });
        rig.table.put(&DueEntry { flow: 0, ..row_of(4, 810_000 + n, T0 - 1_000) });
    }
    rig.scheduler.lead(PARTITION, T0);
    rig.fill();
    let begun: Vec<u32> = rig.decide().begin.iter().map(|begin| begin.practice_no).collect();
    let count = |practice_no| begun.iter().filter(|p| **p == practice_no).count();
    assert!((1..=4).filter(|p| *p != 2).all(|p| (3..=4).contains(&count(p))), "{begun:?}");
}

#[test]
fn messages_of_next_year_cost_a_few_words_for_each_practice_only() {
    let mut rig = Rig::new(SchedulerConfig::default());
    let year = T0 + 365 * 86_400_000;
    for n in 0..50_000 {
        rig.due(&row_of(1 + (n % 40) as u32, n, year + n));
    }
    rig.fill();
    let stats = rig.scheduler.stats(T0, rig.mono());
    assert_eq!((stats.rows, stats.messages), (0, 0));
    assert_eq!(rig.decide().next_wake_ms, Some(year - 2_500), "half a horizon before the first one");
    rig.at(year).fill();
    assert_eq!(rig.begin(), [0]);
}

#[test]
fn a_paused_practice_waits_on_that_lane_and_expires_as_usual() {
    let mut rig = Rig::new(SchedulerConfig::default());
    rig.scheduler.pause_practice(CARRIER, 1, true);
    rig.due(&DueEntry { expires_at_ms: T0 + 500, ..row_of(1, 1, T0) });
    rig.due(&row_of(1, 2, T0));
    rig.due(&row_of(2, 3, T0));
    assert_eq!(rig.begin(), [3]);
    assert_eq!(rig.at(T0 + 500).decide().expire, [(PARTITION, id(1))]);
    rig.scheduler.pause_practice(CARRIER, 1, false);
    assert_eq!(rig.begin(), [2]);
}
