//! What a decision costs. The bound is wide, so that a busy machine does not fail it; the figure is printed.
mod common;

use carillon_core::query::DuePage;
use carillon_core::{DueEntry, ScheduleChange};
use carillon_delivery::{BeginResult, Page, Scheduler, SchedulerConfig, Wanted};
use carillon_proto::{MessageId, Slot};
use common::{T0, gone, lane};
use std::time::{Duration, Instant};

const PARTITIONS: u32 = 16;
const MESSAGES: u64 = 200_000;

/// Of 500; a few send most.
fn practice_of(random: u64) -> u32 {
    1 + ((random >> 8) % 500 * ((random >> 24) % 500) / 500) as u32
}

fn entry(n: u64) -> DueEntry {
    // Scattered ids, deadlines and priorities.
    let random = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let id = MessageId::new(T0, Slot::new((n % 4096) as u16).unwrap(), random);
    DueEntry {
        message_id: id,
        priority: 1 + (random >> 20) as u8 % 4,
        practice_no: practice_of(random),
        flow: practice_of(random),
        deadline_ms: T0 + 60_000 + (random >> 40) % 1_000_000,
        ..common::row(n, T0 + n / 20)
    }
}

#[test]
fn ten_thousand_decisions_a_second_cost_little() {
    let mut scheduler = Scheduler::new(SchedulerConfig::default()).unwrap();
    (1..=PARTITIONS).for_each(|partition| scheduler.lead(partition, T0));
    scheduler.set_lane(lane(common::CARRIER, 50_000, 10_000));
    let read_pages = |scheduler: &mut Scheduler, now_ms| {
        // Nothing is in table D that was not told.
        for page in scheduler.wants_pages(now_ms) {
            let empty = match page.wanted {
                Wanted::Flows { .. } => Page::Flows(Vec::new()),
                Wanted::Rows { .. } => Page::Rows(DuePage::default()),
            };
            scheduler.on_page(page.partition, page.request_id, empty);
        }
    };
    (0..PARTITIONS).for_each(|_| read_pages(&mut scheduler, T0));
    let entries: Vec<DueEntry> = (0..MESSAGES).map(entry).collect();
    let start = Instant::now();
    let (mut fed, mut chosen) = (0, 0);
    let mut now_ms = T0;
    // Twenty messages arrive and become due each millisecond; the whole life of a message is measured.
    while chosen < MESSAGES {
        now_ms += 1;
        let mono = Duration::from_millis(now_ms - T0);
        while fed < MESSAGES && fed < (now_ms - T0) * 20 {
            let entry = &entries[fed as usize];
            scheduler.on_change(1 + (fed as u32) % PARTITIONS, &ScheduleChange::Due(entry.clone()));
            fed += 1;
        }
        read_pages(&mut scheduler, now_ms);
        let decision = scheduler.decide(now_ms, mono);
        for begin in decision.begin {
            chosen += 1;
            let change = gone(&DueEntry {
                message_id: begin.message_id,
                priority: begin.priority,
                flow: begin.practice_no,
                ..common::row(0, begin.due_ms)
            });
            scheduler.on_change(begin.partition, &change);
            scheduler.on_begun(begin.partition, begin.message_id, BeginResult::Ok);
            scheduler.on_sent(begin.partition, begin.message_id);
            scheduler.on_finished(begin.partition, begin.message_id);
        }
        assert!(now_ms < T0 + 60_000, "{chosen} of {MESSAGES} chosen");
    }
    let each_ns = start.elapsed().as_nanos() as u64 / MESSAGES;
    let core = each_ns as f64 * 10_000.0 / 1e9 * 100.0;
    println!("{each_ns} ns/decision: 10,000 decisions/s cost {core:.1} % of a core");
    assert!(each_ns < 10_000, "{each_ns} ns/decision");
    assert_eq!(scheduler.stats(now_ms, Duration::ZERO).messages, 0);
}

#[test]
fn the_gate_is_cheap_at_50_000_segments_a_second() {
    let share = std::num::NonZeroU32::new(50_000).unwrap();
    let mut gate = carillon_delivery::LaneGate::new(share, Default::default(), Duration::ZERO);
    let start = Instant::now();
    let mut permits = 0u64;
    for ms in 0..20_000u64 {
        while gate.try_acquire(Duration::from_millis(ms)).is_ok() {
            permits += 1;
        }
    }
    let each_ns = start.elapsed().as_nanos() as u64 / permits;
    println!("{each_ns} ns/permit, {permits} permits in 20 s");
    assert!(each_ns < 2_000 && permits > 950_000);
}
