//! Decides which replica is flushed next. Sans-IO: time and bytes come from the caller.
//!
//! Why not leave it to RocksDB: with the WAL off it flushes when memory is full, so a quiet replica would hold its
//! part of the raft log for ever. A replica is due when the log bytes that only its memtables hold are many or old. One
//! flush at a time. Bound: one entry for each group.
use std::collections::BTreeMap;

/// When a replica is due.
#[derive(Debug, Clone, Copy)]
pub struct PacerLimits {
    pub unflushed_bytes_max: u64,
    pub unflushed_age_max_ms: u64,
}

impl Default for PacerLimits {
    fn default() -> Self {
        Self { unflushed_bytes_max: 64 << 20, unflushed_age_max_ms: 5 * 60 * 1000 }
    }
}

#[derive(Debug, Clone, Copy)]
struct Unflushed {
    bytes: u64,
    since_ms: u64,
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

    /// A commit of a group that covers `log_bytes` of its raft log.
    pub fn committed(&mut self, group: u32, log_bytes: u64, now_ms: u64) {
        let unflushed = self.groups.entry(group).or_insert(Unflushed { bytes: 0, since_ms: now_ms });
        unflushed.bytes = unflushed.bytes.saturating_add(log_bytes);
    }

    /// The group to flush now. It counts as being flushed until [`Self::flushed`]; meanwhile there is no other.
    pub fn next(&mut self, now_ms: u64) -> Option<u32> {
        if self.flushing.is_some() {
            return None;
        }
        let limits = self.limits;
        let due = |u: &Unflushed| {
            u.bytes > limits.unflushed_bytes_max
                || now_ms.saturating_sub(u.since_ms) > limits.unflushed_age_max_ms
        };
        // The one that holds most of the log; at the same size the older one.
        let (group, _) = self
            .groups
            .iter()
            .filter(|(_, unflushed)| due(unflushed))
            .max_by_key(|(_, unflushed)| (unflushed.bytes, std::cmp::Reverse(unflushed.since_ms)))?;
        let group = *group;
        // Commits from here on are not covered by this flush.
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

    /// Log bytes of a group that only memtables cover.
    pub fn unflushed_bytes(&self, group: u32) -> u64 {
        self.groups.get(&group).map_or(0, |unflushed| unflushed.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pacer() -> FlushPacer {
        FlushPacer::new(PacerLimits { unflushed_bytes_max: 100, unflushed_age_max_ms: 1000 })
    }

    #[test]
    fn nothing_is_due_below_both_limits() {
        let mut pacer = pacer();
        pacer.committed(1, 100, 0);
        assert_eq!(pacer.next(1000), None);
        assert_eq!(pacer.next(1001), Some(1));
    }

    #[test]
    fn the_largest_goes_first_and_one_at_a_time() {
        let mut pacer = pacer();
        pacer.committed(1, 101, 0);
        pacer.committed(2, 300, 5);
        pacer.committed(3, 300, 4);
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
    fn commits_during_a_flush_are_not_covered_by_it() {
        let mut pacer = pacer();
        pacer.committed(1, 200, 0);
        assert_eq!(pacer.next(1), Some(1));
        pacer.committed(1, 50, 500);
        pacer.flushed(1);
        assert_eq!(pacer.unflushed_bytes(1), 50);
        assert_eq!(pacer.next(1500), None, "its age counts from the first commit after the flush began");
        assert_eq!(pacer.next(1501), Some(1));
    }

    #[test]
    fn a_group_that_left_does_not_block_the_others() {
        let mut pacer = pacer();
        pacer.committed(1, 200, 0);
        pacer.committed(2, 150, 0);
        assert_eq!(pacer.next(1), Some(1));
        pacer.forget(1);
        assert_eq!(pacer.next(1), Some(2));
    }
}
