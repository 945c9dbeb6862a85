//! The scheduler against a naive model of table D: random changes, cancels, moves, pages read early and
//! delivered late, proposals committed, refused and dropped, pauses, failovers, time. Nothing early, nothing
//! twice, nothing lost, memory bounded; and at the end the wake-up times alone bring everything to its end.
mod common;

use carillon_core::{DueEntry, ScheduleChange};
use carillon_delivery::{BeginDecision, BeginResult, Page, PageRequest, Scheduler, SchedulerConfig};
use carillon_proto::MessageId;
use common::{PARTITION, T0, TableD, gone, lane, number, row};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

const LANES: [u32; 3] = [7, 8, 9];
/// Of each priority.
const FLOWS: usize = 5;

/// One random step; the numbers choose among what there is.
type Step = (u8, u16, u16);

/// What the apply thread tells the scheduler, in apply order.
enum News {
    Change(ScheduleChange),
    Result(MessageId, BeginResult),
}

struct World {
    scheduler: Scheduler,
    rows_max: usize,
    now_ms: u64,
    table: TableD,
    /// Messages that wait, as table D has them.
    waiting: BTreeMap<u64, DueEntry>,
    news: VecDeque<News>,
    proposals: Vec<BeginDecision>,
    expiries: Vec<MessageId>,
    /// Committed attempts whose permit has reached the sender.
    sending: Vec<DueEntry>,
    pages: Vec<(PageRequest, Option<Page>)>,
    committed: BTreeSet<(MessageId, u32)>,
    /// Committed, with the row of then.
    in_flight: BTreeMap<MessageId, DueEntry>,
    made: u64,
    ended: u64,
}

impl World {
    fn new(rows_max: usize, page: usize) -> Self {
        let config = SchedulerConfig {
            horizon_ms: 1_000,
            window_entries_max: rows_max,
            page_entries_max: page,
            pages_in_flight_max: 3,
            ageing_ms: 400,
            reoffer_ms: 50,
            expire_retry_ms: 300,
            expire_max: 3,
            ..SchedulerConfig::default()
        };
        let mut scheduler = Scheduler::new(config).unwrap();
        LANES.iter().for_each(|no| scheduler.set_lane(lane(*no, 100, 4)));
        scheduler.lead(PARTITION, T0);
        Self {
            scheduler,
            rows_max,
            now_ms: T0,
            table: TableD::default(),
            waiting: BTreeMap::new(),
            news: VecDeque::new(),
            proposals: Vec::new(),
            expiries: Vec::new(),
            sending: Vec::new(),
            pages: Vec::new(),
            committed: BTreeSet::new(),
            in_flight: BTreeMap::new(),
            made: 0,
            ended: 0,
        }
    }

    fn mono(&self) -> Duration {
        Duration::from_millis(self.now_ms - T0)
    }

    fn put(&mut self, entry: DueEntry) {
        self.table.put(&entry);
        self.news.push_back(News::Change(ScheduleChange::Due(entry.clone())));
        self.waiting.insert(number(entry.message_id), entry);
    }

    fn take(&mut self, n: u64) -> Option<DueEntry> {
        let entry = self.waiting.remove(&n)?;
        assert!(self.table.remove(&entry));
        self.news.push_back(News::Change(gone(&entry)));
        Some(entry)
    }

    fn any_waiting(&self, pick: u16) -> Option<u64> {
        let at = usize::from(pick) % self.waiting.len().max(1);
        self.waiting.keys().nth(at).copied()
    }

    fn step(&mut self, (kind, a, b): Step) {
        let (a64, b64) = (u64::from(a), u64::from(b));
        match kind % 16 {
            0..=2 => self.accept(a64, b64),
            3 => {
                if let Some(n) = self.any_waiting(a) {
                    self.take(n);
                    self.ended += 1;
                }
            }
            4 => {
                if let Some(entry) = self.any_waiting(a).and_then(|n| self.take(n)) {
                    let due_ms = self.now_ms.max(entry.due_ms) + b64 % 3 * 700;
                    self.put(DueEntry { due_ms, ..entry });
                }
            }
            5 | 6 => (0..=a % 4).for_each(|_| self.tell()),
            7 => self.now_ms += a64 % 400,
            8 => {
                for request in self.scheduler.wants_pages(self.now_ms) {
                    self.pages.push((request, None));
                }
            }
            9 => self.read_page(a),
            10 => self.deliver_page(a, b.is_multiple_of(8)),
            11 | 12 => {
                self.decide();
            }
            13 => self.resolve(a, b),
            14 => self.finish(a, b),
            _ => self.disturb(a, b),
        }
        let bound = 4 * self.rows_max.max(2 * FLOWS * LANES.len());
        assert!(self.scheduler.stats(self.now_ms, self.mono()).rows <= bound);
    }

