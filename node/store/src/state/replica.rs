//! One replica's rows: committed state for any thread, consistent snapshots, and the start of an apply batch.
//!
//! What is committed is the overlay over RocksDB. A reader looks at the overlay first, and rows leave it only after RocksDB has
//! them; an iterator is opened under the same lock. So no reader misses a row that moves between the two.
use super::batch::ApplyBatch;
use super::overlay::{Key, Layers, Row};
use super::write_back::TableWriter;
use super::{Family, Shared, StateError, decode_applied};
use bytes::Bytes;
use carillon_core::tables::{ReadTables, TableError};
use carillon_proto::internal::AppliedRecord;
use hashbrown::HashMap;
use parking_lot::{Mutex, RwLock};
use rocksdb::{
    BoundColumnFamily, DBAccess, DBRawIteratorWithThreadMode, IngestExternalFileOptions, Options,
    ReadOptions, SnapshotWithThreadMode, SstFileWriter,
};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use super::Db;

/// Overlay rows of a scan: `None` = deleted.
pub(super) type OverlayRows = BTreeMap<Key, Option<Bytes>>;

/// A family of the state database. Reads see committed batches only.
pub struct Replica {
    pub(super) shared: Arc<Shared>,
    pub(super) layers: RwLock<Layers>,
    /// The empty map of the last batch, for the next one.
    pub(super) spare: Mutex<HashMap<Key, Row>>,
    /// Held by whoever gives rows to RocksDB, so that they come in the order of their commits.
    writer: Mutex<TableWriter>,
    /// The background thread has been asked to write.
    asked: AtomicBool,
    family: Family,
    name: String,
    own: Weak<Self>,
}

impl Replica {
    pub(crate) fn new(shared: Arc<Shared>, family: Family) -> Arc<Self> {
        Arc::new_cyclic(|own| Self {
            shared,
            layers: RwLock::default(),
            spare: Mutex::default(),
            writer: Mutex::default(),
            asked: AtomicBool::new(false),
            family,
            name: family.to_string(),
            own: own.clone(),
        })
    }

    pub fn family(&self) -> Family {
        self.family
    }

    pub fn group(&self) -> u32 {
        self.family.group
    }

    /// Starts a batch; it may cover several raft entries. One at a time for a replica. That an earlier write failed is told by the
    /// commit: it concerns the process, not this replica.
    pub fn batch(&self) -> Result<ApplyBatch<'_>, StateError> {
        Ok(ApplyBatch::new(self, self.handle()?))
    }

    /// A view that later commits do not change. Hold it briefly: it keeps old rows alive. Writes back first, so that
    /// RocksDB has everything.
    pub fn snapshot(&self) -> Result<ReplicaSnapshot<'_>, StateError> {
        let handle = self.handle()?;
        self.write_back()?;
        Ok(ReplicaSnapshot {
            handle,
            snapshot: self.shared.db.snapshot(),
            group: self.family.group,
            applied_key: self.shared.applied_key.clone(),
        })
    }

    /// Gives RocksDB everything that waits in memory at this moment; it is on disk when this returns. Gives the bytes. Commits and
    /// reads go on meanwhile. An error is fatal for the process, unless the replica is gone.
    pub(super) fn write_back(&self) -> Result<usize, StateError> {
        let mut writer = self.writer.lock();
        self.asked.store(false, Ordering::Release);
        self.shared.check()?;
        let handle = self.handle()?;
        let Some(rows) = self.layers.write().freeze() else { return Ok(0) };
        let bytes = writer.write(&self.shared, &handle, self.family, &rows)?;
        let written = self.layers.write().written();
        drop(handle);
        drop(writer);
        // Freeing so many rows takes a while, and nobody should wait for it.
        drop((rows, written));
        Ok(bytes)
    }

    /// Has the background thread write back, once.
    pub(super) fn ask_write_back(&self) {
        if self.asked.swap(true, Ordering::AcqRel) {
            return;
        }
        if !self.own.upgrade().is_some_and(|own| self.shared.ask_write_back(own)) {
            // It is asked again with the next commit.
            self.asked.store(false, Ordering::Release);
        }
    }

    /// Runs while no write is under way; later ones find no family.
    pub(super) fn between_writes<T>(&self, action: impl FnOnce() -> T) -> T {
        let _none = self.writer.lock();
        action()
    }

    /// Rows of a range that wait, and an iterator over what is stored, as of one moment.
    pub(super) fn rows_and_stored<'a>(
        &'a self,
        handle: &Arc<BoundColumnFamily<'_>>,
        start: &[u8],
        end: &[u8],
        options: ReadOptions,
    ) -> (OverlayRows, DBRawIteratorWithThreadMode<'a, Db>) {
        let layers = self.layers.read();
        (layers.range(start, end), self.shared.db.raw_iterator_cf_opt(handle, options))
    }

    /// The applied record in memory, ahead of the durable one.
    pub fn applied(&self) -> Result<Option<AppliedRecord>, StateError> {
        let handle = self.handle()?;
        if let Some(value) = self.layers.read().get(&self.shared.applied_key) {
            return decode_applied(self.family.group, value.as_deref());
        }
        let value = self.shared.db.get_pinned_cf(&handle, &self.shared.applied_key)?;
        decode_applied(self.family.group, value.as_deref())
    }

    /// Takes over sorted table files; they are on disk and in the database's manifest when this returns.
    pub(crate) fn ingest(&self, paths: Vec<PathBuf>) -> Result<(), StateError> {
        self.shared.check()?;
        let mut options = IngestExternalFileOptions::default();
        options.set_move_files(true);
        Ok(self.shared.db.ingest_external_file_cf_opts(&self.handle()?, &options, paths)?)
    }

    pub(crate) fn handle(&self) -> Result<Arc<BoundColumnFamily<'_>>, StateError> {
        self.shared.handle(&self.name).ok_or(StateError::NoReplica(self.family))
    }
}

