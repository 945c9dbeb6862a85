//! The simulated state store of one replica: tables with a durable plane and batches that are not flushed yet.
//!
//! Like the state family of a node, whose write-ahead log is off: a batch is atomic, a flush makes a prefix of the batches
//! durable, a crash keeps what was flushed and possibly some more of the oldest batches (a memtable that was full was
//! flushed without being asked). A row can rot: reading it fails, as a block checksum would make it.
use carillon_core::{MemTables, ReadTables, TableError, Tables, applied_record, keys};
use prost::bytes::Bytes;
use std::collections::{BTreeSet, VecDeque};

type Change = (Vec<u8>, Option<Vec<u8>>);

/// See the module documentation.
#[derive(Debug, Default)]
pub struct SimStore {
    current: MemTables,
    durable: MemTables,
    pending: VecDeque<Vec<Change>>,
    /// Durable rows that cannot be read any more.
    rotten: BTreeSet<Vec<u8>>,
}

impl SimStore {
    pub fn tables(&self) -> &MemTables {
        &self.current
    }

    /// A batch; nothing of it is kept unless it is committed.
    pub fn batch(&mut self) -> Batch<'_> {
        Batch { store: self, changes: Vec::new() }
    }

    /// Batches that a crash could take.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// The oldest `batches` become durable.
    pub fn flush(&mut self, batches: usize) {
        for _ in 0..batches {
            let Some(changes) = self.pending.pop_front() else { break };
            for (key, value) in changes {
                match value {
                    Some(value) => self.durable.put(key, value),
                    None => self.durable.delete(key),
                }
            }
        }
    }

    /// The applied index that would survive a crash now.
    pub fn durable_applied(&self) -> u64 {
        applied_record(&self.durable).map_or(0, |record| record.index)
    }

    /// Loses what is not durable but for the oldest `keep` batches.
    pub fn crash(&mut self, keep: usize) {
        self.flush(keep);
        self.pending.clear();
        self.current = self.durable.clone();
    }

    /// Planted bug: the applied index of the last batch survives although its rows do not.
    pub fn crash_with_applied_ahead(&mut self) {
        let applied = self.current.get(&keys::applied()).ok().flatten();
        self.crash(0);
        if let Some(row) = applied {
            self.durable.put(keys::applied(), row.to_vec());
            self.current = self.durable.clone();
        }
    }

    /// A durable row rots; `pick` says which. False if there is none.
    pub fn rot(&mut self, pick: u64) -> bool {
        let rows = self.durable.rows();
        let Some(key) = rows.keys().nth((pick % rows.len().max(1) as u64) as usize).cloned() else {
            return false;
        };
        self.rotten.insert(key);
        true
    }

    pub fn is_rotten(&self) -> bool {
        !self.rotten.is_empty()
    }

    fn check(&self, key: &[u8]) -> Result<(), TableError> {
        match self.rotten.contains(key) {
            true => Err(TableError::Storage("block checksum mismatch".to_owned())),
            false => Ok(()),
        }
    }
}

impl ReadTables for SimStore {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, TableError> {
        self.check(key)?;
        self.current.get(key)
    }

    fn scan(
        &self,
        start: &[u8],
        end: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), TableError> {
        if !self.rotten.is_empty()
            && start < end
            && self.rotten.range(start.to_vec()..end.to_vec()).next().is_some()
        {
            return Err(TableError::Storage("block checksum mismatch".to_owned()));
        }
        self.current.scan(start, end, visit)
    }
}

/// Changes that become visible to the store's readers and survive only together.
pub struct Batch<'a> {
    store: &'a mut SimStore,
    changes: Vec<Change>,
}

impl Batch<'_> {
    pub fn commit(self) {
        if !self.changes.is_empty() {
            self.store.pending.push_back(self.changes);
        }
    }
}

impl ReadTables for Batch<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, TableError> {
        self.store.get(key)
    }

    fn scan(
        &self,
        start: &[u8],
        end: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), TableError> {
        self.store.scan(start, end, visit)
    }
}

impl Tables for Batch<'_> {
    // A batch that is not committed fences the replica, whose tables are then read by nobody until a restart brings
    // the durable ones back; so there is nothing to undo.
    fn put(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.store.current.put(key.clone(), value.clone());
        self.changes.push((key, Some(value)));
    }

    fn delete(&mut self, key: Vec<u8>) {
        self.store.current.delete(key.clone());
        self.changes.push((key, None));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(store: &mut SimStore, key: u8) {
        let mut batch = store.batch();
        batch.put(vec![key], vec![key]);
        batch.commit();
    }

    #[test]
    fn a_crash_keeps_a_prefix_of_the_batches() {
        let mut store = SimStore::default();
        (1..=4).for_each(|key| put(&mut store, key));
        store.flush(1);
        store.crash(2);
        let kept: Vec<u8> = store.tables().rows().keys().map(|key| key[0]).collect();
        assert_eq!((kept, store.pending()), (vec![1, 2, 3], 0));
    }

    #[test]
    fn a_rotten_row_cannot_be_read() {
        let mut store = SimStore::default();
        (1..=3).for_each(|key| put(&mut store, key));
        store.flush(3);
        assert!(store.rot(1));
        assert!(store.get(&[2]).is_err() && store.get(&[1]).is_ok());
        assert!(store.scan(&[1], &[2], &mut |_, _| true).is_ok());
        assert!(store.scan(&[1], &[3], &mut |_, _| true).is_err());
    }
}
