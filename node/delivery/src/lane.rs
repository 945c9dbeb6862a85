//! One lane: its ready messages in order, and how many attempts it may carry.
//!
//! The more urgent level goes first. So that nobody starves below it, a level with a message that has waited for longer than
//! `ageing_ms` gets one segment in [`AGED_EVERY`] that pass it by: a share that is small enough to leave the urgent ones
//! nearly all of the lane, and that is never nothing. Messages are not moved up for it: a million of old ones would then
//! stand among the urgent ones, in front of those that are just as urgent and newer. Inside a level: `fair.rs`.
use crate::cells::CellNo;
use crate::fair::{Fair, ReadyKey};
use crate::groups::Groups;
use crate::types::{LaneConfig, PRIORITIES, SchedulerConfig};
use std::collections::BTreeSet;
use std::time::Duration;

/// How long before its permit an attempt begins.
const BEGIN_AHEAD: Duration = Duration::from_millis(200);
/// Of so many segments that pass by a level with an aged message, the level gets one more.
const AGED_EVERY: i64 = 8;

/// The message that goes next.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Next {
    pub level: usize,
    pub practice_no: u32,
    pub sender_no: u32,
    pub key: ReadyKey,
    pub no: CellNo,
    /// More urgent ones let it pass, because its level has waited for long.
    by_age: bool,
}

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
    levels: [Fair; PRIORITIES.len()],
    /// Segments that passed by each level while it had an aged message and could have sent it, less what it got for them.
    passed_by: [i64; PRIORITIES.len()],
    /// Practices that operators stopped.
    stopped: BTreeSet<u32>,
    groups: Groups,
    /// The senders, each a group of its own.
    senders: Groups,
}

impl Lane {
    /// `of`: practice and sender.
    pub fn push(&mut self, level: usize, of: (u32, u32), key: ReadyKey, no: CellNo, aged: bool) {
        self.levels[level].insert(of, key, no, aged);
    }

    pub fn remove(&mut self, level: usize, of: (u32, u32), key: &ReadyKey, aged: bool) {
        self.levels[level].remove(of, key, aged);
    }

    /// The message to begin next. `urgent_until`: useful deadlines before this are near.
    pub fn first(&self, urgent_until: u64) -> Option<Next> {
        let top = self.levels.iter().position(Fair::offers)?;
        let entitled = |level: &usize| {
            let fair = &self.levels[*level];
            fair.aged() > 0 && fair.offers() && self.passed_by[*level] >= AGED_EVERY
        };
        let aged =
            (top + 1..PRIORITIES.len()).rev().filter(entitled).max_by_key(|level| self.passed_by[*level]);
        let level = aged.unwrap_or(top);
        let ((practice_no, sender_no), key, no) = self.levels[level].first(urgent_until)?;
        Some(Next { level, practice_no, sender_no, key, no, by_age: aged.is_some() })
    }

    /// The message that [`Lane::first`] gave begins.
    pub fn take(&mut self, next: &Next, aged: bool, segments: u32, weight: u32) {
        let level = next.level;
        let of = (next.practice_no, next.sender_no);
        self.levels[level].charge(of, &next.key, aged, segments, weight);
        let passing = i64::from(segments);
        if next.by_age {
            self.passed_by[level] -= AGED_EVERY * passing;
        }
        for below in level + 1..PRIORITIES.len() {
            // What cannot be chosen now, because it is paused, saves nothing up for later.
            let waits = self.levels[below].aged() > 0 && self.levels[below].offers();
            self.passed_by[below] = if waits { self.passed_by[below] + passing } else { 0 };
        }
        self.attempt_begins(segments);
        let touched = self.groups.begins(next.practice_no, segments).to_vec();
        self.show(&touched);
        let touched = self.senders.begins(next.sender_no, segments).to_vec();
        self.show_senders(&touched);
    }

