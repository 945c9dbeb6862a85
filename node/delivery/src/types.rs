//! What goes into the scheduler and what comes out. Plain data.
use crate::fair::ReadyKey;
use carillon_core::DueEntry;
use carillon_core::query::{DueFlow, DuePage};
use carillon_proto::MessageId;
use std::time::Duration;

/// The priorities of table D, most urgent first.
pub const PRIORITIES: [u8; 4] = [1, 2, 3, 4];

/// Bounds and times of the scheduler.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SchedulerConfig {
    /// How far ahead of its due time a message may be held in memory.
    pub horizon_ms: u64,
    /// Rows held for one (partition, priority), at most.
    pub window_entries_max: usize,
    /// Rows asked for with one page, at most.
    pub page_entries_max: usize,
    /// Pages being read at one moment, at most.
    pub pages_in_flight_max: usize,
    /// A priority with a message that has been due for longer gets a part of the lane, whatever is more urgent.
    pub ageing_ms: u64,
    /// A message that is useful for no longer than this goes before its practice's turn, within bounds.
    pub urgent_ms: u64,
    /// Segments begun but not sent on a lane: what the lane's share sends in this time, ...
    pub prefetch_ms: u64,
    /// ... but at least this many, ...
    pub prefetch_segments_min: u32,
    /// ... and at most this many attempts: the bound on unknown outcomes after a crash.
    pub prefetch_attempts_max: u32,
    /// A refused message that still waits is offered again after this time.
    pub reoffer_ms: u64,
    /// An expiry that did not come back as a change is decided again after this time.
    pub expire_retry_ms: u64,
    /// Expiries of one decision, at most.
    pub expire_max: usize,
    /// Messages of one decision whose hours are to be computed anew, at most.
    pub closed_max: usize,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        Self {
            horizon_ms: 5_000,
            window_entries_max: 8_192,
            page_entries_max: 2_048,
            pages_in_flight_max: 16,
            ageing_ms: 300_000,
            urgent_ms: 60_000,
            prefetch_ms: 100,
            prefetch_segments_min: 8,
            prefetch_attempts_max: 1_024,
            reoffer_ms: 100,
            expire_retry_ms: 5_000,
            expire_max: 512,
            closed_max: 512,
        }
    }
}

/// A setting with which the scheduler would stand still.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("scheduler setting {name} must be at least {min}")]
pub struct ConfigError {
    pub name: &'static str,
    pub min: u64,
}

impl SchedulerConfig {
    pub fn validate(&self) -> Result<(), ConfigError> {
        let at_least =
            |name, value: u64, min| if value < min { Err(ConfigError { name, min }) } else { Ok(()) };
        at_least("horizon_ms", self.horizon_ms, 2)?;
        at_least("window_entries_max", self.window_entries_max as u64, 2)?;
        at_least("page_entries_max", self.page_entries_max as u64, 1)?;
        at_least("pages_in_flight_max", self.pages_in_flight_max as u64, 1)?;
        at_least("ageing_ms", self.ageing_ms, 1)?;
        at_least("prefetch_segments_min", u64::from(self.prefetch_segments_min), 1)?;
        at_least("prefetch_attempts_max", u64::from(self.prefetch_attempts_max), 1)?;
        at_least("reoffer_ms", self.reoffer_ms, 1)?;
        at_least("expire_retry_ms", self.expire_retry_ms, 1)?;
        at_least("expire_max", self.expire_max as u64, 1)?;
        at_least("closed_max", self.closed_max as u64, 1)
    }
}

/// A lane as this node sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaneConfig {
    pub carrier_no: u32,
    /// This node's share of the lane's limit.
    pub share_segments_per_second: u32,
    /// Attempts begun and without an outcome, at most: the capacity of the connector.
    pub in_flight_max: u32,
}

/// Rows of table D that the scheduler wants. Read them with [`crate::read_page`] and answer with
/// [`crate::Scheduler::on_page`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageRequest {
    pub partition: u32,
    pub request_id: u64,
    pub wanted: Wanted,
}

/// What to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// The flows that have rows, after this one, at most `limit`.
    Flows { after: Option<(u8, u32)>, limit: usize },
    /// Of one flow, after position `after` (exclusive; `None` = from the start), due before or at `until_ms`, in order, at
    /// most `limit`.
    Rows { priority: u8, flow: u32, after: Option<(u64, MessageId)>, until_ms: u64, limit: usize },
}

/// What was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Page {
    Flows(Vec<DueFlow>),
    Rows(DuePage),
}

/// Begin this attempt: propose it, and answer with [`crate::Scheduler::on_begun`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BeginDecision {
    pub partition: u32,
    pub message_id: MessageId,
    pub attempt_no: u32,
    pub carrier_no: u32,
    /// 0 = the account's own.
    pub sender_no: u32,
    pub practice_no: u32,
    pub class: i32,
    pub priority: u8,
    pub segments: u32,
    pub due_ms: u64,
    pub expires_at_ms: u64,
    pub deadline_ms: u64,
}

