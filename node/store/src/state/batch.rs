//! The overlay that `apply` writes into: reads see the batch's own writes, one commit makes them all visible.
//!
//! Gets look into a hash map first, so a command costs little more than its rows. Scans within a batch are rare:
//! they sort the touched keys of their range and merge them with the database.
//! Bound: the caller commits when [`ApplyBatch::bytes`] passes its budget; nothing is written before.
use super::replica::{get_row, range, storage};
use super::{Db, Shared, StateError};
use bytes::Bytes;
use carillon_core::tables::{ReadTables, TableError, Tables};
use hashbrown::HashMap;
use rocksdb::{BoundColumnFamily, WriteBatch, WriteOptions};
use std::sync::Arc;

/// What a commit wrote.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CommitStats {
    /// Distinct rows put or deleted.
    pub rows: usize,
    pub bytes: usize,
}

/// The last word of the batch on one key.
#[derive(Default)]
struct Row {
    /// `None` = deleted.
    value: Option<Bytes>,
    /// It was deleted by `delete_once` in this batch: RocksDB forgets the pair of a put and a single delete, so a key that
    /// comes back must be deleted before it is put again.
    once: bool,
}

/// Uncommitted writes over a replica. Dropping it forgets them.
pub struct ApplyBatch<'a> {
    shared: &'a Shared,
    handle: Arc<BoundColumnFamily<'a>>,
    rows: HashMap<Vec<u8>, Row>,
    bytes: usize,
}

impl<'a> ApplyBatch<'a> {
    pub(super) fn new(shared: &'a Shared, handle: Arc<BoundColumnFamily<'a>>) -> Self {
        Self { shared, handle, rows: HashMap::new(), bytes: 0 }
    }

    /// Bytes of keys and values given so far; an upper bound of what the commit writes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Makes everything visible at once. An error is fatal for the process.
    pub fn commit(self) -> Result<CommitStats, StateError> {
        self.shared.check()?;
        // In key order each insert starts where the last one ended, so the memtable is not searched from its top.
        let mut rows: Vec<_> = self.rows.iter().collect();
        rows.sort_unstable_by_key(|(key, _)| *key);
        let mut batch = WriteBatch::with_capacity_bytes(self.bytes + 16 * rows.len());
        for (key, row) in rows {
            match &row.value {
                None if !row.once => batch.delete_cf(&self.handle, key),
                None => batch.single_delete_cf(&self.handle, key),
                Some(value) => {
                    if row.once {
                        batch.single_delete_cf(&self.handle, key);
                    }
                    batch.put_cf(&self.handle, key, value);
                }
            }
        }
        let stats = CommitStats { rows: self.rows.len(), bytes: batch.size_in_bytes() };
        let mut options = WriteOptions::default();
        options.disable_wal(true);
        options.set_memtable_insert_hint_per_batch(true);
        self.shared.db.write_opt(batch, &options).map_err(|error| self.shared.fail(error))?;
        Ok(stats)
    }

    fn db(&self) -> &'a Db {
        &self.shared.db
    }
}

impl ReadTables for ApplyBatch<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, TableError> {
        match self.rows.get(key) {
            Some(row) => Ok(row.value.clone()),
            None => get_row(self.db(), &self.handle, key),
        }
    }

    fn scan(
        &self,
        start: &[u8],
        end: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), TableError> {
        let Some(options) = range(start, end) else { return Ok(()) };
        let mut touched: Vec<(&[u8], &Option<Bytes>)> = self
            .rows
            .iter()
            .map(|(key, row)| (key.as_slice(), &row.value))
            .filter(|(key, _)| start <= *key && *key < end)
            .collect();
        touched.sort_unstable_by_key(|(key, _)| *key);
        let mut touched = touched.into_iter().peekable();
        let mut stored = self.db().raw_iterator_cf_opt(&self.handle, options);
        stored.seek(start);
        loop {
            // The overlay row goes first when its key is not larger, and hides a stored row of the same key.
            let overlay_first = match (touched.peek(), stored.key()) {
                (Some((key, _)), Some(stored_key)) => *key <= stored_key,
                (Some(_), None) => true,
                (None, Some(_)) => false,
                (None, None) => break,
            };
            let go_on = if overlay_first {
                let (key, value) = touched.next().expect("peeked");
                if stored.key() == Some(key) {
                    stored.next();
                }
                value.as_ref().is_none_or(|value| visit(key, value))
            } else {
                let (key, value) = stored.item().expect("it has a key");
                let go_on = visit(key, value);
                stored.next();
                go_on
            };
            if !go_on {
                return Ok(());
            }
        }
        stored.status().map_err(storage)
    }
}

impl Tables for ApplyBatch<'_> {
    fn put(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.bytes += key.len() + value.len();
        self.rows.entry(key).or_default().value = Some(Bytes::from(value));
    }

    fn delete(&mut self, key: Vec<u8>) {
        self.bytes += key.len();
        self.rows.entry(key).or_default().value = None;
    }

    fn delete_once(&mut self, key: Vec<u8>) {
        self.bytes += key.len();
        let row = self.rows.entry(key).or_default();
        row.value = None;
        row.once = true;
    }
}
