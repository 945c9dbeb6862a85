//! The storage that the pure core works on: an ordered map of bytes.
//!
//! Production gives it RocksDB under an overlay of the current batch, so that commands of one batch see each
//! other's writes; tests and the simulator give it [`MemTables`].
use bytes::Bytes;
use std::collections::BTreeMap;
use std::ops::Bound;

/// The storage failed or holds something that cannot be decoded. Fences the replica; never a business refusal.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    #[error("storage: {0}")]
    Storage(String),
    #[error("corrupt record in table {table}: {reason}")]
    Corrupt { table: char, reason: String },
}

/// Read side: queries and rebuilding of volatile state.
pub trait ReadTables {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, TableError>;

    /// Calls `visit` for each row with `start <= key < end`, in key order, until it returns false.
    fn scan(
        &self,
        start: &[u8],
        end: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), TableError>;
}

/// Read and write side: what `apply` gets. Reads see earlier writes of the same batch.
pub trait Tables: ReadTables {
    fn put(&mut self, key: Vec<u8>, value: Vec<u8>);

    /// As `put`, by a caller who knows that there is no row with this key: if it is deleted soon, storage need not
    /// hear of it.
    fn put_new(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.put(key, value);
    }

    fn delete(&mut self, key: Vec<u8>);

    /// These rows will be asked for next, in this order, and most of them do not exist: storage may look for all of them in one go.
    /// Only a hint; what is said later by `put` and `delete` counts.
    fn expect(&mut self, _keys: Vec<Vec<u8>>) -> Result<(), TableError> {
        Ok(())
    }
}

/// Tables in memory.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct MemTables {
    rows: BTreeMap<Vec<u8>, Bytes>,
}

impl MemTables {
    pub fn rows(&self) -> &BTreeMap<Vec<u8>, Bytes> {
        &self.rows
    }
}

impl ReadTables for MemTables {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, TableError> {
        Ok(self.rows.get(key).cloned())
    }

    fn scan(
        &self,
        start: &[u8],
        end: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), TableError> {
        if start >= end {
            return Ok(());
        }
        for (key, value) in self.rows.range::<[u8], _>((Bound::Included(start), Bound::Excluded(end))) {
            if !visit(key, value) {
                break;
            }
        }
        Ok(())
    }
}

impl Tables for MemTables {
    fn put(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.rows.insert(key, Bytes::from(value));
    }

    /// # Panics
    /// if the caller was wrong.
    fn put_new(&mut self, key: Vec<u8>, value: Vec<u8>) {
        let letter = char::from(key.first().copied().unwrap_or_default());
        assert!(self.rows.insert(key, Bytes::from(value)).is_none(), "table {letter} has this row already");
    }

    fn delete(&mut self, key: Vec<u8>) {
        self.rows.remove(&key);
    }
}