impl ReadTables for Replica {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, TableError> {
        let handle = self.handle().map_err(|error| TableError::Storage(error.to_string()))?;
        let waiting = self.layers.read().get(key);
        match waiting {
            Some(value) => Ok(value),
            None => get_row(&self.shared.db, &handle, key),
        }
    }

    fn scan(
        &self,
        start: &[u8],
        end: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), TableError> {
        let handle = self.handle().map_err(|error| TableError::Storage(error.to_string()))?;
        let Some(options) = range(start, end) else { return Ok(()) };
        // The iterator sees RocksDB as of then, so the visitor runs without the lock.
        let (rows, stored) = self.rows_and_stored(&handle, start, end, options);
        merge_scan(rows, stored, start, visit)
    }
}

/// A consistent view of one replica.
pub struct ReplicaSnapshot<'a> {
    handle: Arc<BoundColumnFamily<'a>>,
    snapshot: SnapshotWithThreadMode<'a, Db>,
    group: u32,
    applied_key: Vec<u8>,
}

impl ReplicaSnapshot<'_> {
    /// Over all rows, leaving the block cache to others.
    pub(crate) fn cursor(&self) -> DBRawIteratorWithThreadMode<'_, Db> {
        let mut options = ReadOptions::default();
        options.fill_cache(false);
        options.set_readahead_size(1 << 20);
        self.snapshot.raw_iterator_cf_opt(&self.handle, options)
    }

    pub(crate) fn applied(&self) -> Result<Option<AppliedRecord>, StateError> {
        let value = self.snapshot.get_pinned_cf(&self.handle, &self.applied_key)?;
        decode_applied(self.group, value.as_deref())
    }
}

/// Writes a sorted table that a family can take over.
pub(crate) struct SstWriter<'a> {
    writer: SstFileWriter<'a>,
}

impl<'a> SstWriter<'a> {
    pub fn create(replica: &'a Replica, path: &Path) -> Result<Self, StateError> {
        Self::with_options(&replica.shared.parts.family_options, path)
    }

    pub(super) fn with_options(options: &'a Options, path: &Path) -> Result<Self, StateError> {
        let writer = SstFileWriter::create(options);
        writer.open(path)?;
        Ok(Self { writer })
    }

    /// Keys must rise.
    pub fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), StateError> {
        Ok(self.writer.put(key, value)?)
    }

    /// As [`Self::put`], for a row that is gone.
    pub(super) fn delete(&mut self, key: &[u8]) -> Result<(), StateError> {
        Ok(self.writer.delete(key)?)
    }

    /// Writes the rest and syncs the file.
    pub fn finish(mut self) -> Result<(), StateError> {
        Ok(self.writer.finish()?)
    }
}

impl ReadTables for ReplicaSnapshot<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, TableError> {
        let row = self.snapshot.get_pinned_cf(&self.handle, key).map_err(storage)?;
        Ok(row.map(|value| Bytes::copy_from_slice(&value)))
    }

    fn scan(
        &self,
        start: &[u8],
        end: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), TableError> {
        let Some(options) = range(start, end) else { return Ok(()) };
        let stored = self.snapshot.raw_iterator_cf_opt(&self.handle, options);
        merge_scan(OverlayRows::new(), stored, start, visit)
    }
}

pub(super) fn get_row(
    db: &Db,
    handle: &Arc<BoundColumnFamily<'_>>,
    key: &[u8],
) -> Result<Option<Bytes>, TableError> {
    let row = db.get_pinned_cf(handle, key).map_err(storage)?;
    Ok(row.map(|value| Bytes::copy_from_slice(&value)))
}

/// Read options of `start..end`, or `None` when nothing can be in it.
pub(super) fn range(start: &[u8], end: &[u8]) -> Option<ReadOptions> {
    (start < end).then(|| {
        let mut options = ReadOptions::default();
        options.set_iterate_lower_bound(start);
        options.set_iterate_upper_bound(end);
        options
    })
}

/// Visits overlay and stored rows in one order; an overlay row hides the stored one of the same key.
pub(super) fn merge_scan<'a, D: DBAccess + 'a>(
    overlay: OverlayRows,
    mut stored: DBRawIteratorWithThreadMode<'a, D>,
    start: &[u8],
    visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
) -> Result<(), TableError> {
    let mut overlay = overlay.into_iter().peekable();
    stored.seek(start);
    loop {
        let overlay_first = match (overlay.peek(), stored.key()) {
            (Some((key, _)), Some(stored_key)) => key.as_slice() <= stored_key,
            (Some(_), None) => true,
            (None, Some(_)) => false,
            (None, None) => break,
        };
        let go_on = if overlay_first {
            let (key, value) = overlay.next().expect("peeked");
            if stored.key() == Some(&key) {
                stored.next();
            }
            value.as_ref().is_none_or(|value| visit(&key, value))
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

pub(super) fn storage(error: rocksdb::Error) -> TableError {
    TableError::Storage(error.to_string())
}
