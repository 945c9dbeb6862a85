//! The raft log on TiKV's raft-engine: one segment log for all groups, an in-memory index, one fsync a batch.
//!
//! Owns the directory (locked by file `OWNER`), a record for each group, and the numbering of batches that
//! `preflight` needs. Invariants: one `LogBatch` for one `write`, whatever the number of groups; each batch ends with
//! a marker; after any failed write the log refuses everything.
//!
//! Recovery mode: `TolerateTailCorruption`, but only after `preflight` has checked every batch of every file and cut
//! a torn tail itself, because the engine alone would drop acknowledged batches behind damage in its newest file.
//! fsync errors: the engine panics on them (`pipe::sync()`); the panic is caught here and surfaces as `LogError::Io`.
//! Compression is off: entries are sealed, they do not compress.
//! Memory: about 32 bytes of index for each entry that is not truncated.
use super::files::{lock_directory, occupied_bytes};
use super::preflight::{self, MARKER_KEY, MARKER_REGION, Marker};
use super::record::{Budget, GroupRecord, GroupTable, Planned};
use super::{OpenError, checksum};
use carillon_consensus::{GroupState, GroupWrite, LogError, LogStore};
use parking_lot::{Mutex, RwLock};
use raft::eraftpb::Entry;
use raft_engine::{Command, Config, Engine, LogBatch, MessageExt, ReadableSize, RecoveryMode, Version};
use std::collections::BTreeMap;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

const RECORD_KEY: &[u8] = b"record";

/// Sizes of the log on disk.
#[derive(Debug, Clone)]
pub struct EngineLogOptions {
    /// A file is closed when it reaches this.
    pub file_bytes: u64,
    /// `purge` frees files when the log is larger than this, and names the groups that hold it back.
    pub purge_threshold_bytes: u64,
    /// Keep freed files and write into them again: an fsync then changes no file size.
    pub recycle_files: bool,
}

impl Default for EngineLogOptions {
    fn default() -> Self {
        Self { file_bytes: 32 << 20, purge_threshold_bytes: 512 << 20, recycle_files: true }
    }
}

/// How the engine finds the index of an entry.
struct RaftEntry;

impl MessageExt for RaftEntry {
    type Entry = Entry;

    fn index(entry: &Entry) -> u64 {
        entry.index
    }
}

/// State of the single writer.
struct Writer {
    /// Of the last batch written.
    sequence: u64,
    /// Of the last batch known to be on disk.
    synced: u64,
    failed: bool,
}

/// See the module documentation.
pub struct EngineLog {
    engine: Engine,
    table: RwLock<GroupTable>,
    writer: Mutex<Writer>,
    dir: PathBuf,
    damaged: BTreeMap<u32, String>,
    _owner: File,
}

impl EngineLog {
    /// Opens or creates the log in `dir`. Everything found is on disk when this returns.
    pub fn open(dir: &Path, options: &EngineLogOptions) -> Result<Self, OpenError> {
        let owner = lock_directory(dir)?;
        let checked = preflight::check(dir)?;
        let sequence = checked.sequence;
        let engine = open_engine(dir, options)?;
        let mut table = GroupTable::default();
        for region in engine.raft_groups() {
            if region == MARKER_REGION {
                continue;
            }
            let group =
                u32::try_from(region).map_err(|_| OpenError::Io(format!("region {region} is no group")))?;
            table.insert(group, load_record(&engine, group)?);
        }
        let log = Self {
            engine,
            table: RwLock::new(table),
            writer: Mutex::new(Writer { sequence, synced: sequence, failed: false }),
            dir: dir.to_path_buf(),
            damaged: BTreeMap::new(),
            _owner: owner,
        };
        log.settle()?;
        // Rare, so it may take its time: which groups need the entries that are damaged?
        let damaged = match checked.damaged.first() {
            None => BTreeMap::new(),
            Some(place) => log
                .groups()
                .into_iter()
                .filter_map(|group| {
                    let error = log.verify(group).err()?;
                    Some((group, format!("{error} ({place})")))
                })
                .collect(),
        };
        Ok(Self { damaged, ..log })
    }

    /// Drops entries that the engine brought back from below a truncation, and syncs what a killed process had only
    /// written: raft takes everything found at start for durable.
    fn settle(&self) -> Result<(), LogError> {
        let mut batch = LogBatch::default();
        let table = self.table.read();
        for (group, record) in table.rows() {
            let region = u64::from(*group);
            let Some((first, last)) = self.engine.first_index(region).zip(self.engine.last_index(region))
            else {
                continue;
            };
            let index = match record.last_index == record.truncated_index {
                // Nothing is left of them: cut off, removed, or replaced by a snapshot.
                true => last + 1,
                false => record.truncated_index + 1,
            };
            if first < index {
                batch.add_command(region, Command::Compact { index });
            }
        }
        drop(table);
        self.append(&mut self.writer.lock(), batch, true)
    }