/// What to do now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Decision {
    pub begin: Vec<BeginDecision>,
    /// Propose the expiry of these. They come back as changes; if not, they are decided again.
    pub expire: Vec<(u32, MessageId)>,
    /// Compute the hours of these anew and propose them: their window is over, or was computed by other rules. They come back as
    /// changes; if not, they are decided again.
    pub closed: Vec<(u32, MessageId)>,
    /// Decide again at this time of the wall clock at the latest; always later than now. Inputs ask for a
    /// decision of their own. `None` = only inputs can bring news.
    pub next_wake_ms: Option<u64>,
}

/// What became of a proposed attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BeginResult {
    /// It is committed: the permit was handed to the sender.
    Ok,
    /// It was refused, or the proposal was dropped. If the message still waits it is offered again.
    Refused,
}

/// One row of table D in memory.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub due_ms: u64,
    pub expires_at_ms: u64,
    pub deadline_ms: u64,
    pub practice_no: u32,
    pub carrier_no: u32,
    pub sender_no: u32,
    pub class: i32,
    pub segments: u32,
    pub attempt_no: u32,
    pub open_until_ms: u64,
    pub hours_stamp: u32,
    pub priority: u8,
    pub flow: u32,
    pub stage: Stage,
    /// When the scheduler looks at the row again; it is in the timers under this time.
    pub timer_ms: Option<u64>,
}

/// Where a row stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Not due yet, or offered again later.
    Waiting,
    /// Due, among the ready messages of its lane.
    Ready {
        /// It has waited for too long.
        aged: bool,
    },
    /// Its expiry was decided, or new hours for it.
    Expiring,
    /// An attempt of the message is not resolved.
    Held,
}

impl Row {
    pub fn new(entry: &DueEntry) -> Self {
        Self {
            due_ms: entry.due_ms,
            expires_at_ms: entry.expires_at_ms,
            deadline_ms: entry.deadline_ms,
            practice_no: entry.practice_no,
            carrier_no: entry.carrier_no,
            sender_no: entry.sender_no,
            class: entry.class,
            segments: entry.segments,
            attempt_no: entry.attempt_no,
            open_until_ms: entry.open_until_ms,
            hours_stamp: entry.hours_stamp,
            priority: entry.priority,
            flow: entry.flow,
            stage: Stage::Held,
            timer_ms: None,
        }
    }

    /// True if `entry` says what the row says.
    pub fn equals(&self, entry: &DueEntry) -> bool {
        let DueEntry {
            message_id: _,
            priority,
            flow,
            due_ms,
            practice_no,
            class,
            segments,
            expires_at_ms,
            deadline_ms,
            carrier_no,
            attempt_no,
            open_until_ms,
            hours_stamp,
            sender_no,
        } = *entry;
        (self.priority, self.flow, self.due_ms, self.practice_no, self.class, self.segments)
            == (priority, flow, due_ms, practice_no, class, segments)
            && (self.expires_at_ms, self.deadline_ms, self.carrier_no, self.attempt_no)
                == (expires_at_ms, deadline_ms, carrier_no, attempt_no)
            && (self.open_until_ms, self.hours_stamp, self.sender_no)
                == (open_until_ms, hours_stamp, sender_no)
    }

    /// May it not be handed over now? `stamp` = of the rules in force, 0 = none are.
    pub fn is_closed(&self, stamp: u32, now_ms: u64) -> bool {
        let over = self.open_until_ms > 0 && self.open_until_ms <= now_ms;
        stamp != 0 && (self.hours_stamp != stamp || over)
    }

    /// Its place among the ready messages of its practice.
    pub fn ready_key(&self, id: MessageId) -> ReadyKey {
        (self.useful_until_ms(), id)
    }

    /// The last moment at which sending is useful.
    pub fn useful_until_ms(&self) -> u64 {
        if self.deadline_ms > 0 { self.deadline_ms } else { self.expires_at_ms }
    }
}

/// An attempt that was chosen and is not resolved.
#[derive(Debug, Clone)]
pub(crate) struct Attempt {
    pub carrier_no: u32,
    pub sender_no: u32,
    pub practice_no: u32,
    pub segments: u32,
    /// The row that it was chosen for, ...
    pub due_ms: u64,
    pub priority: u8,
    pub flow: u32,
    /// ... and whether that row is known to have left table D.
    pub row_gone: bool,
    pub sent: bool,
}

/// Level of a priority: its index in [`PRIORITIES`].
pub(crate) fn level_of(priority: u8) -> Option<usize> {
    PRIORITIES.iter().position(|p| *p == priority)
}

/// Milliseconds until a moment of the monotonic clock, rounded up.
pub(crate) fn ms_until(until: Duration, mono: Duration) -> u64 {
    let nanos = until.saturating_sub(mono).as_nanos();
    u64::try_from(nanos.div_ceil(1_000_000)).unwrap_or(u64::MAX)
}