    fn accept(&mut self, a: u64, b: u64) {
        self.made += 1;
        let due_ms = (T0 - 500).max(self.now_ms + b % 7 * (a % 500) - 300);
        let practice_no = 1 + (a / 4 % 5) as u32;
        self.put(DueEntry {
            practice_no,
            // Practice 5 is of before the flows.
            flow: practice_no % 5,
            priority: 1 + (a % 4) as u8,
            carrier_no: LANES[(b % 3) as usize],
            segments: 1 + (a % 3) as u32,
            expires_at_ms: due_ms + if a.is_multiple_of(5) { 600 } else { 3_600_000 },
            deadline_ms: if b.is_multiple_of(2) { due_ms + a } else { 0 },
            ..row(self.made, due_ms)
        });
    }

    fn tell(&mut self) {
        match self.news.pop_front() {
            Some(News::Change(change)) => self.scheduler.on_change(PARTITION, &change),
            Some(News::Result(id, result)) => {
                self.scheduler.on_begun(PARTITION, id, result);
                if result == BeginResult::Ok {
                    self.sending.extend(self.in_flight.get(&id).cloned());
                }
            }
            None => {}
        }
    }

    fn read_page(&mut self, pick: u16) {
        let at = usize::from(pick) % self.pages.len().max(1);
        if let Some((request, answer)) = self.pages.get_mut(at) {
            answer.get_or_insert_with(|| self.table.page(request));
        }
    }

    fn deliver_page(&mut self, pick: u16, fail: bool) {
        if self.pages.is_empty() {
            return;
        }
        let (request, answer) = self.pages.swap_remove(usize::from(pick) % self.pages.len());
        let page = answer.unwrap_or_else(|| self.table.page(&request));
        if fail {
            self.scheduler.on_page_failed(PARTITION, request.request_id);
        } else {
            self.scheduler.on_page(PARTITION, request.request_id, page);
        }
    }

    fn decide(&mut self) -> Option<u64> {
        let decision = self.scheduler.decide(self.now_ms, self.mono());
        for begin in decision.begin {
            assert!(begin.due_ms <= self.now_ms, "early");
            assert!(begin.expires_at_ms > self.now_ms, "expired");
            let twice = self.committed.contains(&(begin.message_id, begin.attempt_no))
                || self.proposals.iter().any(|p| p.message_id == begin.message_id);
            assert!(!twice, "message {} is chosen twice", number(begin.message_id));
            self.proposals.push(begin);
        }
        assert!(decision.expire.len() <= 3);
        self.expiries.extend(decision.expire.into_iter().map(|(_, id)| id));
        assert!(decision.next_wake_ms.is_none_or(|wake_ms| wake_ms > self.now_ms), "busy loop");
        decision.next_wake_ms
    }

    /// A proposal is applied, or dropped on the way.
    fn resolve(&mut self, a: u16, b: u16) {
        if let Some(id) = self.expiries.pop()
            && !b.is_multiple_of(4)
        {
            let n = number(id);
            if self.waiting.get(&n).is_some_and(|entry| entry.expires_at_ms <= self.now_ms) {
                self.take(n);
                self.ended += 1;
            }
        }
        if self.proposals.is_empty() {
            return;
        }
        let begin = self.proposals.swap_remove(usize::from(a) % self.proposals.len());
        if b.is_multiple_of(5) {
            self.scheduler.on_begun(PARTITION, begin.message_id, BeginResult::Refused);
            return;
        }
        let n = number(begin.message_id);
        let fits = |entry: &&DueEntry| {
            entry.attempt_no == begin.attempt_no
                && entry.due_ms <= self.now_ms
                && entry.expires_at_ms > self.now_ms
        };
        if self.waiting.get(&n).filter(fits).is_none() {
            self.news.push_back(News::Result(begin.message_id, BeginResult::Refused));
            return;
        }
        assert!(self.committed.insert((begin.message_id, begin.attempt_no)));
        if let Some(entry) = self.take(n) {
            self.in_flight.insert(begin.message_id, entry);
        }
        self.news.push_back(News::Result(begin.message_id, BeginResult::Ok));
    }

