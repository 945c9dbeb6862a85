//! The state database: overlay, bounds, generations, and the prefix that a crash leaves.
use bytes::Bytes;
use carillon_core::tables::{MemTables, ReadTables, Tables};
use carillon_proto::internal::AppliedRecord;
use carillon_store::{Family, StateDb, StateError, StateOptions};
use proptest::prelude::*;
use prost::Message;
use std::collections::BTreeMap;
use tempfile::tempdir;

type Rows = BTreeMap<Vec<u8>, Bytes>;

/// A few rows for each write, so that those by the background thread, by commits and by flushes take turns.
fn options(share_bytes: usize) -> StateOptions {
    StateOptions { waiting_bytes: share_bytes, share_bytes_min: share_bytes, ..StateOptions::default() }
}

fn scan(tables: &dyn ReadTables, start: &[u8], end: &[u8], rows_max: usize) -> Vec<(Vec<u8>, Bytes)> {
    let mut rows = Vec::new();
    let mut visit = |key: &[u8], value: &[u8]| {
        rows.push((key.to_vec(), Bytes::copy_from_slice(value)));
        rows.len() < rows_max
    };
    tables.scan(start, end, &mut visit).unwrap();
    rows
}

fn all(tables: &dyn ReadTables) -> Rows {
    scan(tables, &[], &[0xff; 9], usize::MAX).into_iter().collect()
}

fn applied(index: u64) -> Vec<u8> {
    AppliedRecord { index, term: 1, ..AppliedRecord::default() }.encode_to_vec()
}

#[derive(Debug, Clone)]
enum Op {
    Put(Vec<u8>, Vec<u8>),
    /// If there is no such row.
    PutNew(Vec<u8>, Vec<u8>),
    Delete(Vec<u8>),
    Scan(Vec<u8>, Vec<u8>, usize),
    /// Say that these are asked for next, and ask for them in this order or from the back.
    Expect(Vec<Vec<u8>>, bool),
    Commit,
    /// Start anew without a commit.
    Abandon,
    Flush,
}

