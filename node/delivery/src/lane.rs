//! One lane: its ready messages in order, and how many attempts it may carry.
//!
//! The order is: level (priority, raised by ageing), then the earliest useful deadline, then due time, then
//! message id. Fair shares between practices will go inside a level, in this file.
use crate::cells::CellNo;
use crate::types::{LaneConfig, PRIORITIES, SchedulerConfig};
use carillon_proto::MessageId;
use std::collections::BTreeMap;
use std::time::Duration;

/// How long before its permit an attempt begins.
const BEGIN_AHEAD: Duration = Duration::from_millis(200);

/// Order inside a level: useful until, due, id.
pub(crate) type ReadyKey = (u64, u64, MessageId);

/// A lane. Without a configuration its messages wait.
#[derive(Debug, Default)]
pub(crate) struct Lane {
    pub config: Option<LaneConfig>,
    /// Moment of the monotonic clock until which nothing is begun.
    pub paused_until: Duration,
    /// Attempts in flight while its breaker is not closed, at most.
    pub breaker_max: Option<u32>,
    /// The next permit is free then.
    pub opens_at: Duration,
    pub in_flight: u32,
    pub unsent_attempts: u32,
    unsent_segments: u64,
    levels: [BTreeMap<ReadyKey, CellNo>; PRIORITIES.len()],
}

impl Lane {
    pub fn push(&mut self, level: u8, key: ReadyKey, no: CellNo) {
        self.levels[usize::from(level)].insert(key, no);
    }

    pub fn remove(&mut self, level: u8, key: &ReadyKey) {
        self.levels[usize::from(level)].remove(key);
    }

    /// The message to begin next.
    pub fn first(&self) -> Option<(u8, ReadyKey, CellNo)> {
        let (level, queue) = (0u8..).zip(&self.levels).find(|(_, queue)| !queue.is_empty())?;
        queue.first_key_value().map(|(key, no)| (level, *key, *no))
    }

    pub fn ready(&self) -> usize {
        self.levels.iter().map(BTreeMap::len).sum()
    }

    pub fn has_ready(&self) -> bool {
        self.levels.iter().any(|queue| !queue.is_empty())
    }

    pub fn is_paused(&self, mono: Duration) -> bool {
        mono < self.resumes_at()
    }

    /// When something may begin: a little before it may leave.
    pub fn resumes_at(&self) -> Duration {
        self.paused_until.max(self.opens_at.saturating_sub(BEGIN_AHEAD))
    }

    pub fn unsent_segments(&self) -> u64 {
        self.unsent_segments
    }

    /// Nothing would be lost by dropping it.
    pub fn is_idle(&self, mono: Duration) -> bool {
        self.config.is_none()
            && self.breaker_max.is_none()
            && self.in_flight == 0
            && !self.has_ready()
            && !self.is_paused(mono)
    }

    /// True if an attempt of so many segments may begin now.
    pub fn has_room(&self, segments: u32, settings: &SchedulerConfig) -> bool {
        let Some(config) = self.config.filter(|config| config.share_segments_per_second > 0) else {
            return false;
        };
        if self.in_flight >= config.in_flight_max || self.unsent_attempts >= settings.prefetch_attempts_max {
            return false;
        }
        if self.breaker_max.is_some_and(|max| self.in_flight >= max) {
            return false;
        }
        let by_time =
            u64::from(config.share_segments_per_second).saturating_mul(settings.prefetch_ms) / 1_000;
        // A slow lane begins little ahead: what has begun cannot be taken back.
        let half_second = config.share_segments_per_second.div_ceil(2);
        let window = by_time.max(u64::from(settings.prefetch_segments_min.min(half_second)));
        // A message longer than the whole window goes when nothing else is unsent.
        self.unsent_segments == 0 || self.unsent_segments + u64::from(segments) <= window
    }

    pub fn attempt_begins(&mut self, segments: u32) {
        self.in_flight += 1;
        self.unsent_attempts += 1;
        self.unsent_segments += u64::from(segments);
    }

    pub fn attempt_sent(&mut self, segments: u32) {
        self.unsent_attempts -= 1;
        self.unsent_segments -= u64::from(segments);
    }

    pub fn attempt_ends(&mut self) {
        self.in_flight -= 1;
    }
}
