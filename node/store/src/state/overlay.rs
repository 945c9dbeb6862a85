//! Rows that are committed and not yet given to RocksDB.
//!
//! Most rows of a message live for a moment: it is due, in flight, submitted, delivered. Because the raft log is the
//! WAL, committed rows may wait in memory: a row that is written again replaces itself here, and one that is created and
//! deleted here never reaches RocksDB at all. [`Overlay::write_back`] gives everything to RocksDB as one write batch,
//! applied record included, so what is on disk stays a prefix of the apply order.
//!
//! Rows of the tables that are read by range ([`RANGED`]) are kept in order; the others, which are nearly all, in a hash
//! map: a scan over them is rare and sorts.
//! Bound: `StateOptions::write_back_bytes` for each replica; the commit that passes it writes back.
use super::{Shared, StateError};
use bytes::Bytes;
use hashbrown::HashMap;
use hashbrown::hash_map::Entry;
use rocksdb::{BoundColumnFamily, WriteBatch, WriteOptions};
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

/// Bytes that a row costs in memory besides its key and value, about.
const ROW_BYTES: usize = 96;

/// Letters of the tables whose rows are read by range all the time: due times, events, keys that outlive their message.
const RANGED: [u8; 3] = [b'D', b'E', b'K'];

/// A row as one layer knows it.
#[derive(Debug, Clone)]
pub(super) struct Row {
    /// `None` = deleted.
    pub value: Option<Bytes>,
    /// The layers below have no such row, so deleting it leaves nothing to say.
    pub fresh: bool,
}

/// The committed rows of one replica that RocksDB does not have.
#[derive(Debug, Default)]
pub(super) struct Overlay {
    ranged: BTreeMap<Vec<u8>, Row>,
    others: HashMap<Vec<u8>, Row>,
    bytes: usize,
}

fn is_ranged(key: &[u8]) -> bool {
    key.first().is_some_and(|letter| RANGED.contains(letter))
}

fn value_bytes(value: &Option<Bytes>) -> usize {
    value.as_ref().map_or(0, Bytes::len)
}

impl Overlay {
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// `None` = ask RocksDB, `Some(None)` = deleted.
    pub fn get(&self, key: &[u8]) -> Option<Option<Bytes>> {
        let row = if is_ranged(key) { self.ranged.get(key) } else { self.others.get(key) };
        row.map(|row| row.value.clone())
    }

    /// Rows with `start <= key < end`: `None` = deleted.
    pub fn range(&self, start: &[u8], end: &[u8]) -> BTreeMap<Vec<u8>, Option<Bytes>> {
        if start >= end {
            return BTreeMap::new();
        }
        let copy = |(key, row): (&Vec<u8>, &Row)| (key.clone(), row.value.clone());
        let bounds = (Bound::Included(start), Bound::Excluded(end));
        let mut rows: BTreeMap<_, _> = self.ranged.range::<[u8], _>(bounds).map(copy).collect();
        // Within one ranged table there is nothing else to find.
        let one_table = start.first().is_some_and(|letter| is_ranged(start) && end <= &[letter + 1][..]);
        if !one_table {
            let within = |key: &[u8]| start <= key && key < end;
            rows.extend(self.others.iter().filter(|(key, _)| within(key.as_slice())).map(copy));
        }
        rows
    }

    /// Takes over a row of a batch.
    pub fn merge(&mut self, key: Vec<u8>, row: Row) {
        let key_bytes = key.len() + ROW_BYTES;
        if is_ranged(&key) {
            // Deleted and made rows alternate here, so the entry is looked up once more only to remove it.
            let (old, new) = (self.ranged.get_mut(&key), value_bytes(&row.value));
            match old {
                None => {
                    self.bytes += key_bytes + new;
                    self.ranged.insert(key, row);
                }
                Some(old) if row.value.is_none() && old.fresh => {
                    self.bytes -= key_bytes + value_bytes(&old.value);
                    self.ranged.remove(&key);
                }
                Some(old) => {
                    self.bytes = self.bytes + new - value_bytes(&old.value);
                    // What RocksDB has does not change with the value.
                    old.value = row.value;
                }
            }
            return;
        }
        match self.others.entry(key) {
            Entry::Vacant(vacant) => {
                self.bytes += key_bytes + value_bytes(&row.value);
                vacant.insert(row);
            }
            Entry::Occupied(occupied) if row.value.is_none() && occupied.get().fresh => {
                self.bytes -= key_bytes + value_bytes(&occupied.get().value);
                occupied.remove();
            }
            Entry::Occupied(mut occupied) => {
                self.bytes = self.bytes + value_bytes(&row.value) - value_bytes(&occupied.get().value);
                occupied.get_mut().value = row.value;
            }
        }
    }