/// Of tables that are kept in order, in a list, and in a hash map.
fn key() -> impl Strategy<Value = Vec<u8>> {
    let letter = prop_oneof![1 => Just(0u8), 1 => Just(b'D'), 3 => Just(b'M'), 1 => Just(b'S')];
    (letter, proptest::collection::vec(0u8..4, 0..3)).prop_map(|(letter, rest)| {
        let mut key = vec![letter];
        key.extend(rest);
        key
    })
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (key(), proptest::collection::vec(any::<u8>(), 0..20)).prop_map(|(k, v)| Op::Put(k, v)),
        6 => (key(), proptest::collection::vec(any::<u8>(), 0..20)).prop_map(|(k, v)| Op::PutNew(k, v)),
        5 => key().prop_map(Op::Delete),
        3 => (key(), key(), 1usize..10).prop_map(|(a, b, n)| Op::Scan(a, b, n)),
        2 => (proptest::collection::vec(key(), 0..6), any::<bool>()).prop_map(|(keys, back)| Op::Expect(keys, back)),
        1 => Just(Op::Commit),
        1 => Just(Op::Abandon),
        1 => Just(Op::Flush),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// A batch sees its own writes over the committed ones, readers outside see only commits.
    #[test]
    fn overlay_equals_the_model(ops in proptest::collection::vec(op(), 1..120)) {
        let dir = tempdir().unwrap();
        let state = StateDb::open(dir.path(), &options(2 << 10)).unwrap();
        let replica = state.replica(1).unwrap();
        let mut committed = MemTables::default();
        let mut model = committed.clone();
        let mut batch = replica.batch().unwrap();
        for op in ops {
            match op {
                Op::Put(key, value) => {
                    batch.put(key.clone(), value.clone());
                    model.put(key, value);
                }
                Op::PutNew(key, value) => {
                    if model.get(&key).unwrap().is_none() {
                        batch.put_new(key.clone(), value.clone());
                        model.put_new(key, value);
                    }
                }
                Op::Delete(key) => {
                    batch.delete(key.clone());
                    model.delete(key);
                }
                Op::Scan(start, end, rows_max) => {
                    prop_assert_eq!(scan(&batch, &start, &end, rows_max), scan(&model, &start, &end, rows_max));
                    prop_assert_eq!(batch.get(&start).unwrap(), model.get(&start).unwrap());
                    prop_assert_eq!(replica.get(&start).unwrap(), committed.get(&start).unwrap());
                    prop_assert_eq!(scan(&*replica, &start, &end, rows_max), scan(&committed, &start, &end, rows_max));
                }
                Op::Expect(mut keys, back) => {
                    batch.expect(keys.clone()).unwrap();
                    if back {
                        keys.reverse();
                    }
                    for key in keys {
                        prop_assert_eq!(batch.get(&key).unwrap(), model.get(&key).unwrap());
                    }
                }
                Op::Commit => {
                    let touched = !batch.is_empty();
                    prop_assert_eq!(batch.commit().unwrap().rows > 0, touched);
                    batch = replica.batch().unwrap();
                    committed = model.clone();
                }
                Op::Abandon => {
                    batch = replica.batch().unwrap();
                    model = committed.clone();
                }
                Op::Flush => { state.flush(1).unwrap(); }
            }
        }
        prop_assert_eq!(&all(&batch), model.rows());
        prop_assert_eq!(&all(&*replica), committed.rows());
    }

    /// Whatever was flushed by us or by RocksDB: what a crash leaves is exactly the state at the durable index.
    #[test]
    fn a_crash_leaves_a_prefix(
        steps in proptest::collection::vec((0u8..40, 0usize..3000, any::<bool>(), 0u8..12), 1..150),
    ) {
        let dir = tempdir().unwrap();
        let state = StateDb::open(&dir.path().join("live"), &options(8 << 10)).unwrap();
        let mut history: BTreeMap<u32, Vec<MemTables>> = (1..=2).map(|g| (g, vec![MemTables::default()])).collect();
        for (number, (key, size, delete, what)) in steps.into_iter().enumerate() {
            let group = 1 + u32::from(what % 2);
            let replica = state.replica(group).unwrap();
            let models = history.get_mut(&group).unwrap();
            let mut model = models.last().unwrap().clone();
            let mut batch = replica.batch().unwrap();
            for tables in [&mut model as &mut dyn Tables, &mut batch] {
                match delete {
                    true => tables.delete(vec![b'M', key]),
                    false => tables.put(vec![b'M', key], vec![number as u8; size]),
                }
                tables.put(b"A".to_vec(), applied(models.len() as u64));
            }
            batch.commit().unwrap();
            models.push(model);
            if what == 0 {
                state.flush(group).unwrap();
            }
        }
        let promised: BTreeMap<u32, u64> = state
            .families()
            .iter()
            .map(|family| (family.group, state.durable_applied(family.group).unwrap().map_or(0, |a| a.index)))
            .collect();
        state.checkpoint(&dir.path().join("crashed")).unwrap();
        let crashed = StateDb::open(&dir.path().join("crashed"), &options(8 << 10)).unwrap();
        for (group, promise) in promised {
            let replica = crashed.replica(group).unwrap();
            let index = crashed.durable_applied(group).unwrap().map_or(0, |a| a.index);
            prop_assert!(index >= promise, "{index} < {promise}");
            prop_assert_eq!(replica.applied().unwrap().map_or(0, |a| a.index), index);
            prop_assert_eq!(&all(&*replica), history[&group][index as usize].rows());
        }
    }
}

fn commit_one(state: &StateDb, group: u32, index: u64) {
    let replica = state.replica(group).unwrap();
    let mut batch = replica.batch().unwrap();
    batch.put(format!("M{index}").into_bytes(), vec![1; 10]);
    batch.put(b"A".to_vec(), applied(index));
    batch.commit().unwrap();
}

