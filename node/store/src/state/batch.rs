//! What `apply` writes into: reads see the batch's own writes over what is committed, one commit makes them all visible.
//!
//! Gets look into a hash map first, so a command costs little more than its rows. Scans within a batch are rare:
//! they sort the touched keys of their range and merge them with what is committed.
//! A commit does not wait for RocksDB, unless the thread that writes is far behind.
//! Bound: the caller commits when [`ApplyBatch::bytes`] passes its budget; nothing is visible before.
use super::StateError;
use super::overlay::{Key, Payloads, Row, find_payload, is_payload};
use super::replica::{Replica, get_row, merge_scan, range, storage};
use bytes::Bytes;
use carillon_core::tables::{ReadTables, TableError, Tables};
use hashbrown::HashMap;
use hashbrown::hash_map::Entry;
use rocksdb::BoundColumnFamily;
use std::cell::Cell;
use std::sync::Arc;

/// A larger map is not kept for the next batch.
const SPARE_ROWS_MAX: usize = 4_096;

/// What a commit made visible.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CommitStats {
    /// Distinct rows put or deleted.
    pub rows: usize,
    /// Bytes given to RocksDB by it: 0 unless the background thread is behind.
    pub bytes: usize,
}

/// Uncommitted writes over a replica. Dropping it forgets them.
pub struct ApplyBatch<'a> {
    replica: &'a Replica,
    handle: Arc<BoundColumnFamily<'a>>,
    rows: HashMap<Key, Row>,
    /// New ones; what changed of them is in `rows`.
    payloads: Payloads,
    expected: Expected,
    bytes: usize,
}

/// Rows that were looked up together: as they were committed, so the batch's own come before them. They stay true as long as the
/// batch lives, because nobody else commits.
#[derive(Default)]
struct Expected {
    rows: Vec<(Vec<u8>, Option<Bytes>)>,
    /// They are asked for in order.
    next: Cell<usize>,
}

impl Expected {
    fn get(&self, key: &[u8]) -> Option<&Option<Bytes>> {
        let (before, after) = self.rows.split_at(self.next.get().min(self.rows.len()));
        let (at, (_, value)) = (self.next.get()..)
            .zip(after)
            .chain((0..).zip(before))
            .find(|(_, (expected, _))| expected == key)?;
        self.next.set(at + 1);
        Some(value)
    }
}

impl<'a> ApplyBatch<'a> {
    pub(super) fn new(replica: &'a Replica, handle: Arc<BoundColumnFamily<'a>>) -> Self {
        let rows = std::mem::take(&mut *replica.spare.lock());
        Self { replica, handle, rows, payloads: Vec::new(), expected: Expected::default(), bytes: 0 }
    }

    /// Bytes of keys and values given so far; an upper bound of what the commit keeps.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.payloads.is_empty()
    }

    /// Makes everything visible at once. An error is fatal for the process.
    pub fn commit(mut self) -> Result<CommitStats, StateError> {
        let shared = &self.replica.shared;
        shared.check()?;
        let rows = self.rows.len() + self.payloads.len();
        let waiting = self.replica.layers.write().merge(self.payloads.drain(..), self.rows.drain());
        if self.rows.capacity() <= SPARE_ROWS_MAX {
            *self.replica.spare.lock() = self.rows;
        }
        let share = shared.share_bytes();
        let bytes = if waiting >= 2 * share {
            self.replica.write_back()?
        } else {
            if waiting >= share {
                self.replica.ask_write_back();
            }
            0
        };
        Ok(CommitStats { rows, bytes })
    }
}

impl ReadTables for ApplyBatch<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, TableError> {
        if let Some(row) = self.rows.get(key) {
            return Ok(row.value.clone());
        }
        if is_payload(key)
            && let Some(value) = find_payload(&self.payloads, key)
        {
            return Ok(Some(value.clone()));
        }
        if let Some(value) = self.expected.get(key) {
            return Ok(value.clone());
        }
        if let Some(value) = self.replica.layers.read().get(key) {
            return Ok(value);
        }
        get_row(&self.replica.shared.db, &self.handle, key)
    }

    fn scan(
        &self,
        start: &[u8],
        end: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), TableError> {
        let Some(options) = range(start, end) else { return Ok(()) };
        let (mut rows, stored) = self.replica.rows_and_stored(&self.handle, start, end, options);
        let payloads =
            self.payloads.iter().filter(|(key, _)| start <= key.as_slice() && key.as_slice() < end);
        rows.extend(payloads.map(|(key, value)| (key.clone(), Some(value.clone()))));
        for (key, row) in self.rows.iter().filter(|(key, _)| start <= key.as_slice() && key.as_slice() < end)
        {
            rows.insert(key.clone(), row.value.clone());
        }
        merge_scan(rows, stored, start, visit)
    }
}

impl Tables for ApplyBatch<'_> {
    fn put(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.bytes += key.len() + value.len();
        let value = Some(Bytes::from(value));
        match self.rows.entry(Key::from_slice(&key)) {
            Entry::Occupied(mut row) => row.get_mut().value = value,
            Entry::Vacant(row) => drop(row.insert(Row { value, fresh: false })),
        }
    }

    fn put_new(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.bytes += key.len() + value.len();
        let (key, value) = (Key::from_slice(&key), Bytes::from(value));
        let payload = is_payload(&key);
        if payload
            && self.payloads.last().is_none_or(|(last, _)| *last < key)
            && !self.rows.contains_key(&key)
        {
            self.payloads.push((key, value));
            return;
        }
        let value = Some(value);
        match self.rows.entry(key) {
            Entry::Occupied(mut row) => row.get_mut().value = value,
            Entry::Vacant(row) => drop(row.insert(Row { value, fresh: !payload })),
        }
    }

    fn delete(&mut self, key: Vec<u8>) {
        self.bytes += key.len();
        match self.rows.entry(Key::from_slice(&key)) {
            Entry::Occupied(row) if row.get().fresh => drop(row.remove()),
            Entry::Occupied(mut row) => row.get_mut().value = None,
            Entry::Vacant(row) => drop(row.insert(Row { value: None, fresh: false })),
        }
    }

    /// One pass over the tables of the database for all of them, where one look-up each would be most of what apply costs.
    fn expect(&mut self, keys: Vec<Vec<u8>>) -> Result<(), TableError> {
        let mut unknown: Vec<Vec<u8>> = {
            let layers = self.replica.layers.read();
            keys.into_iter()
                .filter(|key| !self.rows.contains_key(key.as_slice()) && layers.get(key).is_none())
                .collect()
        };
        self.expected.rows.clear();
        self.expected.next.set(0);
        if unknown.is_empty() {
            return Ok(());
        }
        // What layers do not know now is not committed later, and a write only moves rows from them to the database.
        let found = self.replica.shared.db.batched_multi_get_cf(&self.handle, &unknown, false);
        for (key, row) in unknown.drain(..).zip(found) {
            let row = row.map_err(storage)?.map(|value| Bytes::copy_from_slice(&value));
            self.expected.rows.push((key, row));
        }
        Ok(())
    }
}
