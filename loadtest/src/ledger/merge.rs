//! Ledgers of parts of a run, put together: each message is in one part, so counts add up.

use std::collections::BTreeMap;

use super::{Finding, LISTED_MAX, Ledger};

/// Held messages that a ledger of many parts lists one by one.
pub const HELD_MAX: usize = 10_000;

fn add(sum: &mut BTreeMap<String, u64>, other: BTreeMap<String, u64>) {
    for (name, count) in other {
        *sum.entry(name).or_insert(0) += count;
    }
}

impl Ledger {
    /// Adds the ledger of other messages.
    pub fn merge(&mut self, other: Self) {
        self.accepted += other.accepted;
        self.of_quiet_hours += other.of_quiet_hours;
        self.repeated += other.repeated;
        self.canceled_in_time += other.canceled_in_time;
        self.received += other.received;
        self.carrier_submits += other.carrier_submits;
        self.over_limit += other.over_limit;
        self.extra_copies += other.extra_copies;
        self.extra_copies_by_class_policy += other.extra_copies_by_class_policy;
        self.unrecorded += other.unrecorded;
        self.window_max = self.window_max.max(other.window_max);
        self.limit = self.limit.max(other.limit);
        add(&mut self.refused, other.refused);
        add(&mut self.surprises, other.surprises);
        add(&mut self.cancel_too_late, other.cancel_too_late);
        add(&mut self.carrier_faults, other.carrier_faults);
        add(&mut self.by_carrier, other.by_carrier);
        add(&mut self.failovers, other.failovers);
        for (state, reasons) in other.states {
            add(self.states.entry(state).or_default(), reasons);
        }
        let room = HELD_MAX.saturating_sub(self.held.len());
        self.held.extend(other.held.into_iter().take(room));
        for (finding, found) in other.findings {
            let here = self.findings.entry(finding).or_default();
            here.count += found.count;
            let room = LISTED_MAX.saturating_sub(here.ids.len());
            here.ids.extend(found.ids.into_iter().take(room));
        }
    }

    /// Takes back findings of one kind that have an explanation: at most `explained` of them.
    pub fn explain(&mut self, finding: Finding, explained: u64) {
        if self.count(finding) <= explained {
            self.findings.remove(&finding);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Found;
    use super::*;

    #[test]
    fn counts_add_up_and_lists_stay_bounded() {
        let found = |count| Found { count, ids: (0..count).map(|n| n.to_string()).collect() };
        let part = Ledger {
            accepted: 3,
            window_max: 7,
            states: [("DELIVERED".to_owned(), [("-".to_owned(), 3)].into())].into(),
            findings: [(Finding::Duplicate, found(15))].into(),
            ..Ledger::default()
        };
        let mut sum = part.clone();
        sum.merge(part);
        assert_eq!((sum.accepted, sum.window_max, sum.states["DELIVERED"]["-"]), (6, 7, 6));
        assert_eq!((sum.duplicates(), sum.findings[&Finding::Duplicate].ids.len()), (30, LISTED_MAX));
        sum.explain(Finding::Duplicate, 29);
        assert!(!sum.is_clean());
        sum.explain(Finding::Duplicate, 30);
        assert!(sum.is_clean());
    }
}