#[test]
fn durable_applied_lags_until_a_flush_and_a_crash_loses_exactly_the_rest() {
    let dir = tempdir().unwrap();
    let state = StateDb::open(&dir.path().join("live"), &StateOptions::default()).unwrap();
    commit_one(&state, 1, 1);
    assert_eq!(state.durable_applied(1).unwrap(), None);
    assert_eq!(state.flush(1).unwrap().unwrap().index, 1);
    commit_one(&state, 1, 2);
    commit_one(&state, 2, 1);
    assert_eq!(state.durable_applied(1).unwrap().unwrap().index, 1);
    assert_eq!(state.replica(1).unwrap().applied().unwrap().unwrap().index, 2);
    state.checkpoint(&dir.path().join("crashed")).unwrap();
    drop(state);

    let crashed = StateDb::open(&dir.path().join("crashed"), &StateOptions::default()).unwrap();
    assert_eq!(crashed.replica(1).unwrap().applied().unwrap().unwrap().index, 1);
    assert_eq!(crashed.replica(1).unwrap().get(b"M2").unwrap(), None);
    assert_eq!(crashed.replica(2).unwrap().applied().unwrap(), None);

    // A planned stop flushes, so nothing is replayed.
    let live = StateDb::open(&dir.path().join("live"), &StateOptions::default()).unwrap();
    assert_eq!(live.durable_applied(1).unwrap().unwrap().index, 2);
    assert_eq!(live.durable_applied(2).unwrap().unwrap().index, 1);
}

#[test]
fn a_failed_write_is_told_to_every_later_commit_and_readers_go_on() {
    let dir = tempdir().unwrap();
    let state = StateDb::open(dir.path(), &StateOptions::default()).unwrap();
    commit_one(&state, 1, 1);
    commit_one(&state, 2, 1);
    // Tables can no longer be made.
    std::fs::remove_dir_all(dir.path().join("write-back")).unwrap();
    let error = state.flush(1).unwrap_err();
    assert!(!error.is_damage(), "{error}");
    let other = state.replica(2).unwrap();
    let mut batch = other.batch().expect("whoever begins a batch is not to blame");
    batch.put(b"M9".to_vec(), vec![1]);
    assert_eq!(batch.commit().unwrap_err(), error);
    assert!(other.get(b"M9").unwrap().is_none());
    assert!(state.replica(1).unwrap().get(b"M1").unwrap().is_some());
    assert_eq!(state.flush(2).unwrap_err(), error);
    assert_eq!(state.durable_applied(1).unwrap(), None);
}

#[test]
fn scans_keep_their_bounds() {
    let dir = tempdir().unwrap();
    let state = StateDb::open(dir.path(), &StateOptions::default()).unwrap();
    let replica = state.replica(1).unwrap();
    let mut batch = replica.batch().unwrap();
    for key in ["a", "b", "ba", "c"] {
        batch.put(key.into(), key.into());
    }
    let keys = |tables: &dyn ReadTables, start: &str, end: &str| -> Vec<String> {
        scan(tables, start.as_bytes(), end.as_bytes(), 9)
            .into_iter()
            .map(|(key, _)| String::from_utf8(key).unwrap())
            .collect()
    };
    let checks: [(&str, &str, &[&str]); 6] = [
        ("", "z", &["a", "b", "ba", "c"]),
        ("b", "c", &["b", "ba"]),
        ("b", "b", &[]),
        ("c", "a", &[]),
        ("b\0", "c", &["ba"]),
        ("d", "z", &[]),
    ];
    for (start, end, expected) in checks {
        assert_eq!(keys(&batch, start, end), expected, "{start}..{end} in the batch");
    }
    batch.commit().unwrap();
    for (start, end, expected) in checks {
        assert_eq!(keys(&*replica, start, end), expected, "{start}..{end}");
        assert_eq!(keys(&replica.snapshot().unwrap(), start, end), expected, "{start}..{end} in a snapshot");
    }
}

