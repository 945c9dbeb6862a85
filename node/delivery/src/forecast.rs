//! What a lane will do: when its messages leave, when its backlog ends, which of them are too late, when a daily cap is hit.
//!
//! The lane is run ahead in thought: messages in the order of the scheduler (it is the scheduler's own: priorities with the share of
//! aged ones, fair shares between practices, deadlines inside a practice), each taking its segments out of the lane's rate, none
//! before it is due, none while the lane is closed. What is not known cannot be foreseen: messages that are not accepted yet, retries, a carrier that slows down.
//!
//! Pure: time is an argument. Bounded by the rows that the caller gives; the work is n log n.
use crate::lane::Lane;
use crate::types::{SchedulerConfig, level_of};
use carillon_proto::MessageId;
use std::collections::BTreeSet;

/// A message that waits, as far as a forecast needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiting {
    pub message_id: MessageId,
    pub practice_no: u32,
    /// Of the practice among the others; at least 1.
    pub weight: u32,
    /// 1 passes first, 4 last.
    pub priority: u8,
    pub due_ms: u64,
    pub expires_at_ms: u64,
    /// 0 = none.
    pub deadline_ms: u64,
    pub segments: u32,
}

/// What the lane can do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Capacity {
    /// 0 = nothing leaves.
    pub segments_per_second: u32,
    /// Nothing leaves before this: a pause, an open breaker. 0 = open.
    pub closed_until_ms: u64,
    /// A priority with a message that was due for longer gets a part of the lane; 0 = never.
    pub ageing_ms: u64,
    pub daily: Option<DailyCap>,
}

/// A cap that is counted from one reset to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DailyCap {
    /// Segments that may still leave before the reset.
    pub left: u64,
    pub resets_at_ms: u64,
    /// Segments of a whole period.
    pub limit: u64,
    pub period_ms: u64,
}

/// When a message leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Departure {
    pub message_id: MessageId,
    /// How many leave before it.
    pub position: u64,
    /// `None`: it expires before its turn comes, or nothing ever leaves.
    pub at_ms: Option<u64>,
    /// It leaves after its deadline, or never.
    pub late: bool,
}

/// What a lane will do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Forecast {
    /// In the order in which they leave; those that never do where they are given up.
    pub departures: Vec<Departure>,
    /// Messages that are due now, and their segments.
    pub due_messages: u64,
    pub due_segments: u64,
    /// When nothing that is due waits any more for the first time; `None`: not with these messages and this capacity.
    pub backlog_ends_ms: Option<u64>,
    /// When the last known message has left.
    pub all_sent_ms: Option<u64>,
    /// When the daily cap is first used up.
    pub cap_reached_ms: Option<u64>,
    pub late: u64,
    pub expired: u64,
}

/// Time in microseconds, so that fast lanes do not lose their rate to rounding.
const US: u64 = 1_000;

struct Run {
    capacity: Capacity,
    /// When the lane can take the next segment.
    free_us: u64,
    cap: Option<DailyCap>,
    sent: u64,
    forecast: Forecast,
}

/// Runs the lane ahead from `now_ms`.
pub fn forecast(mut rows: Vec<Waiting>, capacity: Capacity, now_ms: u64) -> Forecast {
    rows.sort_unstable_by_key(|row| (row.due_ms.max(now_ms), row.message_id));
    let due: Vec<&Waiting> = rows.iter().filter(|row| row.due_ms <= now_ms).collect();
    let mut run = Run {
        capacity,
        free_us: now_ms.max(capacity.closed_until_ms) * US,
        cap: capacity.daily,
        sent: 0,
        forecast: Forecast {
            due_messages: due.len() as u64,
            due_segments: due.iter().map(|row| u64::from(row.segments.max(1))).sum(),
            ..Forecast::default()
        },
    };
    if due.is_empty() {
        run.forecast.backlog_ends_ms = Some(now_ms);
    }
    let (mut arrivals, mut ready) =
        (rows.iter().enumerate().peekable(), Ready::new(&rows, capacity.ageing_ms));
    loop {
        let at_ms = run.free_us / US;
        while let Some((no, _)) = arrivals.next_if(|(_, row)| row.due_ms <= at_ms) {
            ready.join(no, at_ms);
        }
        match ready.next(at_ms) {
            Some(row) => run.leave(row),
            None => {
                let Some((_, next)) = arrivals.peek() else { break };
                run.free_us = run.free_us.max(next.due_ms * US);
            }
        }
        if !ready.lane.has_ready() && run.forecast.backlog_ends_ms.is_none() {
            let at_ms = run.free_us.div_ceil(US);
            let caught_up = arrivals.peek().is_none_or(|(_, row)| row.due_ms > at_ms);
            run.forecast.backlog_ends_ms = (caught_up && run.possible()).then_some(at_ms);
        }
    }
    let departures = &run.forecast.departures;
    run.forecast.all_sent_ms = departures.iter().rev().find_map(|d| d.at_ms);
    run.forecast
}