    /// An attempt ends; some messages wait again.
    fn finish(&mut self, a: u16, b: u16) {
        if self.sending.is_empty() {
            return;
        }
        let entry = self.sending.swap_remove(usize::from(a) % self.sending.len());
        self.in_flight.remove(&entry.message_id);
        if b.is_multiple_of(2) {
            self.scheduler.on_sent(PARTITION, entry.message_id);
        }
        self.scheduler.on_finished(PARTITION, entry.message_id);
        if entry.attempt_no < 3 && b.is_multiple_of(3) {
            let due_ms = self.now_ms + u64::from(b % 9) * 200;
            self.put(DueEntry { due_ms, attempt_no: entry.attempt_no + 1, ..entry });
        } else {
            self.ended += 1;
        }
    }

    fn disturb(&mut self, a: u16, b: u16) {
        let carrier_no = LANES[usize::from(a) % LANES.len()];
        match b % 6 {
            0 | 1 => {
                let until = self.mono() + Duration::from_millis(u64::from(a) % 900);
                self.scheduler.pause_lane(carrier_no, until);
                let practice_no = 1 + u32::from(a % 5);
                self.scheduler.pause_practice(carrier_no, practice_no, a.is_multiple_of(3));
                self.scheduler.set_weight(practice_no, u32::from(a % 7));
            }
            2 => self.scheduler.remove_lane(carrier_no),
            3 | 4 => self.scheduler.set_lane(lane(carrier_no, 1 + u32::from(a), 1 + u32::from(b % 5))),
            _ => {
                // Leadership is lost: what was proposed is refused first.
                for begin in std::mem::take(&mut self.proposals) {
                    self.scheduler.on_begun(PARTITION, begin.message_id, BeginResult::Refused);
                }
                while !self.news.is_empty() {
                    self.tell();
                }
                self.scheduler.unlead(PARTITION, self.now_ms);
                let stats = self.scheduler.stats(self.now_ms, self.mono());
                assert_eq!((stats.messages, stats.in_flight_attempts), (0, 0));
                if a.is_multiple_of(2) {
                    self.expiries.clear();
                }
                self.scheduler.lead(PARTITION, self.now_ms);
            }
        }
    }

    /// No more disturbance: everything is answered, and time moves only as the scheduler asks.
    fn settle(&mut self) {
        LANES.iter().for_each(|no| {
            self.scheduler.set_lane(lane(*no, 1_000, 100));
            self.scheduler.pause_lane(*no, Duration::ZERO);
            (1..=5).for_each(|practice_no| self.scheduler.pause_practice(*no, practice_no, false));
        });
        let end_ms = self.now_ms + 3_700_000;
        for turn in 0.. {
            assert!(turn < 20_000, "no end: {:?}", self.scheduler.stats(self.now_ms, self.mono()));
            while !(self.news.is_empty() && self.pages.is_empty()) {
                self.tell();
                self.deliver_page(0, false);
            }
            let wake_ms = self.decide();
            let idle = self.proposals.is_empty() && self.expiries.is_empty() && self.sending.is_empty();
            while !(self.proposals.is_empty() && self.expiries.is_empty()) {
                self.resolve(0, 1);
            }
            while !self.sending.is_empty() {
                self.finish(0, 1);
            }
            for request in self.scheduler.wants_pages(self.now_ms) {
                self.pages.push((request, None));
            }
            if idle && self.news.is_empty() && self.pages.is_empty() {
                if self.waiting.is_empty() {
                    break;
                }
                self.now_ms = wake_ms.expect("messages wait, so there is something to wake up for");
                assert!(self.now_ms < end_ms, "asleep while messages wait");
            }
        }
        assert_eq!(self.ended, self.made, "each message has ended, once");
        let stats = self.scheduler.stats(self.now_ms, self.mono());
        assert_eq!((stats.messages, stats.in_flight_attempts, stats.misfits_total), (0, 0, 0));
        assert!(stats.lanes.iter().all(|lane| lane.unsent_segments == 0));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_early_twice_or_lost(
        rows_max in 2usize..14,
        page in 1usize..5,
        steps in prop::collection::vec(any::<Step>(), 1..400),
    ) {
        let mut world = World::new(rows_max, page);
        steps.into_iter().for_each(|step| world.step(step));
        world.settle();
    }
}
