//! What the suites share: short makers of rows and a driver that answers pages from a naive table D.
#![allow(dead_code)]
use carillon_core::query::{DueFlow, DuePage};
use carillon_core::{DueEntry, ScheduleChange};
use carillon_delivery::{
    BeginDecision, Decision, LaneConfig, Page, PageRequest, Scheduler, SchedulerConfig, Wanted,
};
use carillon_proto::{MessageId, Slot};
use std::collections::BTreeMap;
use std::time::Duration;

pub const PARTITION: u32 = 1;
pub const CARRIER: u32 = 7;
/// A time of day far from 0, so that subtractions show their sign.
pub const T0: u64 = 1_793_000_000_000;

pub fn id(n: u64) -> MessageId {
    MessageId::new(T0, Slot::new(9).unwrap(), n)
}

/// A normal message that is due at `due_ms` and expires an hour later.
pub fn row(n: u64, due_ms: u64) -> DueEntry {
    DueEntry {
        message_id: id(n),
        priority: 3,
        flow: 1,
        due_ms,
        practice_no: 1,
        class: 2,
        segments: 1,
        expires_at_ms: due_ms + 3_600_000,
        deadline_ms: 0,
        carrier_no: CARRIER,
        attempt_no: 1,
        open_until_ms: 0,
        hours_stamp: 0,
        sender_no: 0,
    }
}

/// A message of another practice.
pub fn row_of(practice_no: u32, n: u64, due_ms: u64) -> DueEntry {
    DueEntry { practice_no, flow: practice_no, ..row(n, due_ms) }
}

pub fn gone(entry: &DueEntry) -> ScheduleChange {
    let DueEntry { message_id, priority, flow, due_ms, .. } = *entry;
    ScheduleChange::Gone { message_id, priority, flow, due_ms }
}

pub fn lane(carrier_no: u32, share: u32, in_flight_max: u32) -> LaneConfig {
    LaneConfig { carrier_no, share_segments_per_second: share, in_flight_max }
}

/// Table D of one partition, as simple as can be.
#[derive(Debug, Default, Clone)]
pub struct TableD {
    rows: BTreeMap<(u8, u32, u64, MessageId), DueEntry>,
}

impl TableD {
    pub fn put(&mut self, entry: &DueEntry) {
        self.rows.insert((entry.priority, entry.flow, entry.due_ms, entry.message_id), entry.clone());
    }

    pub fn remove(&mut self, entry: &DueEntry) -> bool {
        self.rows.remove(&(entry.priority, entry.flow, entry.due_ms, entry.message_id)).is_some()
    }

    pub fn values(&self) -> impl Iterator<Item = &DueEntry> {
        self.rows.values()
    }

    pub fn page(&self, request: &PageRequest) -> Page {
        match request.wanted {
            Wanted::Flows { after, limit } => {
                let mut flows: Vec<DueFlow> = Vec::new();
                for e in self.rows.values().filter(|e| after.is_none_or(|after| (e.priority, e.flow) > after))
                {
                    if flows.last().is_none_or(|last| (last.priority, last.flow) != (e.priority, e.flow)) {
                        flows.push(DueFlow { priority: e.priority, flow: e.flow, due_ms: e.due_ms });
                    }
                }
                flows.truncate(limit);
                Page::Flows(flows)
            }
            Wanted::Rows { priority, flow, after, until_ms, limit } => {
                let after = |e: &DueEntry| after.is_none_or(|after| (e.due_ms, e.message_id) > after);
                let wanted = |e: &&DueEntry| (e.priority, e.flow) == (priority, flow) && after(e);
                let mut rows = self.rows.values().filter(wanted).cloned().peekable();
                let mut page = DuePage::default();
                while let Some(e) = rows.next_if(|e| e.due_ms <= until_ms && page.entries.len() < limit) {
                    page.entries.push(e);
                }
                page.next_due_ms = rows.next().map(|e| e.due_ms);
                Page::Rows(page)
            }
        }
    }
}

/// A scheduler with a table D whose pages are answered at once.
pub struct Rig {
    pub scheduler: Scheduler,
    pub table: TableD,
    pub now_ms: u64,
    pub pages_read: usize,
}

impl Rig {
    /// One partition is led and one wide lane is set.
    pub fn new(config: SchedulerConfig) -> Self {
        let mut scheduler = Scheduler::new(config).unwrap();
        scheduler.set_lane(lane(CARRIER, 1_000_000, 1_000_000));
        scheduler.lead(PARTITION, T0);
        let mut rig = Self { scheduler, table: TableD::default(), now_ms: T0, pages_read: 0 };
        rig.fill();
        rig
    }

    pub fn mono(&self) -> Duration {
        Duration::from_millis(self.now_ms - T0 + 50)
    }

    /// Answers pages until none is wanted; fails if there is no end.
    pub fn fill(&mut self) {
        for _ in 0..10_000 {
            let wanted = self.scheduler.wants_pages(self.now_ms);
            if wanted.is_empty() {
                return;
            }
            for request in wanted {
                let page = self.table.page(&request);
                self.pages_read += 1;
                self.scheduler.on_page(request.partition, request.request_id, page);
            }
        }
        panic!("the scheduler asks for pages without end");
    }

    /// Lets the scheduler learn which flows there are, and reads no rows.
    pub fn discover(&mut self) {
        for request in self.scheduler.wants_pages(self.now_ms) {
            match request.wanted {
                Wanted::Flows { .. } => {
                    let page = self.table.page(&request);
                    self.scheduler.on_page(request.partition, request.request_id, page);
                }
                Wanted::Rows { .. } => {
                    self.scheduler.on_page_failed(request.partition, request.request_id);
                }
            }
        }
    }

    pub fn due(&mut self, entry: &DueEntry) {
        self.table.put(entry);
        self.scheduler.on_change(PARTITION, &ScheduleChange::Due(entry.clone()));
    }

    pub fn gone(&mut self, entry: &DueEntry) {
        self.table.remove(entry);
        self.scheduler.on_change(PARTITION, &gone(entry));
    }

    /// Decides, and checks what holds for every decision.
    pub fn decide(&mut self) -> Decision {
        let decision = self.scheduler.decide(self.now_ms, self.mono());
        assert!(decision.next_wake_ms.is_none_or(|wake_ms| wake_ms > self.now_ms), "busy loop");
        for begin in &decision.begin {
            assert!(begin.due_ms <= self.now_ms && begin.expires_at_ms > self.now_ms);
        }
        decision
    }

    /// Decides and says which messages begin, by number.
    pub fn begin(&mut self) -> Vec<u64> {
        numbers(&self.decide().begin)
    }

    pub fn at(&mut self, now_ms: u64) -> &mut Self {
        self.now_ms = now_ms;
        self
    }
}

pub fn numbers(begin: &[BeginDecision]) -> Vec<u64> {
    begin.iter().map(|begin| number(begin.message_id)).collect()
}

pub fn number(id: MessageId) -> u64 {
    u64::from_be_bytes(id.as_bytes()[8..].try_into().unwrap())
}
