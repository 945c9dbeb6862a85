//! The raft log on a WAL-synced RocksDB: one write batch, one WAL record, one fsync for one `write`.
//!
//! Rows: `group (4) | 0` = the group's record, `group (4) | 1 | index (8)` = checksum and entry. Truncation and a
//! replaced suffix are range deletions.
//! WAL recovery mode: `TolerateCorruptedTailRecords`, which drops an incomplete last record and refuses everything
//! else. The default, `PointInTime`, would silently stop at the first damage.
//! Memory: up to `write_buffers` memtables of `write_buffer_bytes`.
use super::files::{lock_directory, occupied_bytes};
use super::record::{Budget, GroupRecord, GroupTable, Planned};
use super::{OpenError, checksum};
use carillon_consensus::{GroupState, GroupWrite, LogError, LogStore};
use parking_lot::{Mutex, RwLock};
use protobuf::Message;
use raft::eraftpb::Entry;
use rocksdb::{
    BlockBasedOptions, Cache, ChecksumType, DB, DBCompressionType, DBRecoveryMode, ErrorKind, IteratorMode,
    Options, ReadOptions, WriteBatch, WriteOptions,
};
use std::fs::File;
use std::path::{Path, PathBuf};

const RECORD_KIND: u8 = 0;
const ENTRY_KIND: u8 = 1;
const GROUP_BYTES: usize = 4;

/// Sizes of the log.
#[derive(Debug, Clone)]
pub struct RocksLogOptions {
    /// Large, so that most entries are truncated before they are flushed.
    pub write_buffer_bytes: usize,
    pub write_buffers: i32,
    pub block_cache_bytes: usize,
}

impl Default for RocksLogOptions {
    fn default() -> Self {
        Self { write_buffer_bytes: 64 << 20, write_buffers: 3, block_cache_bytes: 8 << 20 }
    }
}

/// See the module documentation.
pub struct RocksLog {
    db: DB,
    table: RwLock<GroupTable>,
    /// Serialises writers; true after a failed write.
    failed: Mutex<bool>,
    dir: PathBuf,
    _owner: File,
}

impl RocksLog {
    /// Opens or creates the log in `dir`.
    pub fn open(dir: &Path, options: &RocksLogOptions) -> Result<Self, OpenError> {
        let owner = lock_directory(dir)?;
        let db = DB::open(&db_options(options), dir).map_err(|error| open_error(&error))?;
        let table = load_table(&db)?;
        Ok(Self {
            db,
            table: RwLock::new(table),
            failed: Mutex::new(false),
            dir: dir.to_path_buf(),
            _owner: owner,
        })
    }

    fn commit(&self, failed: &mut bool, batch: WriteBatch, sync: bool) -> Result<(), LogError> {
        if *failed {
            return Err(LogError::Io("an earlier write failed, the log takes no more".to_string()));
        }
        let mut options = WriteOptions::default();
        options.set_sync(sync);
        self.db.write_opt(batch, &options).map_err(|error| {
            *failed = true;
            LogError::Io(error.to_string())
        })
    }

    fn is_divergent(&self, group: u32, index: u64, term: u64) -> Result<bool, LogError> {
        let table = self.table.read();
        let stored = table.get(group).is_some_and(|r| r.truncated_index < index && index <= r.last_index);
        drop(table);
        Ok(stored
            && self.entries(group, index, index + 1, 0)?.first().is_some_and(|entry| entry.term != term))
    }
}

impl LogStore for RocksLog {
    fn load(&self, group: u32) -> Result<Option<GroupState>, LogError> {
        Ok(self.table.read().state(group))
    }

    fn removed(&self, group: u32) -> Result<Option<u64>, LogError> {
        Ok(self.table.read().removed(group))
    }

    fn entries(&self, group: u32, low: u64, high: u64, bytes_max: u64) -> Result<Vec<Entry>, LogError> {
        if low >= high {
            return Ok(Vec::new());
        }
        self.table.read().check_range(group, low, high)?;
        let mut read = ReadOptions::default();
        read.set_iterate_upper_bound(entry_key(group, high).to_vec());
        let mut rows = self.db.raw_iterator_opt(read);
        rows.seek(entry_key(group, low));
        let mut budget = Budget::new(bytes_max);
        let mut entries = Vec::new();
        for index in low..high {
            let Some((key, value)) = rows.item() else {
                rows.status().map_err(|error| read_error(group, &error))?;
                return Err(LogError::Corrupt {
                    group,
                    reason: format!("entry {index} was acknowledged but is not there"),
                });
            };
            let entry = decode(group, index, key, value)?;
            if !budget.admits(&entry) {
                break;
            }
            entries.push(entry);
            rows.next();
        }
        Ok(entries)
    }

    fn write(&self, writes: &[GroupWrite], sync: bool) -> Result<(), LogError> {
        let mut failed = self.failed.lock();
        let planned = self.table.read().plan(writes)?;
        let mut batch = WriteBatch::default();
        for part in &planned {
            stage(&mut batch, part)?;
        }
        self.commit(&mut failed, batch, sync)?;
        self.table.write().publish(planned);
        Ok(())
    }

    fn truncate(&self, group: u32, index: u64, term: u64) -> Result<(), LogError> {
        let mut failed = self.failed.lock();
        let divergent = self.is_divergent(group, index, term)?;
        let Some(record) = self.table.read().plan_truncate(group, index, term, divergent) else {
            return Ok(());
        };
        let end = if divergent { u64::MAX } else { index + 1 };
        let mut batch = WriteBatch::default();
        batch.delete_range(entry_key(group, 0), entry_key(group, end));
        batch.put(record_key(group), record.to_bytes(group));
        self.commit(&mut failed, batch, false)?;
        self.table.write().insert(group, record);
        Ok(())
    }

