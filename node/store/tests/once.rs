//! `delete_once`: rows that come and go leave nothing behind, and one that is deleted never comes back, whatever was
//! flushed or compacted in between.
use carillon_core::tables::{MemTables, ReadTables, Tables};
use carillon_store::{StateDb, StateOptions};
use proptest::prelude::*;
use tempfile::tempdir;

#[derive(Debug, Clone, Copy)]
enum Op {
    /// Puts the row if it is not there, deletes it otherwise.
    Toggle(u8),
    Commit,
    Flush,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![6 => (0u8..6).prop_map(Op::Toggle), 3 => Just(Op::Commit), 1 => Just(Op::Flush)]
}

fn rows(tables: &dyn ReadTables) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut rows = Vec::new();
    tables
        .scan(b"D", b"E", &mut |key, value| {
            rows.push((key.to_vec(), value.to_vec()));
            true
        })
        .unwrap();
    rows
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn rows_that_come_and_go_are_those_of_a_map(ops in prop::collection::vec(op(), 1..120)) {
        let dir = tempdir().unwrap();
        // Compactions after each second flush.
        let state = StateDb::open(dir.path(), &StateOptions::default()).unwrap();
        let replica = state.replica(1).unwrap();
        let (mut model, mut batch) = (MemTables::default(), replica.batch().unwrap());
        for (number, op) in ops.into_iter().enumerate() {
            match op {
                Op::Toggle(n) => {
                    let key = vec![b'D', n];
                    let there = model.get(&key).unwrap().is_some();
                    for tables in [&mut model as &mut dyn Tables, &mut batch] {
                        match there {
                            true => tables.delete_once(key.clone()),
                            false => tables.put(key.clone(), vec![number as u8; 3]),
                        }
                    }
                    prop_assert_eq!(rows(&batch), rows(&model));
                }
                Op::Commit | Op::Flush => {
                    batch.commit().unwrap();
                    if matches!(op, Op::Flush) {
                        state.flush(1).unwrap();
                    }
                    batch = replica.batch().unwrap();
                    prop_assert_eq!(rows(&*replica), rows(&model));
                }
            }
        }
        batch.commit().unwrap();
        state.flush(1).unwrap();
        drop((replica, state));
        let state = StateDb::open(dir.path(), &StateOptions::default()).unwrap();
        prop_assert_eq!(rows(&*state.replica(1).unwrap()), rows(&model));
    }
}

#[test]
fn what_came_and_went_in_memory_is_not_written_to_disk() {
    let dir = tempdir().unwrap();
    let state = StateDb::open(dir.path(), &StateOptions::default()).unwrap();
    let replica = state.replica(1).unwrap();
    let written = |once: bool| {
        let before = state.metrics().flushed_bytes;
        for number in 0..2000_u32 {
            let key = [b"D".as_slice(), &[u8::from(once)], &number.to_be_bytes()].concat();
            let mut batch = replica.batch().unwrap();
            batch.put(key.clone(), vec![7; 40]);
            batch.commit().unwrap();
            let mut batch = replica.batch().unwrap();
            match once {
                true => batch.delete_once(key),
                false => batch.delete(key),
            }
            batch.commit().unwrap();
        }
        state.flush(1).unwrap();
        state.metrics().flushed_bytes - before
    };
    let (deleted, once) = (written(false), written(true));
    assert!(once * 4 < deleted, "{once} bytes against {deleted} with ordinary deletes");
}
