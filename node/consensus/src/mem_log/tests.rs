//! The simulated disk keeps what was synced and nothing it should not.
use super::*;

fn entry(index: u64, term: u64) -> Entry {
    let mut entry = Entry::default();
    entry.index = index;
    entry.term = term;
    entry.data = vec![7u8; 100].into();
    entry
}

fn write(log: &MemLog, entries: Vec<Entry>, sync: bool) {
    log.write(&[GroupWrite { group: 1, entries, ..Default::default() }], sync).unwrap();
}

fn terms(log: &MemLog) -> Vec<u64> {
    let state = log.load(1).unwrap().unwrap();
    let (low, high) = (state.truncated_index + 1, state.last_index + 1);
    if low == high {
        return Vec::new();
    }
    log.entries(1, low, high, u64::MAX).unwrap().iter().map(|e| e.term).collect()
}

#[test]
fn a_crash_keeps_the_synced_writes_and_a_prefix_of_the_others() {
    for (keep, expected) in [(0, vec![1, 1]), (1, vec![1, 1, 1]), (2, vec![1, 2]), (9, vec![1, 2, 2])] {
        let log = MemLog::new();
        write(&log, vec![entry(1, 1), entry(2, 1)], true);
        write(&log, vec![entry(3, 1)], false);
        write(&log, vec![entry(2, 2)], false);
        write(&log, vec![entry(3, 2)], false);
        assert_eq!(terms(&log), [1, 2, 2], "reads see unsynced writes");
        assert_eq!(log.unsynced(), 3);
        log.crash(keep);
        assert_eq!(terms(&log), expected, "keep {keep}");
        assert_eq!(log.unsynced(), 0);
    }
}

#[test]
fn a_synced_write_makes_the_earlier_ones_durable() {
    let log = MemLog::new();
    write(&log, vec![entry(1, 1)], false);
    assert_eq!(log.durable(1), None);
    write(&log, vec![entry(2, 1)], true);
    log.crash(0);
    assert_eq!(terms(&log), [1, 1]);
}

#[test]
fn gaps_are_refused_and_ranges_are_limited() {
    let log = MemLog::new();
    write(&log, vec![entry(1, 1), entry(2, 1), entry(3, 1)], true);
    let gap = GroupWrite { group: 1, entries: vec![entry(5, 1)], ..Default::default() };
    assert!(matches!(log.write(&[gap], true), Err(LogError::Corrupt { group: 1, .. })));
    assert_eq!(log.entries(1, 1, 4, 0).unwrap().len(), 1);
    assert_eq!(log.entries(1, 1, 4, 240).unwrap().len(), 2);
    assert!(matches!(log.entries(1, 2, 5, 0), Err(LogError::Missing { .. })));
}

#[test]
fn a_truncated_log_answers_for_the_truncated_index_only() {
    let log = MemLog::new();
    write(&log, vec![entry(1, 1), entry(2, 1), entry(3, 2)], true);
    log.truncate(1, 2, 1).unwrap();
    let state = log.load(1).unwrap().unwrap();
    assert_eq!((state.truncated_index, state.truncated_term, state.last_index), (2, 1, 3));
    assert!(matches!(log.entries(1, 2, 4, 0), Err(LogError::Compacted { index: 2, .. })));
    assert_eq!(terms(&log), [2]);
    log.sync();
    assert_eq!((log.durable_term(1, 1), log.durable_term(1, 2)), (None, Some(1)));
}
