//! The window over table D: bounded, and nothing is lost at its edges.
mod common;

use carillon_core::query::DuePage;
use carillon_core::{DueEntry, ScheduleChange};
use carillon_delivery::{BeginResult, Page, SchedulerConfig, Wanted};
use common::*;

fn small() -> SchedulerConfig {
    SchedulerConfig { window_entries_max: 8, page_entries_max: 3, ..SchedulerConfig::default() }
}

/// Begins and finishes everything that is decided until nothing more comes; gives the order.
fn drain(rig: &mut Rig) -> Vec<u64> {
    let mut order = Vec::new();
    for _ in 0..10_000 {
        rig.fill();
        let begin = rig.decide().begin;
        if begin.is_empty() {
            return order;
        }
        for begin in begin {
            order.push(number(begin.message_id));
            let entry = DueEntry { priority: begin.priority, ..row(number(begin.message_id), begin.due_ms) };
            rig.scheduler.on_begun(PARTITION, begin.message_id, BeginResult::Ok);
            rig.gone(&entry);
            rig.scheduler.on_finished(PARTITION, begin.message_id);
        }
        assert!(rig.scheduler.stats(rig.now_ms, rig.mono()).rows <= 4 * 8);
    }
    panic!("no end");
}

#[test]
fn a_long_backlog_passes_through_a_small_window_in_order() {
    let mut rig = Rig::new(small());
    for n in 0..500 {
        rig.due(&row(n, T0 - 1_000 + n));
    }
    assert_eq!(rig.scheduler.stats(T0, rig.mono()).rows, 8);
    assert_eq!(drain(&mut rig), (0..500).collect::<Vec<_>>());
    assert_eq!(rig.scheduler.stats(T0, rig.mono()).messages, 0);
}

#[test]
fn a_backlog_found_when_leading_is_read_in_pages() {
    let mut rig = Rig::new(small());
    rig.scheduler.unlead(PARTITION, T0);
    (0..100).for_each(|n| rig.table.put(&row(n, T0 - 500)));
    rig.scheduler.lead(PARTITION, T0);
    rig.fill();
    let rows = rig.scheduler.stats(T0, rig.mono()).rows;
    assert!((4..=8).contains(&rows), "{rows}");
    assert_eq!(drain(&mut rig), (0..100).collect::<Vec<_>>());
}

#[test]
fn a_lane_that_stands_still_does_not_hide_the_messages_of_another() {
    let mut rig = Rig::new(small());
    rig.scheduler.set_lane(lane(8, 1_000_000, 1_000_000));
    rig.scheduler.pause_lane(CARRIER, rig.mono() + std::time::Duration::from_secs(3_600));
    (0..200).for_each(|n| rig.table.put(&row(n, T0 - 500)));
    let other: Vec<u64> = (1_000..1_050).collect();
    other.iter().for_each(|n| rig.table.put(&DueEntry { carrier_no: 8, ..row(*n, T0 - 100) }));
    rig.scheduler.lead(PARTITION, T0);
    assert_eq!(drain(&mut rig), other);
    let reads = rig.pages_read;
    rig.fill();
    assert_eq!(rig.pages_read, reads, "a paused lane does not keep reading");
    rig.scheduler.pause_lane(CARRIER, std::time::Duration::ZERO);
    assert_eq!(drain(&mut rig), (0..200).collect::<Vec<_>>(), "what was given up is read again, in order");
}

#[test]
fn more_lanes_than_rows_in_the_window_all_get_through() {
    let mut rig = Rig::new(small());
    for carrier_no in 10..20 {
        rig.scheduler.set_lane(lane(carrier_no, 1, 1));
        for n in 0..5 {
            let n = u64::from(carrier_no) * 100 + n;
            rig.due(&DueEntry { carrier_no, ..row(n, T0 - 500 + n % 7) });
        }
    }
    let mut order = Vec::new();
    for _ in 0..200 {
        rig.fill();
        for begin in rig.decide().begin {
            let n = number(begin.message_id);
            order.push(n);
            rig.scheduler.on_begun(PARTITION, begin.message_id, BeginResult::Ok);
            rig.gone(&DueEntry { carrier_no: begin.carrier_no, ..row(n, begin.due_ms) });
            rig.scheduler.on_finished(PARTITION, begin.message_id);
        }
    }
    order.sort_unstable();
    order.dedup();
    assert_eq!(order.len(), 50);
}

#[test]
fn what_changes_while_a_page_is_read_wins_over_the_page() {
    let mut rig = Rig::new(small());
    rig.scheduler.unlead(PARTITION, T0);
    let (canceled, kept, new) = (row(1, T0 - 30), row(2, T0 - 20), row(3, T0 - 10));
    rig.table.put(&canceled);
    rig.table.put(&kept);
    rig.scheduler.lead(PARTITION, T0);
    rig.discover();
    let wanted = rig.scheduler.wants_pages(T0);
    let pages: Vec<_> = wanted.iter().map(|request| (request.request_id, rig.table.page(request))).collect();
    // Applied after the page was read, told before it arrives.
    rig.gone(&canceled);
    rig.due(&new);
    assert!(rig.begin().is_empty());
    for (request_id, page) in pages {
        rig.scheduler.on_page(PARTITION, request_id, page);
    }
    assert_eq!(rig.begin(), [2, 3]);
}

