//! How far the log of a led group may be cut.
//!
//! Logs are cut below what every follower has. A follower that is further behind than the slack (bytes or entries)
//! does not hold them back: it will get a snapshot. While it gets one, the log from that snapshot on is kept, or it would
//! need another one when it is done; a follower that makes no progress loses that claim with the snapshot's deadline.
use crate::Group;
use std::collections::VecDeque;

/// Marks for one slack; more precision is not needed.
const MARKS: u64 = 32;

/// How much log is kept for followers that are behind.
#[derive(Debug, Clone, Copy)]
pub struct LogSlack {
    pub bytes: u64,
    pub entries: u64,
}

/// Where in the log how many bytes were appended, since this process started. Bounded: marks older than the slack go.
#[derive(Debug, Default)]
pub struct LogMarks {
    total_bytes: u64,
    /// (last index, total bytes up to it)
    marks: VecDeque<(u64, u64)>,
}

impl LogMarks {
    pub fn appended(&mut self, last_index: u64, bytes: u64, slack_bytes: u64) {
        self.total_bytes += bytes;
        let step = slack_bytes / MARKS;
        // A replaced suffix: its bytes were written all the same, so they stay counted.
        while self.marks.back().is_some_and(|(index, _)| *index >= last_index) {
            self.marks.pop_back();
        }
        if self.marks.back().is_none_or(|(_, at)| self.total_bytes - at > step) {
            self.marks.push_back((last_index, self.total_bytes));
        }
        while self.marks.len() > 1 && self.total_bytes - self.marks[1].1 >= slack_bytes {
            self.marks.pop_front();
        }
    }

    /// The newest index with at least `slack_bytes` appended after it; 0 = not so much was appended.
    pub fn beyond(&self, slack_bytes: u64) -> u64 {
        let old = self.marks.iter().rev().find(|(_, at)| self.total_bytes - at >= slack_bytes);
        old.map_or(0, |(index, _)| *index)
    }
}

/// How far the log of a led group may be cut, if it is to be cut at all.
pub fn cut_index(group: &Group, marks: &LogMarks, slack: LogSlack) -> Option<u64> {
    let slowest = group.slowest_match()?;
    let by_entries = group.last_index().saturating_sub(slack.entries);
    let forced = by_entries.max(marks.beyond(slack.bytes)).min(group.applied_index());
    let mut index = slowest.max(forced);
    if group.followers().iter().any(|(_, follower)| follower.in_snapshot)
        && let Some(offered) = group.offered_snapshot()
    {
        index = index.min(offered);
    }
    (index > group.first_index()).then_some(index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_tell_what_lies_behind_the_slack_and_stay_few() {
        let mut marks = LogMarks::default();
        assert_eq!(marks.beyond(0), 0);
        for index in 1..=10_000 {
            marks.appended(index, 100, 64_000);
            assert!(marks.marks.len() as u64 <= MARKS + 2);
        }
        // 640 entries of 100 bytes are the slack.
        let beyond = marks.beyond(64_000);
        assert!((9_320..=9_360).contains(&beyond), "{beyond}");
        assert_eq!(LogMarks::default().beyond(1), 0);
    }

    #[test]
    fn a_replaced_suffix_does_not_confuse_the_marks() {
        let mut marks = LogMarks::default();
        for index in 1..=100 {
            marks.appended(index, 1000, 10_000);
        }
        marks.appended(50, 1000, 10_000);
        for index in 51..=70 {
            marks.appended(index, 1000, 10_000);
        }
        let beyond = marks.beyond(10_000);
        assert!((55..=60).contains(&beyond), "{beyond}");
    }
}
