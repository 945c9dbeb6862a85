//! One replica's rows: committed state for any thread, consistent snapshots, and the start of an apply batch.
//!
//! What is committed is the overlay over RocksDB. A reader looks at the overlay first and opens its iterator before the
//! overlay can be written back, so it never misses a row that moves between the two.
use super::batch::ApplyBatch;
use super::overlay::Overlay;
use super::{Family, Shared, StateError, decode_applied};
use bytes::Bytes;
use carillon_core::tables::{ReadTables, TableError};
use carillon_proto::internal::AppliedRecord;
use parking_lot::RwLock;
use rocksdb::{
    BoundColumnFamily, DBAccess, DBRawIteratorWithThreadMode, IngestExternalFileOptions, ReadOptions,
    SnapshotWithThreadMode, SstFileWriter,
};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Db;

/// Overlay rows of a scan: `None` = deleted.
pub(super) type OverlayRows = BTreeMap<Vec<u8>, Option<Bytes>>;

/// A family of the state database. Reads see committed batches only.
pub struct Replica {
    pub(super) shared: Arc<Shared>,
    pub(super) overlay: RwLock<Overlay>,
    family: Family,
    name: String,
}

impl Replica {
    pub(crate) fn new(shared: Arc<Shared>, family: Family) -> Self {
        Self { shared, overlay: RwLock::default(), family, name: family.to_string() }
    }

    pub fn family(&self) -> Family {
        self.family
    }

    pub fn group(&self) -> u32 {
        self.family.group
    }

    /// Starts a batch; it may cover several raft entries. One at a time for a replica.
    pub fn batch(&self) -> Result<ApplyBatch<'_>, StateError> {
        self.shared.check()?;
        Ok(ApplyBatch::new(self, self.handle()?))
    }

    /// A view that later commits do not change. Hold it briefly: it keeps old rows alive. Writes back first, so that
    /// RocksDB has everything.
    pub fn snapshot(&self) -> Result<ReplicaSnapshot<'_>, StateError> {
        let handle = self.handle()?;
        let mut overlay = self.overlay.write();
        overlay.write_back(&self.shared, &handle)?;
        Ok(ReplicaSnapshot {
            handle,
            snapshot: self.shared.db.snapshot(),
            group: self.family.group,
            applied_key: self.shared.applied_key.clone(),
        })
    }

    /// Gives RocksDB what waits in memory.
    pub(super) fn write_back(&self) -> Result<(), StateError> {
        let handle = self.handle()?;
        self.overlay.write().write_back(&self.shared, &handle).map(drop)
    }

    pub(super) fn overlay_range(&self, start: &[u8], end: &[u8]) -> OverlayRows {
        self.overlay.read().range(start, end)
    }

    /// The applied record in memory, ahead of the durable one.
    pub fn applied(&self) -> Result<Option<AppliedRecord>, StateError> {
        let handle = self.handle()?;
        let overlay = self.overlay.read();
        if let Some(value) = overlay.get(&self.shared.applied_key) {
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
        let overlay = self.overlay.read();
        match overlay.get(key) {
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
        let (rows, stored) = {
            let overlay = self.overlay.read();
            // The iterator sees RocksDB as of now, so the visitor runs without the lock.
            (overlay.range(start, end), self.shared.db.raw_iterator_cf_opt(&handle, options))
        };
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
        let writer = SstFileWriter::create(&replica.shared.parts.family_options);
        writer.open(path)?;
        Ok(Self { writer })
    }

    /// Keys must rise.
    pub fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), StateError> {
        Ok(self.writer.put(key, value)?)
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
