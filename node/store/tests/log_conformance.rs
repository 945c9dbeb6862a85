//! One suite for every log store. Both candidates pass all of it; the log in memory, which tests and the simulator use
//! in their place, passes what it promises (it has no owner, no snapshots and its own measure of a read's size).
mod log_suite;

use carillon_consensus::{GroupWrite, LogError, LogStore, SnapshotMark};
use log_suite::{Candidate, Engine, Memory, Rocks, all, append, conf, entries, entry, hard_state};
use protobuf::Message;
use tempfile::tempdir;

fn append_and_reopen<C: Candidate>() {
    let dir = tempdir().unwrap();
    let log = C::open(dir.path()).unwrap();
    assert_eq!(log.load(3).unwrap(), None);
    log.write(&[append(3, entries(3, 1..=5, 1, 100)), append(0, entries(0, 1..=2, 1, 100_000))], true)
        .unwrap();
    log.write(&[append(3, entries(3, 6..=9, 2, 10))], true).unwrap();
    let expected: Vec<_> = entries(3, 1..=5, 1, 100).into_iter().chain(entries(3, 6..=9, 2, 10)).collect();
    assert_eq!(all(&log, 3).unwrap(), expected);
    drop(log);
    let log = C::open(dir.path()).unwrap();
    assert_eq!(all(&log, 3).unwrap(), expected);
    assert_eq!(all(&log, 0).unwrap(), entries(0, 1..=2, 1, 100_000));
    assert_eq!(log.load(1).unwrap(), None);
    assert!(log.disk_bytes() > 200_000);
}

fn a_conflicting_suffix_is_replaced<C: Candidate>() {
    let dir = tempdir().unwrap();
    let log = C::open(dir.path()).unwrap();
    log.write(&[append(1, entries(1, 1..=10, 1, 50))], true).unwrap();
    // Twice in one write: the later one wins, and the log gets shorter.
    log.write(&[append(1, entries(1, 4..=9, 2, 50)), append(1, entries(1, 6..=7, 3, 50))], true).unwrap();
    let expected: Vec<_> =
        [entries(1, 1..=3, 1, 50), entries(1, 4..=5, 2, 50), entries(1, 6..=7, 3, 50)].concat();
    for log in [log].into_iter().chain(std::iter::once_with(|| C::open(dir.path()).unwrap())) {
        assert_eq!(log.load(1).unwrap().unwrap().last_index, 7);
        assert_eq!(all(&log, 1).unwrap(), expected);
        assert!(matches!(log.entries(1, 7, 9, 1000), Err(LogError::Missing { group: 1, .. })));
    }
}

fn state_and_entries_are_one_write<C: Candidate>() {
    let dir = tempdir().unwrap();
    let log = C::open(dir.path()).unwrap();
    log.write(&[GroupWrite { group: 5, conf: Some((conf(&[1, 2, 3]), 1)), ..GroupWrite::default() }], true)
        .unwrap();
    let write = GroupWrite {
        group: 5,
        entries: entries(5, 1..=3, 7, 20),
        hard_state: Some(hard_state(7, 2, 3)),
        ..GroupWrite::default()
    };
    log.write(&[write], true).unwrap();
    log.write(
        &[GroupWrite { group: 5, hard_state: Some(hard_state(8, 0, 3)), ..GroupWrite::default() }],
        true,
    )
    .unwrap();
    // A write that says nothing changes nothing, and makes no group.
    log.write(&[GroupWrite { group: 6, ..GroupWrite::default() }], true).unwrap();
    let before = log.load(5).unwrap().unwrap();
    drop(log);
    let log = C::open(dir.path()).unwrap();
    let state = log.load(5).unwrap().unwrap();
    assert_eq!(state, before);
    assert_eq!((state.hard_state.term, state.hard_state.vote, state.hard_state.commit), (8, 0, 3));
    assert_eq!(
        (state.conf_state.voters.as_slice(), state.conf_index, state.last_index),
        ([1, 2, 3].as_slice(), 1, 3)
    );
    assert_eq!(log.load(6).unwrap(), None);
}

