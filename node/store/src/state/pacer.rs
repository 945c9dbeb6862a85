//! Decides which replica is flushed next. Sans-IO: time, bytes and indexes come from the caller.
//!
//! Why not leave it to RocksDB: with the WAL off it flushes when memory is full, so a quiet replica would hold its
//! part of the raft log for ever. A replica is due when the log bytes that only its memory holds are many or old, and the
//! one that holds most is due when all together hold too many: that bounds the log on disk and the time of a restart, which
//! applies those bytes again. One flush at a time.
//!
//! RocksDB flushes by itself, too; [`FlushPacer::durable`] tells, so that nothing is flushed twice.
//! Bound: one entry for each group, at most [`MARKS_MAX`] marks in each.
use std::collections::{BTreeMap, VecDeque};

/// Marks of one group; beyond it neighbours are joined.
const MARKS_MAX: usize = 64;

/// When a replica is due.
#[derive(Debug, Clone, Copy)]
pub struct PacerLimits {
    /// Of one replica.
    pub unflushed_bytes_max: u64,
    /// Of all replicas of the node.
    pub unflushed_total_bytes_max: u64,
    pub unflushed_age_max_ms: u64,
}

impl Default for PacerLimits {
    fn default() -> Self {
        Self {
            unflushed_bytes_max: 64 << 20,
            unflushed_total_bytes_max: 256 << 20,
            unflushed_age_max_ms: 5 * 60 * 1000,
        }
    }
}

/// Log bytes up to an index that were applied at a time.
#[derive(Debug, Clone, Copy)]
struct Mark {
    index: u64,
    bytes: u64,
    since_ms: u64,
}

#[derive(Debug, Default)]
struct Unflushed {
    bytes: u64,
    /// Oldest first.
    marks: VecDeque<Mark>,
}

impl Unflushed {
    fn push(&mut self, mark: Mark) {
        self.bytes = self.bytes.saturating_add(mark.bytes);
        let full = self.marks.len() >= MARKS_MAX;
        match self.marks.back_mut() {
            // The older time stands: rather early than late.
            Some(last) if full => {
                last.index = mark.index;
                last.bytes = last.bytes.saturating_add(mark.bytes);
            }
            _ => self.marks.push_back(mark),
        }
    }

    fn forget_up_to(&mut self, index: u64) {
        while let Some(mark) = self.marks.front().filter(|mark| mark.index <= index) {
            self.bytes = self.bytes.saturating_sub(mark.bytes);
            self.marks.pop_front();
        }
    }

    fn since_ms(&self) -> u64 {
        self.marks.front().map_or(u64::MAX, |mark| mark.since_ms)
    }
}

/// See the module documentation.
#[derive(Debug, Default)]
pub struct FlushPacer {
    limits: PacerLimits,
    groups: BTreeMap<u32, Unflushed>,
    flushing: Option<u32>,
}

impl FlushPacer {
    pub fn new(limits: PacerLimits) -> Self {
        Self { limits, groups: BTreeMap::new(), flushing: None }
    }

    /// Commits of a group up to `index` that cover `log_bytes` of its raft log.
    pub fn committed(&mut self, group: u32, index: u64, log_bytes: u64, now_ms: u64) {
        self.groups.entry(group).or_default().push(Mark { index, bytes: log_bytes, since_ms: now_ms });
    }

    /// Everything of a group up to `index` is on disk.
    pub fn durable(&mut self, group: u32, index: u64) {
        if let Some(unflushed) = self.groups.get_mut(&group) {
            unflushed.forget_up_to(index);
            if unflushed.marks.is_empty() {
                self.groups.remove(&group);
            }
        }
    }

    /// The group to flush now. It counts as being flushed until [`Self::flushed`]; meanwhile there is no other.
    pub fn next(&mut self, now_ms: u64) -> Option<u32> {
        if self.flushing.is_some() {
            return None;
        }
        let limits = self.limits;
        let too_many = self.unflushed_total_bytes() > limits.unflushed_total_bytes_max;
        let due = |u: &Unflushed| {
            too_many
                || u.bytes > limits.unflushed_bytes_max
                || now_ms.saturating_sub(u.since_ms()) > limits.unflushed_age_max_ms
        };
        // The one that holds most of the log; at the same size the older one.
        let (group, _) = self
            .groups
            .iter()
            .filter(|(_, unflushed)| due(unflushed))
            .max_by_key(|(_, unflushed)| (unflushed.bytes, std::cmp::Reverse(unflushed.since_ms())))?;
        let group = *group;
        // Commits from here on are not covered by this flush.
        self.groups.remove(&group);
        self.flushing = Some(group);
        Some(group)
    }

