//! Reading everything that a replica stores, with all checksums, without disturbing the cache.
//!
//! RocksDB keeps a checksum with each block and checks it whenever it reads one, so damage is seen when it is met: by a
//! lookup, a compaction, or by this pass, which meets everything. What was found damaged is remembered in the file
//! [`DAMAGED_FILE`]: at the next start the replica is not used, and compactions leave its tables alone, because one
//! that meets the damage would stop writes to the whole database.
//!
//! Not here: when and how fast (the caller asks for one piece after the other), what is done about damage.
use super::{Db, Family, Replica, Shared, StateDb, StateError};
use crate::failpoints;
use rocksdb::ReadOptions;
use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;

/// In the directory of the database: one `family reason` a line.
pub const DAMAGED_FILE: &str = "DAMAGED";
const READAHEAD_BYTES: usize = 256 << 10;

/// How far a pass over one replica has come.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ScrubPosition {
    /// The next key; `None` = finished.
    pub next: Option<Vec<u8>>,
    /// Bytes of keys and values read.
    pub bytes: u64,
}

impl Replica {
    /// Reads from `from` on, about `bytes_max` bytes. An error that [`StateError::is_damage`] means that stored bytes are
    /// not what was written.
    pub fn scrub(&self, from: &[u8], bytes_max: u64) -> Result<ScrubPosition, StateError> {
        let handle = self.handle()?;
        let mut options = ReadOptions::default();
        options.fill_cache(false);
        options.set_verify_checksums(true);
        options.set_readahead_size(READAHEAD_BYTES);
        let mut rows = self.shared.db.raw_iterator_cf_opt(&handle, options);
        rows.seek(from);
        let mut bytes = 0;
        while let Some((key, value)) = rows.item() {
            if bytes >= bytes_max {
                return Ok(ScrubPosition { next: Some(key.to_vec()), bytes });
            }
            bytes += (key.len() + value.len()) as u64;
            rows.next();
        }
        rows.status()?;
        Ok(ScrubPosition { next: None, bytes })
    }
}

impl StateDb {
    /// Replicas that were found damaged, with the reason. They must not run; see [`Self::note_damage`].
    pub fn damaged(&self) -> BTreeMap<Family, String> {
        self.shared.damaged.lock().clone()
    }

    /// Remembers that stored bytes are damaged, for this process and the next. `group` is what was being read, if anything
    /// was; otherwise the table that the error names tells the replica. Gives the replica, if it could be told.
    pub fn note_damage(&self, group: Option<u32>, error: &StateError) -> Result<Option<Family>, StateError> {
        if !error.is_damage() {
            return Ok(None);
        }
        let text = error.to_string();
        let family = match group {
            Some(group) => self.live_family(group),
            None => owner_of(&self.shared.db, &text),
        };
        let Some(family) = family else { return Ok(None) };
        let mut damaged = self.shared.damaged.lock();
        if damaged.insert(family, text).is_none() {
            leave_alone(&self.shared, family)?;
        }
        store(&self.shared.path, &damaged)?;
        Ok(Some(family))
    }

    /// The replica's files are gone, and so is the damage.
    pub(super) fn forget_damage(&self, family: Family) -> Result<(), StateError> {
        let mut damaged = self.shared.damaged.lock();
        if damaged.remove(&family).is_some() {
            store(&self.shared.path, &damaged)?;
        }
        Ok(())
    }
}

/// No compaction touches the replica's tables any more.
pub(super) fn leave_alone(shared: &Shared, family: Family) -> Result<(), StateError> {
    let Some(handle) = shared.handle(&family.to_string()) else { return Ok(()) };
    Ok(shared.db.set_options_cf(&handle, &[("disable_auto_compactions", "true")])?)
}

/// The replica whose table an error of RocksDB names ("... in <directory>/000123.sst offset ...").
fn owner_of(db: &Db, error: &str) -> Option<Family> {
    let end = error.find(".sst")?;
    let digits = error[..end].bytes().rev().take_while(u8::is_ascii_digit).count();
    let number: u64 = error[end - digits..end].parse().ok()?;
    let files = db.live_files().ok()?;
    let file = files.into_iter().find(|file| file_number(&file.name) == Some(number))?;
    Family::parse(&file.column_family_name)
}

fn file_number(name: &str) -> Option<u64> {
    name.trim_start_matches('/').strip_suffix(".sst")?.parse().ok()
}

pub(super) fn load(path: &Path) -> Result<BTreeMap<Family, String>, StateError> {
    let text = match std::fs::read_to_string(path.join(DAMAGED_FILE)) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) => return Err(io(&error)),
    };
    let row = |line: &str| {
        let (name, reason) = line.split_once(' ')?;
        Some((Family::parse(name)?, reason.to_owned()))
    };
    Ok(text.lines().filter_map(row).collect())
}

/// Written beside and renamed, so that a crash leaves the old list or the new one.
fn store(path: &Path, damaged: &BTreeMap<Family, String>) -> Result<(), StateError> {
    let row = |(family, reason): (&Family, &String)| format!("{family} {}\n", reason.replace('\n', " "));
    let text: String = damaged.iter().map(row).collect();
    let (new, name) = (path.join("DAMAGED.new"), path.join(DAMAGED_FILE));
    let write = || {
        let mut file = std::fs::File::create(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&new, &name)?;
        std::fs::File::open(path)?.sync_all()
    };
    failpoints::hit("damage::before_note");
    write().map_err(|error| io(&error))?;
    failpoints::hit("damage::after_note");
    Ok(())
}

fn io(error: &std::io::Error) -> StateError {
    StateError::Database(format!("list of damaged replicas: {error}"))
}