fn a_refused_write_changes_nothing<C: Candidate>() {
    let dir = tempdir().unwrap();
    let log = C::open(dir.path()).unwrap();
    log.write(&[append(1, entries(1, 1..=4, 1, 10))], true).unwrap();
    log.truncate(1, 2, 1).unwrap();
    let gap = append(1, entries(1, 6..=7, 1, 10));
    let jump = append(1, vec![entry(1, 5, 1, 10), entry(1, 7, 1, 10)]);
    let old = append(1, entries(1, 2..=3, 2, 10));
    for bad in [gap, jump, old] {
        let other = append(2, entries(2, 1..=1, 1, 10));
        assert!(matches!(log.write(&[other, bad], true), Err(LogError::Corrupt { group: 1, .. })));
        assert_eq!(log.load(2).unwrap(), None, "the write is atomic over groups");
        assert_eq!(all(&log, 1).unwrap(), entries(1, 3..=4, 1, 10));
    }
    log.write(&[append(1, entries(1, 5..=5, 1, 10))], true).unwrap();
}

fn truncation<C: Candidate>() {
    let dir = tempdir().unwrap();
    let log = C::open(dir.path()).unwrap();
    log.write(&[append(1, entries(1, 1..=10, 3, 50)), append(2, entries(2, 1..=10, 3, 50))], true).unwrap();
    log.truncate(1, 6, 3).unwrap();
    log.truncate(1, 4, 3).unwrap();
    log.truncate(2, 10, 3).unwrap();
    // Truncations need no sync of their own; any later synced write carries them.
    log.write(&[append(1, entries(1, 11..=11, 3, 50))], true).unwrap();
    for log in [log].into_iter().chain(std::iter::once_with(|| C::open(dir.path()).unwrap())) {
        let state = log.load(1).unwrap().unwrap();
        assert_eq!((state.truncated_index, state.truncated_term, state.last_index), (6, 3, 11));
        assert!(matches!(log.entries(1, 6, 8, 1000), Err(LogError::Compacted { group: 1, index: 6 })));
        assert_eq!(all(&log, 1).unwrap(), entries(1, 7..=11, 3, 50));
        let empty = log.load(2).unwrap().unwrap();
        assert_eq!((empty.truncated_index, empty.last_index), (10, 10));
        assert!(matches!(log.entries(2, 11, 12, 1000), Err(LogError::Missing { group: 2, .. })));
    }
}

/// A snapshot puts the log ahead of its last entry, or over a branch that lost.
fn truncation_for_a_snapshot<C: Candidate>() {
    let dir = tempdir().unwrap();
    let log = C::open(dir.path()).unwrap();
    log.write(&[append(1, entries(1, 1..=5, 1, 50)), append(2, entries(2, 1..=50, 1, 50))], true).unwrap();
    log.truncate(1, 40, 2).unwrap();
    log.truncate(2, 40, 2).unwrap();
    log.truncate(3, 7, 2).unwrap();
    for group in [1, 2] {
        assert_eq!(log.load(group).unwrap().unwrap().last_index, 40, "group {group}");
        log.write(&[append(group, entries(group, 41..=43, 2, 50))], true).unwrap();
    }
    for log in [log].into_iter().chain(std::iter::once_with(|| C::open(dir.path()).unwrap())) {
        for group in [1, 2] {
            let state = log.load(group).unwrap().unwrap();
            assert_eq!((state.truncated_index, state.truncated_term, state.last_index), (40, 2, 43));
            assert_eq!(all(&log, group).unwrap(), entries(group, 41..=43, 2, 50));
        }
        assert_eq!(log.load(3).unwrap().unwrap().last_index, 7);
    }
}

fn snapshot(group: u32, index: u64, term: u64, generation: u64) -> GroupWrite {
    GroupWrite { group, snapshot: Some(SnapshotMark { index, term, generation }), ..GroupWrite::default() }
}