    /// The group that holds most, whether it is due or not: for a disk that runs full. As [`Self::next`].
    pub fn largest(&mut self) -> Option<u32> {
        if self.flushing.is_some() {
            return None;
        }
        let (group, _) = self.groups.iter().max_by_key(|(_, unflushed)| unflushed.bytes)?;
        let group = *group;
        self.groups.remove(&group);
        self.flushing = Some(group);
        Some(group)
    }

    /// The flush that [`Self::next`] started is on disk.
    pub fn flushed(&mut self, group: u32) {
        if self.flushing == Some(group) {
            self.flushing = None;
        }
    }

    /// A group left this node.
    pub fn forget(&mut self, group: u32) {
        self.groups.remove(&group);
        self.flushed(group);
    }

    /// Log bytes of a group that only memory covers.
    pub fn unflushed_bytes(&self, group: u32) -> u64 {
        self.groups.get(&group).map_or(0, |unflushed| unflushed.bytes)
    }

    pub fn unflushed_total_bytes(&self) -> u64 {
        self.groups.values().map(|unflushed| unflushed.bytes).sum()
    }

    /// Groups with bytes that only memory covers.
    pub fn unflushed_groups(&self) -> Vec<u32> {
        self.groups.keys().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pacer() -> FlushPacer {
        FlushPacer::new(PacerLimits {
            unflushed_bytes_max: 100,
            unflushed_total_bytes_max: 10_000,
            unflushed_age_max_ms: 1000,
        })
    }

    #[test]
    fn nothing_is_due_below_both_limits() {
        let mut pacer = pacer();
        pacer.committed(1, 1, 100, 0);
        assert_eq!(pacer.next(1000), None);
        assert_eq!(pacer.next(1001), Some(1));
    }

    #[test]
    fn the_largest_goes_first_and_one_at_a_time() {
        let mut pacer = pacer();
        pacer.committed(1, 1, 101, 0);
        pacer.committed(2, 1, 300, 5);
        pacer.committed(3, 1, 300, 4);
        assert_eq!(pacer.next(10), Some(3), "same size: the older one");
        assert_eq!(pacer.next(10), None, "one is in flight");
        pacer.flushed(3);
        assert_eq!(pacer.next(10), Some(2));
        pacer.flushed(2);
        assert_eq!(pacer.next(10), Some(1));
        pacer.flushed(1);
        assert_eq!(pacer.next(u64::MAX), None);
    }

    #[test]
    fn many_small_groups_together_make_the_largest_due() {
        let mut pacer = FlushPacer::new(PacerLimits { unflushed_total_bytes_max: 250, ..pacer().limits });
        for group in 1..=3 {
            pacer.committed(group, 1, 70 + u64::from(group), 0);
        }
        assert_eq!(pacer.next(1), None);
        pacer.committed(1, 2, 35, 0);
        assert_eq!(pacer.next(1), Some(1));
        pacer.flushed(1);
        assert_eq!(pacer.next(1), None, "the rest is below the limit again");
        assert_eq!((pacer.largest(), pacer.unflushed_total_bytes()), (Some(3), 72));
    }

    #[test]
    fn commits_during_a_flush_are_not_covered_by_it() {
        let mut pacer = pacer();
        pacer.committed(1, 1, 200, 0);
        assert_eq!(pacer.next(1), Some(1));
        pacer.committed(1, 2, 50, 500);
        pacer.flushed(1);
        assert_eq!(pacer.unflushed_bytes(1), 50);
        assert_eq!(pacer.next(1500), None, "its age counts from the first commit after the flush began");
        assert_eq!(pacer.next(1501), Some(1));
    }

    #[test]
    fn what_the_database_flushed_by_itself_is_not_flushed_again() {
        let mut pacer = pacer();
        pacer.committed(1, 10, 60, 0);
        pacer.committed(1, 20, 60, 900);
        pacer.durable(1, 15);
        assert_eq!((pacer.next(1001), pacer.unflushed_bytes(1)), (None, 60), "the old part is on disk");
        assert_eq!(pacer.next(1901), Some(1));
        pacer.flushed(1);
        pacer.committed(1, 30, 500, 2000);
        pacer.durable(1, 30);
        assert_eq!(pacer.next(u64::MAX), None);
        // However many commits there are, the marks are bounded and no byte is forgotten.
        (0..1000).for_each(|n| pacer.committed(2, n, 1, n));
        assert_eq!((pacer.groups[&2].marks.len(), pacer.unflushed_bytes(2)), (MARKS_MAX, 1000));
    }

    #[test]
    fn a_group_that_left_does_not_block_the_others() {
        let mut pacer = pacer();
        pacer.committed(1, 1, 200, 0);
        pacer.committed(2, 1, 150, 0);
        assert_eq!(pacer.next(1), Some(1));
        pacer.forget(1);
        assert_eq!(pacer.next(1), Some(2));
    }
}
