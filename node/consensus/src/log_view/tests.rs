//! The view shows the newest log whatever is cached, written or evicted.
use super::*;
use crate::log_store::GroupWrite;
use crate::mem_log::MemLog;

fn entry(index: u64, term: u64, bytes: usize) -> Entry {
    let mut entry = Entry::default();
    entry.index = index;
    entry.term = term;
    entry.data = vec![index as u8; bytes].into();
    entry
}

fn open(log: &Arc<MemLog>, cache_bytes_max: u64) -> LogView {
    let config = GroupConfig { cache_bytes_max, ..GroupConfig::new(1, 1, 0) };
    let state = log.load(1).unwrap().unwrap_or_default();
    LogView::open(&config, log.clone(), state).unwrap()
}

fn write(log: &MemLog, entries: &[Entry]) {
    log.write(&[GroupWrite { group: 1, entries: entries.to_vec(), ..Default::default() }], true).unwrap();
}

fn terms(view: &LogView, low: u64) -> Vec<u64> {
    view.read(low, view.last() + 1, NO_LIMIT).unwrap().iter().map(|e| e.term).collect()
}

#[test]
fn handed_out_entries_are_readable_before_the_disk_has_them() {
    let log = Arc::new(MemLog::new());
    let mut view = open(&log, 1000);
    view.append(&[entry(1, 1, 10), entry(2, 1, 10)]);
    assert_eq!(log.load(1).unwrap(), None);
    assert_eq!((terms(&view, 1), view.last()), (vec![1, 1], 2));
    assert_eq!((view.term(2).unwrap(), view.term(0).unwrap()), (1, 0));
}

#[test]
fn what_is_not_durable_is_never_evicted() {
    let log = Arc::new(MemLog::new());
    let mut view = open(&log, 100);
    let entries: Vec<_> = (1..=20).map(|n| entry(n, 1, 100)).collect();
    view.append(&entries);
    view.trim(0, 20);
    assert_eq!(view.first_cached(), 1);
    write(&log, &entries[..15]);
    view.trim(15, 0);
    assert_eq!(view.first_cached(), 16, "beyond the limit all that is durable goes");
    assert_eq!(view.cache_bytes(), 5 * 112);
    assert_eq!(terms(&view, 1), vec![1; 20], "one read over store and cache");
}

#[test]
fn applied_entries_are_evicted_down_to_the_tail() {
    let log = Arc::new(MemLog::new());
    let mut view = open(&log, 100 * 1024 * 1024);
    let entries: Vec<_> = (1..=64).map(|n| entry(n, 1, 16 * 1024)).collect();
    view.append(&entries);
    write(&log, &entries);
    view.trim(64, 10);
    assert_eq!(view.first_cached(), 11, "unapplied entries stay");
    view.trim(64, 64);
    assert!(view.cache_bytes() <= TAIL_BYTES && view.first_cached() < 64);
}

#[test]
fn a_replaced_suffix_is_read_from_the_cache_while_the_store_still_has_the_old_one() {
    let log = Arc::new(MemLog::new());
    let mut view = open(&log, 0);
    let old: Vec<_> = (1..=6).map(|n| entry(n, 1, 10)).collect();
    view.append(&old);
    write(&log, &old);
    view.trim(6, 6);
    assert_eq!(view.first_cached(), 7, "all evicted");
    assert_eq!(view.term(5).unwrap(), 1, "now the memo holds it");
    view.append(&[entry(4, 2, 10), entry(5, 2, 10)]);
    assert_eq!((view.last(), terms(&view, 1)), (5, vec![1, 1, 1, 2, 2]));
    assert_eq!(view.term(5).unwrap(), 2);
    view.append(&[entry(5, 3, 10)]);
    assert_eq!((view.last(), terms(&view, 3)), (5, vec![1, 2, 3]));
    write(&log, &[entry(4, 2, 10), entry(5, 3, 10)]);
    view.trim(5, 5);
    assert_eq!(view.first_cached(), 6);
    assert_eq!((terms(&view, 1), view.term(5).unwrap()), (vec![1, 1, 1, 2, 3], 3));
}

#[test]
fn reads_respect_the_byte_limit_and_give_at_least_one() {
    let log = Arc::new(MemLog::new());
    let mut view = open(&log, 0);
    let entries: Vec<_> = (1..=10).map(|n| entry(n, 1, 100)).collect();
    view.append(&entries[..5]);
    write(&log, &entries[..5]);
    view.trim(5, 5);
    view.append(&entries[5..]);
    let count = |low, bytes| view.read(low, 11, bytes).unwrap().len();
    assert_eq!((count(1, 0), count(6, 0)), (1, 1));
    assert_eq!((count(6, 224), count(6, 223)), (2, 1));
    assert!(count(3, 500) <= 4 && count(3, NO_LIMIT) == 8);
    assert_eq!(view.read(1, 3, NO_LIMIT).unwrap().len(), 2);
}

#[test]
fn the_truncated_index_keeps_its_term() {
    let log = Arc::new(MemLog::new());
    let mut view = open(&log, 1000);
    let entries = [entry(1, 1, 10), entry(2, 2, 10), entry(3, 2, 10)];
    view.append(&entries);
    write(&log, &entries);
    log.truncate(1, 2, 2).unwrap();
    view.truncated(2, 2);
    for view in [&view, &open(&log, 1000)] {
        assert_eq!(view.first_index().unwrap(), 3);
        assert_eq!((view.term(2).unwrap(), view.term(3).unwrap()), (2, 2));
        assert!(matches!(view.term(1), Err(raft::Error::Store(StorageError::Compacted))));
        assert!(matches!(view.term(4), Err(raft::Error::Store(StorageError::Unavailable))));
        assert!(matches!(view.read(2, 4, 0), Err(LogError::Compacted { index: 2, .. })));
    }
}

/// A store whose reads cannot be trusted.
struct Liar(MemLog);

impl LogStore for Liar {
    fn load(&self, group: u32) -> Result<Option<GroupState>, LogError> {
        self.0.load(group)
    }
    fn removed(&self, group: u32) -> Result<Option<u64>, LogError> {
        self.0.removed(group)
    }
    fn entries(&self, group: u32, low: u64, high: u64, bytes_max: u64) -> Result<Vec<Entry>, LogError> {
        let mut entries = self.0.entries(group, low, high, bytes_max)?;
        entries[0].index += 1;
        Ok(entries)
    }
    fn write(&self, writes: &[GroupWrite], sync: bool) -> Result<(), LogError> {
        self.0.write(writes, sync)
    }
    fn truncate(&self, group: u32, index: u64, term: u64) -> Result<(), LogError> {
        self.0.truncate(group, index, term)
    }
    fn disk_bytes(&self) -> u64 {
        self.0.disk_bytes()
    }
}

#[test]
fn wrong_entries_from_the_store_are_an_error() {
    let log = MemLog::new();
    write(&log, &[entry(1, 1, 10)]);
    let state = log.load(1).unwrap().unwrap();
    let opened = LogView::open(&GroupConfig::new(1, 1, 0), Arc::new(Liar(log)), state);
    assert!(matches!(opened, Err(GroupError::Log(LogError::Corrupt { group: 1, .. }))));
}