#[test]
fn a_cancel_that_overtakes_a_page_wins_also_while_a_lane_catches_up() {
    let mut rig = Rig::new(small());
    rig.scheduler.set_lane(lane(8, 1_000_000, 1_000_000));
    rig.scheduler.pause_lane(CARRIER, rig.mono() + std::time::Duration::from_secs(3_600));
    (0..60).for_each(|n| rig.table.put(&row(n, T0 - 500)));
    (100..120).for_each(|n| rig.table.put(&DueEntry { carrier_no: 8, ..row(n, T0 - 100) }));
    rig.scheduler.lead(PARTITION, T0);
    assert_eq!(drain(&mut rig), (100..120).collect::<Vec<_>>());
    // The paused lane is behind now. Let it go on, and cancel the first row of every page that it reads.
    rig.scheduler.pause_lane(CARRIER, std::time::Duration::ZERO);
    let (mut canceled, mut begun) = (Vec::new(), Vec::new());
    for _ in 0..200 {
        for request in rig.scheduler.wants_pages(T0) {
            let page = rig.table.page(&request);
            if let Page::Rows(rows) = &page
                && let Some(first) = rows.entries.first()
            {
                canceled.push(number(first.message_id));
                rig.gone(first);
            }
            rig.scheduler.on_page(PARTITION, request.request_id, page);
        }
        for begin in rig.decide().begin {
            begun.push(number(begin.message_id));
            rig.gone(&row(number(begin.message_id), begin.due_ms));
            rig.scheduler.on_begun(PARTITION, begin.message_id, BeginResult::Ok);
            rig.scheduler.on_finished(PARTITION, begin.message_id);
        }
    }
    assert!(canceled.len() > 5 && canceled.iter().all(|n| !begun.contains(n)), "{canceled:?} {begun:?}");
    assert_eq!(canceled.len() + begun.len(), 60);
    assert_eq!(rig.scheduler.stats(T0, rig.mono()).messages, 0);
}

#[test]
fn too_many_changes_void_the_page_and_it_is_asked_for_again() {
    let mut rig = Rig::new(small());
    rig.scheduler.unlead(PARTITION, T0);
    rig.table.put(&row(0, T0 - 100));
    rig.scheduler.lead(PARTITION, T0);
    rig.discover();
    let wanted = rig.scheduler.wants_pages(T0);
    assert_eq!(wanted.len(), 1);
    (1..20).for_each(|n| rig.due(&row(n, T0 - 100 + n)));
    for request in &wanted {
        rig.scheduler.on_page(PARTITION, request.request_id, Page::Rows(DuePage::default()));
    }
    assert_eq!(drain(&mut rig), (0..20).collect::<Vec<_>>());
}

#[test]
fn a_failed_page_is_asked_for_again_and_an_old_answer_is_ignored() {
    let mut rig = Rig::new(SchedulerConfig { page_entries_max: 4, ..small() });
    rig.scheduler.unlead(PARTITION, T0);
    (1..=3).for_each(|n| rig.table.put(&row_of(n, u64::from(n), T0 - 100)));
    rig.scheduler.lead(PARTITION, T0);
    let flows = rig.scheduler.wants_pages(T0);
    assert_eq!((flows.len(), rig.scheduler.wants_pages(T0).len()), (1, 0));
    rig.scheduler.on_page_failed(PARTITION, flows[0].request_id);
    rig.discover();
    let wanted = rig.scheduler.wants_pages(T0);
    assert_eq!((wanted.len(), rig.scheduler.wants_pages(T0).len()), (3, 0));
    wanted.iter().for_each(|request| rig.scheduler.on_page_failed(PARTITION, request.request_id));
    assert_eq!(rig.scheduler.wants_pages(T0).len(), 3);
    let old = DuePage { entries: vec![row_of(2, 2, T0)], next_due_ms: None };
    rig.scheduler.on_page(PARTITION, wanted[1].request_id, Page::Rows(old));
    assert!(rig.begin().is_empty());
}

#[test]
fn pages_in_flight_are_bounded_and_every_window_gets_its_turn() {
    let config = SchedulerConfig { pages_in_flight_max: 3, ..small() };
    let mut rig = Rig::new(config);
    for priority in 1..=4 {
        for practice_no in 1..=5 {
            let n = u64::from(priority) * 10 + u64::from(practice_no);
            rig.table.put(&DueEntry { priority, ..row_of(practice_no, n, T0) });
        }
    }
    rig.scheduler.lead(PARTITION, T0);
    (0..7).for_each(|_| rig.discover());
    let mut asked = std::collections::BTreeSet::new();
    for _ in 0..7 {
        let wanted = rig.scheduler.wants_pages(T0);
        assert!(wanted.len() <= 3);
        for request in wanted {
            let Wanted::Rows { priority, flow, .. } = request.wanted else { panic!("{request:?}") };
            asked.insert((priority, flow));
            // Always more to come: the busy windows must not shut the others out.
            rig.scheduler.on_page_failed(request.partition, request.request_id);
        }
    }
    assert_eq!(asked.len(), 20);
}

#[test]
fn a_message_moved_to_later_is_due_later_only() {
    let mut rig = Rig::new(small());
    let entry = row(1, T0 - 5);
    rig.due(&entry);
    rig.gone(&entry);
    rig.due(&row(1, T0 + 1_000));
    assert!(rig.begin().is_empty());
    // Moved without a word about the old row, beyond the window: the old row must not survive.
    let far = row(1, T0 + 100_000);
    rig.table = TableD::default();
    rig.table.put(&far);
    rig.scheduler.on_change(PARTITION, &ScheduleChange::Due(far.clone()));
    assert!(rig.at(T0 + 2_000).begin().is_empty());
    rig.at(T0 + 100_000).fill();
    assert_eq!(rig.begin(), [1]);
}

#[test]
fn impossible_settings_are_refused_by_name() {
    let config = SchedulerConfig { page_entries_max: 0, ..SchedulerConfig::default() };
    let error = carillon_delivery::Scheduler::new(config).unwrap_err();
    assert_eq!(error.to_string(), "scheduler setting page_entries_max must be at least 1");
}
