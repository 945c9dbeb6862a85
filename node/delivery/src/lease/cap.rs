//! Daily caps: a node's slices of what may leave on one calendar day.
//!
//! Invariant: what a node may still send of a cap was taken from the cap's replicated counter for it, and is void when the day ends.
//! What is not used by then, or is forgotten in a crash, is lost: it errs to under-send.
use super::{Grant, LIMIT_BASE, LeaseRequest, day_of};
use carillon_core::meta::{MetaView, is_present};
use carillon_proto::internal::TakeCap;
use std::time::Duration;

/// Two ends of a day that are closer than this are ends of the same one, as seen through a network.
const SAME_DAY: Duration = Duration::from_secs(60);
/// One slice, at most.
const SLICE_MAX: u64 = 1_000;

/// What this node may still send.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Slice {
    left: u32,
    /// Of the day, on this node's monotonic clock.
    ends: Duration,
    /// Of the cap.
    amount: u32,
    /// Answers to older requests bring nothing.
    since_seq: u64,
}

impl Slice {
    pub fn left(&self, mono: Duration) -> u32 {
        if mono < self.ends { self.left } else { 0 }
    }

    pub fn ends(&self) -> Duration {
        self.ends
    }

    pub fn take(&mut self, segments: u32) {
        self.left = self.left.saturating_sub(segments.max(1));
    }

    /// The cap has this amount. What was taken of a larger one is void, also what is on its way: it is lost.
    pub fn set_amount(&mut self, amount: u32, seq: u64) {
        if amount < self.amount {
            self.left = 0;
            self.since_seq = seq + 1;
        }
        self.amount = amount;
    }

    /// More of a day that ends at `ends`, by the answer to request `seq`.
    pub fn add(&mut self, segments: u32, ends: Duration, seq: u64) {
        if seq < self.since_seq {
            return;
        }
        // The first one has nothing to be compared with: a process may start less than a minute before midnight.
        let same = !self.ends.is_zero() && ends.abs_diff(self.ends) <= SAME_DAY;
        self.left = if same { self.left.saturating_add(segments) } else { segments };
        // Of two views of the same end the earlier one.
        self.ends = if same { self.ends.min(ends) } else { ends };
    }
}

/// How much a node gets of what is left of a day: about what waits there, never so much that the others starve.
pub fn slice(waits: u32, has: u32, left: u64, nodes: u32) -> u32 {
    let lacks = u64::from(waits.saturating_sub(has));
    let fair = (left / (4 * u64::from(nodes.max(1)))).max(1);
    lacks.min(fair).min(left).min(SLICE_MAX) as u32
}

/// What a node that asks is to get of the daily caps, each with the command that must be committed before it is given.
/// `now_ms`: the wall clock of the leader of the meta group.
pub fn slices(request: &LeaseRequest, view: &MetaView, now_ms: u64) -> Vec<(TakeCap, Grant)> {
    let nodes = view.nodes.values().filter(|node| is_present(node)).count() as u32;
    let of = |want: &super::Want| {
        let limit = view.limits.get(&want.limit.checked_sub(LIMIT_BASE)?).filter(|l| l.window_s == 0)?;
        let (day, left) = day_of(&limit.time_zone, now_ms)?;
        let taken = view.caps.get(&limit.limit_no).filter(|cap| cap.day >= day).map_or(0, |cap| cap.taken);
        let room = u64::from(limit.amount).saturating_sub(taken);
        let segments = slice(want.segments, want.held, room, nodes);
        let take = TakeCap { limit_no: limit.limit_no, day, segments };
        (segments > 0).then_some((take, Grant { limit: want.limit, tokens: segments, whole: 0, frame: left }))
    };
    request.wants.iter().filter_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_add_up_to_the_cap_and_a_new_day_begins_with_nothing() {
        let mut left = 1_000_u64;
        let mut given = 0;
        while left > 0 {
            let slice = slice(50_000, 0, left, 3);
            assert!(slice > 0);
            given += u64::from(slice);
            left -= u64::from(slice);
        }
        assert_eq!(given, 1_000);
        assert_eq!(slice(10, 10, 500, 3), 0, "it has what it needs");
        let s = Duration::from_secs;
        let mut own = Slice::default();
        own.add(10, s(1_000), 1);
        own.add(5, s(1_001), 2);
        assert_eq!((own.left(s(999)), own.left(s(1_000))), (15, 0));
        own.add(7, s(87_400), 3);
        assert_eq!(own.left(s(1_000)), 7);
        let mut young = Slice::default();
        young.add(4, s(16), 1);
        assert_eq!((young.left(s(15)), young.left(s(16))), (4, 0), "the process is younger than a minute");
    }

    #[test]
    fn of_a_cap_that_is_lowered_nothing_is_left_and_nothing_comes_that_was_taken_before() {
        let mut own = Slice::default();
        let end = Duration::from_secs(1_000);
        own.set_amount(500, 1);
        own.add(60, end, 1);
        own.set_amount(600, 2);
        assert_eq!(own.left(Duration::ZERO), 60, "a higher one takes nothing away");
        own.set_amount(25, 2);
        own.add(40, end, 2);
        assert_eq!(own.left(Duration::ZERO), 0);
        own.add(8, end, 3);
        assert_eq!(own.left(Duration::ZERO), 8);
    }
}