    /// Frees files that hold only truncated entries. Returns the groups that keep old files alive: the caller should
    /// truncate those further. Blocking; for a background thread.
    pub fn purge(&self) -> Result<Vec<u32>, LogError> {
        // Truncations are written without sync. Were a file deleted before they are on disk, a power cut would leave
        // a group whose first entries are missing.
        self.append(&mut self.writer.lock(), LogBatch::default(), true)?;
        let groups = guard(|| self.engine.purge_expired_files())?;
        Ok(groups.into_iter().filter_map(|region| u32::try_from(region).ok()).collect())
    }

    /// Groups some of whose entries failed their checksum when the log was opened, and why. Their replicas must not run.
    pub fn damaged(&self) -> &BTreeMap<u32, String> {
        &self.damaged
    }

    /// Reads every entry of a group, with all checksums. Slow; for damage that is known and for the scrub.
    fn verify(&self, group: u32) -> Result<(), LogError> {
        let Some(state) = self.load(group)? else { return Ok(()) };
        (state.truncated_index + 1..=state.last_index).try_for_each(|index| self.read(group, index).map(drop))
    }

    /// Groups that exist on this node.
    pub fn groups(&self) -> Vec<u32> {
        self.table.read().groups()
    }

    fn append(&self, writer: &mut Writer, mut batch: LogBatch, sync: bool) -> Result<(), LogError> {
        if writer.failed {
            return Err(LogError::Io("an earlier write failed, the log takes no more".to_string()));
        }
        let marker = Marker { sequence: writer.sequence + 1, synced: writer.synced };
        let written = batch
            .put(MARKER_REGION, MARKER_KEY.to_vec(), marker.to_value())
            .map_err(|error| LogError::Io(error.to_string()))
            .and_then(|()| guard(|| self.engine.write(&mut batch, sync)));
        match written {
            Ok(_) => {
                writer.sequence = marker.sequence;
                if sync {
                    writer.synced = marker.sequence;
                }
                Ok(())
            }
            Err(error) => {
                writer.failed = true;
                Err(error)
            }
        }
    }

    /// Whether the stored entry at a truncation has another term: then all that follows is a dead branch.
    fn is_divergent(&self, group: u32, index: u64, term: u64) -> Result<bool, LogError> {
        let table = self.table.read();
        let stored = table.get(group).is_some_and(|r| r.truncated_index < index && index <= r.last_index);
        drop(table);
        Ok(stored && self.read(group, index)?.term != term)
    }

    fn read(&self, group: u32, index: u64) -> Result<Entry, LogError> {
        let corrupt =
            |reason: String| LogError::Corrupt { group, reason: format!("entry {index}: {reason}") };
        // The engine asserts on blocks that are shorter than its index says.
        let read =
            catch_unwind(AssertUnwindSafe(|| self.engine.get_entry::<RaftEntry>(u64::from(group), index)))
                .map_err(|_| corrupt("the stored block is malformed".to_string()))?;
        match read {
            Ok(Some(entry)) => checksum::unseal(group, index, entry),
            Ok(None) => Err(corrupt("it was acknowledged but is not there".to_string())),
            Err(raft_engine::Error::Io(error)) => Err(LogError::Io(error.to_string())),
            Err(error) => Err(corrupt(error.to_string())),
        }
    }
}

