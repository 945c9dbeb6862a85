//! The state database of a node: one RocksDB with its WAL off, a column family for each replica generation.
//!
//! Owns the families `g{group}.{generation}` and everything in them. Invariants
//!  - All rows of a replica, its applied record among them, live in one family, and a commit is one write batch. A
//!    memtable is flushed as a whole and in order, so what is on disk is always a prefix of the apply order and the
//!    applied record says which.
//!  - The raft log is the WAL: after a crash the caller replays it from [`StateDb::durable_applied`].
//!  - Committed rows wait in memory for a while (`overlay.rs`) and reach RocksDB as one write batch.
//!  - Any write error is final ([`StateError::Failed`] from then on).
//!  - Of several generations of a group one is live: the one that the raft log names ([`StateDb::set_live`]). Others are
//!    being imported, or wait to be dropped.
//!
//! A clean drop writes back and flushes all memtables (RocksDB does), so a planned restart replays nothing.
//! Not here: keys and records of tables (core), when to flush ([`FlushPacer`] decides, the caller acts), replay.

mod batch;
mod family;
mod options;
mod overlay;
mod pacer;
mod replica;
mod scrub;
mod stats;

pub use batch::{ApplyBatch, CommitStats};
pub use family::Family;
pub use options::StateOptions;
pub use pacer::{FlushPacer, PacerLimits};
pub(crate) use replica::SstWriter;
pub use replica::{Replica, ReplicaSnapshot};
pub use scrub::{DAMAGED_FILE, ScrubPosition};
pub use stats::{MemoryStats, StateMetrics};

use carillon_proto::internal::AppliedRecord;
use options::DbParts;
use parking_lot::Mutex;
use prost::Message;
use rocksdb::{ColumnFamilyDescriptor, DBWithThreadMode, FlushOptions, MultiThreaded, ReadOptions, ReadTier};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Of a group that was created here; installed snapshots have later ones.
pub const FIRST_GENERATION: u64 = 1;

pub(crate) type Db = DBWithThreadMode<MultiThreaded>;

/// Why the state database could not do it. All but [`StateError::Ambiguous`] and [`StateError::NoReplica`] are fatal.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StateError {
    #[error("state database: {0}")]
    Database(String),
    /// Stored bytes are not what was written; the text names the file.
    #[error("state database is damaged: {0}")]
    Damaged(String),
    #[error("state database: an earlier write failed, it takes no more")]
    Failed,
    #[error("applied record of group {group} cannot be decoded")]
    CorruptApplied { group: u32 },
    /// A snapshot install was interrupted; the caller knows from the log which generation is live.
    #[error("group {group} has several generations: {generations:?}")]
    Ambiguous { group: u32, generations: Vec<u64> },
    #[error("replica {0} does not exist")]
    NoReplica(Family),
}

impl From<rocksdb::Error> for StateError {
    fn from(error: rocksdb::Error) -> Self {
        match error.kind() {
            rocksdb::ErrorKind::Corruption => Self::Damaged(error.to_string()),
            _ => Self::Database(error.to_string()),
        }
    }
}

impl StateError {
    /// Whether it says that stored bytes changed, and not that something could not be done.
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::Damaged(_) | Self::CorruptApplied { .. })
    }
}

/// What the database, its replicas and their batches share.
pub(crate) struct Shared {
    pub db: Db,
    pub parts: DbParts,
    pub applied_key: Vec<u8>,
    pub path: PathBuf,
    pub damaged: Mutex<BTreeMap<Family, String>>,
    pub write_back_bytes: usize,
    failed: AtomicBool,
}

impl Shared {
    pub fn check(&self) -> Result<(), StateError> {
        if self.failed.load(Ordering::Acquire) { Err(StateError::Failed) } else { Ok(()) }
    }

    pub fn fail(&self, error: rocksdb::Error) -> StateError {
        self.failed.store(true, Ordering::Release);
        error.into()
    }

    pub fn handle(&self, family: &str) -> Option<Arc<rocksdb::BoundColumnFamily<'_>>> {
        self.db.cf_handle(family)
    }
}

/// See the module documentation.
pub struct StateDb {
    shared: Arc<Shared>,
    replicas: Mutex<BTreeMap<Family, Arc<Replica>>>,
    /// Generation by group, where there may be several. At most one entry for each group.
    live: Mutex<BTreeMap<u32, u64>>,
    unknown: Vec<String>,
}