/// One write: the old log is gone, the new one begins behind the snapshot, and the generation says which state is live.
fn a_snapshot_takes_the_place_of_the_log<C: Candidate>() {
    let dir = tempdir().unwrap();
    let log = C::open(dir.path()).unwrap();
    for group in 1..=4 {
        log.write(&[append(group, entries(group, 1..=50, 1, 50))], true).unwrap();
    }
    log.truncate(3, 20, 1).unwrap();
    let with = |write: GroupWrite, more: Vec<_>| GroupWrite {
        entries: more,
        hard_state: Some(hard_state(9, 0, 40)),
        conf: Some((conf(&[1, 2, 7]), 40)),
        ..write
    };
    // Ahead of the log, over a branch that lost, over a log that is cut, and twice in a write with entries between.
    log.write(&[with(snapshot(1, 90, 9, 2), entries(1, 91..=93, 9, 50))], true).unwrap();
    log.write(&[with(snapshot(2, 40, 9, 3), entries(2, 41..=42, 9, 50))], true).unwrap();
    log.write(&[snapshot(3, 30, 9, 4)], true).unwrap();
    log.write(
        &[append(4, entries(4, 51..=60, 1, 50)), snapshot(4, 55, 2, 5), append(4, entries(4, 56..=57, 2, 9))],
        true,
    )
    .unwrap();
    assert!(matches!(log.write(&[snapshot(1, 89, 9, 9)], true), Err(LogError::Corrupt { group: 1, .. })));
    for log in [log].into_iter().chain(std::iter::once_with(|| C::open(dir.path()).unwrap())) {
        let state = |group| log.load(group).unwrap().unwrap();
        let place = |group| {
            let s = state(group);
            (s.truncated_index, s.truncated_term, s.last_index, s.generation)
        };
        assert_eq!(place(1), (90, 9, 93, 2));
        assert_eq!(place(2), (40, 9, 42, 3));
        assert_eq!(place(3), (30, 9, 30, 4));
        assert_eq!(place(4), (55, 2, 57, 5));
        assert_eq!((state(1).hard_state.commit, state(1).conf_index), (40, 40));
        assert_eq!(all(&log, 1).unwrap(), entries(1, 91..=93, 9, 50));
        assert_eq!(all(&log, 2).unwrap(), entries(2, 41..=42, 9, 50));
        assert_eq!(all(&log, 4).unwrap(), entries(4, 56..=57, 2, 9));
        assert!(matches!(log.entries(2, 40, 42, 1000), Err(LogError::Compacted { group: 2, index: 40 })));
    }
    // The log goes on from there.
    let log = C::open(dir.path());
    let log = log.unwrap();
    log.write(&[append(1, entries(1, 94..=94, 9, 50)), append(3, entries(3, 31..=31, 9, 5))], true).unwrap();
    assert_eq!(all(&log, 1).unwrap(), entries(1, 91..=94, 9, 50));
    assert_eq!(all(&log, 3).unwrap(), entries(3, 31..=31, 9, 5));
}

fn a_removed_replica_leaves_nothing_but_its_id<C: Candidate>() {
    let dir = tempdir().unwrap();
    let log = C::open(dir.path()).unwrap();
    let create = |id| GroupWrite {
        group: 1,
        replica_id: Some(id),
        hard_state: Some(hard_state(1, 0, 0)),
        conf: Some((conf(&[]), 0)),
        ..GroupWrite::default()
    };
    log.write(&[create(5), append(1, entries(1, 1..=9, 1, 50)), append(2, entries(2, 1..=1, 1, 50))], true)
        .unwrap();
    log.truncate(1, 3, 1).unwrap();
    assert_eq!((log.load(1).unwrap().unwrap().replica_id, log.removed(1).unwrap()), (5, None));
    log.write(&[GroupWrite::remove(1)], true).unwrap();
    drop(log);
    let log = C::open(dir.path()).unwrap();
    assert_eq!((log.load(1).unwrap(), log.removed(1).unwrap()), (None, Some(5)));
    assert!(matches!(log.entries(1, 4, 5, 1000), Err(LogError::Missing { group: 1, .. })));
    for refused in [create(5), create(4), append(1, entries(1, 1..=1, 1, 5)), snapshot(1, 20, 1, 1)] {
        assert!(matches!(log.write(&[refused], true), Err(LogError::Corrupt { group: 1, .. })));
    }
    log.truncate(1, 9, 1).unwrap();
    assert_eq!(log.load(1).unwrap(), None);
    // A later incarnation starts from nothing, or from a snapshot.
    log.write(&[create(6)], true).unwrap();
    log.write(&[GroupWrite { entries: entries(1, 21..=22, 2, 50), ..snapshot(1, 20, 2, 1) }], true).unwrap();
    for log in [log].into_iter().chain(std::iter::once_with(|| C::open(dir.path()).unwrap())) {
        let state = log.load(1).unwrap().unwrap();
        assert_eq!((state.replica_id, state.last_index, state.generation), (6, 22, 1));
        assert_eq!(all(&log, 1).unwrap(), entries(1, 21..=22, 2, 50));
        assert_eq!(log.removed(1).unwrap(), None);
        assert_eq!(all(&log, 2).unwrap(), entries(2, 1..=1, 1, 50));
    }
}