    /// Gives all rows to RocksDB in one batch and forgets them. An error is fatal for the process.
    pub fn write_back(
        &mut self,
        shared: &Shared,
        handle: &Arc<BoundColumnFamily<'_>>,
    ) -> Result<usize, StateError> {
        shared.check()?;
        let count = self.ranged.len() + self.others.len();
        if count == 0 {
            return Ok(0);
        }
        let mut rows: Vec<_> = self.ranged.iter().chain(&self.others).collect();
        rows.sort_unstable_by_key(|(key, _)| *key);
        // In key order each insert starts where the last one ended, so the memtable is not searched from its top.
        let mut batch = WriteBatch::with_capacity_bytes(self.bytes);
        for (key, row) in rows {
            match &row.value {
                Some(value) => batch.put_cf(handle, key, value),
                None => batch.delete_cf(handle, key),
            }
        }
        let bytes = batch.size_in_bytes();
        let mut options = WriteOptions::default();
        options.disable_wal(true);
        options.set_memtable_insert_hint_per_batch(true);
        shared.db.write_opt(batch, &options).map_err(|error| shared.fail(error))?;
        metrics::counter!("carillon_state_write_back_bytes_total").increment(bytes as u64);
        metrics::counter!("carillon_state_write_back_rows_total").increment(count as u64);
        self.ranged.clear();
        self.others.clear();
        self.bytes = 0;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn live(value: &'static [u8], fresh: bool) -> Row {
        Row { value: Some(Bytes::from_static(value)), fresh }
    }

    const GONE: Row = Row { value: None, fresh: false };

    #[test]
    fn a_row_made_and_deleted_here_leaves_nothing() {
        let mut overlay = Overlay::default();
        overlay.merge(b"a".to_vec(), live(b"1", true));
        overlay.merge(b"a".to_vec(), live(b"22", false));
        assert_eq!(overlay.get(b"a"), Some(Some(Bytes::from_static(b"22"))));
        overlay.merge(b"a".to_vec(), GONE);
        assert_eq!((overlay.get(b"a"), overlay.bytes()), (None, 0));
    }

    #[test]
    fn a_row_that_rocksdb_may_have_leaves_a_tombstone() {
        let mut overlay = Overlay::default();
        overlay.merge(b"a".to_vec(), GONE);
        // Made again: what lies below is still hidden by the first delete only.
        overlay.merge(b"a".to_vec(), live(b"1", true));
        overlay.merge(b"a".to_vec(), GONE);
        assert_eq!(overlay.get(b"a"), Some(None));
    }

    #[test]
    fn ranges_are_half_open_and_may_be_empty() {
        let mut overlay = Overlay::default();
        for key in ["D1", "D2", "M1", "M2", "E1"] {
            overlay.merge(key.into(), live(b"1", true));
        }
        let keys = |start: &str, end: &str| {
            let rows = overlay.range(start.as_bytes(), end.as_bytes());
            rows.into_keys().map(|key| String::from_utf8(key).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(keys("D", "E"), ["D1", "D2"]);
        assert_eq!(keys("D2", "M2"), ["D2", "E1", "M1"]);
        assert_eq!(keys("M1", "N"), ["M1", "M2"]);
        assert!(keys("M1", "M1").is_empty() && keys("M2", "D1").is_empty());
    }

    #[test]
    fn bytes_return_to_zero_when_everything_is_gone() {
        let mut overlay = Overlay::default();
        for key in ["D1", "M1"] {
            overlay.merge(key.into(), live(b"12345", true));
            overlay.merge(key.into(), live(b"1", false));
            assert!(overlay.bytes() > 0);
            overlay.merge(key.into(), GONE);
            assert_eq!(overlay.bytes(), 0);
        }
    }
}
