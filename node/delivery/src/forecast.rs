//! What a lane will do: when its messages leave, when its backlog ends, which of them are too late, when a daily cap is hit.
//!
//! The lane is run ahead in thought: messages in the order of the scheduler (priority, raised by ageing, then the earliest useful
//! deadline, then due time, then id), each taking its segments out of the lane's rate, none before it is due, none while the
//! lane is closed. What is not known cannot be foreseen: messages that are not accepted yet, retries, a carrier that slows down.
//!
//! Pure: time is an argument. Bounded by the rows that the caller gives; the work is n log n.
use carillon_proto::MessageId;
use std::collections::{BTreeMap, BTreeSet};

/// A message that waits, as far as a forecast needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiting {
    pub message_id: MessageId,
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
    /// The scheduler raises a message by one priority after it was due for so long.
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

/// Order of the scheduler inside a lane.
type Key = (u8, u64, u64, MessageId);

fn key(row: &Waiting, level: u8) -> Key {
    let useful_until_ms = if row.deadline_ms > 0 { row.deadline_ms } else { row.expires_at_ms };
    (level, useful_until_ms, row.due_ms, row.message_id)
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
    let (mut arrivals, mut ready, mut ageing) = (rows.iter().peekable(), BTreeMap::new(), BTreeSet::new());
    loop {
        let at_ms = run.free_us / US;
        while let Some(row) = arrivals.next_if(|row| row.due_ms <= at_ms) {
            join(row, at_ms, capacity.ageing_ms, &mut ready, &mut ageing);
        }
        while let Some(&(_, old)) = ageing.first().filter(|(aged_ms, _)| *aged_ms <= at_ms) {
            ageing.pop_first();
            if let Some(row) = ready.remove(&old) {
                ready.insert((old.0 - 1, old.1, old.2, old.3), row);
            }
        }
        match ready.pop_first() {
            Some((_, row)) => run.leave(row),
            None => {
                let Some(next) = arrivals.peek() else { break };
                run.free_us = run.free_us.max(next.due_ms * US);
            }
        }
        if ready.is_empty() && run.forecast.backlog_ends_ms.is_none() {
            let at_ms = run.free_us.div_ceil(US);
            let caught_up = arrivals.peek().is_none_or(|row| row.due_ms > at_ms);
            run.forecast.backlog_ends_ms = (caught_up && run.possible()).then_some(at_ms);
        }
    }
    let departures = &run.forecast.departures;
    run.forecast.all_sent_ms = departures.iter().rev().find_map(|d| d.at_ms);
    run.forecast
}

fn join<'a>(
    row: &'a Waiting,
    at_ms: u64,
    ageing_ms: u64,
    ready: &mut BTreeMap<Key, &'a Waiting>,
    ageing: &mut BTreeSet<(u64, Key)>,
) {
    let aged_ms = row.due_ms.saturating_add(ageing_ms);
    let may_age = row.priority > 1 && ageing_ms > 0;
    let level = if may_age && aged_ms <= at_ms { row.priority - 1 } else { row.priority };
    let key = key(row, level);
    if may_age && level == row.priority {
        ageing.insert((aged_ms, key));
    }
    ready.insert(key, row);
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