fn limits_of_a_read<C: Candidate>() {
    let dir = tempdir().unwrap();
    let log = C::open(dir.path()).unwrap();
    let stored = entries(1, 1..=6, 1, 100);
    let size = u64::from(stored[0].compute_size());
    log.write(&[append(1, stored.clone())], true).unwrap();
    assert_eq!(log.entries(1, 2, 6, u64::MAX).unwrap(), stored[1..5]);
    assert_eq!(log.entries(1, 2, 6, 0).unwrap(), stored[1..2], "at least one");
    assert_eq!(log.entries(1, 1, 7, 3 * size).unwrap(), stored[..3]);
    assert_eq!(log.entries(1, 1, 7, 3 * size - 1).unwrap(), stored[..2]);
    assert_eq!(log.entries(1, 3, 3, 1000).unwrap(), []);
    assert!(matches!(log.entries(1, 0, 3, 1000), Err(LogError::Compacted { group: 1, index: 0 })));
    assert!(matches!(log.entries(1, 5, 8, 1000), Err(LogError::Missing { group: 1, index: 7 })));
    assert!(matches!(log.entries(1, 9, 10, 1000), Err(LogError::Missing { group: 1, index: 9 })));
    assert!(matches!(log.entries(2, 1, 2, 1000), Err(LogError::Missing { group: 2, index: 1 })));
}

fn every_field_of_an_entry_survives<C: Candidate>() {
    let dir = tempdir().unwrap();
    let log = C::open(dir.path()).unwrap();
    let mut odd = entry(1, 1, u64::MAX, 0);
    odd.set_entry_type(raft::eraftpb::EntryType::EntryConfChangeV2);
    odd.context = vec![0, 255].into();
    odd.sync_log = true;
    let plain = entry(1, 2, 1, 1);
    log.write(&[append(1, vec![odd.clone(), plain.clone()])], true).unwrap();
    drop(log);
    assert_eq!(all(&C::open(dir.path()).unwrap(), 1).unwrap(), [odd, plain]);
}

fn a_directory_has_one_owner<C: Candidate>() {
    let dir = tempdir().unwrap();
    let log = C::open(dir.path()).unwrap();
    assert!(C::open(dir.path()).is_err());
    drop(log);
    assert!(C::open(dir.path()).is_ok());
}

macro_rules! conformance {
    ($module:ident, $candidate:ty, [$($name:ident),* $(,)?]) => {
        mod $module {
            use super::*;
            $(#[test] fn $name() { super::$name::<$candidate>(); })*
        }
    };
    ($module:ident, $candidate:ty) => {
        conformance!($module, $candidate, [
            a_snapshot_takes_the_place_of_the_log, a_removed_replica_leaves_nothing_but_its_id,
            append_and_reopen, a_conflicting_suffix_is_replaced, state_and_entries_are_one_write,
            a_refused_write_changes_nothing, truncation, truncation_for_a_snapshot, limits_of_a_read,
            every_field_of_an_entry_survives, a_directory_has_one_owner,
        ]);
    };
}

conformance!(engine, Engine);
conformance!(rocks, Rocks);
conformance!(
    memory,
    Memory,
    [
        a_snapshot_takes_the_place_of_the_log,
        a_removed_replica_leaves_nothing_but_its_id,
        append_and_reopen,
        a_conflicting_suffix_is_replaced,
        truncation,
        every_field_of_an_entry_survives
    ]
);