impl StateDb {
    /// Opens or creates the database with all families that are in it.
    pub fn open(path: &Path, options: &StateOptions) -> Result<Self, StateError> {
        let parts = options.build();
        let damaged = scrub::load(path)?;
        let existing =
            if path.join("CURRENT").exists() { Db::list_cf(&parts.db_options, path)? } else { Vec::new() };
        let descriptors = existing
            .iter()
            .map(|name| {
                let mut family_options = parts.family_options.clone();
                let known = Family::parse(name).is_some_and(|family| damaged.contains_key(&family));
                family_options.set_disable_auto_compactions(known);
                ColumnFamilyDescriptor::new(name.clone(), family_options)
            })
            .collect::<Vec<_>>();
        let db = if descriptors.is_empty() {
            Db::open(&parts.db_options, path)?
        } else {
            Db::open_cf_descriptors(&parts.db_options, path, descriptors)?
        };
        let shared = Arc::new(Shared {
            db,
            parts,
            applied_key: options.applied_key.clone(),
            path: path.to_path_buf(),
            damaged: Mutex::new(damaged),
            write_back_bytes: options.write_back_bytes,
            failed: AtomicBool::new(false),
        });
        let mut replicas = BTreeMap::new();
        let mut unknown = Vec::new();
        for name in existing.into_iter().filter(|name| name != rocksdb::DEFAULT_COLUMN_FAMILY_NAME) {
            match Family::parse(&name) {
                Some(family) => {
                    replicas.insert(family, Arc::new(Replica::new(shared.clone(), family)));
                }
                None => unknown.push(name),
            }
        }
        Ok(Self { shared, replicas: Mutex::new(replicas), live: Mutex::default(), unknown })
    }

    /// All replica families, in order.
    pub fn families(&self) -> Vec<Family> {
        self.replicas.lock().keys().copied().collect()
    }

    /// Families found at open whose name is of no replica. Nothing here touches them.
    pub fn unknown_families(&self) -> &[String] {
        &self.unknown
    }

    /// From now on `replica` gives this generation. It must exist, unless it is the first one.
    pub fn set_live(&self, family: Family) -> Result<(), StateError> {
        if family.generation > FIRST_GENERATION && !self.replicas.lock().contains_key(&family) {
            return Err(StateError::NoReplica(family));
        }
        self.live.lock().insert(family.group, family.generation);
        Ok(())
    }

    /// At start: makes the named generations live and drops every other family: half-made imports, replaced
    /// generations, groups that left. Gives what was dropped.
    pub fn keep_only(&self, live: &BTreeMap<u32, u64>) -> Result<Vec<Family>, StateError> {
        for (group, generation) in live {
            self.set_live(Family { group: *group, generation: *generation })?;
        }
        let others = self.families().into_iter().filter(|f| live.get(&f.group) != Some(&f.generation));
        let others: Vec<Family> = others.collect();
        for family in &others {
            self.destroy_generation(*family)?;
        }
        Ok(others)
    }

    /// The family that reads of a group go to.
    fn live_family(&self, group: u32) -> Option<Family> {
        let live = self.live.lock().get(&group).copied();
        let generation = live.or_else(|| self.generations(group).into_iter().next_back())?;
        Some(Family { group, generation })
    }

    /// A generation of the group that does not exist and is above all that do.
    pub fn next_generation(&self, group: u32) -> u64 {
        let live = self.live.lock().get(&group).copied();
        self.generations(group).into_iter().chain(live).max().unwrap_or(FIRST_GENERATION) + 1
    }

    /// A family that is empty, whatever there was.
    pub(crate) fn fresh(&self, family: Family) -> Result<Arc<Replica>, StateError> {
        assert_ne!(self.live.lock().get(&family.group), Some(&family.generation), "{family} is live");
        match self.destroy_generation(family) {
            Ok(()) | Err(StateError::NoReplica(_)) => self.replica_at(family),
            Err(error) => Err(error),
        }
    }

    /// The live replica of a group, or its only one; its family is created (generation 1) when there is none.
    pub fn replica(&self, group: u32) -> Result<Arc<Replica>, StateError> {
        let live = self.live.lock().get(&group).copied();
        if let Some(generation) = live {
            return self.replica_at(Family { group, generation });
        }
        let generations = self.generations(group);
        match generations.as_slice() {
            [] => self.replica_at(Family { group, generation: FIRST_GENERATION }),
            [generation] => self.replica_at(Family { group, generation: *generation }),
            _ => Err(StateError::Ambiguous { group, generations }),
        }
    }