    fn disk_bytes(&self) -> u64 {
        occupied_bytes(&self.dir)
    }
}

fn db_options(options: &RocksLogOptions) -> Options {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(&Cache::new_lru_cache(options.block_cache_bytes));
    table.set_checksum_type(ChecksumType::XXH3);
    table.set_block_size(16 << 10);
    let mut db = Options::default();
    db.create_if_missing(true);
    db.set_paranoid_checks(true);
    db.set_wal_recovery_mode(DBRecoveryMode::TolerateCorruptedTailRecords);
    db.set_track_and_verify_wals_in_manifest(true);
    db.set_use_fsync(false);
    db.set_unordered_write(false);
    db.set_compression_type(DBCompressionType::None);
    db.set_block_based_table_factory(&table);
    db.set_write_buffer_size(options.write_buffer_bytes);
    db.set_max_write_buffer_number(options.write_buffers);
    db.set_target_file_size_base(options.write_buffer_bytes as u64);
    db.set_max_bytes_for_level_base(4 * options.write_buffer_bytes as u64);
    db.set_level_zero_file_num_compaction_trigger(4);
    db.set_max_background_jobs(2);
    db.set_max_open_files(128);
    db.set_keep_log_file_num(4);
    db.set_max_log_file_size(1 << 20);
    db.set_stats_dump_period_sec(0);
    db
}

fn load_table(db: &DB) -> Result<GroupTable, OpenError> {
    let mut table = GroupTable::default();
    let mut next = 0;
    // Records are one key for each group: jump from one to the next.
    loop {
        let seek = record_key(next);
        let Some(row) = db.iterator(IteratorMode::From(&seek, rocksdb::Direction::Forward)).next() else {
            break;
        };
        let (key, value) = row.map_err(|error| open_error(&error))?;
        let (group, kind) = split_key(&key)?;
        if kind != RECORD_KIND {
            return Err(
                LogError::Corrupt { group, reason: "it has entries but no record".to_string() }.into()
            );
        }
        let record = GroupRecord::from_bytes(group, &value)?;
        check_last(db, group, &record)?;
        table.insert(group, record);
        let Some(following) = group.checked_add(1) else { break };
        next = following;
    }
    Ok(table)
}

/// The last entry that the record names must be there.
fn check_last(db: &DB, group: u32, record: &GroupRecord) -> Result<(), OpenError> {
    if record.last_index == record.truncated_index {
        return Ok(());
    }
    for index in [record.truncated_index + 1, record.last_index] {
        if db.get_pinned(entry_key(group, index)).map_err(|error| open_error(&error))?.is_none() {
            return Err(LogError::Corrupt {
                group,
                reason: format!("entry {index} was acknowledged but is not there"),
            }
            .into());
        }
    }
    Ok(())
}

fn stage(batch: &mut WriteBatch, part: &Planned<'_>) -> Result<(), LogError> {
    if part.cleared {
        batch.delete_range(entry_key(part.group, 0), entry_key(part.group, u64::MAX));
    }
    if let Some((from, to)) = part.replaced {
        batch.delete_range(entry_key(part.group, from), entry_key(part.group, to + 1));
    }
    let mut value = Vec::new();
    for entry in part.entries {
        value.clear();
        value.extend_from_slice(&checksum::of_entry(part.group, entry).to_le_bytes());
        entry.write_to_vec(&mut value).map_err(|error| LogError::Io(error.to_string()))?;
        batch.put(entry_key(part.group, entry.index), &value);
    }
    batch.put(record_key(part.group), part.record.to_bytes(part.group));
    Ok(())
}

fn decode(group: u32, index: u64, key: &[u8], value: &[u8]) -> Result<Entry, LogError> {
    let corrupt = |reason: &str| LogError::Corrupt { group, reason: format!("entry {index}: {reason}") };
    if key != entry_key(group, index) {
        return Err(corrupt("it was acknowledged but is not there"));
    }
    let (sum, body) = value.split_first_chunk::<4>().ok_or_else(|| corrupt("it is too short"))?;
    let entry = Entry::parse_from_bytes(body).map_err(|_| corrupt("it cannot be decoded"))?;
    if entry.index != index || checksum::of_entry(group, &entry) != u32::from_le_bytes(*sum) {
        return Err(corrupt("it fails its checksum"));
    }
    Ok(entry)
}

fn record_key(group: u32) -> [u8; 5] {
    let mut key = [RECORD_KIND; 5];
    key[..GROUP_BYTES].copy_from_slice(&group.to_be_bytes());
    key
}

fn entry_key(group: u32, index: u64) -> [u8; 13] {
    let mut key = [ENTRY_KIND; 13];
    key[..GROUP_BYTES].copy_from_slice(&group.to_be_bytes());
    key[GROUP_BYTES + 1..].copy_from_slice(&index.to_be_bytes());
    key
}

fn split_key(key: &[u8]) -> Result<(u32, u8), OpenError> {
    match key.split_first_chunk::<GROUP_BYTES>() {
        Some((group, [kind, ..])) => Ok((u32::from_be_bytes(*group), *kind)),
        _ => Err(OpenError::Damaged {
            file: "database".to_string(),
            offset: 0,
            reason: "a key is too short".to_string(),
        }),
    }
}

fn read_error(group: u32, error: &rocksdb::Error) -> LogError {
    match error.kind() {
        ErrorKind::Corruption => LogError::Corrupt { group, reason: error.to_string() },
        _ => LogError::Io(error.to_string()),
    }
}

fn open_error(error: &rocksdb::Error) -> OpenError {
    match error.kind() {
        ErrorKind::Corruption => {
            OpenError::Damaged { file: "database".to_string(), offset: 0, reason: error.to_string() }
        }
        _ => OpenError::Io(error.to_string()),
    }
}