/// The scheduler's lane, with the rows by their index.
struct Ready<'a> {
    rows: &'a [Waiting],
    lane: Lane,
    /// When which row has waited for too long.
    ageing: BTreeSet<(u64, usize)>,
    aged: Vec<bool>,
    ageing_ms: u64,
    urgent_ms: u64,
}

impl<'a> Ready<'a> {
    fn new(rows: &'a [Waiting], ageing_ms: u64) -> Self {
        let urgent_ms = SchedulerConfig::default().urgent_ms;
        let (ageing, aged) = (BTreeSet::new(), vec![false; rows.len()]);
        Self { rows, lane: Lane::default(), ageing, aged, ageing_ms, urgent_ms }
    }

    fn place(row: &Waiting) -> (usize, (u64, MessageId)) {
        let useful_until_ms = if row.deadline_ms > 0 { row.deadline_ms } else { row.expires_at_ms };
        // A priority that does not exist is no reason to leave a message out of a forecast.
        (level_of(row.priority).unwrap_or(3), (useful_until_ms, row.message_id))
    }

    fn push(&mut self, no: usize) {
        let row = &self.rows[no];
        let (level, key) = Self::place(row);
        let cell = u32::try_from(no).unwrap_or(u32::MAX);
        self.lane.push(level, (row.practice_no, 0), key, cell, self.aged[no]);
    }

    fn join(&mut self, no: usize, at_ms: u64) {
        let aged_ms = self.rows[no].due_ms.saturating_add(self.ageing_ms);
        if self.ageing_ms > 0 {
            self.aged[no] = aged_ms <= at_ms;
            if !self.aged[no] {
                self.ageing.insert((aged_ms, no));
            }
        }
        self.push(no);
    }

    /// The message that leaves at this time.
    fn next(&mut self, at_ms: u64) -> Option<&'a Waiting> {
        while let Some(&(_, no)) = self.ageing.first().filter(|(aged_ms, _)| *aged_ms <= at_ms) {
            self.ageing.pop_first();
            let (level, key) = Self::place(&self.rows[no]);
            self.lane.remove(level, (self.rows[no].practice_no, 0), &key, false);
            self.aged[no] = true;
            self.push(no);
        }
        let next = self.lane.first(at_ms.saturating_add(self.urgent_ms))?;
        let no = next.no as usize;
        let row = &self.rows[no];
        self.lane.take(&next, self.aged[no], row.segments.max(1), row.weight.max(1));
        self.ageing.remove(&(row.due_ms.saturating_add(self.ageing_ms), no));
        Some(row)
    }
}

impl Run {
    fn possible(&self) -> bool {
        self.capacity.segments_per_second > 0
    }

    fn leave(&mut self, row: &Waiting) {
        let segments = u64::from(row.segments.max(1));
        let at_ms = self.possible().then(|| self.slot(segments)).flatten();
        let at_ms = at_ms.filter(|at| *at < row.expires_at_ms);
        let position = self.sent;
        if at_ms.is_some() {
            let rate = u64::from(self.capacity.segments_per_second);
            self.sent += 1;
            self.free_us += segments * 1_000_000 / rate;
            if let Some(cap) = &mut self.cap {
                cap.left = cap.left.saturating_sub(segments);
            }
        } else {
            self.forecast.expired += 1;
        }
        let late = at_ms.is_none_or(|at| row.deadline_ms > 0 && at > row.deadline_ms);
        self.forecast.late += u64::from(late);
        self.forecast.departures.push(Departure { message_id: row.message_id, position, at_ms, late });
    }

    /// When so many segments can leave: the cap may put it off to a later period.
    fn slot(&mut self, segments: u64) -> Option<u64> {
        let Some(cap) = &mut self.cap else { return Some(self.free_us / US) };
        while self.free_us >= cap.resets_at_ms * US || cap.left < segments.min(cap.limit) {
            if self.free_us < cap.resets_at_ms * US {
                let hit_ms = self.free_us / US;
                self.forecast.cap_reached_ms.get_or_insert(hit_ms);
                self.free_us = cap.resets_at_ms * US;
            }
            if cap.period_ms == 0 || cap.limit == 0 {
                return None;
            }
            let passed = (self.free_us / US - cap.resets_at_ms) / cap.period_ms + 1;
            cap.resets_at_ms += passed * cap.period_ms;
            cap.left = cap.limit;
        }
        Some(self.free_us / US)
    }
}