    /// The replica in a named generation, created if it does not exist.
    pub fn replica_at(&self, family: Family) -> Result<Arc<Replica>, StateError> {
        let mut replicas = self.replicas.lock();
        if let Some(replica) = replicas.get(&family) {
            return Ok(replica.clone());
        }
        self.shared.check()?;
        self.shared
            .db
            .create_cf(family.to_string(), &self.shared.parts.family_options)
            .map_err(|error| self.shared.fail(error))?;
        let replica = Arc::new(Replica::new(self.shared.clone(), family));
        replicas.insert(family, replica.clone());
        Ok(replica)
    }

    /// Removes all generations of a group and their bytes. Reads of replicas still held elsewhere fail afterwards.
    pub fn destroy(&self, group: u32) -> Result<(), StateError> {
        self.live.lock().remove(&group);
        for generation in self.generations(group) {
            self.destroy_generation(Family { group, generation })?;
        }
        Ok(())
    }

    pub fn destroy_generation(&self, family: Family) -> Result<(), StateError> {
        let mut replicas = self.replicas.lock();
        if replicas.remove(&family).is_none() {
            return Err(StateError::NoReplica(family));
        }
        self.shared.db.drop_cf(&family.to_string()).map_err(|error| self.shared.fail(error))?;
        drop(replicas);
        self.forget_damage(family)
    }

    /// The applied record that would be found after a crash now; `None` when nothing of the group is on disk.
    pub fn durable_applied(&self, group: u32) -> Result<Option<AppliedRecord>, StateError> {
        let replica = self.existing(group)?;
        let handle = replica.handle()?;
        let mut read = ReadOptions::default();
        // With the WAL off this tier skips memtables.
        read.set_read_tier(ReadTier::Persisted);
        let value = self.shared.db.get_pinned_cf_opt(&handle, &self.shared.applied_key, &read)?;
        decode_applied(group, value.as_deref())
    }

    /// Writes all of a group's rows to disk and waits for it. Blocking; for a background thread.
    pub fn flush(&self, group: u32) -> Result<Option<AppliedRecord>, StateError> {
        let replica = self.existing(group)?;
        let handle = replica.handle()?;
        replica.write_back()?;
        let mut options = FlushOptions::default();
        options.set_wait(true);
        self.shared.db.flush_cf_opt(&handle, &options).map_err(|error| self.shared.fail(error))?;
        drop(handle);
        self.durable_applied(group)
    }

    pub fn memory_stats(&self) -> MemoryStats {
        MemoryStats::read(&self.shared, &self.families())
    }

    /// Reads the counters of the database and sets the `carillon_state_*` metrics.
    pub fn metrics(&self) -> StateMetrics {
        let metrics = StateMetrics::read(&self.shared, &self.families());
        metrics.publish(&self.memory_stats());
        let overlay: usize = self.replicas.lock().values().map(|r| r.overlay.read().bytes()).sum();
        metrics::gauge!("carillon_state_overlay_bytes").set(overlay as f64);
        metrics
    }

    /// A copy of what is on disk now, without the memtables: what a crash would leave. Also the base of backups,
    /// which flush first.
    pub fn checkpoint(&self, path: &Path) -> Result<(), StateError> {
        let checkpoint = rocksdb::checkpoint::Checkpoint::new(&self.shared.db)?;
        Ok(checkpoint.create_checkpoint_with_log_size(path, u64::MAX)?)
    }

    fn generations(&self, group: u32) -> Vec<u64> {
        self.replicas
            .lock()
            .keys()
            .filter(|family| family.group == group)
            .map(|family| family.generation)
            .collect()
    }

    fn existing(&self, group: u32) -> Result<Arc<Replica>, StateError> {
        match self.generations(group).is_empty() {
            true => Err(StateError::NoReplica(Family { group, generation: 1 })),
            false => self.replica(group),
        }
    }
}

impl Drop for StateDb {
    fn drop(&mut self) {
        for replica in self.replicas.lock().values() {
            // Without success the next start replays more: the log has everything.
            drop(replica.write_back());
        }
    }
}

pub(crate) fn decode_applied(group: u32, value: Option<&[u8]>) -> Result<Option<AppliedRecord>, StateError> {
    value
        .map(|bytes| AppliedRecord::decode(bytes).map_err(|_| StateError::CorruptApplied { group }))
        .transpose()
}