#[test]
fn a_snapshot_does_not_move() {
    let dir = tempdir().unwrap();
    let state = StateDb::open(dir.path(), &StateOptions::default()).unwrap();
    commit_one(&state, 1, 1);
    let replica = state.replica(1).unwrap();
    let snapshot = replica.snapshot().unwrap();
    let before = all(&snapshot);
    commit_one(&state, 1, 2);
    state.flush(1).unwrap();
    assert_eq!(all(&snapshot), before);
    assert_eq!(snapshot.get(b"M2").unwrap(), None);
    assert_ne!(all(&*replica), before);
}

#[test]
fn generations_are_separate_listed_and_destroyed() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("state");
    let state = StateDb::open(&path, &StateOptions::default()).unwrap();
    assert_eq!(state.families(), []);
    commit_one(&state, 7, 1);
    commit_one(&state, 8, 1);
    let old = state.replica(7).unwrap();
    let next = state.replica_at(Family { group: 7, generation: 2 }).unwrap();
    assert_eq!(next.get(b"M1").unwrap(), None);
    assert!(matches!(state.replica(7), Err(StateError::Ambiguous { group: 7, .. })));
    assert!(matches!(state.durable_applied(9), Err(StateError::NoReplica(_))));
    drop((old, next));
    state.flush(8).unwrap();
    drop(state);

    let state = StateDb::open(&path, &StateOptions::default()).unwrap();
    let names: Vec<String> = state.families().iter().map(Family::to_string).collect();
    assert_eq!(names, ["g7.1", "g7.2", "g8.1"]);
    state.destroy_generation(Family { group: 7, generation: 1 }).unwrap();
    assert_eq!(state.replica(7).unwrap().family().generation, 2);
    let held = state.replica(8).unwrap();
    state.destroy(8).unwrap();
    assert!(held.get(b"M1").is_err(), "a destroyed replica does not answer");
    assert!(matches!(held.batch(), Err(StateError::NoReplica(_))));
    assert_eq!(state.replica(8).unwrap().applied().unwrap(), None, "it starts empty again");
}

#[test]
fn families_of_no_replica_are_named_and_kept() {
    let dir = tempdir().unwrap();
    {
        let mut options = rocksdb::Options::default();
        options.create_if_missing(true);
        options.create_missing_column_families(true);
        rocksdb::DB::open_cf(&options, dir.path(), ["g1.1", "somebody"]).unwrap();
    }
    let state = StateDb::open(dir.path(), &StateOptions::default()).unwrap();
    assert_eq!(state.unknown_families(), ["somebody"]);
    assert_eq!(state.families(), [Family { group: 1, generation: 1 }]);
    drop(state);
    assert_eq!(StateDb::open(dir.path(), &StateOptions::default()).unwrap().unknown_families(), ["somebody"]);
}

/// 17 families that write as fast as they can: at most twice their shares wait, whatever the disk does.
#[test]
fn memory_of_many_families_is_bounded() {
    let dir = tempdir().unwrap();
    let state = StateDb::open(dir.path(), &StateOptions::default()).unwrap();
    let mut highest = 0;
    for round in 0..120u64 {
        for group in 0..17 {
            let replica = state.replica(group).unwrap();
            let mut batch = replica.batch().unwrap();
            for row in 0..100u64 {
                batch.put(format!("M{round:05}{row:05}").into_bytes(), vec![group as u8; 1000]);
            }
            batch.commit().unwrap();
        }
        highest = highest.max(state.memory_stats().waiting_bytes);
    }
    assert!(highest > 16 << 20, "rows wait: {highest}");
    // One commit may go beyond, and one share may be on its way to the disk.
    let bound = 3 * StateOptions::default().waiting_bytes as u64;
    assert!(highest < bound, "{highest} bytes of rows wait");
    let metrics = state.metrics();
    assert!(metrics.flushed_bytes > 0 && metrics.sst_bytes > 0);
    assert!(!metrics.write_stopped && metrics.background_errors == 0);
}