impl LogStore for EngineLog {
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
        let mut budget = Budget::new(bytes_max);
        let mut entries = Vec::new();
        for index in low..high {
            let entry = self.read(group, index)?;
            if !budget.admits(&entry) {
                break;
            }
            entries.push(entry);
        }
        Ok(entries)
    }

    fn write(&self, writes: &[GroupWrite], sync: bool) -> Result<(), LogError> {
        let mut writer = self.writer.lock();
        let planned = self.table.read().plan(writes)?;
        let mut batch = LogBatch::with_capacity(planned.len() * 2 + 1);
        let mut lasts = BTreeMap::new();
        for part in &planned {
            if part.cleared {
                // Behind whatever the engine has of it, earlier parts of this batch included.
                let stored = self.engine.last_index(u64::from(part.group)).unwrap_or(0);
                let last = stored.max(lasts.get(&part.group).copied().unwrap_or(0));
                batch.add_command(u64::from(part.group), Command::Compact { index: last + 1 });
            }
            if let Some(entry) = part.entries.last() {
                lasts.insert(part.group, entry.index);
            }
            stage(&mut batch, part)?;
        }
        self.append(&mut writer, batch, sync)?;
        self.table.write().publish(planned);
        Ok(())
    }

    fn truncate(&self, group: u32, index: u64, term: u64) -> Result<(), LogError> {
        let mut writer = self.writer.lock();
        let divergent = self.is_divergent(group, index, term)?;
        let Some(record) = self.table.read().plan_truncate(group, index, term, divergent) else {
            return Ok(());
        };
        let region = u64::from(group);
        let keep_from = match self.engine.last_index(region) {
            Some(last) if divergent || last < index => last.max(index) + 1,
            _ => index + 1,
        };
        let mut batch = LogBatch::default();
        batch.add_command(region, Command::Compact { index: keep_from });
        put_record(&mut batch, group, &record)?;
        self.append(&mut writer, batch, false)?;
        self.table.write().insert(group, record);
        Ok(())
    }

    fn disk_bytes(&self) -> u64 {
        occupied_bytes(&self.dir)
    }
}

fn open_engine(dir: &Path, options: &EngineLogOptions) -> Result<Engine, OpenError> {
    let config = Config {
        dir: dir.to_str().ok_or_else(|| OpenError::Io("the path is not UTF-8".to_string()))?.to_string(),
        recovery_mode: RecoveryMode::TolerateTailCorruption,
        recovery_threads: 2,
        batch_compression_threshold: ReadableSize(0),
        format_version: Version::V2,
        target_file_size: ReadableSize(options.file_bytes),
        purge_threshold: ReadableSize(options.purge_threshold_bytes.max(options.file_bytes)),
        enable_log_recycle: options.recycle_files,
        ..Config::default()
    };
    match catch_unwind(AssertUnwindSafe(|| Engine::open(config))) {
        Ok(Ok(engine)) => Ok(engine),
        Ok(Err(raft_engine::Error::Io(error))) => Err(error.into()),
        Ok(Err(error)) => Err(damaged_engine(error.to_string())),
        // For example "memtable has a hole": a file in the middle is missing.
        Err(_) => Err(damaged_engine("the engine refused what it replayed".to_string())),
    }
}

fn damaged_engine(reason: String) -> OpenError {
    OpenError::Damaged { file: "log directory".to_string(), offset: 0, reason }
}

fn load_record(engine: &Engine, group: u32) -> Result<GroupRecord, LogError> {
    let region = u64::from(group);
    let corrupt = |reason: String| LogError::Corrupt { group, reason };
    let bytes =
        engine.get(region, RECORD_KEY).ok_or_else(|| corrupt("it has entries but no record".to_string()))?;
    let record = GroupRecord::from_bytes(group, &bytes)?;
    if record.last_index > record.truncated_index {
        let first = engine.first_index(region).unwrap_or(u64::MAX);
        let last = engine.last_index(region).unwrap_or(0);
        if first > record.truncated_index + 1 || last < record.last_index {
            return Err(corrupt(format!(
                "acknowledged entries {} to {} are not all there",
                record.truncated_index + 1,
                record.last_index
            )));
        }
    }
    Ok(record)
}

fn stage(batch: &mut LogBatch, part: &Planned<'_>) -> Result<(), LogError> {
    let sealed: Vec<Entry> = part.entries.iter().map(|entry| checksum::seal(part.group, entry)).collect();
    batch
        .add_entries::<RaftEntry>(u64::from(part.group), &sealed)
        .map_err(|error| LogError::Io(error.to_string()))?;
    put_record(batch, part.group, &part.record)
}

fn put_record(batch: &mut LogBatch, group: u32, record: &GroupRecord) -> Result<(), LogError> {
    batch
        .put(u64::from(group), RECORD_KEY.to_vec(), record.to_bytes(group))
        .map_err(|error| LogError::Io(error.to_string()))
}

/// Runs an engine call that panics where it should return an I/O error.
fn guard<T>(call: impl FnOnce() -> raft_engine::Result<T>) -> Result<T, LogError> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Err(raft_engine::Error::Corruption(reason))) => Err(LogError::Damaged(reason)),
        Ok(result) => result.map_err(|error| LogError::Io(error.to_string())),
        Err(panic) => {
            let text =
                panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
            Err(LogError::Io(format!("the log engine panicked: {}", text.unwrap_or("no text"))))
        }
    }
}