    /// Segments of each sender that were begun and have not left.
    pub fn unsent_of_senders(&self) -> impl Iterator<Item = (u32, u64)> + '_ {
        self.senders.unsent()
    }

    /// Segments of each practice that were begun and have not left.
    pub fn unsent_of(&self) -> impl Iterator<Item = (u32, u64)> + '_ {
        self.groups.unsent()
    }

    /// Messages of a paused practice stay where they are.
    pub fn pause_practice(&mut self, practice_no: u32, paused: bool) {
        match paused {
            true => self.stopped.insert(practice_no),
            false => self.stopped.remove(&practice_no),
        };
        self.show(&[practice_no]);
    }

    /// Practices that need the same limits of their own.
    pub fn group_practices(&mut self, members: Vec<Vec<u32>>) {
        let touched = self.groups.set(members);
        self.show(&touched);
    }

    /// So many segments of a group may be begun and not sent, and so many more could use the lane's own limits soon.
    pub fn set_group_room(&mut self, no: usize, room: u32, claim: u32) {
        let touched = self.groups.set_room(no, room, claim).to_vec();
        self.show(&touched);
    }

    /// Senders whose messages need limits that those of others do not.
    pub fn set_senders(&mut self, senders: &[u32]) {
        let touched = self.senders.set(senders.iter().map(|no| vec![*no]).collect());
        self.show_senders(&touched);
    }

    pub fn senders(&self) -> impl Iterator<Item = u32> + '_ {
        self.senders.members()
    }

    /// So many segments of a sender may be begun and not sent.
    pub fn set_sender_room(&mut self, no: usize, room: u32, claim: u32) {
        let touched = self.senders.set_room(no, room, claim).to_vec();
        self.show_senders(&touched);
    }

    /// Whether messages of these senders can be chosen may have changed.
    fn show_senders(&mut self, senders: &[u32]) {
        for sender_no in senders {
            let closed = self.senders.is_closed(*sender_no);
            self.levels.iter_mut().for_each(|level| level.close_sender(*sender_no, closed));
        }
    }

    /// Whether these practices can be chosen may have changed.
    fn show(&mut self, practices: &[u32]) {
        for practice_no in practices {
            let paused = self.stopped.contains(practice_no) || self.groups.is_closed(*practice_no);
            self.levels.iter_mut().for_each(|level| level.pause(*practice_no, paused));
        }
    }

    /// Practices that could be chosen.
    pub fn practices(&self) -> impl Iterator<Item = u32> + '_ {
        self.levels.iter().flat_map(Fair::practices)
    }

    /// Ready messages of each practice, priority by priority.
    pub fn waiting(&self) -> impl Iterator<Item = (u32, usize)> + '_ {
        self.levels.iter().flat_map(Fair::waiting)
    }

    /// Ready messages of each sender, priority by priority.
    pub fn waiting_of_senders(&self) -> impl Iterator<Item = (u32, usize)> + '_ {
        self.levels.iter().flat_map(Fair::waiting_of_senders)
    }

    pub fn ready(&self) -> usize {
        self.levels.iter().map(Fair::ready).sum()
    }

    /// Ready messages that could use the lane's own limits: neither those of practices that operators stopped, nor more than the others'
    /// narrower limits, and those of their senders, let through.
    pub fn claims(&self) -> u64 {
        if self.groups.is_empty() && self.stopped.is_empty() && self.senders.is_empty() {
            return self.ready() as u64;
        }
        let waiting = self.waiting().filter(|(practice_no, _)| !self.stopped.contains(practice_no));
        self.groups.claims(waiting).min(self.senders.claims(self.waiting_of_senders()))
    }

    pub fn has_ready(&self) -> bool {
        self.levels.iter().any(|level| level.ready() > 0)
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
        let holds = |level: &Fair| level.ready() > 0 || level.pauses();
        let used =
            self.config.is_some() || self.breaker_max.is_some() || self.in_flight > 0 || self.is_paused(mono);
        !used && self.groups.is_empty() && self.senders.is_empty() && !self.levels.iter().any(holds)
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

    fn attempt_begins(&mut self, segments: u32) {
        self.in_flight += 1;
        self.unsent_attempts += 1;
        self.unsent_segments += u64::from(segments);
    }

    pub fn attempt_sent(&mut self, (practice_no, sender_no): (u32, u32), segments: u32) {
        self.unsent_attempts -= 1;
        self.unsent_segments -= u64::from(segments);
        let touched = self.groups.sent(practice_no, segments).to_vec();
        self.show(&touched);
        let touched = self.senders.sent(sender_no, segments).to_vec();
        self.show_senders(&touched);
    }

    pub fn attempt_ends(&mut self) {
        self.in_flight -= 1;
    }
}
